"""Jobs for executors of others: any of the kind of `concurrent.futures`, and Dask by the address of its scheduler."""

import hashlib
import pickle
import sys
import threading
from concurrent.futures import BrokenExecutor, CancelledError, Future
from typing import Any, Protocol

from ase_gss.errors import InputError
from ase_gss.jobs import Job, Runner, WorkerLost, WorkersError, packed, perform, unpacked
from ase_gss.plan import Plan

#: s in which a scheduler has to answer.
_CONNECTION_LIMIT = 10
#: Plans that a remote thread keeps: those of two searches.
_KEPT_PLANS = 4


class Executor(Protocol):
    """What is needed of an executor."""

    def submit(self, function: Any, /, *args: Any) -> Any:
        """Call `function(*args)` somewhere; a future with `add_done_callback`, `result` and `cancel`."""


class ForeignExecutor(Runner):
    """Jobs go to an executor of the user's.

    Every job carries the plan, and each thread at the other end keeps it and the calculator that it has made. What only
    `WorkerPool` promises: there are no time limits, so a calculator that hangs keeps its place for ever; how many
    threads a process uses is not touched; where a process dies, its executor decides what becomes of its jobs, and the
    force calls of a lost one are unknown. A `ProcessPoolExecutor` breaks as a whole. Dask repeats the job elsewhere;
    it is lost only after some deaths (Dask's setting ``distributed.scheduler.allowed-failures``).

    Parameters
    ----------
    plan : Plan
        Of the search.
    executor : executor
        Has ``submit(function, *args)`` that returns a future. It stays the user's: closing does not shut it down,
        unless it comes from `connect_scheduler`.
    slots : int
        Jobs to keep submitted: at least as many as there are workers, better twice.

    Raises
    ------
    InputError
        Where the plan cannot be sent, or this is no executor.
    """

    def __init__(self, plan: Plan, executor: Executor, slots: int = 32) -> None:
        if not callable(getattr(executor, "submit", None)):
            raise InputError(f"An executor has a method submit(function, *args), which {executor!r} has not.")
        if slots < 1:
            raise InputError("Give at least one slot.")
        self.slots = slots
        self._executor = executor
        self._plans = {stage: packed(plan, stage) for stage in ("sample", "relax")}
        self._plans |= {"learn": self._plans["sample"], "refine": self._plans["relax"]}
        self._digests = {stage: hashlib.sha256(sent).hexdigest() for stage, sent in self._plans.items()}
        from_dask = isinstance(executor, _Scheduler) or type(executor).__module__.partition(".")[0] == "distributed"
        self._tells_what_runs = not from_dask
        self._waiting: set[_Forwarding] = set()
        self._all_done = threading.Condition()

    def submit(self, job: Job) -> Future:
        """Take a job; its future may raise `WorkerLost`, `WorkersError`, and whatever the job or the executor raises.

        Raises
        ------
        WorkersError
            Where the executor is broken, or has been shut down.
        """
        message = pickle.dumps(job, pickle.HIGHEST_PROTOCOL)
        try:
            theirs = self._executor.submit(_perform, self._digests[job.stage], self._plans[job.stage], message)
        except Exception as error:
            if _is_gone(error):
                raise _broken(error) from error
            raise
        future = _Forwarding(theirs, self._tells_what_runs)
        with self._all_done:
            self._waiting.add(future)

        def hand_over(done: Any) -> None:
            if future.abandoned and getattr(done, "cancelled", bool)():
                Future.cancel(future)
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(done.result())
                except BaseException as error:
                    future.set_exception(_translated(error))
            with self._all_done:
                self._waiting.discard(future)
                self._all_done.notify_all()

        theirs.add_done_callback(hand_over)
        return future

    def close(self) -> None:
        """Wait for what has been submitted."""
        with self._all_done:
            self._all_done.wait_for(lambda: not self._waiting)
        self._disconnect()

    def terminate(self) -> None:
        """Cancel what has not begun, and do not wait for the rest."""
        with self._all_done:
            waiting, self._waiting = list(self._waiting), set()
        for future in waiting:
            future.abandon()
        self._disconnect()

    def _disconnect(self) -> None:
        if isinstance(self._executor, _Scheduler):
            self._executor.close()


