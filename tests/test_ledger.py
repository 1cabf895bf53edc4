"""What regimes have cost and found, and which of them comes next."""

from dataclasses import replace

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from ase_gss.coupling import Diffusion
from ase_gss.ledger import MARGIN, Entry, Ledger
from ase_gss.regimes import KNOWN, NOISE, TURNED, Regime, choose
from ase_gss.schedule import Schedule

A, B = (Regime(name, Diffusion(), Schedule(), NOISE) for name in "AB")


def ledger_of(*entries: Entry, window: float = np.inf) -> Ledger:
    ledger = Ledger(window)
    for entry in entries:
        ledger.enter(entry)
    ledger.advance(before=10**9)
    return ledger


def test_a_minimum_with_two_hits_is_nobodys_only_hit():
    once = Entry(0, "A", 10, minimum=0, energy=-1.0)
    assert ledger_of(once).only_hits() == {"A": 1}
    assert not ledger_of(once, Entry(1, "B", 10, minimum=0, energy=-1.0)).only_hits()


def test_minima_above_the_window_do_not_count():
    ledger = ledger_of(Entry(0, "A", 10, minimum=0, energy=-1.0), Entry(1, "B", 10, minimum=1, energy=1.0), window=1.5)
    assert ledger.only_hits() == {"A": 1, "B": 0}
    assert ledger.known_minima() == [0]


def test_later_trials_are_not_known_yet():
    ledger = Ledger()
    ledger.enter(Entry(20, "A", 10, minimum=1, energy=0.0))
    ledger.enter(Entry(3, "A", 10, minimum=0, energy=1.0))
    ledger.advance(before=16)
    assert ledger.known_minima() == [3]
    assert ledger.trials == {"A": 1}
    ledger.advance(before=32)
    assert ledger.known_minima() == [20, 3]
    assert ledger.force_calls == {"A": 20}


@given(st.permutations(range(12)), st.randoms(use_true_random=False))
def test_the_order_in_which_trials_finish_does_not_matter(order, random):
    entries = [
        Entry(n, random.choice("AB"), random.randint(1, 9), random.randint(0, 4), 0.1 * n, "x") for n in range(12)
    ]
    straight, shuffled = ledger_of(*entries), ledger_of(*(entries[n] for n in order))
    assert straight.only_hits() == shuffled.only_hits()
    assert straight.familiarity().interest("x") == shuffled.familiarity().interest("x")
    assert straight.known_minima() == shuffled.known_minima()


def test_bonds_that_always_end_alike_lose_interest_and_those_with_conformers_keep_it():
    rigid = [Entry(n, "A", 10, minimum=0, energy=0.0, bonds="rigid") for n in range(20)]
    flexible = [Entry(20 + n, "A", 10, minimum=1 + n, energy=0.0, bonds="flexible") for n in range(20)]
    ledger = ledger_of(*rigid, *flexible)
    assert ledger.familiarity().interest("never seen") == 1
    assert ledger.familiarity().interest("rigid") < 0.1
    assert ledger.familiarity().interest("flexible") > 0.8


def test_trials_go_where_new_minima_are_cheap():
    cheap = [Entry(n, "A", 5, minimum=n, energy=0.0) for n in range(30)]
    dear = [Entry(30 + n, "B", 50, minimum=0, energy=0.0) for n in range(30)]
    chosen = choose([A, B], ledger_of(*cheap, *dear), 1000, np.random.default_rng(0))
    share = np.mean([regime.name == "A" for regime in chosen])
    assert 0.9 < share < 1  # and the other is not forgotten


