"""Physical forces: the one place where a calculator is called, counted, and where its failures are caught."""

from collections.abc import Callable, Sequence
from copy import deepcopy
from typing import Any

import numpy as np
from ase import Atoms
from ase.calculators.calculator import Calculator, all_changes

from ase_gss.errors import InputError

CalculatorFactory = Callable[[], Calculator]


class CalculatorFailure(RuntimeError):
    """A physical calculator raised or returned numbers that are not finite; the message says which."""


class CountedCalculator(Calculator):
    """Another calculator, its force calls counted and its failures turned into `CalculatorFailure`.

    Every property that the calculator computes on the way is kept, so that energy and forces of one structure are
    one force call; the stress, too, where it is asked for first.

    Parameters
    ----------
    calculator : ase calculator
        The physical calculator.

    Attributes
    ----------
    calls : int
        Force calls so far, failed ones included.
    visited : list, optional
        Where it is a list, positions and forces (N, 3) of every call that has not failed are appended.
    """

    def __init__(self, calculator: Calculator) -> None:
        super().__init__()
        self.calculator = calculator
        self.implemented_properties = list(calculator.implemented_properties)
        self.calls = 0
        self.visited: list[tuple[np.ndarray, np.ndarray]] | None = None

    def calculate(self, atoms: Atoms | None = None, properties=None, system_changes=all_changes) -> None:
        """Energy and forces, and whatever else `properties` asks for."""
        super().calculate(atoms, properties, system_changes)
        self.calls += 1
        wanted = dict.fromkeys(["energy", "forces", *(properties or [])])
        try:
            # Copies: a calculator may use its arrays again for the next structure.
            results = deepcopy(self._answer(list(wanted)))
        except Exception as error:  # whatever a foreign code raises ends one calculation, not the search
            forget(self.calculator)
            reason = " ".join(str(error).split()) or "no message"
            raise CalculatorFailure(f"{type(error).__name__}: {reason}") from error
        for name, words in (
            ("energy", "an energy that is"),
            ("forces", "forces that are"),
            ("stress", "a stress that is"),
        ):
            if name not in results or np.all(np.isfinite(results[name])):
                continue
            if name not in wanted:  # a stress that nobody may ever ask for
                del results[name]
                continue
            forget(self.calculator)
            raise CalculatorFailure(f"the calculator returned {words} not finite")
        self.results = results
        if self.visited is not None:
            self.visited.append((self.atoms.positions.copy(), results["forces"]))

    def calculate_batch(
        self, structures: Sequence[Atoms], stress: bool, callers: Sequence[int], again: bool = False
    ) -> list[dict[str, Any]]:
        """Results of many structures in one call, which is not counted here: each is a force call of its trial.

        Parameters
        ----------
        structures, stress : sequence of Atoms, bool
            As for `ase_gss.batch.BatchCalculator`.
        callers : sequence of int
            Whose structures these are, by their places in the job.
        again : bool
            They were in a batch before, which has failed.
        """
        return self.calculator.calculate_batch(structures, stress)

    def _answer(self, wanted: list[str]) -> dict[str, Any]:
        """The properties `wanted`, and whatever else is known, of `atoms`."""
        # The dearest first: those that compute only what they are asked for bring the energy with it.
        results = {name: self.calculator.get_property(name, self.atoms) for name in reversed(wanted)}
        return {**self.calculator.results, **results}


def forget(calculator: Any) -> None:
    """Let a calculator forget what it has computed last; ASE's that read the files of a program have no `reset`."""
    if hasattr(calculator, "reset"):
        calculator.reset()
    else:
        calculator.atoms, calculator.results = None, {}
    for each in parts_of(calculator):
        forget(each)


def parts_of(calculator: Any) -> list[Any]:
    """The calculators that a sum of ASE's is made of, or that another one holds as `calculator`; of any other none."""
    if mixed := getattr(getattr(calculator, "mixer", None), "calcs", ()):
        return list(mixed)
    inner = getattr(calculator, "calculator", None)
    return [inner] if hasattr(inner, "get_property") else []


def energy_and_forces(atoms: Atoms, positions: np.ndarray, calculator: CountedCalculator) -> tuple[float, np.ndarray]:
    """Energy (eV) and forces (N, 3) in eV/Å at the given positions (N, 3) in Å; the atoms are not touched.

    Raises
    ------
    CalculatorFailure
        Where the calculator fails.
    """
    copy = atoms.copy()
    copy.set_constraint()
    copy.positions = positions
    copy.calc = calculator
    return float(copy.get_potential_energy()), copy.get_forces()


def energy_forces_and_stress(
    atoms: Atoms, positions: np.ndarray, cell: np.ndarray, calculator: CountedCalculator
) -> tuple[float, np.ndarray, np.ndarray]:
    """Energy, forces and stress of a crystal at the given positions in the given cell, in one force call.

    Parameters
    ----------
    atoms : Atoms
        The crystal; it is not touched.
    positions : ndarray, shape (N, 3)
        Å.
    cell : ndarray, shape (3, 3)
        Lattice vectors as rows, Å.
    calculator : CountedCalculator
        One that gives the stress, see `check_stress`.

    Returns
    -------
    energy : float
        eV.
    forces : ndarray, shape (N, 3)
        eV/Å.
    stress : ndarray, shape (3, 3)
        eV/Å3, negative under compression: the derivative of the energy by the strain, over the volume.

    Raises
    ------
    CalculatorFailure
        Where the calculator fails.
    InputError
        For a calculator that gives no stress.
    """
    check_stress(calculator)
    copy = atoms.copy()
    copy.set_constraint()
    copy.set_cell(cell)
    copy.positions = positions
    copy.calc = calculator
    stress = copy.get_stress(voigt=False)  # first: it brings energy and forces with it, but they bring no stress
    return float(copy.get_potential_energy()), copy.get_forces(), stress


def check_stress(calculator: Calculator) -> None:
    """Raise `InputError` for a calculator that gives no stress."""
    if "stress" not in calculator.implemented_properties:
        name = type(getattr(calculator, "calculator", calculator)).__name__
        raise InputError(
            f"The calculator {name} gives no stress, so no cell can move: use one that does, or fix the cell."
        )
