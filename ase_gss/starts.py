"""Starts of trials: random molecules, or the user's own structures."""

import numpy as np
from ase import Atoms
from ase.data import covalent_radii

#: Å; no pair starts closer, whatever its elements.
SHORTEST = 0.7


def minimum_separations(numbers: np.ndarray, factor: float = 0.65) -> np.ndarray:
    """Smallest distances (N, N) in Å at which atoms may start: `factor` times the sum of the covalent radii."""
    radii = covalent_radii[numbers]
    return np.maximum(SHORTEST, factor * (radii[:, None] + radii[None]))


def sphere_radius(numbers: np.ndarray) -> float:
    """Radius (Å) of the sphere in which a random molecule starts.

    2.2 Å for ten atoms, growing with the cube root of their number, and for large atoms with the volume they fill.
    """
    filled = np.sum(covalent_radii[numbers] ** 3) ** (1 / 3)
    return float(max(1.02 * len(numbers) ** (1 / 3), 1.6 * filled))


def random_molecule(
    numbers: np.ndarray,
    rng: np.random.Generator,
    radius: float | None = None,
    separations: np.ndarray | None = None,
) -> Atoms:
    """Atoms uniform in a sphere, none closer to another than its minimum separation.

    Atoms are placed one after the other, in random order. Where one finds no room, all start afresh in a sphere that
    is 2 % larger, so that every composition has a start.

    Parameters
    ----------
    numbers : ndarray, shape (N,)
        Atomic numbers.
    rng : numpy.random.Generator
        Source of all randomness.
    radius : float, optional
        Å; `sphere_radius` by default.
    separations : ndarray, shape (N, N), optional
        Å; `minimum_separations` by default.
    """
    radius = sphere_radius(numbers) if radius is None else radius
    separations = minimum_separations(numbers) if separations is None else separations
    while True:
        positions = np.full((len(numbers), 3), np.inf)
        for atom in rng.permutation(len(numbers)):
            for _ in range(100):
                direction = rng.normal(size=3)
                place = radius * rng.random() ** (1 / 3) * direction / np.linalg.norm(direction)
                if np.all(np.linalg.norm(positions - place, axis=1) >= separations[atom]):
                    positions[atom] = place
                    break
            else:
                break
        if np.all(np.isfinite(positions)):
            return Atoms(numbers, positions=positions - positions.mean(axis=0))
        radius *= 1.02
