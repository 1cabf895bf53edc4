"""Starts on a surface: atoms at random places in a region above a slab."""

import numpy as np
from ase import Atoms

from ase_gss.cell import normal_of
from ase_gss.composition import formula_of
from ase_gss.errors import InputError
from ase_gss.random_cells import GROWTH, GROWTHS, TRIES, NoRoom, Surroundings, place
from ase_gss.starts import minimum_separations
from ase_gss.volumes import typical_volume


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
    upward = normal_of(cell, 2)
    low, high = _default_region(template, numbers, upward) if region is None else map(float, region)
    if not (np.isfinite([low, high]).all() and low < high):
        raise InputError(f"The region from {low:g} to {high:g} Å is empty: give the lower height first.")
    all_numbers = np.concatenate([template.numbers, numbers])
    separations = minimum_separations(all_numbers) if separations is None else np.asarray(separations, dtype=float)
    surroundings = Surroundings(cell, template.pbc)

    def draw(n: int) -> np.ndarray:
        scaled = rng.random((n, 3))
        scaled[:, 2] = (low + thickness * scaled[:, 2]) / (cell[2] @ upward)
        return scaled @ cell

    for growth in range(GROWTHS + 1 if region is None else 1):
        thickness = (high - low) * GROWTH**growth
        for _ in range(TRIES):
            positions = np.concatenate([template.positions, np.full((len(numbers), 3), np.inf)])
            if place(positions, surroundings, separations, draw, rng):
                atoms = template.copy()
                atoms.extend(Atoms(numbers, positions=positions[len(template) :]))
                return atoms
    raise NoRoom(
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
