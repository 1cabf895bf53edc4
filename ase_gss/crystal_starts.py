"""Starts of crystals: random cells with atoms at random places."""

import numpy as np
from ase import Atoms

from ase_gss.composition import formula_of
from ase_gss.random_cells import GROWTH, GROWTHS, TRIES, NoRoom, Surroundings, checked_volume, place, random_cell
from ase_gss.starts import minimum_separations
from ase_gss.symmetric_starts import symmetric_start


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
    cell = random_cell(checked_volume(numbers, volume) * np.exp(spread * rng.normal()), rng)
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
    volume = checked_volume(numbers, volume) * np.exp(spread * rng.normal())
    separations = minimum_separations(numbers) if separations is None else np.asarray(separations, dtype=float)
    start = symmetric_start if symmetry else _plain_start
    # Nothing packs more closely than equal spheres on a face-centred cubic lattice: what that forbids is not tried.
    possible = len(numbers) * separations.min() ** 3 / np.sqrt(2) <= volume * GROWTH**GROWTHS
    for growth in range(GROWTHS + 1 if possible else 0):
        for _ in range(TRIES):
            atoms = start(numbers, volume * GROWTH**growth, separations, rng)
            if atoms is not None:
                return atoms
    raise NoRoom(
        f"{formula_of(numbers)} finds no room in {volume:.4g} Å3 at its minimum separations: give a larger volume or "
        f"smaller separations."
    )


def _plain_start(numbers: np.ndarray, volume: float, separations: np.ndarray, rng: np.random.Generator) -> Atoms | None:
    """One try without symmetry."""
    cell = random_cell(volume, rng)
    positions = np.full((len(numbers), 3), np.inf)
    if not place(positions, Surroundings(cell), separations, lambda n: rng.random((n, 3)) @ cell, rng):
        return None
    return Atoms(numbers, positions=positions, cell=cell, pbc=True)
