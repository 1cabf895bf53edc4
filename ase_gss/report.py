"""What has been found, as numbers and as text."""

from collections import Counter
from typing import Any

import numpy as np
from ase import Atoms

from ase_gss.archive import Archive
from ase_gss.completeness import chance_next_is_new, chao1, predict_new
from ase_gss.composition import formula_of
from ase_gss.crystal_minima import space_group
from ase_gss.found import Found
from ase_gss.line_formula import line_formula
from ase_gss.minima import MinimaList
from ase_gss.refine import refined_minima
from ase_gss.trial import Ended

#: Energies above the lowest within which minima are counted: eV for molecules, eV/atom for periodic structures.
WINDOWS, CRYSTAL_WINDOWS = (1, 2, 3, 5), (0.05, 0.1, 0.3)
#: Å; at fmax 0.05 the atoms of rutile (CHGNet) are up to 0.15 Å from their symmetric places.
SYMMETRY_TOLERANCE = 0.2
#: Hits below which nothing is said about completeness.
ENOUGH_HITS = 30


def minima_of(archive: Archive) -> MinimaList:
    """The distinct minima of an archive, refined where a refinement is on file."""
    return refined_minima(Found(archive), archive)


def summary(archive: Archive, minima: MinimaList | None = None) -> dict[str, Any]:
    """Totals of a search.

    Returns
    -------
    dict
        formula, trials, converged, failed (neither converged nor skipped), `ended` (how many trials ended how),
        force_calls, score_calls, refinement_calls, verification_calls, minima, refined, verified,
        dropped_by_refinement, lowest_energy (eV, None before the first), minima_within (by window in eV), hits,
        chance_next_is_new, reachable_at_least, new_in_next_100_trials (mean, and the ends of its 90 % interval),
        new_in_later_half (of the force calls: how many these are, and how many minima they met first),
        regimes (of each: trials, force_calls), and the settings. Of periodic structures energies are enthalpies in
        eV/atom.
    """
    settings = archive.metadata.get("settings", {})
    minima = minima_of(archive) if minima is None else minima
    ended = Counter(str(record.ended) for record in archive.records)
    converged = sum(record.converged for record in archive.records)
    energies, ranked = minima.energies, minima.ranked()
    lowest = min(energies, default=None)
    skipped = sum(ended[str(each)] for each in (Ended.KNOWN, Ended.HEADING, Ended.FAMILIAR, Ended.HIGH))
    regimes: dict[str, dict[str, int]] = {}
    for record in archive.records:
        regime = regimes.setdefault(record.regime, {"trials": 0, "force_calls": 0})
        regime["trials"] += 1
        regime["force_calls"] += record.force_calls
    return {
        "formula": settings.get("formula"),
        "trials": archive.totals["trials"],
        "converged": converged,
        "failed": archive.totals["trials"] - converged - skipped,
        "ended": dict(ended),
        "force_calls": archive.totals["force_calls"],
        "score_calls": archive.totals["score_calls"],
        "refinement_calls": archive.totals["refinement_calls"],
        "verification_calls": archive.totals["verification_calls"],
        "minima": len(minima),
        "refined": len(archive.refined),
        "verified": sum(refined.verified for refined in archive.refined.values()),
        "dropped_by_refinement": sum(refined.ended is not Ended.MINIMUM for refined in archive.refined.values()),
        "lowest_energy": lowest,
        "minima_within": {str(w): sum(e - lowest <= w for e in energies) for w in _windows(settings)},
        "hits": sum(minima.hits),
        "chance_next_is_new": chance_next_is_new(minima.hits),
        "reachable_at_least": chao1(minima.hits),
        "new_in_next_100_trials": _predicted(archive, ranked),
        "new_in_later_half": _later_half(archive.totals["force_calls"], ranked),
        "regimes": regimes,
        "settings": settings,
    }


def _predicted(archive: Archive, minima: list[Atoms]) -> tuple[float, int, int]:
    """How many new minima the next 100 trials will meet: mean and 90 % interval."""
    numbers = np.sort([record.number for record in archive.records])
    first_met = np.searchsorted(numbers, [atoms.info["first_trial"] for atoms in minima])
    hits = [atoms.info["hits"] for atoms in minima]
    return predict_new(hits, len(numbers), first_met=first_met.tolist())


def _later_half(force_calls: int, minima: list[Atoms]) -> tuple[int, int]:
    """Force calls of the later half, and minima that they met first."""
    earlier = force_calls // 2
    return force_calls - earlier, sum(atoms.info["first_call"] > earlier for atoms in minima)


def _windows(settings: dict[str, Any]) -> tuple[float, ...]:
    return CRYSTAL_WINDOWS if settings.get("periodic") else WINDOWS


def ranking_table(minima: list[Atoms], top: int | None = 20) -> str:
    """The minima as a table.

    Of molecules rank, energy above the lowest (eV), energy (eV), hits, first call, first trial, line formula. Of
    periodic structures the energies are enthalpies in eV/atom, and volume (Å3/atom) and space group are added.

    Parameters
    ----------
    minima : list of Atoms
        Ranked, as `GenerativeRSS.minima`.
    top : int, optional
        Rows to show; all by default with None.
    """
    if not minima:
        return "No minimum has been found."
    rows = (_crystal_rows if minima[0].pbc.any() else _molecule_rows)(minima[:top])
    if top is not None and len(minima) > top:
        rows.append(f"... and {len(minima) - top} more")
    return "\n".join(rows)


