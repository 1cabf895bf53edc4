"""Physical calculators by name."""

import importlib
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from ase.calculators.calculator import Calculator

from ase_gss.errors import InputError
from ase_gss.forces import CalculatorFactory, CountedCalculator


def _tblite(method: str, charge: int, multiplicity: int) -> Calculator:
    from tblite.ase import TBLite

    return TBLite(method=method, charge=charge, multiplicity=multiplicity, verbosity=0)


def _emt(charge: int, multiplicity: int) -> Calculator:
    from ase.calculators.emt import EMT

    return EMT()


def _lennard_jones(charge: int, multiplicity: int) -> Calculator:
    from ase.calculators.lj import LennardJones

    return LennardJones(sigma=1.0, epsilon=1.0, rc=4.0, smooth=True)


#: Name: (what makes it, the module it needs, the extra that brings the module).
CALCULATORS: dict[str, tuple[Callable[..., Calculator], str, str]] = {
    "gfn2": (partial(_tblite, "GFN2-xTB"), "tblite", "xtb"),
    "gfn1": (partial(_tblite, "GFN1-xTB"), "tblite", "xtb"),
    "emt": (_emt, "ase", ""),
    "lj": (_lennard_jones, "ase", ""),
}

#: Those that know of no charge and no spin.
NEUTRAL = ("emt", "lj")


def calculator_factory(name: str, charge: int = 0, multiplicity: int = 1) -> CalculatorFactory:
    """A function that makes a new calculator at every call.

    Parameters
    ----------
    name : str
        One of `CALCULATORS`, or "module:factory" for a function without arguments in a module that can be imported
        from the current folder or the path.
    charge, multiplicity : int
        Total charge (e) and spin multiplicity; a factory of one's own must know them itself.

    Raises
    ------
    InputError
        Where there is no such calculator, or its package is not installed.
    """
    if ":" in name:
        return _own_factory(name)
    if charge and name in NEUTRAL:
        raise InputError(f"The calculator {name!r} knows of no charge.")
    if name not in CALCULATORS:
        raise InputError(f"No calculator {name!r}: give one of {', '.join(CALCULATORS)} or module:factory.")
    make, module, extra = CALCULATORS[name]
    try:
        importlib.import_module(module)
    except ImportError as error:
        raise InputError(f"The calculator {name!r} needs {module}: pip install 'ase-gss[{extra}]'.") from error
    return partial(make, charge=charge, multiplicity=multiplicity)


def _own_factory(name: str) -> CalculatorFactory:
    module, _, attribute = name.partition(":")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        factory = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise InputError(f"The calculator factory {name!r} cannot be imported: {error}.") from error
    if not callable(factory):
        raise InputError(f"{name!r} is not a function that makes a calculator.")
    return factory


def calculator_source(calculator: Any, charge: int, multiplicity: int) -> tuple[Callable[[], CountedCalculator], str]:
    """A function that makes a counted calculator that remembers no other trial, and the calculator's name."""
    if isinstance(calculator, str):
        factory = calculator_factory(calculator, charge, multiplicity)
        if ":" not in calculator:
            return lambda: CountedCalculator(factory()), calculator
    elif isinstance(calculator, Calculator) or not callable(calculator):
        factory = lambda: calculator  # noqa: E731
    else:
        factory = calculator
    if charge:
        raise InputError("A charge is for calculators given by name: set it in your own calculator.")
    made = factory()
    if not hasattr(made, "get_property"):
        raise InputError("The calculator must be a name, an ASE calculator, or a function that makes one.")

    def again() -> CountedCalculator:
        made.reset()
        return CountedCalculator(made)

    return again, calculator if isinstance(calculator, str) else made.name
