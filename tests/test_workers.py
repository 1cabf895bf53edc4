"""Jobs in worker processes and in executors of others: the same results, and what is left after each kind of death."""

import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import CancelledError, Future, ProcessPoolExecutor, ThreadPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import faulty
import numpy as np
import pytest
from ase.calculators.emt import EMT

from ase_gss.calculator_source import calculator_source
from ase_gss.errors import InputError
from ase_gss.forces import energy_and_forces
from ase_gss.schedule import ConstantNoise, Schedule
from ase_gss.score import load_score
from ase_gss.search import GenerativeRSS
from ase_gss.trial import Ended
from ase_gss.workers import ForeignExecutor, InProcess, Job, WorkerLost, WorkerPool, WorkersError, connect_scheduler

SpawnedExecutor = partial(ProcessPoolExecutor, mp_context=get_context("spawn"))


def plan_for(calculator="emt", coupling="rss", **keywords):
    return GenerativeRSS("Cu4", calculator, coupling=coupling, **keywords).plan


def sampled_with_forces(calculator):
    """Five steps along the force; the score plays no part."""
    return plan_for(calculator, "force", schedule=ConstantNoise(n_steps=5), score=faulty.score)


def begun(plan, number, struck=False):
    """A trial; one that is to be struck starts far to the left."""
    trial = plan.begin(number)
    if struck:
        trial.walk.positions[:, 0] -= 1000
    return trial


def relaxation(plan, number, struck=False):
    return Job("relax", (begun(plan, number, struck),))


def sampling(plan, numbers, struck=()):
    return Job("sample", tuple(begun(plan, number, number in struck) for number in numbers))


def results(runner, jobs):
    futures = [runner.submit(job) for job in jobs]
    return [trial for future in futures for trial in future.result(timeout=100)]


def assert_same(trials, others):
    assert [trial.number for trial in trials] == [other.number for other in others]
    for trial, other in zip(trials, others, strict=True):
        assert (trial.ended, trial.reason, trial.needs) == (other.ended, other.reason, other.needs)
        assert trial.force_calls == other.force_calls
        np.testing.assert_array_equal(trial.atoms.positions, other.atoms.positions)
        np.testing.assert_array_equal(trial.walk.positions, other.walk.positions)


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def gone_within(seconds, pids):
    end = time.monotonic() + seconds
    while any(map(alive, pids)) and time.monotonic() < end:
        time.sleep(0.05)
    return not any(map(alive, pids))


def ready(pool, plan):
    """Wait until all workers are at work."""
    while len(pool.pids) < len(pool._workers):
        time.sleep(0.05)
    results(pool, [relaxation(plan, number) for number in range(2 * len(pool.pids))])


def test_workers_do_what_this_process_does():
    plan = plan_for(coupling="mn", score=faulty.score, schedule=Schedule(n_steps=6))
    jobs = [sampling(plan, range(3)), sampling(plan, [3])]
    with WorkerPool(plan, 2) as pool, InProcess(plan) as here:
        there = results(pool, jobs)
        assert all(trial.walk.k == 0 for job in jobs for trial in job.trials)  # those sent stay as they are
        assert_same(there, results(here, jobs))
        assert all(trial.force_calls > 0 for trial in there)
        relaxations = [Job("relax", (trial,)) for trial in there]
        assert_same(results(pool, relaxations), results(here, relaxations))
        assert pool.slots > 2
    with pytest.raises(WorkersError, match="closed"):
        pool.submit(jobs[0])


WAYS = {
    "exiting": "its worker died with exit code 3",
    "exiting_quietly": "its worker died with exit code 0",
    "leaving": "its worker died with exit code 5",
    "crashing": "its worker died by signal 11 (segmentation fault)",
    "sleeping": "a force call took longer than 0.5 s",
    "hanging": "a force call took longer than 0.5 s",
    "with_a_program": "a force call took longer than 0.5 s",
}


