"""GenerativeRSS: budgets, resuming, failures, counting, and what is found."""

import multiprocessing
import sqlite3
import sys
import threading
import time
from dataclasses import replace
from tempfile import mkdtemp

import numpy as np
import pytest
from ase import Atoms
from ase.build import molecule
from ase.calculators.calculator import BaseCalculator, Calculator, all_changes
from ase.calculators.emt import EMT
from ase.calculators.lj import LennardJones
from ase.calculators.mixing import SumCalculator
from ase.db import connect
from conftest import GaussianScore

from ase_gss import GenerativeRSS, InputError, calculators
from ase_gss.calculator_source import CalculatorSource
from ase_gss.coupling import Langevin, Mn
from ase_gss.database import ArchiveError
from ase_gss.found import Found
from ase_gss.schedule import Schedule
from ase_gss.search import SearchError
from ase_gss.settings import check_settings
from ase_gss.trial import Ended

TETRAHEDRON = -6.0  # energy of four Lennard-Jones atoms with six contacts, in units of epsilon


class Counting(LennardJones):
    """Lennard-Jones atoms; counts, and fails where it is told to."""

    def __init__(self, fail=lambda call: False):
        super().__init__(sigma=1.0, epsilon=1.0, rc=20.0)
        self.fail, self.calls = fail, 0

    def calculate(self, *args, **kwargs):
        self.calls += 1
        if self.fail(self.calls):
            raise RuntimeError("SCF not converged\n  in 250 cycles")
        super().calculate(*args, **kwargs)


def rss(trials=None, calculator=None, formula="Ar4", **keywords):
    search = GenerativeRSS(formula, calculator or Counting(), coupling="rss", **keywords)
    if trials:
        search.run(trials=trials)
    return search


def by_number(search):
    """In which order trials are written is left open: several are under way at once."""
    return sorted(search.archive.records, key=lambda record: record.number)


def same_records(a, b):
    assert [r.number for r in by_number(a)] == [r.number for r in by_number(b)]
    for first, second in zip(by_number(a), by_number(b), strict=True):
        ends = [search.archive.atoms_of(first.number).positions for search in (a, b)]
        np.testing.assert_array_equal(*ends)
        assert (first.force_calls, first.ended) == (second.force_calls, second.ended)


def test_finds_the_tetrahedron_and_counts_every_call():
    calculator = Counting()
    search = rss(20, calculator, fmax=0.01)
    best = search.minima[0]
    assert best.get_potential_energy() == pytest.approx(TETRAHEDRON, abs=0.05)
    assert np.abs(best.get_forces()).max() < 0.01
    assert set(best.info) >= {"hits", "first_call", "first_trial", "trial"}
    assert sum(search.hits) == sum(atoms.info["hits"] for atoms in search.minima)
    assert search.trials == 20
    assert search.force_calls == calculator.calls
    assert search.score_calls == 0


def test_max_calls_is_kept_to_within_one_trial():
    for budget in (1, 57, 400):
        search = rss()
        search.run(max_calls=budget)
        largest = max(record.force_calls for record in search.archive.records)
        assert budget <= search.force_calls < budget + largest


PLACES = np.array([[0, 0, 0], [1.1, 0, 0], [0.5, 1, 0], [0.5, 0.4, 0.9]])


@pytest.mark.parametrize("coupling", [Mn(below=0.5), "force", Langevin(n_steps=150)])
def test_max_calls_with_forces_while_sampling(coupling):
    score, calculator = GaussianScore(PLACES), Counting()
    search = GenerativeRSS("Ar4", calculator, score=score, coupling=coupling, recognise=False)
    search.run(max_calls=300)
    largest = max(record.force_calls for record in search.archive.records)
    assert 300 <= search.force_calls < 300 + largest
    assert search.force_calls == calculator.calls
    assert any(record.converged for record in search.archive.records)
    # Trials that had not begun to spend force calls are left out of the books.
    assert search.score_calls <= score.calls


class Spread:
    """Scores towards one of two structures, so that trials end here and there."""

    name = "spread"

    def __call__(self, numbers, positions, sigma, structure):
        clean = np.tile(PLACES, (structure[-1] + 1, 1))
        return (clean - positions) / (0.2**2 + sigma[:, None] ** 2)


