"""What a worker is given to do, as plain data, and who does it: here, this process itself."""

import pickle
from concurrent.futures import Future
from copy import copy
from dataclasses import dataclass, fields
from typing import Any, Self

from ase_gss.errors import InputError
from ase_gss.lesson import ForceFunction, Learned, Part
from ase_gss.memory import KnownEnds
from ase_gss.plan import Plan
from ase_gss.refine_end import Refinement, refine_end
from ase_gss.refined_rows import Refined
from ase_gss.stages import relax, sample
from ase_gss.trial import Trial
from ase_gss.walk import ScoreFunction

#: Names of the fields of a plan that are the user's own, for those that do not pickle.
_WORDS = {"new_calculator": "calculator"}


@dataclass(frozen=True)
class Job:
    """A stage of some trials, a part of a lesson, or a refinement. Plain data: it pickles.

    Attributes
    ----------
    stage : str
        "sample" for trials that go through the sampler in step with one another, "relax" for the hand-off of one
        trial, or of several whose structures go through the calculator in batches, "learn" for a part of a lesson,
        "refine" for a refinement.
    trials : tuple of Trial
        As they are before it; none for a lesson and a refinement.
    known : KnownEnds, optional
        Ends that a relaxation may be recognised to head for.
    learned : Learned, optional
        For samples: what the search has learned.
    part : Part, optional
        Of a lesson.
    refinement : Refinement, optional
        Of one end.
    """

    stage: str
    trials: tuple[Trial, ...]
    known: KnownEnds | None = None
    learned: Learned | None = None
    part: Part | None = None
    refinement: Refinement | None = None

    @property
    def numbers(self) -> list[int]:
        """The trials that its force calls are for; none for a lesson."""
        return [trial.number for trial in self.trials] if self.refinement is None else [self.refinement.number]

    @property
    def first(self) -> int:
        """Number of its first trial; -1 for a lesson, which goes before all trials."""
        return next(iter(self.numbers), -1)


class WorkerLost(Exception):
    """The process that was to do a job died, hung or ran out of time: the job is lost, nothing else is.

    Attributes
    ----------
    reason : str
        What happened, to be read behind "trial 7:".
    number : int or None
        The trial whose force call it happened in; None where it was in none, or where that is not known. A job of
        several trials that ran out of time is blamed on none of them.
    force_calls : int
        Force calls that this trial has spent in this job, the fatal one included; 0 where it is not known.
    calls : dict
        The same for all trials of the job, by number; empty where nothing is known.
    """

    def __init__(
        self, reason: str, number: int | None = None, force_calls: int = 0, calls: dict[int, int] | None = None
    ) -> None:
        super().__init__(reason, number, force_calls, calls)
        self.reason, self.number, self.force_calls, self.calls = reason, number, force_calls, calls or {}

    def __str__(self) -> str:
        return self.reason


class WorkersError(RuntimeError):
    """The workers as a whole cannot go on; the message says why."""


def perform(plan: Plan, job: Job) -> tuple[Trial, ...] | ScoreFunction | ForceFunction | Refined:
    """Take the trials through the stage, and return them changed; of a lesson what has been learned.

    Of a refinement what it has made of its end.
    """
    if job.stage == "learn":
        return plan.learn(job.part)
    if job.stage == "refine":
        return refine_end(job.refinement, plan)
    if job.stage == "sample":
        sample(job.trials, plan, job.learned)
    elif job.stage == "relax":
        relax(job.trials, plan, job.known)
    else:
        raise ValueError(f"There is no stage {job.stage!r}.")
    return job.trials


def packed(plan: Plan, stage: str | None = None) -> bytes:
    """The plan as another process takes it up; for the stage "relax" without the score, which is most of it.

    Raises
    ------
    InputError
        Where a part of it does not pickle.
    """
    sent = copy(plan)
    if stage == "relax":
        sent.score = sent.forces = None
    try:
        return pickle.dumps(sent, pickle.HIGHEST_PROTOCOL)
    except Exception as error:  # TypeError, PicklingError, AttributeError, and what foreign classes raise
        for field in fields(sent):
            if not _pickles(getattr(sent, field.name)):
                raise InputError(_refusal(field.name)) from error
        raise InputError(f"The search cannot be sent to workers: {type(error).__name__}: {error}.") from error


def unpacked(plan: bytes) -> Plan:
    """The plan again, in the process that is to work by it.

    Raises
    ------
    InputError
        Where this process cannot import what the plan is made of.
    """
    try:
        return pickle.loads(plan)
    except (AttributeError, ImportError) as error:
        raise InputError(
            "A worker cannot import what the search was given: define it in a module that can be imported, not in an "
            f"interactive session ({type(error).__name__}: {error})."
        ) from error


def _pickles(value: Any) -> bool:
    try:
        pickle.dumps(value, pickle.HIGHEST_PROTOCOL)
    except Exception:
        return False
    return True


def _refusal(name: str) -> str:
    word = _WORDS.get(name, name)
    if word == "calculator":
        return (
            "The calculator cannot be sent to workers: give a name, 'module:factory', or a function defined at the top "
            "level of a module."
        )
    return f"The {word} cannot be sent to workers: define its function or class at the top level of a module."


class Runner:
    """Who takes jobs. To be left with `close`, or with `terminate` where what is under way may be lost.

    As a context manager it is closed at the end of the block, and terminated where the block raises.

    Attributes
    ----------
    slots : int
        Jobs to keep submitted, so that nobody waits.
    """

    slots = 1

    def submit(self, job: Job) -> Future:
        """Take a job. The result of the future is that of `perform`."""
        raise NotImplementedError

    def close(self) -> None:
        """Finish what has been submitted, then end."""

    def terminate(self) -> None:
        """End at once."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.close() if kind is None else self.terminate()


class InProcess(Runner):
    """Jobs are done in this process, at once; Ctrl-C goes through."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan

    def submit(self, job: Job) -> Future:
        """Do the job and return its future, done; its trials are changed in place."""
        future: Future = Future()
        try:
            future.set_result(perform(self._plan, job))
        except Exception as error:  # as any other executor would hand it over
            future.set_exception(error)
        return future
