"""Physical forces: the one place where a calculator is called, counted, and where its failures are caught."""

from collections.abc import Callable, Sequence
from contextlib import suppress
from copy import deepcopy
from functools import partial
from typing import Any

import numpy as np
from ase import Atoms
from ase.calculators.calculator import Calculator, all_changes
from ase.stress import full_3x3_to_voigt_6_stress

from ase_gss.errors import InputError

CalculatorFactory = Callable[[], Calculator]


class CalculatorFailure(RuntimeError):
    """A physical calculator raised or returned numbers that are not finite; the message says which."""


class CountedCalculator(Calculator):
    """Another calculator, its force calls counted and its failures turned into `CalculatorFailure`.

    Energy, forces and stress that the calculator computes on the way are kept, so that energy and forces of one
    structure are one force call; the stress, too, where it is asked for first.

    Parameters
    ----------
    calculator : ase calculator
        The physical calculator.
    on_failure : callable, optional
        Called after each failure.

    Attributes
    ----------
    calls : int
        Force calls so far, failed ones included.
    visited : list, optional
        Where it is a list, positions and forces (N, 3) of every call that has not failed are appended.
    """

    def __init__(self, calculator: Calculator, on_failure: Callable[[], None] | None = None) -> None:
        super().__init__()
        self.calculator, self.on_failure = calculator, on_failure
        self.implemented_properties = list(calculator.implemented_properties)
        self.calls = 0
        self.visited: list[tuple[np.ndarray, np.ndarray]] | None = None

    def calculate(self, atoms: Atoms | None = None, properties=None, system_changes=all_changes) -> None:
        """Energy and forces, and whatever else `properties` asks for."""
        super().calculate(atoms, properties, system_changes)
        self.calls += 1
        wanted = dict.fromkeys(["energy", "forces", *(properties or [])])
        try:
            results = _read(self._answer(list(wanted)), wanted, len(self.atoms))
        except Exception as error:  # whatever a foreign code raises ends one calculation, not the search
            self._after_failure()
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
            self._after_failure()
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

    def _after_failure(self) -> None:
        forget(self.calculator)
        if self.on_failure is not None:
            self.on_failure()

    def _answer(self, wanted: list[str]) -> dict[str, Any]:
        """The properties `wanted`, and whatever else is known, of `atoms`."""
        # The dearest first: those that compute only what they are asked for bring the energy with it.
        results = {name: self.calculator.get_property(name, self.atoms) for name in reversed(wanted)}
        return {**self.calculator.results, **results}


def _read(answer: dict[str, Any], wanted: dict[str, None], n_atoms: int) -> dict[str, Any]:
    """What a calculator has answered, as numbers, and copied: it may use its arrays again for the next structure."""
    read = {"energy": _number, "free_energy": _number, "forces": partial(_vectors, n_atoms=n_atoms), "stress": _voigt}
    results: dict[str, Any] = {}
    for name in dict.fromkeys([*wanted, *read]):
        if answer.get(name) is None:
            continue
        try:
            results[name] = read.get(name, deepcopy)(answer[name])
        except (TypeError, ValueError):
            if name in wanted:
                raise
    if "free_energy" in wanted and "energy" in results:  # which some that list it do not give
        results.setdefault("free_energy", results["energy"])
    if missing := [name for name in wanted if name not in results]:
        raise ValueError(f"the calculator gives no {missing[0]}")
    return results


def _number(value: Any) -> float:
    """An energy, which may come as an array of one."""
    return float(np.asarray(value, dtype=float).item())


def _vectors(value: Any, n_atoms: int) -> np.ndarray:
    """Forces (N, 3), which may come as a list or flat; another shape might be anything."""
    forces = np.array(value, dtype=float)
    if forces.shape not in ((n_atoms, 3), (3 * n_atoms,)):
        raise ValueError(f"forces of the shape {forces.shape} for {n_atoms} atoms")
    return forces.reshape(n_atoms, 3)


def _voigt(value: Any) -> np.ndarray:
    """A stress (6,), which may come as a matrix."""
    stress = np.array(value, dtype=float)
    return full_3x3_to_voigt_6_stress(stress.reshape(3, 3)) if stress.size == 9 else stress.reshape(6)


def forget(calculator: Any) -> None:
    """Let a calculator, and those that it is made of, forget what it has computed last."""
    for each in whole_of(calculator):
        if hasattr(each, "reset"):
            each.reset()
        else:  # as those of ASE that read the files of a program; GPAW's has nothing that could be set
            for name, nothing in (("atoms", None), ("results", {})):
                with suppress(AttributeError):
                    setattr(each, name, nothing)


def parts_of(calculator: Any) -> list[Any]:
    """The calculators that this one holds, as a sum, a correction or a wrapper does; of any other none."""
    values = [*getattr(calculator, "__dict__", {}).values(), getattr(getattr(calculator, "mixer", None), "calcs", None)]
    held = [each for value in values for each in (value if isinstance(value, list | tuple) else [value])]
    return [each for each in held if hasattr(each, "get_property") and not isinstance(each, type)]


def whole_of(calculator: Any) -> list[Any]:
    """A calculator, its parts, and theirs."""
    whole = [calculator]
    for each in whole:  # which grows on the way
        for part in parts_of(each):
            if not any(part is other for other in whole):
                whole.append(part)
    return whole


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
