"""Same minimum or another one? The list of distinct minima, their ranking, and how complete the list is."""

from dataclasses import dataclass
from math import inf, isfinite
from typing import TYPE_CHECKING, Literal

import networkx as nx
import numpy as np
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from scipy.sparse.csgraph import shortest_path
from scipy.spatial.distance import cdist

from ase_gss.bonds import bonding_graph, environments, graph_key, isomorphic
from ase_gss.errors import InputError
from ase_gss.nearest import Nearest

if TYPE_CHECKING:
    from ase_gss.crystal_minima import CrystalComparison, CrystalFingerprint

# Relative changes of distances are given as the change of a distance of this length, in Å.
_REFERENCE_LENGTH = 2.0
# Differences per atom of larger molecules count as if they had so many atoms, so that one turned group weighs no less
# in them. The tolerances were measured on smaller ones.
_LARGE = 14


@dataclass(frozen=True)
class Fingerprint:
    """What structures are compared by, whatever their position, orientation and order of atoms.

    `energy` in eV, `key` the hash of the bonding graph, `elements` its atomic numbers, `bonds` its edges, shape
    (bonds, 2), `distances` sorted, shape (N(N-1)/2,), `handedness` the sorted signed volumes of the structure and of
    its mirror image, or None where mirror images are one.
    """

    energy: float
    key: str
    elements: np.ndarray
    bonds: np.ndarray
    distances: np.ndarray
    handedness: tuple[np.ndarray, np.ndarray] | None

    @property
    def ranking_energy(self) -> float:
        """What minima are ranked by: for molecules the energy."""
        return self.energy

    @property
    def graph(self) -> nx.Graph:
        """The bonding graph. Made when it is asked for: thousands of them would fill the memory."""
        graph = nx.Graph()
        graph.add_nodes_from((k, {"z": int(z)}) for k, z in enumerate(self.elements))
        graph.add_edges_from(self.bonds.tolist())
        return graph

    @property
    def vector(self) -> np.ndarray:
        """What `Comparison.distance` is the root mean square difference of."""
        return self.distances


