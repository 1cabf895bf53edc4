"""BFGS on a model Hessian that is made anew in every step: the optimizer with which searches relax."""

from typing import Any

import numpy as np
from ase import Atoms
from ase.data import covalent_radii
from ase.filters import Filter
from ase.neighborlist import neighbor_list
from ase.optimize import BFGS
from ase.optimize.bfgs import BFGSMethod

# The model Hessian: force constants in eV/Å² and eV (per rad²), those of Lindh et al. in their units (0.45, 0.15 and
# 0.005 atomic units); what is added to all of it; how fast a bond fades, exp(_FADING (1 - (d / sum of radii)²)), how
# many sums of radii it reaches, and how weak a bend or torsion is left out.
_STRETCH, _BEND, _TORSION, _FLOOR = 43.7, 4.08, 0.136, 1.0
_FADING, _REACH, _LEAST = 2.0, 2.1, 0.3


class ModelBFGS(BFGS):
    """BFGS on a model Hessian: for sampled molecules it takes less than half the force calls of BFGS.

    The Hessian is made anew in every step: the model at the present positions, updated with the last few steps. So it
    follows bonds that form, break and turn, which an initial Hessian does not. A step longer than `maxstep` is replaced
    by the best one within it (the eigenvalues shifted up), not just shortened: stiff bonds come right first.

    Parameters
    ----------
    memory : int
        So many of the last steps update the model; one more after every step uphill, because forces that are not those
        of a molecule have to be learned, and then never forgotten.
    maxstep : float
        Longest displacement of an atom in one step, Å.
    atoms, restart, logfile, trajectory, **keywords
        As for every ASE optimizer. A restart file holds the last step but not the memory.
    """

    def __init__(self, atoms: Atoms | Filter, *args: Any, memory: int = 5, **keywords: Any) -> None:
        self.memory = memory
        self.pairs: list[tuple[np.ndarray, np.ndarray]] = []
        self.energy = np.inf
        super().__init__(atoms, *args, **keywords)

    def step(self, gradient: np.ndarray | None = None) -> None:
        """One step."""
        before, self.energy = self.energy, self.optimizable.get_value()
        self.memory += self.energy > before
        super().step(gradient)

    def update(self, pos: np.ndarray, forces: np.ndarray, pos0: np.ndarray | None, forces0: np.ndarray | None) -> None:
        """Hessian at `pos`."""
        if pos0 is not None:
            step, change = pos - pos0, forces0 - forces
            if abs(step @ change) > 1e-6 * np.linalg.norm(step) * np.linalg.norm(change):
                self.pairs.append((step, change))
        hessian = np.eye(len(pos)) * self.alpha
        model = model_hessian(bare_atoms(self.atoms))
        hessian[: len(model), : len(model)] = model
        # Whatever does not feel a force does not move: were a fixed atom free to, its neighbours would count on it.
        held = forces == 0
        hessian[held] = hessian[:, held] = 0.0
        hessian[held, held] = self.alpha
        self.state = BFGSMethod(hessian)
        for step, change in self.pairs[max(len(self.pairs) - self.memory, 0) :]:
            self.state.update(step, change, 0.0 * step, 0.0 * change)

    def determine_step(self, dpos: np.ndarray, steplengths: np.ndarray) -> np.ndarray:
        """The step (3N,), by a shift of all eigenvalues no longer than `maxstep` for any atom."""
        if np.max(steplengths) <= self.maxstep:
            return dpos
        values, vectors = np.linalg.eigh(self.state.hessian)
        along = self.forces0 @ vectors

        def step(shift: float) -> np.ndarray:
            return vectors @ (along / (np.abs(values) + shift))

        low, high = 0.0, np.linalg.norm(along) / self.maxstep
        for _ in range(30):
            middle = (low + high) / 2
            too_long = np.max(self.optimizable.gradient_norm(step(middle))) > self.maxstep
            low, high = (middle, high) if too_long else (low, middle)
        return step(high)


def model_hessian(atoms: Atoms) -> np.ndarray:
    """Hessian (3N, 3N) in eV/Å², positive definite, guessed from the positions and covalent radii alone.

    Stretches, bends and torsions with the force constants of Lindh et al. [1]_. Each fades as the bonds that it is made
    of grow longer, so that nobody has to say what is bonded; the fading takes covalent radii for Lindh's table, which
    ends with the third row, as Swart and Bickelhaupt do [2]_. Periodic boundaries are respected.

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
    blocks = np.zeros((len(atoms), len(atoms), 3, 3))

    def add(constants: np.ndarray, atoms_and_rows: list[tuple[np.ndarray, np.ndarray]]) -> None:
        """Internal coordinates, given by their force constants (M,) and derivatives (M, 3) by each atom (M,)."""
        for i, row in atoms_and_rows:
            for j, other in atoms_and_rows:
                np.add.at(blocks, (i, j), (constants[:, None] * row)[:, :, None] * other[:, None, :])

    def followed_by(at: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """All (m, bond) where the bond begins at atom at[m]; the neighbour list is sorted by its first atom."""
        begin, end = np.searchsorted(first, at, "left"), np.searchsorted(first, at, "right")
        m = np.repeat(np.arange(len(at)), end - begin)
        return m, np.arange(len(m)) - np.repeat(np.cumsum(end - begin) - end, end - begin)

    add(_STRETCH * bond / 2, [(first, -unit), (second, unit)])  # a pair is listed from both ends

    # Bends i-j-k, in their plane, and where the three are nearly in line out of it, too.
    ji, jk = followed_by(first)
    chosen = (ji != jk) & (bond[ji] * bond[jk] > _LEAST)
    ji, jk = ji[chosen], jk[chosen]
    u, v = unit[ji], unit[jk]
    normal = np.cross(u, v)
    sine = np.linalg.norm(normal, axis=1)
    normal[sine < 1e-3] = np.cross(u, np.eye(3)[np.argmin(np.abs(u), axis=1)])[sine < 1e-3]
    normal /= np.linalg.norm(normal, axis=1, keepdims=True)
    constants = _BEND * bond[ji] * bond[jk] / 2  # from both ends
    in_line = np.clip(-np.sum(u * v, axis=1), 0, 1) ** 8
    for weights, at_i, at_k in ((1.0, -np.cross(normal, u), np.cross(normal, v)), (in_line, normal, normal)):
        at_i, at_k = at_i / length[ji], at_k / length[jk]
        add(weights * constants, [(second[ji], at_i), (first[ji], -at_i - at_k), (second[jk], at_k)])

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
    rows = [(second[ji], at_i), (first[ji], turn - at_i), (second[jk], -turn - at_l), (second[kl], at_l)]
    add(_TORSION * bond[ji] * bond[jk] * bond[kl] / 2, rows)
    return blocks.transpose(0, 2, 1, 3).reshape(3 * len(atoms), -1) + _FLOOR * np.eye(3 * len(atoms))


def bare_atoms(atoms: Atoms | Filter) -> Atoms:
    """The atoms themselves, without a filter."""
    return atoms.atoms if isinstance(atoms, Filter) else atoms
