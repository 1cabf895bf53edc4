"""Training data of forces: structures of many compositions, with the forces that a calculator has given them."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from ase.io import iread
from torch.utils.data import IterableDataset

from ase_gss.composition import parse_formula
from ase_gss.errors import InputError
from ase_gss.score.data import Structures, formula_key

#: eV/Å; structures with larger forces, where atoms are on one another, are not learned.
LARGEST_FORCE = 25.0
#: eV/Å; validation errors are told apart by the largest force of a structure, up to these.
FORCE_BINS = (0.5, 2.0, 8.0, LARGEST_FORCE)


@dataclass
class ForceData:
    """Structures with forces.

    Attributes
    ----------
    structures : Structures
        Numbers and positions.
    forces : ndarray, shape (A, 3)
        eV/Å.
    """

    structures: Structures
    forces: np.ndarray

    def __len__(self) -> int:
        return len(self.structures)

    @property
    def numbers(self) -> np.ndarray:
        """Atomic numbers (A,)."""
        return self.structures.numbers

    @classmethod
    def from_arrays(cls, parts: Iterable[tuple[np.ndarray, np.ndarray, np.ndarray]]) -> "ForceData":
        """Join triples of atomic numbers (N,), positions (N, 3) and forces (N, 3)."""
        numbers, positions, forces = zip(*parts, strict=True)
        structures = Structures.from_arrays(zip(numbers, positions, strict=True))
        return cls(structures, np.concatenate(forces).astype(np.float32))

    def select(self, which: np.ndarray) -> "ForceData":
        """The structures with these indices."""
        first = self.structures.first
        parts = [self.forces[first[s] : first[s + 1]] for s in which]
        return ForceData(self.structures.select(which), np.concatenate(parts))

    def split(self, n: int, rng: np.random.Generator) -> tuple["ForceData", "ForceData"]:
        """Training, and some n structures for validation, which have no composition in common.

        Compositions are drawn until there are n; those that would take more than half of all, or the last of an
        element, are left for training.
        """
        keys: dict[tuple[int, ...], list[int]] = {}
        for s, (low, high) in enumerate(zip(self.structures.first[:-1], self.structures.first[1:], strict=True)):
            keys.setdefault(formula_key(self.structures.numbers[low:high]), []).append(s)
        if len(keys) < 2:
            raise InputError(
                "Forces are learned from structures of two compositions or more, of which one is to judge."
            )
        groups = list(keys.values())
        validation: list[int] = []
        taken: set[int] = set()
        for k in rng.permutation(len(groups)):
            if len(validation) >= n or len(validation) + len(groups[k]) > len(self) // 2:
                continue
            others = {z for m, key in enumerate(keys) if m != k and m not in taken for z in key}
            if others.issuperset(list(keys)[k]):
                validation += groups[k]
                taken.add(k)
        validation = validation or min(groups, key=len)
        training = np.setdiff1d(np.arange(len(self)), validation)
        return self.select(training), self.select(np.sort(validation))

    def batch(self, which: np.ndarray) -> dict[str, torch.Tensor]:
        """These structures as tensors: numbers (A,), positions and forces (A, 3), structure (A,)."""
        first = self.structures.first
        counts = first[which + 1] - first[which]
        starts = np.repeat(first[which] - np.cumsum(counts) + counts, counts)
        atoms = starts + np.arange(counts.sum())
        return {
            "numbers": torch.as_tensor(self.structures.numbers[atoms]),
            "positions": torch.as_tensor(self.structures.positions[atoms]),
            "forces": torch.as_tensor(self.forces[atoms]),
            "structure": torch.as_tensor(np.repeat(np.arange(len(which)), counts)),
        }

    def largest(self) -> np.ndarray:
        """Largest component (S,) of the forces of each structure, eV/Å."""
        return np.maximum.reduceat(np.abs(self.forces).max(axis=1), self.structures.first[:-1])


def read_forces(source: str, hold_out: Iterable[str] = ()) -> ForceData:
    """Structures with forces from a file that ASE reads, without held-out formulas and atoms on one another."""
    held_out = {formula_key(parse_formula(formula)) for formula in hold_out}
    kept, left_out = [], 0
    if source == "qm9pack":
        raise InputError("qm9pack has no forces: give a file of structures with forces.")
    try:
        for atoms in iread(source, ":"):
            if atoms.pbc.any():
                raise InputError(f"{source} has a periodic structure: forces are learned from molecules.")
            if atoms.calc is None or "forces" not in atoms.calc.results:
                raise InputError(f"{source} has a structure without forces: they are what is to be learned.")
            forces = atoms.get_forces(apply_constraint=False)
            if len(atoms) > 1 and np.abs(forces).max() <= LARGEST_FORCE and formula_key(atoms.numbers) not in held_out:
                kept.append((atoms.numbers, atoms.positions, forces))
            else:
                left_out += 1
    except InputError:
        raise
    except Exception as error:  # every format of ASE has its own ways to fail
        raise InputError(f"{source} cannot be read as structures: {type(error).__name__}: {error}.") from error
    if not kept:
        raise InputError(
            f"Of the {left_out} structures in {source} none is left: they are held out, lone atoms, or have forces "
            f"above {LARGEST_FORCE:g} eV/Å."
        )
    return ForceData.from_arrays(kept)


class ForceBatches(IterableDataset):
    """Endless training batches.

    Parameters
    ----------
    data : ForceData
        Structures.
    batch_size : int
        Structures in a batch.
    seed : int
        Seed of this stream.
    """

    def __init__(self, data: ForceData, batch_size: int, seed: int) -> None:
        self.data, self.batch_size, self.seed = data, batch_size, seed

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        rng = np.random.default_rng(self.seed)
        while True:
            yield self.data.batch(rng.integers(len(self.data), size=self.batch_size))


def force_validation_batches(data: ForceData) -> list[dict[str, torch.Tensor]]:
    """All structures in batches, those of each of `FORCE_BINS` by themselves: "bin" is its upper end."""
    bins = np.searchsorted(FORCE_BINS, data.largest())
    batches = []
    for k, highest in enumerate(FORCE_BINS):
        members = np.flatnonzero(bins == k)
        for part in np.array_split(members, -(-len(members) // 64)) if len(members) else []:
            batches.append(data.batch(part) | {"bin": torch.tensor(highest)})
    return batches
