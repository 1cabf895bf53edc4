"""The bonding graph and what follows from it."""

import networkx as nx
import numpy as np
import pytest
from ase import Atoms
from ase.build import molecule
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from ase_gss.bonds import (
    bonding_graph,
    connected,
    environments,
    fragments,
    graph_key,
    is_connected,
    isomorphic,
    overlapping,
)

NAMES = ["CH3CH2OH", "CH3OCH3", "C3H4_D2d", "H2O2", "isobutane", "C6H6", "SiH4", "CH3CONH2", "HCN", "H"]


def test_graph_of_ethanol():
    atoms = molecule("CH3CH2OH")
    graph = bonding_graph(atoms)
    assert [graph.nodes[k]["z"] for k in graph] == atoms.numbers.tolist()
    assert sorted(graph.degree[k] for k in graph if graph.nodes[k]["z"] == 6) == [4, 4]
    assert [graph.degree[k] for k in graph if graph.nodes[k]["z"] == 8] == [2]
    assert graph.number_of_edges() == 8


@pytest.mark.parametrize(("length", "bonded"), [(1.89, True), (1.91, False)])
def test_carbons_are_bonded_within_1_25_covalent_radii(length, bonded):
    assert bonding_graph(Atoms("C2", [[0, 0, 0], [length, 0, 0]])).has_edge(0, 1) is bonded


def test_hydrogen_alone_is_bonded_at_its_own_bond_length():
    stretched = Atoms("H2", positions=[[0, 0, 0], [0, 0, 0.78]])  # 0.775 Å is 1.25 times the sum of the radii
    assert is_connected(stretched)
    assert connected(stretched.numbers, stretched.positions[None]).all()
    assert not is_connected(Atoms("H2", positions=[[0, 0, 0], [0, 0, 1.0]]))
    both = Atoms("H2He", positions=[[0, 0, 0], [0, 0, 0.78], [0, 0, 9]])  # beside other elements it is as for all
    assert not bonding_graph(both).has_edge(0, 1)


def test_scale_is_the_callers():
    atoms = Atoms("C2", [[0, 0, 0], [1.95, 0, 0]])
    assert bonding_graph(atoms, scale=1.3).has_edge(0, 1)


def test_two_fragments_in_order():
    atoms = molecule("H2O") + molecule("H2")
    atoms.positions[3:, 0] += 6
    order = [3, 0, 1, 4, 2]
    assert fragments(atoms) == [[0, 1, 2], [3, 4]]
    assert fragments(atoms[order]) == [[0, 3], [1, 2, 4]]
    assert not is_connected(atoms)
    assert is_connected(atoms[:3])


def test_one_atom_is_a_molecule_and_none_is_not():
    assert is_connected(Atoms("H"))
    assert not is_connected(Atoms())
    assert fragments(Atoms()) == []


def test_periodic_structures_are_refused():
    with pytest.raises(ValueError, match="periodic"):
        bonding_graph(Atoms("C", cell=[3, 3, 3], pbc=True))


def test_equivalent_atoms_share_an_environment():
    atoms = molecule("CH3CH2OH")
    by_element = {}
    for symbol, label in zip(atoms.symbols, environments(bonding_graph(atoms)), strict=True):
        by_element.setdefault(symbol, []).append(label)
    assert len(set(by_element["C"])) == 2
    assert sorted(by_element["H"].count(label) for label in set(by_element["H"])) == [1, 2, 3]


def test_isomers_have_different_keys():
    keys = {graph_key(bonding_graph(molecule(name))) for name in ("CH3CH2OH", "CH3OCH3")}
    keys |= {graph_key(bonding_graph(molecule(name))) for name in ("trans-butane", "isobutane")}
    assert len(keys) == 4


def test_element_matters():
    hydrogen_cyanide = Atoms("HCN", [[-1.07, 0, 0], [0, 0, 0], [1.16, 0, 0]])
    isocyanide = Atoms("HNC", [[-1.0, 0, 0], [0, 0, 0], [1.17, 0, 0]])
    graphs = [bonding_graph(atoms) for atoms in (hydrogen_cyanide, isocyanide)]
    assert graph_key(graphs[0]) != graph_key(graphs[1])
    assert not isomorphic(*graphs)


