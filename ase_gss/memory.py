"""What has been found already: a sampled structure that looks like a known minimum need not be relaxed."""

from dataclasses import replace
from math import inf
from typing import TYPE_CHECKING

from ase import Atoms

from ase_gss.minima import Comparison, Fingerprint
from ase_gss.nearest import Nearest

if TYPE_CHECKING:
    from ase_gss.crystal_minima import CrystalFingerprint


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

    def __init__(self, comparison: Comparison) -> None:
        self._comparison = replace(comparison, energy_tolerance=inf)
        self._nearest = Nearest(self._comparison)

    def remember(self, end: Atoms, trial: int) -> None:
        """Keep the end of a trial."""
        self.remember_described(self._comparison.describe(end, 0.0), trial)

    def remember_described(self, end: "Fingerprint | CrystalFingerprint", trial: int) -> None:
        """Keep the end of a trial that the search's comparison has described already."""
        self._nearest.add(trial, end)

    def recall(self, sampled: Atoms, before: int) -> int | None:
        """The trial with a number below `before` whose end this structure looks most like, None where there is none."""
        return self.look_at(sampled, before)[0]

    def look_at(self, sampled: Atoms, before: int) -> tuple[int | None, str]:
        """The trial that `recall` gives, and the name of the structure's bonding graph."""
        described = self._comparison.describe(sampled, 0.0)
        return self._nearest.find(described, before), described.key
