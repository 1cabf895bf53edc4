"""Refinement: the same whoever does it, and what becomes of a minimum that cannot be refined."""

import os
import signal
import threading
from concurrent.futures import Future, ThreadPoolExecutor

import faulty
import numpy as np
import pytest
from ase import Atoms
from ase.calculators.emt import EMT
from ase.optimize import BFGS

from ase_gss.archive import Archive
from ase_gss.calculator_source import calculator_source
from ase_gss.cli import main
from ase_gss.found import Found
from ase_gss.refine import refine, what_to_refine
from ase_gss.search import GenerativeRSS
from ase_gss.trial import Ended
from ase_gss.workers import Runner, WorkerPool, WorkersError, perform


def searched(path, calculator="emt", **keywords):
    search = GenerativeRSS("Cu4", calculator, coupling="rss", database=path, **keywords)
    search.run(trials=8)
    return search


def outcomes(search):
    """What refinement has made of each end, by its trial."""
    return {
        number: (refined.atoms.get_potential_energy(), refined.atoms.positions.tolist(), refined.refinement_calls)
        for number, refined in search.archive.refined.items()
    }


def test_refinement_is_the_same_whoever_does_it(tmp_path):
    alone = searched(tmp_path / "alone.db")
    minima = alone.refine_minima(every_end=True)
    assert len(outcomes(alone)) > len(minima) > 0
    with ThreadPoolExecutor(2) as executor:
        for name, crew in (("workers", {"workers": 2}), ("executor", {"workers": 2, "executor": executor})):
            first = searched(tmp_path / f"{name}.db", refine=True, **crew)
            assert outcomes(first).items() <= outcomes(alone).items()
            assert 0 < len(outcomes(first)) < len(outcomes(alone))
            search = GenerativeRSS.resumed(tmp_path / f"{name}.db", **crew)
            others = search.refine_minima(every_end=True)
            assert outcomes(search) == outcomes(alone)
            assert search.refinement_calls == alone.refinement_calls
            assert [atoms.info for atoms in others] == [atoms.info for atoms in minima]


@pytest.mark.parametrize("way", ["exiting", "hanging"])
def test_what_strikes_costs_one_refinement_and_is_tried_again(tmp_path, way, caplog):
    search = searched(tmp_path / "x.db", getattr(faulty, way))
    numbers = what_to_refine(search._found.minima, search.archive, 0.005, False, every_end=True)
    struck = numbers[1]
    moved = search.archive.atoms_of(struck).copy()
    moved.positions[:, 0] -= 1000
    search.archive.atoms_of = lambda number: moved if number == struck else Archive.atoms_of(search.archive, number)
    reasons = []
    with WorkerPool(search.plan, 2, call_limit=0.5) as crew:
        refine(numbers, search.archive, crew, reasons=reasons)
    assert sum(bool(reason) for reason in reasons) == 1
    assert f"1 of {len(numbers)} could not be refined, the last so: " in caplog.text
    assert search.archive.refined.keys() == set(numbers) - {struck}
    again = Archive(tmp_path / "x.db")
    # The fatal call, its third, and those before it are counted.
    assert search.refinement_calls == 3 + sum(each.refinement_calls for each in again.refined.values())
    assert again.totals["refinement_calls"] == search.refinement_calls
    assert what_to_refine(search._found.minima, again, 0.005, False, every_end=True) == [struck]


def test_the_last_one_left_is_done_by_a_worker_too():
    starts = [Atoms("Cu2", positions=[[-1000, 0, 0], [-997.9, 0, 0]])]
    keywords = {"coupling": "rss", "starts": starts, "sigma_start": 1e-3, "workers": 2}
    search = GenerativeRSS("Cu2", faulty.exiting, **keywords)
    search.archive.append([ended(search.plan)])
    search._found = Found(search.archive)
    assert len(search.refine_minima()) == 1
    assert search.refinement_failures == ["its worker died with exit code 3"]
    assert search.refinement_calls == 3


def ended(plan):
    """A trial that is over, in a minimum."""
    trial = plan.begin(0)
    trial.atoms.calc = EMT()
    energy, forces = trial.atoms.get_potential_energy(), trial.atoms.get_forces()
    trial.end(Ended.MINIMUM, "", True, trial.atoms, energy, forces)
    return trial


class Ordered(Runner):
    """Has all answers at once, in the order in which they were asked for; raises what it is told to."""

    slots = 100

    def __init__(self, plan, errors):
        self._plan, self._errors = plan, errors

    def submit(self, job):
        future = Future()
        if error := self._errors.get(job.numbers[0]):
            future.set_exception(error)
        else:
            future.set_result(perform(self._plan, job))
        return future


def test_what_has_come_back_is_written_whatever_else_has_failed(tmp_path):
    search = searched(tmp_path / "x.db")
    numbers = what_to_refine(search._found.minima, search.archive, 0.005, False, every_end=True)
    with pytest.raises(WorkersError, match="no workers"):
        refine(numbers, search.archive, Ordered(search.plan, {numbers[0]: WorkersError("no workers")}))
    assert Archive(tmp_path / "x.db").refined.keys() == set(numbers[1:])


