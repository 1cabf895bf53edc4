"""The shell, as a user meets it."""

import json
import logging
import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from types import SimpleNamespace

import numpy as np
import pytest
from ase.db import connect
from ase.io import read

from ase_gss import __version__, agenda
from ase_gss.archive import Archive
from ase_gss.cli import _told_on, main
from ase_gss.report import minima_of, summary, summary_text

SEARCH = ["search", "Ar5", "-c", "lj", "--coupling", "rss"]


@pytest.fixture
def database(tmp_path, capsys):
    path = str(tmp_path / "ar5.db")
    assert main([*SEARCH, "--trials", "12", "-o", path]) == 0
    capsys.readouterr()
    return path


def test_search_ends_in_a_table(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main([*SEARCH, "--trials", "5"]) == 0
    out = capsys.readouterr().out
    lines = out.splitlines()
    assert lines[0] == "Searching Ar5 (molecule of 5 atoms, charge 0, multiplicity 1) with lj."
    assert any(line.split()[:3] == ["rank", "dE/eV", "energy/eV"] for line in lines)
    assert "Ar5: 5 trials" in out
    assert (tmp_path / "Ar5.db").exists()
    assert main([*SEARCH, "--trials", "8"]) == 0
    assert "going on after 5 trials" in capsys.readouterr().out


def test_version(capsys):
    with pytest.raises(SystemExit, match="0"):
        main(["--version"])
    assert capsys.readouterr().out == f"ase-gss {__version__}\n"


def test_a_budget_that_is_spent_already_is_said_to_be(database, capsys):
    assert main([*SEARCH, "--trials", "10", "-o", database]) == 0
    assert "It has spent that already: give more than this to go on" in capsys.readouterr().out
    assert main([*SEARCH, "--trials", "13", "-o", database]) == 0
    assert "spent that already" not in capsys.readouterr().out


def test_what_a_search_says_of_itself_is_on_the_bar():
    bar = SimpleNamespace(set_description_str=[].append)
    said = bar.set_description_str.__self__
    with _told_on(bar):
        agenda._LOG.info("learning from %d minima", 7)
    agenda._LOG.info("nobody listens any more")
    assert said == ["learning from 7 minima"]
    assert not agenda._LOG.isEnabledFor(logging.INFO)


@pytest.mark.parametrize(
    ("chance", "says"), [(1.0, "about 100 %"), (0.4, "about 40 %"), (0.002, "about 0.2 %"), (0.0, "less than 2.5 %")]
)
def test_chances_as_percents(database, chance, says):
    facts = summary(Archive(database)) | {"chance_next_is_new": chance, "hits": 40}
    assert f"with a chance of {says} (Good-Turing)" in summary_text(facts)


def test_summary_as_text_and_json(database, capsys):
    assert main(["summary", database]) == 0
    assert "12 trials" in capsys.readouterr().out
    assert main(["summary", database, "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["formula"] == "Ar5"
    assert facts["trials"] == 12 == facts["converged"] + facts["failed"]
    assert facts["force_calls"] == sum(row.force_calls for row in connect(database).select())
    assert facts["score_calls"] == 0
    assert set(facts["minima_within"]) == {"1", "2", "3", "5"}
    assert facts["lowest_energy"] == pytest.approx(-9.1, abs=0.2)
    assert facts["minima"] >= 1
    calls, new = facts["new_in_later_half"]
    assert calls == facts["force_calls"] - facts["force_calls"] // 2
    assert new == sum(
        atoms.info["first_call"] > facts["force_calls"] // 2 for atoms in minima_of(Archive(database)).ranked()
    )


def test_a_reader_that_leaves_early_ends_it_without_a_word(database):
    command = [sys.executable, "-m", "ase_gss.cli", "rank", database]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    process.stdout.close()
    assert process.wait(timeout=60) == 141
    assert process.stderr.read() == ""


def test_rank_export_and_refine_agree(database, tmp_path, capsys):
    assert main(["rank", database]) == 0
    ranked = capsys.readouterr().out.splitlines()
    target = str(tmp_path / "minima.extxyz")
    assert main(["export", database, "-o", target]) == 0
    frames = read(target, ":")
    assert len(frames) == len(ranked) - 1
    energies = [atoms.get_potential_energy() for atoms in frames]
    assert energies == sorted(energies)
    assert np.abs(frames[0].get_forces()).max() < 0.05
    assert main(["export", database, "-o", database]) == 2
    assert main(["rank", database]) == 0
    capsys.readouterr()
    assert main(["refine", database]) == 0
    assert "Refinement took" in capsys.readouterr().out


def test_a_refinement_in_which_all_fails_is_no_success(tmp_path, capsys, caplog, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "ase_gss_breaking.py").write_text(
        "import os\n"
        "from ase.calculators.lj import LennardJones\n"
        "class Breaking(LennardJones):\n"
        "    def calculate(self, *arguments, **keywords):\n"
        "        super().calculate(*arguments, **keywords)\n"
        "        if 'BREAK' in os.environ:\n"
        "            raise OSError('lj: command not found')\n"
    )
    search = ["search", "Ar5", "-c", "ase_gss_breaking:Breaking", "--coupling", "rss", "--trials", "3", "-o", "x.db"]
    assert main(search) == 0
    monkeypatch.setenv("BREAK", "1")
    assert main(["refine", "x.db"]) == 1
    assert "could not be refined, the last so: calculator: OSError: lj: command not found" in caplog.text
    monkeypatch.delenv("BREAK")
    assert main(["refine", "x.db"]) == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["search", "C3H6O)", "--trials", "1"], "not a chemical formula"),
        (["search", "Xy2", "--trials", "1"], "not a chemical formula"),
        (["search", "Ar2", "-c", "nothing", "--trials", "1"], "No calculator 'nothing'"),
        (["search", "Ar2", "-c", "no_such_module:f", "--trials", "1"], "cannot be imported"),
        (["search", "Ar2", "-c", "lj", "--score", "setup.py", "--trials", "1"], "No score 'setup.py'"),
        (["search", "Ar2", "-c", "lj", "--coupling", "none", "--trials", "1"], "No coupling 'none'"),
        (["search", "Ar2", "-c", "lj", "--coupling", "rss", "--optimizer", "FIRST", "--trials", "1"], "FIRST"),
        (["search", "CH3", "-c", "lj", "--multiplicity", "1", "--trials", "1"], "cannot have multiplicity 1"),
        (["search", "Ar2", "-c", "lj", "--coupling", "rss", "--trials", "1", "-o", "no/such/folder.db"], "folder"),
        (["search", "Ar2", "-c", "lj", "--coupling", "rss", "--trials", "1", "--seed", "-1"], "seed"),
        (["search", "Ar2", "-c", ":make", "--coupling", "rss", "--trials", "1"], "cannot be imported"),
        (["search", "Ar2", "-c", "lj", "--coupling", "rss", "--trials", "1", "--charge", "1"], "knows of no charge"),
        (["train", "nothing.extxyz", "-o", "model.pt"], "nothing.extxyz cannot be read"),
        (["train", "qm9pack", "-o", "model.pt", "--hold-out", "Xq"], "not a chemical formula"),
        (["summary", "nothing.db"], "no database nothing.db"),
        (["rank", "nothing.db"], "no database nothing.db"),
    ],
)
def test_bad_input_is_one_sentence_and_writes_nothing(tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.startswith("ase-gss: ")
    assert len(error.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_a_missing_package_names_its_extra(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "tblite", None)
    assert main(["search", "H2O", "-c", "gfn2", "--trials", "1"]) == 2
    assert "pip install 'ase-gss[xtb]'" in capsys.readouterr().err


def test_a_database_of_another_formula_is_refused(database, capsys):
    assert main(["search", "Ar3", "-c", "lj", "--coupling", "rss", "--trials", "3", "-o", database]) == 2
    assert "formula Ar5, not Ar3" in capsys.readouterr().err


def test_a_calculator_of_ones_own(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine_for_test.py").write_text(
        "from ase.calculators.lj import LennardJones\ndef make():\n    return LennardJones(rc=9)\n"
    )
    arguments = ["search", "Ar3", "-c", "mine_for_test:make", "--coupling", "rss", "--trials", "2"]
    assert main(arguments) == 0
    assert "Ar3: 2 trials" in capsys.readouterr().out


def command(path, trials):
    return [sys.executable, "-m", "ase_gss.cli", *SEARCH, "--trials", str(trials), "-o", str(path)]


def trials_in(path):
    if not path.exists():
        return []
    return [row.trial for row in connect(path, use_lock_file=False).select("trial>=0")]


def kill_and_resume(tmp_path, kills, trials):
    """Kill the search at random moments and check each time that nothing finished is lost."""
    path, rng = tmp_path / "killed.db", random.Random(0)
    kept = set()

    def wait_until_under_way(process):
        before = time.monotonic()
        while len(trials_in(path)) <= len(kept) and process.poll() is None and time.monotonic() - before < 60:
            time.sleep(0.05)  # its imports are done then

    for _ in range(kills):
        process = subprocess.Popen(command(path, trials), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        wait_until_under_way(process)
        time.sleep(rng.uniform(0, 1.5))
        process.send_signal(signal.SIGKILL)
        process.wait()
        done = trials_in(path)
        assert len(done) == len(set(done))
        assert kept <= set(done)
        kept = set(done)
    # Ctrl-C, a signal that a program may answer, ends with the table.
    process = subprocess.Popen(command(path, 10**6), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    wait_until_under_way(process)  # a machine under load may take long to import
    time.sleep(1)
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "rank" in out
    done = trials_in(path)
    assert len(done) == len(set(done))
    assert kept <= set(done)
    subprocess.run(command(path, max(done) + 20), check=True, capture_output=True)
    assert sorted(trials_in(path)) == list(range(max(done) + 20))
    assert sqlite3.connect(path).execute("PRAGMA integrity_check").fetchone() == ("ok",)
    assert os.listdir(tmp_path) == ["killed.db"]


def test_kill_and_resume(tmp_path):
    kill_and_resume(tmp_path, kills=2, trials=100_000)


@pytest.mark.slow
def test_kill_ten_times_and_resume(tmp_path):
    kill_and_resume(tmp_path, kills=10, trials=100_000)
