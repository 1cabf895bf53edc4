"""What each way to make a trial has cost and found, as of a generation.

The measure is Good's [1]_: leave one trial out, and its minimum would be new to the rest if and only if it is the only
hit. So of n trials made in one way the f1 that are the only hit of their minimum estimate the chance f1/n that the next
one meets a new minimum. It needs no forgetting: what a way of making trials exhausts loses its only hits.

References
----------
.. [1] I. J. Good, Biometrika 40, 237 (1953).
"""

from bisect import bisect_left, insort
from collections import defaultdict
from dataclasses import dataclass
from math import inf

from ase_gss.worth import DULL, DULL_CHANCE, SAMPLING_ON, GoingRate, Met, SecondLooks, chance_of_another, second_looks

#: Generation m is the trials from m times this number on; they go through the sampler together.
GENERATION = 16
#: The first lesson of a search that learns is after so many force calls, and each of the next after so many times more.
FIRST_LESSON, MORE = 150, 2.0
#: Force calls that a relaxation is supposed to take until there is experience.
_COST = 10.0
#: eV; structures settled with learned forces come down by less. Of 210 (C3H6O, C4H6O, C2H4O3, C2H5NO; GFN2-xTB) six
#: were higher above the window: four of them ended above it, and two, which had atoms on one another, within.
MARGIN = 1.0


@dataclass(frozen=True)
class Entry:
    """A finished trial.

    Attributes
    ----------
    number : int
        Its number.
    regime : str
        How it was made.
    force_calls : int
        Spent.
    minimum : int or None
        Index of the minimum that it met, whether it was relaxed or recognised.
    energy : float
        That of its end as minima are ranked.
    bonds : str
        Bonding graph of the sampled structure, where it was looked at and then relaxed.
    came : bool
        It was relaxed to its minimum.
    returned : bool
        It came back to the minimum that it was made from, which is no hit: it says nothing of what is still unseen.
    second_look : bool
        It was relaxed although it looked known.
    turned : int or None
        Index of the minimum that it was made from by turning a part of it.
    turnable : bool
        The minimum has a part to turn.
    """

    number: int
    regime: str
    force_calls: int
    minimum: int | None = None
    energy: float = inf
    bonds: str = ""
    came: bool = True
    returned: bool = False
    second_look: bool = False
    turned: int | None = None
    turnable: bool = False


@dataclass(frozen=True)
class Familiarity:
    """How well bonding graphs are known.

    Attributes
    ----------
    relaxed : dict
        Of each graph, samples that were relaxed.
    only : dict
        Of each graph, those of them that are the only hit of a minimum.
    chance : float
        Of a new minimum in a sample whose graph was never relaxed before.
    """

    relaxed: dict[str, int]
    only: dict[str, int]
    chance: float

    def interest(self, bonds: str) -> float:
        """How promising a sample with this bonding graph is, next to one with a graph that was never relaxed.

        With f1 only hits among the n relaxed samples of this graph, and the chance p of a new minimum in one whose
        graph was not known: ((f1 + p) / (n + 1)) / p. So a graph that always ends in the same minimum is relaxed some
        sqrt(2 N) times in N samples, and one with many conformers as long as it brings new ones.
        """
        return _interest(self.only.get(bonds, 0), self.relaxed.get(bonds, 0), self.chance)


def _interest(only: int, relaxed: int, chance: float) -> float:
    return (only / chance + 1) / (relaxed + 1)


