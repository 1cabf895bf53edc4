"""The cell of a crystal, when it is one no longer, and the vacuum in that of a surface."""

import numpy as np
from ase import Atoms
from ase.data import covalent_radii
from matscipy.neighbours import neighbour_list

# Of 104 491 relaxed crystals every one has at least 0.55 times the volume of its covalent spheres, 1.9 Å between any
# two opposite faces and contacts of half the sum of covalent radii; of 64 085 at up to 150 GPa, 0.29 times and 1.3 Å.
_LEAST_VOLUME, _MOST_VOLUME, _LEAST_HEIGHT, _LEAST_CONTACT = 0.25, 20.0, 1.0, 0.35
# Hydrogen's sphere is so small that molecular crystals would count as gases; Å3 per atom that nobody minds.
_ROOM = 60.0


def cell_out_of_bounds(atoms: Atoms, contacts: bool = True) -> str | None:
    """Reason why nothing can become of this crystal: collapsed, flat, inverted, a gas, or atoms on top of each other.

    Calculators take very long for such structures, or answer nonsense that looks like a deep minimum. The sampler and
    the hand-off ask before they call one.

    Parameters
    ----------
    atoms : Atoms
        A crystal; the lattice vectors are rows, in Å, and right-handed.
    contacts : bool
        Look at the distances between atoms, too; while they are mostly noise these say nothing.

    Returns
    -------
    str or None
        None where all is well.
    """
    cell = atoms.cell.array
    if not (np.all(np.isfinite(cell)) and np.all(np.isfinite(atoms.positions))):
        return "the cell or the positions are not finite"
    volume = np.linalg.det(cell)
    if volume < -1e-3:
        return "the lattice vectors are left-handed (swap two of them)"
    if volume <= 0:
        return "the cell has collapsed: its lattice vectors are in one plane"
    spheres = 4 / 3 * np.pi * np.sum(covalent_radii[atoms.numbers] ** 3)
    n_atoms = len(atoms)
    if volume < _LEAST_VOLUME * spheres:
        return f"the cell has collapsed: {volume / n_atoms:.2f} Å3 per atom"
    if volume > max(_MOST_VOLUME * spheres, _ROOM * n_atoms):
        return f"the cell has flown apart: {volume / n_atoms:.0f} Å3 per atom"
    height = 1 / np.linalg.norm(np.linalg.inv(cell), axis=0).max()
    if height < _LEAST_HEIGHT:
        return f"the cell has collapsed: two of its faces are {height:.2f} Å apart"
    return short_contact(atoms) if contacts else None


def short_contact(atoms: Atoms) -> str | None:
    """Reason why nothing can become of periodic atoms that lie on one another, None where none do."""
    i, j, length = neighbour_list("ijd", atoms, 2 * _LEAST_CONTACT * covalent_radii[atoms.numbers].max())
    radii = covalent_radii[atoms.numbers[i]] + covalent_radii[atoms.numbers[j]]
    if np.any(length < _LEAST_CONTACT * radii):
        return f"two atoms are {length[length < _LEAST_CONTACT * radii].min():.2f} Å apart"
    return None


def opened(cell: np.ndarray, pbc: np.ndarray, positions: np.ndarray, gap: float) -> np.ndarray:
    """The cell with so much room where it does not repeat that images there are nowhere nearer than `gap`.

    Parameters
    ----------
    cell : ndarray, shape (3, 3)
        Lattice vectors as rows, Å.
    pbc : ndarray of bool, shape (3,)
        Directions that repeat; along the others the lattice vectors are made longer where that is needed.
    positions : ndarray, shape (N, 3)
        Å; wherever they are, they stay there.
    gap : float
        Å.

    Returns
    -------
    ndarray, shape (3, 3)
        Å.
    """
    wider = cell.copy()
    for axis in np.flatnonzero(~np.asarray(pbc)):
        normal = normal_of(cell, axis)
        wider[axis] *= max(1.0, (np.ptp(positions @ normal) + gap) / (cell[axis] @ normal))
    return wider


def without_vacuum(atoms: Atoms, gap: float) -> Atoms:
    """The atoms, as they lie, in a cell with `gap` (Å) in every direction that does not repeat, or has more empty.

    Returns
    -------
    Atoms
        Periodic in all directions.
    """
    tight = atoms.copy()
    scaled, cell = tight.cell.scaled_positions(tight.positions), atoms.cell.array.copy()
    for axis in range(3):
        height = cell[axis] @ normal_of(cell, axis)
        if atoms.pbc[axis]:
            within = np.sort(scaled[:, axis] % 1.0)
            rooms = np.diff(within, append=within[0] + 1.0)
            if rooms.max() * height <= gap:
                continue
            # Counted from the first atom above the empty part; a hair less, for it is to stay the first.
            scaled[:, axis] = (scaled[:, axis] - within[(rooms.argmax() + 1) % len(within)] + 1e-9) % 1.0
        # At right angles to the others: where in the vacuum it leads to is arbitrary.
        tight.cell[axis] = normal_of(cell, axis) * (np.ptp(scaled[:, axis]) * height + gap)
    tight.positions = scaled @ cell
    tight.pbc = True
    return tight


def normal_of(cell: np.ndarray, axis: int) -> np.ndarray:
    """Unit vector at right angles to the other two lattice vectors, on the side of this one."""
    inverse = np.linalg.inv(cell)[:, axis]
    return inverse / np.linalg.norm(inverse)
