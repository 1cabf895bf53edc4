"""Tight relaxation of the distinct minima: what falls together is merged, what is no minimum is dropped."""

import logging
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from itertools import accumulate
from typing import TYPE_CHECKING

from ase_gss.archive import Archive
from ase_gss.jobs import Job, Runner, WorkerLost
from ase_gss.minima import MinimaList
from ase_gss.refine_end import Refinement
from ase_gss.systems import comparison_of
from ase_gss.trial import Ended

if TYPE_CHECKING:
    from ase_gss.found import Found

_LOG = logging.getLogger(__name__)
#: So often (s) is looked whether to stop.
_PATIENCE = 0.5


def what_to_refine(minima: MinimaList, archive: Archive, fmax: float, verify: bool, every_end: bool) -> list[int]:
    """The trials that represent a minimum, or all that came to one, and are not refined to this `fmax` or less.

    Parameters
    ----------
    minima, archive : MinimaList, Archive
        As found while searching, and what has been refined before.
    fmax : float
        eV/Å.
    verify : bool
        Those count that were checked for imaginary modes.
    every_end : bool
        All that came to a minimum: the comparison of a search takes some for one that are two.
    """
    numbers = dict.fromkeys(atoms.info["trial"] for atoms in minima.ranked())
    if every_end:
        numbers |= dict.fromkeys(sorted(each.number for each in archive.records if each.ended is Ended.MINIMUM))
    earlier = archive.refined
    return [
        number
        for number in numbers
        if number not in earlier or earlier[number].fmax > fmax or (verify and not earlier[number].verified)
    ]


def refine(
    numbers: Sequence[int],
    archive: Archive,
    crew: Runner,
    fmax: float = 0.005,
    max_steps: int = 300,
    verify: bool = False,
    stopping: Callable[[], bool] = bool,
    reasons: list[str] | None = None,
) -> None:
    """Relax the ends of these trials to `fmax` and write what comes of each to the archive, at once.

    So what is interrupted goes on where it stopped. One that failed keeps the form it was found in and is tried again
    the next time.

    Parameters
    ----------
    numbers : sequence of int
        The trials; each is refined by itself, so that what comes of it is the same whoever does it.
    archive : Archive
        Gets the refined structures and what they have cost.
    crew : Runner
        Who does the work.
    fmax, max_steps, verify : float, int, bool
        See `Refinement`.
    stopping : callable
        Once it is true, what is under way is finished and nothing more is begun.
    reasons : list of str, optional
        Gets of each that was relaxed why its calculation, or the optimizer, has failed, empty where none has. A warning
        says how many have.
    """
    reasons = [] if reasons is None else reasons
    waiting = iter(numbers)
    flying: dict[Future, Refinement] = {}

    def write(done: Iterable[Future]) -> Exception | None:
        """Write what has come back; the first error, if any, is for the time after."""
        error = None
        for future in done:
            try:
                refined = future.result()
            except WorkerLost as lost:
                refined = flying[future].failed(lost.reason, lost.force_calls)
            except Exception as raised:
                error = error or raised
                del flying[future]
                continue
            archive.append_refined(refined)
            del flying[future]
            reasons.append(refined.reason if refined.ended.is_failure else "")
        return error

    try:
        while True:
            while len(flying) < crew.slots and not stopping() and (number := next(waiting, None)) is not None:
                earlier = archive.refined.get(number)
                atoms = archive.atoms_of(number) if earlier is None else earlier.atoms
                refinement = Refinement(number, atoms, fmax, max_steps, verify)
                flying[crew.submit(Job("refine", (), refinement=refinement))] = refinement
            if stopping():
                for future in [each for each in flying if each.cancel()]:
                    del flying[future]
            if not flying:
                break
            if error := write(wait(flying, _PATIENCE, FIRST_COMPLETED).done):
                raise error
    except BaseException:  # Ctrl-C may come anywhere
        write([future for future in flying if future.done() and not future.cancelled()])
        raise
    finally:
        if failed := [each for each in reasons if each]:
            _LOG.warning("%d of %d could not be refined, the last so: %s", len(failed), len(reasons), failed[-1])


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
