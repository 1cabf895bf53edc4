"""Physical calculators by name."""

import contextlib
import importlib
import io
import sys
import warnings
from collections.abc import Callable, Iterable
from copy import copy
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

from ase.calculators.calculator import Calculator
from ase.calculators.emt import parameters as emt_parameters
from ase.data import atomic_numbers, chemical_symbols

from ase_gss.errors import InputError
from ase_gss.forces import CalculatorFactory, forget

#: What the networks trained on the relaxations of the Materials Project have seen.
_MATERIALS_PROJECT = frozenset({*range(1, 84), *range(89, 95)})


def _tblite(method: str, charge: int, multiplicity: int) -> Calculator:
    from tblite.ase import TBLite

    return TBLite(method=method, charge=charge, multiplicity=multiplicity, verbosity=0)


def _emt() -> Calculator:
    from ase.calculators.emt import EMT

    return EMT()


def _lennard_jones() -> Calculator:
    from ase.calculators.lj import LennardJones

    return LennardJones(sigma=1.0, epsilon=1.0, rc=4.0, smooth=True)


def _tersoff() -> Calculator:
    from ase_gss.many_body import tersoff

    return tersoff()


def _stillinger_weber() -> Calculator:
    from ase_gss.many_body import stillinger_weber

    return stillinger_weber()


def _chgnet() -> Calculator:
    from chgnet.model import CHGNet

    from ase_gss.chgnet_calculator import CHGNetCalculator, CHGNetNetwork

    return CHGNetCalculator(CHGNetNetwork(CHGNet.load(use_device=_device(), verbose=False)))


def _sevennet() -> Calculator:
    from sevenn.calculator import SevenNetCalculator

    return SevenNetCalculator("7net-0", device=_device())


def _mattersim() -> Calculator:
    from mattersim.forcefield import MatterSimCalculator

    return MatterSimCalculator(device=_device())


def _mace() -> Calculator:
    from mace.calculators import mace_mp

    return mace_mp(device=_device(), default_dtype="float64")


def _orb() -> Calculator:
    from orb_models.forcefield import pretrained
    from orb_models.forcefield.inference.calculator import ORBCalculator

    model, adapter = pretrained.orb_v3_conservative_inf_omat(device=_device(), precision="float32-highest")
    return ORBCalculator(model, atoms_adapter=adapter, device=_device())


def _uma() -> Calculator:
    from fairchem.core import FAIRChemCalculator, pretrained_mlip

    return FAIRChemCalculator(pretrained_mlip.get_predict_unit("uma-s-1p2", device=_device()), task_name="omat")


def _device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


@dataclass(frozen=True)
class NamedCalculator:
    """What is known of a calculator before it is made.

    Attributes
    ----------
    make : function
        Makes one, without arguments; with charge and multiplicity where it is `charged`.
    module : str
        The module that it needs.
    extra : str
        The extra of ase-gss that brings this module.
    elements : set of int, optional
        Atomic numbers that it knows; None where this is left to the calculator.
    charged : bool
        It can be told a charge and a spin multiplicity.
    model : bool
        It loads a model, which is then loaded once in a process.
    """

    make: Callable[..., Calculator]
    module: str = "ase"
    extra: str = ""
    elements: frozenset[int] | None = None
    charged: bool = False
    model: bool = False


