"""The calculators of a search's trials: made, told from others, kept apart from those of other workers."""

import contextlib
import json
import os
import socket
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ase.calculators.calculator import Calculator

from ase_gss.calculators import calculator_factory, said
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
            self._take(self._made_by_factory())
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
        with contextlib.suppress(InputError):  # none to be had: the one that fails says what is wrong
            another = self._made_by_factory()
            if another is not self._made:
                _close(self._made)
                self._take(another)

    def _take(self, calculator: Calculator) -> None:
        self._made = calculator
        if self._is_copy:
            _give_own_folder(calculator)

    def _made_by_factory(self) -> Calculator:
        try:
            made = self._factory()
        except InputError:
            raise
        except Exception as error:  # a licence, a path: each package has its own
            raise InputError(f"The calculator cannot be made: {said(error)}.") from error
        if not hasattr(made, "get_property"):
            raise InputError("The calculator must be a name, an ASE calculator, or a function that makes one.")
        return made

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