@pytest.mark.parametrize("way", WAYS)
def test_a_death_costs_one_job_and_tells_why(way):
    plan = plan_for(getattr(faulty, way))
    with WorkerPool(plan, 1, call_limit=0.5) as pool:
        struck = pool.submit(relaxation(plan, 7, struck=True))
        other = pool.submit(relaxation(plan, 8))
        with pytest.raises(WorkerLost) as lost:
            struck.result(timeout=100)
        assert (lost.value.reason, lost.value.number, lost.value.force_calls) == (WAYS[way], 7, 3)
        assert lost.value.calls == {7: 3}
        trial = other.result(timeout=100)[0]
    assert_same([trial], results(InProcess(plan), [relaxation(plan, 8)]))
    programs = subprocess.run(["pgrep", "-f", "sleep 98765"], capture_output=True, text=True)
    assert not programs.stdout


def test_which_of_the_trials_that_are_sampled_together():
    plan = sampled_with_forces(faulty.crashing)
    with WorkerPool(plan, 1) as pool:
        lost = pool.submit(sampling(plan, [4, 5, 6], struck=[5])).exception(timeout=100)
        assert (lost.number, lost.force_calls, lost.calls) == (5, 3, {4: 3, 5: 3, 6: 2})
        trials = results(pool, [sampling(plan, [4, 6])])
    assert [trial.force_calls for trial in trials] == [5, 5]


@pytest.mark.parametrize(("way", "reason"), [("raising", "ValueError: no convergence"), ("not_a_number", "not finite")])
def test_what_a_calculator_says_is_no_death(way, reason):
    plan = plan_for(getattr(faulty, way))
    with WorkerPool(plan, 1, call_limit=10) as pool:
        (trial,) = results(pool, [relaxation(plan, 7, struck=True)])
    assert trial.ended is Ended.CALCULATOR
    assert reason in trial.reason
    assert trial.force_calls == 3


def test_a_trial_that_takes_too_long():
    plan = plan_for(faulty.slow)
    sampler = sampled_with_forces(faulty.slow)
    with WorkerPool(plan, 1, call_limit=30, trial_limit=0.2) as pool:
        lost = pool.submit(relaxation(plan, 7)).exception(timeout=100)
    assert (str(lost), lost.number) == ("it took longer than 0.2 s", 7)
    assert 1 <= lost.force_calls <= 8
    with WorkerPool(sampler, 1, trial_limit=0.2) as pool:
        lost = pool.submit(sampling(sampler, [1, 2])).exception(timeout=100)
    assert (str(lost), lost.number) == ("the sampling of 2 trials took longer than 0.4 s", None)
    assert sum(lost.calls.values()) >= 1


def test_a_mistake_in_a_job_travels_as_it_is():
    plan = plan_for()
    with WorkerPool(plan, 1) as pool:
        for runner in (pool, InProcess(plan), ForeignExecutor(plan, ThreadPoolExecutor(1))):
            wrong = Job("relax", relaxation(plan, 0).trials)
            wrong.trials[0].walk = None
            with pytest.raises(AttributeError, match="NoneType"):
                runner.submit(wrong).result(timeout=100)
        results(pool, [relaxation(plan, 1)])


def test_what_a_worker_cannot_make():
    plan = plan_for(faulty.only_for_the_driver)
    with WorkerPool(plan, 1) as pool, pytest.raises(InputError, match="cannot be made: RuntimeError: no licence here"):
        pool.submit(relaxation(plan, 0)).result(timeout=100)


def test_killed_without_a_job_or_at_its_start_a_worker_is_replaced():
    plan = plan_for()
    with WorkerPool(plan, 1) as pool:
        for _ in range(3):
            while not pool.pids:
                time.sleep(0.01)
            os.kill(pool.pids[0], signal.SIGKILL)  # at its start, or while it has nothing to do
            future = pool.submit(relaxation(plan, 3))
        assert future.result(timeout=100)[0].ended is not None
        idle = pool.pids
        os.kill(idle[0], signal.SIGKILL)
        assert gone_within(5, idle)
        assert results(pool, [relaxation(plan, 4)])[0].ended is not None
        assert pool.pids != idle


def test_terminating_ends_at_once():
    plan = plan_for(faulty.sleeping)
    pool = WorkerPool(plan, 1)
    ready(pool, plan)
    pids = pool.pids
    under_way, waiting = pool.submit(relaxation(plan, 0, struck=True)), pool.submit(relaxation(plan, 1))
    time.sleep(0.3)
    with pytest.raises(KeyboardInterrupt), pool:
        raise KeyboardInterrupt
    assert gone_within(5, pids)
    with pytest.raises(WorkersError, match="ended before"):
        under_way.result(timeout=0)
    with pytest.raises(CancelledError):
        waiting.result(timeout=0)