def test_where_sampling_costs_force_calls_it_does_not_run_ahead():
    """What is sampled, and out of budget before it is relaxed, has cost calls for nothing."""
    search = GenerativeRSS("Ar4", Counting(), score=GaussianScore(PLACES), coupling=Mn(below=10.0), recognise=False)
    search.run(max_calls=1500)
    ended = [str(record.ended) for record in search.archive.records]
    assert sum("budget" in each for each in ended) <= 16
    assert "minimum" in ended


def sampled(path=None, calculator=None):
    return GenerativeRSS("Ar4", calculator or Counting(), score=Spread(), coupling="diffusion", database=path)


def test_where_a_search_stops_in_between_changes_nothing(tmp_path):
    whole = sampled()
    whole.run(trials=70)
    parts = sampled(tmp_path / "x.db")
    for trials in (5, 20, 40, 70):
        parts.run(trials=trials)
        parts = sampled(tmp_path / "x.db")
    same_records(whole, parts)
    assert {record.known for record in whole.archive.records} == {record.known for record in parts.archive.records}
    assert sorted(whole.hits) == sorted(parts.hits)
    ended = [str(record.ended) for record in by_number(whole)]
    assert sum(whole.hits) == ended.count("minimum") + ended.count("known")
    # Nobody knows anything before the first generation is complete and two more have begun.
    assert set(ended[:48]) == {"minimum"}
    assert "familiar" in ended[48:]
    budget = sampled()
    for max_calls in (30, 200, 500):
        budget.run(max_calls=max_calls)
    within_budget = {record.number for record in budget.archive.records} & set(range(70))
    assert len(within_budget) > 5
    for number in within_budget:
        ends = [search.archive.atoms_of(number).positions for search in (whole, budget)]
        np.testing.assert_array_equal(*ends)


def test_an_interrupt_after_the_commit_writes_nothing_twice(tmp_path, monkeypatch):
    path = tmp_path / "x.db"
    search = rss(database=path)
    write = search.archive._write

    def interrupted(rows):
        write(rows)
        raise KeyboardInterrupt

    monkeypatch.setattr(search.archive, "_write", interrupted)
    with pytest.raises(KeyboardInterrupt):
        search.run(trials=5)
    monkeypatch.undo()
    again = rss(database=path)
    numbers = [record.number for record in again.archive.records]
    assert len(numbers) == len(set(numbers)) > 0
    again.run(trials=8)
    assert sorted(row.trial for row in connect(path).select("trial>=0")) == list(range(8))


def test_a_failed_refinement_keeps_the_minimum_and_is_tried_again(tmp_path):
    path = tmp_path / "x.db"
    rss(5, database=path)
    found = len(rss(database=path).minima)
    failing = GenerativeRSS.resumed(path, Counting(fail=lambda call: True))
    assert len(failing.refine_minima()) == found
    assert failing.refinement_calls > 0
    minima = GenerativeRSS.resumed(path, Counting()).refine_minima(fmax=1e-4)
    assert np.abs(minima[0].get_forces()).max() < 1e-4


def test_same_seed_same_search_and_other_seed_another():
    a, b, c = rss(6, seed=1), rss(6, seed=1), rss(6, seed=2)
    same_records(a, b)
    assert not np.allclose(a.archive.atoms_of(0).positions, c.archive.atoms_of(0).positions)


def test_what_is_sampled_with_forces_is_finished_when_a_search_stops(tmp_path):
    def search(calculator):
        keywords = {"score": GaussianScore(PLACES), "coupling": Mn(below=0.5), "recognise": False}
        return GenerativeRSS("Ar4", calculator, database=tmp_path / "x.db", **keywords)

    calculator = Counting()
    stopped = search(calculator)
    stopped.attach(stopped.stop, 3)
    stopped.run(trials=64)
    assert stopped.trials < 64
    assert stopped.force_calls == calculator.calls  # nothing that was spent is lost
    again = search(calculator)
    again.run(trials=64)
    assert again.trials == 64
    assert again.force_calls == calculator.calls


