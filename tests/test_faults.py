"""A search under fire: calculators that strike, kills, SIGTERM, and trials that are slow. What is left is right."""

import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from functools import partial
from pathlib import Path

import faulty
import numpy as np
import pytest
from ase import Atoms
from ase.db import connect
from faulty import Argon, Striking

from ase_gss.archive import Archive
from ase_gss.schedule import ConstantNoise
from ase_gss.search import GenerativeRSS
from ase_gss.trial import Ended, Need
from ase_gss.workers import InProcess, Job

needs_proc = pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc")


def outcome(record, archive):
    """Everything about a finished trial that must not change."""
    return (
        *(
            record.ended,
            record.reason.removeprefix("calculator: "),
            record.force_calls,
            record.score_calls,
            record.energy,
        ),
        archive.atoms_of(record.number).positions.tolist(),
    )


def outcomes(archive):
    """Those of all trials by number; each is there once."""
    found = {record.number: outcome(record, archive) for record in archive.records}
    assert len(found) == len(archive.records)
    return found


# Calculators that strike

CALL_LIMIT = 2.0
REASONS = {
    "exception": "ValueError: no convergence",
    "not a number": "the calculator returned forces that are not finite",
    "hang": "a force call took longer than 2 s",
    "exit": "its worker died with exit code 3",
}


def search_of_argon(calculator=Argon, coupling="rss", formula="Ar4", **keywords):
    return GenerativeRSS(
        formula, calculator, coupling=coupling, score=faulty.score, recognise=False, failure_limit=0.9, **keywords
    )


def structures_of(trials, **keywords):
    """Those that each trial calls for, in its order, where nothing strikes."""
    seen, structures = [], {}
    plan = search_of_argon(partial(Striking, seen=seen), **keywords).plan
    for number in range(trials):
        seen.clear()
        trial = plan.begin(number)
        if trial.needs is not Need.RELAXATION:
            InProcess(plan).submit(Job("sample", (trial,))).result()
        InProcess(plan).submit(Job("relax", (trial,))).result()
        assert trial.force_calls == len(seen)
        structures[number] = list(seen)
    return structures


def strikes(structures, calculator):
    """Of each trial that is struck: the way, and the number of the force call."""
    struck = {}
    for number, each in structures.items():
        ways = [(way, call) for call, positions in enumerate(each, 1) if (way := calculator.way_at(positions))]
        if ways:
            struck[number] = ways[0]
    return struck


def under_fire(path, trials, share, enough, **keywords):
    """What a search under fire has left on file, what one without faults finds, and who had to be struck: `enough`."""
    structures = structures_of(trials, **keywords)
    salt = next(salt for salt in range(10_000) if enough(strikes(structures, Striking(share, salt))))
    peaceful = search_of_argon(**keywords)
    peaceful.run(trials=trials)
    calculator = partial(Striking, share, salt)
    search = search_of_argon(calculator, database=path, workers=2, call_limit=CALL_LIMIT, **keywords)
    search.run(trials=trials)
    found = outcomes(Archive(path, must_exist=True))
    return found, outcomes(peaceful.archive), strikes(structures, calculator())


def check_struck_trials(path, trials, share, each_way, **keywords):
    """Exactly the struck trials have failed, with their reasons; all others are as without faults."""

    def enough(struck):
        ways = [way for way, _ in struck.values()]
        return all(ways.count(way) >= each_way for way in REASONS)

    found, peaceful, struck = under_fire(path, trials, share, enough, **keywords)
    assert set(found) == set(peaceful) == set(range(trials))
    assert not any(each[0] is Ended.CALCULATOR for each in peaceful.values())
    failed = {number: each[1:3] for number, each in found.items() if each[0] is Ended.CALCULATOR}
    assert failed == {number: (REASONS[way], call) for number, (way, call) in struck.items()}
    others = set(found) - set(struck)
    assert {number: found[number] for number in others} == {number: peaceful[number] for number in others}


def test_struck_trials_fail_and_no_others(tmp_path):
    check_struck_trials(tmp_path / "struck.db", trials=20, share=0.005, each_way=1, formula="Ar3")


@pytest.mark.slow
@pytest.mark.parametrize("coupling", ["rss", "diffusion"])
def test_struck_trials_fail_and_no_others_among_200(tmp_path, coupling):
    check_struck_trials(tmp_path / "struck.db", trials=200, share=0.0025, each_way=4, coupling=coupling)


def test_struck_while_trials_are_sampled_together(tmp_path):
    """Those that were in the same job begin anew: what they have spent in vain counts, and nothing else changes."""
    keywords = {"coupling": "force", "schedule": ConstantNoise(n_steps=4), "formula": "Ar3"}

    def enough(struck):
        while_sampled = [way for way, call in struck.values() if call <= 4]
        return len(struck) == 4 and all(way in while_sampled for way in REASONS)

    found, peaceful, struck = under_fire(tmp_path / "struck.db", 10, 0.012, enough, **keywords)
    for number, (ended, reason, calls, *rest) in found.items():
        if number in struck:
            way, call = struck[number]
            assert (ended, reason) == (Ended.CALCULATOR, REASONS[way])
            assert calls >= call
        else:
            before = peaceful[number]
            assert (ended, reason, *rest) == (*before[:2], *before[3:])
            assert calls >= before[2]


