"""One structure on its way through the sampler: what it needs next, and how many of them take a step together."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from ase import Atoms
from ase.constraints import FixAtoms

from ase_gss.coupling import Coupling
from ase_gss.errors import InputError
from ase_gss.sampler import Batch, Coefficients, force_points, step
from ase_gss.schedule import NoiseSchedule

ScoreFunction = Callable[[np.ndarray, np.ndarray, np.ndarray, np.ndarray], np.ndarray]

#: Å²/eV, for a coupling that has no gain of its own.
DEFAULT_GAIN = 0.01


def free_atoms(atoms: Atoms) -> np.ndarray:
    """Mask (N,) of the atoms that are not held by FixAtoms.

    Raises
    ------
    InputError
        For any other constraint, which the sampler would not honour.
    """
    free = np.ones(len(atoms), dtype=bool)
    for constraint in atoms.constraints:
        if not isinstance(constraint, FixAtoms):
            name = type(constraint).__name__
            raise InputError(
                f"The sampler honours FixAtoms only: remove the constraint {name} or use the optimizer alone."
            )
        free[constraint.index] = False
    if not free.any():
        raise InputError("All atoms are fixed: leave at least one free to move.")
    return free


@dataclass
class Walk:
    """The sampling state of one structure of N atoms; a value that pickles, without calculator or network.

    Parameters
    ----------
    numbers, positions, masses, free : ndarray
        Atomic numbers (N,), positions (N, 3) in Å, masses (N,), mask of moving atoms (N,).
    schedule, coupling : NoiseSchedule, Coupling
        What to do at each step.
    rng : numpy.random.Generator
        This structure's own random stream.
    gain : float
        Å²/eV.
    max_step : float
        Largest displacement of an atom by the force in one step, Å.
    keep_centre : bool
        The centre of mass stays put.
    k : int
        Steps taken.

    Attributes
    ----------
    point : ndarray or None, shape (N, 3)
        Where the physical force is wanted for the step under way, Å.
    weights : tuple of float
        Of the step under way or, between steps, of the last one.
    capped : bool
        The last step was shortened.
    largest_score : float
        Largest displacement of an atom by the score in the last step, Å.
    score_calls : int
        Score calls so far.
    """

    numbers: np.ndarray
    positions: np.ndarray
    masses: np.ndarray
    free: np.ndarray
    schedule: NoiseSchedule
    coupling: Coupling
    rng: np.random.Generator
    gain: float = DEFAULT_GAIN
    max_step: float = 0.2
    keep_centre: bool = True
    k: int = 0
    point: np.ndarray | None = None
    weights: tuple[float, float, float] = (0.0, 0.0, 0.0)
    capped: bool = False
    largest_score: float = 0.0
    score_calls: int = 0
    _score: np.ndarray = field(default=None, repr=False)
    _xi: np.ndarray = field(default=None, repr=False)

    @classmethod
    def from_atoms(
        cls,
        atoms: Atoms,
        schedule: NoiseSchedule,
        coupling: Coupling,
        rng: np.random.Generator,
        gain: float | None = None,
        max_step: float = 0.2,
        keep_centre: bool | None = None,
    ) -> "Walk":
        """Start at the positions of `atoms`; by default a molecule without fixed atoms keeps its centre of mass."""
        free = free_atoms(atoms)
        if keep_centre is None:
            keep_centre = bool(free.all()) and not atoms.pbc.any()
        gain = getattr(coupling, "gain", DEFAULT_GAIN) if gain is None else gain
        masses = np.where(atoms.get_masses() > 0, atoms.get_masses(), 1.0)
        return cls(
            atoms.numbers.copy(),
            atoms.positions.copy(),
            masses,
            free,
            schedule,
            coupling,
            rng,
            gain,
            max_step,
            keep_centre,
        )

    @property
    def finished(self) -> bool:
        """No step is left."""
        return self.k >= self.schedule.n_steps

    @property
    def sampling_force_calls(self) -> int:
        """Force calls that the steps still to come need."""
        steps, schedule = range(self.k, self.schedule.n_steps), self.schedule
        return sum(self.coupling.weights(k, schedule.n_steps, schedule.sigma(k))[2] != 0 for k in steps)

    @property
    def sigma(self) -> float:
        """Noise level of the step under way, Å."""
        return self.schedule.sigma(min(self.k, self.schedule.n_steps - 1))

    def scatter(self, sigma: float) -> None:
        """Add noise of `sigma` (Å) to the free atoms; the centre of mass stays where it is kept."""
        noise = sigma * self.rng.normal(size=self.positions.shape) * self.free[:, None]
        if self.keep_centre:
            noise -= self.masses @ noise / self.masses.sum()
        self.positions = self.positions + noise

    def scatter_from_nothing(self, sigma: float) -> None:
        """Replace the free atoms' positions by noise of `sigma` (Å) about their centre."""
        positions = self.positions.copy()
        masses = self.masses[self.free]
        positions[self.free] = masses @ positions[self.free] / masses.sum()
        self.positions = positions
        self.scatter(sigma)


