"""The stages of a trial: through the sampler, in step with others, and to a minimum.

Whatever the calculator does on the way ends its trial and nothing else.
"""

from collections.abc import Sequence

import numpy as np

from ase_gss.forces import CalculatorFailure
from ase_gss.giving_up import GivingUp
from ase_gss.memory import KnownEnds
from ase_gss.plan import Plan
from ase_gss.trial import Ended, Need, Trial
from ase_gss.walk import ScoreFunction, complete, propose


def sample(trials: Sequence[Trial], plan: Plan, adapted: ScoreFunction | None = None) -> None:
    """Take every trial to the end of its schedule; those that need no score are left as they are.

    Parameters
    ----------
    trials, plan : sequence of Trial, Plan
        What to do.
    adapted : callable, optional
        The score for those whose regime takes one that has learned.
    """
    _sample([trial for trial in trials if not trial.learned], plan, plan.score)
    _sample([trial for trial in trials if trial.learned], plan, adapted)


def _sample(trials: Sequence[Trial], plan: Plan, score: ScoreFunction | None) -> None:
    while ready := [trial for trial in trials if trial.needs is Need.SCORE]:
        propose([trial.walk for trial in ready], score)
        physical = [_force(trial, plan) for trial in ready]
        going = [(t.walk, *both) for t, both in zip(ready, physical, strict=True) if t.ended is None]
        if going:
            complete(*zip(*going, strict=True))
        for trial in ready:
            if trial.ended is None and (reason := plan.system.out_of_bounds(trial.walk)):
                trial.end(Ended.CELL, reason)


def _force(trial: Trial, plan: Plan) -> tuple[np.ndarray | None, np.ndarray | None]:
    """Force and stress where the trial needs them; a failure ends the trial."""
    if trial.walk.point is None:
        return None, None
    if reason := plan.system.out_of_bounds(trial.walk):
        # There a force means nothing: the score alone leads back, where it has its weight.
        if trial.walk.weights[0] < 0.5:
            trial.end(Ended.CELL, reason)
        return None, None
    trial.force_calls += 1
    try:
        _, forces, stress = plan.system.force(trial.atoms, trial.walk, plan.new_calculator())
    except CalculatorFailure as failure:
        trial.end(Ended.CALCULATOR, str(failure))
        return None, None
    return forces, stress


def relax(trial: Trial, plan: Plan, known: KnownEnds | None = None) -> None:
    """Hand the structure to the optimizer and judge its end; where it heads for a known one, it is given up."""
    atoms = trial.sampled()
    atoms.calc = calculator = plan.new_calculator()
    giving_up = GivingUp(trial.score_calls > 0, known) if trial.gives_up else None
    outcome = plan.system.relax(
        atoms,
        giving_up=giving_up,
        optimizer=plan.optimizer,
        fmax=plan.fmax,
        max_steps=plan.max_steps,
    )
    trial.force_calls += calculator.calls
    ended, reason = Ended.MINIMUM, ""
    if outcome.failed:
        ended, reason = Ended.CALCULATOR, outcome.reason
    elif giving_up is not None and giving_up.recognised is not None:
        ended, reason, trial.known = Ended.HEADING, outcome.reason, giving_up.recognised
    elif rejected := plan.system.rejects(atoms):
        ended, reason = rejected[0], outcome.reason or rejected[1]
    elif not outcome.converged:
        ended, reason = Ended.NOT_CONVERGED, outcome.reason
    trial.end(ended, reason, outcome.converged, atoms, outcome.energy, outcome.forces, outcome.stress)