class Ledger:
    """What the trials have cost and found, regime by regime and bonding graph by bonding graph.

    Parameters
    ----------
    window : float
        Only minima at most so far above the lowest one count, in the unit of their ranking energy.

    Attributes
    ----------
    trials, force_calls : dict
        Of each regime, its trials, and its force calls but for those of second looks.
    idle_generations : int
        So many generations have ended, one after the other, without anything that was worth a force call, or with
        second looks only.
    lesson : int
        A search that learns has learned from the trials below this number; 0 before its first lesson.
    lesson_minima : list of int
        Trials that first met the minima that it has learned from: those within the window.
    """

    def __init__(self, window: float = inf) -> None:
        self.window = window
        self.trials: dict[str, int] = defaultdict(int)
        self.force_calls: dict[str, int] = defaultdict(int)
        self._met: dict[int, Met] = {}
        # The minima by energy, with the trial that met each first; and those with one hit.
        self._minima: list[tuple[float, int]] = []
        self._only: dict[int, Entry] = {}
        self._only_of_bonds: dict[str, set[int]] = defaultdict(set)
        self._relaxed: dict[str, int] = defaultdict(int)
        # Samples whose bonds had never been relaxed before: how many, and how many of them met a new minimum.
        self._unknown = self._unknown_new = 0
        self._later: list[Entry] = []
        self._rate = GoingRate()
        self._dull = GoingRate(_COST / DULL_CHANCE)
        # Relaxations that came to a minimum, and what they have cost.
        self._ends, self._cost_of_ends = 1, _COST
        self.idle_generations, self._generation, self._spent, self._spent_in_generation = 0, 0, 0, 0
        # It depends on the trials alone, not on when it is asked for: so a search that was interrupted learns the same.
        self.lesson, self._next_lesson = 0, FIRST_LESSON
        self.lesson_minima: list[int] = []

    def enter(self, entry: Entry) -> None:
        """Note a finished trial; it is known once `advance` has come to its number."""
        insort(self._later, entry, key=lambda each: each.number)

    def advance(self, before: int) -> None:
        """Know the trials with a number below `before`."""
        known = bisect_left(self._later, before, key=lambda each: each.number)
        for entry in self._later[:known]:
            self._know(entry)
        del self._later[:known]

    def _know(self, entry: Entry) -> None:
        if entry.number // GENERATION > self._generation:
            self.idle_generations = 0 if self._spent_in_generation else self.idle_generations + 1
            self._generation, self._spent_in_generation = entry.number // GENERATION, 0
        self._spent += entry.force_calls
        self.trials[entry.regime] += 1
        if not entry.second_look:  # a second look is no regime's doing, and no sign that there is something new
            self._spent_in_generation += entry.force_calls
            self.force_calls[entry.regime] += entry.force_calls
        new = entry.minimum is not None and entry.minimum not in self._met
        if new:
            self._met[entry.minimum] = Met(entry.number, entry.energy, turnable=entry.turnable)
        self._appraise(entry)
        if entry.turned is not None:
            self._met[entry.turned].turned += 1
        elif entry.returned:
            self._met[entry.minimum].returned += 1
        if entry.bonds:
            if entry.bonds not in self._relaxed:
                self._unknown += 1
                self._unknown_new += new
            self._relaxed[entry.bonds] += 1
        if entry.minimum is not None and not entry.returned:
            self._met[entry.minimum].hits += 1
            if new:
                insort(self._minima, (entry.energy, entry.number))
                self._only[entry.minimum] = entry
                self._only_of_bonds[entry.bonds].add(entry.minimum)
            elif (only := self._only.pop(entry.minimum, None)) is not None:
                self._only_of_bonds[only.bonds].discard(entry.minimum)
        if self._spent >= self._next_lesson and self._minima:
            self.lesson, self._next_lesson = entry.number + 1, int(MORE * self._spent)
            self.lesson_minima = sorted(self.known_minima())

    def _appraise(self, entry: Entry) -> None:
        """Note what the trial was worth, before it is known otherwise."""
        found = 0.0
        if entry.minimum is not None and entry.came:
            met = self._met[entry.minimum]
            if entry.energy <= self._highest:
                found = chance_of_another(met.came)
            met.came += 1
            self._ends, self._cost_of_ends = self._ends + 1, self._cost_of_ends + entry.force_calls
        self._rate.enter(entry.force_calls + SAMPLING_ON, found)
        relaxed = self._relaxed.get(entry.bonds, 0)
        if relaxed and _interest(self._only_with(entry.bonds), relaxed, self._chance) < DULL:
            self._dull.enter(entry.force_calls, found)

    def second_looks(self, waiting: int) -> SecondLooks:
        """What is worth a relaxation although it looks known, where so many trials are decided on at once."""
        inside = [met for met in self._met.values() if met.energy <= self._highest]
        cost, trials = self._cost_of_ends / self._ends, sum(self.trials.values())
        return second_looks(self._rate.value, cost, self._dull.value, inside, trials, waiting)

    def known_minima(self) -> list[int]:
        """Trials that first met the minima within the window, lowest first."""
        return [number for energy, number in self._minima if energy <= self._highest]

    def visits_to_turnable(self) -> dict[int, int]:
        """How often trials have met, or begun with, each of the known minima that have a part to turn.

        The keys are the trials that have met them first.
        """
        return {m.first: m.visits for m in self._met.values() if m.turnable and m.energy <= self._highest}

    def only_hits(self) -> dict[str, int]:
        """Of each regime, the trials that are the only hit of a minimum within the window."""
        counts: dict[str, int] = defaultdict(int)
        for entry in self._only.values():
            counts[entry.regime] += entry.energy <= self._highest
        return counts

    def familiarity(self) -> "Familiarity":
        """What is known of the bonding graphs now; it does not change when more is known."""
        only = {bonds: self._only_with(bonds) for bonds, minima in self._only_of_bonds.items() if minima}
        return Familiarity(dict(self._relaxed), only, self._chance)

    def _only_with(self, bonds: str) -> int:
        """Of the samples with these bonds, those that are the only hit of a minimum within the window."""
        return sum(self._only[minimum].energy <= self._highest for minimum in self._only_of_bonds.get(bonds, ()))

    @property
    def _chance(self) -> float:
        """Of a new minimum in a sample whose bonds were never relaxed before."""
        return (self._unknown_new + 1) / (self._unknown + 3)

    @property
    def _highest(self) -> float:
        return self._minima[0][0] + self.window if self._minima else inf

    @property
    def ceiling(self) -> float:
        """From where what has all but come to its minimum is too high for the window, in the unit of their energy."""
        return self._highest + MARGIN
