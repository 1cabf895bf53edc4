"""The hand-off: from a sampled structure to a relaxed one, its cell included, with any ASE optimizer."""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO, Any

import ase.optimize
import networkx as nx
import numpy as np
from ase import Atoms
from ase.calculators.calculator import Calculator, all_changes
from ase.calculators.singlepoint import SinglePointCalculator
from ase.filters import Filter, FrechetCellFilter
from ase.optimize.optimize import Optimizer
from ase.units import GPa

from ase_gss.bonds import bonding_graph
from ase_gss.cell import cell_out_of_bounds
from ase_gss.errors import InputError
from ase_gss.forces import CalculatorFailure, CountedCalculator, check_stress
from ase_gss.model_bfgs import ModelBFGS, bare_atoms

#: The optimizer with the fewest force calls to a minimum, for molecules and crystals.
DEFAULT_OPTIMIZER = "ModelBFGS"


@dataclass
class Relaxation:
    """How a relaxation ended. The structure itself is in the atoms.

    Attributes
    ----------
    converged : bool
        Whether the forces at the atoms' positions are below fmax, and where the cell was relaxed, the stress is within
        its tolerance of the pressure.
    reason : str
        Why it is not converged, in words; empty where it is.
    steps : int
        Optimizer steps.
    energy : float or None
        Energy (eV) at the atoms' positions; None where the calculator has never answered.
    forces : ndarray, shape (N, 3), or None
        Forces (eV/Å) there as the calculator gives them, those on fixed atoms included.
    fmax : float or None
        Largest force (eV/Å) there that the optimizer has to bring down: constraints applied, and for a filter of the
        caller's the forces on the cell included.
    failed : bool
        Whether it was the calculator that ended the relaxation.
    stress : ndarray, shape (6,), or None
        Stress (eV/Å3; Voigt order xx, yy, zz, yz, xz, xy; negative under compression) there as the calculator gives
        it. None where the cell was not relaxed.
    enthalpy : float or None
        Energy plus pressure times volume (eV); None where the cell was not relaxed.
    optimizer_failed : bool
        Whether it was an error in the optimizer that ended the relaxation.
    """

    converged: bool
    reason: str
    steps: int
    energy: float | None = None
    forces: np.ndarray | None = None
    fmax: float | None = None
    failed: bool = False
    stress: np.ndarray | None = None
    enthalpy: float | None = None
    optimizer_failed: bool = False

    def frozen(self, atoms: Atoms) -> Atoms:
        """Copy of the relaxed atoms that carries this energy, these forces and this stress instead of a calculator."""
        copy = atoms.copy()
        if self.energy is not None:
            copy.calc = SinglePointCalculator(copy, energy=self.energy, forces=self.forces, stress=self.stress)
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
    pressure: float | None = None,
    stress_tolerance: float = 0.1 * GPa,
    **optimizer_keywords: Any,
) -> Relaxation:
    """Relax atoms in place with their own calculator, and with a `pressure` the cell of a crystal, too.

    Nothing that the calculator or the optimizer does on the way raises: it ends the relaxation, and `reason` says
    what it was. The atoms are then left at the last positions for which the calculator has given finite numbers. A cell
    that collapses or flies apart ends the relaxation so, too, before the calculator sees it: `cell_out_of_bounds`.

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
        Called as ``give_up(atoms)`` after the first force call and after every `give_up_interval` steps. A string that
        it returns ends the relaxation and is its reason; None lets it go on. See `fallen_apart`.
    give_up_interval : int
        Optimizer steps.
    pressure : float, optional
        Relax the cell against this pressure, eV/Å3 (`ase.units.GPa` is one GPa). None leaves the cell as it is.
    stress_tolerance : float
        With a pressure: converged when besides the forces every component of stress + pressure is smaller, eV/Å3.
    **optimizer_keywords
        For the optimizer, ``maxstep=0.1`` for example.

    Raises
    ------
    InputError
        For an unknown optimizer or keyword, atoms without a calculator, or a cell that cannot be relaxed.
    """
    bare, moving_cell = bare_atoms(atoms), pressure is not None
    if bare.calc is None:
        raise InputError("There is nothing to relax with: attach a calculator to the atoms.")
    if not (fmax > 0 and max_steps >= 0 and give_up_interval >= 1):
        raise InputError("A relaxation needs a positive fmax, no negative max_steps and a positive give_up_interval.")
    if moving_cell:
        _check_cell(atoms, pressure, stress_tolerance)
        if reason := cell_out_of_bounds(bare):
            return Relaxation(False, reason, 0)
        atoms = FrechetCellFilter(bare, scalar_pressure=pressure)
    make, own, reason = optimizer_class(optimizer), bare.calc, ""
    failed = optimizer_failed = False
    bare.calc = watch = _Watch(own if isinstance(own, CountedCalculator) else CountedCalculator(own), moving_cell)

    def cell_converged(gradient: np.ndarray | None = None) -> bool:
        """Whether forces and stress are those of a minimum; the filter's own gradient is another, volume × stress."""
        excess = bare.get_stress() + pressure * np.array([1, 1, 1, 0, 0, 0])
        return _largest(bare.get_forces()) < fmax and np.max(np.abs(excess)) < stress_tolerance

    try:
        try:
            dynamics = make(atoms, logfile=logfile, trajectory=trajectory, **optimizer_keywords)
        except (TypeError, AssertionError) as error:
            words = str(error) or type(error).__name__
            raise InputError(f"The optimizer {make.__name__} cannot be made so: {words}.") from error
        if moving_cell:
            dynamics.gradient_converged = cell_converged
        if give_up is not None:
            dynamics.attach(_ask, give_up_interval, give_up, bare)
        try:
            with known_warnings_ignored():
                dynamics.run(fmax=fmax, steps=max_steps)
            bare.get_forces()  # some optimizers end elsewhere than where they looked last
        except CalculatorFailure as failure:
            reason, failed = f"calculator: {failure}", True
        except _Ended as ended:
            reason = str(ended)
        except InputError:  # the caller's mistake, and a ValueError
            raise
        except Exception as error:  # line searches, linear algebra, whatever an optimizer of the user's raises
            reason = f"optimizer: {type(error).__name__}: {' '.join(str(error).split())}"
            optimizer_failed = True
        steps = dynamics.nsteps
        if watch.last is None:
            return Relaxation(False, reason, steps, failed=failed, optimizer_failed=optimizer_failed)
        watch.rewind(bare)
        optimizable = atoms.__ase_optimizable__()
        if moving_cell:
            largest, converged = _largest(bare.get_forces()), cell_converged()
        else:
            gradient = optimizable.get_gradient()
            largest, converged = float(optimizable.gradient_norm(gradient)), optimizable.converged(gradient, fmax)
        if not reason and not converged:
            reason = f"not converged after {steps} steps"
        energy, forces = float(watch.results["energy"]), np.array(watch.results["forces"])
        outcome = Relaxation(
            not reason, reason, steps, energy, forces, largest, failed, optimizer_failed=optimizer_failed
        )
        if moving_cell:
            outcome.stress = bare.get_stress(apply_constraint=False)
            outcome.enthalpy = energy + pressure * bare.get_volume()
        return outcome
    finally:
        bare.calc = own


