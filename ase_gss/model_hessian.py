"""A model Hessian, from positions and covalent radii alone: for molecules, surfaces and crystals."""

import numpy as np
from ase import Atoms
from ase.data import covalent_radii
from ase.filters import FrechetCellFilter
from ase.neighborlist import neighbor_list
from scipy.linalg import expm_frechet, logm

# The model Hessian: force constants in eV/Å² and eV (per rad²), those of Lindh et al. in their units (0.45, 0.15 and
# 0.005 atomic units); how fast a bond fades, exp(_FADING (1 - (d / sum of radii)²)), how many sums of radii it reaches,
# and how weak a bend or torsion is left out.
_STRETCH, _BEND, _TORSION = 43.7, 4.08, 0.136
_FADING, _REACH, _LEAST = 2.0, 2.1, 0.3
# What is added to all of it (eV/Å²). In molecules less will do, and softer stretches.
_FLOOR, _MOLECULAR_FLOOR, _MOLECULAR_STRETCH = 1.0, 0.5, 30.6
# In a crystal, bonds are softer the more of them an atom has (beyond so many) and the larger its atoms are (larger than
# carbon); what is added for the cell, in eV/Å3.
_BONDS, _BOND_LENGTH, _CELL_FLOOR = 4.0, 1.52, 0.03