def test_signals_to_the_whole_family_are_the_drivers_business():
    plan = plan_for(faulty.slow, max_steps=8)
    with WorkerPool(plan, 1) as pool:
        ready(pool, plan)
        future = pool.submit(relaxation(plan, 0))
        time.sleep(0.1)
        for number in (signal.SIGINT, signal.SIGTERM):
            os.kill(pool.pids[0], number)
        assert future.result(timeout=100)[0].force_calls > 0


def test_the_score_and_the_calculators_go_through_pickle():
    score = load_score("molecules")
    sent = pickle.dumps(score)
    assert len(sent) < 1.5e6
    copy = pickle.loads(sent)
    arguments = np.array([6, 8]), np.array([[0, 0, 0], [1.3, 0, 0]]), np.full(2, 0.5), np.zeros(2, dtype=int)
    np.testing.assert_array_equal(copy(*arguments), score(*arguments))
    assert copy.card == score.card

    atoms = begun(plan_for(), 0).atoms
    atoms.rattle(0.1)
    unused = EMT()  # once used, this one does not pickle
    sent = pickle.dumps(calculator_source(unused, 0, 1)[0])
    assert pickle.loads(sent)().calculator is not unused
    for calculator in ("emt", "faulty:slow", faulty.slow, partial(EMT)):
        source, name = calculator_source(calculator, 0, 1)
        energy, _ = energy_and_forces(atoms, atoms.positions, source())
        again = pickle.loads(pickle.dumps(source))
        assert energy_and_forces(atoms, atoms.positions, again())[0] == energy
        assert again().calculator is not source().calculator, name


def test_what_cannot_be_sent_is_refused_in_one_sentence():
    class Local(EMT):
        pass

    unusual = [plan_for(lambda: EMT()), plan_for(Local())]
    for plan in unusual:
        results(InProcess(plan), [relaxation(plan, 0)])
        for make in (partial(WorkerPool, workers=1), partial(ForeignExecutor, executor=ThreadPoolExecutor(1))):
            with pytest.raises(InputError, match=r"^The calculator cannot be sent to workers: give a name,"):
                make(plan)
    plan = plan_for(coupling="mn", score=lambda *arguments: faulty.score(*arguments))
    with pytest.raises(InputError, match=r"^The score cannot be sent to workers: define"):
        WorkerPool(plan, 1)
    for wrong in ({"workers": 0}, {"workers": 1, "call_limit": 0}, {"workers": 1, "trial_limit": -1}):
        with pytest.raises(InputError, match="at least one worker"):
            WorkerPool(plan_for(), **wrong)


SCRIPT = """
import os, sys, threading, time
from ase.calculators.emt import EMT
from ase_gss.search import GenerativeRSS
from ase_gss.workers import Job, WorkerPool

def make():
    return EMT()

def main():
    plan = GenerativeRSS("Cu4", make, coupling="rss").plan
    with WorkerPool(plan, 2) as pool:
        futures = [pool.submit(Job("relax", (plan.begin(n),))) for n in range(4)]
        print([future.result()[0].number for future in futures], flush=True)
        print(*pool.pids, flush=True)
        {end}

{guard}
"""


