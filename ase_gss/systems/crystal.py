"""A crystal: how its trials start, relax and end."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from ase import Atoms
from ase.units import GPa

from ase_gss import families
from ase_gss.cell import cell_out_of_bounds
from ase_gss.composition import formula_of
from ase_gss.coupling import Coupling
from ase_gss.crystal_starts import random_crystal, uniform_crystal
from ase_gss.errors import InputError
from ase_gss.forces import CountedCalculator, check_stress, energy_forces_and_stress
from ase_gss.giving_up import GivingUp
from ase_gss.random_cells import STARTS, SYMMETRIC_STARTS, with_room
from ase_gss.regimes import Regime
from ase_gss.relax import DEFAULT_OPTIMIZER, Relaxation, hand_off
from ase_gss.schedule import NoiseSchedule
from ase_gss.symmetry import Symmetry
from ase_gss.trial import Ended
from ase_gss.walk import Walk

#: Stress (eV/Å3) to which the minima of crystals are refined.
REFINED_STRESS = 0.02 * GPa


@dataclass
class Crystal:
    """A crystal: positions and cell.

    Parameters
    ----------
    numbers : ndarray, shape (N,)
        Atomic numbers of one formula unit, or of the whole cell with one unit.
    units : sequence of int
        Numbers of formula units that a cell may have; each trial draws one.
    pressure : float
        eV/Å3.
    volume : float, optional
        Target volume of one formula unit, Å3; by default `typical_volume`.
    symmetry : bool
        Trials start with a random space group each, and keep it.
    """

    numbers: np.ndarray
    units: Sequence[int] = (1,)
    pressure: float = 0.0
    volume: float | None = None
    symmetry: bool = False

    coupling: ClassVar[str] = "diffusion"
    regime: ClassVar[str | None] = None
    #: eV/atom above the lowest minimum up to which an adaptive search looks for minima.
    window: ClassVar[float] = 0.1
    knows_bonds: ClassVar[bool] = False
    family: ClassVar[tuple[Regime, ...]] = families.CRYSTALS
    optimizer: ClassVar[str] = DEFAULT_OPTIMIZER
    periodic: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not np.isfinite(self.pressure):
            raise InputError(f"The pressure must be a finite number, not {self.pressure}.")
        if self.volume is not None and not (np.isfinite(self.volume) and self.volume > 0):
            raise InputError(f"A cell cannot have a volume of {self.volume} Å3: give a positive one.")
        if not self.units or min(self.units) < 1:
            raise InputError("Give at least one number of formula units, and none below 1.")

    @property
    def formula(self) -> str:
        """Its name."""
        return formula_of(self.numbers, crystal=True)

    @property
    def elements(self) -> np.ndarray:
        """Atomic numbers of all elements that occur."""
        return np.unique(self.numbers)

    def settings(self) -> dict[str, Any]:
        """What makes it this search and no other."""
        return {
            "periodic": True,
            "units": list(self.units),
            "pressure": self.pressure,
            "volume": self.volume,
            "symmetry": self.symmetry,
        }

    def _drawn(self, rng: np.random.Generator) -> tuple[np.ndarray, float | None]:
        """Atomic numbers and target volume of one trial's cell."""
        units = int(rng.choice(list(self.units))) if len(self.units) > 1 else self.units[0]
        return np.tile(self.numbers, units), None if self.volume is None else units * self.volume

    def random_start(self, rng: np.random.Generator) -> Atoms:
        """A random structure to relax."""
        numbers, volume = self._drawn(rng)
        most = SYMMETRIC_STARTS if self.symmetry else STARTS
        atoms = with_room(lambda: random_crystal(numbers, rng, volume, symmetry=self.symmetry), most)
        atoms.info.clear()  # the space group is that of the start, not of the end
        return atoms

    def _uniform(self, rng: np.random.Generator) -> Atoms:
        numbers, volume = self._drawn(rng)
        return uniform_crystal(numbers, rng, volume)

    def walk_from_noise(
        self, rng: np.random.Generator, schedule: NoiseSchedule, coupling: Coupling
    ) -> tuple[Atoms, Walk]:
        """A random cell with atoms anywhere, which stands for the first noise level of the schedule."""
        if not self.symmetry:
            atoms = self._uniform(rng)
            return atoms, self.walk_from(atoms, rng, schedule, coupling)
        atoms = self.random_start(rng)
        walk = self.walk_from(atoms, rng, schedule, coupling)
        walk.symmetry = Symmetry.of(atoms)
        return atoms, walk

    def walk_from(self, atoms: Atoms, rng: np.random.Generator, schedule: NoiseSchedule, coupling: Coupling) -> Walk:
        """The sampling state of a given structure."""
        return Walk.from_atoms(atoms, schedule, coupling, rng, pressure=self.pressure)

    def check_start(self, atoms: Atoms) -> None:
        """Raise `InputError` for a structure of the user's that cannot start here."""
        if not atoms.pbc.all() or atoms.constraints:
            raise InputError("The starts must be crystals: periodic in three directions, and without constraints.")
        if reason := cell_out_of_bounds(atoms):
            raise InputError(f"One of the starts is no crystal: {reason}.")

    def check_calculator(self, calculator: CountedCalculator) -> None:
        """Raise `InputError` for one that gives no stress."""
        check_stress(calculator)

    def force(
        self, atoms: Atoms, walk: Walk, calculator: CountedCalculator
    ) -> tuple[float, np.ndarray, np.ndarray | None]:
        """Energy (eV), forces (N, 3) in eV/Å and stress (3, 3) in eV/Å3 at the walk's point."""
        return energy_forces_and_stress(atoms, walk.point, walk.point_cell, calculator)

    def out_of_bounds(self, walk: Walk) -> str | None:
        """Why nothing can become of a structure that is being sampled."""
        if walk.point is not None:  # a calculator is about to see it, so atoms must not lie on one another
            return cell_out_of_bounds(Atoms(walk.numbers, walk.point, cell=walk.point_cell, pbc=True))
        return cell_out_of_bounds(Atoms(walk.numbers, walk.positions, cell=walk.cell, pbc=True), contacts=False)

    def relax(
        self,
        atoms: Atoms,
        giving_up: GivingUp | None = None,
        refining: bool = False,
        optimizer: Any = None,
        **keywords: Any,
    ) -> Relaxation:
        """Hand over to the optimizer; `keywords` as for `hand_off`."""
        if refining:
            keywords["stress_tolerance"] = REFINED_STRESS
        return hand_off(atoms, optimizer or self.optimizer, pressure=self.pressure, **keywords)

    def rejects(self, atoms: Atoms, converged: bool = True) -> tuple[Ended, str] | None:
        """How a trial with this end has ended where it is not one of those looked for."""
        reason = cell_out_of_bounds(atoms)
        return (Ended.CELL, reason) if reason else None
