"""L-BFGS for many structures at once: where the forces of a batch cost next to nothing, so must everything else."""

from collections import deque
from collections.abc import Callable

import numpy as np

#: Å²/eV; the inverse Hessian where nothing is known of it.
_FIRST = 1 / 30
#: Steps that are remembered.
_MEMORY = 12


def relax_together(
    positions: np.ndarray,
    forces: Callable[[np.ndarray, np.ndarray], np.ndarray],
    fmax: float,
    max_steps: int,
    maxstep: float = 0.2,
    hopeless: Callable[[np.ndarray, np.ndarray, int], np.ndarray] | None = None,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Follow the forces of every structure to where they vanish (Nocedal and Wright, Numerical Optimization, 7.2).

    No energy is looked at and there is no line search, so that forces need not be the derivatives of an energy. A pair
    of steps with negative curvature is left out.

    Parameters
    ----------
    positions : ndarray, shape (S, N, 3)
        Å.
    forces : callable
        ``forces(positions, which)`` are the forces (M, N, 3) in eV/Å at positions (M, N, 3) of the structures (M,).
    fmax : float
        A structure rests when its largest force is smaller, eV/Å.
    max_steps : int
        Or after so many steps.
    maxstep : float
        Longest displacement of an atom in one step, Å; the direction is kept.
    hopeless : callable, optional
        ``hopeless(positions, which, step)`` says of each structure (M,) whether it is worth no further step.

    Returns
    -------
    positions : ndarray, shape (S, N, 3)
        Å. A structure whose forces are not finite is left there.
    evaluations : ndarray, shape (S,)
        How often each had its forces evaluated.
    given_up : ndarray, shape (S,)
        Which were hopeless.
    """
    positions = np.array(positions, dtype=float)
    evaluations, given_up = np.zeros(len(positions), int), np.zeros(len(positions), bool)
    which, n = np.arange(len(positions)), positions[0].size if len(positions) else 0
    steps: deque[np.ndarray] = deque(maxlen=_MEMORY)
    changes: deque[np.ndarray] = deque(maxlen=_MEMORY)
    before: tuple[np.ndarray, np.ndarray] | None = None
    for step in range(max_steps + 1):
        going = np.ones(len(which), bool)
        if hopeless is not None:
            lost = hopeless(positions[which], which, step)
            given_up[which[lost]] = True
            going &= ~lost
        now, gradient = positions[which].reshape(-1, n), np.zeros((len(which), n))
        if going.any():
            evaluations[which[going]] += 1
            gradient[going] = -forces(positions[which[going]], which[going]).reshape(-1, n)
        finite = np.isfinite(gradient).all(axis=1)
        largest = np.linalg.norm(gradient.reshape(len(which), -1, 3), axis=2).max(axis=1, initial=0.0)
        going &= finite & (largest >= fmax)
        if not going.any() or step == max_steps:
            break
        if before is not None:
            steps.append(now - before[0])
            changes.append(gradient - before[1])
        if not going.all():
            which, now, gradient = which[going], now[going], gradient[going]
            for history in (steps, changes):
                for k in range(len(history)):
                    history[k] = history[k][going]
        before = now, gradient
        displacement = -_times_inverse_hessian(gradient, list(steps), list(changes)).reshape(len(which), -1, 3)
        longest = np.linalg.norm(displacement, axis=2).max(axis=1)
        displacement *= np.minimum(1.0, maxstep / np.maximum(longest, 1e-12))[:, None, None]
        positions[which] += displacement
    return positions, evaluations, given_up


def _times_inverse_hessian(gradient: np.ndarray, steps: list[np.ndarray], changes: list[np.ndarray]) -> np.ndarray:
    """Inverse Hessian times gradient (M, 3N), by the two loops over the remembered steps and changes (M, 3N) each."""
    result, weights = gradient.copy(), []
    for step, change in zip(reversed(steps), reversed(changes), strict=True):
        curvature = np.einsum("ij,ij->i", step, change)
        inverse = np.where(curvature > 0, 1 / np.where(curvature > 0, curvature, 1.0), 0.0)
        weight = inverse * np.einsum("ij,ij->i", step, result)
        weights.append((inverse, weight))
        result -= weight[:, None] * change
    result *= _FIRST
    for step, change, (inverse, weight) in zip(steps, changes, reversed(weights), strict=True):
        result += (weight - inverse * np.einsum("ij,ij->i", change, result))[:, None] * step
    # Where the remembered steps are of another landscape, downhill will do.
    uphill = np.einsum("ij,ij->i", result, gradient) <= 0
    result[uphill] = _FIRST * gradient[uphill]
    return result
