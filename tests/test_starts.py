"""Compositions and random starts."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ase_gss import InputError
from ase_gss.composition import formula_of, parse_formula, spin_multiplicity
from ase_gss.starts import minimum_separations, random_molecule, sphere_radius


@pytest.mark.parametrize(("text", "formula"), [("C3H6O", "C3H6O"), ("CH3COCH3", "C3H6O"), ("TiO2", "O2Ti"), ("H", "H")])
def test_formulas(text, formula):
    assert formula_of(parse_formula(text)) == formula


@pytest.mark.parametrize("text", ["", "C3H6O)", "Xx", "c6h6", "3", "C-1", "C3 H6 O?", "*"])
def test_what_is_no_formula_is_refused_in_one_sentence(text):
    with pytest.raises(InputError) as error:
        parse_formula(text)
    assert len(str(error.value).splitlines()) == 1


def test_multiplicity():
    assert spin_multiplicity(parse_formula("CH4"), 0, None) == 1
    assert spin_multiplicity(parse_formula("CH3"), 0, None) == 2
    assert spin_multiplicity(parse_formula("O2"), 0, 3) == 3
    for formula, charge, multiplicity in (("CH4", 0, 2), ("CH4", 1, 1), ("H", 0, 4), ("H", 2, None)):
        with pytest.raises(InputError):
            spin_multiplicity(parse_formula(formula), charge, multiplicity)


@settings(max_examples=30, deadline=None)
@given(st.sampled_from(["C3H6O", "C2H6OS", "SiCl4", "Au4", "H2", "C8H18"]), st.integers(0, 10**6))
def test_starts_keep_their_distances_and_are_random(formula, seed):
    numbers = parse_formula(formula)
    atoms = random_molecule(numbers, np.random.default_rng(seed))
    distances = atoms.get_all_distances() + 1e3 * np.eye(len(atoms))
    assert np.all(distances >= minimum_separations(numbers) - 1e-9)
    assert not atoms.pbc.any()
    np.testing.assert_array_equal(atoms.numbers, numbers)
    np.testing.assert_array_equal(atoms.positions, random_molecule(numbers, np.random.default_rng(seed)).positions)
    assert not np.allclose(atoms.positions, random_molecule(numbers, np.random.default_rng(seed + 1)).positions)


def test_the_sphere_grows_with_the_molecule_and_when_it_is_too_small():
    assert sphere_radius(parse_formula("C3H6O")) == pytest.approx(2.2, abs=0.05)
    assert sphere_radius(parse_formula("C8H18")) > sphere_radius(parse_formula("C3H6O"))
    crowded = random_molecule(parse_formula("C8H18"), np.random.default_rng(0), radius=0.5)
    assert np.linalg.norm(crowded.positions, axis=1).max() > 0.6
