"""Learning while searching: a copy of the score that has seen the minima which a search has found so far."""

from collections.abc import Sequence
from copy import deepcopy

import numpy as np
import torch
from ase import Atoms

from ase_gss.score.data import Structures, add_noise, sample_sigma
from ase_gss.score.denoiser import denoising_loss
from ase_gss.score.model import Score

#: Of a short training: its parts, the steps of each, structures in a step, step size at first. So short that it
#: generalises and does not recite; the mean of parts that know nothing of one another is as good as one long training.
PARTS, STEPS, BATCH_SIZE, LEARNING_RATE = 2, 75, 32, 1e-3
#: Pairs of atoms in a step: of large molecules it has fewer structures, so that a lesson does not take many minutes.
MOST_PAIRS = 4000
#: Å; the noise levels at which a schedule asks for the score.
SIGMA_RANGE = (0.02, 4.0)


def adapted(score: Score, minima: Sequence[Atoms], seed: int) -> Score:
    """A copy of a score for molecules, trained on for some seconds on these minima; the score itself stays as it is.

    A score trained on stable molecules gives the strained, the charged and the radical ones little weight. Having seen
    some of them it samples others, too: after 4 000 force calls on C3H6O (44 minima, GFN2-xTB) its samples took 60 to
    80 force calls for each new minimum, those of the score itself 130 to 210.

    Parameters
    ----------
    score : Score
        One for molecules.
    minima : sequence of Atoms
        At least one.
    seed : int
        Same score, minima and seed: same result.
    """
    return averaged([adapted_in_part(score, minima, seed, part, STEPS) for part in range(PARTS)])


def adapted_in_part(score: Score, minima: Sequence[Atoms], seed: int, part: int, steps: int) -> Score:
    """One of the `PARTS` scores of which `adapted` is the mean: they differ in the noise that they have seen."""
    structures = Structures.from_arrays((atoms.numbers, atoms.positions) for atoms in minima)
    rng, denoiser = np.random.default_rng((seed, part)), deepcopy(score.denoiser).requires_grad_(True)
    size = int(np.clip(MOST_PAIRS // len(minima[0]) ** 2, 2, BATCH_SIZE))
    optimizer = torch.optim.Adam(denoiser.parameters(), lr=LEARNING_RATE)
    decay = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 1.0 / steps, steps)
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
            decay.step()
    return Score(denoiser.requires_grad_(False), f"{score.name}, adapted", score.card, score.device)


def averaged(scores: Sequence[Score]) -> Score:
    """The score with the mean of the weights of these, which all began as one."""
    first, mean = scores[0], deepcopy(scores[0].denoiser)
    others = [score.denoiser.state_dict() for score in scores]
    state = {
        key: torch.stack([other[key] for other in others]).mean(0) if value.is_floating_point() else value
        for key, value in mean.state_dict().items()
    }
    mean.load_state_dict(state)
    return Score(mean, first.name, first.card, first.device)
