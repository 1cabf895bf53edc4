"""Before a molecule, sampled or random, costs a force call it is relaxed with learned forces."""

from collections.abc import Sequence

import numpy as np

from ase_gss.batch_lbfgs import relax_together
from ase_gss.bonds import connected
from ase_gss.giving_up import longest_bond
from ase_gss.lesson import ForceFunction
from ase_gss.plan import Plan
from ase_gss.trial import Ended, Need, Trial

#: eV/Å; learned forces are off by as much.
FMAX = 0.1
#: Steps; and so many of them between two looks at whether a molecule is still in one piece.
MAX_STEPS, INTERVAL = 150, 3


def prerelax(trials: Sequence[Trial], plan: Plan, forces: ForceFunction | None) -> None:
    """Relax what these trials have sampled with learned forces; each evaluation counts as a score call.

    What falls apart is over.

    Parameters
    ----------
    trials : sequence of Trial
        Those of them that are to settle.
    plan : Plan
        Of the search.
    forces : callable, optional
        See `ForceFunction`. Without any they stay as they are.
    """
    settling = [trial for trial in trials if trial.needs is Need.SETTLING]
    for trial in settling:
        trial.settles = False
    if forces is None or not settling:
        return
    numbers, started = plan.system.numbers, np.array([trial.walk.positions for trial in settling])
    sampled = np.array([trial.formed for trial in settling])
    may_fall_apart = np.array([not trial.gives_up for trial in settling]) | plan.system.fragments

    def fallen_apart(positions: np.ndarray, which: np.ndarray, step: int) -> np.ndarray:
        if step % INTERVAL:
            return np.zeros(len(which), bool)
        scale = np.where(sampled[which], longest_bond(True, step), longest_bond(False, step))
        return ~(connected(numbers, positions, scale) | may_fall_apart[which])

    settled, evaluations, in_pieces = relax_together(
        started, lambda positions, which: forces(numbers, positions), FMAX, MAX_STEPS, hopeless=fallen_apart
    )
    for trial, positions, calls, lost in zip(settling, settled, evaluations, in_pieces, strict=True):
        trial.walk.score_calls += int(calls)
        trial.walk.positions = positions
        if lost:
            trial.end(Ended.FRAGMENTS, "fallen apart, with learned forces")