# Kills and signals


class Command:
    """The search of a user in a shell; `with` it, nothing of it is left."""

    def __init__(self, tmp_path, calculator, workers, formula="Ar4"):
        self.path, self.stuck = tmp_path / "search.db", tmp_path / "stuck"
        self.mark = f"MARK_OF_A_TEST={tmp_path}"
        self.arguments = [sys.executable, "-m", "ase_gss.cli", "search", formula, "-c", calculator, "--coupling", "rss"]
        self.arguments += ["-j", str(workers), "--failure-limit", "0.9", "-o", str(self.path)]
        name, _, value = self.mark.partition("=")
        path = os.pathsep.join([str(Path(faulty.__file__).parent), os.environ.get("PYTHONPATH", "")])
        self.environment = {**os.environ, "PYTHONPATH": path, "STUCK": str(self.stuck), name: value}
        self.process = None

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.process is not None:
            self.process.kill()
            self.process.communicate()

    def start(self, trials=10**6):
        self.process = subprocess.Popen(
            [*self.arguments, "--trials", str(trials)],
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def end(self, timeout):
        """Its exit code, output and messages; no process of it is left."""
        out, err = self.process.communicate(timeout=timeout)
        assert wait_until(lambda: not self.processes(), 10), self.processes()
        return self.process.returncode, out, err

    def processes(self):
        """Everything that it has started and that is alive, orphans included, with itself: command lines by number."""
        alive = {}
        for each in Path("/proc").iterdir():
            try:
                if each.name.isdecimal() and self.mark in (each / "environ").read_text().split("\0"):
                    alive[int(each.name)] = (each / "cmdline").read_text().replace("\0", " ")
            except OSError:  # of another user, or gone
                continue
        return alive

    def workers(self):
        return [number for number, line in self.processes().items() if "multiprocessing.spawn" in line]

    def numbers(self):
        """Of the trials in the file."""
        if not self.path.exists():
            return []
        return [row.trial for row in connect(self.path, use_lock_file=False).select("trial>=0")]

    def minima(self):
        """Of those in the file that ended in a minimum, energy and positions."""
        if not self.path.exists():
            return {}
        found = outcomes(Archive(self.path, must_exist=True))
        return {number: each[-2:] for number, each in found.items() if each[0] is Ended.MINIMUM}


def wait_until(condition, seconds):
    end = time.monotonic() + seconds
    while not (met := condition()) and time.monotonic() < end:
        time.sleep(0.05)
    return met


def strike(command, victims, rng):
    """Kill a worker, the driver or both; a worker that is not there yet is waited for."""
    if victims != "driver":
        assert wait_until(command.workers, 60)
        os.kill(rng.choice(command.workers()), signal.SIGKILL)
    if victims != "worker":
        command.process.kill()
        command.process.communicate()
        assert wait_until(lambda: not command.processes(), 10), command.processes()


def check_kills(tmp_path, victims, longest, seed=0):
    """Kill at random moments, resume, and look at what is there."""
    rng, kept, of_workers = random.Random(seed), {}, 0
    with Command(tmp_path, "faulty:unhurried", workers=2, formula="Ar3") as command:
        for who in victims:
            if command.process is None or command.process.poll() is not None:
                command.start()
                if rng.random() < 0.8:  # most at work, some before
                    assert wait_until(command.workers, 60)
            time.sleep(rng.uniform(0, longest))
            assert command.process.poll() is None
            minima = command.minima()
            assert kept.items() <= minima.items()
            kept = minima
            strike(command, who, rng)
            of_workers += who == "worker"  # the trial of a worker that dies with its driver is done again
        if command.process.poll() is None:
            command.process.kill()
            command.process.communicate()
        trials = max(command.numbers(), default=0) + 10
        command.start(trials)
        assert command.end(timeout=300)[0] == 0
        assert kept.items() <= command.minima().items()
    with closing(sqlite3.connect(command.path)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        assert connection.execute("SELECT count(*) FROM reservations").fetchone() == (0,)
    # A kill while the file is made may leave a part of it aside.
    assert [name for name in os.listdir(tmp_path) if ".part" not in name] == ["search.db"]
    found = outcomes(Archive(command.path, must_exist=True))
    whole = search_of_argon(formula="Ar3")
    whole.run(trials=trials)
    wanted = outcomes(whole.archive)
    assert set(found) == set(wanted) == set(range(trials))
    lost = {number for number in found if found[number] != wanted[number]}
    assert {found[number][:2] for number in lost} <= {(Ended.CALCULATOR, "its worker died by signal 9 (killed)")}
    assert len(lost) <= of_workers
    return trials, len(lost)


@needs_proc
def test_kills(tmp_path):
    check_kills(tmp_path, ["worker", "both", "driver"], longest=3.0)


@needs_proc
@pytest.mark.slow
def test_fifty_kills(tmp_path):
    victims = ["worker", "driver", "both"] * 17
    random.Random(1).shuffle(victims)
    trials, _ = check_kills(tmp_path, victims[:50], longest=5.0)
    assert trials > 100


STOPPED = "Stopped by SIGTERM; the same command goes on from here."


@needs_proc
@pytest.mark.parametrize(("workers", "to_all"), [(1, False), (2, True), pytest.param(2, False, marks=pytest.mark.slow)])
def test_sigterm_finishes_what_is_under_way(tmp_path, workers, to_all):
    """Queue systems send it to the driver, or to all processes."""
    with Command(tmp_path, "lj" if workers == 1 else "faulty:unhurried", workers) as command:
        command.start()
        assert wait_until(lambda: len(command.numbers()) >= 3, 60)
        before, sent = len(command.numbers()), time.monotonic()
        for number in command.processes() if to_all else [command.process.pid]:
            os.kill(number, signal.SIGTERM)
        code, out, err = command.end(timeout=60)
        assert time.monotonic() - sent < 20
        assert (code, err.splitlines()[-1]) == (143, STOPPED)
        assert "Traceback" not in err
        assert "rank" in out
        done = command.numbers()
        assert before <= len(done) == len(set(done))  # it may come when nothing is under way
        assert all(each[0] is not Ended.CALCULATOR for each in outcomes(Archive(command.path)).values())
        command.start(trials := max(done) + 5)
        assert command.end(timeout=100)[0] == 0
        assert sorted(command.numbers()) == list(range(trials))


@needs_proc
@pytest.mark.parametrize("workers", [1, 2])
def test_a_second_sigterm_ends_at_once(tmp_path, workers):
    with Command(tmp_path, "faulty:stuck", workers) as command:
        command.start()
        assert wait_until(command.stuck.exists, 60)
        command.process.terminate()
        time.sleep(1.5)
        assert command.process.poll() is None  # it waits for what is under way
        command.process.terminate()
        sent = time.monotonic()
        code, _, err = command.end(timeout=60)
        assert time.monotonic() - sent < 10
        assert (code, err.splitlines()[-1]) == (143, STOPPED)
        assert "Traceback" not in err
        assert len(command.numbers()) == len(set(command.numbers())) > 0  # what was finished is there


@needs_proc
@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_sigterm_waits_twenty_seconds_and_no_longer(tmp_path, workers):
    with Command(tmp_path, "faulty:stuck", workers) as command:
        command.start()
        assert wait_until(command.stuck.exists, 60)
        command.process.terminate()
        sent = time.monotonic()
        code, _, err = command.end(timeout=60)
        assert 19 < time.monotonic() - sent < 28
        assert (code, err.splitlines()[-1]) == (143, STOPPED)
        assert len(command.numbers()) > 0


# Slow trials


def slow_trial(tmp_path, monkeypatch, until):
    """Numbers of 14 trials in the order in which they were written; number 1 pauses until `until` others are."""
    path, signal_file = tmp_path / "slow.db", tmp_path / "go on"
    monkeypatch.setenv("GO_ON", str(signal_file))
    rng = np.random.default_rng(0)
    starts = [Atoms("Cu3", [[0, 0, 0], [2.3, 0, 0], [1.2, 2.1, 0]]) for _ in range(14)]
    starts[1].positions[:, 0] -= 1000
    for atoms in starts:
        atoms.rattle(0.05, rng=rng)
    search = GenerativeRSS("Cu3", faulty.pausing, coupling="rss", starts=starts, database=path, workers=2)
    search.attach(lambda: signal_file.touch() if len(Archive(path).records) >= until else None)
    search.run(trials=14)
    assert {record.ended for record in search.archive.records} == {Ended.MINIMUM}
    in_order = [row.trial for row in connect(path).select("trial>=0", sort="id")]
    assert sorted(in_order) == list(range(14))
    return in_order


def test_a_slow_trial_holds_up_nobody(tmp_path, monkeypatch):
    monkeypatch.setattr("ase_gss.driver.WRITE_INTERVAL", 0.0)
    in_order = slow_trial(tmp_path, monkeypatch, until=8)
    assert in_order.index(1) >= 8


def test_what_is_finished_is_written_while_a_slow_trial_goes_on(tmp_path, monkeypatch):
    monkeypatch.setattr("ase_gss.driver.WRITE_INTERVAL", 2.0)  # the others may all be finished within that
    began = time.monotonic()
    in_order = slow_trial(tmp_path, monkeypatch, until=13)
    assert in_order[-1] == 1
    assert time.monotonic() - began < 30
