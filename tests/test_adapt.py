"""A score that learns from the minima that a search finds."""

from concurrent.futures import Future
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from ase import Atoms
from conftest import GaussianScore
from hypothesis import given
from hypothesis import strategies as st

from ase_gss import GenerativeRSS, ledger, lesson
from ase_gss.bonds import bonding_graph, graph_key
from ase_gss.coupling import Hot
from ase_gss.errors import InputError
from ase_gss.frames import Frames
from ase_gss.ledger import Entry, Ledger
from ase_gss.lesson import Learned
from ase_gss.schedule import Schedule
from ase_gss.score import adapt, learned_forces, load_score
from ase_gss.search import SearchError
from ase_gss.stages import sample
from ase_gss.systems import Molecule
from ase_gss.trial import Trial
from ase_gss.workers import InProcess, WorkerLost

#: A carbene that the shipped score hardly ever samples: hydroxymethylene, HCOH.
CARBENE = Atoms("COH2", positions=[[0, 0, 0], [1.31, 0, 0], [-0.22, 1.09, 0], [1.62, -0.91, 0]])


def shares(score, n: int = 48) -> dict[str, float]:
    """Of the samples of CH2O: which share has which bonding graph."""
    system, schedule, coupling = Molecule(CARBENE.numbers), Schedule(), Hot(0.7)
    trials = []
    for number in range(n):
        atoms, walk = system.walk_from_noise(np.random.default_rng(number), schedule, coupling)
        trials.append(Trial(number, atoms, walk, learned=True))
    sample(trials, SimpleNamespace(system=system, score=None, forces=None, batch=1), Learned((score, score)))
    keys = [graph_key(bonding_graph(trial.sampled())) for trial in trials]
    return {key: keys.count(key) / n for key in set(keys)}


def test_what_was_taught_is_sampled_and_what_was_known_is_not_forgotten():
    score, carbene = load_score("molecules"), graph_key(bonding_graph(CARBENE))
    formaldehyde = Atoms("COH2", positions=[[0, 0, 0], [1.21, 0, 0], [-0.58, 0.94, 0], [-0.58, -0.94, 0]])
    aldehyde = graph_key(bonding_graph(formaldehyde))
    before = shares(score)
    weights = [value.clone() for value in score.denoiser.parameters()]
    after = shares(adapt.adapted(score, [CARBENE, formaldehyde], seed=0))
    assert after.get(carbene, 0) > before.get(carbene, 0) + 0.1
    assert after.get(aldehyde, 0) > 0.2
    for old, new in zip(weights, score.denoiser.parameters(), strict=True):
        assert torch.equal(old, new)  # it is a copy that has learned


def test_same_minima_and_seed_same_score(monkeypatch):
    monkeypatch.setattr(adapt, "STEPS", 3)
    score, n = load_score("molecules"), 4

    def asked(seed, minima=(CARBENE,)):
        arguments = CARBENE.numbers, CARBENE.positions + 0.1, np.full(n, 0.5), np.zeros(n, int)
        return adapt.adapted(score, minima, seed)(*arguments)

    assert np.array_equal(asked(1), asked(1))
    assert not np.array_equal(asked(1), asked(2))


@given(st.lists(st.integers(0, 150), min_size=1, max_size=40), st.sets(st.integers(0, 40)))
def test_lessons_do_not_depend_on_when_they_are_asked_for(calls, stops):
    entries = [Entry(n, "A", c, n % 7, 0.1 * (n % 7)) for n, c in enumerate(calls)]
    ledgers = [Ledger(0.5), Ledger(0.5)]
    for each in ledgers:
        for entry in entries:
            each.enter(entry)
    for stop in sorted(stops):
        ledgers[0].advance(before=stop)
    for each in ledgers:
        each.advance(before=len(calls))
    assert ledgers[0].lesson == ledgers[1].lesson
    assert ledgers[0].lesson_minima == ledgers[1].lesson_minima
    assert all(number < ledgers[0].lesson for number in ledgers[0].lesson_minima)


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(ledger, "FIRST_LESSON", 60)
    monkeypatch.setattr(adapt, "STEPS", 3)
    monkeypatch.setattr(learned_forces, "LEAST_STEPS", 20)
    monkeypatch.setattr(lesson, "ENOUGH_FRAMES", 0)


