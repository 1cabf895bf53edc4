"""Physical calculators by name."""

import contextlib
import importlib
import io
import json
import os
import socket
import sys
import threading
import warnings
from collections.abc import Callable, Iterable, Mapping
from copy import copy
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

from ase.calculators.calculator import Calculator
from ase.calculators.emt import parameters as emt_parameters
from ase.data import atomic_numbers, chemical_symbols

from ase_gss.errors import InputError
from ase_gss.forces import CalculatorFactory, CountedCalculator, forget, parts_of, whole_of

#: Where, how loudly and with how much a calculator works is no part of the potential; some are written on the way.
_NO_PARAMETERS = frozenset(
    "atoms boundary cache_api chk command directory files keep_alive keep_tmp_files kpar label masses mem memory ncore "
    "npar nprocs nprocshared num_threads parallel prefix profile specorder threads tmp_dir trajectory_out txt verbose "
    "verbosity".split()
)
#: What ASE's calculators have that start a program, some of these each.
_OF_PROGRAMS = ("write_input", "template", "command", "prepare_input_files")
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
        raise InputError(f"The model of {name!r} cannot be loaded, look at its package: {_said(error)}.") from error


def _said(error: Exception) -> str:
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


class CalculatorSource:
    """Makes counted calculators that remember no other trial.

    A calculator that was not given by its own name is made once in a process and reset for each trial. A copy that went
    through pickle carries what is needed to make one, never the one that was made: it makes its own. As others work
    beside it, one that writes the input of a program then does so in a folder of its own, inside the one that it was
    given.

    Parameters
    ----------
    calculator : str, function or ase calculator
        As `GenerativeRSS` takes it. Only the last is itself what is used, and pickled.
    charge, multiplicity : int
        For calculators by name.

    Raises
    ------
    InputError
        Where there is no such calculator, or its model cannot be loaded.
    """

    def __init__(self, calculator: Any, charge: int = 0, multiplicity: int = 1) -> None:
        self.calculator, self.charge, self.multiplicity = calculator, charge, multiplicity
        self._factory: CalculatorFactory | None = None
        self._made: Calculator | None = None
        self._failed = self._is_copy = False
        self._failed_in_a_row = 0

    def __getstate__(self) -> dict[str, Any]:
        """Without what lives in this process only."""
        return self.__dict__ | {
            "_factory": None,
            "_made": None,
            "_failed": False,
            "_failed_in_a_row": 0,
            "_is_copy": True,
        }

    def __call__(self) -> CountedCalculator:
        """One for a trial."""
        if self._factory is None:
            self._factory = self._resolved()
        if self.named:
            return CountedCalculator(self._factory())
        self._failed_in_a_row = self._failed_in_a_row + 1 if self._failed else 0
        self._failed = False
        if self._failed_in_a_row > 1 and self._made is not self.calculator:
            self._make_anew()
        if self._made is None:
            self._made = self._made_by_factory()
            if not hasattr(self._made, "get_property"):
                raise InputError("The calculator must be a name, an ASE calculator, or a function that makes one.")
            if self._is_copy:
                _give_own_folder(self._made)
        forget(self._made)
        return CountedCalculator(self._made, self._has_failed)

    def _has_failed(self) -> None:
        self._failed = True

    @property
    def parameters(self) -> dict[str, Any]:
        """What tells a calculator that was not given by its own name from others of its class, as far as it says so."""
        if self.named:
            return {}
        return stated_by(self().calculator)

    def _make_anew(self) -> None:
        """Another one instead of one that fails: its program may have gone for good with a structure it failed at."""
        self._failed_in_a_row = 0
        with contextlib.suppress(Exception):  # whatever keeps it from being made: the one that fails says what is wrong
            another = self._factory()
            if another is not self._made and hasattr(another, "get_property"):
                _close(self._made)
                self._made = another
                if self._is_copy:
                    _give_own_folder(another)

    def _made_by_factory(self) -> Calculator:
        try:
            return self._factory()
        except InputError:
            raise
        except Exception as error:  # a licence, a path: each package has its own
            raise InputError(f"The calculator cannot be made: {_said(error)}.") from error

    @property
    def named(self) -> bool:
        """It is one of `CALCULATORS`, of which every trial gets its own."""
        return isinstance(self.calculator, str) and ":" not in self.calculator

    def _resolved(self) -> CalculatorFactory:
        if isinstance(self.calculator, str):
            return calculator_factory(self.calculator, self.charge, self.multiplicity)
        if isinstance(self.calculator, Calculator) or not callable(self.calculator):
            return lambda: self.calculator
        return self.calculator


def calculator_source(calculator: Any, charge: int, multiplicity: int) -> tuple[CalculatorSource, str]:
    """What makes a counted calculator that remembers no other trial, and the calculator's name."""
    source = CalculatorSource(calculator, charge, multiplicity)
    if charge and not source.named:
        raise InputError("A charge is for calculators given by name: set it in your own calculator.")
    first = source()  # a model that cannot be loaded is reported now
    return source, calculator if isinstance(calculator, str) else first.calculator.name


def stated_by(calculator: Any) -> dict[str, Any]:
    """What tells this calculator from others: its class, its parameters, and those of its parts."""
    return {**_stated(calculator, ()), "class": type(calculator).__name__}


def _stated(calculator: Any, owners: tuple[Any, ...]) -> dict[str, Any]:
    """The parameters of a calculator, and of the parts of one that holds others, with the weights of a mixture."""
    parameters = getattr(calculator, "parameters", None)
    if not isinstance(parameters, Mapping):
        with contextlib.suppress(Exception):  # GPAW's are of a kind of its own
            parameters = parameters.todict()
    stated = _plain(dict(parameters) if isinstance(parameters, Mapping) else {})
    owners = (*owners, calculator)
    if parts := [each for each in parts_of(calculator) if not any(each is owner for owner in owners)]:
        stated["parts"] = [{"name": type(each).__name__, **_stated(each, owners)} for each in parts]
        weights = getattr(getattr(calculator, "mixer", None), "weights", ())
        stated |= _plain({"weights": [float(each) for each in weights]})
    return stated


def _give_own_folder(calculator: Any) -> None:
    """Let a calculator whose program reads and writes files, and all that it is made of, do so where no other does.

    Programs that work in one folder at a time overwrite one another's files, and their results are mistaken for those
    of other structures.
    """
    worker = f"worker-{socket.gethostname()}-{threading.get_native_id()}"
    for each in whole_of(calculator):
        if not any(hasattr(each, name) for name in _OF_PROGRAMS):
            continue
        for name in ("directory", "_directory"):
            if isinstance(place := getattr(each, name, None), str | os.PathLike):
                with contextlib.suppress(AttributeError):
                    setattr(each, name, type(place)(Path(place) / worker))
                break


def _close(calculator: Any) -> None:
    """End the programs that a calculator, or one that it is made of, keeps running."""
    for each in whole_of(calculator):
        with contextlib.suppress(Exception):  # the program may have ended already
            getattr(each, "close", lambda: None)()


def _plain(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Those of the parameters that are numbers, words, or lists and tables of them, as JSON gives them back."""
    kept = {}
    for key, value in parameters.items():
        if value is None or str(key).lower() in _NO_PARAMETERS or (isinstance(value, str) and os.path.isabs(value)):
            continue
        with contextlib.suppress(TypeError, ValueError):  # not JSON
            kept[str(key)] = json.loads(json.dumps(value))
    return kept