class _Forwarding(Future):
    """A future of ours for one of theirs: what is under way there cannot be cancelled here.

    Dask does not tell what is, and would cancel it: there nothing is.
    """

    def __init__(self, theirs: Any, tells_what_runs: bool) -> None:
        super().__init__()
        self._theirs, self._tells_what_runs = theirs, tells_what_runs
        self.abandoned = False

    def cancel(self) -> bool:
        """Cancel it, where it has not begun."""
        return self._tells_what_runs and self.abandon()

    def abandon(self) -> bool:
        """Cancel it, wherever it is, if they do so."""
        self.abandoned = True
        return bool(self._theirs.cancel()) and super().cancel()


class _Scheduler:
    """A Dask scheduler as an executor."""

    def __init__(self, client: Any) -> None:
        self._client = client
        # The same job may come twice, after the first was lost: it is then to be done again.
        self._executor = client.get_executor(pure=False)

    def submit(self, function: Any, /, *args: Any) -> Future:
        """As every executor."""
        return self._executor.submit(function, *args)

    def close(self) -> None:
        """Leave the scheduler, which goes on."""
        self._client.close()


def connect_scheduler(address: str) -> Executor:
    """The Dask cluster whose scheduler listens at this address, as an executor.

    Its workers need this package, the calculator, and one thread each (``dask worker --nthreads 1``).

    Parameters
    ----------
    address : str
        Like "tcp://10.0.0.1:8786", as the scheduler prints it.

    Raises
    ------
    InputError
        Where Dask is not installed, or nobody answers.
    """
    try:
        from distributed import Client
    except ImportError as error:
        raise InputError("A scheduler needs Dask: pip install 'ase-gss[cluster]'.") from error
    try:
        client = Client(address, timeout=_CONNECTION_LIMIT, set_as_default=False)
    except (OSError, ValueError) as error:  # a time-out is an OSError
        raise InputError(
            f"No Dask scheduler answers at {address!r}: start one with 'dask scheduler', or correct the address."
        ) from error
    return _Scheduler(client)


_kept = threading.local()


def _perform(digest: str, plan: bytes, message: bytes) -> Any:
    """Do a job at the other end. Plans are kept by the thread: two must not share a calculator."""
    plans = _kept.__dict__.setdefault("plans", {})
    if digest not in plans:
        while len(plans) >= _KEPT_PLANS:
            del plans[next(iter(plans))]
        plans[digest] = unpacked(plan)
    return perform(plans[digest], pickle.loads(message))


def _is_gone(error: Exception) -> bool:
    """Whether an executor has broken or was shut down, for which `concurrent.futures` has no class of its own."""
    dask = sys.modules.get("distributed")
    closed = dask is not None and isinstance(error, dask.client.ClosedClientError)
    return closed or isinstance(error, BrokenExecutor) or type(error) is RuntimeError


def _broken(error: BaseException) -> WorkersError:
    said = " ".join(str(error).split()).rstrip(".")
    return WorkersError(f"The executor is broken, so start again with a new one: {said}.")


def _translated(error: BaseException) -> BaseException:
    """What this package calls it."""
    if isinstance(error, BrokenExecutor):
        translated: BaseException = _broken(error)
    elif isinstance(error, CancelledError):
        translated = _broken(RuntimeError("it has cancelled what it was given"))
    elif "distributed" in sys.modules and isinstance(error, sys.modules["distributed"].KilledWorker):
        translated = WorkerLost("the workers that tried it died")
    else:
        return error
    translated.__cause__ = error
    return translated
