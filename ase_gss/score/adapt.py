"""Learning while searching: a copy of the score that has seen the minima which a search has found so far."""

from collections.abc import Sequence
from copy import deepcopy

import numpy as np
import torch
from ase import Atoms

from ase_gss.score.data import Structures, add_noise, sample_sigma
from ase_gss.score.denoiser import denoising_loss
from ase_gss.score.model import Score, one_thread

#: So many copies learn, each from its own noise, and each makes its share of the samples: two workers can teach them.
COPIES = 2
#: Of a short training: steps, structures in each, step size. So short that it generalises and does not recite.
STEPS, BATCH_SIZE, LEARNING_RATE = 300, 16, 3e-4
#: Pairs of atoms in a step: of large molecules it has fewer structures, so that a lesson does not take many minutes.
MOST_PAIRS = 4000
#: Å; the noise levels at which a schedule asks for the score.
SIGMA_RANGE = (0.02, 4.0)


def adapted(score: Score, minima: Sequence[Atoms], seed: int, copy: int = 0, steps: int | None = None) -> Score:
    """A copy of a score for molecules, trained on for some seconds on these minima; the score itself stays as it is.

    A score trained on stable molecules gives the strained, the charged and the radical ones little weight. Having seen
    some of them it samples others, too: after 4 000 force calls on C3H6O (44 minima, GFN2-xTB) its samples took 60 to
    80 force calls for each new minimum, those of the score itself 105.

    Parameters
    ----------
    score : Score
        One for molecules.
    minima : sequence of Atoms
        At least one.
    seed, copy : int
        Same score, minima, seed and copy: same result.
    steps : int, optional
        Of training; `STEPS` by default.

    Raises
    ------
    RuntimeError
        Where the training diverges.
    """
    with one_thread():
        return _adapted(score, minima, seed, copy, STEPS if steps is None else steps)


def _adapted(score: Score, minima: Sequence[Atoms], seed: int, copy: int, steps: int) -> Score:
    structures = Structures.from_arrays((atoms.numbers, atoms.positions) for atoms in minima)
    rng, denoiser = np.random.default_rng((seed, copy)), deepcopy(score.denoiser).requires_grad_(True)
    size = int(np.clip(MOST_PAIRS // len(minima[0]) ** 2, 2, BATCH_SIZE))
    optimizer = torch.optim.Adam(denoiser.parameters(), lr=LEARNING_RATE)
    # Not as in training: there elements are blurred, so that others can be searched; here they are what they are.
    denoiser.train()
    denoiser.network.element.jitter = 0.0
    with torch.enable_grad():
        for _ in range(steps):
            which = rng.integers(len(structures), size=size)
            batch = add_noise(structures, which, sample_sigma(rng, size, *SIGMA_RANGE), rng, context=0.0)
            loss = denoising_loss(denoiser, {key: value.to(score.device) for key, value in batch.items()})
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(denoiser.parameters(), 1.0)
            optimizer.step()
    if not all(torch.isfinite(weight).all() for weight in denoiser.parameters()):
        raise RuntimeError("its weights are no longer finite")
    return Score(denoiser.requires_grad_(False), f"{score.name}, adapted", score.card, score.device)
