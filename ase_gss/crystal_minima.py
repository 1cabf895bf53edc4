"""Same crystal or another one? Whatever cell it is written in, however many formula units that cell has."""

import warnings
from dataclasses import dataclass, field
from functools import cached_property
from math import inf, isinf
from typing import TYPE_CHECKING

import numpy as np
from ase import Atoms
from ase.geometry.dimensionality import isolate_components
from matscipy.neighbours import neighbour_list

from ase_gss.cell import without_vacuum
from ase_gss.errors import InputError

if TYPE_CHECKING:
    from pymatgen.core import Structure
    from pymatgen.core.structure_matcher import StructureMatcher

# The neighbours that crystals are compared by before StructureMatcher is asked: how many of each element, and how far
# away at most, in units of the cube root of the volume per atom.
_NEIGHBOURS = 12
_REACH = 2.0

# Atoms are bonded within this many sums of covalent radii, and a layer standing alone gets this much room, in Å.
_BOND_SCALE = 1.25
_LAYER_SPACING = 4.0


@dataclass(frozen=True, eq=False)
class CrystalFingerprint:
    """What crystals are compared by, whatever their cell, orientation, origin and order of atoms.

    `energy` of the cell in eV, `ranking_energy` the enthalpy in eV/atom, `key` the reduced formula, `volume` in
    Å³/atom, `neighbours` the mean distances to the nearest neighbours by pairs of elements, shape (pairs, 12), in units
    of the cube root of the volume per atom.
    """

    energy: float
    ranking_energy: float
    key: str
    volume: float
    neighbours: np.ndarray
    atoms: Atoms

    @cached_property
    def reduced(self) -> "Structure":
        """The Niggli-reduced primitive cell. It is dear, and only crystals that pass the cheap gates need it."""
        return _reduced(self.atoms)

    @cached_property
    def layers(self) -> tuple["Structure", ...]:
        """The layers, each alone in a cell of its own; none where the crystal does not consist of layers only."""
        parts = isolate_components(self.atoms, kcutoff=_BOND_SCALE)
        if set(parts) != {"2D"}:
            return ()
        return tuple(_reduced(_set_apart(layer)) for layer in parts["2D"])