@contextmanager
def known_warnings_ignored() -> Iterator[None]:
    """No warnings of what is as it should be."""
    with warnings.catch_warnings():
        # The filter's matrix logarithms are good to 1e-13, and say so.
        warnings.filterwarnings("ignore", "logm result may be inaccurate")
        yield


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


def _largest(vectors: np.ndarray) -> float:
    """Length of the longest of these vectors (N, 3)."""
    return float(np.max(np.linalg.norm(vectors, axis=1)))


def _check_cell(atoms: Atoms | Filter, pressure: float, stress_tolerance: float) -> None:
    if isinstance(atoms, Filter):
        raise InputError("With a pressure the hand-off makes the filter itself: give it the atoms without one.")
    if not atoms.pbc.all():
        raise InputError("Only the cell of a crystal can be relaxed: set atoms.pbc = True, or leave out the pressure.")
    if not (np.isfinite(pressure) and stress_tolerance > 0):
        raise InputError("Relaxing a cell needs a finite pressure and a positive stress_tolerance, both in eV/Å3.")
    check_stress(atoms.calc)


class _Ended(Exception):
    """The relaxation ends for this reason."""


def _ask(give_up: Callable[[Atoms], str | None], atoms: Atoms) -> None:
    if reason := give_up(atoms):
        raise _Ended(reason)


class _Watch(Calculator):
    """Passes on to a counted calculator, and remembers the last structure that it had finite numbers for."""

    def __init__(self, counted: CountedCalculator, moving_cell: bool = False) -> None:
        super().__init__()
        self.counted, self.moving_cell = counted, moving_cell
        self.implemented_properties = counted.implemented_properties
        self.last: Atoms | None = None
        self.last_results: dict[str, Any] = {}

    def calculate(self, atoms: Atoms | None = None, properties=None, system_changes=all_changes) -> None:
        """Energy and forces, and whatever else `properties` asks for."""
        super().calculate(atoms, properties, system_changes)
        if not (np.all(np.isfinite(self.atoms.positions)) and np.all(np.isfinite(self.atoms.cell.array))):
            raise _Ended("the positions are not finite")
        if self.moving_cell and (reason := cell_out_of_bounds(self.atoms)):
            raise _Ended(reason)
        # The stress first: it brings energy and forces with it, and they may not bring the stress.
        first = ["stress"] if self.moving_cell else []
        for name in dict.fromkeys([*first, "energy", "forces", *(properties or [])]):
            self.counted.get_property(name, self.atoms)
        self.results = dict(self.counted.results)
        self.last, self.last_results = self.atoms, self.results

    def rewind(self, atoms: Atoms) -> None:
        """Put the atoms back to that structure, and go back to it."""
        atoms.set_cell(self.last.cell)
        atoms.set_positions(self.last.positions, apply_constraint=False)
        self.atoms, self.results = self.last.copy(), dict(self.last_results)
