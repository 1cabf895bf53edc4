"""The life of a worker process."""

import ctypes
import os
import pickle
import signal
import sys
import traceback
from contextlib import closing, suppress
from multiprocessing.connection import Connection
from typing import Any

from ase_gss.flight import FlightRecorder, recorded
from ase_gss.jobs import perform, unpacked


def work(driver: int, connection: Connection, recorder: FlightRecorder) -> None:
    """The life of a worker: ready, then one job after the other until the driver hangs up."""
    _take_care(driver)
    with closing(connection):  # so that the driver knows at once, even where something delays the end
        _work(connection, recorder)


def _work(connection: Connection, recorder: FlightRecorder) -> None:
    try:
        plan = unpacked(connection.recv_bytes())
        if "torch" in sys.modules:
            sys.modules["torch"].set_num_threads(1)
        plan.new_calculator()  # a model is loaded now, while no clock runs
    except EOFError:
        return
    except Exception as error:
        _answer(connection, True, error)
        return
    _answer(connection, False, None)
    with suppress(EOFError, OSError):
        while True:
            number, job = pickle.loads(connection.recv_bytes())
            recorder.begin(number, len(job.numbers))
            try:
                raised, answer = False, perform(recorded(plan, job.trials, recorder), job)
            except Exception as error:
                raised, answer = True, error
            _answer(connection, raised, answer)


def _take_care(driver: int) -> None:
    """Die with the driver and not by the signals that are for it, and let nobody inherit the connection."""
    if sys.platform == "linux":
        set_parent_death_signal = 1  # PR_SET_PDEATHSIG
        ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGKILL, 0, 0, 0)
    if hasattr(os, "setpgrp"):
        if os.getppid() != driver:  # it died before it was asked for a signal
            os._exit(1)
        os.setpgrp()
        # A program that a calculator starts would keep the connection open after the worker's death.
        for descriptor in range(3, 256):
            with suppress(OSError):
                os.set_inheritable(descriptor, False)
    # The driver decides what these mean. Handlers that do nothing, as programs would inherit that they are ignored.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _do_nothing)
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT, signal.SIGTERM})


def _do_nothing(*_: object) -> None:
    pass


def _answer(connection: Connection, raised: bool, answer: Any) -> None:
    if raised:
        answer.add_note("In a worker:\n" + "".join(traceback.format_exception(answer)))
    try:
        message = pickle.dumps((raised, answer), pickle.HIGHEST_PROTOCOL)
        if raised:
            pickle.loads(message)  # some exceptions can be written but not read
    except Exception:
        message = pickle.dumps((True, RuntimeError(f"{type(answer).__name__}: {answer}")))
    connection.send_bytes(message)
