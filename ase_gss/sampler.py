"""The equation, on a batch of structures, each at its own step and noise level.

    x' = x + w_s · drift · score(x, sigma) + w_n · noise · xi + w_f · gain · F(y)

Of a crystal x is the positions and the strain of the cell, each with its own drift, noise and gain; the strain's force
is minus the derivative of the enthalpy. Everything else in this package that moves a structure before the optimizer
does it through `step`.
"""

from dataclasses import dataclass
from typing import NamedTuple

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
    cells : ndarray, shape (S, 3, 3), or None
        Lattice vectors as rows, Å; None for molecules.
    free_cell : ndarray of bool, shape (S,), or None
        Cells that move.
    """

    positions: np.ndarray
    masses: np.ndarray
    free: np.ndarray
    structure: np.ndarray
    keep_centre: np.ndarray
    cells: np.ndarray | None = None
    free_cell: np.ndarray | None = None


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
    sigma_cell, drift_cell, noise_cell, gain_cell, max_strain : ndarray or None
        The same for the strain of the cells: without unit, the gain in 1/eV.
    """

    sigma: np.ndarray
    drift: np.ndarray
    noise: np.ndarray
    gain: np.ndarray
    w_score: np.ndarray
    w_noise: np.ndarray
    w_force: np.ndarray
    max_step: np.ndarray
    sigma_cell: np.ndarray | None = None
    drift_cell: np.ndarray | None = None
    noise_cell: np.ndarray | None = None
    gain_cell: np.ndarray | None = None
    max_strain: np.ndarray | None = None


class Field(NamedTuple):
    """Score, noise or force: vectors of the atoms, and symmetric matrices of the cells.

    Attributes
    ----------
    atoms : ndarray, shape (A, 3)
        Score (1/Å), standard normal noise, or force (eV/Å).
    strain : ndarray, shape (S, 3, 3), or None
        Score (no unit), noise of variance 1 on the diagonal and 1/2 off it, or minus the derivative of the enthalpy
        by the strain (eV); None for molecules.
    """

    atoms: np.ndarray
    strain: np.ndarray | None = None


class Moved(NamedTuple):
    """Where a step has led.

    Attributes
    ----------
    positions : ndarray, shape (A, 3)
        Å.
    cells : ndarray, shape (S, 3, 3), or None
        Lattice vectors as rows, Å.
    capped : ndarray of bool, shape (S,)
        Structures whose move by the force was shortened as a whole, its direction kept.
    """

    positions: np.ndarray
    cells: np.ndarray | None
    capped: np.ndarray


def exponential(strain: np.ndarray) -> np.ndarray:
    """Matrix exponential of symmetric matrices (S, 3, 3); NaN where one is not finite, which LAPACK would refuse."""
    finite = np.isfinite(strain).all(axis=(1, 2))[:, None, None]
    values, vectors = np.linalg.eigh(np.where(finite, strain, 0.0))
    return np.where(finite, (vectors * np.exp(values)[:, None, :]) @ vectors.transpose(0, 2, 1), np.nan)


def _deformed(batch: Batch, positions: np.ndarray, strain: np.ndarray | None) -> tuple[np.ndarray, np.ndarray | None]:
    """Positions and cells after a strain (S, 3, 3) of the cells that move; the atoms go along."""
    if strain is None:
        return positions, batch.cells
    deformation = exponential(np.where(batch.free_cell[:, None, None], strain, 0.0))
    # What does not move stays as it is to the last bit: context is compared with what it was.
    moved = np.einsum("ai,aij->aj", positions, deformation[batch.structure])
    moves = batch.free_cell[batch.structure, None]
    return np.where(moves, moved, positions), np.where(
        batch.free_cell[:, None, None], batch.cells @ deformation, batch.cells
    )


