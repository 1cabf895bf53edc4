"""BFGS on a model Hessian that is made anew in every step: the optimizer with which searches relax.

For molecules, surfaces and crystals, with a cell that moves or without.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from ase import Atoms
from ase.filters import Filter, FrechetCellFilter, StrainFilter
from ase.optimize import BFGS
from ase.optimize.bfgs import BFGSMethod

from ase_gss.model_hessian import filter_derivatives, model_hessian

#: Å; steps taken within this distance of where the atoms are now say what the Hessian is here.
_NEAR = 0.2
#: By such a share the model may change the curvature that was seen along a step.
_MOST_CHANGE = 0.5
#: So many of the last steps are remembered: the time of a step must not grow with their number.
_MOST_STEPS = 40
#: Sine of the angle between a step and those after it from which on it says something that they do not.
_LEAST_NEW = 0.3
#: eV/Å2; curvatures along steps are at least so large.
_LEAST_CURVATURE = 0.01


@dataclass(frozen=True)
class _Taken:
    """A step that was taken, in the optimizer's coordinates.

    Its middle (3N,), its direction (3N,), and per Å of it how the gradient changed (3N,) and how it should have by the
    model (3N,).
    """

    middle: np.ndarray
    direction: np.ndarray
    change: np.ndarray
    expected: np.ndarray

    def change_at(self, model: np.ndarray) -> np.ndarray:
        """How the gradient would change along the same direction where the model (3N, 3N) is another.

        As far as the model was right it is followed: where it is far too stiff, its own changes mean little. And it may
        change what was seen by so much and no more: it jumps where atoms pass through one another.
        """
        trust = np.clip(self.expected @ self.change / (self.expected @ self.expected), 0.0, 1.0)
        further = trust * (model @ self.direction - self.expected)
        along, most = abs(self.direction @ further), _MOST_CHANGE * abs(self.direction @ self.change)
        return self.change + further * (most / along if along > most else 1.0)


class ModelBFGS(BFGS):
    """BFGS on a model Hessian: a third of the calls of BFGS for sampled molecules and for crystals.

    The Hessian is made anew in every step: the model at the present positions, so that it follows bonds that form,
    break and turn, which an initial Hessian does not; and what the last steps have shown to be different from the
    model, as far as they were taken nearby. They count all at once, the latest first, and not one after the other, as
    in BFGS for a block of steps [1]_. A step longer than `maxstep` is replaced by the best one within it (the
    eigenvalues shifted up), not just shortened: stiff bonds come right first.

    Under a `FrechetCellFilter` the model knows how the atoms follow the cell, too, and the cell may move as far as
    `maxstrain` in one step, however many atoms it holds: twelve random Ti4O8 cells took 49 force calls each (CHGNet),
    BFGS 165 and FIRE 311.

    Parameters
    ----------
    maxstep : float
        Longest displacement of an atom in one step, Å.
    maxstrain : float
        Largest strain of the cell in one step (length of a row of its 3×3 matrix).
    atoms, restart, logfile, trajectory, **keywords
        As for every ASE optimizer. A restart file holds the last step but none before it.

    References
    ----------
    .. [1] R. B. Schnabel, Quasi-Newton methods using multiple secant equations, University of Colorado, CU-CS-247-83
       (1983).
    """

    def __init__(self, atoms: Atoms | Filter, *args: Any, maxstrain: float = 0.05, **keywords: Any) -> None:
        # Filters that keep the volume or the shape have other degrees of freedom than those of the model.
        self.moving_cell = isinstance(atoms, FrechetCellFilter) and not (
            atoms.hydrostatic_strain or atoms.constant_volume
        )
        self.maxstrain = maxstrain
        self._taken: deque[_Taken] = deque(maxlen=_MOST_STEPS)
        self._model: np.ndarray | None = None
        super().__init__(atoms, *args, **keywords)

    def update(self, pos: np.ndarray, forces: np.ndarray, pos0: np.ndarray | None, forces0: np.ndarray | None) -> None:
        """Hessian at `pos`."""
        before, self._model = self._model, self._model_for(forces)
        if before is None:  # the step comes from a restart file
            before = self._model
        if pos0 is not None and (length := np.linalg.norm(pos - pos0)) > 0:
            direction = (pos - pos0) / length
            expected = (before + self._model) @ direction / 2
            self._taken.append(_Taken((pos + pos0) / 2, direction, (forces0 - forces) / length, expected))
        # The last two count in any case.
        near = [
            each for age, each in enumerate(reversed(self._taken)) if age < 2 or self.length(pos - each.middle) < _NEAR
        ]
        directions = [each.direction for each in near]
        changes = [each.change_at(self._model) for each in near]
        self.state = BFGSMethod(updated(self._model, directions, changes))

    def _model_for(self, forces: np.ndarray) -> np.ndarray:
        """The model at the present positions, in the optimizer's coordinates."""
        hessian = np.eye(len(forces)) * self.alpha
        model = model_hessian(bare_atoms(self.atoms), strain=self.moving_cell)
        if self.moving_cell:
            chart = filter_derivatives(self.atoms)
            model = chart.T @ model @ chart
        elif isinstance(self.atoms, StrainFilter):  # its coordinates are not those of the model
            return hessian
        elif len(model) > len(forces) and hasattr(self.atoms, "index"):  # ase.filters.Filter, of some atoms
            moving = np.arange(len(model)).reshape(-1, 3)[self.atoms.index].ravel()
            model = model[np.ix_(moving, moving)]
        hessian[: len(model), : len(model)] = model
        # Whatever does not feel a force does not move: were a fixed atom free to, its neighbours would count on it.
        held = forces == 0
        hessian[held] = hessian[:, held] = 0.0
        hessian[held, held] = self.alpha
        return hessian

    def length(self, step: np.ndarray) -> float:
        """Longest displacement (Å) in a step; `maxstrain` of the cell counts as much as `maxstep`."""
        if not self.moving_cell:
            return float(np.max(self.optimizable.gradient_norm(step)))
        rows = np.linalg.norm(step.reshape(-1, 3), axis=1)
        rows[-3:] *= self.maxstep / (self.maxstrain * self.atoms.exp_cell_factor)
        return float(rows.max())

    def determine_step(self, dpos: np.ndarray, steplengths: np.ndarray) -> np.ndarray:
        """The step (3N,), by a shift of all eigenvalues no longer than `maxstep` for any atom."""
        if self.length(dpos) <= self.maxstep:
            return dpos
        values, vectors = np.linalg.eigh(self.state.hessian)
        along = self.forces0 @ vectors

        def step(shift: float) -> np.ndarray:
            return vectors @ (along / (np.abs(values) + shift))

        low, high = 0.0, np.linalg.norm(along) / self.maxstep
        while self.length(step(high)) > self.maxstep:  # the cell's share may be counted many times over
            low, high = high, 2 * high
        for _ in range(30):
            middle = (low + high) / 2
            low, high = (middle, high) if self.length(step(middle)) > self.maxstep else (low, middle)
        return step(high)


