"""What is searched for: a formula, its charge and its spin."""

from collections import Counter

import numpy as np
from ase import Atoms
from ase.data import atomic_numbers
from ase.formula import Formula

from ase_gss.errors import InputError


def parse_formula(text: str) -> np.ndarray:
    """Atomic numbers (N,) of a formula such as "C3H6O" or "CH3CHO", grouped by element, heavier ones first.

    Raises
    ------
    InputError
        Where it cannot be read, has an unknown element, or is empty.
    """
    try:
        count = Formula(text, strict=True).count()
    except (ValueError, KeyError, IndexError, AssertionError) as error:
        raise InputError(f"{text!r} is not a chemical formula: write it like C3H6O.") from error
    unknown = [symbol for symbol in count if atomic_numbers.get(symbol, 0) < 1]
    if unknown:
        raise InputError(f"{text!r} has an unknown element {unknown[0]!r}.")
    numbers = sorted((atomic_numbers[symbol] for symbol, n in count.items() for _ in range(n)), reverse=True)
    if not numbers:
        raise InputError("The formula is empty: write it like C3H6O.")
    return np.array(numbers)


def formula_of(numbers: np.ndarray, crystal: bool = False) -> str:
    """Formula in Hill order, e.g. "C3H6O"; of a crystal with the metals first, e.g. "Ti4O8"."""
    return Atoms(numbers).get_chemical_formula(mode="metal" if crystal else "hill")


def same_composition(a: np.ndarray, b: np.ndarray) -> bool:
    """The atoms are the same, in whatever order."""
    return Counter(map(int, a)) == Counter(map(int, b))


def spin_multiplicity(numbers: np.ndarray, charge: int, multiplicity: int | None) -> int:
    """The multiplicity 2S + 1 to use: the one given, or 1 for an even and 2 for an odd number of electrons.

    Raises
    ------
    InputError
        Where the multiplicity does not go with the number of electrons.
    """
    electrons = int(np.sum(numbers)) - charge
    if electrons < 0:
        raise InputError(f"A charge of {charge} removes more electrons than {formula_of(numbers)} has.")
    if multiplicity is None:
        return 1 + electrons % 2
    if multiplicity < 1 or (electrons - (multiplicity - 1)) % 2 or multiplicity - 1 > electrons:
        raise InputError(
            f"{formula_of(numbers)} with charge {charge} has {electrons} electrons, which cannot have multiplicity "
            f"{multiplicity}."
        )
    return multiplicity