def started(tmp_path, guard='if __name__ == "__main__":\n    main()', end=""):
    (tmp_path / "script.py").write_text(SCRIPT.format(guard=guard, end=end))
    return subprocess.Popen(
        [sys.executable, "script.py"], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def test_a_calculator_of_a_script_with_a_guard(tmp_path):
    process = started(tmp_path)
    out, err = process.communicate(timeout=100)
    assert out.startswith("[0, 1, 2, 3]"), err
    assert gone_within(5, map(int, out.split("\n")[1].split()))


def test_a_script_without_a_guard_ends_with_one_sentence(tmp_path):
    process = started(tmp_path, guard="main()")
    out, err = process.communicate(timeout=100)
    assert process.returncode == 1
    assert err.count("Traceback") <= 2, err  # the error, and what caused it
    assert "if __name__ == '__main__':" in err.strip().splitlines()[-1]
    assert not out


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere workers end with their jobs")
def test_workers_die_with_their_driver(tmp_path):
    process = started(tmp_path, end="time.sleep(1000)")
    assert process.stdout.readline() == "[0, 1, 2, 3]\n"
    pids = list(map(int, process.stdout.readline().split()))
    assert len(pids) == 2
    assert all(map(alive, pids))
    process.kill()
    process.communicate()
    assert gone_within(5, pids)


def test_a_script_that_forgets_to_close_ends_nevertheless(tmp_path):
    process = started(tmp_path, end="pool.__exit__ = None; os.environ['X'] = '1'; sys.exit(4)")
    process.communicate(timeout=100)
    assert process.returncode == 4


def test_many_deaths_at_random_moments():
    plan = plan_for(max_steps=20)
    rng = np.random.default_rng(1)
    with WorkerPool(plan, 2) as pool:
        ready(pool, plan)
        waiting = [relaxation(plan, number) for number in range(30)]
        over = threading.Event()

        def kill():
            for _ in range(4):
                if over.wait(rng.uniform(0.3, 1.5)):
                    return
                if pids := pool.pids:
                    os.kill(rng.choice(pids), signal.SIGKILL)

        killer = threading.Thread(target=kill)
        killer.start()
        finished, reasons = [], set()
        futures = [(job, pool.submit(job)) for job in waiting]
        while futures:
            job, future = futures.pop(0)
            try:
                finished += future.result(timeout=100)
            except WorkerLost as lost:
                reasons.add(lost.reason)
                futures.append((job, pool.submit(job)))
        over.set()
        killer.join()
    assert reasons <= {"its worker died by signal 9 (killed)"}
    finished.sort(key=lambda trial: trial.number)
    assert_same(finished, results(InProcess(plan), waiting))


@pytest.mark.parametrize("executor", [ThreadPoolExecutor, SpawnedExecutor])
def test_foreign_executors_do_what_this_process_does(executor):
    plan = plan_for(faulty.slow, "force", schedule=ConstantNoise(n_steps=2), score=faulty.score, max_steps=8)
    jobs = [sampling(plan, [0, 1]), *(relaxation(plan, number) for number in range(2, 5))]
    with executor(2) as theirs, ForeignExecutor(plan, theirs, slots=4) as foreign:
        assert_same(results(foreign, jobs), results(InProcess(plan), jobs))


def test_a_broken_executor_is_one_sentence():
    plan = plan_for(faulty.exiting)
    with SpawnedExecutor(1) as theirs:
        foreign = ForeignExecutor(plan, theirs)
        with pytest.raises(WorkersError, match="executor is broken"):
            foreign.submit(relaxation(plan, 0, struck=True)).result(timeout=100)
        with pytest.raises(WorkersError, match="executor is broken"):
            foreign.submit(relaxation(plan, 1))
    with pytest.raises(InputError, match="submit"):
        ForeignExecutor(plan, object())


def test_jobs_of_a_foreign_executor_can_be_cancelled():
    class Never:
        def __init__(self):
            self.given = []

        def submit(self, function, *args):
            self.given.append(Future())
            return self.given[-1]

    executor, plan = Never(), plan_for()
    foreign = ForeignExecutor(plan, executor)
    future = foreign.submit(relaxation(plan, 0))
    foreign.terminate()
    assert future.cancelled()
    assert executor.given[0].cancelled()
    foreign.close()  # nothing is left to wait for


def test_a_cluster_with_a_worker_killed_in_the_middle():
    distributed = pytest.importorskip("distributed")
    plan = plan_for(faulty.slow, max_steps=8)
    with distributed.LocalCluster(n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None) as cluster:
        jobs = [relaxation(plan, number) for number in range(6)]
        with ForeignExecutor(plan, connect_scheduler(cluster.scheduler_address)) as foreign:
            futures = [foreign.submit(job) for job in jobs]
            futures[0].result(timeout=100)
            os.kill(next(iter(cluster.workers.values())).pid, signal.SIGKILL)
            trials = [future.result(timeout=100)[0] for future in futures]
        assert_same(trials, results(InProcess(plan), jobs))


def test_a_cluster_that_kills_all_its_workers_loses_the_job():
    distributed = pytest.importorskip("distributed")
    import dask

    plan = plan_for(faulty.crashing)
    with (
        dask.config.set({"distributed.scheduler.allowed-failures": 0}),
        distributed.LocalCluster(n_workers=1, threads_per_worker=1, processes=True, dashboard_address=None) as cluster,
        ForeignExecutor(plan, connect_scheduler(cluster.scheduler_address)) as foreign,
    ):
        lost = foreign.submit(relaxation(plan, 0, struck=True)).exception(timeout=100)
        assert isinstance(lost, WorkerLost)
        assert lost.number is None
        assert results(foreign, [relaxation(plan, 1)])[0].ended is not None


def test_a_scheduler_that_is_not_there(monkeypatch):
    pytest.importorskip("distributed")
    monkeypatch.setattr("ase_gss.cluster._CONNECTION_LIMIT", 1)
    for address in ("tcp://127.0.0.1:1", "nonsense://x"):
        with pytest.raises(InputError, match="No Dask scheduler answers"):
            connect_scheduler(address)
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(InputError, match="pip install"):
        connect_scheduler("tcp://127.0.0.1:1")


def energies_are_those_of_the_structures(trials):
    for trial in trials:
        again = trial.atoms.copy()
        again.calc = EMT()
        assert trial.atoms.get_potential_energy() == pytest.approx(again.get_potential_energy(), abs=1e-9)
        np.testing.assert_allclose(trial.atoms.get_forces(), again.get_forces(), atol=1e-9)


class Corrected(EMT):
    """A wrapper as users write them: the energies are those of another calculator, under a name of its own."""

    def __init__(self):
        super().__init__()
        self.base = faulty.Program()

    def calculate(self, atoms=None, properties=("energy",), system_changes=()):
        super().calculate(atoms, properties, system_changes)
        self.results = {name: self.base.get_property(name, self.atoms) for name in ("energy", "forces")}


def test_nor_do_those_inside_other_calculators(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    plan = plan_for(Corrected())
    with ThreadPoolExecutor(3) as threads:
        runner = ForeignExecutor(plan, threads)
        energies_are_those_of_the_structures(results(runner, [relaxation(plan, number) for number in range(6)]))
    assert not (tmp_path / "answer.traj").exists()


def test_what_is_under_way_elsewhere_when_a_search_stops_counts():
    made = []

    class Noted(EMT):
        def calculate(self, *arguments, **keywords):
            made.append(1)
            time.sleep(0.002)
            super().calculate(*arguments, **keywords)

        def __reduce__(self):
            return Noted, ()

    globals()["Noted"], Noted.__qualname__ = Noted, "Noted"
    with ThreadPoolExecutor(4) as threads:
        search = GenerativeRSS("Cu4", Noted(), coupling="rss", executor=threads)
        search.attach(search.stop, 3)
        search.run(trials=64)
    assert 3 <= search.trials < 64
    assert search.force_calls == len(made)


def test_a_search_that_stops_begins_nothing_that_waits(tmp_path):
    search = GenerativeRSS("Cu4", faulty.slow, coupling="rss", workers=2)
    search.attach(search.stop, 3)
    search.run(trials=64)
    # The third trial stops it. Two more may be under way by then, and each worker may have taken up one meanwhile.
    assert 3 <= search.trials <= 6


def test_programs_of_several_workers_do_not_mistake_one_anothers_files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    plan = plan_for(faulty.Program())
    jobs = [relaxation(plan, number) for number in range(6)]
    with WorkerPool(plan, 2) as pool:
        there = results(pool, jobs)
    energies_are_those_of_the_structures(there)
    assert len(list(tmp_path.glob("worker-*/answer.traj"))) == 2
    with ThreadPoolExecutor(3) as threads:
        energies_are_those_of_the_structures(results(ForeignExecutor(plan, threads), jobs))
    assert not (tmp_path / "answer.traj").exists()
    assert_same(results(InProcess(plan), jobs), there)
    assert (tmp_path / "answer.traj").exists()
