"""Tight relaxation of the distinct minima: what falls together is merged, what is no minimum is dropped."""

import logging
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from itertools import accumulate
from typing import TYPE_CHECKING

from ase import Atoms

from ase_gss.archive import Archive
from ase_gss.jobs import Job, Runner, WorkerLost
from ase_gss.minima import MinimaList
from ase_gss.refine_end import Refinement
from ase_gss.systems import comparison_of
from ase_gss.trial import Ended

if TYPE_CHECKING:
    from ase_gss.found import Found

_LOG = logging.getLogger(__name__)


def what_to_refine(
    minima: MinimaList, archive: Archive, fmax: float, max_steps: int, verify: bool, every_end: bool
) -> list[Refinement]:
    """The representative of every minimum, or every end, that is not in the archive to this `fmax` or a smaller one.

    Parameters
    ----------
    minima, archive : MinimaList, Archive
        As found while searching, and what has been refined before.
    fmax : float
        eV/Å.
    max_steps : int
        Optimizer steps for each.
    verify : bool
        Check each for imaginary modes.
    every_end : bool
        The ends of all trials that came to a minimum: the comparison of a search takes some for one that are two.
    """
    refinements = []
    for number, atoms in _ends(minima, archive, every_end):
        earlier = archive.refined.get(number)
        if earlier is None or earlier.fmax > fmax or (verify and not earlier.verified):
            atoms = atoms if earlier is None else earlier.atoms
            refinements.append(Refinement(number, atoms, fmax, max_steps, verify))
    return refinements


def refine(refinements: Sequence[Refinement], archive: Archive, crew: Runner) -> list[str]:
    """Relax them and write what comes of each to the archive, at once: what is interrupted goes on where it stopped.

    One that failed keeps the form it was found in and is tried again the next time.

    Parameters
    ----------
    refinements : sequence of Refinement
        What is to be done; each by itself, so that what comes of it is the same whoever does it.
    archive : Archive
        Gets the refined structures and what they have cost.
    crew : Runner
        Who does the work.

    Returns
    -------
    list of str
        Of each why its calculation, or the optimizer, has failed, empty where none has. A warning says how many have.
    """
    reasons = [""] * len(refinements)
    waiting, flying = iter(enumerate(refinements)), {}
    while True:
        while len(flying) < crew.slots and (following := next(waiting, None)) is not None:
            flying[crew.submit(Job("refine", (), refinement=following[1]))] = following
        if not flying:
            break
        done, _ = wait(flying, return_when=FIRST_COMPLETED)
        for future, (place, refinement) in sorted(((each, flying.pop(each)) for each in done), key=_by_place):
            try:
                refined = future.result()
            except WorkerLost as lost:
                refined = refinement.failed(lost.reason, lost.force_calls)
            archive.append_refined(refined)
            reasons[place] = refined.reason if refined.ended.is_failure else ""
    if failed := [each for each in reasons if each]:
        _LOG.warning("%d of %d could not be refined, the last so: %s", len(failed), len(reasons), failed[-1])
    return reasons


def _by_place(done: tuple[Future, tuple[int, Refinement]]) -> int:
    return done[1][0]


def _ends(minima: MinimaList, archive: Archive, every_end: bool) -> Iterator[tuple[int, Atoms]]:
    representatives = {atoms.info["trial"]: atoms for atoms in minima.ranked()}
    yield from representatives.items()
    if every_end:
        for number in sorted(record.number for record in archive.records if record.ended is Ended.MINIMUM):
            if number not in representatives:
                yield number, archive.atoms_of(number)


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