@dataclass(frozen=True)
class CrystalComparison:
    """When two relaxed crystals are one minimum; for `MinimaList` and `Memory`, as `Comparison` is for molecules.

    They are one when pymatgen's StructureMatcher says so and their energies per atom differ by less than
    `energy_tolerance`. Supercells, other choices of the cell and other numbers of formula units are one crystal.
    Mirror images are one as well: StructureMatcher maps cells onto each other by improper rotations too, so that left
    and right quartz (P3_121 and P3_221) are not told apart. The list is ranked by the energy per atom.

    StructureMatcher is asked only about crystals of one formula whose energies, volumes and neighbour distances are
    near: of 983 pairs of AB2 crystals that it takes for one, the neighbour distances of none differ by more than 0.152.
    Without energies (`energy_tolerance` infinite) structures as sampled, not relaxed, are recognised: volumes
    then do not count, and StructureMatcher gets the smaller `sampled_site_tolerance`.

    Parameters
    ----------
    energy_tolerance
        In eV/atom, of the enthalpy where there is a pressure.
    volume_tolerance
        Relative difference of the volumes per atom.
    neighbour_tolerance
        Root mean square difference of the neighbour distances, in units of the cube root of the volume per atom.
    layers_count_once
        Whether crystals of the same bonded layers are one however they are stacked, as long as their energies agree.
    pressure
        In eV/Å³ (`ase.units.GPa` is one GPa); the ranking is by enthalpy.
    sampled_site_tolerance
        Largest displacement where there are no energies, in units of the cube root of the volume per atom.
    surface
        Atoms on a surface: the vacuum is left out of the volume, however much the cell has of it, and the sites of two
        minima may be as near as those of fcc and hcp on a metal, so that the same `sampled_site_tolerance` is that of
        relaxed structures, too.
    """

    energy_tolerance: float
    volume_tolerance: float
    neighbour_tolerance: float
    layers_count_once: bool = False
    pressure: float = 0.0
    sampled_site_tolerance: float = 0.2
    surface: bool = False
    _matcher: "StructureMatcher" = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        # Sampled supercells are too rough for their smaller cell to be found.
        loose = {"attempt_supercell": True} if self._without_energies and not self.surface else {}
        if self._without_energies or self.surface:
            loose["stol"] = self.sampled_site_tolerance
        object.__setattr__(self, "_matcher", _structure_matcher(**loose))

    @classmethod
    def searching(cls, pressure: float = 0.0) -> "CrystalComparison":
        """For ends relaxed to max|F| 0.05 eV/Å and max|stress| 0.1 GPa: 5 meV/atom.

        Such ends of TiO2 (CHGNet, 27 rattled polymorphs) are at most 1.3 meV/atom above the tightly relaxed ones,
        those of one minimum within 0.2 meV/atom of each other, and the list is that of the tightly relaxed ones.
        StructureMatcher itself is lenient: it is the energies that tell distorted variants apart.
        """
        return cls(0.005, 0.15, 0.20, pressure=pressure)

    @classmethod
    def refined(cls, pressure: float = 0.0) -> "CrystalComparison":
        """For ends relaxed to max|F| 0.01 eV/Å and max|stress| 0.02 GPa: the counting rule, layers counted once."""
        return cls(0.005, 0.15, 0.20, layers_count_once=True, pressure=pressure)

    def same(self, a: Atoms, b: Atoms) -> bool:
        """Whether two crystals, each with a calculator that has its energy, are one minimum."""
        described = [self.describe(atoms, atoms.get_potential_energy()) for atoms in (a, b)]
        return self.distance(*described) < inf

    def describe(self, atoms: Atoms, energy: float) -> CrystalFingerprint:
        """Fingerprint of a crystal whose cell has this energy in eV."""
        if atoms.cell.rank < 3:
            raise InputError("A crystal needs three lattice vectors: set the cell, or compare molecules by Comparison.")
        if self.surface:
            bare = without_vacuum(Atoms(atoms.numbers, atoms.positions, cell=atoms.cell, pbc=atoms.pbc), _LAYER_SPACING)
        else:
            bare = Atoms(atoms.numbers, cell=atoms.cell, scaled_positions=atoms.get_scaled_positions(), pbc=True)
        volume = bare.get_volume()
        return CrystalFingerprint(
            energy=float(energy),
            ranking_energy=float(energy + self.pressure * volume) / len(bare),
            key=_reduced_formula(bare),
            volume=volume / len(bare),
            neighbours=_neighbours(bare),
            atoms=bare,
        )

    def distance(self, a: CrystalFingerprint, b: CrystalFingerprint) -> float:
        """Root mean square difference of the neighbour distances (see `neighbours`), infinite for two minima."""
        if a.key != b.key or not abs(a.ranking_energy - b.ranking_energy) < self.energy_tolerance:
            return inf
        difference = float(np.sqrt(np.mean((a.neighbours - b.neighbours) ** 2)))
        if self._near(a, b, difference) and self._match(a.reduced, b.reduced):
            return difference
        return difference if self.layers_count_once and self._same_layers(a, b) else inf

    @property
    def _without_energies(self) -> bool:
        return isinf(self.energy_tolerance)

    def _near(self, a: CrystalFingerprint, b: CrystalFingerprint, difference: float) -> bool:
        if not difference < self.neighbour_tolerance:
            return False
        return self._without_energies or abs(np.log(a.volume / b.volume)) < self.volume_tolerance

    def _same_layers(self, a: CrystalFingerprint, b: CrystalFingerprint) -> bool:
        """Whether each layer of the one is a layer of the other."""
        if not (a.layers and b.layers):
            return False
        return all(
            any(self._match(layer, other) for other in theirs)
            for ours, theirs in ((a.layers, b.layers), (b.layers, a.layers))
            for layer in ours
        )

    def _match(self, a: "Structure", b: "Structure") -> bool:
        if len(a) != len(b) and not self._without_energies:
            return False  # as StructureMatcher would say, at a hundred times the cost
        return self._matcher.fit(a, b, skip_structure_reduction=True)


