"""Starts of crystals with a random space group."""

from collections.abc import Callable
from functools import cache, partial
from typing import NamedTuple, TypeVar

import numpy as np
from ase import Atoms
from ase.cell import Cell

from ase_gss.errors import InputError
from ase_gss.random_cells import EDGE_SPREAD, Surroundings, compact_cell, random_cell

Result = TypeVar("Result")

# Primitive vectors in those of the conventional cell, by the first letter of the space group's symbol.
_CENTRING = {
    "P": np.eye(3),
    "A": np.array([[1, 0, 0], [0, 0.5, 0.5], [0, -0.5, 0.5]]),
    "C": np.array([[0.5, 0.5, 0], [-0.5, 0.5, 0], [0, 0, 1]]),
    "I": np.array([[-0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0.5, 0.5, -0.5]]),
    "F": np.array([[0, 0.5, 0.5], [0.5, 0, 0.5], [0.5, 0.5, 0]]),
    "R": np.array([[2, 1, 1], [-1, 1, 1], [-1, -2, 1]]) / 3,
}


class _Site(NamedTuple):
    """A Wyckoff position: f of the conventional cell to f @ rotations + translations of the primitive one, M points."""

    rotations: np.ndarray  # (M, 3, 3)
    translations: np.ndarray  # (M, 3)
    free: bool  # more than one orbit fits on it


class _SpaceGroup(NamedTuple):
    """What a start needs to know of a space group."""

    lattice: str
    primitive: np.ndarray  # (3, 3), its vectors in the conventional ones
    sites: tuple[_Site, ...]


@cache
def _space_group(number: int) -> _SpaceGroup:
    """The tables of a space group, from PyXtal."""
    try:
        from pyxtal.symmetry import Group
    except ImportError as error:
        raise InputError("Starts with symmetry need PyXtal: pip install 'ase-gss[crystals]'.") from error
    group = Group(number)
    primitive = _CENTRING[group.symbol[0]]
    to_primitive = np.linalg.inv(primitive)
    sites = []
    for position in group:
        matrices = np.array([operation.affine_matrix for operation in position.ops])
        rotations = np.transpose(matrices[:, :3, :3], (0, 2, 1)) @ to_primitive
        translations = matrices[:, :3, 3] @ to_primitive
        # Operations that differ by a vector of the primitive lattice give the same atom.
        translations -= np.floor(translations + 1e-6)
        keys = np.rint(24 * np.concatenate([rotations.reshape(-1, 9), translations], axis=1)).astype(int)
        first = np.sort(np.unique(keys, axis=0, return_index=True)[1])
        sites.append(_Site(rotations[first], translations[first], position.get_dof() > 0))
    return _SpaceGroup(group.lattice_type, primitive, tuple(sites))


def _conventional_cell(lattice: str, volume: float, rng: np.random.Generator) -> np.ndarray:
    """A random cell (3, 3) in Å of a lattice system: "triclinic", "monoclinic" (b unique), …, "cubic"."""
    if lattice == "triclinic":
        return random_cell(volume, rng)
    edges = np.exp(EDGE_SPREAD * rng.normal(size=3))
    if lattice in ("tetragonal", "trigonal", "hexagonal"):
        edges[1] = edges[0]
    elif lattice == "cubic":
        edges[:] = 1.0
    beta = rng.uniform(60, 120) if lattice == "monoclinic" else 90.0
    gamma = 120.0 if lattice in ("trigonal", "hexagonal") else 90.0
    cell = np.array(Cell.fromcellpar([*edges, 90.0, beta, gamma]))
    return cell * (volume / np.linalg.det(cell)) ** (1 / 3)


def _choose_sites(
    counts: dict[int, int], sites: tuple[_Site, ...], rng: np.random.Generator
) -> list[tuple[int, _Site]] | None:
    """Random Wyckoff positions, as (atomic number, site), that hold the atoms of each element; None at a dead end."""
    chosen, taken = [], set()
    for number, count in counts.items():
        while count:
            fitting = [k for k, site in enumerate(sites) if len(site.rotations) <= count and k not in taken]
            if not fitting:
                return None
            k = int(rng.choice(fitting))
            if not sites[k].free:
                taken.add(k)
            chosen.append((number, sites[k]))
            count -= len(sites[k].rotations)
    return chosen


def symmetric_start(
    numbers: np.ndarray, volume: float, separations: np.ndarray, rng: np.random.Generator
) -> Atoms | None:
    """A few tries in one random space group that the composition allows.

    PyXtal gives the tables of Wyckoff positions and no more: its own generator has no limit to its time, and takes
    seconds where it is crowded. The tries are counted and not timed, so that a seed gives the same start everywhere.
    """
    elements = list(dict.fromkeys(map(int, numbers)))
    indices = {element: np.flatnonzero(numbers == element) for element in elements}
    counts = {element: len(indices[element]) for element in elements}
    choose = None
    while choose is None or _first(choose, 20) is None:  # group 3, among others, allows any composition
        number = int(rng.integers(2, 231))
        group = _space_group(number)
        choose = partial(_choose_sites, counts, group.sites, rng)

    def attempt() -> Atoms | None:
        sites = _first(choose, 20)
        conventional = _conventional_cell(group.lattice, volume / np.linalg.det(group.primitive), rng)
        cell, operation = compact_cell(group.primitive @ conventional)
        scaled = sites and _place_orbits(sites, cell, np.linalg.inv(operation), indices, separations, rng)
        if scaled is None:
            return None
        atoms = Atoms(numbers, scaled_positions=scaled, cell=cell, pbc=True)
        atoms.info["space_group"] = number
        return atoms

    return _first(attempt, 10)


def _first(function: Callable[[], Result | None], tries: int) -> Result | None:
    """The first result of a function that is not None."""
    for _ in range(tries):
        result = function()
        if result is not None:
            return result
    return None


def _place_orbits(
    sites: list[tuple[int, _Site]],
    cell: np.ndarray,
    to_compact: np.ndarray,
    indices: dict[int, np.ndarray],
    separations: np.ndarray,
    rng: np.random.Generator,
) -> np.ndarray | None:
    """Fractional coordinates (N, 3) with one random orbit on each site; None where one finds no room."""
    surroundings = Surroundings(cell)
    if separations.diagonal().max() > surroundings.own:
        return None
    scaled = np.zeros((len(separations), 3))
    placed = np.empty(0, dtype=int)
    used = dict.fromkeys(indices, 0)
    for element, site in sorted(sites, key=lambda entry: entry[1].free):  # those that have no choice come first
        size = len(site.rotations)
        atoms = indices[element][used[element] : used[element] + size]
        for _ in range(12 if site.free else 1):
            orbit = (rng.random(3) @ site.rotations + site.translations) @ to_compact
            # All atoms of an orbit have the same surroundings: the first one speaks for them.
            others = np.concatenate([orbit[1:], scaled[placed]])
            distances = surroundings.distances((others - orbit[0]) @ cell)
            if np.all(distances >= separations[atoms[0], np.concatenate([atoms[1:], placed])]):
                break
        else:
            return None
        scaled[atoms] = orbit
        placed = np.concatenate([placed, atoms])
        used[element] += size
    return scaled % 1.0