def test_an_interrupted_search_goes_on_where_it_stopped(tmp_path):
    path = tmp_path / "ar4.db"
    first = rss(database=path)
    first.attach(lambda: (_ for _ in ()).throw(KeyboardInterrupt()), 7)
    with pytest.raises(KeyboardInterrupt):
        first.run(trials=12)
    finished = connect(path).count("trial>=0")
    assert 0 < finished <= 12
    calculator = Counting()
    second = rss(database=path, calculator=calculator)
    assert second.trials == finished
    spent = second.force_calls
    second.run(trials=12)
    assert calculator.calls == second.force_calls - spent
    whole = rss(12)
    assert sorted(r.number for r in second.archive.records) == list(range(12))
    assert second.force_calls == whole.force_calls
    for a, b in zip(second.minima, whole.minima, strict=True):
        assert a.get_potential_energy() == pytest.approx(b.get_potential_energy(), abs=1e-9)
    assert second.run(trials=12) == second.minima  # nothing left to do


def test_the_database_opens_in_ase(tmp_path):
    path = tmp_path / "ar5.db"
    search = rss(15, formula="Ar5", database=path)
    database = connect(path)
    rows = list(database.select("trial>=0"))
    assert sorted(row.trial for row in rows) == list(range(15))
    assert {"ended", "reason", "seed", "coupling", "force_calls", "score_calls", "converged"} <= set(rows[0])
    ranks = {row.minimum: row.trial for row in database.select("minimum>0")}
    assert ranks == {rank: atoms.info["trial"] for rank, atoms in enumerate(search.minima, start=1)}
    assert database.metadata["force_calls"] == search.force_calls
    assert not list(tmp_path.glob("*.lock"))
    assert sqlite3.connect(path).execute("PRAGMA integrity_check").fetchone() == ("ok",)


def test_one_failure_ends_one_trial_with_its_reason():
    calculator = Counting(fail=lambda call: call == 30)
    search = rss(10, calculator)
    failed = [record for record in search.archive.records if str(record.ended) == "calculator failed"]
    assert len(failed) == 1
    assert "SCF not converged in 250 cycles" in failed[0].reason
    assert search.force_calls == calculator.calls


def test_nothing_but_failures_end_the_search(tmp_path):
    path = tmp_path / "x.db"
    search = rss(calculator=Counting(fail=lambda call: True), database=path)
    with pytest.raises(SearchError, match=r"20 of 20 trials have failed.*SCF not converged"):
        search.run(trials=100)
    assert connect(path).count() == 20


def test_fragments_count_only_when_asked_for():
    far = Atoms("Ar2", positions=[[0, 0, 0], [9, 0, 0]])
    keywords = {"calculator": LennardJones(sigma=1.0, rc=3.0), "formula": "Ar2", "starts": [far], "sigma_start": 1e-6}
    assert rss(1, **keywords).minima == []
    assert len(rss(1, fragments=True, **keywords).minima) == 1


def test_own_starts_are_taken_in_turn():
    a, b = Atoms("Ar2", positions=[[0, 0, 0], [1.2, 0, 0]]), Atoms("Ar2", positions=[[5, 0, 0], [6.0, 0, 0]])
    search = rss(4, formula="Ar2", starts=[a, b], sigma_start=0.01)
    places = [search.archive.atoms_of(record.number).positions[:, 0].mean() for record in search.archive.records]
    np.testing.assert_allclose(places, [0.6, 5.5, 0.6, 5.5], atol=0.1)
    with pytest.raises(InputError, match="must be a structure of Ar3"):
        rss(formula="Ar3", starts=[a])
    a.pbc = True
    with pytest.raises(InputError, match="periodic"):
        rss(formula="Ar2", starts=[a])


class TwoWells(Calculator):
    """Springs to two places, the nearer one."""

    implemented_properties = ["energy", "forces"]
    places = np.array([molecule("H2O").positions, 1.05 * molecule("H2O").positions])

    def calculate(self, atoms=None, properties=None, system_changes=all_changes):
        super().calculate(atoms, properties, system_changes)
        well = min((0, 1), key=lambda k: np.abs(self.atoms.positions - self.places[k]).sum())
        away = self.atoms.positions - self.places[well]
        self.results = {"energy": 0.02 * well + 0.5 * np.sum(away**2), "forces": -away}


