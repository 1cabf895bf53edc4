"""What is searched: a molecule, a crystal, or atoms on a surface. How its trials start, relax, end and are compared."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from math import inf
from operator import index
from typing import Any, ClassVar

import numpy as np
from ase import Atoms
from ase.constraints import FixAtoms
from ase.units import GPa

from ase_gss import families
from ase_gss.bonds import is_connected, overlapping
from ase_gss.cell import cell_out_of_bounds
from ase_gss.composition import formula_of, parse_formula
from ase_gss.coupling import Coupling
from ase_gss.crystal_minima import CrystalComparison
from ase_gss.crystal_starts import random_crystal, random_in_region, uniform_crystal
from ase_gss.errors import InputError
from ase_gss.forces import CountedCalculator, check_stress, energy_and_forces, energy_forces_and_stress
from ase_gss.giving_up import INTERVAL, GivingUp
from ase_gss.minima import Comparison
from ase_gss.regimes import ADAPTIVE, Regime
from ase_gss.relax import DEFAULT_OPTIMIZER, Relaxation, hand_off
from ase_gss.schedule import NoiseSchedule
from ase_gss.starts import random_molecule
from ase_gss.symmetry import Symmetry
from ase_gss.trial import Ended
from ase_gss.walk import Walk, free_atoms

#: Stress (eV/Å3) to which the minima of crystals are refined.
REFINED_STRESS = 0.02 * GPa
#: Å; the noise at which the atoms on a surface, which start anywhere in their region, are taken up.
SURFACE_NOISE = 1.5


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

    score: ClassVar[str] = "molecules"
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

    score: ClassVar[str] = "crystals"
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
        atoms = random_crystal(numbers, rng, volume, symmetry=self.symmetry)
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

    score: ClassVar[str] = "crystals"
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
            "region": None if self.region is None else list(self.region),
        }

    def random_start(self, rng: np.random.Generator) -> Atoms:
        """A random structure to relax."""
        return random_in_region(self.template, self.numbers, rng, self.region)

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
    out_of_bounds = Molecule.out_of_bounds

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
        return None


System = Molecule | Crystal | Surface


def choose_system(
    composition: str | Atoms,
    *,
    pbc: bool = False,
    template: Atoms | None = None,
    region: tuple[float, float] | None = None,
    units: Sequence[int] = (1,),
    pressure: float = 0.0,
    volume: float | None = None,
    symmetry: bool = False,
    fragments: bool = False,
    mirror_images_are_one: bool = True,
) -> System:
    """The system that these arguments of `GenerativeRSS` describe.

    Raises
    ------
    InputError
        Where they do not go together.
    """
    numbers = parse_formula(composition) if isinstance(composition, str) else composition.numbers.copy()
    units = _whole_numbers(units)
    of_crystals = bool(pressure) or volume is not None or symmetry or units != (1,)
    periodic = template is not None or pbc
    if periodic and (fragments or not mirror_images_are_one):
        raise InputError("fragments and mirror_images_are_one are for molecules: leave them out.")
    if not periodic and not isinstance(composition, str) and composition.pbc.any():
        raise InputError("These atoms are periodic: set pbc=True to search for crystals, or atoms.pbc = False.")
    if template is not None:
        if of_crystals:
            raise InputError("The cell of a template stays: give no pressure, volume, symmetry or units with it.")
        return Surface(numbers, template.copy(), region)
    if region is not None:
        raise InputError("A region is for the atoms on a template: give a template, too.")
    if pbc:
        return Crystal(numbers, units, pressure, volume, symmetry)
    if of_crystals:
        raise InputError("pressure, volume, symmetry and units are for crystals: set pbc=True (--crystal).")
    return Molecule(numbers, fragments, mirror_images_are_one)


def _whole_numbers(units: Sequence[int]) -> tuple[int, ...]:
    try:
        return tuple(index(number) for number in units)
    except TypeError as error:
        raise InputError(f"units are whole numbers of formula units like (1, 2, 4), not {units!r}.") from error


def comparison_of(settings: dict[str, Any], refined: bool = False) -> Comparison | CrystalComparison:
    """When two ends of a search with these settings are one."""
    if settings.get("periodic"):
        make = CrystalComparison.refined if refined else CrystalComparison.searching
        comparison = make(settings.get("pressure", 0.0))
        if "template" not in settings:
            return comparison
        # A slab dilutes the energy of what sits on it: there the tolerance is one for all atoms together.
        return replace(comparison, energy_tolerance=comparison.energy_tolerance / settings["atoms"])
    make = Comparison.refined if refined else Comparison.searching
    return make(settings.get("mirror_images_are_one", True))


def window_of(settings: dict[str, Any]) -> float:
    """Up to where above the lowest minimum a search with these settings looks, as minima are ranked."""
    if "template" in settings:
        return Surface.window
    return Crystal.window if settings.get("periodic") else Molecule.window
