"""Structures of one molecule that force calls have been spent on, with their forces: what forces are learned from."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np


@dataclass(frozen=True)
class Frames:
    """Structures with their forces, in single precision: they are kept for every trial of a search that learns.

    Attributes
    ----------
    positions : ndarray, shape (M, N, 3)
        Å.
    forces : ndarray, shape (M, N, 3)
        eV/Å; as the calculator gives them.
    """

    positions: np.ndarray
    forces: np.ndarray

    @classmethod
    def of(cls, visited: Sequence[tuple[np.ndarray, np.ndarray]]) -> Self | None:
        """From pairs of positions and forces, (N, 3) each; None where there are none."""
        if not visited:
            return None
        positions, forces = (np.array(values, dtype=np.float32) for values in zip(*visited, strict=True))
        return cls(positions, forces)

    @classmethod
    def joined(cls, parts: Iterable[Self]) -> Self | None:
        """All frames of several in their order; None where there are none."""
        parts = list(parts)
        if not parts:
            return None
        return cls(np.concatenate([each.positions for each in parts]), np.concatenate([each.forces for each in parts]))

    def __len__(self) -> int:
        return len(self.positions)

    def as_data(self) -> dict[str, Any]:
        """As it stands in a row of ase.db."""
        return {"visited_positions": self.positions, "visited_forces": self.forces}

    @classmethod
    def of_data(cls, data: dict[str, Any]) -> Self | None:
        """From the data of a row; None where there are none."""
        if "visited_positions" not in data:
            return None
        return cls(*(np.asarray(data[f"visited_{name}"], dtype=np.float32) for name in ("positions", "forces")))