def test_minima_that_a_search_takes_for_one_are_two_once_every_end_is_refined(tmp_path):
    starts = [Atoms("OH2", positions=places) for places in TwoWells.places]
    path, keywords = tmp_path / "x.db", {"coupling": "rss", "starts": starts, "sigma_start": 1e-3}
    search = GenerativeRSS("H2O", TwoWells(), database=path, **keywords)
    search.run(trials=5)
    assert search.hits == [5]
    search.refine_minima()
    assert search.hits == [5]
    calls = search.refinement_calls
    minima = search.refine_minima(every_end=True)
    assert search.refinement_calls > calls
    assert [atoms.get_potential_energy() for atoms in minima] == pytest.approx([0.0, 0.02], abs=1e-4)
    assert [atoms.info["hits"] for atoms in minima] == [3, 2]
    assert [atoms.info["first_trial"] for atoms in minima] == [0, 1]
    again = GenerativeRSS.resumed(path, TwoWells())
    assert again.hits == [3, 2]
    assert {row.minimum for row in connect(path).select("minimum>0")} == {1, 2}


def test_no_minimum_has_less_than_one_hit_whatever_came_back_to_where_it_began():
    starts = [Atoms("OH2", positions=places) for places in TwoWells.places]
    search = GenerativeRSS("H2O", TwoWells(), coupling="rss", starts=starts, sigma_start=1e-3)
    search.run(trials=5)
    records = search.archive.records
    records[:] = [replace(record, parent=0 if record.number else None) for record in records]
    search._found = Found(search.archive)
    assert search.hits == [1]
    search.refine_minima(every_end=True)
    assert search.hits == [1, 1]


def test_refinement_is_counted_apart_and_not_repeated(tmp_path):
    path = tmp_path / "x.db"
    search = rss(10, database=path, fmax=0.3)
    calls = search.force_calls
    minima = search.refine_minima(fmax=0.001)
    assert minima[0].get_potential_energy() == pytest.approx(TETRAHEDRON, abs=2e-3)
    assert np.abs(minima[0].get_forces()).max() < 0.001
    assert search.force_calls == calls
    spent = search.refinement_calls
    assert spent > 0
    again = GenerativeRSS.resumed(path, Counting())
    again.refine_minima(fmax=0.001)
    assert again.refinement_calls == spent
    assert len(again.minima) == len(minima)
    again.refine_minima(fmax=1e-5)
    assert again.refinement_calls > spent
    ranks = {row.minimum for row in connect(path).select("minimum>0")}
    assert ranks == set(range(1, len(again.minima) + 1))


def test_a_database_of_another_search_is_refused(tmp_path):
    path = tmp_path / "x.db"
    rss(2, database=path)
    with pytest.raises(InputError, match="formula Ar4, not Ar3"):
        rss(formula="Ar3", database=path)
    with pytest.raises(InputError, match="seed 0, not 5"):
        rss(seed=5, database=path)
    other = tmp_path / "other.db"
    connect(other, use_lock_file=False).write(Atoms("H"))
    text, empty, foreign = tmp_path / "text.db", tmp_path / "empty.db", tmp_path / "foreign.db"
    text.write_text("no database at all " * 100)
    empty.touch()
    with sqlite3.connect(foreign) as connection:
        connection.execute("CREATE TABLE mine (x)")
    connection.close()
    for path in (other, text, empty, foreign):
        before = path.read_bytes()
        with pytest.raises(InputError, match="not a database of ase-gss"):
            rss(database=path)
        assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"formula": "Xx2"}, "not a chemical formula"),
        ({"formula": "C3H6O)"}, "C3H6O.* is not a chemical formula"),
        ({"fmax": -1}, "must be positive"),
        ({"multiplicity": 2, "calculator": "lj"}, "cannot have multiplicity 2"),
        ({"multiplicity": 3}, "set them in your own calculator"),
        ({"multiplicity": 3, "calculator": "lj"}, "cannot be told a multiplicity"),
        ({"charge": 1, "calculator": "lj"}, "knows of no charge"),
        ({"seed": -1}, "seed"),
        ({"seed": None}, "seed is a whole number"),
        ({"workers": 2, "executor": object(), "call_limit": 1.0}, "limits are for workers of the search's own"),
        ({"verify": "yes"}, "verify"),
        ({"calculator": "gfn3"}, "No calculator 'gfn3'"),
    ],
)
def test_wrong_input_is_one_sentence(keywords, message):
    with pytest.raises(InputError, match=message):
        rss(1, **keywords)


