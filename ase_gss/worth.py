"""What is worth its force calls although it looks like what is known.

A search that leaves all that looks known is cheap as long as there is enough else. Once that becomes rare, what was
left is the better bargain: of lookalikes, some end elsewhere after all, or in a conformer that the search's own
comparison does not tell from the first. So each is taken as soon as it promises as many new minima for a force call as
the search has brought of late, on the whole: the marginal value theorem of foraging [1]_. Relaxations that begin
otherwise and head for what is known are finished by the same rule, as if the whole of them were still to come.

References
----------
.. [1] E. L. Charnov, Theoretical Population Biology 9, 129 (1976).
"""

from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np

#: What sampling a structure costs, in force calls, where it is weighed against a second look. The higher, the sooner a
#: search spends force calls on what looks known instead of sampling on: with 0.3 one on C2H6OS had 130 minima within
#: 5 eV after 10 000 calls, one without second looks 145.
SAMPLING_ON = 0.1
#: Of the ends that the comparison of a search takes for one minimum, the next one is a new minimum to the tighter
#: counting rule with a chance of about this over itself plus their number (random search, C3H6O: 5 of 57 second ends, 3
#: of 43 third ones, 3 of 132 fourth to eighth ones and none of 151 later ones; 0.10 fits best). A search does not see
#: which they are: that takes a relaxation to 0.005 eV/Å, as by `refine` with every end.
VARIETY = 0.1
#: Samples whose bonds are of less interest than this are dull; and what is supposed of each relaxation of one, in new
#: minima, until there is experience: less than was met (6 of 45, C3H6O after 1 860 calls), so as not to begin early.
DULL, DULL_CHANCE = 0.25, 0.05


def chance_of_another(came: int) -> float:
    """Chance that the next relaxation to come to a minimum, after so many, is one to tell from them; 1 after none."""
    return VARIETY / (VARIETY + came)


@dataclass
class Met:
    """A minimum.

    Attributes
    ----------
    first : int
        Trial that met it first.
    energy : float
        Of that trial's end, as minima are ranked.
    came, hits, turned, returned : int
        Relaxations that have come to it, trials that have met it in any way, those that began with it turned, and those
        that began with it and noise and came back.
    turnable : bool
        It has a part to turn.
    """

    first: int
    energy: float
    came: int = 0
    hits: int = 0
    turned: int = 0
    returned: int = 0
    turnable: bool = False

    @property
    def visits(self) -> int:
        """Trials that have met it, or begun with it turned, or come back to it."""
        return self.hits + self.turned + self.returned


class GoingRate:
    """New minima for what they cost, over the later half of what has been spent.

    Parameters
    ----------
    supposed : float
        Force calls for the first new minimum, before there is any experience.
    """

    def __init__(self, supposed: float = 0.0) -> None:
        self._supposed = supposed
        # Sums of cost and found, from where the later half begins to the last trial.
        self._sums: deque[tuple[float, float]] = deque([(0.0, 0.0)])

    def enter(self, cost: float, found: float) -> None:
        """What a trial has cost and found."""
        cost_before, found_before = self._sums[-1]
        self._sums.append((cost_before + cost, found_before + found))
        while self._sums[0][0] < self._sums[-1][0] / 2:
            self._sums.popleft()

    @property
    def value(self) -> float:
        """New minima per force call; infinite before there is a later half."""
        (cost_first, found_first), (cost_last, found_last) = self._sums[0], self._sums[-1]
        cost = cost_last - cost_first + self._supposed
        found = found_last - found_first + 1
        return found / cost if cost else np.inf


@dataclass(frozen=True)
class SecondLooks:
    """What a generation relaxes although it looks known.

    Attributes
    ----------
    repeats : dict
        Of each minimum that is worth further relaxations, by the trial that met it first: the share of the samples that
        look like it which are relaxed, and of the relaxations that head for it which are finished.
    dull : bool
        Samples are relaxed whatever their bonds.
    """

    repeats: Mapping[int, float] = field(default_factory=dict)
    dull: bool = False


def second_looks(
    rate: float, cost: float, dull: float, minima: Iterable[Met], trials: int, waiting: int
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
    minima : iterable of Met
        Those within the window.
    trials : int
        So far.
    waiting : int
        Trials that are decided on before what comes of them is known.
    """
    most = VARIETY * (1 / (rate * cost) - 1)  # where the chance of another, for what a relaxation costs, is the rate
    shares = {
        met.first: min(1.0, (most - met.came) / (waiting * met.visits / trials)) for met in minima if met.came < most
    }
    return SecondLooks(shares, dull >= rate)