@dataclass(frozen=True)
class Comparison:
    """When two relaxed molecules are one minimum.

    They are one when their bonding graphs are isomorphic, their energies differ by less than `energy_tolerance`, their
    sorted interatomic distances differ by less than `distance_tolerance` (root mean square) and, where mirror images
    are two, they have the same hand. `Comparison.refined()` and `Comparison.searching()` are the tested settings.

    Parameters
    ----------
    energy_tolerance
        In eV.
    distance_tolerance
        In Å.
    sort_distances_by
        "elements": separately for each pair of elements, in Å, the mean taken over the distances. "environments":
        separately for each pair of bonded surroundings and number of bonds between the two atoms; distances compared
        relatively, as if each were 2 Å long, since a soft torsion moves far atoms furthest; and the mean square taken
        per atom, of at most 14, instead of per distance, so that one turned group weighs no less in a larger molecule.
    mirror_images_are_one
        Whether a structure and its mirror image are one minimum. A structure that is its own mirror image always is.
        To tell them apart takes a second for each structure of 60 atoms; one stereocentre among more than 40 atoms is
        no longer seen.
    handedness_tolerance
        Where mirror images are two: by how much the mirror image must fit better, in the root mean square difference
        of signed volumes of unit vectors (between 0 and 1), before two ends count as of opposite hands.
    """

    energy_tolerance: float
    distance_tolerance: float
    sort_distances_by: Literal["elements", "environments"] = "elements"
    mirror_images_are_one: bool = True
    handedness_tolerance: float = 0.05

    @classmethod
    def searching(cls, mirror_images_are_one: bool = True) -> "Comparison":
        """For ends relaxed to fmax 0.05 eV/Å: 0.1 eV and 0.23 Å per atom in distances sorted by environments.

        Such ends of one minimum differ by up to 0.18 eV. Measured with GFN2-xTB on random searches, the ends relaxed to
        0.0005 eV/Å to tell which are one: of 59 minima of C3H6O 3 are lost and 22 listed twice, of 94 of C2H5NO 2 and
        10, of 57 of C2H4O3 2 and 10. About half of those listed twice are ends on a ridge, which tight relaxation
        takes to another molecule or conformer. Of alkanols from propanol to dodecanol ends of one conformer of the
        chain are up to 0.04 Å apart (rattled by 0.08 Å), those with the hydroxyl group turned 0.30 Å and more.
        """
        return cls(0.1, 0.23, "environments", mirror_images_are_one, handedness_tolerance=0.1)

    @classmethod
    def refined(cls, mirror_images_are_one: bool = True) -> "Comparison":
        """For ends relaxed to fmax 0.005 eV/Å or less: 5 meV, 0.05 Å in distances sorted by elements.

        At fmax 0.005 soft torsions are still split: 71 minima of C3H6O, against 59 at 0.0005 eV/Å.
        """
        return cls(0.005, 0.05, "elements", mirror_images_are_one)

    def same(self, a: Atoms, b: Atoms) -> bool:
        """Whether two structures, each with a calculator that has its energy, are one minimum."""
        described = [self.describe(atoms, atoms.get_potential_energy()) for atoms in (a, b)]
        return self.distance(*described) < inf

    def describe(self, atoms: Atoms, energy: float) -> Fingerprint:
        """Fingerprint of a molecule with this energy in eV."""
        graph = bonding_graph(atoms)
        labels = environments(graph)
        return Fingerprint(
            energy=float(energy),
            key=graph_key(graph),
            elements=atoms.numbers.astype(np.int16),
            bonds=np.array(graph.edges, dtype=np.int32).reshape(-1, 2),
            distances=self._sorted_distances(atoms, graph, labels),
            handedness=None if self.mirror_images_are_one else _handedness(atoms.positions, graph, labels),
        )

    def distance(self, a: Fingerprint, b: Fingerprint) -> float:
        """Root mean square difference of the distances in Å (see `sort_distances_by`), infinite for two minima."""
        if a.key != b.key or not abs(a.energy - b.energy) < self.energy_tolerance:
            return inf
        difference = _rms(a.distances - b.distances)
        if not difference < self.distance_tolerance or not isomorphic(a.graph, b.graph):
            return inf
        if a.handedness is not None and b.handedness is not None:
            plain, mirror_image = b.handedness
            if _rms(a.handedness[0] - mirror_image) + self.handedness_tolerance < _rms(a.handedness[0] - plain):
                return inf
        return difference

    def _sorted_distances(self, atoms: Atoms, graph: nx.Graph, labels: list[str]) -> np.ndarray:
        i, j = np.triu_indices(len(atoms), 1)
        distances = cdist(atoms.positions, atoms.positions)[i, j]
        if self.sort_distances_by == "elements":
            kind, bonds = atoms.numbers, np.zeros(len(i), int)
        else:
            kind = np.unique(labels, return_inverse=True)[1]
            bonded = np.zeros((len(atoms), len(atoms)))
            bonded[*np.array(graph.edges, int).reshape(-1, 2).T] = 1.0  # four times as fast as networkx
            bonds = shortest_path(bonded, directed=False, unweighted=True)[i, j]
            # The floor keeps the logarithm finite for atoms on top of each other.
            distances = _REFERENCE_LENGTH * np.log(np.maximum(distances, 0.1))
            distances *= np.sqrt((len(atoms) - 1) / 2)  # distances per atom, for the mean
            distances *= np.sqrt(max(len(atoms), _LARGE) / _LARGE)
        order = np.lexsort((distances, bonds, np.maximum(kind[i], kind[j]), np.minimum(kind[i], kind[j])))
        return distances[order]


@dataclass
class _Minimum:
    atoms: Atoms
    fingerprint: "Fingerprint | CrystalFingerprint"
    trial: int
    first_trial: int
    first_call: int
    hits: int


