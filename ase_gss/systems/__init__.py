"""What is searched: a molecule, a crystal, or atoms on a surface. How its trials start, relax, end and are compared."""

from collections.abc import Sequence
from dataclasses import replace
from operator import index
from typing import Any

from ase import Atoms

from ase_gss.composition import parse_formula
from ase_gss.crystal_minima import CrystalComparison
from ase_gss.errors import InputError
from ase_gss.minima import Comparison
from ase_gss.systems.crystal import Crystal
from ase_gss.systems.molecule import Molecule
from ase_gss.systems.surface import Surface

__all__ = ["Crystal", "Molecule", "Surface", "System", "choose_system", "comparison_of", "window_of"]

System = Molecule | Crystal | Surface


def choose_system(
    composition: str | Atoms,
    *,
    pbc: bool = False,
    template: Atoms | None = None,
    region: tuple[float, float] | None = None,
    units: Sequence[int] = (1,),
    pressure: float = 0.0,
    volume: float | None = None,
    symmetry: bool = False,
    fragments: bool = False,
    mirror_images_are_one: bool = True,
) -> System:
    """The system that these arguments of `GenerativeRSS` describe.

    Raises
    ------
    InputError
        Where they do not go together.
    """
    # Atoms count for their composition only: what is made here is of one order, however the search was asked for.
    numbers = parse_formula(composition if isinstance(composition, str) else composition.get_chemical_formula())
    units = _whole_numbers(units)
    of_crystals = bool(pressure) or volume is not None or symmetry or units != (1,)
    periodic = template is not None or pbc
    if periodic and (fragments or not mirror_images_are_one):
        raise InputError("fragments and mirror_images_are_one are for molecules: leave them out.")
    if not periodic and not isinstance(composition, str) and composition.pbc.any():
        raise InputError("These atoms are periodic: set pbc=True to search for crystals, or atoms.pbc = False.")
    if template is not None:
        if of_crystals:
            raise InputError("The cell of a template stays: give no pressure, volume, symmetry or units with it.")
        return Surface(numbers, template.copy(), region)
    if region is not None:
        raise InputError("A region is for the atoms on a template: give a template, too.")
    if pbc:
        return Crystal(numbers, units, pressure, volume, symmetry)
    if of_crystals:
        raise InputError("pressure, volume, symmetry and units are for crystals: add --crystal (pbc=True in Python).")
    return Molecule(numbers, fragments, mirror_images_are_one)


def _whole_numbers(units: Sequence[int]) -> tuple[int, ...]:
    try:
        return tuple(index(number) for number in units)
    except TypeError as error:
        raise InputError(f"units are whole numbers of formula units like (1, 2, 4), not {units!r}.") from error


def comparison_of(settings: dict[str, Any], refined: bool = False) -> Comparison | CrystalComparison:
    """When two ends of a search with these settings are one."""
    if settings.get("periodic"):
        make = CrystalComparison.refined if refined else CrystalComparison.searching
        comparison = make(settings.get("pressure", 0.0))
        if "template" not in settings:
            return comparison
        # A slab dilutes the energy of what sits on it: there the tolerance is one for all atoms together.
        tolerance = comparison.energy_tolerance / settings["atoms"]
        return replace(comparison, energy_tolerance=tolerance, surface=True)
    make = Comparison.refined if refined else Comparison.searching
    return make(settings.get("mirror_images_are_one", True))


def window_of(settings: dict[str, Any]) -> float:
    """Up to where above the lowest minimum a search with these settings looks, as minima are ranked."""
    if "template" in settings:
        return Surface.window
    return Crystal.window if settings.get("periodic") else Molecule.window
