"""Worker processes: jobs done side by side, each worker supervised, the death of one costs the job that it had.

Each worker has a thread in the driver, a connection and a flight recorder of its own, and shares nothing with the
others, no queue and no lock. So it may be killed at any moment, idle, at its start or in the middle of a message, and
nobody else notices. (The pools of pebble and of the standard library break or hang in some of these cases: pebble 5.2
where a worker ends with exit code 0 or dies without a job.)

Who uses it imports everything from here: the jobs from `ase_gss.jobs`, foreign executors from `ase_gss.cluster`.
"""

import atexit
import multiprocessing
import os
import pickle
import signal
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import count
from multiprocessing.connection import Connection, wait
from queue import Empty, SimpleQueue
from typing import Any

from ase_gss.cluster import ForeignExecutor, connect_scheduler
from ase_gss.errors import InputError
from ase_gss.flight import MAX_TRIALS, FlightRecorder
from ase_gss.jobs import InProcess, Job, Runner, WorkerLost, WorkersError, packed, perform
from ase_gss.plan import Plan
from ase_gss.worker_process import work

__all__ = [
    "ForeignExecutor",
    "InProcess",
    "Job",
    "Runner",
    "WorkerLost",
    "WorkerPool",
    "WorkersError",
    "connect_scheduler",
    "crew_of",
    "perform",
]

_NAME = "ase-gss worker"
#: Exit code of a worker that was about to make workers itself.
_UNGUARDED = 72
#: Starts that may fail, one after the other, before the workers are given up.
_STARTS = 5
#: s; a worker that is not ready by then has failed to start. It may have to load a model.
_START_LIMIT = 600.0
#: s; for a worker to end by itself where it is about to.
_GRACE = 5.0
#: s; the longest time between two looks at the clock.
_LONGEST_INTERVAL = 0.5
#: More threads than one in each of several processes stall one another.
_ONE_THREAD = dict.fromkeys(
    ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS", "NUMEXPR_NUM_THREADS"), "1"
)
#: Held while a process is started or waited for: two threads would take its end from one another.
_processes = threading.Lock()


class WorkerPool(Runner):
    """Worker processes on this machine, one thread each.

    A worker that died is replaced. One that died without having begun its job costs nothing: another one does the job.
    All workers are gone within moments of their driver's death, however it died (Linux; elsewhere at the end of their
    jobs).

    Parameters
    ----------
    plan : Plan
        Of the search; each worker gets it once, and makes its own calculator.
    workers : int
        How many.
    call_limit : float, optional
        Seconds that one force call, or one batch, may take; a longer one is ended, even in C code, with what it
        started. The first call of a neural potential may be much slower than the others: leave it room.
    trial_limit : float, optional
        Seconds that the relaxation of one trial may take, or its share of a job of several; not for refinements.

    Raises
    ------
    InputError
        Where the plan cannot be sent to them, or these numbers make no sense.
    """

    def __init__(
        self, plan: Plan, workers: int, call_limit: float | None = None, trial_limit: float | None = None
    ) -> None:
        if multiprocessing.current_process().name == _NAME:
            # This is a worker that imports the script which made it, and the script has no guard.
            sys.exit(_UNGUARDED)
        if workers < 1 or any(limit is not None and not limit > 0 for limit in (call_limit, trial_limit)):
            raise InputError("Give at least one worker, and limits that are positive numbers of seconds.")
        self.slots = 2 * workers
        self._trial_limit = trial_limit
        self._orders: SimpleQueue[_Order | None] = SimpleQueue()
        self._numbers = count(1)
        self._open = True
        sent = packed(plan)
        self._workers = [_Worker(sent, self._orders, call_limit) for _ in range(workers)]
        atexit.register(self.terminate)

    @property
    def pids(self) -> list[int]:
        """Process ids of the workers that are running."""
        return [worker.pid for worker in self._workers if worker.pid is not None]

    def submit(self, job: Job) -> Future:
        """Take a job.

        The future has what `perform` returns; the job's own trials stay as they are. It raises what the job raises,
        `WorkerLost` where the worker died, hung or ran out of time, and `WorkersError` where no worker can be had.
        """
        if not self._open:
            raise WorkersError("The workers have been closed: make new ones.")
        if len(job.trials) > MAX_TRIALS:
            raise ValueError(f"A job may have {MAX_TRIALS} trials, not {len(job.trials)}.")
        number, future = next(self._numbers), Future()
        limit = None if self._trial_limit is None or not job.trials else self._trial_limit * len(job.trials)
        message = pickle.dumps((number, job), pickle.HIGHEST_PROTOCOL)
        self._orders.put(_Order(number, message, job.stage, job.numbers, limit, future))
        return future

    def close(self) -> None:
        """Finish what has been submitted, then end the workers."""
        self._open = False
        self._dismiss()
        try:
            self._join()
        except BaseException:  # Ctrl-C
            self.terminate()
            raise

    def terminate(self) -> None:
        """Kill the workers; what has not begun is cancelled, and what is under way raises `WorkersError`."""
        self._open = False
        with suppress(Empty):
            while True:
                order = self._orders.get_nowait()
                if order is not None:
                    order.future.cancel()
                    order.future.set_running_or_notify_cancel()
        for worker in self._workers:
            worker.stop()
        self._dismiss()
        self._join()

    def _dismiss(self) -> None:
        for _ in self._workers:
            self._orders.put(None)

    def _join(self) -> None:
        for worker in self._workers:
            worker.thread.join()
        atexit.unregister(self.terminate)


