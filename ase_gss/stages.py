"""The stages of a trial: through the sampler, in step with others, and to a minimum.

Whatever the calculator does on the way ends its trial and nothing else.
"""

from collections.abc import Mapping, Sequence
from functools import partial

import numpy as np

from ase_gss.batch import together
from ase_gss.forces import CalculatorFailure, CountedCalculator
from ase_gss.frames import Frames
from ase_gss.giving_up import GivingUp
from ase_gss.lesson import Learned
from ase_gss.memory import KnownEnds
from ase_gss.plan import Plan
from ase_gss.prerelax import prerelax
from ase_gss.relax import known_warnings_ignored
from ase_gss.trial import Ended, Need, Trial
from ase_gss.walk import ScoreFunction, complete, propose

#: Force (N, 3) in eV/Å and stress (3, 3) in eV/Å3, where there are any.
Physical = tuple[np.ndarray | None, np.ndarray | None]


def sample(trials: Sequence[Trial], plan: Plan, learned: Learned | None = None) -> None:
    """Take every trial to the end of its schedule; those that need no score are left as they are.

    Parameters
    ----------
    trials, plan : sequence of Trial, Plan
        What to do.
    learned : Learned, optional
        What the search has learned: scores for those whose regime takes one that has, in turn by their numbers, and
        forces for those that settle; before a lesson these are the ones of the plan.
    """
    scores, forces = ((), plan.forces) if learned is None else (learned.scores, learned.forces or plan.forces)
    _sample({place: trial for place, trial in enumerate(trials) if not trial.learned}, plan, plan.score)
    apprentices = {place: trial for place, trial in enumerate(trials) if trial.learned}
    for copy, score in enumerate(scores):
        its = {place: trial for place, trial in apprentices.items() if trial.number % len(scores) == copy}
        _sample(its, plan, score)
    prerelax(trials, plan, forces)


def _sample(trials: Mapping[int, Trial], plan: Plan, score: ScoreFunction | None) -> None:
    """Sample the trials, which are given by their places in the job, with this score."""
    while places := {place: trial for place, trial in trials.items() if trial.needs is Need.SCORE}:
        ready = list(places.values())
        propose([trial.walk for trial in ready], score)
        physical = _forces(places, plan)
        going = [(t.walk, *both) for t, both in zip(ready, physical, strict=True) if t.ended is None]
        if going:
            complete(*zip(*going, strict=True))
        for trial in ready:
            if trial.ended is None and (reason := plan.system.out_of_bounds(trial.walk)):
                trial.end(Ended.CELL, reason)


def relax(trials: Sequence[Trial], plan: Plan, known: KnownEnds | None = None) -> None:
    """Hand the structures to the optimizer, in batches where the plan has them, and judge their ends.

    One that heads for one of the `known` ends is given up.
    """
    if plan.batch == 1 or len(trials) == 1:
        for trial in trials:
            _relax(trial, plan, known, plan.new_calculator())
        return
    with known_warnings_ignored():  # threads that take turns cannot leave the filters as they found them
        tasks = {place: partial(_relax, trial, plan, known) for place, trial in enumerate(trials)}
        together(tasks, plan.new_calculator(), plan.batch)


def _forces(places: Mapping[int, Trial], plan: Plan) -> list[Physical]:
    """What `_force` gives for each trial, by its place in the job; in batches where the plan has them."""
    needing = [place for place, trial in places.items() if trial.walk.point is not None]
    if plan.batch == 1 or len(needing) <= 1:
        return [_force(trial, plan) for trial in places.values()]
    physical: dict[int, Physical] = {}

    def keep(place: int, calculator: CountedCalculator) -> None:
        physical[place] = _force(places[place], plan, calculator)

    together({place: partial(keep, place) for place in needing}, plan.new_calculator(), plan.batch)
    return [physical.get(place, (None, None)) for place in places]


def _force(trial: Trial, plan: Plan, calculator: CountedCalculator | None = None) -> Physical:
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
        calculator = plan.new_calculator() if calculator is None else calculator
        _, forces, stress = plan.system.force(trial.atoms, trial.walk, calculator)
    except CalculatorFailure as failure:
        trial.end(Ended.CALCULATOR, str(failure))
        return None, None
    return forces, stress


def _relax(trial: Trial, plan: Plan, known: KnownEnds | None, calculator: CountedCalculator) -> None:
    """Hand one structure to the optimizer and judge its end."""
    atoms = trial.sampled()
    atoms.calc = calculator
    if plan.learns:
        calculator.visited = []
    giving_up = GivingUp(trial.formed, known, trial.ceiling, trial.spared) if trial.gives_up else None
    outcome = plan.system.relax(
        atoms,
        giving_up=giving_up,
        optimizer=plan.optimizer,
        fmax=plan.fmax,
        max_steps=plan.max_steps,
    )
    trial.force_calls += calculator.calls
    trial.frames = Frames.of(calculator.visited or ())
    ended, reason = Ended.MINIMUM, ""
    if outcome.failed:
        ended, reason = Ended.CALCULATOR, outcome.reason
    elif outcome.optimizer_failed:
        ended, reason = Ended.OPTIMIZER, outcome.reason
    elif giving_up is not None and giving_up.recognised is not None:
        ended, reason, trial.known = Ended.HEADING, outcome.reason, giving_up.recognised
    elif giving_up is not None and giving_up.too_high:
        ended, reason = Ended.HIGH, outcome.reason
    elif rejected := plan.system.rejects(atoms, outcome.converged):
        ended, reason = rejected[0], outcome.reason or rejected[1]
    elif not outcome.converged:
        ended, reason = Ended.NOT_CONVERGED, outcome.reason
    converged = outcome.converged and ended is not Ended.COLLAPSED
    trial.end(ended, reason, converged, atoms, outcome.energy, outcome.forces, outcome.stress)
