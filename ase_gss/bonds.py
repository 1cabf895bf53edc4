"""Which atoms are bonded: the bonding graph of a molecule and what follows from it."""

import hashlib

import networkx as nx
import numpy as np
from ase import Atoms
from ase.data import covalent_radii
from scipy.spatial.distance import cdist

from ase_gss.errors import InputError

# Shorter than so many sums of covalent radii is no bond. Of all minima of eight compositions the shortest is 0.77 (a
# triple bond). GFN2-xTB makes 0.64 of some squeezed hydrides of silicon, 600 eV too low, and 0.69 of a phosphorus atom
# within eight others, 175 eV too low.
_LEAST_CONTACT = 0.72
# The same where one of the two is strontium, barium, a transition metal, a lanthanide or an actinide, whose bonds are
# that short: 0.60 in Cr2, 0.67 in the uranyl ion, 0.69 in BaO.
_LEAST_CONTACT_OF_METALS = 0.5
# Rounds of neighbourhood refinement: an atom's environment reaches this many bonds far.
_ROUNDS = 4
# In H2 alone the radii count for so much more: its bond is 1.25 times as long as the sum of them.
_DIHYDROGEN = 1.2
# Two atoms alone are a toy only where they are nearer than this, in units of the least contact: argon with the
# Lennard-Jones potential's own unit of length 0.73. GFN2-xTB makes 0.93 of Ar2, 7 eV too low.
_TOY = 0.85
_METALS = [*range(21, 31), *range(38, 49), *range(56, 81), *range(88, 113)]


def bonding_graph(atoms: Atoms, scale: float = 1.25) -> nx.Graph:
    """Bonding graph of a molecule.

    Parameters
    ----------
    atoms
        A structure of N atoms without periodic boundaries.
    scale
        Two atoms are bonded when they are closer than `scale` times the sum of their covalent radii [1]_, which count
        for a fifth more where there is nothing but H2.

    Returns
    -------
    networkx.Graph
        Nodes 0 ... N-1 carry the atomic number as attribute `z`; edges are bonds, without bond orders.

    References
    ----------
    .. [1] B. Cordero et al., Dalton Trans. 2008, 2832 (the radii in `ase.data`).
    """
    if atoms.pbc.any():
        raise InputError("A bonding graph needs a molecule, but this structure is periodic: set atoms.pbc = False.")
    bonded = _relative_distances(atoms) < scale
    graph = nx.Graph()
    graph.add_nodes_from((k, {"z": int(z)}) for k, z in enumerate(atoms.numbers))
    graph.add_edges_from(np.argwhere(np.triu(bonded, 1)).tolist())
    return graph


def fragments(atoms: Atoms) -> list[list[int]]:
    """Atom indices of each connected fragment, the fragment with the smallest index first."""
    return sorted(sorted(part) for part in nx.connected_components(bonding_graph(atoms)))


def is_connected(atoms: Atoms) -> bool:
    """Whether the atoms form one molecule; no atoms at all do not."""
    return len(fragments(atoms)) == 1


def connected(numbers: np.ndarray, positions: np.ndarray, scale: float | np.ndarray = 1.25) -> np.ndarray:
    """Which of many structures of the same atoms form one molecule: as `is_connected`, in a fraction of its time.

    Parameters
    ----------
    numbers : ndarray, shape (N,)
        Atomic numbers.
    positions : ndarray, shape (S, N, 3)
        Å.
    scale : float or ndarray, shape (S,)
        As for `bonding_graph`.

    Returns
    -------
    ndarray of bool, shape (S,)
    """
    radii = _radii(numbers)
    distances = np.linalg.norm(positions[:, :, None] - positions[:, None], axis=-1)
    near = distances < np.reshape(scale, (-1, 1, 1)) * (radii[:, None] + radii)
    within = near.astype(np.float32)  # in 1, 2, 4, ... bonds
    for _ in range(int(np.ceil(np.log2(max(len(numbers), 2))))):
        within = np.minimum(within @ within, 1.0)
    return within[:, 0].all(axis=1)


def overlapping(atoms: Atoms) -> str | None:
    """Reason why this is no molecule: atoms on one another, where a calculator may answer nonsense; else None.

    Where every atom has such a neighbour the system is a toy with a unit of length of its own, and that is no reason.
    """
    metals = np.isin(atoms.numbers, _METALS)
    least = np.where(metals[:, None] | metals, _LEAST_CONTACT_OF_METALS, _LEAST_CONTACT)
    ratios = _relative_distances(atoms) / least
    np.fill_diagonal(ratios, np.inf)
    nearest = ratios.min(axis=1)
    if nearest.min() >= 1 or nearest.max() < (_TOY if len(atoms) == 2 else 1):
        return None
    i, j = np.unravel_index(np.argmin(ratios), ratios.shape)
    return f"{atoms.symbols[i]} and {atoms.symbols[j]} lie on one another, {atoms.get_distance(i, j):.2f} Å apart"


def _relative_distances(atoms: Atoms) -> np.ndarray:
    """Distances (N, N) in units of the sums of covalent radii."""
    radii = _radii(atoms.numbers)
    return cdist(atoms.positions, atoms.positions) / (radii[:, None] + radii[None])


def _radii(numbers: np.ndarray) -> np.ndarray:
    """Covalent radii (N,) in Å."""
    return covalent_radii[numbers] * (_DIHYDROGEN if list(numbers) == [1, 1] else 1.0)


def environments(graph: nx.Graph) -> list[str]:
    """Label of each atom's bonded surroundings, the same for atoms that a permutation can exchange.

    Labels of different graphs can be compared. Geometry plays no part: the two hands of a stereocentre, or cis and
    trans, have the same labels. The method is the Weisfeiler-Lehman refinement [1]_, which may also give one label to
    atoms that no permutation exchanges.

    References
    ----------
    .. [1] N. Shervashidze et al., J. Mach. Learn. Res. 12, 2539 (2011).
    """
    labels = nx.weisfeiler_lehman_subgraph_hashes(graph, node_attr="z", iterations=_ROUNDS)
    return [labels[node][-1] for node in graph]


def graph_key(graph: nx.Graph) -> str:
    """Hash of a bonding graph that does not depend on the order of the atoms.

    Isomorphic graphs have equal keys. The converse fails for a few pairs (decalin and bicyclopentyl without their
    hydrogens), so equal keys still call for an isomorphism test.
    """
    # The letter in front: ase.db refuses texts that read as numbers, and some hashes do.
    return "g" + hashlib.blake2b(" ".join(sorted(environments(graph))).encode(), digest_size=16).hexdigest()


def isomorphic(first: nx.Graph, second: nx.Graph) -> bool:
    """Whether two bonding graphs are equal up to the order of the atoms."""
    return nx.is_isomorphic(first, second, node_match=lambda a, b: a["z"] == b["z"])
