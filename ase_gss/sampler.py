"""The equation, on a batch of structures, each at its own step and noise level.

    x' = x + w_s · drift · score(x, sigma) + w_n · noise · xi + w_f · gain · F(y)

Everything else in this package that moves a structure before the optimizer does it through `step`.
"""

from dataclasses import dataclass

import numpy as np


@dataclass
class Batch:
    """Structures one after the other; A atoms in S structures.

    Attributes
    ----------
    positions : ndarray, shape (A, 3)
        Å.
    masses : ndarray, shape (A,)
        For the centre of mass.
    free : ndarray of bool, shape (A,)
        Atoms that move.
    structure : ndarray of int, shape (A,)
        Structure of each atom, ascending from 0 without gaps.
    keep_centre : ndarray of bool, shape (S,)
        Structures whose centre of mass stays put.
    """

    positions: np.ndarray
    masses: np.ndarray
    free: np.ndarray
    structure: np.ndarray
    keep_centre: np.ndarray


@dataclass
class Coefficients:
    """Numbers of one step, each of shape (S,).

    Attributes
    ----------
    sigma, drift, noise : ndarray
        Noise level (Å), factor of the score (Å²), standard deviation of the noise (Å).
    gain : ndarray
        Factor of the force, Å²/eV.
    w_score, w_noise, w_force : ndarray
        Weights of the coupling. A term with weight 0 is left out, whatever its value (0·NaN is NaN).
    max_step : ndarray
        Largest displacement of an atom by the force, Å.
    """

    sigma: np.ndarray
    drift: np.ndarray
    noise: np.ndarray
    gain: np.ndarray
    w_score: np.ndarray
    w_noise: np.ndarray
    w_force: np.ndarray
    max_step: np.ndarray


def _largest(vectors: np.ndarray, structure: np.ndarray, n_structures: int) -> np.ndarray:
    """Length (S,) of the longest of the vectors (A, 3) of each structure."""
    largest = np.zeros(n_structures)
    np.maximum.at(largest, structure, np.linalg.norm(vectors, axis=1))
    return largest


def force_points(batch: Batch, score: np.ndarray, xi: np.ndarray, c: Coefficients, point: np.ndarray) -> np.ndarray:
    """Where the physical force is taken.

    Parameters
    ----------
    batch : Batch
        The structures x.
    score, xi : ndarray, shape (A, 3)
        Score in 1/Å; standard normal noise.
    c : Coefficients
        Numbers of this step.
    point : ndarray of str, shape (S,)
        "x", "x_diff" (the step that plain diffusion proposes) or "x0" (Tweedie: x + sigma²·score).

    Returns
    -------
    ndarray, shape (A, 3)
        y in Å.
    """
    along_score = np.select([point == "x_diff", point == "x0"], [c.drift, c.sigma**2], 0.0)[batch.structure, None]
    along_noise = np.where(point == "x_diff", c.noise, 0.0)[batch.structure, None]
    moved = np.where(along_score > 0, along_score * score, 0.0) + np.where(along_noise > 0, along_noise * xi, 0.0)
    return batch.positions + moved * batch.free[:, None]


def step(
    batch: Batch, score: np.ndarray, xi: np.ndarray, forces: np.ndarray, c: Coefficients
) -> tuple[np.ndarray, np.ndarray]:
    """One step of every structure.

    Parameters
    ----------
    batch : Batch
        The structures x.
    score, xi, forces : ndarray, shape (A, 3)
        Score (1/Å), standard normal noise, physical forces F(y) (eV/Å).
    c : Coefficients
        Numbers of this step.

    Returns
    -------
    positions : ndarray, shape (A, 3)
        x' in Å.
    capped : ndarray of bool, shape (S,)
        Structures whose force displacement was shortened as a whole, its direction kept.
    """
    s = batch.structure
    free = batch.free[:, None]
    by_score = np.where(free & (c.w_score != 0)[s, None], (c.w_score * c.drift)[s, None] * score, 0.0)
    by_noise = np.where(free & (c.w_noise != 0)[s, None], (c.w_noise * c.noise)[s, None] * xi, 0.0)
    by_force = np.where(free & (c.w_force != 0)[s, None], (c.w_force * c.gain)[s, None] * forces, 0.0)
    longest = _largest(by_force, s, len(c.sigma))
    capped = longest > c.max_step
    by_force = by_force * np.where(capped, c.max_step / np.where(capped, longest, 1.0), 1.0)[s, None]
    move = by_score + by_noise + by_force
    mass = np.bincount(s, batch.masses)
    shift = np.stack([np.bincount(s, batch.masses * move[:, axis]) for axis in range(3)], axis=1) / mass[:, None]
    # Plain descent is left as it is: the forces on a free molecule add up to zero, and x + gain·F is what it promises.
    held = batch.keep_centre & ((c.w_score != 0) | (c.w_noise != 0))
    move = move - np.where(held[:, None], shift, 0.0)[s]
    return batch.positions + move, capped
