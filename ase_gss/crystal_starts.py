"""Starts of trials with a cell: random crystals, with and without symmetry, and atoms on a surface."""

from collections.abc import Callable
from functools import cache, partial
from typing import NamedTuple, TypeVar

import numpy as np
from ase import Atoms
from ase.cell import Cell
from ase.geometry.minkowski_reduction import minkowski_reduce

from ase_gss.composition import formula_of
from ase_gss.errors import InputError
from ase_gss.starts import minimum_separations
from ase_gss.volumes import typical_volume

# Standard deviations of the logarithm of a cell's edges, and of its shears, before it is reduced. The cells then are
# about as long and as oblique as the Niggli cells of known crystals.
_STRETCH = 0.34
_SHEAR = 0.45

# Every choice of directions for three vectors, up to inversion.
_DIRECTIONS = np.array([[1.0, second, third] for second in (1, -1) for third in (1, -1)])

# A start is tried so often in one volume (or region), which then grows by this factor, up to so many times: by 60 %.
_TRIES = 10
_GROWTH = 1.04
_GROWTHS = 12

# So many random places are tried for one atom before the whole start is given up.
_PLACES = 60


Result = TypeVar("Result")


# --- cells ---


def compact_cell(cell: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The same lattice in its shortest vectors.

    Returns
    -------
    cell : ndarray, shape (3, 3)
        Lattice vectors as rows, Å: right-handed, shortest first, the first along x and the second in the x-y plane; the
        angles are all acute or all obtuse, between 60° and 120°.
    operation : ndarray of int, shape (3, 3)
        Its vectors in the given ones: up to a rotation the cell is `operation @ cell`, and fractional coordinates f
        become f @ inv(operation).
    """
    reduced, operation = minkowski_reduce(cell)
    order = np.argsort(np.linalg.norm(reduced, axis=1), kind="stable")
    reduced, operation = reduced[order], operation[order]
    # No choice of directions changes the sign of the product of the three scalar products: it says which kind they are.
    products = (reduced @ reduced.T)[[0, 0, 1], [1, 2, 2]]
    kind = 1.0 if np.prod(products) > 0 else -1.0
    signs = next(s for s in _DIRECTIONS if np.all(kind * products * s[[0, 0, 1]] * s[[1, 2, 2]] >= 0))
    signs = signs * np.sign(np.linalg.det(signs[:, None] * reduced))
    standard, _ = Cell(signs[:, None] * reduced).standard_form()
    return np.array(standard), np.rint(signs[:, None] * operation).astype(int)


def _checked_volume(numbers: np.ndarray, volume: float | None) -> float:
    """The volume given, or the typical one (Å3)."""
    if not len(numbers):
        raise InputError("A crystal needs at least one atom: give its atomic numbers.")
    if volume is None:
        return typical_volume(numbers)
    if not (np.isfinite(volume) and volume > 0):
        raise InputError(f"A cell cannot have a volume of {volume} Å3: give a positive one.")
    return float(volume)


def random_cell(
    volume: float,
    rng: np.random.Generator,
    stretch: float = _STRETCH,
    shear: float = _SHEAR,
) -> np.ndarray:
    """A random cell, reduced by `compact_cell`, as unequal and as oblique as those of known crystals.

    Parameters
    ----------
    volume : float
        Å3.
    rng : numpy.random.Generator
        Source of all randomness.
    stretch, shear : float
        Standard deviations of the logarithms of the three edges, and of the three shears, before the reduction.

    Returns
    -------
    ndarray, shape (3, 3)
        Lattice vectors as rows, Å.
    """
    if not (np.isfinite(volume) and volume > 0):
        raise InputError(f"A cell cannot have a volume of {volume} Å3: give a positive one.")
    cell = np.eye(3)
    cell[np.tril_indices(3, -1)] = shear * rng.normal(size=3)
    cell *= np.exp(stretch * rng.normal(size=3))[:, None]
    cell, _ = compact_cell(cell)
    return cell * (volume / np.linalg.det(cell)) ** (1 / 3)


# --- distances ---


class _Surroundings:
    """Distances (Å) among the nearest periodic images."""

    def __init__(self, cell: np.ndarray, pbc: np.ndarray | bool = True):
        pbc = np.broadcast_to(pbc, 3)
        # Directions that do not repeat stand upright, so that wrapping along the others shortens every displacement.
        self.reduced, _ = minkowski_reduce(Cell(np.where(pbc[:, None], cell, 0.0)).complete(), pbc)
        self.periodic = pbc.astype(float)
        self.inverse = np.linalg.inv(self.reduced)
        # In reduced vectors the nearest image of a wrapped displacement is one step away at most.
        steps = np.array(list(np.ndindex(3, 3, 3))) - 1
        self.images = steps[np.all((steps == 0) | pbc, axis=1)] @ self.reduced
        own = np.linalg.norm(self.images, axis=1)
        #: Å; from an atom to its own nearest image.
        self.own = float(own[own > 0].min(initial=np.inf))

    def distances(self, displacements: np.ndarray) -> np.ndarray:
        """Shortest lengths (...) of displacements (..., 3)."""
        wrapped = displacements - np.rint(displacements @ self.inverse) * self.periodic @ self.reduced
        return np.sqrt(np.min(np.sum((wrapped[..., None, :] + self.images) ** 2, axis=-1), axis=-1))


def _place(
    positions: np.ndarray,
    surroundings: _Surroundings,
    separations: np.ndarray,
    draw: Callable[[int], np.ndarray],
    rng: np.random.Generator,
) -> bool:
    """Fill in the positions (N, 3) that are infinite, in random order; False where an atom finds no room."""
    missing = np.flatnonzero(~np.isfinite(positions[:, 0]))
    if np.any(np.diag(separations)[missing] > surroundings.own):
        return False
    for atom in rng.permutation(missing):
        placed = np.flatnonzero(np.isfinite(positions[:, 0]))
        places = draw(_PLACES)
        for some in np.split(places, [4, 16]):  # most atoms find room at once
            distances = surroundings.distances(some[:, None] - positions[placed])
            fits = np.flatnonzero(np.all(distances >= separations[atom, placed], axis=1))
            if len(fits):
                positions[atom] = some[fits[0]]
                break
        else:
            return False
    return True


# --- crystals ---


def uniform_crystal(
    numbers: np.ndarray, rng: np.random.Generator, volume: float | None = None, spread: float = 0.1
) -> Atoms:
    """Atoms anywhere in a random cell, however close: the pure noise that a diffusion of crystals starts from.

    Parameters
    ----------
    numbers : ndarray, shape (N,)
        Atomic numbers.
    rng : numpy.random.Generator
        Source of all randomness.
    volume : float, optional
        Å3; `typical_volume` by default.
    spread : float
        Standard deviation of the logarithm of the volume.
    """
    cell = random_cell(_checked_volume(numbers, volume) * np.exp(spread * rng.normal()), rng)
    return Atoms(numbers, scaled_positions=rng.random((len(numbers), 3)), cell=cell, pbc=True)


def random_crystal(
    numbers: np.ndarray,
    rng: np.random.Generator,
    volume: float | None = None,
    separations: np.ndarray | None = None,
    symmetry: bool = False,
    spread: float = 0.1,
) -> Atoms:
    """Atoms in a random cell, none closer to another or to its own images than its minimum separation.

    Where the atoms find no room a new cell is drawn, and in the end a larger one, by 60 % at most.

    Parameters
    ----------
    numbers : ndarray, shape (N,)
        Atomic numbers; the cell has just these atoms, in this order. With symmetry it is the primitive one.
    rng : numpy.random.Generator
        Source of all randomness.
    volume : float, optional
        Å3; `typical_volume` by default.
    separations : ndarray, shape (N, N), optional
        Å; `minimum_separations` by default. With symmetry, atoms of an element must have the same ones.
    symmetry : bool
        Put the atoms on the Wyckoff positions of a random space group, 2 to 230, each as likely among those that the
        composition and the volume allow. `info["space_group"]` is its number; the structure may have more symmetry yet.
        Needs PyXtal.
    spread : float
        Standard deviation of the logarithm of the volume.

    Raises
    ------
    InputError
        Where the volume is not positive or too small for the separations, or PyXtal is missing.
    """
    numbers = np.asarray(numbers, dtype=int)
    volume = _checked_volume(numbers, volume) * np.exp(spread * rng.normal())
    separations = minimum_separations(numbers) if separations is None else np.asarray(separations, dtype=float)
    start = _symmetric_start if symmetry else _plain_start
    # Nothing packs more closely than equal spheres on a face-centred cubic lattice: what that forbids is not tried.
    possible = len(numbers) * separations.min() ** 3 / np.sqrt(2) <= volume * _GROWTH**_GROWTHS
    for growth in range(_GROWTHS + 1 if possible else 0):
        for _ in range(_TRIES):
            atoms = start(numbers, volume * _GROWTH**growth, separations, rng)
            if atoms is not None:
                return atoms
    raise InputError(
        f"{formula_of(numbers)} finds no room in {volume:.4g} Å3 at its minimum separations: give a larger volume or "
        f"smaller separations."
    )


def _plain_start(numbers: np.ndarray, volume: float, separations: np.ndarray, rng: np.random.Generator) -> Atoms | None:
    """One try without symmetry."""
    cell = random_cell(volume, rng)
    positions = np.full((len(numbers), 3), np.inf)
    if not _place(positions, _Surroundings(cell), separations, lambda n: rng.random((n, 3)) @ cell, rng):
        return None
    return Atoms(numbers, positions=positions, cell=cell, pbc=True)


# --- space groups ---

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
    edges = np.exp(_STRETCH * rng.normal(size=3))
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


def _symmetric_start(
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
    surroundings = _Surroundings(cell)
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


# --- surfaces ---


def random_in_region(
    template: Atoms,
    numbers: np.ndarray,
    rng: np.random.Generator,
    region: tuple[float, float] | None = None,
    separations: np.ndarray | None = None,
) -> Atoms:
    """Atoms at random places on a slab, none closer to another or to the slab than its minimum separation.

    Parameters
    ----------
    template : Atoms
        The slab in its cell, with its constraints; its atoms come first in the result, as they are.
    numbers : ndarray, shape (N,)
        Atomic numbers of the atoms to add.
    rng : numpy.random.Generator
        Source of all randomness.
    region : (float, float), optional
        Lowest and highest height (Å) of the new atoms above the plane of the first two cell vectors (z, where these lie
        in the x-y plane). By default from 1 Å below the highest atom of the template to 2 Å above it, and higher by one
        and a half times the layer that the new atoms fill; a default region grows where it is too small.
    separations : ndarray, shape (T + N, T + N), optional
        Å, of the template's atoms and the new ones; `minimum_separations` by default.

    Raises
    ------
    InputError
        Where the template has no area, or the region is empty or too small for the separations.
    """
    numbers = np.asarray(numbers, dtype=int)
    if np.linalg.matrix_rank(template.cell[:2]) < 2:
        raise InputError("A template needs its first two cell vectors: they span the surface.")
    cell = np.array(template.cell.complete())
    upward = np.linalg.inv(cell)[:, 2]
    upward /= np.linalg.norm(upward)  # normal to the surface, on the side of the third vector
    low, high = _default_region(template, numbers, upward) if region is None else map(float, region)
    if not (np.isfinite([low, high]).all() and low < high):
        raise InputError(f"The region from {low:g} to {high:g} Å is empty: give the lower height first.")
    all_numbers = np.concatenate([template.numbers, numbers])
    separations = minimum_separations(all_numbers) if separations is None else np.asarray(separations, dtype=float)
    surroundings = _Surroundings(cell, template.pbc)

    def draw(n: int) -> np.ndarray:
        scaled = rng.random((n, 3))
        scaled[:, 2] = (low + thickness * scaled[:, 2]) / (cell[2] @ upward)
        return scaled @ cell

    for growth in range(_GROWTHS + 1 if region is None else 1):
        thickness = (high - low) * _GROWTH**growth
        for _ in range(_TRIES):
            positions = np.concatenate([template.positions, np.full((len(numbers), 3), np.inf)])
            if _place(positions, surroundings, separations, draw, rng):
                atoms = template.copy()
                atoms.extend(Atoms(numbers, positions=positions[len(template) :]))
                return atoms
    raise InputError(
        f"{formula_of(numbers)} finds no room between {low:.4g} and {high:.4g} Å at its minimum separations: give a "
        f"larger region or smaller separations."
    )


def _default_region(template: Atoms, numbers: np.ndarray, upward: np.ndarray) -> tuple[float, float]:
    """Heights (Å) between which new atoms belong on a slab, whose surface has the normal `upward`."""
    if not len(template):
        raise InputError("A template without atoms has no surface: give the region of the new atoms.")
    top = float(np.max(template.positions @ upward))
    area = np.linalg.norm(np.cross(template.cell[0], template.cell[1]))
    layer = typical_volume(numbers) / area if len(numbers) else 0.0
    return top - 1.0, top + 2.0 + 1.5 * layer
