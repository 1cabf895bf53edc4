"""Tersoff and Stillinger-Weber potentials from matscipy, made safe for a search."""

import warnings

import numpy as np
from ase import Atoms
from ase.calculators.calculator import CalculationFailed, PropertyNotImplementedError, all_changes
from matscipy.calculators.manybody import Manybody
from matscipy.calculators.manybody.explicit_forms.stillinger_weber import (
    Stillinger_Weber_PRB_31_5262_Si,
    StillingerWeber,
)
from matscipy.calculators.manybody.explicit_forms.tersoff_brenner import Tersoff_PRB_39_5566_Si_C, TersoffBrenner


class ManyBodyCalculator(Manybody):
    """matscipy's calculator for known elements only, and with or without a cell.

    matscipy takes any element for one of those it has parameters for, and needs a cell to divide the stress by.

    Parameters
    ----------
    elements : set of int
        Atomic numbers that the parameters are for.
    form : dict
        What one of `matscipy.calculators.manybody.explicit_forms` returns.
    """

    implemented_properties = ["energy", "free_energy", "energies", "forces", "stress", "stresses"]

    def __init__(self, elements: set[int], form: dict) -> None:
        super().__init__(**form)
        self.elements = set(elements)

    def calculate(self, atoms: Atoms, properties=None, system_changes=all_changes) -> None:
        """All properties at once; stress (eV/Å³) for a structure with a cell."""
        if not self.elements.issuperset(atoms.numbers):
            raise CalculationFailed("there are no parameters for some of these elements")
        has_cell = atoms.cell.rank == 3
        boxed = atoms if has_cell else _in_a_box(atoms)
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            # numpy warns of memory that matscipy masks; what is not finite is seen in the results.
            warnings.simplefilter("ignore")
            super().calculate(boxed, properties or [], system_changes)
        self.atoms = atoms.copy()
        if not has_cell:
            del self.results["stress"], self.results["stresses"]
            if "stress" in (properties or ()):
                raise PropertyNotImplementedError("stress needs a cell")


def _in_a_box(atoms: Atoms) -> Atoms:
    boxed = atoms.copy()
    boxed.cell = boxed.cell.complete()
    return boxed


def tersoff() -> ManyBodyCalculator:
    """C, Si and SiC: J. Tersoff, Phys. Rev. B 39, 5566 (1989)."""
    return ManyBodyCalculator({6, 14}, TersoffBrenner(Tersoff_PRB_39_5566_Si_C))


def stillinger_weber() -> ManyBodyCalculator:
    """Si: F. H. Stillinger and T. A. Weber, Phys. Rev. B 31, 5262 (1985)."""
    return ManyBodyCalculator({14}, StillingerWeber(Stillinger_Weber_PRB_31_5262_Si))