def updated(hessian: np.ndarray, directions: Sequence[np.ndarray], changes: Sequence[np.ndarray]) -> np.ndarray:
    """The Hessian with the curvature that steps have shown.

    Parameters
    ----------
    hessian : ndarray, shape (3N, 3N)
        Positive definite.
    directions, changes : sequence of ndarray, shape (3N,)
        Of each step its direction, a unit vector, and the change of the gradient per Å; the latest first.

    Returns
    -------
    ndarray, shape (3N, 3N)
        Symmetric. Of each step that counts what is new in its direction, where this is enough to tell it from noise.
        Where the changes are those of one quadratic function, its gradient changes just so. Else no symmetric matrix
        can do justice to all of them; to insist on the latest one took half as many force calls again.
    """
    new: list[tuple[np.ndarray, np.ndarray]] = []
    for direction, change in zip(directions, changes, strict=True):
        for other, its_change in new:
            along = other @ direction
            direction, change = direction - along * other, change - along * its_change
        if (length := np.linalg.norm(direction)) > _LEAST_NEW:
            new.append((direction / length, change / length))
    if not new:
        return hessian
    space, change = (np.array(each).T for each in zip(*new, strict=True))
    curvature = space.T @ change
    values, vectors = np.linalg.eigh((curvature + curvature.T) / 2)
    values[np.abs(values) < _LEAST_CURVATURE] = _LEAST_CURVATURE
    there = hessian @ space
    result = (
        hessian - there @ np.linalg.solve(space.T @ there, there.T) + (change @ vectors / values) @ (change @ vectors).T
    )
    return (result + result.T) / 2


def bare_atoms(atoms: Atoms | Filter) -> Atoms:
    """The atoms themselves, without a filter."""
    return atoms.atoms if isinstance(atoms, Filter) else atoms
