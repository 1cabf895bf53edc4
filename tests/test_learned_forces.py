"""Forces that a search learns from its force calls, and samples that are relaxed with them."""

import pickle
from dataclasses import replace

import numpy as np
import pytest
from ase import Atoms
from ase.build import molecule
from ase.calculators.emt import EMT
from scipy.spatial.transform import Rotation

from ase_gss import GenerativeRSS, InputError, ledger
from ase_gss.archive import Archive
from ase_gss.forces import CountedCalculator
from ase_gss.frames import Frames
from ase_gss.lesson import Learned
from ase_gss.relax import hand_off
from ase_gss.score import adapt, learned_forces, load_score
from ase_gss.score.learned_forces import LARGEST_FORCE, LearnedForces, learn_forces, load_forces
from ase_gss.search import SearchError
from ase_gss.stages import relax, sample
from ase_gss.trial import Ended

WATER = Atoms("OH2", positions=[[0, 0, 0], [0.96, 0, 0], [-0.24, 0.93, 0]])


def visited(n: int, seed: int = 0) -> Frames:
    """EMT's forces on distorted water molecules, a relaxed one in their middle."""
    rng, pairs, relaxed = np.random.default_rng(seed), [], WATER.copy()
    relaxed.calc = EMT()
    hand_off(relaxed, fmax=0.01)
    for _ in range(n):
        atoms = relaxed.copy()
        atoms.positions += rng.normal(0, 0.08, (3, 3))
        atoms.calc = EMT()
        pairs.append((atoms.positions.copy(), atoms.get_forces()))
    return Frames.of(pairs)


@pytest.fixture(scope="module")
def forces() -> LearnedForces:
    return learn_forces(load_score("molecules"), WATER.numbers, visited(100), seed=0)


def given_for(forces: LearnedForces, positions: np.ndarray) -> np.ndarray:
    return forces(WATER.numbers, np.array([positions]))[0]


def test_they_are_those_of_the_calculator_on_structures_not_seen(forces):
    others = visited(30, seed=1)
    given = np.array([given_for(forces, positions) for positions in others.positions])
    off, size = np.sqrt(np.mean((given - others.forces) ** 2)), np.sqrt(np.mean(others.forces**2))
    assert off < 0.25 * size


def test_they_turn_with_the_molecule_and_do_not_push_it(forces):
    turn = Rotation.from_euler("xyz", [0.3, 1.1, -0.7]).as_matrix()
    there = given_for(forces, WATER.positions @ turn.T + 50.0)
    assert np.allclose(there, given_for(forces, WATER.positions) @ turn.T, atol=1e-4)
    assert np.allclose(there.sum(axis=0), 0, atol=1e-4)


def test_same_frames_and_seed_same_forces_and_a_copy_in_another_process_is_the_same():
    score, frames = load_score("molecules"), visited(10)
    once, again, other = (learn_forces(score, WATER.numbers, frames, seed, 3) for seed in (1, 1, 2))
    expected = given_for(once, WATER.positions)
    assert np.array_equal(given_for(again, WATER.positions), expected)
    assert np.array_equal(given_for(pickle.loads(pickle.dumps(once)), WATER.positions), expected)
    assert not np.array_equal(given_for(other, WATER.positions), expected)


def test_atoms_on_one_another_are_not_learned_but_where_there_is_nothing_else():
    frames, score = visited(100), load_score("molecules")
    wild = Frames(np.zeros((1, 3, 3), np.float32), np.full((1, 3, 3), 100 * LARGEST_FORCE, np.float32))
    both = Frames.joined([frames, wild])
    with_it, without = (learn_forces(score, WATER.numbers, each, seed=0, steps=5) for each in (both, frames))
    assert np.array_equal(given_for(with_it, WATER.positions), given_for(without, WATER.positions))
    learn_forces(score, WATER.numbers, Frames(WATER.positions[None], wild.forces), seed=0, steps=2)


def sampled(plan, learned, n=12):
    trials = [plan.begin(number, replace(plan.regimes[0], settled=True)) for number in range(n)]
    sample(trials, plan, learned)
    return trials


def calls_to_minima(trials) -> int:
    calls = 0
    for trial in trials:
        atoms = trial.sampled()
        atoms.calc = counted = CountedCalculator(EMT())
        assert hand_off(atoms).converged
        calls += counted.calls
    return calls


