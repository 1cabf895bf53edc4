"""What has been found already: a sampled structure that looks like a known minimum need not be relaxed."""

import pickle
from dataclasses import dataclass, replace
from functools import lru_cache
from math import inf
from typing import TYPE_CHECKING, Any, NamedTuple

from ase import Atoms

from ase_gss.minima import Comparison, Fingerprint
from ase_gss.nearest import Nearest

if TYPE_CHECKING:
    from ase_gss.crystal_minima import CrystalComparison, CrystalFingerprint

#: Å per atom: so like a known end a relaxing molecule must be to be taken for it; ends themselves may differ by more.
ON_THE_WAY = 0.15
#: Å per atom: a sample so like the start of an earlier relaxation as a rule goes where that went. From 3 000 to 15 000
#: force calls of C2H5ClO and of C2H4O3 (GFN2-xTB) 645 and 220 relaxations began so, with 4 272 and 2 294 of the calls:
#: one of the 12 and none of the 39 new minima was among them; within 0.12 Å 2 and 2, and 5 036 and 3 868 calls.
SAME_START = 0.08
#: Relaxations are compared with so many ends, the first ones: those that are met most.
FIRST_ENDS = 300


@dataclass(frozen=True)
class KnownEnds:
    """Ends of earlier trials, to recognise relaxations by that head for them; it pickles.

    It goes to workers with every relaxation: what is sent is made once for the same ends, and taken up once.

    Attributes
    ----------
    ends : FirstEnds
        They, by trial number, and perhaps some more.
    below : int
        Only trials with a smaller number count.
    """

    ends: "FirstEnds"
    below: int

    def recall(self, atoms: Atoms) -> int | None:
        """The trial whose end these atoms are about to come to, None where there is none."""
        nearest = self.ends.nearest
        return nearest.find(nearest.comparison.describe(atoms, 0.0), self.below)


class FirstEnds:
    """The first `FIRST_ENDS` ends of a search."""

    def __init__(self, comparison: "Comparison") -> None:
        self.nearest = Nearest(comparison)
        self._packed: bytes | None = None

    def add(self, trial: int, end: "Fingerprint") -> None:
        """Take up the end of a trial, where there is room."""
        if len(self.nearest) < FIRST_ENDS:
            self.nearest.add(trial, end)
            self._packed = None

    def __reduce__(self) -> tuple[Any, ...]:
        if self._packed is None:
            self._packed = pickle.dumps(self.nearest, pickle.HIGHEST_PROTOCOL)
        return _unpacked, (self._packed,)


@lru_cache(maxsize=4)
def _unpacked(packed: bytes) -> FirstEnds:
    """The same object for the same bytes: a worker looks things up in it, and nothing else."""
    ends = FirstEnds.__new__(FirstEnds)
    ends.nearest, ends._packed = pickle.loads(packed), packed
    return ends


class Look(NamedTuple):
    """What a sampled structure looks like.

    Attributes
    ----------
    known : int or None
        Trial whose end it is supposed to come to.
    why : str
        Why, in words.
    bonds : str
        Name of its bonding graph.
    """

    known: int | None
    why: str
    bonds: str


class Memory:
    """The ends of earlier trials, and where relaxations to them have begun, to recognise sampled structures by.

    Bonding graphs and distances are compared as for ends, energies not at all. Of 192 hot samples each (GFN2-xTB) this
    recognised 96 of 140 repeats of C3H6O, 33 of 72 of C2H4O3 and 34 of 79 of C2H6OS, and took 1, 2 and 0 for known that
    would have been new minima. Comparing with earlier samples as loosely recognised far more, but found fewer minima
    for the same force calls: so of these only those are recognised that learned forces have led to the same place.

    Parameters
    ----------
    comparison : Comparison
        That of the search.
    """

    def __init__(self, comparison: "Comparison | CrystalComparison") -> None:
        self._comparison = replace(comparison, energy_tolerance=inf)
        self._nearest = Nearest(self._comparison)
        self._first: FirstEnds | None = None
        self._starts: Nearest | None = None
        self._led_to: dict[int, int] = {}
        if isinstance(comparison, Comparison):
            self._starts = Nearest(replace(self._comparison, distance_tolerance=SAME_START))
        # What tells two hands apart is too much to send along with every relaxation.
        if isinstance(comparison, Comparison) and comparison.mirror_images_are_one:
            self._first = FirstEnds(replace(self._comparison, distance_tolerance=ON_THE_WAY))

    def remember(self, end: Atoms, trial: int) -> None:
        """Keep the end of a trial."""
        self.remember_described(self._comparison.describe(end, 0.0), trial)

    def remember_described(self, end: "Fingerprint | CrystalFingerprint", trial: int) -> None:
        """Keep the end of a trial that the search's comparison has described already."""
        self._nearest.add(trial, end)
        if self._first is not None:
            self._first.add(trial, end)

    @property
    def compares_starts(self) -> bool:
        """Whether it has a use for `remember_start`: molecules only."""
        return self._starts is not None

    def remember_start(self, start: Atoms, trial: int, end: int) -> None:
        """Keep where the relaxation of this trial has begun, which came to, or headed for, the end of trial `end`."""
        described = self._comparison.describe(start, 0.0)
        if self._starts.find(described) is None:  # one of a kind will do
            self._starts.add(trial, described)
            self._led_to[trial] = end

    def first_ends(self, before: int) -> KnownEnds | None:
        """What relaxations of molecules may be recognised by, of the trials below `before`; None: by nothing."""
        return None if self._first is None else KnownEnds(self._first, before)

    def look_at(self, sampled: Atoms, before: int) -> Look:
        """What this structure looks like, next to the ends and starts of the trials with numbers below `before`."""
        described = self._comparison.describe(sampled, 0.0)
        known = self._nearest.find(described, before)
        why = f"looks like the end of trial {known}"
        if known is None and self._starts is not None:
            alike = self._starts.find(described, before)
            # Where searches share a database, it may have led to what another trial, a later one, had met before.
            known = self._led_to.get(alike)
            known = known if known is not None and known < before else None
            why = f"begins like trial {alike}, which led to the end of trial {known}"
        return Look(known, "" if known is None else why, described.key)
