"""The flight recorder: what a worker process was doing, legible for the driver after its sudden death."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import copy
from functools import partial
from multiprocessing.context import BaseContext
from typing import Any

import numpy as np
from ase import Atoms

from ase_gss.calculator_source import CalculatorSource
from ase_gss.forces import CountedCalculator
from ase_gss.plan import Plan
from ase_gss.systems import System
from ase_gss.trial import Trial
from ase_gss.walk import Walk

#: Trials of one job that there is room for.
MAX_TRIALS = 1024
_JOB, _INDEX, _BEATS, _CALLS = range(4)


class FlightRecorder:
    """A few integers in memory that a worker and its driver share; it outlives the worker, and nothing else has to.

    A note costs well below a microsecond, so that every force call can be noted before it is made.

    Parameters
    ----------
    context : multiprocessing context
        Of the worker; the recorder is handed to it as an argument of its process.
    """

    def __init__(self, context: BaseContext) -> None:
        self._notes = context.RawArray("q", _CALLS + MAX_TRIALS)

    def begin(self, job: int, trials: int) -> None:
        """Job number `job` (from 1 on) of so many trials is taken up; with one trial it is that one's force calls."""
        for index in range(trials):
            self._notes[_CALLS + index] = 0
        self._notes[_INDEX] = 0 if trials == 1 else -1
        self._notes[_BEATS] += self._notes[_BEATS] % 2
        self._notes[_JOB] = job

    def attend(self, index: int) -> None:
        """From now on force calls are those of this trial of the job."""
        self._notes[_INDEX] = index

    def enter(self) -> None:
        """A force call begins."""
        self._notes[_BEATS] += 1
        if self._notes[_INDEX] >= 0:
            self._notes[_CALLS + self._notes[_INDEX]] += 1

    def enter_batch(self, indices: Sequence[int], again: bool) -> None:
        """A call for the structures of these trials begins; where it is made `again`, it has been counted."""
        self._notes[_INDEX] = indices[0] if len(indices) == 1 else -1
        self._notes[_BEATS] += 1
        for index in () if again else indices:
            self._notes[_CALLS + index] += 1

    def leave(self) -> None:
        """The force call is over."""
        self._notes[_BEATS] += 1

    @property
    def job(self) -> int:
        """The job that was taken up last, or 0."""
        return self._notes[_JOB]

    @property
    def call_under_way(self) -> int | None:
        """A number that is another one for each force call; None between the calls."""
        beats = self._notes[_BEATS]
        return beats if beats % 2 else None

    @property
    def index(self) -> int | None:
        """Which trial of the job is calling for a force; None between the calls, and where it is not known."""
        return self._notes[_INDEX] if self.call_under_way and self._notes[_INDEX] >= 0 else None

    def calls(self, trials: int) -> list[int]:
        """Force calls spent in this job by each of its trials, one under way included."""
        return list(self._notes[_CALLS : _CALLS + trials])


class _RecordedCalculator(CountedCalculator):
    """A counted calculator whose calls are noted before they are made."""

    def __init__(self, counted: CountedCalculator, recorder: FlightRecorder) -> None:
        super().__init__(counted.calculator, counted.on_failure)
        self._recorder = recorder

    def calculate(self, *args: Any, **keywords: Any) -> None:
        """As the calculator that is counted."""
        self._recorder.enter()
        with self._noted_end():
            super().calculate(*args, **keywords)

    def calculate_batch(
        self, structures: Sequence[Atoms], stress: bool, callers: Sequence[int], again: bool = False
    ) -> list[dict[str, Any]]:
        """As the calculator that is counted."""
        self._recorder.enter_batch(callers, again)
        with self._noted_end():
            return super().calculate_batch(structures, stress, callers, again)

    @contextmanager
    def _noted_end(self) -> Iterator[None]:
        try:
            yield
        except Exception:
            self._recorder.leave()
            raise
        self._recorder.leave()  # not where the calculator ends the process by SystemExit: that is a fatal call


class _RecordedSystem:
    """A system that notes which trial's force it is asked for: the one whose walk it is given."""

    def __init__(self, system: System, trials: Sequence[Trial], recorder: FlightRecorder) -> None:
        self._system, self._recorder = system, recorder
        self._indices = {id(trial.walk): index for index, trial in enumerate(trials)}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._system, name)

    def force(
        self, atoms: Any, walk: Walk, calculator: CountedCalculator
    ) -> tuple[float, np.ndarray, np.ndarray | None]:
        """As the system's own."""
        self._recorder.attend(self._indices.get(id(walk), -1))
        return self._system.force(atoms, walk, calculator)


def recorded(plan: Plan, trials: Sequence[Trial], recorder: FlightRecorder) -> Plan:
    """The same plan for a job with these trials, every force call noted."""
    noting = copy(plan)
    noting.new_calculator = partial(_recorded_calculator, plan.new_calculator, recorder)
    noting.system = _RecordedSystem(plan.system, trials, recorder)
    return noting


def _recorded_calculator(source: CalculatorSource, recorder: FlightRecorder) -> CountedCalculator:
    return _RecordedCalculator(source(), recorder)