def test_samples_that_are_relaxed_with_them_take_fewer_force_calls(forces):
    plan = GenerativeRSS("H2O", "emt", coupling="diffusion", seed=0).plan
    bare, better = sampled(plan, None), sampled(plan, Learned((), forces))
    assert calls_to_minima(better) < 0.8 * calls_to_minima(bare)
    assert all(mine.score_calls > its.score_calls for mine, its in zip(better, bare, strict=True))


def test_a_sample_that_is_relaxed_with_them_does_not_depend_on_its_company(forces):
    plan = GenerativeRSS("H2O", "emt", coupling="diffusion", seed=0).plan
    for mine, its in zip(sampled(plan, Learned((), forces), 8), sampled(plan, Learned((), forces)), strict=False):
        assert np.array_equal(mine.walk.positions, its.walk.positions)
        assert mine.score_calls == its.score_calls


@pytest.mark.parametrize("name", ["H2O", "CH3OH", "CH3COCH3"])
def test_they_do_not_depend_on_what_is_evaluated_with_them(name):
    atoms, shipped = molecule(name), load_forces("molecules-forces")
    positions = atoms.positions + 0.1 * np.random.default_rng(0).normal(size=(12, len(atoms), 3))
    alone = [shipped(atoms.numbers, each[None])[0] for each in positions]
    assert np.array_equal(shipped(atoms.numbers, positions), alone)


def test_they_are_an_ase_calculator(forces):
    atoms = WATER.copy()
    atoms.calc = forces
    assert np.array_equal(atoms.get_forces(), given_for(forces, WATER.positions))


def test_they_answer_for_no_element_that_they_have_not_seen():
    atoms = Atoms("Fe2", [[0, 0, 0], [0, 0, 1.5]], calculator=load_forces("molecules-forces"))
    with pytest.raises(InputError, match="know only H, C, N, O, F: train some"):
        atoms.get_forces()


def repelling(strength):
    """Forces that drive all atoms apart, or are no numbers."""
    return lambda numbers, positions: strength * (positions - positions.mean(axis=1, keepdims=True))


def test_what_falls_apart_with_them_costs_no_force_call():
    plan = GenerativeRSS("H2O", "emt", coupling="diffusion", seed=0).plan
    for trial in sampled(plan, Learned((), repelling(20.0))):
        assert (trial.ended, trial.force_calls) == (Ended.FRAGMENTS, 0)
        assert trial.reason == "fallen apart, with learned forces"


def test_forces_that_are_no_numbers_leave_the_samples_as_they_are():
    plan = GenerativeRSS("H2O", "emt", coupling="diffusion", seed=0).plan
    pairs = zip(sampled(plan, Learned((), repelling(np.nan))), sampled(plan, None), strict=True)
    for mine, its in pairs:
        assert mine.ended is None
        assert np.array_equal(mine.walk.positions, its.walk.positions)


@pytest.mark.parametrize("in_file", [True, False])
def test_a_search_that_learns_keeps_what_its_relaxations_went_through(in_file, tmp_path, monkeypatch):
    monkeypatch.setattr(ledger, "FIRST_LESSON", 10**6)
    search = GenerativeRSS("CH2O", "emt", seed=0, database=tmp_path / "x.db" if in_file else None)
    search.run(trials=20)
    archive = Archive(tmp_path / "x.db") if in_file else search.archive
    parts = list(archive.frames(below=20, most=10**6))
    failed = sum(record.ended is Ended.CALCULATOR for record in archive.records)
    assert 0 <= search.force_calls - sum(len(part) for part in parts) <= failed
    few = list(archive.frames(below=12, most=40))
    assert 0 < sum(len(part) for part in few) <= 40
    spent = {record.number: record.force_calls for record in archive.records}
    last = max(number for number in spent if number < 12 and spent[number])
    assert len(few[-1]) == spent[last]
    end = archive.atoms_of(last)
    if end.calc is not None:
        assert np.allclose(few[-1].positions[-1], end.positions, atol=1e-5)
        assert np.allclose(few[-1].forces[-1], end.get_forces(), atol=1e-4)


def test_a_search_that_does_not_learn_keeps_nothing_of_it(tmp_path):
    GenerativeRSS("CH2O", "emt", adapt=False, database=tmp_path / "x.db").run(trials=4)
    assert not list(Archive(tmp_path / "x.db").frames(below=4, most=10**6))


