"""L-BFGS for many structures at once."""

from itertools import pairwise

import numpy as np
import pytest
from ase import Atoms
from ase.calculators.emt import EMT
from hypothesis import given, settings
from hypothesis import strategies as st

from ase_gss.batch_lbfgs import relax_together


def springs(places, constants):
    """Forces of springs at places (N, 3) with force constants (N, 3)."""
    return lambda positions, which: -constants * (positions - places)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 5), st.integers(1, 6))
def test_all_come_to_the_minimum_of_a_harmonic_well(seed, n_structures, n_atoms):
    rng = np.random.default_rng(seed)
    places, constants = rng.normal(size=(n_atoms, 3)), rng.uniform(1.0, 60.0, size=(n_atoms, 3))
    starts = places + rng.normal(size=(n_structures, n_atoms, 3))
    ends, evaluations, given_up = relax_together(starts, springs(places, constants), fmax=0.01, max_steps=300)
    assert np.all(np.linalg.norm(constants * (ends - places), axis=2) < 0.01)
    assert np.all(evaluations < 300)
    assert not given_up.any()


def forces_of_copper(positions, which):
    forces = []
    for each in positions:
        atoms = Atoms("Cu5", positions=each, calculator=EMT())
        forces.append(atoms.get_forces())
    return np.array(forces)


def copper(n):
    square = np.array([[0, 0, 0], [2.4, 0, 0], [0, 2.4, 0], [2.4, 2.4, 0], [1.2, 1.2, 1.8]])
    return square + 0.3 * np.random.default_rng(0).normal(size=(n, 5, 3))


def test_clusters_come_to_rest_and_do_not_depend_on_their_company():
    starts = copper(6)
    ends, evaluations, _ = relax_together(starts, forces_of_copper, fmax=0.05, max_steps=200)
    assert np.all(np.linalg.norm(forces_of_copper(ends, None), axis=2) < 0.05)
    for start, end, calls in zip(starts, ends, evaluations, strict=True):
        alone, its_calls, _ = relax_together(start[None], forces_of_copper, fmax=0.05, max_steps=200)
        assert np.array_equal(alone[0], end)
        assert its_calls[0] == calls


def test_no_atom_moves_farther_than_maxstep_and_what_rests_is_not_asked_again():
    seen = []

    def watched(positions, which):
        seen.append((which.copy(), positions.copy()))
        return forces_of_copper(positions, which)

    _, evaluations, _ = relax_together(copper(4), watched, fmax=0.05, max_steps=200, maxstep=0.1)
    assert evaluations.sum() == sum(len(which) for which, _ in seen)
    for (before, old), (after, new) in pairwise(seen):
        assert set(after) <= set(before)
        moved = new - old[np.searchsorted(before, after)]
        assert np.linalg.norm(moved, axis=2).max() < 0.1 + 1e-9


def test_what_is_hopeless_costs_nothing_more():
    asked = np.zeros(3, int)

    def forces(positions, which):
        asked[which] += 1
        return -positions

    ends, evaluations, given_up = relax_together(
        np.ones((3, 2, 3)), forces, fmax=1e-3, max_steps=100, hopeless=lambda positions, which, step: which == step - 1
    )
    assert given_up.all()
    assert evaluations.tolist() == asked.tolist() == [1, 2, 3]
    assert np.isfinite(ends).all()


def test_forces_that_are_no_numbers_leave_a_structure_where_it_is():
    def forces(positions, which):
        return np.where((which == 1)[:, None, None], np.nan, -positions)

    ends, _, _ = relax_together(np.ones((3, 2, 3)), forces, fmax=0.01, max_steps=200)
    assert np.array_equal(ends[1], np.ones((2, 3)))
    assert np.abs(ends[[0, 2]]).max() < 0.01


@pytest.mark.parametrize("max_steps", [0, 3])
def test_it_ends_after_so_many_steps(max_steps):
    _, evaluations, _ = relax_together(np.ones((2, 2, 3)), lambda p, which: -p, fmax=1e-9, max_steps=max_steps)
    assert evaluations.tolist() == [max_steps + 1] * 2
