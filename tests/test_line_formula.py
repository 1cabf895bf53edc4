"""Molecules in one line."""

import numpy as np
import pytest
from ase import Atoms
from ase.build import molecule
from hypothesis import given, settings
from hypothesis import strategies as st

from ase_gss.line_formula import line_formula


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("CH3COCH3", "CH3-C(O)-CH3"),
        ("CH3CHO", "CH3-CH-O"),
        ("CH3CH2OH", "CH3-CH2-OH"),
        ("isobutane", "CH3-CH(CH3)-CH3"),
        ("C4H4O", "CH~1-CH-CH-O-CH~1"),
        ("H2O", "H2O"),
        ("H2", "H-H"),
    ],
)
def test_lines(name, line):
    assert line_formula(molecule(name)) == line


def test_a_cluster_is_its_formula():
    cluster = Atoms(
        "Cu5",
        positions=2.3 * np.array([[1, 0, 0], [-0.5, 0.87, 0], [-0.5, -0.87, 0], [0, 0, 1.3], [0, 0, -1.3]]) / 1.74,
    )
    assert line_formula(cluster) == "Cu5 (9 contacts)"


def test_two_molecules():
    atoms = molecule("H2O") + Atoms("H2", positions=[[9, 0, 0], [9, 0, 0.74]])
    assert line_formula(atoms) == "H-H + H2O"


@settings(max_examples=25, deadline=None)
@given(st.sampled_from(["CH3CONH2", "C6H6", "bicyclobutane", "isobutane", "CH3CH2OCH3"]), st.integers(0, 10**6))
def test_the_order_of_atoms_does_not_matter(name, seed):
    atoms = molecule(name)
    order = np.random.default_rng(seed).permutation(len(atoms))
    assert sorted(line_formula(atoms[order])) == sorted(line_formula(atoms))
