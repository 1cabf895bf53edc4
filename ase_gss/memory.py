"""What has been found already: a sampled structure that looks like a known minimum need not be relaxed."""

import pickle
from dataclasses import dataclass, replace
from functools import lru_cache
from math import inf
from typing import TYPE_CHECKING, Any

from ase import Atoms

from ase_gss.minima import Comparison, Fingerprint
from ase_gss.nearest import Nearest

if TYPE_CHECKING:
    from ase_gss.crystal_minima import CrystalComparison, CrystalFingerprint

#: Å per atom: so like a known end a relaxing molecule must be to be taken for it; ends themselves may differ by more.
ON_THE_WAY = 0.15
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


class Memory:
    """The ends of earlier trials, to recognise sampled structures by.

    Bonding graphs and distances are compared as for ends, energies not at all. Of 192 hot samples each (GFN2-xTB) this
    recognised 96 of 140 repeats of C3H6O, 33 of 72 of C2H4O3 and 34 of 79 of C2H6OS, and took 1, 2 and 0 for known that
    would have been new minima. Comparing with earlier samples as well recognised far more, but found fewer minima for
    the same force calls: what was wrongly taken for known once is taken for known for ever.

    Parameters
    ----------
    comparison : Comparison
        That of the search.
    """

    def __init__(self, comparison: "Comparison | CrystalComparison") -> None:
        self._comparison = replace(comparison, energy_tolerance=inf)
        self._nearest = Nearest(self._comparison)
        self._first: FirstEnds | None = None
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

    def first_ends(self, before: int) -> KnownEnds | None:
        """What relaxations of molecules may be recognised by, of the trials below `before`; None: by nothing."""
        return None if self._first is None else KnownEnds(self._first, before)

    def recall(self, sampled: Atoms, before: int) -> int | None:
        """The trial with a number below `before` whose end this structure looks most like, None where there is none."""
        return self.look_at(sampled, before)[0]

    def look_at(self, sampled: Atoms, before: int) -> tuple[int | None, str]:
        """The trial that `recall` gives, and the name of the structure's bonding graph."""
        described = self._comparison.describe(sampled, 0.0)
        return self._nearest.find(described, before), described.key
