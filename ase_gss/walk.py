"""One structure on its way through the sampler: what it needs next, and how many of them take a step together."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from ase import Atoms
from ase.constraints import FixAtoms

from ase_gss.cell import opened
from ase_gss.coupling import Coupling
from ase_gss.errors import InputError
from ase_gss.sampler import Batch, Coefficients, Field, exponential, force_points, step
from ase_gss.schedule import NoiseSchedule, cell_noise
from ase_gss.symmetry import Symmetry

#: Of molecules `score(numbers, positions, sigma, structure)` -> (A, 3); of crystals
#: `score(numbers, positions, sigma, structure, cells, sigma_cell)` -> (A, 3), (S, 3, 3).
ScoreFunction = Callable[..., Any]

#: Å²/eV, for a coupling that has no gain of its own.
DEFAULT_GAIN = 0.01
#: Å; a strain moves neighbours by it times this length, so one atom's gain is N times its square that of the cell.
NEIGHBOUR_DISTANCE = 2.5
#: Largest strain by the force in one step, for each Å that an atom may move.
STRAIN_PER_LENGTH = 0.2
#: Å; further than any score reaches: images that are not there must not be seen.
OUT_OF_REACH = 12.0


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
    cell : ndarray or None, shape (3, 3)
        Lattice vectors of a crystal as rows, Å; None for a molecule.
    free_cell : bool
        The cell moves.
    pbc : tuple of bool, optional
        Directions in which a cell that does not move repeats; by default all.
    pressure : float
        External pressure on a cell that moves, eV/Å3.
    symmetry : Symmetry, optional
        Of a crystal: score, noise and force are projected onto it.
    k : int
        Steps taken.

    Attributes
    ----------
    point, point_cell : ndarray or None, shapes (N, 3) and (3, 3)
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
    cell: np.ndarray | None = None
    free_cell: bool = False
    pbc: tuple[bool, bool, bool] = (True, True, True)
    pressure: float = 0.0
    symmetry: Symmetry | None = None
    k: int = 0
    point: np.ndarray | None = None
    point_cell: np.ndarray | None = None
    weights: tuple[float, float, float] = (0.0, 0.0, 0.0)
    capped: bool = False
    largest_score: float = 0.0
    score_calls: int = 0
    _score: Field = field(default=None, repr=False)
    _xi: Field = field(default=None, repr=False)

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
        pressure: float = 0.0,
    ) -> "Walk":
        """Start at the positions of `atoms`.

        By default a molecule without fixed atoms keeps its centre of mass. A structure that is periodic in any
        direction is a crystal; its cell moves where it is periodic in all three and no atom is fixed.
        """
        free = free_atoms(atoms)
        crystal = bool(atoms.pbc.any())
        if crystal and atoms.cell.rank < 3:
            raise InputError("A periodic structure needs three lattice vectors: give a surface a cell with vacuum.")
        if keep_centre is None:
            keep_centre = bool(free.all()) and not atoms.pbc.any()
        elif keep_centre and not free.all():
            raise InputError("With fixed atoms the centre of mass is not free: leave out keep_centre.")
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
            atoms.cell.array.copy() if crystal else None,
            crystal and bool(free.all() and atoms.pbc.all()) and getattr(coupling, "moves_cell", True),
            tuple(bool(periodic) for periodic in atoms.pbc) if crystal else (True, True, True),
            pressure,
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
        if self.free_cell:
            deformation = exponential(cell_noise(sigma) * random_strain(self.rng)[None])[0]
            self.cell, self.positions = self.cell @ deformation, self.positions @ deformation

    def scatter_from_nothing(self, sigma: float) -> None:
        """Replace the free atoms' positions by noise of `sigma` (Å) about their centre; in a crystal by uniform ones.

        The cell of a crystal keeps its shape but for the noise that belongs to `sigma`.
        """
        positions = self.positions.copy()
        if self.cell is not None:
            positions[self.free] = self.rng.random((self.free.sum(), 3)) @ self.cell
        else:
            masses = self.masses[self.free]
            positions[self.free] = masses @ positions[self.free] / masses.sum()
        self.positions = positions
        self.scatter(sigma)


def random_strain(rng: np.random.Generator) -> np.ndarray:
    """Symmetric matrix (3, 3) of variance 1 on the diagonal and 1/2 off it: the same for every orientation."""
    matrix = rng.normal(size=(3, 3))
    return (matrix + matrix.T) / 2


def _join(walks: Sequence[Walk]) -> tuple[Batch, Coefficients]:
    structure = np.repeat(np.arange(len(walks)), [len(w.numbers) for w in walks])
    crystals = walks[0].cell is not None
    batch = Batch(
        np.concatenate([w.positions for w in walks]),
        np.concatenate([w.masses for w in walks]),
        np.concatenate([w.free for w in walks]),
        structure,
        np.array([w.keep_centre for w in walks]),
        np.array([w.cell for w in walks]) if crystals else None,
        np.array([w.free_cell for w in walks]) if crystals else None,
    )
    weights = np.array([w.weights for w in walks], dtype=float)

    def along(name: str) -> np.ndarray:
        # A schedule of one's own may know nothing of cells: then they are context.
        return np.array([getattr(w.schedule, name, lambda k: 0.0)(w.k) for w in walks])

    gain, max_step = np.array([w.gain for w in walks]), np.array([w.max_step for w in walks])
    coefficients = Coefficients(along("sigma"), along("drift"), along("noise"), gain, *weights.T, max_step=max_step)
    if crystals:
        coefficients.sigma_cell = along("sigma_cell") * batch.free_cell
        coefficients.drift_cell, coefficients.noise_cell = along("drift_cell"), along("noise_cell")
        counts = np.bincount(structure)
        coefficients.gain_cell = gain / (counts * NEIGHBOUR_DISTANCE**2)
        coefficients.max_strain = STRAIN_PER_LENGTH * max_step
    return batch, coefficients


def _symmetric(walk: Walk, field: Field, cell: np.ndarray | None) -> Field:
    return field if walk.symmetry is None else walk.symmetry.projected(field, cell)


def _split(values: np.ndarray, walks: Sequence[Walk]) -> list[np.ndarray]:
    return np.split(values, np.cumsum([len(w.numbers) for w in walks])[:-1])


def _joined(fields: Sequence[Field]) -> Field:
    atoms = np.concatenate([field.atoms for field in fields])
    return Field(atoms, None if fields[0].strain is None else np.array([field.strain for field in fields]))


def _nothing(walk: Walk) -> Field:
    return Field(np.zeros_like(walk.positions), None if walk.cell is None else np.zeros((3, 3)))


def _noise(walk: Walk) -> Field:
    atoms = walk.rng.normal(size=walk.positions.shape)
    return _symmetric(walk, Field(atoms, None if walk.cell is None else random_strain(walk.rng)), walk.cell)


def propose(walks: Sequence[Walk], score: ScoreFunction | None) -> None:
    """Begin a step of every walk: score and noise, and the point where its force is wanted.

    Parameters
    ----------
    walks : sequence of Walk
        None of them finished; all of molecules or all of crystals.
    score : callable
        See `ScoreFunction`; called once for all the walks that need it.
    """
    for walk in walks:
        walk.weights = tuple(walk.coupling.weights(walk.k, walk.schedule.n_steps, walk.sigma))
        walk._score, walk._xi = _nothing(walk), _noise(walk)
    scored = [w for w in walks if w.weights[0] != 0 or (w.weights[2] != 0 and w.coupling.point != "x")]
    if scored:
        batch, c = _join(scored)
        sigma = c.sigma[batch.structure] * batch.free
        numbers = np.concatenate([w.numbers for w in scored])
        if batch.cells is None:
            scores, strains = score(numbers, batch.positions, sigma, batch.structure), [None] * len(scored)
        else:
            cells = np.array([opened(w.cell, w.pbc, w.positions, OUT_OF_REACH) for w in scored])
            scores, strains = score(numbers, batch.positions, sigma, batch.structure, cells, c.sigma_cell)
        for walk, values, strain in zip(scored, _split(scores, scored), strains, strict=True):
            walk._score = _symmetric(walk, Field(values, strain), walk.cell)
            walk.score_calls += 1
    batch, c = _join(walks)
    score_field, xi = _joined([w._score for w in walks]), _joined([w._xi for w in walks])
    points, cells = force_points(batch, score_field, xi, c, np.array([w.coupling.point for w in walks]))
    for s, (walk, point) in enumerate(zip(walks, _split(points, walks), strict=True)):
        wanted = walk.weights[2] != 0
        walk.point = point if wanted else None
        walk.point_cell = cells[s] if wanted and cells is not None else None


def complete(
    walks: Sequence[Walk],
    forces: Sequence[np.ndarray | None],
    stresses: Sequence[np.ndarray | None] | None = None,
) -> None:
    """End the step of every walk.

    Parameters
    ----------
    walks : sequence of Walk
        Walks after `propose`.
    forces : sequence
        Forces (N, 3) in eV/Å at each walk's `point`; None where there are none: the force is left out of that step.
    stresses : sequence, optional
        Stresses (3, 3) in eV/Å3 there, where a cell moves; None elsewhere.
    """
    stresses = [None] * len(walks) if stresses is None else stresses
    fields = []
    for walk, force, stress in zip(walks, forces, stresses, strict=True):
        if force is None:
            walk.weights = (*walk.weights[:2], 0.0)
        fields.append(_force_field(walk, force, stress))
    batch, c = _join(walks)
    score, xi = _joined([w._score for w in walks]), _joined([w._xi for w in walks])
    positions, cells, capped = step(batch, score, xi, _joined(fields), c)
    by_score = np.linalg.norm(score.atoms, axis=1) * (c.w_score * c.drift)[batch.structure]
    parts = zip(_split(positions, walks), capped, _split(by_score, walks), strict=True)
    for s, (walk, (new, was_capped, moved)) in enumerate(zip(walks, parts, strict=True)):
        walk.positions, walk.capped, walk.largest_score = new, bool(was_capped), float(moved.max())
        if cells is not None:
            walk.cell = cells[s]
        walk.k += 1
        walk.point = walk.point_cell = walk._score = walk._xi = None


def _force_field(walk: Walk, forces: np.ndarray | None, stress: np.ndarray | None) -> Field:
    """Forces, and minus the derivative of the enthalpy by the strain: -V (stress + p)."""
    nothing = _nothing(walk)
    if forces is None:
        return nothing
    if stress is None:
        return Field(forces, nothing.strain)
    volume = abs(np.linalg.det(walk.point_cell))
    field = Field(forces, -volume * (stress + walk.pressure * np.eye(3)))
    return _symmetric(walk, field, walk.point_cell)
