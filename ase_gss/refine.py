"""Tight relaxation of the distinct minima: what falls together is merged, what is no minimum is dropped."""

import logging
from collections.abc import Callable, Iterator
from functools import partial
from itertools import accumulate
from typing import TYPE_CHECKING

from ase import Atoms

from ase_gss.archive import Archive
from ase_gss.forces import CountedCalculator
from ase_gss.minima import MinimaList
from ase_gss.refined_rows import Refined
from ase_gss.relax import Relaxation
from ase_gss.systems import System, comparison_of
from ase_gss.trial import Ended
from ase_gss.verify import verify_minimum

if TYPE_CHECKING:
    from ase_gss.found import Found

_LOG = logging.getLogger(__name__)


def refine(
    minima: MinimaList,
    archive: Archive,
    system: System,
    new_calculator: Callable[[], CountedCalculator],
    fmax: float = 0.005,
    max_steps: int = 300,
    verify: bool = False,
    every_end: bool = False,
) -> list[str]:
    """Relax the representative of every minimum to `fmax`, or every end, and write it to the archive.

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
    every_end : bool
        The ends of all trials that came to a minimum: the comparison of a search takes some for one that are two.

    Returns
    -------
    list of str
        Of each that was relaxed now why its calculation, or the optimizer, has failed, empty where none has. A warning
        says how many have.
    """
    failures: list[str] = []
    relax = partial(system.relax, refining=True, fmax=fmax, max_steps=max_steps)
    for number, atoms in _to_refine(minima, archive, every_end):
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
            if verification.failed:
                ended = Ended.CALCULATOR
            elif reason:
                ended = Ended.SADDLE if outcome.converged else _judge(outcome)
        if ended is Ended.MINIMUM and (rejected := system.rejects(end)):
            ended, reason = rejected
        verified = verify and not ended.is_failure
        spent = refinement_calls, calculator.calls - refinement_calls
        failures.append(reason if ended.is_failure else "")
        archive.append_refined(Refined(number, outcome.frozen(end), ended, reason, fmax, verified, *spent))
    if failed := [each for each in failures if each]:
        _LOG.warning("%d of %d could not be refined, the last so: %s", len(failed), len(failures), failed[-1])
    return failures


def _to_refine(minima: MinimaList, archive: Archive, every_end: bool) -> Iterator[tuple[int, Atoms]]:
    representatives = {atoms.info["trial"]: atoms for atoms in minima.ranked()}
    yield from representatives.items()
    if every_end:
        for number in sorted(record.number for record in archive.records if record.ended is Ended.MINIMUM):
            if number not in representatives:
                yield number, archive.atoms_of(number)


def _judge(outcome: Relaxation) -> Ended:
    if outcome.failed:
        return Ended.CALCULATOR
    if outcome.optimizer_failed:
        return Ended.OPTIMIZER
    return Ended.MINIMUM if outcome.converged else Ended.NOT_CONVERGED


def refined_minima(found: "Found", archive: Archive) -> MinimaList:
    """The list with each minimum in its refined form where there is one, and with those that now are one merged.

    Other ends that have been refined stand for themselves: what they are to tell from is a minimum of its own.
    """
    if not archive.refined:
        return found.minima
    representatives = {atoms.info["trial"]: atoms for atoms in found.minima.ranked()}
    hits = {number: atoms.info["hits"] for number, atoms in representatives.items()}
    others = {
        number: refined
        for number, refined in archive.refined.items()
        if number in found.minimum_of and number not in representatives and refined.ended is Ended.MINIMUM
    }
    entries = []
    if others:
        representing = {found.minimum_of[number]: number for number in representatives}
        records = sorted(archive.records, key=lambda record: record.number)
        calls = dict(zip((r.number for r in records), accumulate(r.force_calls for r in records), strict=True))
        for number, refined in others.items():
            n_hits = int(number not in found.returned)
            hits[representing[found.minimum_of[number]]] -= n_hits
            entries.append((calls[number], refined.atoms, number, n_hits, number))
    for number, atoms in representatives.items():
        refined = archive.refined.get(number)
        if refined is None or refined.ended is Ended.MINIMUM:
            end, info = (atoms if refined is None else refined.atoms), atoms.info
            entries.append((info["first_call"], end, number, hits[number], info["first_trial"]))
    complete = all(number in archive.refined for number in representatives)
    merged = MinimaList(comparison_of(archive.metadata.get("settings", {}), refined=complete))
    for first_call, end, number, n_hits, first_trial in sorted(entries, key=lambda entry: (entry[0], entry[2])):
        energy = end.get_potential_energy()
        index, is_new = merged.add(end, energy, number, first_call, hits=n_hits, first_trial=first_trial)
        if is_new and not n_hits:  # what came back, as a search sees it, has met a minimum of its own after all
            merged.hit(index)
    return merged
