"""A molecule: how its trials start, relax and end."""

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from ase import Atoms

from ase_gss import families
from ase_gss.bonds import is_connected, overlapping
from ase_gss.composition import formula_of
from ase_gss.coupling import Coupling
from ase_gss.errors import InputError
from ase_gss.forces import CountedCalculator, energy_and_forces
from ase_gss.giving_up import INTERVAL, GivingUp
from ase_gss.regimes import ADAPTIVE, Regime
from ase_gss.relax import DEFAULT_OPTIMIZER, Relaxation, hand_off
from ase_gss.schedule import NoiseSchedule
from ase_gss.starts import random_molecule
from ase_gss.trial import Ended
from ase_gss.walk import Walk, free_atoms


@dataclass
class Molecule:
    """One molecule without boundaries.

    Parameters
    ----------
    numbers : ndarray, shape (N,)
        Atomic numbers.
    fragments : bool
        Keep ends that are not in one piece.
    mirror_images_are_one : bool
        Count a structure and its mirror image once.
    """

    numbers: np.ndarray
    fragments: bool = False
    mirror_images_are_one: bool = True

    coupling: ClassVar[str] = "hot"
    regime: ClassVar[str | None] = ADAPTIVE
    #: eV above the lowest minimum up to which an adaptive search looks for minima.
    window: ClassVar[float] = 5.0
    #: Samples differ in their bonding graphs.
    knows_bonds: ClassVar[bool] = True
    family: ClassVar[tuple[Regime, ...]] = families.MOLECULES
    optimizer: ClassVar[str] = DEFAULT_OPTIMIZER
    periodic: ClassVar[bool] = False

    @property
    def formula(self) -> str:
        """Its name."""
        return formula_of(self.numbers)

    @property
    def elements(self) -> np.ndarray:
        """Atomic numbers of all elements that occur."""
        return np.unique(self.numbers)

    def settings(self) -> dict[str, Any]:
        """What makes it this search and no other."""
        return {"fragments": self.fragments, "mirror_images_are_one": self.mirror_images_are_one}

    def random_start(self, rng: np.random.Generator) -> Atoms:
        """A random structure to relax."""
        return random_molecule(self.numbers, rng)

    def walk_from_noise(
        self, rng: np.random.Generator, schedule: NoiseSchedule, coupling: Coupling
    ) -> tuple[Atoms, Walk]:
        """A structure at the first noise level of the schedule."""
        atoms = Atoms(self.numbers, positions=np.zeros((len(self.numbers), 3)))
        walk = Walk.from_atoms(atoms, schedule, coupling, rng)
        walk.scatter_from_nothing(schedule.sigma(0))
        return atoms, walk

    def walk_from(self, atoms: Atoms, rng: np.random.Generator, schedule: NoiseSchedule, coupling: Coupling) -> Walk:
        """The sampling state of a given structure."""
        return Walk.from_atoms(atoms, schedule, coupling, rng)

    def check_start(self, atoms: Atoms) -> None:
        """Raise `InputError` for a structure of the user's that cannot start here."""
        free_atoms(atoms)
        if atoms.pbc.any():
            raise InputError("The starts are periodic: search for crystals with pbc=True, or set atoms.pbc = False.")

    def check_calculator(self, calculator: CountedCalculator) -> None:
        """Any will do."""

    def force(
        self, atoms: Atoms, walk: Walk, calculator: CountedCalculator
    ) -> tuple[float, np.ndarray, np.ndarray | None]:
        """Energy (eV), forces (N, 3) in eV/Å, and the stress (3, 3) where it is needed, at the walk's point."""
        return *energy_and_forces(atoms, walk.point, calculator), None

    def out_of_bounds(self, walk: Walk) -> str | None:
        """Why nothing can become of a structure that is being sampled."""
        return None

    def relax(
        self,
        atoms: Atoms,
        giving_up: GivingUp | None = None,
        refining: bool = False,
        optimizer: Any = None,
        **keywords: Any,
    ) -> Relaxation:
        """Hand over to the optimizer; `keywords` as for `hand_off`."""
        if giving_up is not None and not self.fragments:
            if reason := giving_up(atoms):
                return Relaxation(False, reason, 0)
            keywords |= {"give_up": giving_up, "give_up_interval": INTERVAL}
        return hand_off(atoms, optimizer or self.optimizer, **keywords)

    def rejects(self, atoms: Atoms, converged: bool = True) -> tuple[Ended, str] | None:
        """How a trial with this end has ended where it is not one of those looked for."""
        if not self.fragments and not is_connected(atoms):
            return Ended.FRAGMENTS, "not in one piece"
        if converged and (reason := overlapping(atoms)):
            return Ended.COLLAPSED, reason
        return None