def test_a_search_relaxes_with_what_it_has_learned(monkeypatch):
    """Elements that the shipped forces do not know: nothing settles before a lesson."""
    monkeypatch.setattr(ledger, "FIRST_LESSON", 60)
    monkeypatch.setattr(adapt, "STEPS", 2)
    monkeypatch.setattr(learned_forces, "LEAST_STEPS", 20)
    search = GenerativeRSS("CH3Al", "emt", seed=3)
    assert not search.plan.settles_at_once
    search.run(trials=96)
    settled = [record for record in search.archive.records if record.regime.startswith("settled")]
    assert settled
    spent, first = 0, min(record.number for record in settled)
    for record in sorted(search.archive.records, key=lambda record: record.number):
        if record.number < first:
            spent += record.force_calls
    assert spent >= 60


def test_forces_go_on_from_those_they_begin_with_and_only_where_they_become_better():
    shipped, frames = load_forces("molecules-forces"), visited(200)
    taught = learn_forces(shipped, WATER.numbers, frames, seed=0)
    others = visited(30, seed=1)

    def off(forces):
        return np.abs(forces(WATER.numbers, others.positions) - others.forces).mean()

    assert off(taught) < 0.5 * off(shipped)
    # The last fifth, which is not learned, is of another world.
    judged = Frames(frames.positions, np.concatenate([frames.forces[:160], 0 * frames.forces[160:]]))
    strange = Frames(frames.positions, np.concatenate([5 * frames.forces[:160], shipped_forces(shipped, frames)[160:]]))
    assert learn_forces(shipped, WATER.numbers, strange, seed=0) is shipped
    assert learn_forces(load_score("molecules"), WATER.numbers, judged, seed=0, steps=2) is not None


def shipped_forces(forces, frames):
    return forces(WATER.numbers, frames.positions)


def test_what_settles_far_above_the_lowest_is_given_up_after_one_force_call():
    plan = GenerativeRSS("CH2O", "emt", seed=0).plan
    trials = sampled(plan, None)
    for trial in trials:
        trial.ceiling = -1e6
    relax([trial for trial in trials if trial.ended is None], plan)
    high = [trial for trial in trials if trial.ended is Ended.HIGH]
    assert high
    assert all(trial.force_calls == 1 and "too high" in trial.reason for trial in high)


@pytest.mark.parametrize("keywords", [{"coupling": "hot"}, {"regime": "rss"}, {"pbc": True}])
def test_forces_that_nobody_would_take_are_refused(keywords):
    with pytest.raises(InputError, match="leave out forces"):
        GenerativeRSS("CH2O", "lj", forces="molecules-forces", **keywords)


def test_forces_that_know_nothing_of_this_are_for_a_search_that_learns():
    with pytest.raises(InputError, match="leave out forces"):
        GenerativeRSS("CH3Al", "emt", forces="molecules-forces", adapt=False)
    assert GenerativeRSS("CH3Al", "emt", adapt=False).plan.forces is None
    assert not GenerativeRSS("CH3", "emt").plan.settles_at_once  # a radical
    assert GenerativeRSS("CH4", "emt").plan.settles_at_once
    with pytest.raises(InputError, match="No forces 'molecule': give molecules-forces, or"):
        load_forces("molecule")


class Broken(EMT):
    """Fails always."""

    def calculate(self, *args, **keywords):
        raise RuntimeError("no licence")


def test_a_broken_calculator_stops_the_search_however_many_samples_fall_apart():
    search = GenerativeRSS("C2H4O3", Broken(), seed=1)
    with pytest.raises(SearchError, match="no licence"):
        search.run(trials=400)


def test_a_trial_does_not_depend_on_which_of_its_generation_are_done_already():
    plan = GenerativeRSS("C3H6O", "emt", seed=0).plan
    regimes = [each for each in plan.regimes if each.name in ("settled-hot", "settled-hotter")]
    trials = {alone: [plan.begin(n, regimes[n % 2]) for n in range(6)] for alone in (True, False)}
    sample(trials[False], plan)
    for trial in trials[True]:
        sample([trial], plan)
    for mine, its in zip(trials[True], trials[False], strict=True):
        assert np.array_equal(mine.walk.positions, its.walk.positions)
        assert mine.ended == its.ended


def test_an_adaptive_search_of_another_family_does_not_go_on(tmp_path, monkeypatch):
    monkeypatch.setattr("ase_gss.plan.FAMILY", 1)
    GenerativeRSS("CH2O", "emt", database=tmp_path / "x.db").run(trials=1)
    monkeypatch.undo()
    with pytest.raises(InputError, match="another version of ase-gss"):
        GenerativeRSS("CH2O", "emt", database=tmp_path / "x.db")