@pytest.mark.parametrize("workers", [1, 2])
def test_a_refinement_that_is_stopped_goes_on(tmp_path, workers):
    search = searched(tmp_path / "x.db", workers=workers)
    whole = len(what_to_refine(search._found.minima, search.archive, 0.005, False, every_end=True))
    append = search.archive.append_refined
    search.archive.append_refined = lambda refined: (append(refined), search.stop())
    search.refine_minima(every_end=True)
    assert 1 <= len(search.archive.refined) < whole
    search.archive.append_refined = append
    search.refine_minima(every_end=True)
    assert len(search.archive.refined) == whole
    search.run(trials=10)
    assert search.trials == 10


def test_sigterm_ends_the_command_and_keeps_what_is_done(tmp_path, monkeypatch, capsys):
    searched(tmp_path / "x.db")
    append = Archive.append_refined

    def terminated(archive, refined):
        append(archive, refined)
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(Archive, "append_refined", terminated)
    arguments = ["refine", str(tmp_path / "x.db"), "--every-end"]
    assert main(arguments) == 143
    printed = capsys.readouterr()
    assert "rank" in printed.out
    assert printed.err == "Stopped by SIGTERM; the same command goes on from here.\n"
    assert len(Archive(tmp_path / "x.db").refined) == 1
    monkeypatch.undo()
    assert main(arguments) == 0
    assert len(Archive(tmp_path / "x.db").refined) > 1


def test_a_write_that_fails_can_be_made_up_for(tmp_path):
    search = searched(tmp_path / "x.db")
    numbers = what_to_refine(search._found.minima, search.archive, 0.005, False, every_end=True)
    append, tried = search.archive.append_refined, []

    def interrupted(refined):
        tried.append(refined.number)
        if len(tried) == 1:
            raise KeyboardInterrupt
        append(refined)

    search.archive.append_refined = interrupted
    with pytest.raises(KeyboardInterrupt):
        refine(numbers, search.archive, Ordered(search.plan, {}))
    assert Archive(tmp_path / "x.db").refined.keys() == set(numbers)


def test_failures_are_told_however_it_ends(tmp_path, caplog):
    search = searched(tmp_path / "x.db")
    search.archive.append_refined = lambda refined: (_ for _ in ()).throw(KeyboardInterrupt) if told(search) else None
    search.plan.new_calculator = calculator_source(faulty.Striking(share=1.0), 0, 1)[0]
    with pytest.raises(KeyboardInterrupt):
        search.refine_minima(every_end=True)
    assert search.refinement_failures == ["calculator: ValueError: no convergence"]
    assert "1 of 1 could not be refined" in caplog.text


def told(search):
    """Whether it has told of one already."""
    return search.refinement_failures


def test_an_executor_that_is_shut_down_is_told(tmp_path):
    with ThreadPoolExecutor(1) as executor:
        search = searched(tmp_path / "x.db", executor=executor)
    with pytest.raises(WorkersError, match="start again with a new one: cannot schedule new futures after shutdown"):
        search.refine_minima()


def test_a_cluster_is_stopped_and_goes_away(tmp_path):
    distributed = pytest.importorskip("distributed")
    made = {"n_workers": 2, "threads_per_worker": 1, "processes": False, "dashboard_address": None}
    search = searched(tmp_path / "x.db", faulty.slow)
    whole = len(what_to_refine(search._found.minima, search.archive, 0.005, False, every_end=True))
    with distributed.LocalCluster(**made) as cluster, distributed.Client(cluster, set_as_default=False) as client:
        search.executor = client.get_executor(pure=False)
        append = search.archive.append_refined
        search.archive.append_refined = lambda refined: (append(refined), search.stop())
        search.refine_minima(every_end=True)
        assert 1 < len(search.archive.refined) < whole  # what is under way is finished, not thrown away
        search.archive.append_refined = append
        threading.Timer(0.2, client.close).start()
        for _ in "while it works", "and after":
            with pytest.raises(WorkersError, match="The executor is broken, so start again with a new one"):
                search.refine_minima(every_end=True)


def test_an_optimizer_that_fails_leaves_the_minimum_as_it_was_found(tmp_path, monkeypatch, caplog):
    class Stuck(BFGS):
        def step(self, *arguments, **keywords):
            raise RuntimeError("line search failed")

    search = searched(tmp_path / "x.db")
    found = [atoms.positions for atoms in search.minima]
    monkeypatch.setattr(type(search.system), "optimizer", Stuck)
    np.testing.assert_array_equal([atoms.positions for atoms in search.refine_minima()], found)
    assert search.refinement_failures == ["optimizer: RuntimeError: line search failed"] * len(found)
    assert "could not be refined, the last so: optimizer: RuntimeError: line search failed" in caplog.text
    assert search.archive.refined == {}
    monkeypatch.undo()
    search.refine_minima()
    assert {refined.ended for refined in search.archive.refined.values()} == {Ended.MINIMUM}


def test_the_command_takes_workers(tmp_path, capsys):
    alone, shared = (tmp_path / name for name in ("alone.db", "shared.db"))
    tables = []
    for path, workers in ((alone, []), (shared, ["-j", "2", "--call-limit", "60"])):
        searched(path)
        assert main(["refine", str(path), "--every-end", *workers]) == 0
        tables.append(capsys.readouterr().out)
    assert tables[0] == tables[1]
