"""Refinement: the same whoever does it, and what becomes of a minimum that cannot be refined."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import faulty
import numpy as np
import pytest
from ase.optimize import BFGS

from ase_gss.archive import Archive
from ase_gss.cli import main
from ase_gss.refine import refine, what_to_refine
from ase_gss.search import GenerativeRSS
from ase_gss.trial import Ended
from ase_gss.workers import WorkerPool


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
    to_do = what_to_refine(search._found.minima, search.archive, 0.005, 300, False, every_end=True)
    struck, whole = to_do[1], to_do
    moved = struck.atoms.copy()
    moved.positions[:, 0] -= 1000
    to_do = [replace(each, atoms=moved) if each is struck else each for each in to_do]
    with WorkerPool(search.plan, 2, call_limit=0.5) as crew:
        reasons = refine(to_do, search.archive, crew)
    assert [bool(reason) for reason in reasons] == [each is struck for each in whole]
    assert f"1 of {len(whole)} could not be refined, the last so: " in caplog.text
    assert struck.number not in search.archive.refined
    assert len(search.archive.refined) == len(whole) - 1
    again = Archive(tmp_path / "x.db")
    assert again.totals["refinement_calls"] == search.refinement_calls
    # The fatal call, its third, and those before it are counted.
    assert search.refinement_calls == 3 + sum(each.refinement_calls for each in again.refined.values())
    assert [each.number for each in what_to_refine(search._found.minima, again, 0.005, 300, False, True)] == [
        struck.number
    ]


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