def test_atoms_are_a_composition_in_whatever_order():
    atoms = molecule("CH3CHO")
    numbers = [GenerativeRSS(each, "lj", coupling="rss").numbers.tolist() for each in (atoms, atoms[::-1], "C2H4O")]
    assert numbers == [[8, 6, 6, 1, 1, 1, 1]] * 3


def test_a_database_with_another_order_of_atoms_does_not_go_on(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:  # as an earlier version did
        patch.setattr("ase_gss.systems.parse_formula", lambda text: np.array([1, 1, 8]))
        rss(1, formula="H2O", database=tmp_path / "x.db")
    with pytest.raises(InputError, match="another order"):
        rss(formula="H2O", database=tmp_path / "x.db")


def test_one_start_need_not_be_in_a_list():
    start = Atoms("Ar4", positions=1.2 * np.eye(4)[:, :3])
    assert rss(1, starts=start).trials == 1


def test_another_schedule_is_another_search(tmp_path):
    score = GaussianScore(1.2 * np.eye(4)[:, :3])

    def search(**parameters):
        schedule = Schedule(n_steps=3, **parameters)
        return GenerativeRSS("Ar4", "lj", score=score, schedule=schedule, database=tmp_path / "x.db")

    search().run(trials=1)
    with pytest.raises(InputError, match="schedule"):
        search(rho=1.0)


def test_what_was_resumed_does_not_search_on(tmp_path):
    rss(2, formula="Ar2", calculator="lj", database=tmp_path / "x.db")
    with pytest.raises(InputError, match="look at and refine"):
        GenerativeRSS.resumed(tmp_path / "x.db").run(trials=3)


class Files(BaseCalculator):
    """Like ASE's calculators that read the files of a program, which cannot be reset."""

    implemented_properties = ("energy", "forces")

    def calculate(self, atoms, properties, system_changes):
        if not hasattr(self, "calls"):
            self.calls = 0
        self.calls += 1
        if self.calls == 5:
            raise RuntimeError("no file")
        lj = LennardJones()
        self.results = {name: lj.get_property(name, atoms) for name in self.implemented_properties}


class Shell(LennardJones):
    """A program that is kept running and goes for good with the first structure that it fails at."""

    closed = 0

    def __init__(self):
        super().__init__()
        self.gone = False

    def calculate(self, *args, **kwargs):
        super().calculate(*args, **kwargs)
        self.gone = self.gone or self.atoms.positions[0, 0] > 0.5
        if self.gone:
            raise BrokenPipeError

    def close(self):
        Shell.closed += 1


@pytest.mark.parametrize("workers", [1, 2])
def test_a_program_that_has_gone_is_started_again(workers):
    Shell.closed = 0
    search = rss(40, calculator=Shell, failure_limit=1.0, workers=workers)
    failed = [record.ended for record in search.archive.records].count(Ended.CALCULATOR)
    assert 0 < failed < 35
    if workers == 1:
        assert 0 < Shell.closed <= failed / 2  # after two failures in a row
    once = rss(40, calculator=Shell(), failure_limit=1.0)  # nothing can be made anew of this one
    assert [record.ended for record in once.archive.records].count(Ended.CALCULATOR) > failed


def test_where_no_other_can_be_made_the_one_that_fails_says_what_is_wrong():
    made = []

    def licensed():
        if made:
            raise OSError("no license left")
        made.append(Counting(fail=lambda call: True))
        return made[0]

    with pytest.raises(SearchError, match="have failed"):
        rss(40, calculator=licensed)
    shared = Shell()
    shared.close = lambda: pytest.fail("it is the same one")
    rss(8, calculator=lambda: shared, failure_limit=1.0)


def test_a_search_is_refined_with_its_own_potential(tmp_path):
    rss(2, calculator="lj", database=tmp_path / "x.db")
    with pytest.raises(InputError, match="of a search with the calculator lj, not lennardjones: refine it with that"):
        GenerativeRSS.resumed(tmp_path / "x.db", LennardJones())
    rss(2, calculator=calculators._lennard_jones, database=tmp_path / "z.db")
    GenerativeRSS.resumed(tmp_path / "z.db", "lj").refine_minima()  # the same one by its name
    with pytest.raises(InputError, match="of a search with the calculator lennardjones, not emt"):
        GenerativeRSS.resumed(tmp_path / "z.db", EMT())
    rss(2, calculator=LennardJones(epsilon=0.5), database=tmp_path / "y.db")
    with pytest.raises(InputError, match=r"has epsilon=0\.5, .*, not epsilon=1\.0"):
        GenerativeRSS.resumed(tmp_path / "y.db", "lj")
    GenerativeRSS.resumed(tmp_path / "y.db", LennardJones(epsilon=0.5)).refine_minima()
    with pytest.raises(InputError, match=r"epsilon=0\.5, not epsilon=0\.1"):
        GenerativeRSS.resumed(tmp_path / "y.db", LennardJones(epsilon=0.1))


def test_a_refinement_that_fails_says_so(tmp_path, caplog):
    rss(5, database=tmp_path / "x.db")
    failing = GenerativeRSS.resumed(tmp_path / "x.db", Counting(fail=lambda call: True))
    n_minima = len(failing.refine_minima())
    assert len(failing.refinement_failures) == n_minima
    assert f"{n_minima} of {n_minima} could not be refined, the last so: " in caplog.text
    whole = GenerativeRSS.resumed(tmp_path / "x.db", Counting())
    whole.refine_minima()
    assert not any(whole.refinement_failures)


def test_what_is_no_text_in_a_reason_costs_no_trial(tmp_path):
    class Foreign(Counting):
        def calculate(self, *args, **kwargs):
            super().calculate(*args, **kwargs)
            if self.calls % 7 == 0:
                raise RuntimeError("SCF: \udce9nergie")

    search = rss(6, calculator=Foreign(), database=tmp_path / "x.db", failure_limit=1.0)
    assert search.trials == 6
    reasons = [record.reason for record in rss(calculator=Foreign(), database=tmp_path / "x.db").archive.records]
    assert any("SCF: ?nergie" in reason for reason in reasons)


def test_what_one_part_of_a_calculator_does_not_state_may_be_a_default():
    def stated(**parameters):
        return {"calculator_parameters": {"class": "Boxed", "parts": [{"name": "Vasp", **parameters}]}}

    check_settings("x.db", stated(encut=400), stated(encut=400, nelm=200))
    with pytest.raises(InputError, match=r"encut=400 in its parts, not encut=500"):
        check_settings("x.db", stated(encut=400), stated(encut=500, nelm=200))


def test_another_class_behind_the_same_function_is_another_calculator(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    module = tmp_path / "ase_gss_changing.py"
    module.write_text("from ase.calculators.emt import EMT as calculator\n")
    keywords = {"calculator": "ase_gss_changing:calculator", "database": tmp_path / "x.db", "coupling": "rss"}
    GenerativeRSS("Cu3", **keywords).run(trials=1)
    GenerativeRSS("Cu3", **keywords).run(trials=2)
    monkeypatch.setattr(sys.modules["ase_gss_changing"], "calculator", LennardJones)
    with pytest.raises(InputError, match="has class='EMT', not class='LennardJones'"):
        GenerativeRSS("Cu3", **keywords)


def test_a_calculator_that_cannot_be_reset():
    search = rss(3, calculator=Files(), failure_limit=1.0)
    failed = [record for record in search.archive.records if record.ended is Ended.CALCULATOR]
    assert [record.reason for record in failed] == ["calculator: RuntimeError: no file"]
    assert search.trials == 3


def test_a_sum_of_calculators_remembers_no_other_trial():
    class Remembering(LennardJones):
        resets = 0

        def reset(self):
            super().reset()
            Remembering.resets += 1

    search = rss(3, calculator=SumCalculator([Remembering(), LennardJones()]))
    assert search.force_calls > 3
    before = Remembering.resets
    search.plan.new_calculator()
    assert Remembering.resets == before + 1


def test_another_sum_of_calculators_is_another_search(tmp_path):
    def sum_of(epsilon):
        return SumCalculator([LennardJones(), LennardJones(epsilon=epsilon)])

    rss(1, calculator=sum_of(0.5), database=tmp_path / "x.db")
    rss(2, calculator=sum_of(0.5), database=tmp_path / "x.db")
    with pytest.raises(InputError, match="parts"):
        rss(3, calculator=sum_of(0.1), database=tmp_path / "x.db")


def test_what_is_computed_on_demand_is_computed_once():
    asked = []

    class OnDemand(Files):
        def calculate(self, atoms, properties, system_changes):
            asked.append(properties)
            lj = LennardJones()
            self.results = {name: lj.get_property(name, atoms) for name in ["energy", *properties]}

    search = rss(1, calculator=OnDemand())
    assert asked == [["forces"]] * search.force_calls


def test_odd_electrons_have_multiplicity_two():
    assert rss(formula="CH3").multiplicity == 2
    assert rss(formula="CH4").multiplicity == 1


def test_a_function_makes_the_calculator_once():
    made = []

    def make():
        made.append(Counting())
        return made[-1]

    search = rss(5, make)
    assert len(made) == 1
    assert search.force_calls == made[0].calls
    with pytest.raises(InputError, match="makes one"):
        rss(calculator=lambda: None)


def test_needs_an_end():
    with pytest.raises(InputError, match="trials, max_calls"):
        rss().run()


def test_a_saddle_point_is_pushed_off(tmp_path):
    # Three atoms in a row are a saddle point of the Lennard-Jones trimer (fmax is met at once, by symmetry).
    row = Atoms("Li3", positions=[[-1.1187, 0, 0], [0, 0, 0], [1.1187, 0, 0]])
    keywords = {"formula": "Li3", "starts": [row], "sigma_start": 1e-9, "database": tmp_path / "x.db"}
    plain = rss(1, **keywords)
    assert plain.minima[0].get_potential_energy() == pytest.approx(-2.03, abs=0.01)
    verified = GenerativeRSS.resumed(tmp_path / "x.db", Counting(), verify="hessian")
    minima = verified.refine_minima()
    assert minima[0].get_potential_energy() == pytest.approx(-3.0, abs=0.01)
    assert verified.verification_calls > 18
    assert verified.force_calls == plain.force_calls


def test_a_check_that_the_calculator_spoils_takes_no_minimum_away(tmp_path):
    rss(1, formula="Ar2", calculator=Counting(), database=tmp_path / "x.db")

    def fail(call):
        if call == 12:
            raise RuntimeError("no convergence")

    spoilt = GenerativeRSS.resumed(tmp_path / "x.db", Counting(fail), verify="hessian")
    assert len(spoilt.refine_minima()) == 1
    assert spoilt.archive.refined == {}
    (row,) = connect(tmp_path / "x.db", use_lock_file=False).select("refined_trial>=0")
    assert (row.ended, row.verified) == ("calculator failed", False)
    again = GenerativeRSS.resumed(tmp_path / "x.db", Counting(), verify="hessian")
    assert len(again.refine_minima()) == 1
    assert again.archive.refined[0].verified


@pytest.mark.parametrize(
    ("other", "says"),
    [
        ({"starts": "other"}, "is of a search with other starts"),
        ({"sigma_start": 0.2}, "is of a search with sigma_start 0.1, not 0.2"),
        ({"starts": None}, "is of a search with own_starts 1, not 0"),
        ({"optimizer": "FIRE"}, "is of a search with optimizer ModelBFGS, not FIRE"),
        ({"max_steps": 5}, "is of a search with max_steps 300, not 5"),
        ({"recognise": False}, "is of a search with recognise True, not False"),
    ],
)
def test_what_makes_other_trials_is_another_search(tmp_path, other, says):
    one, two = (Atoms("Ar2", positions=[[0, 0, 0], [0, 0, d]]) for d in (1.2, 1.4))
    keywords = {"formula": "Ar2", "database": tmp_path / "x.db"}
    rss(2, starts=[one], sigma_start=0.1, **keywords)
    rss(3, starts=[one.copy()], sigma_start=0.1, **keywords)
    changed = {"starts": [one], "sigma_start": 0.1} | other
    if changed["starts"] == "other":
        changed["starts"] = [two]
    with pytest.raises(InputError, match=says):
        rss(4, **changed, **keywords)


def test_another_potential_of_the_same_class_is_another_search(tmp_path):
    def search(sigma, database="x.db"):
        def make():
            return LennardJones(sigma=sigma, epsilon=1.0, rc=20.0)

        return GenerativeRSS("Ar2", make, coupling="rss", database=tmp_path / database)

    search(1.0).run(trials=2)
    search(1.0).run(trials=3)
    with pytest.raises(InputError, match=r"whose calculator has sigma=1\.0, not sigma=1\.1: give another database"):
        search(1.1)


def test_what_a_calculator_does_not_state_may_be_a_default():
    earlier = {"calculator_parameters": {"method": "PBE", "width": 0.1}}
    check_settings("x.db", earlier, {"calculator_parameters": {"method": "PBE", "grid": 3}})
    check_settings("x.db", {}, {"calculator_parameters": {"method": "PBE"}})
    with pytest.raises(InputError, match=r"has method='PBE', not method='PW91': give"):
        check_settings("x.db", earlier, {"calculator_parameters": {"method": "PW91"}})


def test_where_a_calculator_works_is_no_part_of_the_potential(tmp_path):
    def made():
        calculator = LennardJones(sigma=1.0)
        calculator.parameters |= {
            "tmp_dir": mkdtemp(dir=tmp_path),
            "solvent": None,
            "nprocshared": 8,
            "basis": object(),
        }
        return calculator

    stated = CalculatorSource(made).parameters
    assert stated == CalculatorSource(made).parameters
    assert stated["sigma"] == 1.0
    assert not {"tmp_dir", "solvent", "nprocshared", "basis"} & set(stated)


def test_a_function_that_makes_no_calculator_is_one_sentence():
    def broken():
        raise RuntimeError("license not found")

    with pytest.raises(InputError, match=r"^The calculator cannot be made: RuntimeError: license not found\.$"):
        rss(calculator=broken)


def test_a_database_that_fails_at_once_leaves_no_workers(tmp_path, monkeypatch):
    def fails(*_, **__):
        raise ArchiveError("x.db cannot be read")

    rss(2, formula="Ar2", calculator="lj", database=tmp_path / "x.db")
    search = rss(formula="Ar2", calculator="lj", database=tmp_path / "x.db", workers=1, call_limit=60.0)
    monkeypatch.setattr("ase_gss.driver.Found", fails)
    before = set(multiprocessing.active_children())
    with pytest.raises(ArchiveError):
        search.run(trials=4)
    assert set(multiprocessing.active_children()) == before


def test_a_slow_calculator_is_a_sign_of_life(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr("ase_gss.reservations.LIFETIME", 1.0)
    monkeypatch.setattr("ase_gss.heartbeat.INTERVAL", 0.2)
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "x.db"
    search = rss(calculator=Counting(lambda call: time.sleep(0.1)), database="x.db")
    runs = threading.Thread(target=search.run, kwargs={"trials": 1})
    runs.start()
    time.sleep(2.0)  # its relaxation takes longer than others wait
    monkeypatch.chdir(tmp_path.parent)  # as a calculator may do
    elsewhere = rss(database=path)
    elsewhere.archive._reservations._host = "another host"
    caplog.clear()
    assert elsewhere.archive.reserve(16, 1) == []
    assert "missing are with another search on this database" in caplog.text
    assert runs.is_alive()
    runs.join()
    assert [record.number for record in search.archive.records] == [0]


def test_an_interrupt_while_a_trial_ends_leaves_none_half_ended(tmp_path, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    search = rss(3, database=tmp_path / "x.db")
    with monkeypatch.context() as patch:
        patch.setattr("ase_gss.trial.SinglePointCalculator", interrupted)
        with pytest.raises(KeyboardInterrupt):
            search.run(trials=6)
    again = rss(6, database=tmp_path / "x.db")
    same_records(again, rss(6))