def model_hessian(atoms: Atoms, strain: bool = False) -> np.ndarray:
    """Hessian in eV, Å and strain, positive definite, guessed from the positions and covalent radii alone.

    Stretches, bends and torsions with the force constants of Lindh et al. [1]_, but stretches of molecules with 0.7
    times these. Each fades as the bonds that it is made of grow longer, so that nobody has to say what is bonded; the
    fading takes covalent radii for Lindh's table, which ends with the third row, as Swart and Bickelhaupt do [2]_.
    Periodic boundaries are respected. In crystals the constants of stretches fall with the number of bonds of an atom,
    those of bends with its square, and stretches with the cube of the bond length: diamond and copper differ by a
    factor of twenty.

    Parameters
    ----------
    atoms : Atoms
        N atoms.
    strain : bool
        Whether the cell may move: nine more rows and columns.

    Returns
    -------
    ndarray, shape (3N, 3N) or (3N + 9, 3N + 9)
        By displacements r of the atoms and, row by row, by a strain e under which every vector v between two atoms and
        every lattice vector becomes (1 + e) v. To a rotation there is next to no resistance.

    References
    ----------
    .. [1] R. Lindh, A. Bernhardsson, G. Karlström, P.-Å. Malmqvist, Chem. Phys. Lett. 241, 423 (1995).
    .. [2] M. Swart, F. M. Bickelhaupt, Int. J. Quantum Chem. 106, 2536 (2006).
    """
    radii = covalent_radii[atoms.numbers]
    first, second, length, vector = neighbor_list("ijdD", atoms, list(_REACH * radii))
    apart = length > 0.1  # between atoms on top of each other nothing is known, and the forces will tell
    first, second, length, vector = first[apart], second[apart], length[apart, None], vector[apart]
    unit = vector / length
    bond = np.exp(np.minimum(_FADING * (1 - (length[:, 0] / (radii[first] + radii[second])) ** 2), 0.5))
    stretch, floor = (_STRETCH, _FLOOR) if atoms.pbc.any() else (_MOLECULAR_STRETCH, _MOLECULAR_FLOOR)
    crowd, soft = np.ones(len(atoms)), np.ones(len(bond))
    if atoms.pbc.all():
        crowd = np.minimum(1.0, _BONDS / np.maximum(np.bincount(first, bond, minlength=len(atoms)), 1e-3))
        soft = np.minimum(
            1.0, (_BOND_LENGTH / (radii[first] + radii[second])) ** 3 * np.sqrt(crowd[first] * crowd[second])
        )
    terms = _Terms(len(atoms), strain)

    def followed_by(at: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """All (m, bond) where the bond begins at atom at[m]; the neighbour list is sorted by its first atom."""
        begin, end = np.searchsorted(first, at, "left"), np.searchsorted(first, at, "right")
        m = np.repeat(np.arange(len(at)), end - begin)
        return m, np.arange(len(m)) - np.repeat(np.cumsum(end - begin) - end, end - begin)

    nowhere = np.zeros((1, 3))
    # A pair is listed from both ends.
    terms.add(stretch * soft * bond / 2, [(first, -unit, nowhere), (second, unit, vector)])

    # Bends i-j-k, in their plane, and where the three are nearly in line out of it, too.
    ji, jk = followed_by(first)
    chosen = (ji != jk) & (bond[ji] * bond[jk] > _LEAST)
    ji, jk = ji[chosen], jk[chosen]
    u, v = unit[ji], unit[jk]
    normal = np.cross(u, v)
    sine = np.linalg.norm(normal, axis=1)
    normal[sine < 1e-3] = np.cross(u, np.eye(3)[np.argmin(np.abs(u), axis=1)])[sine < 1e-3]
    normal /= np.linalg.norm(normal, axis=1, keepdims=True)
    constants = _BEND * crowd[first[ji]] ** 2 * bond[ji] * bond[jk] / 2  # from both ends
    in_line = np.clip(-np.sum(u * v, axis=1), 0, 1) ** 8
    for weights, at_i, at_k in ((1.0, -np.cross(normal, u), np.cross(normal, v)), (in_line, normal, normal)):
        at_i, at_k = at_i / length[ji], at_k / length[jk]
        parts = [(second[ji], at_i, vector[ji]), (first[ji], -at_i - at_k, nowhere), (second[jk], at_k, vector[jk])]
        terms.add(weights * constants, parts)

    # Torsions i-j-k-l; derivatives by A. Blondel, M. Karplus, J. Comput. Chem. 17, 1132 (1996).
    few = np.bincount(first[bond > 0.5], minlength=len(atoms)) <= 4  # about a bond in a metal nothing turns
    turning = few[first[jk]] & few[second[jk]] & (sine**2 > 0.1)
    ji, jk = ji[turning], jk[turning]
    m, kl = followed_by(second[jk])
    ji, jk = ji[m], jk[m]
    f, g, h = vector[ji], -vector[jk], vector[kl]
    a, b = np.cross(f, g), np.cross(h, g)
    bent = np.sum(b * b, axis=1) > 0.1 * (length[jk] * length[kl])[:, 0] ** 2
    not_a_ring = np.linalg.norm(h - g - f, axis=1) > 0.1
    chosen = bent & not_a_ring & (bond[ji] * bond[jk] * bond[kl] > _LEAST)
    ji, jk, kl, f, g, h, a, b = (array[chosen] for array in (ji, jk, kl, f, g, h, a, b))
    a, b = a / np.sum(a * a, axis=1, keepdims=True), b / np.sum(b * b, axis=1, keepdims=True)
    at_i, at_l = -length[jk] * a, length[jk] * b
    turn = (np.sum(f * g, axis=1, keepdims=True) * a - np.sum(h * g, axis=1, keepdims=True) * b) / length[jk]
    parts = [(second[ji], at_i, vector[ji]), (first[ji], turn - at_i, nowhere)]
    parts += [(second[jk], -turn - at_l, vector[jk]), (second[kl], at_l, vector[jk] + vector[kl])]
    terms.add(_TORSION * bond[ji] * bond[jk] * bond[kl] / 2, parts)
    return terms.hessian(floor, _CELL_FLOOR * atoms.get_volume() if strain else 0.0)


class _Terms:
    """Sum of the terms of a model Hessian for N atoms, and where `strain` is set, for the cell."""

    def __init__(self, n_atoms: int, strain: bool) -> None:
        self.n_atoms, self.strain = n_atoms, strain
        self.atoms = np.zeros((n_atoms, n_atoms, 3, 3))
        self.mixed, self.cell = np.zeros((n_atoms, 3, 9)), np.zeros((9, 9))

    def add(self, constants: np.ndarray, parts: list[tuple[np.ndarray, np.ndarray, np.ndarray]]) -> None:
        """M internal coordinates: their force constants (M,), and for each atom that they are made of, one part.

        A part is the atom's index (M,), the derivative by its position (M, 3) and its place (M, 3), seen from any atom
        of the same coordinate, images being what they are.
        """
        for i, row, _ in parts:
            for j, other, _ in parts:
                np.add.at(self.atoms, (i, j), (constants[:, None] * row)[:, :, None] * other[:, None, :])
        if self.strain:
            # A strain moves each atom as far as it is away; where from does not matter, the derivatives' sum being 0.
            by_strain = sum(row[:, :, None] * place[:, None, :] for _, row, place in parts).reshape(-1, 9)
            for i, row, _ in parts:
                np.add.at(self.mixed, i, (constants[:, None] * row)[:, :, None] * by_strain[:, None, :])
            self.cell += by_strain.T @ (constants[:, None] * by_strain)

    def hessian(self, floor: float, cell_floor: float) -> np.ndarray:
        """The sum, (3N, 3N) or (3N + 9, 3N + 9), and what is added to all of it."""
        n = 3 * self.n_atoms
        atoms = self.atoms.transpose(0, 2, 1, 3).reshape(n, n) + floor * np.eye(n)
        if not self.strain:
            return atoms
        mixed = self.mixed.reshape(n, 9)
        return np.block([[atoms, mixed], [mixed.T, self.cell + cell_floor * np.eye(9)]])


def filter_derivatives(crystal: FrechetCellFilter) -> np.ndarray:
    """Derivatives (3N + 9, 3N + 9) of displacements and strain, as in `model_hessian`, by the filter's coordinates.

    These are the atoms' positions before the deformation F of the cell, and the logarithm of F times a factor.
    """
    deformation, n = crystal.deform_grad(), 3 * len(crystal.atoms)
    logarithm, inverse = logm(deformation).real, np.linalg.inv(deformation)
    derivatives = np.zeros((n + 9, n + 9))
    derivatives[:n, :n] = np.kron(np.eye(len(crystal.atoms)), deformation)
    for k, direction in enumerate(np.eye(9).reshape(9, 3, 3)):
        strain = expm_frechet(logarithm, direction, compute_expm=False) @ inverse
        derivatives[n:, n + k] = strain.ravel() / crystal.exp_cell_factor
    return derivatives
