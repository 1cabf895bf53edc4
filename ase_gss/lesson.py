"""A lesson: what a search learns from the trials so far, each part of it in a job of its own.

Copies of the score learn from the minima, and another copy of its network learns the forces.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from ase import Atoms

from ase_gss.frames import Frames
from ase_gss.trial import Trial
from ase_gss.walk import ScoreFunction

if TYPE_CHECKING:
    from ase_gss.archive import Archive
    from ase_gss.ledger import Ledger

#: Forces (S, N, 3) in eV/Å of structures of atoms with numbers (N,) at positions (S, N, 3) in Å.
ForceFunction = Callable[[np.ndarray, np.ndarray], np.ndarray]

#: Forces are learned from at most so many of the last force calls.
MOST_FRAMES = 20_000
#: Forces that know the elements learn nothing from fewer (C4H6O, C2H5NO).
ENOUGH_FRAMES = 800
#: So many deaths of workers a lesson survives: its parts are begun again.
DEATHS = 4


@dataclass(frozen=True)
class Part:
    """What one copy of the network is to learn, as plain data: it pickles.

    Attributes
    ----------
    lesson : int
        The lesson is from the trials below this number.
    copy : int
        Which copy: those of the score count from 0; the forces come last.
    steps : int
        Of its training.
    matter : tuple of Atoms or Frames
        What is to be learned: minima by a score, or forces.
    """

    lesson: int
    copy: int
    steps: int
    matter: tuple[Atoms, ...] | Frames


@dataclass(frozen=True)
class Learned:
    """What has been learned.

    Attributes
    ----------
    scores : tuple of callable
        The scores, which trials take in turn.
    forces : callable, optional
        See `ForceFunction`: what samples are relaxed with before they cost a force call.
    """

    scores: tuple[ScoreFunction, ...]
    forces: ForceFunction | None = None


class Lesson:
    """What has become of a lesson so far.

    Parameters
    ----------
    number : int
        It is from the trials below this number.
    minima : sequence of Atoms
        What the score is to learn.
    frames : Frames, optional
        What forces are to be learned from; without any, none are.

    Attributes
    ----------
    teaches_forces : bool
        There are frames.
    """

    def __init__(self, number: int, minima: Sequence[Atoms], frames: Frames | None) -> None:
        from ase_gss.score import adapt, learned_forces  # torch is needed only here

        self.number = number
        self._copies = adapt.COPIES
        self._to_do = [Part(number, copy, adapt.STEPS, tuple(minima)) for copy in range(adapt.COPIES)]
        if frames is not None:
            self._to_do.append(Part(number, adapt.COPIES, learned_forces.steps_for(len(frames)), frames))
        self.teaches_forces = frames is not None
        self._missing = len(self._to_do)
        self._learned: dict[int, ScoreFunction | ForceFunction] = {}
        self._lost = 0

    @property
    def learned(self) -> Learned | None:
        """What has been learned; None as long as a part is missing."""
        if len(self._learned) < self._missing:
            return None
        return Learned(tuple(self._learned[copy] for copy in range(self._copies)), self._learned.get(self._copies))

    def next_part(self) -> Part | None:
        """The next part that nobody has begun, which is begun herewith; None where there is none."""
        return self._to_do.pop(0) if self._to_do else None

    def take_back(self, part: Part, learned: ScoreFunction | ForceFunction) -> None:
        """A copy has learned."""
        self._learned[part.copy] = learned

    def lose(self, part: Part) -> bool:
        """A part is lost; whether it is worth another attempt."""
        self._to_do.insert(0, part)
        self._lost += 1
        return self._lost <= DEATHS


class Lessons:
    """The lessons of a search, one after the other.

    Parameters
    ----------
    learns, settles_at_once : bool
        As of `Plan`.
    archive, ledger : Archive, Ledger
        Of the search.
    """

    def __init__(self, learns: bool, settles_at_once: bool, archive: "Archive", ledger: "Ledger") -> None:
        self._learns, self._settles_at_once = learns, settles_at_once
        self._archive, self._ledger = archive, ledger
        self._last: Lesson | None = None

    def for_trials(self, trials: Sequence[Trial]) -> Lesson | None:
        """The last lesson as of now, where some of these trials take what it teaches."""
        if not (self._learns and self._ledger.lesson and any(trial.learned or trial.settles for trial in trials)):
            return None
        number = self._ledger.lesson
        if self._last is None or self._last.number != number:
            minima = [self._archive.atoms_of(each) for each in self._ledger.lesson_minima]
            frames = Frames.joined(self._archive.frames(number, MOST_FRAMES))
            if frames is not None and self._settles_at_once and len(frames) < ENOUGH_FRAMES:
                frames = None
            self._last = Lesson(number, minima, frames)
        return self._last if self._last.teaches_forces or any(trial.learned for trial in trials) else None
