"""The benchmark of molecules: its counting, curves, ratios, intervals, files; no xTB."""

import importlib.util
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.calculators.emt import EMT
from ase.calculators.singlepoint import SinglePointCalculator
from ase.optimize import BFGS

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
molecules = pytest.importorskip("molecules", reason="the benchmarks are not beside the tests")
import peers  # noqa: E402
from molecules import End, Pool, Run  # noqa: E402


def water(angle=104.5, energy=-10.0, length=0.96):
    """A water molecule with an energy, its angle in degrees."""
    half = np.radians(angle) / 2
    hydrogens = [[length * np.sin(half) * side, 0, length * np.cos(half)] for side in (1, -1)]
    atoms = Atoms("OH2", positions=[[0, 0, 0], *hydrogens])
    atoms.calc = SinglePointCalculator(atoms, energy=energy)
    return atoms


def ended(number, calls, atoms, is_minimum=True, known=None):
    energy = atoms.get_potential_energy()
    return End(number, calls, atoms, energy, is_minimum, known)


def refined(atoms, number, is_minimum=True):
    atoms.info.update(number=number, is_minimum=is_minimum, calls=3)
    return atoms


def test_batches_are_timed_in_turns(capsys):
    batches = pytest.importorskip("batches")
    order = []
    times = batches.in_turns({name: partial(order.append, name) for name in "ab"}, 2, "cpu")
    assert order == list("ababab")
    batches.table({"a": 0.5, "b": 0.25}, {"a": 4, "b": 4}, "what", "a")
    assert "| b | 16.0 | 62.50 | 2.00 |" in capsys.readouterr().out
    assert all(0 <= seconds < 1 for seconds in times.values())


def test_a_long_search_of_made_up_ends(tmp_path, capsys):
    long_search = pytest.importorskip("long_search")
    long_search.run(str(tmp_path / "x.db"), 64, 8)
    assert "drawn from 8 minima" in capsys.readouterr().out


def counted(first, limit):
    """A run that has met these minima."""
    return molecules.Counted(None, first, {}, limit, 0, 0, 0, [], {})


def test_random_search_one_seed_after_the_other():
    runs, within = [counted({0: 10, 1: 40, 3: 50}, 100), counted({1: 5, 2: 7}, 60)], np.array([True, True, True, False])
    marks, limit = molecules.one_after_another(runs, within)
    assert marks.tolist() == [10, 40, 107]
    assert limit == 160


@pytest.mark.parametrize(("n", "calls"), [(10, 150), (12, 190), (13, np.inf)])
def test_random_search_counts_in_all_orders_of_its_seeds(n, calls):
    # One seed after the other four minima come at 150, in the other order at 190.
    random_search = [counted({k: 90 for k in range(8)}, 100), counted({k: 50 for k in range(4, 12)}, 100)]
    ours = [counted({k: 1 for k in range(n)}, 10)]
    for group in (random_search, random_search[::-1]):
        facts = molecules._curves({"gss": ours, "rss": group}, np.ones(13, bool), [10])
        (ratio,) = facts["methods"]["gss"]["ratio"]
        assert ratio["is_bound"] == (calls == np.inf)
        assert ratio["value"] == pytest.approx(min(calls, 200) / 10, rel=0.01)


def test_random_search_is_reported_with_its_seeds_one_after_the_other(monkeypatch):
    monkeypatch.setattr(molecules, "LONG_BUDGETS", (100, 200, 300))
    group = [counted({k: 90 for k in range(8)}, 100), counted({k: 50 for k in range(2, 12)}, 100)]
    rows = molecules._curves({"rss": group}, np.ones(12, bool), [100])["random_search"]
    assert [(row["calls"], row["mean"]) for row in rows] == [(100, 9), (200, 12)]
    assert [row["standard_error"] for row in rows] == [1, 1]  # of the second: 8 and 10 where one is left out


def test_the_error_of_random_search_is_that_of_its_seeds():
    rng, everything = np.random.default_rng(0), np.ones(200, bool)
    chances = rng.dirichlet(np.full(200, 0.5))

    def draw():  # a trial for each call
        first = {}
        for call, index in enumerate(rng.choice(200, size=300, p=chances), start=1):
            first.setdefault(int(index), call)
        return counted(first, 300)

    runs = [draw() for _ in range(4)]
    random_search = molecules.Accumulation(runs, everything)
    each = [molecules.counts_at(run.marks(everything), [200])[0] for run in runs]
    assert random_search.count(200) == pytest.approx(np.mean(each))
    assert random_search.error(200) == pytest.approx(np.std(each, ddof=1) / 2)  # of the mean of four
    assert np.isnan(molecules.Accumulation(runs[:1], everything).error(200))
    assert molecules.Accumulation(runs * 4, everything).count(200) == pytest.approx(np.mean(each), rel=0.1)
    # What all four together have met is about as uncertain as the jackknife over them says.
    ends, errors = [], []
    for _ in range(60):
        joined = molecules.Accumulation([draw() for _ in range(4)], everything)
        ends.append(joined.count(1200))
        errors.append(joined.error(1200))
    assert 0.7 < np.mean(errors) / np.std(ends) < 1.6