def _molecule_rows(minima: list[Atoms]) -> list[str]:
    lowest = minima[0].get_potential_energy()
    lines = [
        f"{'rank':>4}  {'dE/eV':>8}  {'energy/eV':>13}  {'hits':>5}  {'first call':>10}  {'first trial':>11}  molecule"
    ]
    for rank, atoms in enumerate(minima, start=1):
        energy, info = atoms.get_potential_energy(), atoms.info
        lines.append(
            f"{rank:4d}  {energy - lowest:8.4f}  {energy:13.4f}  {info['hits']:5d}  {info['first_call']:10d}  "
            f"{info['first_trial']:11d}  {line_formula(atoms)}"
        )
    return lines


def _crystal_rows(minima: list[Atoms]) -> list[str]:
    lowest = minima[0].info["ranking_energy"]
    lines = [
        f"{'rank':>4}  {'dH/eV/atom':>10}  {'H/eV/atom':>10}  {'V/Å3/atom':>9}  {'hits':>5}  {'first call':>10}  "
        f"{'first trial':>11}  {'formula':<10}  space group"
    ]
    for rank, atoms in enumerate(minima, start=1):
        info, volume = atoms.info, atoms.get_volume() / len(atoms)
        enthalpy = info["ranking_energy"]
        lines.append(
            f"{rank:4d}  {enthalpy - lowest:10.4f}  {enthalpy:10.4f}  {volume:9.3f}  {info['hits']:5d}  "
            f"{info['first_call']:10d}  {info['first_trial']:11d}  {formula_of(atoms.numbers, crystal=True):<10}  "
            f"{space_group(atoms, SYMMETRY_TOLERANCE)[0]}"
        )
    return lines


def _percent(chance: float, hits: int) -> str:
    """About what chance that is; where nothing was met only once, less than one in all hits."""
    percent = 100 * (chance or 1 / hits)
    return f"{'about' if chance else 'less than'} {percent:.{0 if percent >= 10 else 1}f}"


def summary_text(facts: dict[str, Any]) -> str:
    """`summary` in sentences."""
    ended = ", ".join(f"{count} {how}" for how, count in facts["ended"].items())
    unit = "eV/atom" if facts["settings"].get("periodic") else "eV"
    within = ", ".join(f"{count} within {window} {unit}" for window, count in facts["minima_within"].items())
    regimes = ", ".join(
        f"{name} {regime['trials']} ({regime['force_calls']})"
        for name, regime in sorted(facts["regimes"].items())
        if name
    )
    text = [
        f"{facts['formula']}: {facts['trials']} trials ({ended}), "
        f"{facts['force_calls']} force calls, {facts['score_calls']} score calls.",
        f"{facts['minima']} distinct {'minimum' if facts['minima'] == 1 else 'minima'}: {within}.",
    ]
    in_pieces = facts["ended"].get(str(Ended.FRAGMENTS), 0)
    if not facts["minima"] and 2 * in_pieces > facts["trials"] and "fragments" in facts["settings"]:
        text.append(
            "Most trials ended in pieces (a bond is at most 1.25 sums of covalent radii): --fragments keeps them."
        )
    if len(facts["regimes"]) > 1:
        text.insert(1, f"Trials (and force calls) by regime: {regimes}.")
    if facts["refined"]:
        checked = f", {facts['verified']} checked for imaginary modes" if facts["verified"] else ""
        text.append(
            f"{facts['refined']} were refined{checked}: what fell together is merged, and what is no minimum "
            f"is left out ({facts['dropped_by_refinement']})."
        )
    elif facts["minima"]:
        text.append("Not refined: some may be one minimum twice or not quite minima; `ase-gss refine` tells.")
    for kind in ("refinement", "verification"):
        if facts[f"{kind}_calls"]:
            text.append(f"{kind.capitalize()} took {facts[f'{kind}_calls']} more force calls.")
    if facts["hits"] >= ENOUGH_HITS:
        chance = facts["chance_next_is_new"]
        text.append(
            "A trial like all so far that ends in a minimum, other than the one that it was made from, meets a new one "
            f"with a chance of {_percent(chance, facts['hits'])} % (Good-Turing); "
            f"trials like these can reach {facts['reachable_at_least']:.0f} at the least, others more (Chao1)."
        )
        mean, low, high = facts["new_in_next_100_trials"]
        text.append(
            f"The next 100 trials, going by the later ones, will meet about {mean:.0f} new; "
            f"nine times of ten it is {low} to {high}."
            if high
            else "The next 100 trials will hardly meet a new one."
        )
        calls, new = facts["new_in_later_half"]
        text.append(f"The later half of the force calls, {calls}, met {new} new {'minimum' if new == 1 else 'minima'}.")
    elif facts["minima"]:
        text.append(f"To say how complete the list is takes {ENOUGH_HITS} trials that have ended in minima.")
    return "\n".join(text)
