"""Forces of one composition, learned from the force calls that a search has spent: samples are relaxed with them."""

from collections.abc import Sequence
from copy import deepcopy
from typing import Any

import numpy as np
import torch
from ase import Atoms
from ase.calculators.calculator import Calculator, all_changes

from ase_gss.frames import Frames
from ase_gss.score.adapt import MOST_PAIRS
from ase_gss.score.denoiser import Denoiser
from ase_gss.score.model import Score, one_thread

#: Of the training: steps, structures in each, largest step size. With 600 steps, with 32 structures, with the mean of
#: two or three networks the error was the same within some per cent.
STEPS, BATCH_SIZE, LEARNING_RATE = 300, 16, 2e-3
#: eV/Å; structures with larger forces, where atoms are on one another, are not learned.
LARGEST_FORCE = 25.0
#: eV/Å; the unit of what the network gives, and from how many of them on a deviation counts by its size, no longer by
#: its square.
_UNIT, _LARGE = 3.0, 0.3
#: Å; the network is that of the score, which is near to forces where it knows of little noise.
_SIGMA = 0.1


class LearnedForces(Calculator):
    """Forces of a network. There is no energy that they belong to: it is given as 0.

    Parameters
    ----------
    denoiser : Denoiser
        Whose network has learned forces.
    """

    implemented_properties = ("energy", "forces")

    def __init__(self, denoiser: Denoiser) -> None:
        super().__init__()
        self.denoiser = denoiser.eval().requires_grad_(False)

    def calculate(self, atoms: Atoms | None = None, properties=None, system_changes=all_changes) -> None:
        """Forces of these atoms."""
        super().calculate(atoms, properties, system_changes)
        (self.results,) = self.calculate_batch([self.atoms])

    def calculate_batch(self, structures: Sequence[Atoms], stress: bool = False) -> list[dict[str, Any]]:
        """Forces of many structures of the same composition, see `ase_gss.batch.BatchCalculator`."""
        results = []
        for start in range(0, len(structures), Score.chunk):
            part = structures[start : start + Score.chunk]
            with torch.inference_mode(), one_thread():
                forces = self._evaluate(part[0].numbers, np.array([atoms.positions for atoms in part]))
            results += [{"energy": 0.0, "forces": each} for each in forces.double().numpy()]
        return results

    def _evaluate(self, numbers: np.ndarray, positions: np.ndarray) -> torch.Tensor:
        return _UNIT * _raw(self.denoiser, numbers, positions).reshape(positions.shape)


def _raw(denoiser: Denoiser, numbers: np.ndarray, positions: np.ndarray) -> torch.Tensor:
    """What the network gives (S * N, 3) for structures (S, N, 3) of the same elements (N,)."""
    n_structures, n_atoms = positions.shape[:2]
    # Centred before rounding to single precision, as for the score.
    centred = (positions - positions.mean(axis=1, keepdims=True)).reshape(-1, 3)
    return denoiser.raw(
        torch.as_tensor(np.tile(numbers, n_structures)),
        torch.as_tensor(centred.astype(np.float32)),
        torch.full((n_structures * n_atoms,), _SIGMA),
        torch.arange(n_structures).repeat_interleave(n_atoms),
        n_structures,
    )


def learn_forces(
    score: Score, numbers: np.ndarray, frames: Frames, seed: int, steps: int | None = None
) -> LearnedForces:
    """Forces learned in some seconds, by a copy of the score's network.

    Of C4H6O (GFN2-xTB) 400 force calls are enough for 0.4 eV/Å on hot samples and the first steps of their relaxations,
    whose forces are some 0.9, and for 0.08 eV/Å at their ends (medians of the root mean square of a component).

    Parameters
    ----------
    score : Score
        One for molecules.
    numbers : ndarray, shape (N,)
        Atomic numbers.
    frames : Frames
        At least one; those with forces above `LARGEST_FORCE` are left out where there are others.
    seed : int
        Same score, frames and seed: same result.
    steps : int, optional
        Of training; `STEPS` by default.

    Raises
    ------
    RuntimeError
        Where the training diverges.
    """
    with one_thread():
        return _learn_forces(score, numbers, frames, seed, STEPS if steps is None else steps)


def _learn_forces(score: Score, numbers: np.ndarray, frames: Frames, seed: int, steps: int) -> LearnedForces:
    rng, denoiser = np.random.default_rng((seed, 0, 1)), deepcopy(score.denoiser).cpu().requires_grad_(True)
    sizes = np.abs(frames.forces).max(axis=(1, 2))
    usable = np.flatnonzero(sizes < max(LARGEST_FORCE, float(sizes.min()) + 1.0))
    size = int(np.clip(MOST_PAIRS // len(numbers) ** 2, 2, BATCH_SIZE))
    optimizer = torch.optim.Adam(denoiser.parameters(), lr=LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=steps + 1, pct_start=0.1)
    denoiser.train()
    denoiser.network.element.jitter = 0.0  # elements are what they are
    with torch.enable_grad():
        for _ in range(steps):
            which = rng.choice(usable, size=size)
            output = _raw(denoiser, numbers, frames.positions[which])
            target = torch.as_tensor(frames.forces[which].reshape(-1, 3) / _UNIT)
            loss = torch.nn.functional.huber_loss(output, target, delta=_LARGE)
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(denoiser.parameters(), 1.0)
            optimizer.step()
            schedule.step()
    if not all(torch.isfinite(weight).all() for weight in denoiser.parameters()):
        raise RuntimeError("its weights are no longer finite")
    return LearnedForces(denoiser)