def test_equal_keys_still_need_the_isomorphism_test():
    # Two triangles and a hexagon: every atom sees the same surroundings.
    triangles, hexagon = nx.disjoint_union(nx.cycle_graph(3), nx.cycle_graph(3)), nx.cycle_graph(6)
    for graph in (triangles, hexagon):
        nx.set_node_attributes(graph, 6, "z")
    assert graph_key(triangles) == graph_key(hexagon)
    assert not isomorphic(triangles, hexagon)


@settings(max_examples=60, deadline=None)
@given(name=st.sampled_from(NAMES), seed=st.integers(0, 2**32 - 1), mirrored=st.booleans())
def test_key_ignores_order_place_orientation_and_hand(name, seed, mirrored):
    rng = np.random.default_rng(seed)
    atoms = molecule(name)
    moved = atoms[rng.permutation(len(atoms))]
    rotation = Rotation.random(rng=seed).as_matrix() * (-1 if mirrored else 1)
    moved.positions = moved.positions @ rotation.T + rng.normal(scale=10, size=3)
    graphs = [bonding_graph(a) for a in (atoms, moved)]
    assert graph_key(graphs[0]) == graph_key(graphs[1])
    assert isomorphic(*graphs)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), n_atoms=st.integers(1, 12))
def test_fragments_partition_the_atoms(seed, n_atoms):
    rng = np.random.default_rng(seed)
    atoms = Atoms(rng.choice([1, 6, 8], n_atoms), rng.uniform(0, 5, (n_atoms, 3)))
    parts = fragments(atoms)
    assert sorted(index for part in parts for index in part) == list(range(n_atoms))
    graph = bonding_graph(atoms)
    home = {index: k for k, part in enumerate(parts) for index in part}
    assert all(home[i] == home[j] for i, j in graph.edges)


@pytest.mark.parametrize(("pair", "length"), [("Cr2", 1.68), ("BaO", 1.94), ("ScO", 1.67), ("UO", 1.76), ("SrO", 1.92)])
def test_metals_may_have_short_bonds_but_not_any(pair, length):
    water = molecule("H2O")
    water.translate([4, 0, 0])
    assert overlapping(Atoms(pair, positions=[[0, 0, 0], [length, 0, 0]]) + water) is None
    assert overlapping(Atoms(pair, positions=[[0, 0, 0], [0.45 * length, 0, 0]]) + water)
    water.set_distance(0, 1, 0.4, fix=0)
    assert "H" in overlapping(Atoms(pair, positions=[[0, 0, 0], [length, 0, 0]]) + water)


def test_what_lies_on_one_another_is_no_molecule():
    squeezed = molecule("H2CO")
    squeezed.set_distance(0, 1, 0.8, fix=1)
    assert overlapping(squeezed).endswith("lie on one another, 0.80 Å apart")
    # Methoxysilane as GFN2-xTB collapses it.
    places = [[-0.25, 0.08, 0.09], [0.14, 0.36, 1.14], [-0.66, -0.21, -0.99], [-0.27, -0.8, 0.82], [-0.23, 0.97, -0.59]]
    places += [[-1.4, -0.04, 0.1], [0.91, 0.21, 0.11], [-0.02, -0.99, -0.15], [-0.48, 1.16, 0.38]]
    assert "Si" in overlapping(Atoms("SiOCH6", positions=places))
    for name in ("C2H2", "N2", "CO", "SiO", "H2", "CH3CH2OH"):
        assert overlapping(molecule(name)) is None
    # What GFN2-xTB makes of a phosphorus atom within eight others, 175 eV too low, has C and P at 1.26 Å.
    assert overlapping(Atoms("PCH", positions=[[0, 0, 0], [1.26, 0, 0], [1.26, 1.1, 0]]))
    # Lennard-Jones in its own units.
    assert overlapping(Atoms("Li3", positions=[[0, 0, 0], [1.12, 0, 0], [2.24, 0, 0]])) is None
    for metal in ("Ni", "Cu", "B"):
        assert overlapping(Atoms(f"{metal}3", positions=[[0, 0, 0], [1.12, 0, 0], [2.24, 0, 0]])) is None
    assert overlapping(Atoms("H")) is None
    # Two atoms each of which has the other so near are no toy: Ar2 as GFN2-xTB collapses it.
    assert "Ar" in overlapping(Atoms("Ar2", positions=[[0, 0, 0], [1.426, 0, 0]]))
