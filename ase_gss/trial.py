"""One trial: from a start to a relaxed, judged end. A value that pickles; what it needs next is for others to bring."""

from dataclasses import dataclass
from enum import StrEnum
from math import inf

import numpy as np
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator

from ase_gss.frames import Frames
from ase_gss.walk import Walk


class Ended(StrEnum):
    """How a trial ended."""

    MINIMUM = "minimum"
    NOT_CONVERGED = "not converged"
    KNOWN = "known"
    HEADING = "heading for known"
    FAMILIAR = "familiar"
    HIGH = "too high"
    FRAGMENTS = "fragments"
    SADDLE = "saddle point"
    CELL = "cell out of bounds"
    COLLAPSED = "collapsed"
    CALCULATOR = "calculator failed"
    OPTIMIZER = "optimizer failed"
    BUDGET = "out of budget"

    @property
    def is_failure(self) -> bool:
        """Of the tools: it says nothing of the structure."""
        return self in (Ended.CALCULATOR, Ended.OPTIMIZER)


class Need(StrEnum):
    """What a trial waits for."""

    SCORE = "score"
    FORCE = "force"
    SETTLING = "settling"
    RELAXATION = "relaxation"
    NOTHING = "nothing"


@dataclass
class Trial:
    """One trial.

    Attributes
    ----------
    number : int
        Trial number, unique in a search.
    atoms : Atoms
        Before the end the start; after it the end, with energy and forces where they are known.
    walk : Walk
        The sampling part.
    force_calls : int
        Spent so far.
    ended : Ended or None
        None while under way.
    converged : bool
        The largest force at the end is below fmax.
    known : int or None
        Trial to whose end its structure, or one on its way to a minimum, is supposed to come, for what it looks like. A
        trial that ended in a minimum was relaxed all the same; of the others only those have it that ended for it.
    spared : frozenset of int
        Trials whose ends its relaxation is not given up for.
    reason : str
        Why it ended so, in words; empty for a minimum.
    regime : str
        How it was made; see `Regime`.
    gives_up : bool
        A molecule that falls apart in the hand-off, or heads for a known end, is given up.
    learned : bool
        It is sampled with the score that the search has adapted.
    second_look : bool
        It is relaxed although what it has sampled looks known.
    parent : int or None
        Trial whose end it begins with, with noise or a part of it turned. To come back there is to meet nothing.
    turned : bool
        A part of that is turned.
    settles : bool
        What it has sampled is still to be relaxed with learned forces.
    ceiling : float
        Energy (eV) above which its relaxation is given up.
    bonds : str
        Bonding graph of the sampled structure, where it was looked at.
    start : ndarray, shape (N, 3), optional
        Å: where the relaxation of a sampled molecule that looked like nothing known has begun, in single precision; of
        trials that came to a minimum, or headed for one.
    frames : Frames, optional
        What its relaxation went through, where the search learns from it.
    """

    number: int
    atoms: Atoms
    walk: Walk
    force_calls: int = 0
    ended: Ended | None = None
    converged: bool = False
    known: int | None = None
    spared: frozenset[int] = frozenset()
    reason: str = ""
    regime: str = ""
    gives_up: bool = True
    learned: bool = False
    second_look: bool = False
    parent: int | None = None
    turned: bool = False
    settles: bool = False
    ceiling: float = inf
    bonds: str = ""
    start: np.ndarray | None = None
    frames: Frames | None = None

    @property
    def score_calls(self) -> int:
        """Score calls spent so far."""
        return self.walk.score_calls

    @property
    def formed(self) -> bool:
        """Its structure is no longer that of atoms at random: sampled, settled, or made from a known one."""
        return self.turned or self.score_calls > 0

    @property
    def needs(self) -> Need:
        """What the trial waits for."""
        if self.ended is not None:
            return Need.NOTHING
        if self.walk.finished:
            return Need.SETTLING if self.settles else Need.RELAXATION
        return Need.FORCE if self.walk.point is not None else Need.SCORE

    def sampled(self) -> Atoms:
        """The structure as the sampler has left it, without a calculator."""
        atoms = self.atoms.copy()
        if self.walk.cell is not None:
            atoms.set_cell(self.walk.cell)
        atoms.set_positions(self.walk.positions, apply_constraint=False)
        return atoms

    def end(
        self,
        ended: Ended,
        reason: str = "",
        converged: bool = False,
        atoms: Atoms | None = None,
        energy: float | None = None,
        forces: np.ndarray | None = None,
        stress: np.ndarray | None = None,
    ) -> None:
        """Record the end, with what is known and finite of it.

        That is the structure, its energy (eV), its forces (N, 3) in eV/Å and its stress (6,) in eV/Å3.
        """
        end = self.sampled() if atoms is None else atoms.copy()
        if energy is not None and np.isfinite(energy):
            end.calc = SinglePointCalculator(end, energy=float(energy), forces=forces, stress=stress)
        if ended not in (Ended.KNOWN, Ended.HEADING, Ended.MINIMUM):
            self.known = None
        if ended not in (Ended.HEADING, Ended.MINIMUM):
            self.start = None
        self.atoms, self.reason, self.converged = end, reason, converged
        self.ended = ended  # last: an interrupt before it leaves a trial that has not ended, never one half ended
