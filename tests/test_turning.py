"""Parts of molecules, turned about a bond."""

import numpy as np
import pytest
from ase.build import molecule
from hypothesis import given, settings
from hypothesis import strategies as st

from ase_gss import GenerativeRSS, load_forces
from ase_gss.bonds import bonding_graph, graph_key, overlapping
from ase_gss.found import Found
from ase_gss.minima import Comparison
from ase_gss.trial import Ended
from ase_gss.turning import turned

NAMES = ("CH3CH2OH", "CH3CONH2", "trans-butane", "CH3CH2OCH3", "H2O2", "CH3COCl")


@given(st.sampled_from(NAMES), st.integers(0, 2**32 - 1))
@settings(deadline=None, max_examples=60)
def test_bonds_keep_their_lengths_and_nothing_lies_on_another(name, seed):
    atoms = molecule(name)
    before = atoms.positions.copy()
    new = turned(atoms, np.random.default_rng(seed))
    for i, j in bonding_graph(atoms).edges:
        assert new.get_distance(i, j) == pytest.approx(atoms.get_distance(i, j), abs=1e-9)
    assert overlapping(new) is None
    np.testing.assert_array_equal(atoms.positions, before)
    assert (new.numbers == atoms.numbers).all()


def test_the_same_stream_turns_the_same():
    a, b = (turned(molecule("CH3CH2OH"), np.random.default_rng(3)) for _ in range(2))
    np.testing.assert_array_equal(a.positions, b.positions)


def test_all_conformers_of_a_chain_are_reached():
    comparison, rng = Comparison.searching(), np.random.default_rng(0)
    trans = molecule("trans-butane")
    carbons = [i for i in range(14) if trans.numbers[i] == 6]
    ends = [i for i in carbons if sum(trans.get_distance(i, j) < 1.7 for j in carbons if j != i) == 1]
    inner = [i for i in carbons if i not in ends]
    first = next(i for i in inner if trans.get_distance(i, ends[0]) < 1.7)
    chain = [ends[0], first, next(i for i in inner if i != first), ends[1]]
    angles = [turned(trans, rng).get_dihedral(*chain) for _ in range(300)]
    # A third of the bonds is the middle one; its angle is any, but for those at which hydrogens meet.
    reached, _ = np.histogram(angles, bins=12, range=(0, 360))
    assert (reached > 0).sum() >= 10
    key = graph_key(bonding_graph(trans))
    assert sum(comparison.describe(turned(trans, rng), 0.0).key == key for _ in range(50)) > 25


@pytest.mark.parametrize("name", ["H2O", "C6H6", "CO2"])
def test_what_has_no_bond_to_turn_about_stays_as_it_is(name):
    atoms = molecule(name)
    np.testing.assert_array_equal(turned(atoms, np.random.default_rng(0)).positions, atoms.positions)


def test_what_few_trials_have_met_is_turned_more_often():
    plan = GenerativeRSS("C2H6O", "lj", regime="turned").plan
    ends = {0: molecule("CH3CH2OH"), 1: molecule("CH3OCH3")}
    bonds = {graph_key(bonding_graph(atoms)): number for number, atoms in ends.items()}
    begun = [plan.begin(number, known=[0, 1], turnable={0: 3, 1: 27}, end_of=ends.get) for number in range(200)]
    parents = [bonds[graph_key(bonding_graph(trial.atoms))] for trial in begun]
    assert parents.count(0) / 200 == pytest.approx(0.9, abs=0.06)
    assert {0, 1} == {trial.parent for trial in begun}
    assert plan.begin(0).parent is None  # as long as nothing is known it begins with atoms at random


@pytest.fixture(scope="module")
def searched():
    """An adaptive search on the learned forces, which settle what is sampled, too."""
    search = GenerativeRSS("C2H6O2", learned_forces, adapt=False)
    search.run(trials=112)
    return search


def learned_forces():
    return load_forces("molecules-forces")


def test_turned_trials_of_a_search_meet_conformers_and_those_that_look_known_cost_nothing(searched):
    turns = [record for record in searched.archive.records if record.turned]
    assert {record.regime for record in turns} == {"turned", "settled-turned"}
    assert any(record.ended is Ended.MINIMUM for record in turns)
    assert not any(record.ended is Ended.FAMILIAR for record in turns)
    assert not any(record.force_calls for record in turns if record.ended is Ended.KNOWN)


def test_to_come_back_to_where_it_began_is_no_hit(searched):
    found = Found(searched.archive)
    met = [r for r in searched.archive.records if r.ended in (Ended.MINIMUM, Ended.KNOWN, Ended.HEADING)]
    back = []
    for record in met:
        came_to = record.number if record.ended is Ended.MINIMUM else record.known
        if record.parent is not None and found.minimum_of[came_to] == found.minimum_of[record.parent]:
            back.append(record)
    assert {r.ended for r in back} >= {Ended.HEADING, Ended.KNOWN}
    assert {r.turned for r in back} == {True, False}  # and so are those with noise that come back
    assert sum(searched.hits) == len(met) - len(back)


def test_workers_turn_the_same(searched):
    other = GenerativeRSS("C2H6O2", learned_forces, adapt=False, workers=2)
    other.run(trials=112)
    one, two = (
        sorted((r.number, r.regime, r.parent, r.ended, r.force_calls) for r in each.archive.records)
        for each in (searched, other)
    )
    assert one == two
