"""Recognising what is known."""

from concurrent.futures import Future

import numpy as np
import pytest
from ase.build import molecule
from ase.calculators.singlepoint import SinglePointCalculator

from ase_gss import GenerativeRSS
from ase_gss.archive import Archive
from ase_gss.coupling import Diffusion
from ase_gss.found import Found
from ase_gss.ledger import Ledger
from ase_gss.memory import Memory
from ase_gss.minima import Comparison
from ase_gss.trial import Ended
from ase_gss.workers import InProcess, WorkerLost
from ase_gss.worth import SecondLooks


def test_a_rough_copy_is_recalled_and_another_isomer_is_not():
    memory = Memory(Comparison.searching())
    ethanol, ether = molecule("CH3CH2OH"), molecule("CH3OCH3")
    ethanol.calc = SinglePointCalculator(ethanol, energy=-1.0)
    memory.remember(ethanol, 3)
    memory.remember(molecule("CH3CH2OCH3"), 5)
    rough = ethanol.copy()
    rough.rattle(0.02, seed=1)
    assert memory.look_at(rough[np.random.default_rng(0).permutation(9)], before=9).known == 3
    assert memory.look_at(rough, before=3).known is None
    assert memory.look_at(ether, before=9).known is None
    turned = ethanol.copy()  # another conformer
    hydroxyl = next(i for i in range(9) if ethanol.numbers[i] == 1 and ethanol.get_distance(i, 2) < 1.1)
    mask = [i == hydroxyl for i in range(9)]
    turned.set_dihedral(0, 1, 2, hydroxyl, ethanol.get_dihedral(0, 1, 2, hydroxyl) + 120, mask=mask)
    assert memory.look_at(turned, before=9).known is None


def test_known_minima_cost_no_calls_count_as_hits_and_survive_a_restart(tmp_path):
    from conftest import GaussianScore, Harmonic

    places = molecule("H2O").positions
    keywords = {
        "calculator": Harmonic(places),
        "score": GaussianScore(places, spread=0.02),
        "coupling": Diffusion(),
        "starts": [molecule("H2O")],
        "database": tmp_path / "x.db",
    }
    search = GenerativeRSS("H2O", **keywords)
    search.run(trials=80)
    ended = [record.ended for record in search.archive.records]
    assert set(ended[:48]) == {Ended.MINIMUM}
    assert set(ended[48:]) == {Ended.KNOWN}
    assert all(record.force_calls == 0 for record in search.archive.records[48:])
    assert search.hits == [80]
    again = GenerativeRSS("H2O", **keywords)
    assert again.hits == [80]
    calls = again.force_calls
    again.run(max_calls=10**6)  # ends by itself: there is nothing new to meet
    assert again.force_calls == calls
    assert again.dried_up
    assert again.trials == 48 + 320 + 48  # what is idle counts over both runs: twenty generations, and three begun


def came_to_a_minimum(record):
    """Where there is only one, what began with it came back, which is no hit."""
    return record.ended in (Ended.MINIMUM, Ended.KNOWN, Ended.HEADING) and record.parent is None


def test_a_lookalike_that_is_worth_it_is_relaxed_and_counts_once(tmp_path, monkeypatch):
    from conftest import GaussianScore, Harmonic

    monkeypatch.setattr(Ledger, "second_looks", lambda self, waiting: SecondLooks({0: 0.5}))
    places = molecule("H2O").positions
    keywords = {"calculator": Harmonic(places), "score": GaussianScore(places, spread=0.02)}

    def searched(database, *parts):
        for trials in parts:
            search = GenerativeRSS("H2O", **keywords, database=tmp_path / database)
            search.run(trials=trials)
        return search

    whole, resumed = searched("whole.db", 160), searched("resumed.db", 70, 101, 160)
    told = [
        sorted((r.number, r.ended, r.force_calls, -1 if r.known is None else r.known) for r in s.archive.records)
        for s in (whole, resumed)
    ]
    assert told[0] == told[1]
    alike = [record for record in whole.archive.records if record.known == 0]
    relaxed = [record for record in alike if record.ended is Ended.MINIMUM]
    assert 0.2 < len(relaxed) / len(alike) < 0.8
    assert all(record.force_calls for record in relaxed)
    met = sum(came_to_a_minimum(record) for record in whole.archive.records)
    assert sum(whole.hits) == sum(resumed.hits) == met


def test_a_worker_that_dies_in_a_second_look_costs_that_trial_and_its_hit(tmp_path, monkeypatch):
    from conftest import GaussianScore, Harmonic

    class Crew(InProcess):
        def submit(self, job):
            if job.stage == "relax" and job.trials[0].known is not None and not died:
                died.append(job.first)
                future = Future()
                future.set_exception(WorkerLost("its worker died", calls={job.first: 3}))
                return future
            return super().submit(job)

    died = []
    monkeypatch.setattr(Ledger, "second_looks", lambda self, waiting: SecondLooks({0: 0.5}))
    monkeypatch.setattr("ase_gss.search.crew_of", lambda plan, *others: Crew(plan))
    places = molecule("H2O").positions
    keywords = {"calculator": Harmonic(places), "score": GaussianScore(places, spread=0.02)}
    search = GenerativeRSS("H2O", **keywords, database=tmp_path / "x.db")
    search.run(trials=160)
    records = {record.number: record for record in search.archive.records}
    lost = records[died[0]]
    assert (lost.ended, lost.force_calls) == (Ended.CALCULATOR, 3)
    assert [r.number for r in records.values() if r.ended is Ended.CALCULATOR] == died
    assert any(r.known == 0 and r.ended is Ended.MINIMUM for r in records.values() if r.number > died[0])
    met = sum(came_to_a_minimum(record) for record in records.values())
    assert sum(search.hits) == met == sum(GenerativeRSS("H2O", **keywords, database=tmp_path / "x.db").hits)