#: The calculators of `calculator_factory`. All have a stress. The weights of chgnet and sevennet are inside their
#: packages; mattersim, mace, orb and uma download theirs at first use (uma after its licence has been accepted at
#: Hugging Face). mace cannot be installed beside sevennet, mattersim and uma.
CALCULATORS: dict[str, NamedCalculator] = {
    "gfn2": NamedCalculator(partial(_tblite, "GFN2-xTB"), "tblite", "xtb", frozenset(range(1, 87)), charged=True),
    "gfn1": NamedCalculator(partial(_tblite, "GFN1-xTB"), "tblite", "xtb", frozenset(range(1, 87)), charged=True),
    "emt": NamedCalculator(_emt, elements=frozenset(atomic_numbers[symbol] for symbol in emt_parameters)),
    "lj": NamedCalculator(_lennard_jones),
    "tersoff": NamedCalculator(_tersoff, "matscipy", elements=frozenset({6, 14})),
    "sw": NamedCalculator(_stillinger_weber, "matscipy", elements=frozenset({14})),
    "chgnet": NamedCalculator(_chgnet, "chgnet", "chgnet", _MATERIALS_PROJECT, model=True),
    "sevennet": NamedCalculator(_sevennet, "sevenn", "sevennet", _MATERIALS_PROJECT, model=True),
    "mattersim": NamedCalculator(_mattersim, "mattersim", "mattersim", model=True),
    "mace": NamedCalculator(_mace, "mace", "mace", _MATERIALS_PROJECT, model=True),
    "orb": NamedCalculator(_orb, "orb_models", "orb", model=True),
    "uma": NamedCalculator(_uma, "fairchem.core", "uma", model=True),
}


def calculator_factory(name: str, charge: int = 0, multiplicity: int = 1) -> CalculatorFactory:
    """A function that makes a new calculator at every call.

    Where the calculator has a model, this is loaded at the first call in a process, and all calculators share it.

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
        Where there is no such calculator, or its package is not installed; from the function, where its model cannot
        be loaded.
    """
    if ":" in name:
        return _own_factory(name)
    if name not in CALCULATORS:
        raise InputError(f"No calculator {name!r}: give one of {', '.join(CALCULATORS)} or module:factory.")
    named = CALCULATORS[name]
    if charge and not named.charged:
        raise InputError(f"The calculator {name!r} knows of no charge.")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            importlib.import_module(named.module)
    except ImportError as error:
        raise InputError(
            f"The calculator {name!r} needs {named.module}: pip install 'ase-gss[{named.extra}]'."
        ) from error
    if named.model:
        return partial(_with_shared_model, name)
    return partial(named.make, charge=charge, multiplicity=multiplicity) if named.charged else named.make


def takes_charge(calculator: Any) -> bool:
    """Whether this calculator, as `calculator_source` takes it, is told a charge and a multiplicity."""
    return isinstance(calculator, str) and calculator in CALCULATORS and CALCULATORS[calculator].charged


def known_elements(name: str) -> frozenset[int] | None:
    """Atomic numbers that the calculator of this name knows, or None where only the calculator can tell."""
    return CALCULATORS[name].elements if name in CALCULATORS else None


def check_elements(calculator: Any, numbers: Iterable[int]) -> None:
    """Refuse elements that a calculator given by name does not know.

    Parameters
    ----------
    calculator : str or any
        As `calculator_source` takes it; what is not a name passes.
    numbers : iterable of int
        Atomic numbers.

    Raises
    ------
    InputError
        Naming them, and the calculators that know them all.
    """
    numbers = {int(number) for number in numbers}
    known = known_elements(calculator) if isinstance(calculator, str) else None
    if known is None or numbers <= known:
        return
    unknown = ", ".join(chemical_symbols[number] for number in sorted(numbers - known))
    others = ", ".join(name for name, each in CALCULATORS.items() if each.elements and numbers <= each.elements)
    instead = f"take one of {others}" if others else "take a calculator of your own"
    raise InputError(f"The calculator {calculator!r} does not know {unknown}: {instead}.")


@cache
def _loaded(name: str) -> Calculator:
    try:
        # Some of them greet, and warn of accelerators that are not installed.
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return CALCULATORS[name].make()
    except Exception as error:  # a broken installation, no network, no licence: each package has its own
        raise InputError(f"The model of {name!r} cannot be loaded, look at its package: {said(error)}.") from error


def said(error: Exception) -> str:
    """What another package has raised, in one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split()).rstrip('.') or 'no message'}"


def _with_shared_model(name: str) -> Calculator:
    calculator = copy(_loaded(name))
    forget(calculator)
    return calculator


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
