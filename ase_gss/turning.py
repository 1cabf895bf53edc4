"""A part of a known molecule, turned about one of its bonds: another conformer to relax, for no call of anything."""

import networkx as nx
import numpy as np
from ase import Atoms
from scipy.spatial.transform import Rotation

from ase_gss.bonds import bonding_graph, overlapping

#: rad: what is turned leans by so much, too, about any axis (root mean square).
LEANING = 0.3
#: Turns that are tried until no atoms lie on one another.
_TRIES = 20


def turned(atoms: Atoms, rng: np.random.Generator) -> Atoms:
    """A copy, what lies behind one of its bonds turned about this bond by any angle, and a little about any axis.

    Only bonds that are in no ring, with two atoms or more on either side, are turned about; a molecule without any
    comes back as it is.

    Parameters
    ----------
    atoms : Atoms
        A molecule.
    rng : numpy.random.Generator
        Source of all randomness.
    """
    new = Atoms(atoms.numbers, positions=atoms.positions)
    bonds = turnable_bonds(bonding_graph(atoms))
    for _ in range(_TRIES if bonds else 0):
        here, there, behind = bonds[rng.integers(len(bonds))]
        axis = atoms.positions[there] - atoms.positions[here]
        turn = Rotation.from_rotvec(rng.uniform(0, 2 * np.pi) * axis / np.linalg.norm(axis))
        leaning = Rotation.from_rotvec(rng.normal(0, LEANING / np.sqrt(3), 3))
        arms = atoms.positions[behind] - atoms.positions[there]
        new.positions[:] = atoms.positions
        new.positions[behind] = atoms.positions[there] + (leaning * turn).apply(arms)
        if not overlapping(new):
            return new
    return Atoms(atoms.numbers, positions=atoms.positions)


def turnable_bonds(graph: nx.Graph) -> list[tuple[int, int, list[int]]]:
    """The bonds to turn about, each with the atom that stays, the one that is turned, and all that turn with it."""
    bonds = []
    for bond in nx.bridges(graph):
        rest = graph.copy()
        rest.remove_edge(*bond)
        for here, there in (bond, bond[::-1]):
            behind = sorted(nx.node_connected_component(rest, there))
            if 2 <= len(behind) <= len(nx.node_connected_component(graph, there)) - 2:
                bonds.append((here, there, behind))
    return bonds
