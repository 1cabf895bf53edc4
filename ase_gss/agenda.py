"""What is to be done next: lessons, hand-offs in their order, and sampling before they run out."""

import logging
from collections.abc import Callable, Iterator, Sequence

from ase_gss.budget import Expectation
from ase_gss.generation import LAG, Generation
from ase_gss.jobs import Job
from ase_gss.ledger import GENERATION
from ase_gss.lesson import Learned, Lesson
from ase_gss.memory import KnownEnds
from ase_gss.plan import Plan
from ase_gss.trial import Trial

_LOG = logging.getLogger(__name__)
#: Where the budget is good for fewer trials that cost force calls, no more is sampled in advance: what costs none would
#: be finished, what does would not, and the estimates of what is unseen would lean to the former.
_PLENTY = LAG * GENERATION


class Agenda:
    """The generations under way, and which of their jobs is next.

    Parameters
    ----------
    plan : Plan
        Of the search.
    slots : int
        Jobs that are done at once.
    expected : Expectation
        What trials cost.
    known_ends : callable
        What relaxations of a generation may be recognised to head for.

    Attributes
    ----------
    generations : list of Generation
        In their order.
    """

    def __init__(
        self, plan: Plan, slots: int, expected: Expectation, known_ends: Callable[[Generation], KnownEnds | None]
    ) -> None:
        self.generations: list[Generation] = []
        self._plan, self._slots, self._expected, self._known_ends = plan, slots, expected, known_ends
        self._told = 0

    def add(self, generation: Generation) -> None:
        """Take up a generation that is begun."""
        self.generations.append(generation)
        self.generations.sort(key=lambda each: each.index)

    def remove(self, generation: Generation) -> None:
        """Let go of one that is complete."""
        self.generations.remove(generation)

    def clear(self) -> None:
        """Let go of all."""
        self.generations.clear()

    @property
    def trials(self) -> Iterator[Trial]:
        """The trials that are begun and not finished."""
        for generation in self.generations:
            yield from generation.trials.values()

    def generation_of(self, number: int) -> Generation:
        """The one with this trial."""
        return next(each for each in self.generations if number in each.trials)

    def lesson(self, number: int) -> Lesson:
        """The one from the trials below this number."""
        return next(each.lesson for each in self.generations if each.lesson and each.lesson.number == number)

    def next_job(self, left: float | None) -> Job | None:
        """What is to be done next, which then waits no more; None where all is under way.

        Parameters
        ----------
        left : float or None
            Force calls that what is under way is expected to leave; None without an end.
        """
        for generation in self.generations:  # their trials wait for it
            if generation.lesson is not None and (part := generation.lesson.next_part()) is not None:
                if generation.lesson.number != self._told:  # once for all its parts
                    self._told = generation.lesson.number
                    _LOG.info("learning from the first %d trials", self._told)
                return Job("learn", (), part=part)
        n_ready = sum(len(generation.ready) for generation in self.generations)
        if n_ready < self._slots and (waiting := [each for each in self.generations if each.may_be_sampled]):
            spoken_for = self._expected.of_trial * n_ready
            return self._sampling_job(waiting, left if left is None else left - spoken_for)
        for generation in self.generations:
            if generation.ready:
                return self._relaxation_job(generation, left)
        return None

    def last_job(self) -> Job | None:
        """Once nothing more is begun: the hand-off of what has been sampled for force calls, which else were lost."""
        for generation in self.generations:
            for number in generation.ready:
                if (trial := generation.trials[number]).force_calls:
                    generation.ready.remove(number)
                    return Job("relax", (trial,), self._known_ends(generation))
        return None

    def _relaxation_job(self, generation: Generation, left: float | None) -> Job:
        """The next hand-off; with batches all that wait, as far as the budget (force calls) is good for them."""
        size = len(generation.ready) if left is None else self._expected.affordable(left)
        if self._plan.batch == 1 or generation.ready[0] in generation.alone:
            size = 1
        # Those that are to be alone come first or later, each in its turn, but not with others.
        together = [number for number in generation.ready if size == 1 or number not in generation.alone][:size]
        for number in together:
            generation.ready.remove(number)
        return Job("relax", tuple(generation.trials[number] for number in together), self._known_ends(generation))

    def _sampling_job(self, waiting: Sequence[Generation], left: float | None) -> Job:
        """All that is not sampled of the first of these, as far as the budget (force calls) is good for it.

        With nobody else to work, and where sampling costs no force calls, the others come along as long as they know
        the same lesson: what goes through the network together is cheaper, and is the same as alone.
        """
        first = waiting[0]
        if alone := [number for number in first.unsampled if number in first.alone]:
            trials = [first.trials[alone[0]]]
        else:
            trials = [first.trials[number] for number in first.unsampled]
            sampling = max(trial.walk.sampling_force_calls for trial in trials)
            if sampling and left is not None:
                trials = trials[: self._expected.affordable(left, sampling)]
            if self._slots == 1 and not sampling and (left is None or self._expected.affordable(left) > _PLENTY):
                others = [each for each in waiting[1:] if each.lesson is first.lesson and not each.alone]
                trials += [each.trials[number] for each in others for number in each.unsampled]
        for trial in trials:
            self.generation_of(trial.number).unsampled.remove(trial.number)
        learned = None if first.lesson is None else first.lesson.learned
        if learned is not None and not any(trial.learned for trial in trials):
            # Networks travel only with those that take them.
            learned = Learned((), learned.forces) if any(trial.settles for trial in trials) else None
        return Job("sample", tuple(trials), learned=learned)
