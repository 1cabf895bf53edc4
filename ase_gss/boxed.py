"""Molecules for calculators that need a cell: plane waves, grids."""

from typing import Any

import numpy as np
from ase import Atoms
from ase.calculators.calculator import Calculator, all_changes

from ase_gss.errors import InputError


class BoxedCalculator(Calculator):
    """Another calculator, to which each molecule is given in the middle of a box.

    The box is always the same, so that energies of different molecules, and of one along its relaxation, may be
    compared. A molecule for which it is too small costs its trial.

    Parameters
    ----------
    calculator : ase calculator
        The one that needs a cell.
    cell : float or sequence of 3 floats
        Lengths of the box, Å.
    gap : float
        Å that must remain between the molecule and its next image; half of it remains to each wall.
    pbc : bool
        Whether the box repeats; else its walls are where the calculator ends.
    moment : float
        Total magnetic moment at the start (Bohr magnetons), spread evenly over the atoms: 1 for a radical, 2 for a
        triplet. At 0 the atoms have no initial moments.

    Raises
    ------
    InputError
        For a box without volume, or a gap that fills it.

    Examples
    --------
    >>> from ase.calculators.vasp import Vasp
    >>> def calculator():
    ...     return BoxedCalculator(Vasp(xc="pbe", encut=400, kpts=(1, 1, 1)), cell=14.0)
    """

    def __init__(
        self,
        calculator: Any,
        cell: float | tuple[float, float, float],
        gap: float = 6.0,
        pbc: bool = True,
        moment: float = 0.0,
    ) -> None:
        if np.shape(cell) not in ((), (3,)):
            raise InputError("The box is given by one length or by three, in Å: its sides are at right angles.")
        lengths = np.broadcast_to(np.asarray(cell, dtype=float), 3)
        if not (gap >= 0 and np.all(lengths > gap)):
            raise InputError(f"Each length of the box must be larger than the gap of {gap} Å, not {lengths.min()} Å.")
        super().__init__(cell=lengths.tolist(), gap=float(gap), pbc=bool(pbc), moment=float(moment))
        self.calculator = calculator
        self.implemented_properties = ["energy", "forces"]

    def calculate(self, atoms: Atoms | None = None, properties=None, system_changes=all_changes) -> None:
        """Energy (eV) and forces (N, 3) in eV/Å of the molecule in its box; `InputError` where it has no room there."""
        super().calculate(atoms, properties, system_changes)
        boxed = Atoms(self.atoms.numbers, self.atoms.positions, cell=self.parameters.cell, pbc=self.parameters.pbc)
        length, room = np.ptp(boxed.positions, axis=0), self.parameters.cell - np.array(self.parameters.gap)
        if np.any(length > room):
            raise InputError(
                f"A molecule of {length.max():.1f} Å leaves less than {self.parameters.gap} Å of the box: give a "
                "larger one."
            )
        boxed.center()
        if self.parameters.moment:
            boxed.set_initial_magnetic_moments(np.full(len(boxed), self.parameters.moment / len(boxed)))
        boxed.calc = self.calculator
        forces = boxed.get_forces()  # first: many programs give no forces where only the energy is asked for
        self.results = {"energy": boxed.get_potential_energy(), "forces": forces}
