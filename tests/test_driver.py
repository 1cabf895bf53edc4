"""Generations: what a search finds depends neither on interruptions nor on the number of workers."""

import random
import sqlite3
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import numpy as np
import pytest
from ase import Atoms
from ase.build import molecule
from ase.calculators.lj import LennardJones
from ase.optimize import BFGS
from conftest import GaussianScore, Harmonic

from ase_gss import GenerativeRSS
from ase_gss.coupling import Diffusion
from ase_gss.driver import SearchError
from ase_gss.errors import InputError
from ase_gss.schedule import Schedule

PLACES = np.random.default_rng(1).normal(scale=1.2, size=(7, 3))


class Argon(LennardJones):
    """Seven of these atoms have four minima."""

    def __init__(self):
        super().__init__(sigma=1.9, epsilon=0.1, rc=30.0)


class Failing(Argon):
    """Fails for a share of all structures, always the same ones."""

    share = 0.5

    def calculate(self, atoms=None, properties=None, system_changes=()):
        if (abs(atoms.positions).sum() * 1e4) % 1 < self.share:
            raise RuntimeError("no convergence")
        super().calculate(atoms, properties, system_changes)


class Stuck(BFGS):
    """Takes no step."""

    def step(self, gradient=None):
        raise RuntimeError("line search failed")


def search(database=None, calculator=Argon, **keywords):
    score = GaussianScore(1.2 * PLACES, spread=0.7)
    return GenerativeRSS("Ar7", calculator, score=score, database=database, **keywords)


def outcome(done):
    """Everything about the trials and minima that must not change."""
    trials = sorted(
        (r.number, r.regime, str(r.ended), r.force_calls, r.known, None if r.energy is None else round(r.energy, 9))
        for r in done.archive.records
    )
    minima = [(round(a.get_potential_energy(), 9), a.info["hits"], a.info["first_trial"]) for a in done.minima]
    return trials, minima


@pytest.fixture(scope="module")
def whole():
    done = search()
    done.run(trials=112)
    return outcome(done)


def test_an_adaptive_search_takes_every_regime(whole):
    assert {trial[1] for trial in whole[0]} == {"diffusion", "hot", "hotter", "early", "again", "rss"}


def test_another_regime_is_another_search(tmp_path):
    search(tmp_path / "x.db", regime="hot").run(trials=2)
    with pytest.raises(InputError, match=r"hot.*early"):
        search(tmp_path / "x.db", regime="early")


def test_stopping_in_the_middle_changes_nothing(tmp_path, whole):
    path = tmp_path / "search.db"
    for trials in (5, 16, 61, 62, 112):
        part = search(path)
        part.run(trials=trials)
        assert part.trials == trials
    assert outcome(part) == whole
    assert outcome(search(path)) == whole


def test_interrupts_change_nothing(tmp_path, whole):
    path, rng = tmp_path / "search.db", np.random.default_rng(0)
    for _ in range(8):
        part, left = search(path), int(rng.integers(3, 60))

        def interrupt(part=part, left=left, start=part.trials):
            if part.trials >= start + left:
                raise KeyboardInterrupt

        part.attach(interrupt)
        try:
            part.run(trials=112)
        except KeyboardInterrupt:
            continue
        break
    last = search(path)
    last.run(trials=112)
    assert outcome(last) == whole


def test_a_gap_left_by_a_slow_trial_changes_nothing(tmp_path, whole):
    path = tmp_path / "search.db"
    first = search(path)
    first.run(trials=48)
    del first
    with closing(sqlite3.connect(path)) as connection:
        (row,) = connection.execute("SELECT id FROM number_key_values WHERE key = 'trial' AND value = 5").fetchone()
        for table in ("number_key_values", "text_key_values", "keys", "species"):
            connection.execute(f"DELETE FROM {table} WHERE id = ?", (row,))
        connection.execute("DELETE FROM systems WHERE id = ?", (row,))
        connection.commit()
    with_gap = search(path)
    assert with_gap.trials == 47
    with_gap.run(trials=112)
    assert outcome(with_gap) == whole


def test_what_is_found_behind_a_gap_counts():
    done = search(coupling="rss")
    done.archive.reserve(16, 3)  # nobody will do the first three
    done.run(trials=40)
    assert done.trials == 37
    assert sum(done.hits) == sum(str(record.ended) == "minimum" for record in done.archive.records)


@pytest.mark.parametrize("workers", [2])
def test_workers_change_nothing(workers, whole):
    done = search(workers=workers, call_limit=60.0)
    done.run(trials=112)
    assert outcome(done) == whole


def test_a_stopped_search_goes_on(tmp_path, whole):
    path = tmp_path / "search.db"
    first = search(path)
    first.attach(lambda: first.stop() if first.trials >= 50 else None)
    first.run(trials=112)
    assert 50 <= first.trials < 100
    second = search(path)
    second.run(trials=112)
    assert outcome(second) == whole


def test_a_wrong_set_up_ends_the_search_with_its_reason():
    broken = search(calculator=Failing)
    with pytest.raises(SearchError, match="no convergence"):
        broken.run(trials=112)
    assert 20 <= broken.trials < 60


def test_an_optimizer_that_raises_is_told_from_a_calculator_that_fails():
    stuck = search(optimizer=Stuck, coupling="rss")
    with pytest.raises(SearchError, match="optimizer failed: optimizer: RuntimeError: line search failed"):
        stuck.run(trials=112)
    assert "optimizer failed" in {str(record.ended) for record in stuck.archive.records}


def test_with_a_higher_limit_it_goes_on():
    tolerant = search(calculator=Failing, failure_limit=1.0)
    tolerant.run(trials=40)
    assert tolerant.trials == 40


@pytest.mark.parametrize("regime", ["early", "again", "turned"])
def test_a_regime_by_name_is_the_only_one(regime):
    done = search(regime=regime)
    done.run(trials=20)
    assert {r.regime for r in done.archive.records} == {regime}


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"regime": "best"}, "No regime 'best'"),
        ({"regime": "hot", "coupling": "mn"}, "not both"),
        ({"regime": "hot", "starts": [Atoms("Ar7", PLACES)]}, "starts of its own"),
        ({"regime": "hot", "schedule": Schedule(n_steps=7)}, "schedule of its own"),
        ({"workers": 0}, "at least one worker"),
        ({"failure_limit": 0}, "failure limit"),
        ({"call_limit": -1.0}, "positive"),
    ],
)
def test_wrong_input_is_one_sentence(wrong, words):
    with pytest.raises(InputError, match=words):
        search(**wrong)


class Delaying(ThreadPoolExecutor):
    """Gives answers back after a random time."""

    def submit(self, function, *arguments):
        def later(*arguments):
            answer = function(*arguments)
            time.sleep(random.uniform(0, 0.03))
            return answer

        return super().submit(later, *arguments)


def test_when_a_search_dries_up_does_not_depend_on_timing():
    places = molecule("H2O").positions
    keywords = {"score": GaussianScore(places, spread=0.02), "coupling": Diffusion(), "starts": [molecule("H2O")]}
    counts = set()
    for _ in range(3):
        with Delaying(4) as executor:
            search = GenerativeRSS("H2O", still_water, executor=executor, workers=4, **keywords)
            search.run(max_calls=10**6)
        assert search.dried_up
        counts.add(search.trials)
    search = GenerativeRSS("H2O", still_water, **keywords)
    search.run(max_calls=10**6)
    assert counts == {search.trials}


def still_water():
    """A spring at each place of water."""
    return Harmonic(molecule("H2O").positions)
