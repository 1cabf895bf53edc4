"""Atoms on a surface: how their trials start, relax and end."""

from dataclasses import dataclass, field
from math import inf
from typing import Any, ClassVar

import numpy as np
from ase import Atoms
from ase.constraints import FixAtoms
from ase.data import covalent_radii
from matscipy.neighbours import neighbour_list
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from ase_gss import families
from ase_gss.cell import short_contact
from ase_gss.composition import formula_of
from ase_gss.coupling import Coupling
from ase_gss.errors import InputError
from ase_gss.giving_up import GivingUp
from ase_gss.random_cells import with_room
from ase_gss.regimes import Regime
from ase_gss.relax import DEFAULT_OPTIMIZER, Relaxation, hand_off
from ase_gss.schedule import NoiseSchedule
from ase_gss.surface_starts import random_in_region
from ase_gss.systems.molecule import Molecule
from ase_gss.trial import Ended
from ase_gss.walk import Walk, free_atoms

#: Å; the noise at which the atoms on a surface, which start anywhere in their region, are taken up.
SURFACE_NOISE = 1.5
#: Å between the surfaces of two atoms (of their covalent radii); what is further from all that is held has flown off.
#: Physisorbed methane is nearer.
_DESORBED = 2.5


@dataclass
class Surface:
    """Atoms in a region of a template whose cell stays as it is.

    Parameters
    ----------
    numbers : ndarray, shape (N,)
        Atomic numbers of the atoms that are added.
    template : Atoms
        What is there already, usually a slab held by FixAtoms. What is not held moves in the hand-off only.
    region : tuple of float, optional
        Lowest and highest height (Å) of the added atoms, along the normal of the first two lattice vectors.
    """

    numbers: np.ndarray
    template: Atoms = field(repr=False)
    region: tuple[float, float] | None = None

    coupling: ClassVar[str] = "diffusion"
    regime: ClassVar[str | None] = None
    window: ClassVar[float] = inf
    knows_bonds: ClassVar[bool] = False
    family: ClassVar[tuple[Regime, ...]] = families.CRYSTALS
    optimizer: ClassVar[str] = DEFAULT_OPTIMIZER
    periodic: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not len(self.numbers):
            raise InputError("Give the atoms that are to be added to the template.")
        if self.region is not None and not (np.shape(self.region) == (2,) and self.region[0] < self.region[1]):
            raise InputError(f"A region is its lowest and its highest height in Å, in this order, not {self.region}.")
        if self.template.cell.rank < 3 or not self.template.pbc.any():
            raise InputError("The template needs periodic boundaries and three lattice vectors, vacuum included.")
        if not any(isinstance(constraint, FixAtoms) for constraint in self.template.constraints):
            raise InputError("The template has no fixed atom: hold the slab with ase.constraints.FixAtoms.")
        everything = self.template + Atoms(self.numbers, positions=np.zeros((len(self.numbers), 3)))
        self._free = free_atoms(everything)
        if self._free.all():
            raise InputError("The template has no fixed atom: hold the slab with ase.constraints.FixAtoms.")

    @property
    def formula(self) -> str:
        """Its name: that of the atoms that are added."""
        return formula_of(self.numbers, crystal=True)

    @property
    def elements(self) -> np.ndarray:
        """Atomic numbers of all elements that occur."""
        return np.unique(np.concatenate([self.numbers, self.template.numbers]))

    def settings(self) -> dict[str, Any]:
        """What makes it this search and no other."""
        return {
            "periodic": True,
            "template": self.template.get_chemical_formula(),
            "atoms": len(self.template) + len(self.numbers),
            "template_cell": self.template.cell.array.round(6).tolist(),
            "template_positions": self.template.positions.round(4).tolist(),
            "template_fixed": np.flatnonzero(~self._free).tolist(),
            "template_pbc": self.template.pbc.tolist(),
            "region": None if self.region is None else list(self.region),
        }

    def random_start(self, rng: np.random.Generator) -> Atoms:
        """A random structure to relax."""
        return with_room(lambda: random_in_region(self.template, self.numbers, rng, self.region))

    def walk_from_noise(
        self, rng: np.random.Generator, schedule: NoiseSchedule, coupling: Coupling
    ) -> tuple[Atoms, Walk]:
        """Atoms anywhere in the region: noise that is taken up at `SURFACE_NOISE`."""
        atoms = self.random_start(rng)
        if hasattr(schedule, "starting_at"):
            schedule = schedule.starting_at(min(SURFACE_NOISE, schedule.sigma(0)))
        return atoms, self.walk_from(atoms, rng, schedule, coupling)

    def walk_from(self, atoms: Atoms, rng: np.random.Generator, schedule: NoiseSchedule, coupling: Coupling) -> Walk:
        """The sampling state of a given structure: the whole template is context."""
        walk = Walk.from_atoms(atoms, schedule, coupling, rng)
        walk.free[: len(self.template)] = False
        walk.free_cell = False
        return walk

    check_calculator = Molecule.check_calculator
    force = Molecule.force

    def out_of_bounds(self, walk: Walk) -> str | None:
        """Why nothing can become of a structure that is being sampled: its atoms lie on one another."""
        if walk.point is None:
            return None
        return short_contact(Atoms(walk.numbers, walk.point, cell=walk.cell, pbc=walk.pbc))

    def check_start(self, atoms: Atoms) -> None:
        """Raise `InputError` for a structure of the user's that cannot start here."""
        raise InputError("A template makes its own starts: give either starts or a template.")

    def relax(
        self,
        atoms: Atoms,
        giving_up: GivingUp | None = None,
        refining: bool = False,
        optimizer: Any = None,
        **keywords: Any,
    ) -> Relaxation:
        """Hand over to the optimizer; `keywords` as for `hand_off`."""
        return hand_off(atoms, optimizer or self.optimizer, **keywords)

    def rejects(self, atoms: Atoms, converged: bool = True) -> tuple[Ended, str] | None:
        """How a trial with this end has ended where it is not one of those looked for."""
        if reason := short_contact(atoms):
            return Ended.COLLAPSED, reason
        if flown := np.count_nonzero(~_held(atoms, ~self._free)):
            return Ended.FRAGMENTS, f"{flown} atom{'s' if flown > 1 else ''} off the surface"
        return None


def _held(atoms: Atoms, fixed: np.ndarray) -> np.ndarray:
    """Mask (N,) of the atoms that are, by way of others perhaps, near one of those that are `fixed` (N,)."""
    first, second = neighbour_list("ij", atoms, covalent_radii[atoms.numbers] + _DESORBED / 2)
    near = coo_array((np.ones(len(first)), (first, second)), shape=(len(atoms), len(atoms)))
    _, part = connected_components(near, directed=False)
    return np.isin(part, part[fixed])
