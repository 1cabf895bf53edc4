"""The hand-off: from a sampled structure to a relaxed one, with any ASE optimizer."""

from collections import deque
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
    optimizer: str | type[Optimizer] = "ModelBFGS",
    fmax: float = 0.05,
    max_steps: int = 300,
    trajectory: Any = None,
    logfile: IO | str | None = None,
    give_up: Callable[[Atoms], str | None] | None = None,
    give_up_interval: int = 10,
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
    bare = atoms.atoms if isinstance(atoms, Filter) else atoms
    if bare.calc is None:
        raise InputError("There is nothing to relax with: attach a calculator to the atoms.")
    if not (fmax > 0 and max_steps >= 0 and give_up_interval >= 1):
        raise InputError("A relaxation needs a positive fmax, no negative max_steps and a positive give_up_interval.")
    make = optimizer_class(optimizer)
    own, dynamics, reason, failed = bare.calc, None, "", False
    bare.calc = watch = _Watch(own if isinstance(own, CountedCalculator) else CountedCalculator(own))
    try:
        try:
            dynamics = make(atoms, logfile=logfile, trajectory=trajectory, **optimizer_keywords)
        except TypeError as error:
            raise InputError(f"The optimizer {make.__name__} cannot be made so: {error}.") from error
        if give_up is not None:
            dynamics.attach(_ask, give_up_interval, give_up, bare, dynamics)
        dynamics.run(fmax=fmax, steps=max_steps)
        bare.get_forces()  # some optimizers end elsewhere than where they have looked last
    except CalculatorFailure as failure:
        reason, failed = f"calculator: {failure}", True
    except _Ended as ended:
        reason = str(ended)
    except InputError:
        raise
    except (ArithmeticError, RuntimeError, ValueError) as error:  # line searches and linear algebra end so
        reason = f"optimizer: {type(error).__name__}: {' '.join(str(error).split())}"
    finally:
        bare.calc = own
    return _outcome(atoms, bare, watch, dynamics, reason, failed, fmax)


def _outcome(
    atoms: Atoms | Filter,
    bare: Atoms,
    watch: "_Watch",
    dynamics: Optimizer | None,
    reason: str,
    failed: bool,
    fmax: float,
) -> Relaxation:
    """What the calculator said last, and the atoms put where it said it. Costs no force call."""
    steps = dynamics.nsteps if dynamics is not None else 0
    if watch.last is None:
        return Relaxation(False, reason, steps, failed=failed)
    watch.rewind()
    bare.set_cell(watch.last.cell)
    bare.set_positions(watch.last.positions, apply_constraint=False)
    own, bare.calc = bare.calc, watch
    try:
        optimizable = atoms.__ase_optimizable__()
        gradient = optimizable.get_gradient()
        largest, small = float(optimizable.gradient_norm(gradient)), bool(optimizable.converged(gradient, fmax))
    finally:
        bare.calc = own
    if not reason and not small:
        reason = f"not converged after {steps} steps"
    energy, forces = float(watch.results["energy"]), np.array(watch.results["forces"])
    return Relaxation(not reason, reason, steps, energy, forces, largest, failed)


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


def fallen_apart(atoms: Atoms, scale: float = 1.6) -> str | None:
    """Reason to give up a molecule that is in pieces, even if bonds may be `scale` times the sum of covalent radii."""
    return None if nx.is_connected(bonding_graph(atoms, scale)) else "fallen apart"


class ModelBFGS(BFGS):
    """BFGS on a model Hessian: for molecules it takes half as many force calls as BFGS, or fewer.

    The Hessian is made anew in every step: the model at the present positions, updated with the last few steps. So it
    follows bonds that form, break and turn, which an initial Hessian does not. A step longer than `maxstep` is replaced
    by the best one within it (the eigenvalues shifted up), not just shortened: stiff bonds come right first.

    Parameters
    ----------
    memory : int
        So many of the last steps update the model.
    maxstep : float
        Longest displacement of an atom in one step, Å.
    atoms, restart, logfile, trajectory, **keywords
        As for every ASE optimizer. A restart file holds the last step but not the memory.
    """

    def __init__(self, atoms: Atoms | Filter, *args: Any, memory: int = 8, **keywords: Any) -> None:
        self.memory: deque[tuple[np.ndarray, np.ndarray]] = deque(maxlen=memory)
        super().__init__(atoms, *args, **keywords)

    def update(self, pos: np.ndarray, forces: np.ndarray, pos0: np.ndarray | None, forces0: np.ndarray | None) -> None:
        """Hessian at `pos`."""
        if pos0 is not None and np.abs(pos - pos0).max() > 1e-7:
            self.memory.append((pos - pos0, forces0 - forces))
        hessian = np.eye(len(pos)) * self.alpha
        model = model_hessian(self.atoms.atoms if isinstance(self.atoms, Filter) else self.atoms)
        hessian[: len(model), : len(model)] = model
        # Whatever does not feel a force does not move: were a fixed atom free to, its neighbours would count on it.
        held = forces == 0
        hessian[held] = hessian[:, held] = 0.0
        hessian[held, held] = self.alpha
        self.state = BFGSMethod(hessian)
        for step, change in self.memory:
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
    """TODO."""


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

    def rewind(self) -> None:
        """Go back to that structure."""
        self.atoms, self.results = self.last.copy(), dict(self.last_results)