def test_counts_and_mean_curve():
    marks, limits = [np.array([10, 20, 30]), np.array([15, 25])], [100, 40]
    assert molecules.counts_at(marks[0], [5, 10, 29, 30]).tolist() == [0, 1, 2, 3]
    mean, error, number = molecules.mean_curve(marks, limits, [10, 30, 50, 200])
    assert mean[:3].tolist() == [0.5, 2.5, 3.0]
    assert error[0] == pytest.approx(0.5)
    assert np.isnan(error[2])
    assert number.tolist() == [2, 2, 1, 0]
    assert np.isnan(mean[3])


def test_a_run_without_a_minimum_counts_as_none():
    mean, _, number = molecules.mean_curve([np.array([]), np.array([10])], [50, 50], [20])
    assert (mean[0], number[0]) == (0.5, 2)


def test_calls_to_reach_interpolates_and_says_never():
    marks, limits = [np.array([100.0, 200.0, 300.0])], [1000]
    assert molecules.calls_to_reach(marks, limits, 2) == 200
    assert molecules.calls_to_reach(marks, limits, 2.5) == pytest.approx(250)
    assert molecules.calls_to_reach(marks, limits, 4) == np.inf
    # Beyond the shortest run there is no mean over all of them.
    assert molecules.calls_to_reach([marks[0], np.array([100.0])], [1000, 150], 2) == np.inf


def test_ratio_of_calls():
    ours = [np.arange(1, 21) * 10.0] * 2

    def theirs(limit):
        return molecules.Accumulation([counted({k: 100 * (k + 1) for k in range(20)}, limit)] * 2, np.ones(20, bool))

    ratio = molecules.ratio_at(ours, [200, 200], theirs(2000), 150)
    assert ratio.value == pytest.approx(10)
    assert ratio.error == pytest.approx(0)
    assert str(ratio) == "10 ± 0"
    bound = molecules.ratio_at([np.arange(1, 22) * 9.0] * 2, [200, 200], theirs(1000), 200)
    assert str(bound) == ">10"
    assert molecules.ratio_at(ours, [200, 200], theirs(2000), 90) is None  # fewer than ten
    shorter = [ours[0], ours[1][:3]]  # one has not got there: it does not count, and one seed has no error
    alone = molecules.ratio_at(shorter, [200, 30], theirs(2000), 150)
    assert alone.value == pytest.approx(10)
    assert str(alone) == "10"
    assert molecules.ratio_at(shorter, [100, 30], theirs(2000), 150) is None


def test_predictions_are_compared_with_what_came():
    met = [0, None, 1, 1, 2, 3, None, 0]
    (check,) = molecules.check_predictions(met, lambda hits, *trials, first_met: (trials, min(hits), first_met), [4], 4)
    assert check == {"trials": 4, "mean": (4, 4), "low": 1, "high": [0, 2], "new": 2}
    assert molecules.check_predictions(met, lambda *asked, **also: (0, 0, 0), [4], 5) == []


def test_intervals_of_the_project_cover():
    rng, held = np.random.default_rng(0), []
    for _ in range(40):
        met = rng.choice(150, size=300, p=rng.dirichlet(np.full(150, 0.5))).tolist()
        (check,) = molecules.check_predictions(met, molecules.predict_new, [200])
        held.append(check["low"] <= check["new"] <= check["high"])
    assert np.mean(held) > 0.75


def test_counting_rule_of_one_run():
    a, same, other = refined(water(), 0), refined(water(104.6, -10.002), 1), refined(water(110, -9.8), 2)
    lost = refined(water(120, -9.0), 3, is_minimum=False)
    pairs = [(ended(k, 10 * k, atoms), atoms) for k, atoms in enumerate((a, same, other, lost))]
    minima, which = molecules.count_alone(pairs)
    assert len(minima) == 2
    assert which == {0: 0, 1: 0, 2: 1}


def test_recovered_by_the_first_end_that_is_near():
    near, far = water(104.6, -9.97), water(104.6, -9.9)
    pairs = [(ended(0, 5, far), refined(water(), 0)), (ended(1, 9, near), refined(water(), 1))]
    assert molecules.recovered_at(pairs, {0: 0, 1: 0}) == {0: 9}


def test_trials_recognised_count_as_hits():
    ends = [
        ended(0, 5, water()),
        ended(1, 5, water(), is_minimum=False, known=0),
        ended(2, 9, water(104.5, -7)),
        ended(3, 11, water(), is_minimum=False),
    ]
    assert molecules.loosely_met(ends) == [0, 0, 1, None]


def test_pool_grows_and_is_read_back(tmp_path):
    path = tmp_path / "reference_H2O.extxyz"
    pool = Pool(path)
    assert [pool.index(atoms, "x") for atoms in (water(), water(110, -9), water(104.6, -10.001))] == [0, 1, 0]
    pool.save()
    again = Pool(path)
    assert again.index(water(110, -9), "y") == 1
    assert again.index(water(100, -3), "y") == 2
    assert again.within(5.0).tolist() == [True, True, False]
    assert [atoms.info["met_by"] for atoms in again.frames] == ["x", "x", "y"]