def space_group(atoms: Atoms, symprec: float = 0.1) -> tuple[str, int]:
    """Space group as symbol and number, "P4_2/mnm (136)", and the number alone.

    Parameters
    ----------
    atoms
        Crystal.
    symprec
        How far atoms may be from their symmetric places, in Å.

    Returns
    -------
    name, number
        "P1 (1)" and 1 where spglib finds none.
    """
    try:
        import spglib
    except ImportError as error:
        raise InputError("Space groups need spglib: pip install 'ase-gss[crystals]'.") from error
    cell = (atoms.cell.array, atoms.get_scaled_positions(), atoms.numbers)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # on how spglib will report its failures one day
            found = spglib.get_symmetry_dataset(cell, symprec=symprec)
    except Exception:  # whatever spglib raises, a table of structures is not to end for it
        found = None
    if found is None:
        return "P1 (1)", 1
    return f"{found.international} ({found.number})", int(found.number)


def _structure_matcher(**settings: float) -> "StructureMatcher":
    try:
        from pymatgen.core.structure_matcher import StructureMatcher
    except ImportError:
        try:
            from pymatgen.analysis.structure_matcher import StructureMatcher
        except ImportError as error:
            raise InputError(
                "Comparing crystals, or atoms on a surface, needs pymatgen: pip install 'ase-gss[crystals]'."
            ) from error
    return StructureMatcher(**settings)


def _reduced(atoms: Atoms) -> "Structure":
    """The Niggli-reduced primitive cell, sites sorted by element, as StructureMatcher would make it."""
    from pymatgen.core import Structure

    structure = Structure(atoms.cell.array, atoms.numbers, atoms.get_scaled_positions()).get_sorted_structure()
    primitive = structure.get_primitive_structure().get_reduced_structure(reduction_algo="niggli")
    # Of 300 rattled cells each, one was not recognised as a supercell by a single search, and none by two.
    return primitive.get_primitive_structure()


def _reduced_formula(atoms: Atoms) -> str:
    elements, counts = np.unique(atoms.numbers, return_counts=True)
    return " ".join(
        f"{element}:{count}" for element, count in zip(elements, counts // np.gcd.reduce(counts), strict=True)
    )


def _neighbours(atoms: Atoms) -> np.ndarray:
    """Mean distances to the nearest neighbours of one element, over all atoms of another: continuous in the positions.

    Returns
    -------
    ndarray, shape (pairs of elements, 12)
        In units of the cube root of the volume per atom; the reach of the search where there are fewer.
    """
    unit = (atoms.get_volume() / len(atoms)) ** (1 / 3)
    center, other, distance = neighbour_list("ijd", atoms, _REACH * unit)
    elements, kind = np.unique(atoms.numbers, return_inverse=True)
    group = center * len(elements) + kind[other]
    order = np.lexsort((distance, group))
    group, distance = group[order], distance[order] / unit
    rank = np.arange(len(group)) - np.searchsorted(group, group)
    nearest = np.full((len(atoms) * len(elements), _NEIGHBOURS), _REACH)
    nearest[group[rank < _NEIGHBOURS], rank[rank < _NEIGHBOURS]] = distance[rank < _NEIGHBOURS]
    nearest = nearest.reshape(len(atoms), len(elements), _NEIGHBOURS)
    return np.concatenate([nearest[kind == k].mean(axis=0) for k in range(len(elements))])


def _set_apart(layer: Atoms) -> Atoms:
    """The layer with `_LAYER_SPACING` between its images.

    Parameters
    ----------
    layer
        In the xy plane, as `isolate_components` has it.
    """
    alone = layer.copy()
    alone.pbc = True
    height = np.ptp(alone.positions[:, 2]) + _LAYER_SPACING
    alone.cell[2] = [0.0, 0.0, height]
    return alone
