"""Before a sampled molecule costs a force call it is relaxed with forces that the search has learned."""

from collections.abc import Sequence
from functools import partial

from ase.calculators.calculator import Calculator

from ase_gss.batch import together
from ase_gss.forces import CountedCalculator
from ase_gss.giving_up import GivingUp
from ase_gss.memory import KnownEnds
from ase_gss.plan import Plan
from ase_gss.relax import DEFAULT_OPTIMIZER, known_warnings_ignored
from ase_gss.trial import Ended, Trial

#: eV/Å; learned forces are off by as much, and down to a half of it takes twice as many evaluations.
FMAX = 0.2
MAX_STEPS = 60
#: Structures in one evaluation of the network.
BATCH = 16


def prerelax(trials: Sequence[Trial], plan: Plan, forces: Calculator, known: KnownEnds | None = None) -> None:
    """Relax what these trials have sampled with learned forces; each evaluation counts as a score call.

    What falls apart, or comes to one of the `known` ends, is over.

    Parameters
    ----------
    trials : sequence of Trial
        Those of them that are to be relaxed next.
    plan : Plan
        Of the search.
    forces : Calculator
        Takes batches.
    known : KnownEnds, optional
        Ends of earlier trials.
    """
    tasks = {place: partial(_prerelax, trial, plan, known) for place, trial in enumerate(trials) if trial.ended is None}
    with known_warnings_ignored():
        together(tasks, CountedCalculator(forces), BATCH)


def _prerelax(trial: Trial, plan: Plan, known: KnownEnds | None, calculator: CountedCalculator) -> None:
    atoms = trial.sampled()
    atoms.calc = calculator
    giving_up = GivingUp(True, known) if trial.gives_up else None
    outcome = plan.system.relax(atoms, giving_up=giving_up, optimizer=DEFAULT_OPTIMIZER, fmax=FMAX, max_steps=MAX_STEPS)
    trial.walk.score_calls += calculator.calls
    if giving_up is not None and giving_up.recognised is not None:
        trial.known = giving_up.recognised
        trial.end(Ended.KNOWN, f"{giving_up.reason}, with learned forces")
    elif giving_up is not None and giving_up.reason:
        trial.end(Ended.FRAGMENTS, f"{giving_up.reason}, with learned forces")
    elif not outcome.failed:
        trial.walk.positions = atoms.positions.copy()