@pytest.mark.parametrize("ended", [Ended.MINIMUM, Ended.HEADING, Ended.FRAGMENTS, Ended.NOT_CONVERGED])
def test_a_second_look_is_not_charged_to_its_regime_however_it_ends(ended, tmp_path):
    search = GenerativeRSS("H2O", "lj", coupling="rss", database=tmp_path / "x.db")
    first, second = search.plan.begin(0), search.plan.begin(1)
    first.force_calls, second.force_calls, second.known, second.second_look = 5, 40, 0, True
    first.end(Ended.MINIMUM, atoms=molecule("H2O"), energy=-1.0, converged=True)
    second.end(ended, atoms=molecule("H2O"), energy=-1.0)
    search.archive.append([first, second])
    for archive in (search.archive, Archive(tmp_path / "x.db")):
        ledger = Found(archive).ledger
        ledger.advance(before=100)
        assert dict(ledger.force_calls) == {"rss": 5}


def test_relaxations_that_head_for_what_is_worth_it_are_finished(monkeypatch):
    from conftest import GaussianScore, Harmonic

    places = molecule("H2O").positions

    def searched(looks):
        monkeypatch.setattr(Ledger, "second_looks", lambda self, waiting: looks)
        search = GenerativeRSS("H2O", Harmonic(places), score=GaussianScore(places, spread=0.2))
        search.run(trials=112)
        sampled = [record for record in search.archive.records if record.score_calls]
        return [record.ended for record in sampled], sum(record.force_calls for record in sampled)

    given_up, calls = searched(SecondLooks())
    finished, more_calls = searched(SecondLooks({0: 1.0}))
    assert Ended.HEADING in given_up
    assert Ended.HEADING not in finished
    assert finished.count(Ended.MINIMUM) > given_up.count(Ended.MINIMUM)
    assert more_calls > calls


def test_once_dull_bonds_are_worth_it_none_is_left_for_them(monkeypatch):
    from conftest import GaussianScore, Harmonic

    places = molecule("H2O").positions

    def searched():
        search = GenerativeRSS("H2O", Harmonic(places), score=GaussianScore(places, spread=0.2))
        search.run(trials=112)
        return [record.ended for record in search.archive.records]

    with_dull = searched()
    monkeypatch.setattr(Ledger, "second_looks", lambda self, waiting: SecondLooks(dull=True))
    assert Ended.FAMILIAR in with_dull
    assert Ended.FAMILIAR not in searched()


def test_what_begins_where_another_relaxation_began_is_known_and_survives_a_restart(tmp_path):
    from conftest import GaussianScore, Harmonic

    wide = molecule("H2O")  # far from where learned forces take water, so that no sample looks like the end
    wide.set_angle(1, 0, 2, 165)
    score = GaussianScore(molecule("H2O").positions, spread=0.02)
    keywords = {"calculator": Harmonic(wide.positions), "score": score, "coupling": Diffusion()}

    def searched(database, *parts):
        for trials in parts:
            search = GenerativeRSS("H2O", **keywords, database=tmp_path / database)
            search.run(trials=trials)
        return search, sorted((r.number, r.ended, r.reason, r.force_calls) for r in search.archive.records)

    whole, told = searched("whole.db", 160)
    assert told == searched("resumed.db", 70, 101, 160)[1]
    alike = [reason for number, ended, reason, calls in told if reason.startswith("begins like trial")]
    assert len(alike) > 40
    assert alike[0].endswith("which led to the end of trial 0")
    assert sum(whole.hits) == sum(r.ended in (Ended.MINIMUM, Ended.KNOWN, Ended.HEADING) for r in whole.archive.records)


def test_a_start_is_recalled_only_where_it_is_nearly_the_same_and_its_end_is_known():
    memory = Memory(Comparison.searching())
    start = molecule("CH3CH2OH")
    memory.remember_start(start, 4, 1)
    close, farther = start.copy(), start.copy()
    close.rattle(0.005, seed=1)
    farther.rattle(0.05, seed=1)
    look = memory.look_at(close, before=9)
    assert (look.known, look.why) == (1, "begins like trial 4, which led to the end of trial 1")
    assert memory.look_at(close, before=4).known is None
    assert memory.look_at(farther, before=9).known is None
    ether = molecule("CH3OCH3")  # another search had met the same minimum before, in a later trial
    memory.remember_start(ether, 4, 205)
    assert memory.look_at(ether, before=160).known is None
    assert memory.look_at(ether, before=208).known == 205
