"""Learned forces, with which samples are relaxed: those that ship, and what a search makes of them as it goes on."""

import os
from collections.abc import Iterable
from copy import deepcopy
from hashlib import sha1
from pathlib import Path

import numpy as np
import torch
from ase import Atoms
from ase.calculators.calculator import Calculator, all_changes
from ase.data import chemical_symbols
from torch import nn

from ase_gss.allocation import keep_large_blocks
from ase_gss.errors import InputError
from ase_gss.frames import Frames
from ase_gss.score.adapt import MOST_PAIRS
from ase_gss.score.denoiser import Denoiser
from ase_gss.score.force_data import LARGEST_FORCE, ForceData
from ase_gss.score.model import FORCES, Score, one_thread, padded, read_model

#: Of the training: structures in a step, largest step size; a step for every so many force calls, but so many at the
#: least and at the most.
BATCH_SIZE, LEARNING_RATE = 16, 1e-3
FRAMES_PER_STEP, LEAST_STEPS, MOST_STEPS = 4, 300, 1000
#: One of so many structures, the last ones, is not learned but judges whether what was learned is of use.
JUDGES = 5
#: Pairs of atoms in all of them together, at most: of molecules of more than 14 atoms fewer judge.
_MOST_JUDGED_PAIRS = 4000 * 14**2
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
    source : str
        Name of the file it was loaded from, and a hash of its weights.
    elements : iterable of int
        Atomic numbers that it has learned from.
    """

    implemented_properties = ("energy", "forces")

    def __init__(self, denoiser: Denoiser, source: str = "", elements: Iterable[int] = ()) -> None:
        super().__init__()
        self.denoiser = denoiser.eval().requires_grad_(False)
        self.source, self.elements = source, frozenset(elements)
        keep_large_blocks()

    def knows(self, numbers: Iterable[int]) -> bool:
        """Whether all these elements were among those that were learned from."""
        return self.elements.issuperset(int(z) for z in numbers)

    def calculate(self, atoms: Atoms | None = None, properties=None, system_changes=all_changes) -> None:
        """Forces of these atoms; `InputError` for periodic ones, and for elements that were not learned from."""
        super().calculate(atoms, properties, system_changes)
        if self.atoms.pbc.any():
            raise InputError("These forces are for molecules: set atoms.pbc = False.")
        if not self.knows(self.atoms.numbers):
            known = ", ".join(chemical_symbols[z] for z in sorted(self.elements))
            raise InputError(f"These forces know only {known or 'nothing'}: train some with your elements.")
        (forces,) = self(self.atoms.numbers, self.atoms.positions[None])
        self.results = {"energy": 0.0, "forces": forces}

    def __call__(self, numbers: np.ndarray, positions: np.ndarray) -> np.ndarray:
        """Forces (S, N, 3) in eV/Å of atoms with numbers (N,) at positions (S, N, 3) in Å of many structures."""
        forces, n_atoms = np.empty(positions.shape), len(numbers)
        together = Score.together(n_atoms)
        for start in range(0, len(positions), together):
            part = positions[start : start + together]
            # Centred before rounding to single precision, as for the score.
            centred = (part - part.mean(axis=1, keepdims=True)).reshape(-1, 3).astype(np.float32)
            which, structure = padded(np.repeat(np.arange(len(part)), n_atoms))
            with torch.inference_mode(), one_thread():
                predicted = predicted_forces(
                    self.denoiser,
                    torch.as_tensor(np.tile(numbers, len(part))[which]),
                    torch.as_tensor(centred[which]),
                    torch.as_tensor(structure),
                )
            forces[start : start + len(part)] = predicted.double().numpy()[: len(centred)].reshape(part.shape)
        return forces


def load_forces(name: "str | os.PathLike | LearnedForces") -> LearnedForces:
    """Forces of molecules that ship with the package, or of a file that `ase-gss train --forces` wrote.

    Parameters
    ----------
    name : str, path or LearnedForces
        "molecules-forces", or a model file. `LearnedForces` are returned as they are.

    Raises
    ------
    InputError
        Where there is no such file, or it has not learned forces.
    """
    if isinstance(name, LearnedForces):
        return name
    if not isinstance(name, str | os.PathLike):
        raise InputError(f"{type(name).__name__} is no learned forces: give some from load_forces, or a model file.")
    kind, denoiser, card = read_model(name, "forces")
    if kind != FORCES:
        raise InputError(f"{name} is a score of {kind}, not forces: give a model that was trained with --forces.")
    weights = b"".join(each.numpy().tobytes() for each in denoiser.state_dict().values())
    return LearnedForces(denoiser, f"{Path(name).name} {sha1(weights).hexdigest()[:8]}", card.get("elements", ()))


def predicted_forces(
    denoiser: Denoiser, numbers: torch.Tensor, positions: torch.Tensor, structure: torch.Tensor
) -> torch.Tensor:
    """Forces (A, 3) in eV/Å; numbers (A,), positions (A, 3) in Å, and the structure (A,) of each atom, ascending."""
    sigma = torch.full((len(numbers),), _SIGMA, device=positions.device)
    return _UNIT * denoiser.raw(numbers, positions, sigma, structure, int(structure[-1]) + 1)


def force_loss(
    denoiser: Denoiser, numbers: torch.Tensor, positions: torch.Tensor, structure: torch.Tensor, forces: torch.Tensor
) -> torch.Tensor:
    """What training minimises: the deviation from forces (A, 3) in eV/Å, of large ones by its size, else squared."""
    predicted = predicted_forces(denoiser, numbers, positions, structure)
    return nn.functional.huber_loss(predicted / _UNIT, forces / _UNIT, delta=_LARGE)


def steps_for(n_frames: int) -> int:
    """Steps of training that so many structures are good for."""
    return int(np.clip(n_frames // FRAMES_PER_STEP, LEAST_STEPS, MOST_STEPS))


def learn_forces(
    start: Score | LearnedForces, numbers: np.ndarray, frames: Frames, seed: int, steps: int | None = None
) -> LearnedForces:
    """Forces learned in some seconds, by a copy of a network that knows other forces or a score.

    Parameters
    ----------
    start : LearnedForces or Score
        Whose network it begins with; a score for molecules.
    numbers : ndarray, shape (N,)
        Atomic numbers.
    frames : Frames
        At least one; those with forces above `LARGEST_FORCE` are left out where there are others.
    seed : int
        Same start, frames and seed: same result.
    steps : int, optional
        Of training; by default what suits the number of frames.

    Returns
    -------
    LearnedForces
        The ones to begin with where these are closer to the last frames, which were not learned, or where the training
        diverges.

    Raises
    ------
    RuntimeError
        Where it diverges and there are none to begin with.
    """
    with one_thread():
        return _learn_forces(start, numbers, frames, seed, steps_for(len(frames)) if steps is None else steps)


def _learn_forces(
    start: Score | LearnedForces, numbers: np.ndarray, frames: Frames, seed: int, steps: int
) -> LearnedForces:
    rng, denoiser = np.random.default_rng((seed, 0, 1)), deepcopy(start.denoiser).cpu().requires_grad_(True)
    sizes = np.abs(frames.forces).max(axis=(1, 2))
    usable = np.flatnonzero(sizes < max(LARGEST_FORCE, float(sizes.min()) + 1.0))
    learned, judges = np.split(usable, [len(usable) - len(usable) // JUDGES])
    data = ForceData.from_arrays((numbers, *pair) for pair in zip(frames.positions, frames.forces, strict=True))
    size = int(np.clip(MOST_PAIRS // len(numbers) ** 2, 2, BATCH_SIZE))
    optimizer = torch.optim.Adam(denoiser.parameters(), lr=LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=steps + 1, pct_start=0.1)
    denoiser.train()
    denoiser.network.element.jitter = 0.0  # elements are what they are
    with torch.enable_grad():
        for _ in range(steps):
            loss = force_loss(denoiser, **data.batch(rng.choice(learned, size=size)))
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(denoiser.parameters(), 1.0)
            optimizer.step()
            schedule.step()
    if not all(torch.isfinite(weight).all() for weight in denoiser.parameters()):
        if isinstance(start, LearnedForces):
            return start
        raise RuntimeError("the weights of the forces are no longer finite")
    result = LearnedForces(denoiser, elements=np.unique(numbers))
    if isinstance(start, LearnedForces) and len(judges):
        some = min(len(judges), _MOST_JUDGED_PAIRS // len(numbers) ** 2)
        judges = judges[np.linspace(0, len(judges) - 1, max(some, 1)).astype(int)]
        off = [
            np.abs(each(numbers, frames.positions[judges]) - frames.forces[judges]).mean() for each in (start, result)
        ]
        return result if off[1] < off[0] else start
    return result
