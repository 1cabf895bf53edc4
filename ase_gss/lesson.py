"""A lesson: copies of the score learn from the minima found so far, each in a job of its own."""

from collections.abc import Sequence
from dataclasses import dataclass

from ase import Atoms

from ase_gss.walk import ScoreFunction

#: So many deaths of workers a lesson survives: its parts are begun again.
DEATHS = 4


@dataclass(frozen=True)
class Part:
    """What one copy of the score is to learn, as plain data: it pickles.

    Attributes
    ----------
    lesson : int
        The lesson is from the trials below this number.
    copy : int
        Which copy.
    steps : int
        Of its training.
    minima : tuple of Atoms
        What is to be learned.
    """

    lesson: int
    copy: int
    steps: int
    minima: tuple[Atoms, ...]


class Lesson:
    """What has become of a lesson so far.

    Parameters
    ----------
    number : int
        It is from the trials below this number.
    minima : sequence of Atoms
        What is to be learned.
    """

    def __init__(self, number: int, minima: Sequence[Atoms]) -> None:
        from ase_gss.score import adapt  # torch is needed only here

        self.number = number
        self._to_do = [Part(number, copy, adapt.STEPS, tuple(minima)) for copy in range(adapt.COPIES)]
        self._learned: list[ScoreFunction | None] = [None] * adapt.COPIES
        self._lost = 0

    @property
    def scores(self) -> tuple[ScoreFunction, ...]:
        """The copies that have learned; none as long as one is missing."""
        return () if any(score is None for score in self._learned) else tuple(self._learned)

    def next_part(self) -> Part | None:
        """The next part that nobody has begun, which is begun herewith; None where there is none."""
        return self._to_do.pop(0) if self._to_do else None

    def take_back(self, part: Part, score: ScoreFunction) -> None:
        """A copy has learned."""
        self._learned[part.copy] = score

    def lose(self, part: Part) -> bool:
        """A part is lost; whether it is worth another attempt."""
        self._to_do.insert(0, part)
        self._lost += 1
        return self._lost <= DEATHS
