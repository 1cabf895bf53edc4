"""Relaxations of molecules that are worth no further force call."""

import pickle

import numpy as np
from ase import Atoms
from ase.build import molecule
from ase.calculators.singlepoint import SinglePointCalculator
from conftest import GaussianScore, Harmonic

from ase_gss import GenerativeRSS
from ase_gss.coupling import Diffusion
from ase_gss.forces import CountedCalculator
from ase_gss.giving_up import GivingUp
from ase_gss.memory import FIRST_ENDS, Memory
from ase_gss.minima import Comparison
from ase_gss.systems import Molecule
from ase_gss.trial import Ended


def pair(distance: float) -> Atoms:
    """Two hydrogen molecules, so many sums of covalent radii (0.62 Å) apart."""
    gap = 0.62 * distance
    atoms = Atoms("H4", positions=[[0, 0, 0], [0.7, 0, 0], [0.7 + gap, 0, 0], [1.4 + gap, 0, 0]])
    atoms.calc = CountedCalculator(Harmonic(atoms.positions))
    return atoms


def known_water(before: int = 100):
    water = molecule("H2O")
    water.calc = SinglePointCalculator(water, energy=0.0)
    memory = Memory(Comparison.searching())
    memory.remember(water, 7)
    return memory.first_ends(before)


def bent_water() -> Atoms:
    """Water whose bonds are there but not yet its shape, with a spring at each place of its end."""
    water = molecule("H2O")
    atoms = water.copy()
    atoms.set_angle(1, 0, 2, 160)
    atoms.calc = CountedCalculator(Harmonic(water.positions))
    return atoms


def test_a_sample_in_pieces_costs_no_force_call_and_a_random_start_is_given_longer():
    system = Molecule(np.ones(4, int))
    sample, start = pair(2.0), pair(2.0)
    outcome = system.relax(sample, giving_up=GivingUp(sampled=True))
    assert (outcome.converged, outcome.reason, sample.calc.calls) == (False, "fallen apart", 0)
    system.relax(start, giving_up=GivingUp(sampled=False))
    assert start.calc.calls > 0


def test_patience_with_random_starts_ends():
    giving_up, atoms = GivingUp(sampled=False), pair(1.7)
    looks = [giving_up(atoms) for _ in range(10)]
    assert looks[0] is None
    assert looks[-1] == "fallen apart"


def test_who_keeps_fragments_gives_none_up():
    atoms = pair(2.0)
    Molecule(np.ones(4, int), fragments=True).relax(atoms, giving_up=GivingUp(sampled=True))
    assert atoms.calc.calls > 0


def test_a_relaxation_that_heads_for_a_known_end_is_cut_short():
    system, whole, short = Molecule(molecule("H2O").numbers), bent_water(), bent_water()
    outcome = system.relax(whole, giving_up=GivingUp(sampled=True), optimizer="FIRE")
    assert outcome.converged
    giving_up = GivingUp(sampled=True, known=known_water())
    outcome = system.relax(short, giving_up=giving_up, optimizer="FIRE")
    assert giving_up.recognised == 7
    assert outcome.reason == "heads for the end of trial 7"
    assert not outcome.converged
    assert short.calc.calls < whole.calc.calls
    assert np.isfinite(outcome.energy)


def test_what_has_looked_like_it_from_the_beginning_is_relaxed_all_the_same():
    system, atoms = Molecule(molecule("H2O").numbers), bent_water()
    outcome = system.relax(atoms, giving_up=GivingUp(sampled=True, known=known_water(), spared={7}), optimizer="FIRE")
    assert outcome.converged


def test_what_is_too_high_costs_one_force_call_and_what_is_not_is_relaxed():
    system, atoms = Molecule(molecule("H2O").numbers), bent_water()
    giving_up = GivingUp(sampled=True, ceiling=-1.0)
    outcome = system.relax(atoms, giving_up=giving_up, optimizer="FIRE")
    assert giving_up.too_high
    assert "too high" in outcome.reason
    assert atoms.calc.calls == 1
    low = bent_water()
    assert system.relax(low, giving_up=GivingUp(sampled=True, ceiling=1e3), optimizer="FIRE").converged


def test_a_generation_knows_only_what_it_may_know():
    atoms = bent_water()
    outcome = Molecule(atoms.numbers).relax(atoms, giving_up=GivingUp(sampled=True, known=known_water(before=7)))
    assert outcome.converged


def test_what_is_known_travels_to_workers_and_stays_small():
    memory, rng = Memory(Comparison.searching()), np.random.default_rng(0)
    for number in range(FIRST_ENDS + 200):
        atoms = molecule("CH3CH2OH")
        atoms.positions += 0.5 * rng.normal(size=(9, 3))
        memory.remember(atoms, number)
    known = memory.first_ends(10**6)
    message = pickle.dumps(known)
    assert len(message) < FIRST_ENDS * 3000
    assert pickle.loads(message).recall(molecule("CH3CH2OH")) == known.recall(molecule("CH3CH2OH"))


def test_a_search_counts_such_a_trial_as_a_hit_and_pays_less_for_it():
    searches = [search_of_water(workers) for workers in (1, 2)]
    books = []
    for search in searches:
        records = sorted(search.archive.records, key=lambda record: record.number)
        heading = [record for record in records if record.ended is Ended.HEADING]
        whole = [record for record in records if record.ended is Ended.MINIMUM]
        assert heading
        assert all(record.number >= 48 and record.known is not None and record.force_calls > 0 for record in heading)
        assert np.mean([r.force_calls for r in heading]) < np.mean([r.force_calls for r in whole])
        hits = sum(r.ended in (Ended.MINIMUM, Ended.KNOWN, Ended.HEADING) for r in records)
        assert sum(search.hits) == hits
        books.append([(r.ended, r.force_calls, r.known) for r in records])
    assert books[0] == books[1]


def search_of_water(workers):
    places = molecule("H2O").positions
    search = GenerativeRSS(
        "H2O",
        harmonic_water,
        score=GaussianScore(places, spread=0.2),
        coupling=Diffusion(),
        starts=[molecule("H2O")],
        optimizer="FIRE",
        seed=1,
        workers=workers,
    )
    search.run(trials=80)
    return search


def test_samples_in_pieces_do_not_make_their_bonds_familiar():
    places = np.array([[0, 0, 0], [0.74, 0, 0], [4, 0, 0], [4.74, 0, 0]])
    search = GenerativeRSS("H4", Harmonic(places), score=GaussianScore(places, spread=0.02), coupling=Diffusion())
    search.run(trials=80)
    assert {record.ended for record in search.archive.records} == {Ended.FRAGMENTS}
    assert search.force_calls == 0


def harmonic_water():
    """A spring at each place of water."""
    return Harmonic(molecule("H2O").positions)


class Gluing(Harmonic):
    """Draws an atom of water onto another, as calculators do whose answers have lost all sense."""

    def __init__(self):
        places = molecule("H2O").positions
        places[1] = places[0] + 0.4 * (places[1] - places[0])
        super().__init__(places)


def test_what_a_calculator_has_drawn_onto_one_another_is_its_failure_not_a_minimum():
    search = GenerativeRSS("H2O", Gluing(), coupling="rss", failure_limit=1.0)
    search.run(trials=2)
    assert [record.ended for record in search.archive.records] == [Ended.COLLAPSED] * 2
    assert "lie on one another" in search.archive.records[0].reason
    assert not search.minima
    assert not any(record.converged for record in search.archive.records)
