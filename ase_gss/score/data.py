"""Training data: clean structures as flat arrays, and the noise put on them."""

import csv
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from ase import Atoms
from ase.data import atomic_numbers
from ase.io import iread
from torch.utils.data import IterableDataset

from ase_gss.composition import parse_formula
from ase_gss.errors import InputError

#: Probability that part of a training structure is given as context without noise.
CONTEXT_PROBABILITY = 0.1


@dataclass
class Structures:
    """Many structures, one after the other.

    Attributes
    ----------
    numbers : ndarray, shape (A,)
        Atomic numbers.
    positions : ndarray, shape (A, 3)
        Å, each structure centred.
    first : ndarray, shape (S + 1,)
        Structure s has the atoms first[s] to first[s + 1] - 1.
    """

    numbers: np.ndarray
    positions: np.ndarray
    first: np.ndarray

    def __len__(self) -> int:
        return len(self.first) - 1

    @classmethod
    def from_arrays(cls, structures: Iterable[tuple[np.ndarray, np.ndarray]]) -> "Structures":
        """Join pairs of atomic numbers (N,) and positions (N, 3)."""
        numbers, positions = zip(*structures, strict=True)
        centred = [p - p.mean(axis=0) for p in positions]
        first = np.concatenate([[0], np.cumsum([len(n) for n in numbers])])
        return cls(np.concatenate(numbers).astype(np.int64), np.concatenate(centred).astype(np.float32), first)

    def select(self, which: np.ndarray) -> "Structures":
        """The structures with these indices."""
        parts = [slice(self.first[s], self.first[s + 1]) for s in which]
        return Structures.from_arrays((self.numbers[part], self.positions[part]) for part in parts)


def formula_key(numbers: np.ndarray) -> tuple[int, ...]:
    """The composition as a sorted tuple of atomic numbers."""
    return tuple(sorted(int(z) for z in numbers))


def read_qm9pack() -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Atomic numbers and positions (Å) of the molecules in the CSV files of the package `qm9pack`."""
    spec = find_spec("qm9pack")
    if spec is None:
        raise InputError("The package qm9pack is not installed: pip install 'ase-gss[train]' brings it.")
    csv.field_size_limit(10**7)
    for path in sorted(Path(spec.submodule_search_locations[0]).glob("data/qm9_part*.csv")):
        with path.open(newline="") as file:
            for row in csv.DictReader(file):
                symbols = row["Elements"].strip("[]").replace("'", "").split(",")
                # The numbers are written as Mathematica does: "0." and "1.5*^-6".
                values = row["XYZ_Ang"].replace("[", "").replace("]", "").replace("*^", "e").split(",")
                positions = np.array(values, dtype=float).reshape(-1, 3)
                yield np.array([atomic_numbers[s.strip()] for s in symbols]), positions


def read_structures(source: str, hold_out: Iterable[str] = ()) -> Structures:
    """Read training structures, leaving out every one with a held-out formula.

    Parameters
    ----------
    source : str
        "qm9pack", or a file that ASE reads (extxyz, traj, db, ...).
    hold_out : iterable of str
        Formulas, e.g. "C3H6O".
    """
    held_out = {formula_key(parse_formula(formula)) for formula in hold_out}
    if source == "qm9pack":
        structures: Iterable = read_qm9pack()
    else:
        structures = ((atoms.numbers, atoms.positions) for atoms in map(_molecule, iread(source, ":")))
    try:
        kept = [(n, p) for n, p in structures if len(n) > 1 and formula_key(n) not in held_out]
    except InputError:
        raise
    except Exception as error:  # every format of ASE has its own ways to fail
        raise InputError(f"{source} cannot be read as structures: {type(error).__name__}: {error}.") from error
    if not kept:
        but = " but those that are held out" if held_out else ""
        raise InputError(f"{source} has no structure of two or more atoms to train on{but}.")
    return Structures.from_arrays(kept)


def _molecule(atoms: Atoms) -> Atoms:
    """These atoms, as long as they are not periodic."""
    if atoms.pbc.any():
        raise InputError("The structures are periodic: add --crystal, or set atoms.pbc = False in the file.")
    return atoms


def balanced_weights(structures: Structures) -> np.ndarray:
    """Probability (S,) of each structure: a number of heavy atoms counts as the square root of how often it occurs.

    Data sets of molecules grow steeply with size; without this the small ones would hardly be seen.
    """
    heavy = np.add.reduceat((structures.numbers > 1).astype(int), structures.first[:-1])
    weights = 1 / np.sqrt(np.bincount(heavy)[heavy])
    return weights / weights.sum()


def sample_sigma(rng: np.random.Generator, size: int, low: float, high: float) -> np.ndarray:
    """Noise levels (size,) in Å: log-normal about 0.5 Å, where bonds are decided, within [low, high]."""
    return np.exp(rng.normal(np.log(0.5), 1.4, size)).clip(low, high)


def add_noise(
    structures: Structures, which: np.ndarray, sigma: np.ndarray, rng: np.random.Generator, context: float
) -> dict[str, torch.Tensor]:
    """A training batch.

    Parameters
    ----------
    structures : Structures
        Clean structures.
    which, sigma : ndarray, shape (B,)
        The structures to take and their noise levels in Å.
    rng : numpy.random.Generator
        Source of all randomness.
    context : float
        Probability that a structure keeps a random neighbourhood without noise.

    Returns
    -------
    dict of Tensor
        numbers, sigma, structure (A,); clean and noised positions (A, 3) in Å. The noise of a structure without
        context moves no centre of mass.
    """
    numbers, clean, noised, levels, owner = [], [], [], [], []
    for b, (s, level) in enumerate(zip(which, sigma, strict=True)):
        part = slice(structures.first[s], structures.first[s + 1])
        positions = structures.positions[part]
        free = np.ones(len(positions), dtype=bool)
        if rng.random() < context:
            order = np.argsort(np.linalg.norm(positions - positions[rng.integers(len(positions))], axis=1))
            free[order[: rng.integers(1, len(positions))]] = False
        noise = rng.normal(size=positions.shape) * free[:, None]
        if free.all():
            noise -= noise.mean(axis=0)
        numbers.append(structures.numbers[part])
        clean.append(positions)
        noised.append(positions + level * noise)
        levels.append(level * free)
        owner.append(np.full(len(positions), b))
    return {
        "numbers": torch.as_tensor(np.concatenate(numbers)),
        "clean": torch.as_tensor(np.concatenate(clean)),
        "noised": torch.as_tensor(np.concatenate(noised).astype(np.float32)),
        "sigma": torch.as_tensor(np.concatenate(levels).astype(np.float32)),
        "structure": torch.as_tensor(np.concatenate(owner)),
    }


class NoisedBatches(IterableDataset):
    """Endless training batches of noised structures.

    Parameters
    ----------
    structures : Structures
        Clean structures.
    batch_size : int
        Structures in a batch.
    sigma_range : tuple of float
        Smallest and largest noise level, Å.
    seed : int
        Seed of this stream.
    """

    def __init__(self, structures: Structures, batch_size: int, sigma_range: tuple[float, float], seed: int) -> None:
        self.structures, self.batch_size, self.sigma_range, self.seed = structures, batch_size, sigma_range, seed

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        rng = np.random.default_rng(self.seed)
        cumulative = np.cumsum(balanced_weights(self.structures))
        while True:
            which = np.searchsorted(cumulative, rng.random(self.batch_size)).clip(max=len(self.structures) - 1)
            sigma = sample_sigma(rng, self.batch_size, *self.sigma_range)
            yield add_noise(self.structures, which, sigma, rng, CONTEXT_PROBABILITY)
