"""Tight relaxation of the distinct minima: what falls together is merged, what falls apart is dropped."""

from collections.abc import Callable

from ase import Atoms

from ase_gss.archive import Archive
from ase_gss.bonds import is_connected
from ase_gss.forces import CountedCalculator
from ase_gss.minima import Comparison, MinimaList
from ase_gss.relax import hand_off


def refine(
    minima: MinimaList,
    archive: Archive,
    new_calculator: Callable[[], CountedCalculator],
    fmax: float = 0.005,
    max_steps: int = 300,
    fragments: bool = False,
) -> int:
    """Relax the representative of every minimum to `fmax` and write it to the archive.

    Those already there are not relaxed again, so an interrupted refinement goes on where it stopped.

    Parameters
    ----------
    minima : MinimaList
        As found while searching.
    archive : Archive
        Gets the refined structures and, in its metadata, the calls.
    new_calculator : callable
        Makes the physical calculator.
    fmax : float
        eV/Å.
    max_steps : int
        Optimizer steps for each.
    fragments : bool
        Keep ends that are not in one piece.

    Returns
    -------
    int
        Force calls spent.
    """
    calls = 0
    for atoms in minima.ranked():
        number = atoms.info["trial"]
        if number in archive.refined:
            continue
        refined = atoms.copy()
        refined.info = {}
        refined.calc = calculator = new_calculator()
        outcome = hand_off(refined, fmax=fmax, max_steps=max_steps)
        calls += calculator.calls
        kept = outcome.converged and (fragments or is_connected(refined))
        archive.append_refined(number, outcome.frozen(refined), kept)
        total = archive.metadata.get("refinement_calls", 0) + calculator.calls
        archive.write_metadata(refinement_calls=total)
    return calls


def refined_minima(
    minima: MinimaList, refined: dict[int, Atoms | None], mirror_images_are_one: bool = True
) -> MinimaList:
    """The list with each minimum in its refined form where there is one, and with those that now are one merged.

    Parameters
    ----------
    minima : MinimaList
        As found while searching.
    refined : dict
        Refined structure of the trial that represents a minimum; None where it turned out to be none.
    mirror_images_are_one : bool
        As in `Comparison`.
    """
    if not refined:
        return minima
    representatives = minima.ranked()
    complete = all(atoms.info["trial"] in refined for atoms in representatives)
    settings = Comparison.refined if complete else Comparison.searching
    merged = MinimaList(settings(mirror_images_are_one))
    for atoms in sorted(representatives, key=lambda atoms: atoms.info["first_call"]):
        end = refined.get(atoms.info["trial"], atoms)
        if end is not None:
            info = atoms.info
            merged.add(end, end.get_potential_energy(), info["trial"], info["first_call"], hits=info["hits"])
    return merged
