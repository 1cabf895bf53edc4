"""A lesson: the score learns from the minima found so far, in parts that are jobs like others."""

from collections.abc import Sequence
from dataclasses import dataclass

from ase import Atoms

from ase_gss.walk import ScoreFunction

#: So often a part of a lesson is begun again where its worker has died.
ATTEMPTS = 3


@dataclass(frozen=True)
class Part:
    """A part of a lesson, as plain data: it pickles.

    Attributes
    ----------
    lesson : int
        The lesson is from the trials below this number.
    number : int
        Which part.
    steps : int
        Of its training.
    minima : tuple of Atoms
        What is to be learned.
    """

    lesson: int
    number: int
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

    Attributes
    ----------
    score : callable or None
        The score that has learned, once all parts are done.
    """

    def __init__(self, number: int, minima: Sequence[Atoms]) -> None:
        from ase_gss.score import adapt  # torch is needed only here

        self.number, self.score = number, None
        self._to_do = [Part(number, part, adapt.STEPS, tuple(minima)) for part in range(adapt.PARTS)]
        self._learned: list[ScoreFunction | None] = [None] * adapt.PARTS
        self._lost = 0

    def next_part(self) -> Part | None:
        """The next part that nobody has begun, which is begun herewith; None where there is none."""
        return self._to_do.pop(0) if self._to_do else None

    def take_back(self, part: Part, score: ScoreFunction) -> None:
        """A part is done, with this result."""
        from ase_gss.score.adapt import averaged

        self._learned[part.number] = score
        if all(each is not None for each in self._learned):
            self.score = averaged(self._learned)

    def lose(self, part: Part) -> bool:
        """A part is lost; whether it is worth another attempt."""
        self._to_do.insert(0, part)
        self._lost += 1
        return self._lost < ATTEMPTS
