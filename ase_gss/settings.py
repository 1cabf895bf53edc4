"""Which settings make a search this one and no other."""

from typing import TYPE_CHECKING, Any

import numpy as np

from ase_gss.calculator_source import stated_by
from ase_gss.calculators import CALCULATORS, takes_charge
from ase_gss.errors import InputError

if TYPE_CHECKING:
    from ase_gss.archive import Archive
    from ase_gss.plan import Plan

#: Settings that must be the same when a search is resumed: other values would make another search.
FIXED_SETTINGS = (
    "formula",
    "calculator",
    "charge",
    "multiplicity",
    "fmax",
    "seed",
    "coupling",
    "regime",
    "family",
    "adapt",
    "forces",
    "score",
    "n_steps",
    "schedule",
    "own_starts",
    "starts",
    "sigma_start",
    "recognise",
    "optimizer",
    "max_steps",
    "fragments",
    "mirror_images_are_one",
    "periodic",
    "units",
    "pressure",
    "volume",
    "symmetry",
    "template",
    "template_cell",
    "template_positions",
    "template_fixed",
    "template_pbc",
    "region",
)
#: Of these older databases tell nothing.
_NOT_ALWAYS_THERE = ("starts", "sigma_start", "recognise", "schedule", "template_pbc")


def check_settings(name: str, earlier: dict[str, Any] | None, settings: dict[str, Any]) -> None:
    """Raise where these settings would make another search than the one that the database `name` holds.

    Parameters
    ----------
    name : str
        What the database is called.
    earlier, settings : dict
        Those in the database, None where there are none, and those of now.

    Raises
    ------
    InputError
        Says what differs.
    """
    if earlier:
        _check_parameters(name, *(each.get("calculator_parameters", {}) for each in (earlier, settings)))
    for key in FIXED_SETTINGS if earlier else ():
        if key in _NOT_ALWAYS_THERE and key not in earlier:
            continue
        if earlier.get(key) != settings.get(key):
            if key == "starts":
                raise InputError(f"{name} is of a search with other starts: give another database, or the same starts.")
            if key == "adapt":
                advice = "without learning: add --no-adapt" if settings.get(key) else "learning: leave out --no-adapt"
                raise InputError(f"{name} is of a search {advice} (adapt in Python), or give another database.")
            if key == "family":
                raise InputError(
                    f"{name} is of an adaptive search of another version of ase-gss, whose trials were others: give "
                    "another database."
                )
            if key == "forces" and None in (earlier.get(key), settings.get(key)):
                advice = "leave out --forces none" if settings.get(key) is None else "give --forces none"
                had = "that began with learned forces" if settings.get(key) is None else "without them from the start"
                raise InputError(
                    f"{name} is of a search {had}: {advice} (forces=False in Python), or give another database."
                )
            before, now = _short(earlier.get(key)), _short(settings.get(key))
            difference = f"{key} {before}, not {now}" if before != now else f"another {key}"
            raise InputError(f"{name} is of a search with {difference}: give another database, or the same settings.")


def check_order(archive: "Archive", plan: "Plan") -> None:
    """Raise where the atoms of earlier trials are in another order: once a search kept that of the Atoms it was given.

    Parameters
    ----------
    archive, plan : Archive, Plan
        Of the search; the user's own starts, and what is on a template, may be in any order.

    Raises
    ------
    InputError
        Where they are.
    """
    if not archive.records or plan.starts is not None or hasattr(plan.system, "template"):
        return
    earlier, numbers = archive.atoms_of(archive.records[0].number).numbers, plan.system.numbers
    if not np.array_equal(earlier, np.tile(numbers, len(earlier) // len(numbers))):
        raise InputError(
            f"{archive.name} is of an earlier version, with its atoms in another order: give another database."
        )


def _check_parameters(name: str, before: dict[str, Any], now: dict[str, Any]) -> None:
    """Raise where two calculators of a class are two potentials; what one of them does not state may be a default."""
    if differ := _differences(before, now):
        had, has = (", ".join(each) for each in zip(*differ, strict=True))
        raise InputError(
            f"{name} is of a search whose calculator has {had}, not {has}: give another database, or that calculator."
        )


def _differences(before: dict[str, Any], now: dict[str, Any]) -> list[tuple[str, str]]:
    """What differs of what both state, part by part for calculators that are made of the same kinds of others."""
    differ, parts = [], [each.get("parts", []) for each in (before, now)]
    same_kinds = [each["name"] for each in parts[0]] == [each["name"] for each in parts[1]]
    for key in sorted(before.keys() & now.keys()):
        if key == "parts" and same_kinds:
            for one, other in zip(*parts, strict=True):
                differ += [(f"{had} in its parts", has) for had, has in _differences(one, other)]
        elif before[key] != now[key]:
            differ.append((f"{key}={before[key]!r}", f"{key}={now[key]!r}"))
    return differ


def check_calculator(name: str, earlier: dict[str, Any], plan: "Plan") -> None:
    """Raise where what a search with the settings `earlier` has found is to be refined with another potential.

    Energies of the two would stand in one list. A search whose calculator was made by a function may be refined with
    the same one by its name.
    """
    used, given = earlier["calculator"], plan.calculator_name
    made = plan.new_calculator().calculator
    other = used in CALCULATORS or (":" not in used and used != made.name)
    if used != given and other:
        raise InputError(
            f"{name} is of a search with the calculator {used}, not {given}: refine it with that, and export its "
            "minima to relax them with another one."
        )
    if used not in CALCULATORS:
        _check_parameters(name, earlier.get("calculator_parameters", {}), stated_by(made))


def keywords_to_refine(name: str, settings: dict[str, Any], calculator: Any = None) -> dict[str, Any]:
    """Keywords with which `GenerativeRSS` looks at, or refines, what a search with these settings has found.

    Parameters
    ----------
    name : str
        What the database is called.
    settings : dict
        Those in the database.
    calculator : str, function or ase calculator, optional
        By default the one that the search was given by name.

    Raises
    ------
    InputError
        Where the settings do not tell all that it takes.
    """
    if "template" in settings:
        raise InputError("A search on a template cannot be refined from its file: go on with it in Python.")
    periodic = bool(settings.get("periodic"))
    keys = ["fmax", "seed"]
    keys += ["units", "pressure", "volume", "symmetry"] if periodic else ["fragments", "mirror_images_are_one"]
    used = settings["calculator"]
    if calculator is None and used not in CALCULATORS and ":" not in used:
        raise InputError(f"The calculator of {name}, {used}, was not given by name: give it now (-c in the shell).")
    calculator = used if calculator is None else calculator
    if not periodic and isinstance(calculator, str):
        keys += ["charge", "multiplicity"] if takes_charge(calculator) else ["charge"]
    return {"calculator": calculator, "pbc": periodic} | {key: settings[key] for key in keys}


def _short(value: Any) -> Any:
    """The name of what has a name and parameters; nothing of a table, which would fill the screen."""
    if isinstance(value, list) and value and isinstance(value[0], list):
        return None
    return value.get("name", value) if isinstance(value, dict) else value