def crew_of(
    plan: Plan,
    workers: int,
    executor: Any,
    call_limit: float | None,
    trial_limit: float | None,
    jobs: int | None = None,
) -> Runner:
    """Who does the work of a search with these keywords of `GenerativeRSS`; of so many jobs, where that is known."""
    if executor is not None:
        executor = connect_scheduler(executor) if isinstance(executor, str) else executor
        return ForeignExecutor(plan, executor, 2 * workers)
    if workers > 1 or call_limit is not None or trial_limit is not None:
        return WorkerPool(plan, workers if jobs is None else min(workers, jobs), call_limit, trial_limit)
    return InProcess(plan)


@dataclass
class _Order:
    """A job on its way to a worker: the message, its stage, the numbers of its trials, its limit (s), its future."""

    number: int
    message: bytes
    stage: str
    trials: list[int]
    limit: float | None
    future: Future

    @property
    def too_late(self) -> str:
        """What is said where it took longer than its limit."""
        if self.limit is None:
            return ""
        stage = "sampling" if self.stage == "sample" else "relaxation"
        who = "it" if len(self.trials) == 1 else f"the {stage} of {len(self.trials)} trials"
        return f"{who} took longer than {self.limit:g} s"


class _Gone(Exception):
    """The worker's process has ended."""

    def __init__(self, reason: str, out_of_time: bool = False) -> None:
        super().__init__(reason)
        self.reason, self.out_of_time = reason, out_of_time