def _join(walks: Sequence[Walk]) -> tuple[Batch, Coefficients]:
    structure = np.repeat(np.arange(len(walks)), [len(w.numbers) for w in walks])
    batch = Batch(
        np.concatenate([w.positions for w in walks]),
        np.concatenate([w.masses for w in walks]),
        np.concatenate([w.free for w in walks]),
        structure,
        np.array([w.keep_centre for w in walks]),
    )
    schedules = [(w.schedule, w.k) for w in walks]
    weights = np.array([w.weights for w in walks], dtype=float)
    coefficients = Coefficients(
        sigma=np.array([s.sigma(k) for s, k in schedules]),
        drift=np.array([s.drift(k) for s, k in schedules]),
        noise=np.array([s.noise(k) for s, k in schedules]),
        gain=np.array([w.gain for w in walks]),
        w_score=weights[:, 0],
        w_noise=weights[:, 1],
        w_force=weights[:, 2],
        max_step=np.array([w.max_step for w in walks]),
    )
    return batch, coefficients


def _split(values: np.ndarray, walks: Sequence[Walk]) -> list[np.ndarray]:
    return np.split(values, np.cumsum([len(w.numbers) for w in walks])[:-1])


def propose(walks: Sequence[Walk], score: ScoreFunction | None) -> None:
    """Begin a step of every walk: score and noise, and the point where its force is wanted.

    Parameters
    ----------
    walks : sequence of Walk
        None of them finished.
    score : callable
        `score(numbers, positions, sigma, structure)`; called once for all the walks that need it.
    """
    for walk in walks:
        walk.weights = tuple(walk.coupling.weights(walk.k, walk.schedule.n_steps, walk.sigma))
        walk._score, walk._xi = np.zeros_like(walk.positions), walk.rng.normal(size=walk.positions.shape)
    scored = [w for w in walks if w.weights[0] != 0 or (w.weights[2] != 0 and w.coupling.point != "x")]
    if scored:
        batch, coefficients = _join(scored)
        sigma = coefficients.sigma[batch.structure] * batch.free
        numbers = np.concatenate([w.numbers for w in scored])
        scores = score(numbers, batch.positions, sigma, batch.structure)
        for walk, values in zip(scored, _split(scores, scored), strict=True):
            walk._score = values
            walk.score_calls += 1
    batch, coefficients = _join(walks)
    joined_score, xi = np.concatenate([w._score for w in walks]), np.concatenate([w._xi for w in walks])
    points = force_points(batch, joined_score, xi, coefficients, np.array([w.coupling.point for w in walks]))
    for walk, point in zip(walks, _split(points, walks), strict=True):
        walk.point = point if walk.weights[2] != 0 else None


def complete(walks: Sequence[Walk], forces: Sequence[np.ndarray | None]) -> None:
    """End the step of every walk.

    Parameters
    ----------
    walks : sequence of Walk
        Walks after `propose`.
    forces : sequence
        Forces (N, 3) in eV/Å at each walk's `point`; None where there are none: the force is left out of that step.
    """
    for walk, force in zip(walks, forces, strict=True):
        if force is None:
            walk.weights = (*walk.weights[:2], 0.0)
    batch, coefficients = _join(walks)
    joined_forces = np.concatenate(
        [np.zeros_like(w.positions) if f is None else f for w, f in zip(walks, forces, strict=True)]
    )
    joined_score, xi = np.concatenate([w._score for w in walks]), np.concatenate([w._xi for w in walks])
    positions, capped = step(batch, joined_score, xi, joined_forces, coefficients)
    by_score = np.linalg.norm(joined_score, axis=1) * (coefficients.w_score * coefficients.drift)[batch.structure]
    parts = zip(_split(positions, walks), capped, _split(by_score, walks), strict=True)
    for walk, (new, was_capped, moved) in zip(walks, parts, strict=True):
        walk.positions, walk.capped, walk.largest_score = new, bool(was_capped), float(moved.max())
        walk.k += 1
        walk.point = walk._score = walk._xi = None
