"""Tight relaxation of the distinct minima: what falls together is merged, what is no minimum is dropped."""

from collections.abc import Callable
from functools import partial

from ase_gss.archive import Archive, Refined
from ase_gss.forces import CountedCalculator
from ase_gss.minima import MinimaList
from ase_gss.relax import Relaxation
from ase_gss.systems import System, comparison_of
from ase_gss.trial import Ended
from ase_gss.verify import verify_minimum


def refine(
    minima: MinimaList,
    archive: Archive,
    system: System,
    new_calculator: Callable[[], CountedCalculator],
    fmax: float = 0.005,
    max_steps: int = 300,
    verify: bool = False,
) -> None:
    """Relax the representative of every minimum to `fmax` and write it to the archive.

    Those already there, to the same fmax or a smaller one, are not relaxed again, so an interrupted refinement goes on
    where it stopped. One that failed keeps the form it was found in and is tried again the next time.

    Parameters
    ----------
    minima : MinimaList
        As found while searching.
    archive : Archive
        Gets the refined structures and what they have cost.
    system : System
        What was searched.
    new_calculator : callable
        Makes the physical calculator.
    fmax : float
        eV/Å.
    max_steps : int
        Optimizer steps for each.
    verify : bool
        Check each for imaginary modes; a saddle point is pushed off along its mode and relaxed again. For molecules.
    """
    relax = partial(system.relax, refining=True, fmax=fmax, max_steps=max_steps)
    for atoms in minima.ranked():
        number = atoms.info["trial"]
        earlier = archive.refined.get(number)
        if earlier is not None and earlier.fmax <= fmax and (earlier.verified or not verify):
            continue
        end = (atoms if earlier is None else earlier.atoms).copy()
        end.info = {}
        end.calc = calculator = new_calculator()
        outcome = relax(end)
        refinement_calls = calculator.calls
        ended, reason = _judge(outcome), outcome.reason
        if verify and ended is Ended.MINIMUM:
            verification = verify_minimum(end, relax)
            outcome, reason = verification.relaxation or outcome, verification.reason
            if reason:
                ended = _judge(outcome) if not outcome.converged else Ended.SADDLE
        if ended is Ended.MINIMUM and (rejected := system.rejects(end)):
            ended, reason = rejected
        spent = refinement_calls, calculator.calls - refinement_calls
        archive.append_refined(Refined(number, outcome.frozen(end), ended, reason, fmax, verify, *spent))


def _judge(outcome: Relaxation) -> Ended:
    if outcome.failed:
        return Ended.CALCULATOR
    return Ended.MINIMUM if outcome.converged else Ended.NOT_CONVERGED


def refined_minima(minima: MinimaList, archive: Archive) -> MinimaList:
    """The list with each minimum in its refined form where there is one, and with those that now are one merged."""
    if not archive.refined:
        return minima
    representatives = sorted(minima.ranked(), key=lambda atoms: atoms.info["first_call"])
    complete = all(atoms.info["trial"] in archive.refined for atoms in representatives)
    merged = MinimaList(comparison_of(archive.metadata.get("settings", {}), refined=complete))
    for atoms in representatives:
        refined = archive.refined.get(atoms.info["trial"])
        if refined is None or refined.ended is Ended.MINIMUM:
            end, info = (atoms if refined is None else refined.atoms), atoms.info
            merged.add(
                end,
                end.get_potential_energy(),
                info["trial"],
                info["first_call"],
                hits=info["hits"],
                first_trial=info["first_trial"],
            )
    return merged
