"""When the relaxation of a molecule is worth no further force call: it falls apart, or its end is known."""

from collections.abc import Collection
from math import inf

from ase import Atoms

from ase_gss.memory import KnownEnds
from ase_gss.relax import fallen_apart

#: Optimizer steps between two looks.
INTERVAL = 2
#: A sample is in pieces where bonds may be so many sums of covalent radii long: before the first step, and later on.
SAMPLED_FIRST, LAST = 1.75, 1.5
#: The same for atoms that start at random, which are often far apart and still come together: the first, and how much
#: less in each step, down to `LAST`.
RANDOM_FIRST, RANDOM_LESS = 2.4, 0.08


class GivingUp:
    """Looks at a relaxation before its first force call, after it, and every `INTERVAL` steps.

    For ``hand_off(give_up=...)``.

    Replayed on adaptive searches of C3H6O, C2H6OS and C4H6O (6 000 to 8 000 force calls, GFN2-xTB): looking at samples
    before their first call spares 4 to 50 % of their calls and loses 2 to 20 % of their minima (least where it spares
    least, "hot", most for "early"), and of random starts 22 to 35 % and 3 of 40; ends that are known are recognised
    after half of their calls, 13 to 17 % of all, and 2 of 265 new minima are taken for known.

    Parameters
    ----------
    sampled : bool
        A score has made the structure, learned forces have settled it, or it is a known one turned: it is not random.
    known : KnownEnds, optional
        What may be recognised; by default nothing.
    ceiling : float
        Energy (eV) above which what has been settled with learned forces is worth no further call.
    spared : collection of int
        Trials whose ends are not recognised: they are worth a second look.

    Attributes
    ----------
    recognised : int or None
        Trial whose end this relaxation heads for.
    too_high : bool
        It was given up for its energy.
    reason : str
        Why it was given up; empty as long as it is not.
    """

    def __init__(
        self, sampled: bool, known: KnownEnds | None = None, ceiling: float = inf, spared: Collection[int] = ()
    ) -> None:
        self.recognised: int | None = None
        self.reason = ""
        self.too_high = False
        self._sampled, self._known, self._ceiling, self._spared = sampled, known, ceiling, spared
        self._looks = 0

    def __call__(self, atoms: Atoms) -> str | None:
        """Reason to give up at these positions, or None."""
        called, step, self._looks = self._looks > 0, INTERVAL * max(self._looks - 1, 0), self._looks + 1
        if reason := fallen_apart(atoms, longest_bond(self._sampled, step)):
            self.reason = reason
        elif called and self._ceiling < inf and (energy := atoms.get_potential_energy()) > self._ceiling:
            self.too_high, self.reason = True, f"{energy - self._ceiling:.1f} eV too high to be looked for"
        elif self._known is not None and step:
            known = self._known.recall(atoms)
            if known is not None and known not in self._spared:
                self.recognised, self.reason = known, f"heads for the end of trial {known}"
        return self.reason or None


def longest_bond(sampled: bool, step: int) -> float:
    """Sums of covalent radii that a bond may be long after so many steps, of a sample or a random start."""
    if sampled:
        return LAST if step else SAMPLED_FIRST
    return max(RANDOM_FIRST - RANDOM_LESS * step, LAST)