@pytest.mark.parametrize("name", ["basin-hopping", "basin-hopping-model", "minima-hopping", "ase-ga"])
def test_peers_keep_to_their_budget_and_repeat(name):
    if name == "ase-ga":
        pytest.importorskip("ase_ga")
    numbers = np.array([29] * 4)
    runs = [peers.run_peer(name, numbers, EMT(), 1, 400) for _ in range(2)]
    (ends, calls), (again, _) = runs
    assert calls == 400
    spent = [atoms.info["calls"] for atoms in ends]
    assert spent == sorted(spent)
    assert spent[-1] <= 400
    assert spent == [atoms.info["calls"] for atoms in again]
    minima = [atoms for atoms in ends if atoms.info["ended"] == "minimum"]
    assert minima
    assert all(np.linalg.norm(atoms.get_forces(), axis=1).max() < 0.05 for atoms in minima)


def test_a_peer_goes_on_after_the_calculator_has_failed():
    class Failing(EMT):
        count = 0

        def calculate(self, *args, **keywords):
            self.count += 1
            if self.count % 7 == 0:
                raise RuntimeError("no convergence")
            super().calculate(*args, **keywords)

    assert peers.run_peer("basin-hopping", np.array([29] * 3), Failing(), 0, 100)[1] == 100


def test_an_optimizer_of_a_peer_ends():
    atoms = Atoms("Cu2", positions=[[0, 0, 0], [3.5, 0, 0]], calculator=EMT())
    with peers.EndingBFGS(atoms, logfile=None, maxstep=1e-4) as dynamics:
        dynamics.run(fmax=1e-6)
    assert isinstance(dynamics, BFGS)
    assert dynamics.nsteps == peers.MAX_STEPS


def test_run_and_report(tmp_path, monkeypatch, capsys):
    """Two methods of Cu3 with EMT: run, go on, report; nothing is refined twice."""
    monkeypatch.setattr(molecules, "BUDGETS", (50, 100))
    common = ["--folder", str(tmp_path), "--calculator", "emt"]

    def command(*words):
        monkeypatch.setattr(sys, "argv", ["molecules.py", *words, *common])
        molecules.main()

    run = ["run", "--systems", "Cu3", "--methods", "rss", "basin-hopping", "--seeds", "2", "--max-calls"]
    command(*run, "60")
    written = {path: path.stat().st_mtime_ns for path in tmp_path.glob("refined/*")}
    command(*run, "60")
    assert written == {path: path.stat().st_mtime_ns for path in tmp_path.glob("refined/*")}
    command(*run, "120")
    rss = Run(tmp_path, "Cu3", "rss", 1, "emt")
    assert rss.state()["max_calls"] == 120
    assert rss.state()["calls"] >= 120
    assert molecules.account_of(rss)["distinct"] >= 1
    capsys.readouterr()
    readme = tmp_path / "README.md"
    readme.write_text("Before.\n<!-- molecules: begin -->\nold\n<!-- molecules: end -->\nAfter.\n")
    words = ["report", "--budgets", "50", "100", "--readme", str(readme)]
    if importlib.util.find_spec("matplotlib"):
        words += ["--plot", str(tmp_path / "curves.svg")]
    command(*words)
    out = capsys.readouterr().out
    assert "| basin-hopping | 2 |" in out
    assert "imaginary" not in out
    text = readme.read_text()
    assert "| Cu3 |" in text
    assert "old" not in text
    assert text.startswith("Before.")
    assert text.endswith("After.\n")
    assert (tmp_path / "report.json").exists()
    assert (tmp_path / "curves.svg").exists() or "--plot" not in words
    assert "NaN" not in (tmp_path / "report.json").read_text()
    with pytest.raises(SystemExit, match="1 of 1 runs have failed"):
        command("run", "--systems", "Xx3", "--methods", "rss", "--seeds", "1")
    rows = (tmp_path / "curves.csv").read_text().splitlines()
    assert len(rows) == 1 + 3 * 2 * 2  # windows, methods, budgets
    assert (tmp_path / "reference_Cu3.extxyz").exists()
    # What was counted is kept: the figures need the runs no more, but what they count by.
    for path in [*tmp_path.glob("Cu3_*"), *tmp_path.glob("refined/*")]:
        path.unlink()
    capsys.readouterr()
    command("report", "--budgets", "50", "100", "--readme", str(readme))
    assert "imaginary" not in capsys.readouterr().out
    command("modes", "--number", "1")
    assert "Cu3: 1 of 1 without imaginary mode" in capsys.readouterr().out
    command("report", "--budgets", "50", "100")
    assert "Without imaginary mode: 1 of the 1 that were checked." in capsys.readouterr().out
    assert (tmp_path / "curves.csv").read_text().splitlines() == rows
    assert readme.read_text() == text
    (tmp_path / "reference_Cu3.extxyz").unlink()
    with pytest.raises(SystemExit, match=r"put back the file that runs\.json came with"):
        command("report", "--budgets", "50", "100")
