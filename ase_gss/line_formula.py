"""A molecule in one line, for tables: groups along the skeleton, without bond orders."""

from itertools import count

import networkx as nx
from ase import Atoms
from ase.data import chemical_symbols
from ase.formula import Formula

from ase_gss.bonds import bonding_graph, environments


def line_formula(atoms: Atoms) -> str:
    """The skeleton of a molecule, for instance ``CH3-C(O)-CH3``.

    Hydrogens stand with the atom that holds them, side chains in parentheses, and two atoms with the same number
    (``C~1``) close a ring. Several molecules are joined by " + ". Of clusters, whose atoms have more than three
    neighbours on the mean, it is the formula and the number of contacts. It is for reading: it has no bond orders, and
    no promise that two different molecules never share it.
    """
    graph = bonding_graph(atoms)
    if 2 * graph.number_of_edges() > 3 * len(graph):  # a cluster of metal atoms: no skeleton
        name = Formula.from_list(atoms.get_chemical_symbols()).format("hill")
        return f"{name} ({graph.number_of_edges()} contacts)"
    labels = dict(zip(graph, environments(graph), strict=True))
    parts = (_component(graph.subgraph(part), labels) for part in nx.connected_components(graph))
    return " + ".join(sorted(parts, key=lambda text: (-len(text), text)))


def _component(graph: nx.Graph, labels: dict[int, str]) -> str:
    heavy = graph.subgraph(node for node in graph if graph.nodes[node]["z"] > 1)
    if len(heavy) == 1:
        return Formula.from_list([chemical_symbols[graph.nodes[node]["z"]] for node in graph]).format("hill")
    if not heavy or not nx.is_connected(heavy):  # hydrogen alone, or holding two parts together
        heavy = graph
    held = {node: sum(other not in heavy for other in graph[node]) for node in heavy}

    def size(node: int, parent: int) -> tuple[int, int, str]:
        atoms = sum(1 for _ in nx.dfs_preorder_nodes(nx.restricted_view(tree, [parent], []), node))
        return atoms, -graph.nodes[node]["z"], labels[node]

    start = min(heavy, key=lambda node: (heavy.degree(node), -held[node], heavy.nodes[node]["z"], labels[node]))
    tree = nx.Graph()
    tree.add_nodes_from(heavy)
    tree.add_edges_from(nx.dfs_edges(heavy, start, sort_neighbors=lambda nodes: sorted(nodes, key=labels.get)))
    rings: dict[int, str] = dict.fromkeys(heavy, "")
    for number, (a, b) in zip(count(1), (edge for edge in heavy.edges if not tree.has_edge(*edge)), strict=False):
        rings[a] += f"~{number}"
        rings[b] += f"~{number}"

    def text(node: int, parent: int) -> str:
        hydrogens = "" if not held[node] else "H" if held[node] == 1 else f"H{held[node]}"
        branches = sorted((n for n in tree[node] if n != parent), key=lambda n: size(n, node))
        inner = "".join(f"({text(branch, node)})" for branch in branches[:-1])
        tail = f"-{text(branches[-1], node)}" if branches else ""
        return f"{chemical_symbols[graph.nodes[node]['z']]}{hydrogens}{rings[node]}{inner}{tail}"

    return text(start, -1)
