"""Bring trials through the sampler, in step with each other; whatever the calculator does on the way ends its trial."""

from collections.abc import Callable, Sequence

import numpy as np

from ase_gss.forces import CalculatorFailure, CountedCalculator
from ase_gss.systems import System
from ase_gss.trial import Ended, Need, Trial
from ase_gss.walk import ScoreFunction, complete, propose


def sample(
    trials: Sequence[Trial],
    system: System,
    score: ScoreFunction | None,
    new_calculator: Callable[[], CountedCalculator],
) -> None:
    """Take every trial to the end of its schedule.

    Parameters
    ----------
    trials : sequence of Trial
        Those that need no score are left as they are.
    system : System
        What is searched.
    score : callable
        See `ase_gss.walk.ScoreFunction`.
    new_calculator : callable
        Makes the physical calculator.
    """
    while ready := [trial for trial in trials if trial.needs is Need.SCORE]:
        propose([trial.walk for trial in ready], score)
        physical = [_force(trial, system, new_calculator) for trial in ready]
        going = [(t.walk, *both) for t, both in zip(ready, physical, strict=True) if t.ended is None]
        if going:
            complete(*zip(*going, strict=True))
        for trial in ready:
            if trial.ended is None and (reason := system.out_of_bounds(trial.walk)):
                trial.end(Ended.CELL, reason)


def _force(
    trial: Trial, system: System, new_calculator: Callable[[], CountedCalculator]
) -> tuple[np.ndarray | None, np.ndarray | None]:
    """Force and stress where the trial needs them; a failure ends the trial."""
    if trial.walk.point is None:
        return None, None
    if system.out_of_bounds(trial.walk):  # there a force means nothing, and the score alone leads back
        return None, None
    trial.force_calls += 1
    try:
        _, forces, stress = system.force(trial.atoms, trial.walk, new_calculator())
    except CalculatorFailure as failure:
        trial.end(Ended.CALCULATOR, str(failure))
        return None, None
    return forces, stress