def books(search):
    records = sorted(search.archive.records, key=lambda record: record.number)
    return [(r.number, r.regime, r.ended, r.force_calls, r.energy) for r in records]


def test_a_search_that_learns_is_the_same_on_workers_and_after_a_stop(quick, tmp_path, monkeypatch):
    whole = GenerativeRSS("CH2O", "emt", seed=3)
    taught, learn = [], whole.plan.learn
    monkeypatch.setattr(whole.plan, "learn", lambda part: taught.append(type(part.matter)) or learn(part))
    whole.run(trials=160)
    assert any("learned" in record.regime for record in whole.archive.records)
    assert Frames in taught
    database = tmp_path / "x.db"
    GenerativeRSS("CH2O", "emt", seed=3, database=database).run(trials=100)
    resumed = GenerativeRSS("CH2O", "emt", seed=3, database=database)
    resumed.run(trials=160)
    assert books(resumed) == books(whole)
    workers = GenerativeRSS("CH2O", "emt", seed=3, workers=2)
    workers.run(trials=160)
    assert books(workers) == books(whole)


def test_a_search_that_does_not_learn_takes_no_learned_regime_and_is_another_search(quick, tmp_path):
    search = GenerativeRSS("CH2O", "emt", adapt=False, database=tmp_path / "x.db")
    search.run(trials=80)
    assert not any("learned" in record.regime for record in search.archive.records)
    with pytest.raises(InputError, match="adapt"):
        GenerativeRSS("CH2O", "emt", database=tmp_path / "x.db")


@pytest.mark.parametrize(
    "keywords",
    [{"coupling": "hot"}, {"regime": "hot"}, {"pbc": True}, {"score": GaussianScore(CARBENE.positions)}],
)
def test_who_cannot_learn_says_so(keywords):
    with pytest.raises(InputError, match="leave out adapt"):
        GenerativeRSS("CH2O", "lj", adapt=True, **keywords)


def test_a_regime_that_needs_a_lesson_is_no_search_by_itself():
    with pytest.raises(InputError, match="No regime"):
        GenerativeRSS("CH2O", "emt", regime="learned")


def test_a_score_that_has_learned_or_is_frozen_can_learn_again(monkeypatch):
    monkeypatch.setattr(adapt, "STEPS", 2)
    once = adapt.adapted(load_score("molecules"), [CARBENE], seed=0)
    assert not any(weight.requires_grad for weight in once.denoiser.parameters())
    adapt.adapted(once, [CARBENE], seed=0)


def test_what_was_made_without_learning_says_how_it_goes_on(tmp_path):
    database = tmp_path / "x.db"
    GenerativeRSS("CH2O", "emt", adapt=False, database=database).run(trials=2)
    with pytest.raises(InputError, match="add --no-adapt"):
        GenerativeRSS("CH2O", "emt", database=database)


class Forgetful(InProcess):
    """Loses so many parts of lessons."""

    def __init__(self, plan, losses):
        super().__init__(plan)
        self.losses = losses

    def submit(self, job):
        if job.stage != "learn" or not self.losses:
            return super().submit(job)
        self.losses -= 1
        future = Future()
        future.set_exception(WorkerLost("its worker died by signal 9 (killed)"))
        return future


def test_a_lesson_that_is_lost_is_given_again(quick, monkeypatch):
    whole = GenerativeRSS("CH2O", "emt", seed=3)
    whole.run(trials=96)
    losing = GenerativeRSS("CH2O", "emt", seed=3)
    monkeypatch.setattr("ase_gss.search.crew_of", lambda plan, *others: Forgetful(plan, 2))
    losing.run(trials=96)
    assert books(losing) == books(whole)


def test_where_no_lesson_can_be_given_the_search_says_so(quick, monkeypatch):
    search = GenerativeRSS("CH2O", "emt", seed=3)
    monkeypatch.setattr("ase_gss.search.crew_of", lambda plan, *others: Forgetful(plan, 10**6))
    with pytest.raises(SearchError, match=r"its worker died by signal 9 \(killed\)\): search without adapt"):
        search.run(trials=96)
