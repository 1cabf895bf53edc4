"""What is worth its force calls although it looks like what is known.

A search that leaves all that looks known is cheap as long as there is enough else. Once that becomes rare, what was
left is the better bargain: of lookalikes, some end elsewhere after all, or in a conformer that the search's own
comparison does not tell from the first. So each is taken as soon as it promises as many new minima for a force call as
the search has brought of late, on the whole: the marginal value theorem of foraging [1]_.

References
----------
.. [1] E. L. Charnov, Theoretical Population Biology 9, 129 (1976).
"""

from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

#: What sampling a structure costs, in force calls: what is sampled and never relaxed must not look free.
SAMPLING = 0.3
#: The same where it is weighed against a second look. The higher, the sooner a search spends force calls on what looks
#: known instead of sampling on: with 0.3 one on C2H6OS made half the trials and had 130 instead of 147 minima after
#: 10 000 calls.
SAMPLING_ON = 0.1
#: Of the ends that the comparison of a search takes for one minimum, the next one is a new minimum to the tighter
#: counting rule with a chance of about this over itself plus their number (random search, C3H6O: 5 of 57 second ends, 3
#: of 43 third ones, 3 of 132 fourth to eighth ones and none of 151 later ones; 0.10 fits best). A search does not see
#: which they are: that takes a relaxation to 0.005 eV/Å, as by `refine` with every end.
VARIETY = 0.1
#: Samples whose bonds are of less interest than this are dull; and new minima for each relaxation of one, until there
#: is experience: after 1 860 calls on C3H6O 6 of 45, but it is early to try them once all else has become as rare as
#: that.
DULL, DULL_CHANCE = 0.25, 0.05


def chance_of_another(came: int) -> float:
    """Chance that the next relaxation to come to a minimum, after so many, is one to tell from them; 1 after none."""
    return VARIETY / (VARIETY + came)


class GoingRate:
    """New minima for what they cost, over the later half of what has been spent.

    Parameters
    ----------
    cost, found : float
        What is supposed before there is any experience.
    """

    def __init__(self, cost: float = 0.0, found: float = 1.0) -> None:
        self._before = cost, found
        self._cost, self._found = [0.0], [0.0]

    def enter(self, cost: float, found: float) -> None:
        """What a trial has cost and found."""
        self._cost.append(self._cost[-1] + cost)
        self._found.append(self._found[-1] + found)

    @property
    def value(self) -> float:
        """New minima per force call; infinite before there is a later half."""
        begin = bisect_left(self._cost, self._cost[-1] / 2)
        cost, found = (
            now[-1] - now[begin] + before for now, before in zip((self._cost, self._found), self._before, strict=True)
        )
        return found / cost if cost else np.inf


@dataclass(frozen=True)
class SecondLooks:
    """What a generation relaxes although it looks known.

    Attributes
    ----------
    repeats : dict
        Of each minimum that is worth further relaxations, by the trial that met it first: the share of the samples that
        look like it which are relaxed.
    dull : bool
        Samples are relaxed whatever their bonds.
    """

    repeats: Mapping[int, float] = field(default_factory=dict)
    dull: bool = False


def second_looks(
    rate: float, cost: float, dull: float, came: Mapping[int, int], hits: Mapping[int, int], trials: int, waiting: int
) -> SecondLooks:
    """What is worth a relaxation.

    Parameters
    ----------
    rate : float
        New minima per force call of the search.
    cost : float
        Force calls of a relaxation.
    dull : float
        New minima per force call of samples with dull bonds.
    came, hits : mapping
        Of each minimum, by the trial that met it first: how many relaxations have come to it, and how many trials have
        met it.
    trials : int
        So far.
    waiting : int
        Trials that are decided on before what comes of them is known.
    """
    most = VARIETY * (1 / (rate * cost) - 1)  # where the chance of another, for what a relaxation costs, is the rate
    shares = {
        trial: min(1.0, (most - number) / (waiting * hits[trial] / trials))
        for trial, number in came.items()
        if number < most
    }
    return SecondLooks(shares, dull >= rate)