def _term(weight: np.ndarray, factor: np.ndarray, values: np.ndarray, owner: np.ndarray | slice) -> np.ndarray:
    """Weight · factor · values, and 0 where the weight is; `owner` gives the structure of each row of values."""
    shape = (-1,) + (1,) * (values.ndim - 1)
    return np.where((weight != 0)[owner].reshape(shape), (weight * factor)[owner].reshape(shape) * values, 0.0)


def force_points(
    batch: Batch, score: Field, xi: Field, c: Coefficients, point: np.ndarray
) -> tuple[np.ndarray, np.ndarray | None]:
    """Where the physical force is taken.

    Parameters
    ----------
    batch : Batch
        The structures x.
    score, xi : Field
        Score and noise.
    c : Coefficients
        Numbers of this step.
    point : ndarray of str, shape (S,)
        "x", "x_diff" (the step that plain diffusion proposes) or "x0" (Tweedie: x + sigma²·score).

    Returns
    -------
    positions : ndarray, shape (A, 3)
        y in Å.
    cells : ndarray, shape (S, 3, 3), or None
        Its lattice vectors, Å.
    """
    proposed, clean = (point == "x_diff").astype(float), (point == "x0").astype(float)
    along_score = proposed + clean

    def moved(
        drift: np.ndarray, noise: np.ndarray, sigma: np.ndarray, s: np.ndarray, n: np.ndarray, owner
    ) -> np.ndarray:
        return _term(along_score, proposed * drift + clean * sigma**2, s, owner) + _term(proposed, noise, n, owner)

    move = moved(c.drift, c.noise, c.sigma, score.atoms, xi.atoms, batch.structure) * batch.free[:, None]
    if batch.cells is None:
        return batch.positions + move, None
    strain = moved(c.drift_cell, c.noise_cell, c.sigma_cell, score.strain, xi.strain, slice(None))
    return _deformed(batch, batch.positions + move, strain)


def step(batch: Batch, score: Field, xi: Field, forces: Field, c: Coefficients) -> Moved:
    """One step of every structure.

    Parameters
    ----------
    batch : Batch
        The structures x.
    score, xi, forces : Field
        Score, noise and physical forces F(y).
    c : Coefficients
        Numbers of this step.
    """
    s, n_structures = batch.structure, len(c.sigma)
    free = batch.free[:, None]
    by_force = np.where(free, _term(c.w_force, c.gain, forces.atoms, s), 0.0)
    excess = np.zeros(n_structures)
    np.maximum.at(excess, s, np.linalg.norm(by_force, axis=1))
    excess /= c.max_step
    strain = None
    if batch.cells is not None:
        moves = batch.free_cell[:, None, None]
        strain_by_force = np.where(moves, _term(c.w_force, c.gain_cell, forces.strain, slice(None)), 0.0)
        excess = np.maximum(excess, np.abs(np.linalg.eigvalsh(strain_by_force)).max(axis=1) / c.max_strain)
    capped = excess > 1
    shortened = np.where(capped, 1 / np.where(capped, excess, 1.0), 1.0)
    by_score, by_noise = _term(c.w_score, c.drift, score.atoms, s), _term(c.w_noise, c.noise, xi.atoms, s)
    move = np.where(free, by_score + by_noise, 0.0) + by_force * shortened[s, None]
    if batch.cells is not None:
        strain = strain_by_force * shortened[:, None, None]
        strain = strain + _term(c.w_score, c.drift_cell, score.strain, slice(None))
        strain = strain + _term(c.w_noise, c.noise_cell, xi.strain, slice(None))
    mass = np.bincount(s, batch.masses)
    shift = np.stack([np.bincount(s, batch.masses * move[:, axis]) for axis in range(3)], axis=1) / mass[:, None]
    # Plain descent is left as it is: the forces on a free molecule add up to zero, and x + gain·F is what it promises.
    held = batch.keep_centre & ((c.w_score != 0) | (c.w_noise != 0))
    move = move - np.where(held[:, None], shift, 0.0)[s]
    return Moved(*_deformed(batch, batch.positions + move, strain), capped)
