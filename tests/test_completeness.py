"""Estimates of what is still unseen, against draws of which everything is known."""

import numpy as np
import pytest

from ase_gss.completeness import chance_next_is_new, predict_new


def drawn(rng: np.random.Generator, kinds: int, trials: int) -> np.ndarray:
    """Kinds met in these trials; their probabilities fall like those of minima, over several decades."""
    weights = rng.lognormal(sigma=2.0, size=kinds)
    return rng.choice(kinds, size=trials, p=weights / weights.sum())


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("trials", [100, 400, 1600])
def test_nine_intervals_of_ten_hold(trials, late):
    rng, inside, n = np.random.default_rng(0), 0, 150
    for _ in range(n):
        kinds = drawn(rng, 120, trials + 100)
        before, after = kinds[:trials], kinds[trials:]
        _, first_met, hits = np.unique(before, return_index=True, return_counts=True)
        _, low, high = predict_new(hits.tolist(), trials, first_met=first_met.tolist() if late else None)
        inside += low <= len(set(after) - set(before)) <= high
    assert inside / n > 0.85


def test_trials_that_have_become_better_promise_more():
    # 200 trials met two minima over and over, the 100 after them 20 that were new.
    hits, first_met = [100, 100, *[1] * 20], [0, 1, *range(200, 300, 5)]
    mean, low, high = predict_new(hits, 300, first_met=first_met)
    assert low <= 15 <= high
    assert mean > predict_new(hits, 300)[0] * 1.5
    assert predict_new(hits, 300, first_met=[*range(22)])[0] < 1  # they were met in the beginning


def test_a_list_that_is_complete_promises_nothing():
    mean, low, high = predict_new([50] * 20, 1000)
    assert mean < 0.2
    assert low == 0
    assert high <= 1


def test_before_the_first_hit_everything_may_be_new():
    assert predict_new([], 0) == (100.0, 0, 100)
    assert predict_new([], 30) == (100.0, 0, 100)
    assert chance_next_is_new([]) == 1


def test_a_longer_look_ahead_sees_more():
    hits = [1] * 10 + [2] * 5 + [9] * 3
    means = [predict_new(hits, 47, further)[0] for further in (10, 100, 1000)]
    assert means == sorted(means)
