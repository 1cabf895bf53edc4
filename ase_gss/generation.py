"""A generation: trials that know the same, on their way."""

from dataclasses import dataclass, field

from ase_gss.ledger import GENERATION, Familiarity
from ase_gss.lesson import Lesson
from ase_gss.trial import Trial
from ase_gss.worth import SecondLooks

#: Generation m knows what the generations up to m - LAG have found and nothing else: then a trial depends neither on
#: the number of workers nor on where a search was stopped, and so many generations may be under way at once.
LAG = 3


def known_before(index: int) -> int:
    """Generation `index` knows the trials below this number."""
    return (index - LAG + 1) * GENERATION


@dataclass
class Generation:
    """Trials that know the same: those of one generation that this run has to do.

    Attributes
    ----------
    index : int
        Which generation.
    trials : dict
        The unfinished ones by their number.
    unsampled : list of int
        Numbers of those that have yet to go through the sampler.
    ready : list of int
        Numbers of those that wait for the hand-off.
    familiarity : Familiarity
        What this generation knows of bonding graphs.
    second_looks : SecondLooks
        What it relaxes although it looks known.
    lesson : Lesson, optional
        Without which some of its trials cannot be sampled.
    alone : set of int
        Numbers of those whose next job is to have no other trial, because one of them has cost a worker.
    """

    index: int
    trials: dict[int, Trial]
    unsampled: list[int]
    ready: list[int]
    familiarity: Familiarity
    second_looks: SecondLooks
    lesson: Lesson | None = None
    alone: set[int] = field(default_factory=set)

    @property
    def may_be_sampled(self) -> bool:
        """There are trials to sample, and what they need has been learned."""
        return bool(self.unsampled) and (self.lesson is None or self.lesson.learned is not None)

    @property
    def known_before(self) -> int:
        """It knows the trials below this number."""
        return known_before(self.index)
