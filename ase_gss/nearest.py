"""Which of many structures is the one most like a new one? Asked thousands of times, of thousands."""

from math import inf
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from ase_gss.crystal_minima import CrystalComparison, CrystalFingerprint
    from ase_gss.minima import Comparison, Fingerprint

    AnyFingerprint = Fingerprint | CrystalFingerprint
    AnyComparison = Comparison | CrystalComparison

# Parts of a vector whose means are compared first, and room for rounding in what they exclude.
_PARTS = 32
_ROUNDING = 1e-6


class Nearest:
    """Fingerprints, and the search for the one with the smallest distance to another.

    The answer is that of comparing with each. But only those are compared of which the energies, and the means over
    parts of the sorted distances, leave it open that they are the same: by the Cauchy-Schwarz inequality the means
    bound the root mean square difference from below. That is a few operations on arrays, so that ten thousand
    structures of one kind take little longer than a hundred.

    Parameters
    ----------
    comparison : Comparison or CrystalComparison
        Its `distance`, infinite for structures that are not the same, is what counts.
    """

    def __init__(self, comparison: "AnyComparison") -> None:
        self.comparison = comparison
        self._fingerprints: dict[int, AnyFingerprint] = {}
        self._tables: dict[str, _Table] = {}
        self._places: dict[int, int] = {}  # in the tables

    def __len__(self) -> int:
        return len(self._fingerprints)

    def add(self, label: int, fingerprint: "AnyFingerprint") -> None:
        """Add one; its label is a number of its own."""
        self._fingerprints[label] = fingerprint
        if fingerprint.key not in self._tables:
            self._tables[fingerprint.key] = _Table(_reach(self.comparison))
        self._places[label] = self._tables[fingerprint.key].add(label, fingerprint)

    def replace(self, label: int, fingerprint: "AnyFingerprint") -> None:
        """Put another one, of the same key, in its place."""
        self._fingerprints[label] = fingerprint
        self._tables[fingerprint.key].write(self._places[label], fingerprint)

    def find(self, fingerprint: "AnyFingerprint", below: float = inf) -> int | None:
        """Label of the one with the smallest distance, None where all distances are infinite.

        Parameters
        ----------
        fingerprint : Fingerprint or CrystalFingerprint
            What is looked for.
        below : int, optional
            Only those with a smaller label.
        """
        table = self._tables.get(fingerprint.key)
        if table is None:
            return None
        candidates = table.candidates(fingerprint, self.comparison.energy_tolerance, below)
        if not len(candidates):
            return None
        others = [_vector(self._fingerprints[label]) for label in candidates.tolist()]
        difference = np.array(others) - _vector(fingerprint)
        # What a finite distance will be; whether it is finite is dear to know, so the smallest come first.
        expected = np.sqrt(np.einsum("ij,ij->i", difference, difference) / max(difference.shape[1], 1))
        best = inf, -1
        for k in np.argsort(expected, kind="stable"):
            if expected[k] > min(best[0], table.reach) * (1 + _ROUNDING):
                break
            label = int(candidates[k])
            best = min(best, (self.comparison.distance(fingerprint, self._fingerprints[label]), label))
        return None if best[0] == inf else best[1]


class _Table:
    """Energies and means over parts of the vectors of fingerprints that have one key, in arrays that grow."""

    def __init__(self, reach: float) -> None:
        self.reach = reach
        self._n = 0
        self._labels = np.empty(2, int)
        self._energies = np.empty(2)
        self._means: np.ndarray | None = None

    def add(self, label: int, fingerprint: "AnyFingerprint") -> int:
        """Add one; returns its place."""
        means = _means(fingerprint)
        if self._means is None:
            self._means = np.empty((2, len(means)))
        if self._n == len(self._labels):
            self._labels, self._energies, self._means = (
                np.concatenate([array, np.empty_like(array)]) for array in (self._labels, self._energies, self._means)
            )
        place, self._n = self._n, self._n + 1
        self._labels[place] = label
        self.write(place, fingerprint)
        return place

    def write(self, place: int, fingerprint: "AnyFingerprint") -> None:
        """Set what stands in this place."""
        self._energies[place] = fingerprint.ranking_energy
        self._means[place] = _means(fingerprint)

    def candidates(self, fingerprint: "AnyFingerprint", energy_tolerance: float, below: float) -> np.ndarray:
        """Labels of those that may be the same."""
        labels = self._labels[: self._n]
        near = labels < below
        if energy_tolerance < inf:
            difference = np.abs(self._energies[: self._n] - fingerprint.ranking_energy)
            near &= difference < energy_tolerance * (1 + _ROUNDING)
        places = np.flatnonzero(near)
        if self.reach < inf and len(places):
            difference = self._means[places] - _means(fingerprint)
            bound = np.sqrt(np.einsum("ij,ij->i", difference, difference))
            places = places[bound < self.reach * (1 + _ROUNDING)]
        return labels[places]


def _vector(fingerprint: "AnyFingerprint") -> np.ndarray:
    return fingerprint.vector if hasattr(fingerprint, "vector") else fingerprint.neighbours.ravel()


def _reach(comparison: "AnyComparison") -> float:
    """Root mean square difference of the vectors from which on two structures are not the same."""
    if hasattr(comparison, "distance_tolerance"):
        return comparison.distance_tolerance
    # Crystals of the same layers may be stacked in any way.
    return inf if comparison.layers_count_once else comparison.neighbour_tolerance


def _means(fingerprint: "AnyFingerprint") -> np.ndarray:
    """Means over parts, weighted so that their Euclidean distance is at most the root mean square difference."""
    vector = _vector(fingerprint)
    if not len(vector):
        return np.zeros(1)
    starts = np.unique(np.linspace(0, len(vector), _PARTS, endpoint=False).astype(int))
    lengths = np.diff(starts, append=len(vector))
    return np.add.reduceat(vector, starts) / np.sqrt(lengths * len(vector))