class MinimaList:
    """Distinct minima in the order in which they were met, each with its representative of lowest energy.

    Parameters
    ----------
    comparison
        When two ends are one minimum. What it describes them by has an `energy`, a `ranking_energy` and a `key`.
    """

    def __init__(self, comparison: "Comparison | CrystalComparison | None" = None) -> None:
        self.comparison = comparison or Comparison.searching()
        self._minima: list[_Minimum] = []
        self._nearest = Nearest(self.comparison)

    def __len__(self) -> int:
        return len(self._minima)

    @property
    def hits(self) -> list[int]:
        """Of each minimum, the trials that ended in it or were recognised as it, but for those that came back to it."""
        return [minimum.hits for minimum in self._minima]

    @property
    def energies(self) -> list[float]:
        """Lowest energy met of each minimum, as it is ranked by: in eV for molecules, in eV/atom for crystals."""
        return [minimum.fingerprint.ranking_energy for minimum in self._minima]

    def add(
        self, atoms: Atoms, energy: float, trial: int, calls: int, hits: int = 1, first_trial: int | None = None
    ) -> tuple[int, bool]:
        """Record the end of one trial.

        Parameters
        ----------
        atoms
            Relaxed molecule or crystal; copied. Forces and stress that its calculator holds for exactly these
            positions are kept.
        energy
            Its potential energy in eV.
        trial
            Number of the trial.
        calls
            Force calls of the whole search up to and including this trial.
        hits
            Number of trials that this end stands for: more than one where lists are merged.
        first_trial
            Trial that first met it, where lists are merged.

        Returns
        -------
        index, is_new
            Index of the minimum, in order of discovery, and whether it was met for the first time. Of several minima
            within the tolerances the one with the most similar distances is taken.
        """
        if not isfinite(energy):
            raise InputError(f"A minimum needs a finite energy, but that of trial {trial} is {energy}.")
        new = self.comparison.describe(atoms, energy)
        index = self._nearest.find(new)
        if index is None:
            index = len(self._minima)
            first_trial = trial if first_trial is None else first_trial
            self._minima.append(_Minimum(_frozen(atoms, energy), new, trial, first_trial, calls, hits))
            self._nearest.add(index, new)
            return index, True
        minimum = self._minima[index]
        minimum.hits += hits
        if new.ranking_energy < minimum.fingerprint.ranking_energy:
            self._nearest.replace(index, new)
            minimum.atoms, minimum.fingerprint, minimum.trial = _frozen(atoms, energy), new, trial
        return index, False

    def described(self, index: int) -> "Fingerprint | CrystalFingerprint":
        """What the representative of a minimum is compared by."""
        return self._minima[index].fingerprint

    def hit(self, index: int) -> None:
        """Count one more hit of a minimum."""
        self._minima[index].hits += 1

    def ranked(self) -> list[Atoms]:
        """Return copies of all representatives, lowest energy first.

        Each has its energy and, where known, its forces and stress, and `info` has `hits`, `first_trial`, `first_call`
        (force calls of the whole search when the minimum was first met), `trial` (of the representative) and
        `ranking_energy` (as in `energies`).
        """
        result = []
        for minimum in sorted(self._minima, key=lambda minimum: minimum.fingerprint.ranking_energy):
            atoms = _frozen(minimum.atoms, minimum.fingerprint.energy)
            atoms.info.update({name: getattr(minimum, name) for name in ("hits", "first_trial", "first_call", "trial")})
            atoms.info["ranking_energy"] = minimum.fingerprint.ranking_energy
            result.append(atoms)
        return result


def _handedness(positions: np.ndarray, graph: nx.Graph, labels: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """Signed volumes of a structure and of its mirror image, each sorted by kind, so that they can be compared.

    For each bond i-j and each two further atoms k, l: the triple product of the vectors i-j, j-k and k-l divided by
    their lengths, which changes sign under reflection. Its kind is the environments of the four atoms.

    Parameters
    ----------
    positions
        Shape (N, 3), in Å.
    """
    kind = np.unique(labels, return_inverse=True)[1]
    bonds = [pair for i, j in graph.edges for pair in ((i, j), (j, i))]
    fours = [(i, j, k, m) for i, j in bonds for k in graph for m in graph if len({i, j, k, m}) == 4]
    indices = np.array(fours, dtype=int).reshape(-1, 4)
    vectors = np.diff(positions[indices], axis=1)
    # The floor keeps atoms on top of each other harmless.
    vectors /= np.maximum(np.linalg.norm(vectors, axis=2, keepdims=True), 0.1)
    volumes = np.linalg.det(vectors)
    kinds = kind[indices].T
    return volumes[np.lexsort((volumes, *kinds))], -volumes[np.lexsort((-volumes, *kinds))]


def _rms(values: np.ndarray) -> float:
    return float(np.sqrt(np.mean(values**2))) if len(values) else 0.0


def _frozen(atoms: Atoms, energy: float) -> Atoms:
    """Copy with the energy, the forces and the stress, without the calculator that computed them."""
    copy = atoms.copy()
    known = {}
    # Results of other positions do not count, and nothing is computed here.
    if atoms.calc is not None and not atoms.calc.check_state(atoms):
        known = {name: atoms.calc.results[name] for name in ("forces", "stress") if name in atoms.calc.results}
    copy.calc = SinglePointCalculator(copy, energy=float(energy), **known)
    return copy