def test_what_is_tried_without_hope_costs_the_same_in_every_way():
    regimes = [A, B, replace(A, name="C")]
    best = [Entry(n, "A", 5, minimum=n, energy=0.0) for n in range(500)]
    dear = [Entry(500 + n, "B", 50, minimum=0, energy=0.0) for n in range(100)]
    cheap = [Entry(600 + n, "C", 5, minimum=0, energy=0.0) for n in range(100)]
    chosen = [
        regime.name for regime in choose(regimes, ledger_of(*best, *dear, *cheap), 20_000, np.random.default_rng(0))
    ]
    assert chosen.count("B") > 0
    assert 7 < chosen.count("C") / chosen.count("B") < 13
    # Long after the last force call the dear one is what may still find something.
    idle = [Entry(700 + n, "A", 0) for n in range(25 * 16)]
    ledger = ledger_of(*best, *dear, *cheap, *idle)
    chosen = [regime.name for regime in choose(regimes, ledger, 20_000, np.random.default_rng(0))]
    assert 0.8 < chosen.count("C") / chosen.count("B") < 1.25


def test_visits_count_hits_and_turns_of_what_can_be_turned_within_the_window():
    met = [(0, 1.0), (1, 0.5), (0, 1.0), (2, 9.0), (0, 1.0)]
    turnable = [Entry(n, "A", 10, *minimum, turnable=True) for n, minimum in enumerate(met)]
    ledger = ledger_of(*turnable, Entry(5, "A", 10, 3, 0.7), window=5.0)
    assert ledger.visits_to_turnable() == {0: 3, 1: 1}
    back = Entry(10**9, "B", 0, minimum=1, energy=0.5, returned=True, turned=1)
    ledger.enter(back)  # no hit, but a visit
    ledger.advance(before=2 * 10**9)
    assert ledger.visits_to_turnable() == {0: 3, 1: 2}
    assert ledger.only_hits() == {"A": 2}
    ledger.enter(Entry(3 * 10**9, "C", 0, minimum=1, energy=0.5, returned=True))  # so is coming back with noise
    ledger.advance(before=4 * 10**9)
    assert ledger.visits_to_turnable() == {0: 3, 1: 3}
    assert ledger.only_hits() == {"A": 2}


def test_nothing_starts_from_known_minima_before_there_are_any():
    again = Regime("again", Diffusion(), Schedule(), KNOWN, sigma=1.0)
    rng = np.random.default_rng(0)
    assert {regime.name for regime in choose([A, again], Ledger(), 100, rng)} == {"A"}
    known = ledger_of(Entry(0, "A", 10, minimum=0, energy=0.0))
    assert {regime.name for regime in choose([A, again], known, 100, rng)} == {"A", "again"}


def test_turning_known_minima_needs_no_learned_forces_to_be_tried():
    settled, turns = replace(A, name="settled", settled=True), Regime("turned", Diffusion(), Schedule(), TURNED)

    def chosen(turnable):
        ledger = ledger_of(Entry(0, "settled", 10, minimum=0, energy=0.0, turnable=turnable))
        return [regime.name for regime in choose([A, settled, turns], ledger, 1000, np.random.default_rng(0), True)]

    assert chosen(True).count("turned") > 200 > 50 > chosen(True).count("A")
    assert "turned" not in chosen(False)


def test_regimes_without_learned_forces_wait_until_they_have_shown_that_they_do_better():
    settled = replace(A, name="settled", settled=True)

    def share(ledger, settling=True):
        chosen = choose([A, settled], ledger, 1000, np.random.default_rng(0), settling)
        return np.mean([regime is settled for regime in chosen])

    assert share(Ledger()) > 0.95
    assert share(Ledger(), settling=False) == 0
    poor = [Entry(n, "settled", 10, minimum=0, energy=0.0) for n in range(60)]
    good = [Entry(100 + n, "A", 10, minimum=1 + n, energy=0.0) for n in range(12)]
    assert share(ledger_of(*poor, *good)) < 0.1
    as_good = [Entry(n, "settled", 10, minimum=100 + n, energy=0.0) for n in range(12)]
    assert share(ledger_of(*as_good, *good)) > 0.8


def test_what_is_far_above_the_window_is_told_from_what_may_come_down_to_it():
    ledger = ledger_of(Entry(0, "A", 10, minimum=0, energy=-7.0), window=5.0)
    assert ledger.ceiling == -7.0 + 5.0 + MARGIN
    assert Ledger(5.0).ceiling == np.inf
