"""Random cells, and random places in them with minimum separations: what all starts with a cell are made of."""

from collections.abc import Callable
from contextlib import suppress

import numpy as np
from ase import Atoms
from ase.cell import Cell
from ase.geometry.minkowski_reduction import minkowski_reduce

from ase_gss.errors import InputError
from ase_gss.volumes import typical_volume

# Standard deviations of the logarithm of a cell's edges, and of its shears, before it is reduced. The cells then are
# about as long and as oblique as the Niggli cells of known crystals.
EDGE_SPREAD = 0.34
_SHEAR = 0.45

# Every choice of directions for three vectors, up to inversion.
_DIRECTIONS = np.array([[1.0, second, third] for second in (1, -1) for third in (1, -1)])

# A start is tried so often in one volume (or region), which then grows by this factor, up to so many times: by 60 %.
TRIES = 10
GROWTH = 1.04
GROWTHS = 12

# A search draws a start so often, where it finds no room at all; one with symmetry, which takes long to see that.
STARTS, SYMMETRIC_STARTS = 300, 5

# So many random places are tried for one atom before the whole start is given up.
_PLACES = 60


class NoRoom(InputError):
    """The atoms of a start find no room."""


def with_room(draw: Callable[[], Atoms], most: int = STARTS) -> Atoms:
    """What `draw` gives, which is tried again where there is no room: what is tight has some now and then.

    Raises
    ------
    NoRoom
        Where there is none in `most` attempts.
    """
    for _ in range(most - 1):
        with suppress(NoRoom):
            return draw()
    return draw()


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


def checked_volume(numbers: np.ndarray, volume: float | None) -> float:
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
    stretch: float = EDGE_SPREAD,
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


class Surroundings:
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


def place(
    positions: np.ndarray,
    surroundings: Surroundings,
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
