"""Is it a minimum? Vibrations by finite differences, and the way off a saddle point."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from ase import Atoms, units
from ase.constraints import FixAtoms
from scipy.linalg import null_space, orth

from ase_gss.errors import InputError
from ase_gss.forces import CalculatorFailure, CountedCalculator, energy_and_forces
from ase_gss.relax import Relaxation, hand_off

#: An imaginary mode counts from this wavenumber (1/cm) on.
TOLERANCE = 50.0

#: 1/cm for a mode of 1 eV/Å² with a mass of 1 u.
_WAVENUMBER = units._hbar * 1e10 / np.sqrt(units._e * units._amu) / units.invcm


@dataclass
class Vibrations:
    """Normal modes of a structure.

    Attributes
    ----------
    wavenumbers : ndarray, shape (M,)
        In 1/cm, ascending; that of an imaginary mode is given as a negative number.
    modes : ndarray, shape (M, N, 3)
        Displacements of the atoms, the longest 1.
    forces : ndarray, shape (N, 3)
        Mean of the forces (eV/Å) at the displaced structures: the force here but for third derivatives.
    """

    wavenumbers: np.ndarray
    modes: np.ndarray
    forces: np.ndarray

    def imaginary(self, tolerance: float = TOLERANCE) -> int:
        """Number of imaginary modes above `tolerance` in 1/cm."""
        return int(np.sum(self.wavenumbers < -tolerance))


@dataclass
class Verification:
    """What came of the check; the structure itself is in the atoms.

    Attributes
    ----------
    is_minimum : bool
        Whether the atoms are now in a minimum.
    reason : str
        Why they are not; empty where they are.
    vibrations : Vibrations or None
        Those of the last structure that was checked; None where the calculator failed in the first check.
    pushes : int
        How often the structure was a saddle point, pushed off and relaxed again.
    relaxation : Relaxation or None
        The last of those relaxations, with the energy and forces of the atoms; None where there was none.
    calls : int
        Force calls.
    failed : bool
        The calculator failed, so that it is not known whether they are; nor is it where `relaxation.optimizer_failed`.
    """

    is_minimum: bool
    reason: str
    vibrations: Vibrations | None
    pushes: int
    relaxation: Relaxation | None
    calls: int
    failed: bool


def vibrations(atoms: Atoms, step: float = 0.01) -> Vibrations:
    """Normal modes by central differences: six force calls for every atom that is free.

    Motions of the whole structure that leave the fixed atoms where they are cost no energy and are projected out: for a
    free molecule its translations and rotations, with one fixed atom the rotations about it, for a crystal the
    translations.

    Parameters
    ----------
    atoms : Atoms
        With a calculator. Not moved.
    step : float
        Displacement, Å.

    Raises
    ------
    InputError
        For constraints other than FixAtoms.
    CalculatorFailure
        Where the calculator fails.
    """
    if any(not isinstance(constraint, FixAtoms) for constraint in atoms.constraints):
        raise InputError("Vibrations know of no constraint but FixAtoms: take the others off the atoms.")
    calculator = _counted(atoms)
    fixed = np.zeros(len(atoms), dtype=bool)
    for constraint in atoms.constraints:
        fixed[constraint.get_indices()] = True
    free = np.flatnonzero(~fixed)
    hessian, mean = np.empty((3 * len(free), 3 * len(free))), np.zeros((len(atoms), 3))
    for row, (atom, axis) in enumerate((atom, axis) for atom in free for axis in range(3)):
        displaced = np.zeros((len(atoms), 3))
        displaced[atom, axis] = step
        forces = [energy_and_forces(atoms, atoms.positions + sign * displaced, calculator)[1] for sign in (1, -1)]
        hessian[row] = (forces[1] - forces[0])[free].ravel() / (2 * step)
        mean += (forces[0] + forces[1]) / (6 * len(free))
    root_mass = np.repeat(np.sqrt(atoms.get_masses()[free]), 3)
    # Directions at right angles to the rigid motions, in mass-weighted coordinates. A linear molecule that is bent a
    # little is not to lose a bend to the rotation about its axis.
    internal = np.eye(len(hessian))
    rigid = root_mass[:, None] * _rigid_motions(atoms, fixed)
    if len(free) and rigid.shape[1]:
        internal = null_space(orth(rigid, rcond=1e-2).T)
    weighted = (hessian + hessian.T) / 2 / np.outer(root_mass, root_mass)
    values, vectors = np.linalg.eigh(internal.T @ weighted @ internal)
    modes = np.zeros((len(values), len(atoms), 3))
    modes[:, free] = (internal @ vectors / root_mass[:, None]).T.reshape(len(values), len(free), 3)
    if len(values):
        modes /= np.linalg.norm(modes, axis=2).max(axis=1)[:, None, None]
    return Vibrations(np.sign(values) * np.sqrt(np.abs(values)) * _WAVENUMBER, modes, mean)


def push_off(atoms: Atoms, mode: np.ndarray, distance: float = 0.1) -> Atoms:
    """Copy of the atoms, displaced along a mode (N, 3) so that the atom that moves most moves by `distance` in Å.

    A negative distance pushes to the other side. The copy has the atoms' calculator.
    """
    pushed = atoms.copy()
    pushed.calc = atoms.calc
    longest = np.linalg.norm(mode, axis=1).max()
    pushed.set_positions(atoms.positions + distance / longest * mode, apply_constraint=False)
    return pushed


def verify_minimum(
    atoms: Atoms,
    relax: Callable[[Atoms], Relaxation] | None = None,
    tolerance: float = TOLERANCE,
    max_pushes: int = 3,
    distance: float = 0.2,
) -> Verification:
    """Check a relaxed structure for imaginary modes; push a saddle point off along its mode and relax again.

    Below the tolerance an imaginary mode may be noise. That of the differences is small: for GFN2-xTB, modes below
    300/cm change by 1/cm (median; 95 % by less than 4) when the step is halved. Most imaginary modes above it, after
    relaxation to fmax 0.05 eV/Å, are no saddle points either but soft torsions on their way down; they, too, are pushed
    and relaxed.

    Parameters
    ----------
    atoms : Atoms
        With a calculator; moved in place where they were on a saddle point.
    relax : callable, optional
        Relaxes atoms in place and returns a `Relaxation`; by default `hand_off` to fmax 0.01 eV/Å, because a soft mode
        can end where it began with less.
    tolerance : float
        Of an imaginary mode, 1/cm.
    max_pushes : int
        Give up on a structure that is still on a saddle point after so many.
    distance : float
        By which the atom that moves most is pushed, Å. The side is the one that the remaining forces point to.
    """
    own = atoms.calc
    atoms.calc = calculator = _counted(atoms)
    before, pushes, found, relaxation, reason, failed = calculator.calls, 0, None, None, "", False
    try:
        while True:
            found = vibrations(atoms)
            if not (imaginary := found.imaginary(tolerance)):
                break
            if pushes == max_pushes:
                reason = f"saddle point with {imaginary} imaginary modes after {pushes} pushes"
                break
            mode = found.modes[0]
            side = -distance if np.sum(mode * found.forces) < 0 else distance
            atoms.set_positions(push_off(atoms, mode, side).positions, apply_constraint=False)
            pushes += 1
            relaxation = relax(atoms) if relax is not None else hand_off(atoms, fmax=0.01)
            if not relaxation.converged:
                reason, failed = relaxation.reason, relaxation.failed
                break
    except CalculatorFailure as failure:
        reason, failed = f"calculator: {failure}", True
    finally:
        atoms.calc = own
    return Verification(not reason, reason, found, pushes, relaxation, calculator.calls - before, failed)


def _counted(atoms: Atoms) -> CountedCalculator:
    if atoms.calc is None:
        raise InputError("There is nothing to compute vibrations with: attach a calculator to the atoms.")
    return atoms.calc if isinstance(atoms.calc, CountedCalculator) else CountedCalculator(atoms.calc)


def _rigid_motions(atoms: Atoms, fixed: np.ndarray) -> np.ndarray:
    """Displacements (3 F, K) of the F free atoms as the whole structure moves and the fixed atoms stay."""
    position = atoms.positions - atoms.positions.mean(axis=0)
    motions = [np.broadcast_to(axis, position.shape) for axis in np.eye(3)]
    if not atoms.pbc.any():
        motions += [np.cross(axis, position) for axis in np.eye(3)]
    motions = np.array(motions)
    if fixed.any():
        staying = null_space(motions[:, fixed].reshape(len(motions), -1).T, rcond=1e-6)
        motions = np.tensordot(staying.T, motions, axes=1)
    return motions[:, ~fixed].reshape(len(motions), 3 * np.sum(~fixed)).T