class _Worker:
    """A worker process, and the thread that starts it, brings it one job after the other, and watches it."""

    def __init__(self, plan: bytes, orders: "SimpleQueue[_Order | None]", call_limit: float | None) -> None:
        self._plan, self._orders, self._call_limit = plan, orders, call_limit
        self._context = multiprocessing.get_context("spawn")
        self._recorder = FlightRecorder(self._context)
        self._process: Any = None
        self._connection: Connection | None = None
        self._lock, self._stopped = threading.Lock(), False
        self._refusal: WorkersError | None = None
        self.thread = threading.Thread(target=self._serve, name=_NAME, daemon=True)
        self.thread.start()

    @property
    def pid(self) -> int | None:
        """Of the process; None while there is none."""
        process = self._process
        return None if process is None else process.pid

    def stop(self) -> None:
        """Kill the process, and start no other; from any thread."""
        with self._lock:
            self._stopped = True
            if self._process is not None:
                _kill(self._process)

    def _serve(self) -> None:
        if hasattr(signal, "pthread_sigmask"):
            # A worker inherits this mask, and Ctrl-C does not hit it before it can take care of itself.
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
        with suppress(Exception):  # this start is only to save time: at the first job it is tried again, and reported
            self._start()
        while (order := self._orders.get()) is not None:
            if not order.future.set_running_or_notify_cancel():
                continue
            try:
                order.future.set_result(self._do(order))
            except BaseException as error:
                order.future.set_exception(error)
        self._end()

    def _do(self, order: _Order) -> Any:
        reason = ""
        for _ in range(_STARTS):
            try:
                self._start()
                self._send(order.message)
                raised, answer = self._receive(order.limit, order.too_late, self._call_limit)
            except _Gone as gone:
                if self._stopped:
                    raise WorkersError("The workers were ended before this job was done.") from gone
                if self._recorder.job == order.number:
                    raise self._lost(order, gone) from gone
                reason = gone.reason  # it had not begun: nothing is lost
                continue
            if raised:
                raise answer
            return answer
        raise WorkersError(f"No worker can be started, {reason}: look at what the workers have printed.")

    def _lost(self, order: _Order, gone: _Gone) -> WorkerLost:
        calls = dict(zip(order.trials, self._recorder.calls(len(order.trials)), strict=True))
        index = 0 if len(order.trials) == 1 else None if gone.out_of_time else self._recorder.index
        number = None if index is None else order.trials[index]
        return WorkerLost(gone.reason, number, calls.get(number, 0), calls)

    def _start(self) -> None:
        """Start a process where none is running, and wait until it is ready."""
        if self._refusal is not None:
            raise self._refusal
        if self._process is not None:
            if not wait([self._process.sentinel], 0):
                return
            self._bury()
        with self._lock:
            if self._stopped:
                raise _Gone("stopped")
            self._connection, theirs = self._context.Pipe()
            self._process = self._context.Process(
                target=work, name=_NAME, args=(os.getpid(), theirs, self._recorder), daemon=False
            )
            try:
                with _processes, _one_thread():
                    self._process.start()
            except OSError as error:
                self._process = None
                self._connection.close()
                raise _Gone(f"the system says: {error}") from error
            finally:
                # Only the worker has this end now, and its death, in the middle of a message even, is its end.
                theirs.close()
        self._send(self._plan)
        try:
            raised, answer = self._receive(_START_LIMIT, f"it was not ready after {_START_LIMIT:g} s")
        except _Gone as gone:
            if gone.reason == _ending(_UNGUARDED):
                self._refusal = WorkersError(
                    "Workers import the script that makes them: put what it does under if __name__ == '__main__':."
                )
                raise self._refusal from gone
            raise
        if raised:
            self._bury()
            raise answer

    def _send(self, message: bytes) -> None:
        try:
            self._connection.send_bytes(message)
        except OSError:
            raise _Gone(self._bury()) from None

    def _receive(self, limit: float | None, too_late: str, call_limit: float | None = None) -> tuple[bool, Any]:
        """Wait for the answer, and whether it is an exception; `_Gone` where none comes within the limits (s)."""
        limits = [each for each in (limit, call_limit) if each is not None]
        interval = min(max(min(limits) / 20, 0.01), _LONGEST_INTERVAL) if limits else None
        spent = in_call = 0.0
        call, last = None, time.monotonic()
        while True:
            ready = wait([self._connection, self._process.sentinel], interval)
            if self._connection in ready or self._connection.poll():
                try:
                    message = self._connection.recv_bytes()
                except (EOFError, OSError):
                    # How the pipe ends says nothing that the worker's exit code does not.
                    raise _Gone(self._bury()) from None
                return pickle.loads(message)
            if ready:
                raise _Gone(self._bury())
            now = time.monotonic()
            # Where this process was stopped for a while the worker was, too: that time does not count.
            passed, last = min(now - last, 2 * interval), now
            under_way = self._recorder.call_under_way
            in_call = in_call + passed if under_way is not None and under_way == call else 0.0
            call, spent = under_way, spent + passed
            if call_limit is not None and in_call > call_limit:
                self._bury(kill=True)
                raise _Gone(f"a force call took longer than {call_limit:g} s")
            if limit is not None and spent > limit:
                self._bury(kill=True)
                raise _Gone(too_late, out_of_time=True)

    def _bury(self, kill: bool = False) -> str:
        """Take leave of a process that has ended or is about to, with whatever it has started; how it ended."""
        process = self._process
        ended = not kill and bool(wait([process.sentinel], _GRACE))
        with self._lock:
            _kill(process)
            self._process = None
        with _processes:
            process.join(_GRACE)
        self._connection.close()
        return _ending(process.exitcode) if ended else "its worker stopped listening"

    def _end(self) -> None:
        if self._process is not None:
            self._connection.close()  # which the worker sees, and ends
            self._bury()


@contextmanager
def _one_thread() -> Iterator[None]:
    """What is started now has one thread, from its first import on."""
    before = {name: os.environ.get(name) for name in _ONE_THREAD}
    os.environ.update(_ONE_THREAD)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _kill(process: Any) -> None:
    """Kill a worker that has not been waited for, and the programs that its calculator has started."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except (AttributeError, OSError):  # Windows; or it has not come as far as to make a group of its own
        with suppress(OSError):
            process.kill()


def _ending(code: int | None) -> str:
    if code is None or code >= 0:
        return f"its worker died with exit code {code}"
    words = signal.strsignal(-code)
    return f"its worker died by signal {-code}" + (f" ({words.lower()})" if words else "")
