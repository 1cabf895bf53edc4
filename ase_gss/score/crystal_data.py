"""Training data for crystals: clean structures as flat arrays, and the noise put on positions and cell."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from ase.data import atomic_numbers
from ase.io import iread
from scipy.linalg import expm
from torch.utils.data import IterableDataset

from ase_gss.errors import InputError
from ase_gss.schedule import cell_noise
from ase_gss.score.crystal_denoiser import periodic_pairs
from ase_gss.walk import random_strain

#: Probabilities that a training structure's cell is context, and that some of its atoms are, too.
FIXED_CELL_PROBABILITY, CONTEXT_PROBABILITY = 0.15, 0.05
#: A structure that is hypothetical, or of which nothing is known, counts so much.
UNCERTAIN_WEIGHT = 0.35
#: Largest logarithm of a stretch, and of a loss of volume, that the noise makes.
LARGEST_STRAIN = 0.8
#: eV/atom above the hull from which a structure is left out.
LARGEST_HULL_DISTANCE = 0.1


@dataclass
class Crystals:
    """Many crystals, one after the other.

    Attributes
    ----------
    numbers : ndarray, shape (A,)
        Atomic numbers.
    fractional : ndarray, shape (A, 3)
        Fractional coordinates.
    cells : ndarray, shape (S, 3, 3)
        Lattice vectors as rows, Å.
    first : ndarray, shape (S + 1,)
        Structure s has the atoms first[s] to first[s + 1] - 1.
    weights : ndarray, shape (S,)
        How often each is to be seen.
    """

    numbers: np.ndarray
    fractional: np.ndarray
    cells: np.ndarray
    first: np.ndarray
    weights: np.ndarray

    def __len__(self) -> int:
        return len(self.first) - 1

    def select(self, which: np.ndarray) -> "Crystals":
        """The structures with these indices."""
        counts = np.diff(self.first)[which]
        atoms = np.concatenate([np.arange(self.first[s], self.first[s + 1]) for s in which])
        first = np.concatenate([[0], np.cumsum(counts)])
        return Crystals(self.numbers[atoms], self.fractional[atoms], self.cells[which], first, self.weights[which])


def chemical_system(numbers: Iterable[int]) -> tuple[int, ...]:
    """The elements, sorted by atomic number, each once."""
    return tuple(sorted({int(z) for z in numbers}))


def parse_system(text: str) -> tuple[int, ...]:
    """The elements of a chemical system such as "Ti-O"."""
    try:
        return chemical_system(atomic_numbers[symbol] for symbol in text.strip().split("-"))
    except KeyError as error:
        raise InputError(f"{text!r} is no chemical system: write its elements like Ca-Ti-O.") from error


def read_crystals(source: str, hold_out: Iterable[str] = ()) -> Crystals:
    """Read training crystals, leaving out every one of a held-out chemical system.

    Parameters
    ----------
    source : str
        A file that ASE reads, of periodic structures; or an .npz file with `n` (S,) atoms of each structure, `Z` and
        `frac` of all atoms, `cell` (S, 3, 3) in Å, and `exp` (1: known from experiment) and `ehull` (eV/atom, or NaN),
        by which structures are weighed or left out.
    hold_out : iterable of str
        Chemical systems, such as "Ti-O".
    """
    held_out = {parse_system(system) for system in hold_out}
    crystals = _read_npz(source) if Path(source).suffix == ".npz" else _read_atoms(source)
    systems = [
        chemical_system(crystals.numbers[a:b]) for a, b in zip(crystals.first[:-1], crystals.first[1:], strict=True)
    ]
    kept = [s for s, system in enumerate(systems) if system not in held_out and crystals.weights[s] > 0]
    if not kept:
        raise InputError(f"{source} has no crystal to train on.")
    return crystals.select(np.array(kept))


def _read_npz(source: str) -> Crystals:
    try:
        with np.load(source, allow_pickle=False) as file:
            n, numbers, fractional, cells = file["n"], file["Z"], file["frac"], file["cell"]
            known = file["exp"] == 1 if "exp" in file else np.ones(len(n), bool)
            above = file["ehull"] > LARGEST_HULL_DISTANCE if "ehull" in file else np.zeros(len(n), bool)
    except (OSError, KeyError, ValueError) as error:
        raise InputError(f"{source} cannot be read as crystals: {type(error).__name__}: {error}.") from error
    weights = np.where(above, 0.0, np.where(known, 1.0, UNCERTAIN_WEIGHT))
    first = np.concatenate([[0], np.cumsum(n)])
    return Crystals(numbers.astype(np.int64), fractional.astype(float), cells.astype(float), first, weights)


def _read_atoms(source: str) -> Crystals:
    try:
        structures = list(iread(source, ":"))
    except Exception as error:  # every format of ASE has its own ways to fail
        raise InputError(f"{source} cannot be read as structures: {type(error).__name__}: {error}.") from error
    if not structures or not all(atoms.pbc.all() for atoms in structures):
        raise InputError(f"{source} must hold crystals, periodic in three directions.")
    return Crystals(
        np.concatenate([atoms.numbers for atoms in structures]),
        np.concatenate([atoms.get_scaled_positions() for atoms in structures]),
        np.array([atoms.cell.array for atoms in structures]),
        np.concatenate([[0], np.cumsum([len(atoms) for atoms in structures])]),
        np.ones(len(structures)),
    )


def balanced_weights(crystals: Crystals) -> np.ndarray:
    """Probability (S,) of each structure: its weight, and a number of atoms counts as the square root of how often."""
    counts = np.diff(crystals.first)
    weights = crystals.weights / np.sqrt(np.bincount(counts, crystals.weights)[counts])
    return weights / weights.sum()


def sample_sigma(rng: np.random.Generator, size: int, low: float, high: float) -> np.ndarray:
    """Noise levels (size,) in Å: log-normal about 0.4 Å, where neighbours are decided, within [low, high]."""
    return np.exp(rng.normal(np.log(0.4), 1.1, size)).clip(low, high)


def bounded_strain(rng: np.random.Generator, level: float) -> np.ndarray:
    """A `random_strain` that, at this noise level, neither stretches anything by `LARGEST_STRAIN` nor collapses.

    Of a collapsed cell nothing can be learned.
    """
    while True:
        strain = random_strain(rng)
        largest, shrinkage = level * np.abs(np.linalg.eigvalsh(strain)).max(), -level * np.trace(strain)
        if max(largest, shrinkage) < LARGEST_STRAIN:
            return strain


def add_noise(
    crystals: Crystals,
    which: np.ndarray,
    sigma: np.ndarray,
    sigma_cell: np.ndarray,
    context: np.ndarray,
    reach: float,
    rng: np.random.Generator,
) -> dict[str, torch.Tensor]:
    """A training batch of B structures: cell_0 exp(s S) with a symmetric random S, and fractional_0 cell + sigma xi.

    Parameters
    ----------
    crystals : Crystals
        Clean structures.
    which : ndarray of int, shape (B,)
        The structures to take.
    sigma, sigma_cell : ndarray, shape (B,)
        Noise levels of positions (Å) and cell (0: the cell is as it is).
    context : ndarray of bool, shape (B,)
        Structures of which a random neighbourhood keeps its positions.
    reach : float
        Of the network, Å.
    rng : numpy.random.Generator
        Source of all randomness.

    Returns
    -------
    dict of Tensor
        numbers, sigma, structure (A,), noise (A, 3), sigma_cell (B,), strain (B, 3, 3) in units of the noise levels,
        pairs (2, E), vectors (E, 3) in Å. Noise without context moves no centre.
    """
    parts = [slice(crystals.first[s], crystals.first[s + 1]) for s in which]
    structure = np.repeat(np.arange(len(which)), [part.stop - part.start for part in parts])
    numbers = np.concatenate([crystals.numbers[part] for part in parts])
    strains = np.array([bounded_strain(rng, level) for level in sigma_cell]) * (sigma_cell > 0)[:, None, None]
    cells = np.array([crystals.cells[s] @ expm(c * x) for s, c, x in zip(which, sigma_cell, strains, strict=True)])
    positions, noises, levels = [], [], []
    for part, cell, level, some in zip(parts, cells, sigma, context, strict=True):
        clean = crystals.fractional[part] @ cell
        noise, free = rng.normal(size=clean.shape), np.ones(len(clean), dtype=bool)
        if some:
            order = np.argsort(np.linalg.norm(clean - clean[rng.integers(len(clean))], axis=1))
            free[order[: rng.integers(0, len(clean))]] = False
        noise = (noise - noise.mean(axis=0)) if free.all() else noise * free[:, None]
        positions.append(clean + level * noise)
        noises.append(noise)
        levels.append(level * free)
    pairs, vectors = periodic_pairs(numbers, np.concatenate(positions), cells, structure, reach)
    return {
        "numbers": torch.as_tensor(numbers),
        "sigma": torch.as_tensor(np.concatenate(levels).astype(np.float32)),
        "structure": torch.as_tensor(structure),
        "noise": torch.as_tensor(np.concatenate(noises).astype(np.float32)),
        "sigma_cell": torch.as_tensor(sigma_cell.astype(np.float32)),
        "strain": torch.as_tensor(strains.astype(np.float32)),
        "pairs": torch.as_tensor(pairs),
        "vectors": torch.as_tensor(vectors),
    }


class NoisedCrystals(IterableDataset):
    """Endless training batches of noised crystals.

    Parameters
    ----------
    crystals : Crystals
        Clean structures.
    batch_size : int
        Structures in a batch.
    sigma_range : tuple of float
        Smallest and largest noise level, Å.
    reach : float
        Of the network, Å.
    seed : int
        Seed of this stream.
    """

    def __init__(
        self, crystals: Crystals, batch_size: int, sigma_range: tuple[float, float], reach: float, seed: int
    ) -> None:
        self.crystals, self.batch_size, self.sigma_range = crystals, batch_size, sigma_range
        self.reach, self.seed = reach, seed

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        rng = np.random.default_rng(self.seed)
        cumulative = np.cumsum(balanced_weights(self.crystals))
        while True:
            which = np.searchsorted(cumulative, rng.random(self.batch_size)).clip(max=len(self.crystals) - 1)
            sigma = sample_sigma(rng, self.batch_size, *self.sigma_range)
            # The cell's noise follows the atoms', loosely: other schedules are covered, too.
            sigma_cell = cell_noise(sigma) * np.exp(0.3 * rng.normal(size=self.batch_size))
            context = rng.random(self.batch_size) < CONTEXT_PROBABILITY
            fixed = context | (rng.random(self.batch_size) < FIXED_CELL_PROBABILITY)
            yield add_noise(self.crystals, which, sigma, np.where(fixed, 0.0, sigma_cell), context, self.reach, rng)
