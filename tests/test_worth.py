"""What is relaxed although it looks known."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ase_gss.ledger import Entry, Ledger
from ase_gss.worth import GoingRate, Met, chance_of_another, second_looks

COUNTS = st.dictionaries(st.integers(0, 50), st.integers(1, 40), min_size=1)


def what_is_worth(rate, came, hits=None):
    minima = [Met(first, 0.0, number, (hits or {}).get(first, 40)) for first, number in came.items()]
    return second_looks(rate, 10.0, 0.0, minima, trials=1000, waiting=48)


@given(COUNTS, st.floats(1e-6, 1.0))
def test_what_promises_as_much_as_the_search_brings_is_taken_and_nothing_else(relaxed, rate):
    taken = what_is_worth(rate, relaxed).repeats
    assert set(taken) == {m for m, n in relaxed.items() if chance_of_another(n) / 10.0 > rate}
    assert all(0 < share <= 1 for share in taken.values())


@given(COUNTS, st.floats(1e-6, 1.0), st.floats(1e-6, 1.0))
def test_the_less_a_search_brings_the_more_it_takes(relaxed, a, b):
    poor, rich = (what_is_worth(rate, relaxed).repeats for rate in (min(a, b), max(a, b)))
    assert all(poor[m] >= share for m, share in rich.items())


def test_of_a_minimum_that_is_often_met_a_smaller_share_is_taken():
    share = what_is_worth(1e-3, {0: 1, 1: 1}, hits={0: 1, 1: 900}).repeats
    assert share[1] < 0.5 < share[0]


def test_the_going_rate_is_that_of_the_later_half_of_the_cost():
    rate = GoingRate()
    assert rate.value == np.inf
    for _ in range(1000):
        rate.enter(1.0, 1.0)
    for _ in range(3000):
        rate.enter(1.0, 0.0)
    assert rate.value == pytest.approx(1 / 2000)


def ledger_of(n_idle: int) -> Ledger:
    """Twenty minima, each met twice, then samples that look known and cost nothing."""
    ledger = Ledger(5.0)
    entries = [Entry(n, "A", 10, minimum=n % 20, energy=0.1 * (n % 20), bonds="x") for n in range(40)]
    entries += [Entry(40 + n, "A", 0, minimum=n % 20, energy=0.0, came=False) for n in range(n_idle)]
    for entry in entries:
        ledger.enter(entry)
    ledger.advance(before=10**9)
    return ledger


def test_a_search_that_meets_only_what_is_known_begins_to_look_closer():
    assert not ledger_of(0).second_looks(48).repeats
    late = ledger_of(40_000).second_looks(48)
    assert set(late.repeats) == set(range(20))
    assert late.dull


def test_minima_above_the_window_are_not_looked_at_again():
    ledger = ledger_of(40_000)
    ledger.enter(Entry(50_000, "A", 10, minimum=20, energy=9.0))
    ledger.advance(before=10**9)
    assert 50_000 not in ledger.second_looks(48).repeats


def test_second_looks_are_no_regimes_doing_and_no_sign_of_life():
    ledger = ledger_of(0)
    calls, idle = dict(ledger.force_calls), ledger.idle_generations
    for n in range(160):
        ledger.enter(Entry(1000 + n, "A", 8 * (n % 4 == 0), minimum=n % 20, energy=0.0, second_look=n % 4 == 0))
    ledger.advance(before=10**9)
    assert ledger.force_calls == calls
    assert ledger.idle_generations >= idle + 9
    assert ledger.lesson  # but they are force calls, from which a search learns
