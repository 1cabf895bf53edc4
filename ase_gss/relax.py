"""The hand-off: from a sampled structure to a relaxed one, with any ASE optimizer."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import IO, Any

import ase.optimize
import networkx as nx
import numpy as np
from ase import Atoms
from ase.calculators.calculator import Calculator, all_changes
from ase.calculators.singlepoint import SinglePointCalculator
from ase.data import covalent_radii
from ase.filters import Filter
from ase.neighborlist import neighbor_list
from ase.optimize import BFGS
from ase.optimize.bfgs import BFGSMethod
from ase.optimize.optimize import Optimizer

from ase_gss.bonds import bonding_graph
from ase_gss.errors import InputError
from ase_gss.forces import CalculatorFailure, CountedCalculator

# The model Hessian: force constants in eV/Å² and eV (per rad²), those of Lindh et al. in their units (0.45, 0.15 and
# 0.005 atomic units); what is added to all of it; how fast a bond fades, exp(_FADING (1 - (d / sum of radii)²)), how
# many sums of radii it reaches, and how weak a bend or torsion is left out.
_STRETCH, _BEND, _TORSION, _FLOOR = 43.7, 4.08, 0.136, 1.0
_FADING, _REACH, _LEAST = 2.0, 2.1, 0.3

#: The optimizer with the fewest force calls to a molecule's minimum.
DEFAULT_OPTIMIZER = "ModelBFGS"


@dataclass
class Relaxation:
    """How a relaxation ended. The structure itself is in the atoms.

    Attributes
    ----------
    converged : bool
        Whether the forces at the atoms' positions are below fmax.
    reason : str
        Why it is not converged, in words; empty where it is.
    steps : int
        Optimizer steps.
    energy : float or None
        Energy (eV) at the atoms' positions; None where the calculator has never answered.
    forces : ndarray, shape (N, 3), or None
        Forces (eV/Å) there as the calculator gives them, those on fixed atoms included.
    fmax : float or None
        Largest force (eV/Å) there that the optimizer has to bring down: constraints applied, and for a filter the
        forces on the cell included.
    failed : bool
        Whether it was the calculator that ended the relaxation.
    """

    converged: bool
    reason: str
    steps: int
    energy: float | None = None
    forces: np.ndarray | None = None
    fmax: float | None = None
    failed: bool = False

    def frozen(self, atoms: Atoms) -> Atoms:
        """Copy of the relaxed atoms that carries this energy and these forces instead of a calculator."""
        copy = atoms.copy()
        if self.energy is not None:
            copy.calc = SinglePointCalculator(copy, energy=self.energy, forces=self.forces)
        return copy


def hand_off(
    atoms: Atoms | Filter,
    optimizer: str | type[Optimizer] = DEFAULT_OPTIMIZER,
    fmax: float = 0.05,
    max_steps: int = 300,
    trajectory: Any = None,
    logfile: IO | str | None = None,
    give_up: Callable[[Atoms], str | None] | None = None,
    give_up_interval: int = 2,
    **optimizer_keywords: Any,
) -> Relaxation:
    """Relax atoms in place with their own calculator.

    Nothing that the calculator or the optimizer does on the way raises: it ends the relaxation, and `reason` says
    what it was. The atoms are then left at the last positions for which the calculator has given finite numbers.

    Parameters
    ----------
    atoms : Atoms or Filter
        With a calculator. Constraints are respected.
    optimizer : str or optimizer class
        "ModelBFGS", the name of a class in `ase.optimize` or a class.
    fmax : float
        Converged when every force is smaller, eV/Å.
    max_steps : int
        Optimizer steps after which to stop.
    trajectory, logfile
        As every ASE optimizer takes them.
    give_up : callable, optional
        Called as ``give_up(atoms)`` after every `give_up_interval` steps. A string that it returns ends the relaxation
        and is its reason; None lets it go on. See `fallen_apart`.
    give_up_interval : int
        Optimizer steps.
    **optimizer_keywords
        For the optimizer, ``maxstep=0.1`` for example.

    Raises
    ------
    InputError
        For an unknown optimizer or keyword, or atoms without a calculator.
    """
    bare = _bare(atoms)
    if bare.calc is None:
        raise InputError("There is nothing to relax with: attach a calculator to the atoms.")
    if not (fmax > 0 and max_steps >= 0 and give_up_interval >= 1):
        raise InputError("A relaxation needs a positive fmax, no negative max_steps and a positive give_up_interval.")
    make, own, reason, failed = optimizer_class(optimizer), bare.calc, "", False
    bare.calc = watch = _Watch(own if isinstance(own, CountedCalculator) else CountedCalculator(own))
    try:
        try:
            dynamics = make(atoms, logfile=logfile, trajectory=trajectory, **optimizer_keywords)
        except TypeError as error:
            raise InputError(f"The optimizer {make.__name__} cannot be made so: {error}.") from error
        if give_up is not None:
            dynamics.attach(_ask, give_up_interval, give_up, bare, dynamics)
        try:
            dynamics.run(fmax=fmax, steps=max_steps)
            bare.get_forces()  # some optimizers end elsewhere than where they looked last
        except CalculatorFailure as failure:
            reason, failed = f"calculator: {failure}", True
        except _Ended as ended:
            reason = str(ended)
        except InputError:  # the caller's mistake, and a ValueError
            raise
        except (ArithmeticError, RuntimeError, ValueError) as error:  # line searches and linear algebra end so
            reason = f"optimizer: {type(error).__name__}: {' '.join(str(error).split())}"
        steps = dynamics.nsteps
        if watch.last is None:
            return Relaxation(False, reason, steps, failed=failed)
        watch.rewind(bare)
        optimizable = atoms.__ase_optimizable__()
        gradient = optimizable.get_gradient()
        if not reason and not optimizable.converged(gradient, fmax):
            reason = f"not converged after {steps} steps"
        energy, forces = float(watch.results["energy"]), np.array(watch.results["forces"])
        return Relaxation(not reason, reason, steps, energy, forces, float(optimizable.gradient_norm(gradient)), failed)
    finally:
        bare.calc = own


def optimizer_class(optimizer: str | type[Optimizer]) -> type[Optimizer]:
    """The optimizer class of this name, or the class itself; `InputError` where there is none."""
    known = {
        name: value
        for name, value in vars(ase.optimize).items()
        if isinstance(value, type) and issubclass(value, Optimizer)
    }
    known["ModelBFGS"] = ModelBFGS
    if isinstance(optimizer, str) and optimizer in known:
        return known[optimizer]
    if isinstance(optimizer, type) and hasattr(optimizer, "run"):
        return optimizer
    raise InputError(f"No optimizer {optimizer!r}: give a class, or one of {', '.join(sorted(known))}.")


def fallen_apart(atoms: Atoms, scale: float = 1.5) -> str | None:
    """Reason to give up a molecule that is in pieces, even if bonds may be `scale` times the sum of covalent radii.

    For `hand_off(give_up=...)`. Asked every 2 steps on 160 hot samples each of C2H6OS and C2H4O3 (GFN2-xTB) it saved 47
    and 44 % of the force calls and lost 2 of 86 and 8 of 110 ends in one piece. Random starts begin in pieces: there it
    saved 60 % of the calls, but lost 7 of 18.
    """
    return None if nx.is_connected(bonding_graph(atoms, scale)) else "fallen apart"


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
        model = model_hessian(_bare(self.atoms))
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


class _Ended(Exception):
    """The relaxation ends for this reason."""


def _ask(give_up: Callable[[Atoms], str | None], atoms: Atoms, dynamics: Optimizer) -> None:
    if dynamics.nsteps > 0 and (reason := give_up(atoms)):
        raise _Ended(reason)


class _Watch(Calculator):
    """Passes on to a counted calculator, and remembers the last structure that it had finite numbers for."""

    def __init__(self, counted: CountedCalculator) -> None:
        super().__init__()
        self.counted = counted
        self.implemented_properties = counted.implemented_properties
        self.last: Atoms | None = None
        self.last_results: dict[str, Any] = {}

    def calculate(self, atoms: Atoms | None = None, properties=None, system_changes=all_changes) -> None:
        """Energy and forces, and whatever else `properties` asks for."""
        super().calculate(atoms, properties, system_changes)
        if not (np.all(np.isfinite(self.atoms.positions)) and np.all(np.isfinite(self.atoms.cell.array))):
            raise _Ended("the positions are not finite")
        for name in dict.fromkeys(["energy", "forces", *(properties or [])]):
            self.counted.get_property(name, self.atoms)
        self.results = dict(self.counted.results)
        self.last, self.last_results = self.atoms, self.results

    def rewind(self, atoms: Atoms) -> None:
        """Put the atoms back to that structure, and go back to it."""
        atoms.set_cell(self.last.cell)
        atoms.set_positions(self.last.positions, apply_constraint=False)
        self.atoms, self.results = self.last.copy(), dict(self.last_results)


def _bare(atoms: Atoms | Filter) -> Atoms:
    return atoms.atoms if isinstance(atoms, Filter) else atoms
