"""Tight relaxation of one end: whether it is a minimum, and where that lies."""

from dataclasses import dataclass
from functools import partial

from ase import Atoms

from ase_gss.plan import Plan
from ase_gss.refined_rows import Refined
from ase_gss.relax import Relaxation
from ase_gss.trial import Ended
from ase_gss.verify import verify_minimum


@dataclass(frozen=True)
class Refinement:
    """What is to be refined, and how. Plain data: it pickles.

    Attributes
    ----------
    number : int
        The trial.
    atoms : Atoms
        Its end, or what an earlier refinement has made of it, with energy and forces.
    fmax, max_steps : float, int
        Largest force (eV/Å) asked for, and optimizer steps at most.
    verify : bool
        Check for imaginary modes; a saddle point is pushed off along its mode and relaxed again. For molecules.
    """

    number: int
    atoms: Atoms
    fmax: float
    max_steps: int
    verify: bool

    def failed(self, reason: str, refinement_calls: int) -> Refined:
        """What stands for it where whoever was to do it is gone; the calls of a check are not told apart then."""
        return Refined(self.number, self.atoms, Ended.CALCULATOR, reason, self.fmax, False, refinement_calls, 0)


def refine_end(refinement: Refinement, plan: Plan) -> Refined:
    """Do it, with the system and the calculator of the plan."""
    relax = partial(plan.system.relax, refining=True, fmax=refinement.fmax, max_steps=refinement.max_steps)
    end = refinement.atoms.copy()
    end.info = {}
    end.calc = calculator = plan.new_calculator()
    outcome = relax(end)
    refinement_calls = calculator.calls
    ended, reason = _judge(outcome), outcome.reason
    if refinement.verify and ended is Ended.MINIMUM:
        verification = verify_minimum(end, relax)
        outcome, reason = verification.relaxation or outcome, verification.reason
        if verification.failed:
            ended = Ended.CALCULATOR
        elif reason:
            ended = Ended.SADDLE if outcome.converged else _judge(outcome)
    if ended is Ended.MINIMUM and (rejected := plan.system.rejects(end)):
        ended, reason = rejected
    verified = refinement.verify and not ended.is_failure
    spent = refinement_calls, calculator.calls - refinement_calls
    return Refined(refinement.number, outcome.frozen(end), ended, reason, refinement.fmax, verified, *spent)


def _judge(outcome: Relaxation) -> Ended:
    if outcome.failed:
        return Ended.CALCULATOR
    if outcome.optimizer_failed:
        return Ended.OPTIMIZER
    return Ended.MINIMUM if outcome.converged else Ended.NOT_CONVERGED
