"""Counting and failing."""

import threading

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from ase.calculators.emt import EMT
from ase.calculators.lj import LennardJones
from ase.calculators.mixing import SumCalculator
from conftest import Harmonic

from ase_gss.errors import InputError
from ase_gss.forces import (
    CalculatorFailure,
    CountedCalculator,
    energy_and_forces,
    energy_forces_and_stress,
    forget,
    whole_of,
)
from ase_gss.relax import hand_off


def test_energy_and_forces_of_one_structure_are_one_call(water):
    inner = Harmonic(water.positions)
    water.calc = counted = CountedCalculator(inner)
    water.rattle(0.1, seed=0)
    for _ in range(3):
        water.get_forces()
        water.get_potential_energy()
    assert counted.calls == inner.calls == 1
    water.positions += 0.1
    water.get_potential_energy()
    assert counted.calls == inner.calls == 2


def test_atoms_are_not_touched(water):
    before = water.positions.copy()
    counted = CountedCalculator(Harmonic(before))
    energy, forces = energy_and_forces(water, before + 0.1, counted)
    assert energy == pytest.approx(0.5 * 9 * 0.01)
    np.testing.assert_allclose(forces, -0.1)
    np.testing.assert_array_equal(water.positions, before)
    assert water.calc is None
    assert counted.calls == 1


def test_what_a_calculator_raises_is_one_reason(water):
    class Broken(LennardJones):
        def calculate(self, *args, **kwargs):
            raise OSError("disk\n  full")

    counted = CountedCalculator(Broken())
    with pytest.raises(CalculatorFailure, match="OSError: disk full"):
        energy_and_forces(water, water.positions, counted)
    assert counted.calls == 1


class Odd(LennardJones):
    """Answers in a manner of its own."""

    def __init__(self, change):
        super().__init__()
        self.change = change

    def calculate(self, *args, **kwargs):
        super().calculate(*args, **kwargs)
        self.results |= self.change(self.results)


@pytest.mark.parametrize(
    "change",
    [
        lambda results: {"energy": np.array([results["energy"]])},
        lambda results: {"energy": np.float32(results["energy"])},
        lambda results: {"forces": results["forces"].tolist()},
        lambda results: {"stress": None, "free_energy": None},
        lambda results: {"log": threading.Lock(), "stress": "unknown"},
        lambda results: {"forces": results["forces"].ravel()},
    ],
)
def test_answers_are_taken_in_any_manner(water, change):
    expected = energy_and_forces(water, water.positions, CountedCalculator(LennardJones()))
    failures = []
    counted = CountedCalculator(Odd(change), on_failure=lambda: failures.append(1))
    energy, forces = energy_and_forces(water, water.positions, counted)
    assert isinstance(energy, float)
    assert energy == pytest.approx(expected[0], rel=1e-6)
    np.testing.assert_allclose(forces, expected[1])
    assert (counted.calls, failures) == (1, [])
    water.calc = counted
    assert hand_off(water, max_steps=3).failed is False


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda results: {"forces": None}, "gives no forces"),
        (lambda results: {"energy": "low"}, "ValueError"),
        (lambda results: {"forces": results["forces"][:2]}, r"forces of the shape \(2, 3\) for 3 atoms"),
        (lambda results: {"forces": results["forces"].reshape(1, 3, 3)}, "forces of the shape"),
    ],
)
def test_an_answer_that_makes_no_sense_is_a_failure(water, change, reason):
    failures = []
    counted = CountedCalculator(Odd(change), on_failure=lambda: failures.append(1))
    with pytest.raises(CalculatorFailure, match=reason):
        energy_and_forces(water, water.positions, counted)
    assert (counted.calls, failures) == (1, [1])


def test_the_parts_of_a_calculator_are_found_whatever_they_are_called():
    inner, other = LennardJones(), EMT()
    outer = Odd(None)
    outer.base, outer.more = SumCalculator([inner, other]), [outer]
    assert whole_of(outer)[0] is outer
    assert {id(each) for each in whole_of(outer)} == {id(each) for each in (outer, outer.base, inner, other)}
    inner.results = {"energy": 1.0}
    forget(outer)
    assert inner.results == {}


def test_a_calculator_in_which_nothing_can_be_set_is_left_as_it_is():
    class Closed:
        atoms, results = property(lambda self: None), property(lambda self: {"energy": 1.0})

    forget(Closed())


def test_not_finite_is_a_failure():
    atoms = Atoms("Ar2", positions=[[0, 0, 0], [0, 0, 0]])
    counted = CountedCalculator(LennardJones())
    with pytest.raises(CalculatorFailure, match="not finite"), np.errstate(all="ignore"):
        energy_and_forces(atoms, atoms.positions, counted)


def strained_copper():
    atoms = bulk("Cu", cubic=True)
    atoms.rattle(0.1, seed=0)
    return atoms


def test_energy_forces_and_stress_of_a_crystal_are_one_call():
    atoms = strained_copper()
    positions, cell = 1.1 * atoms.positions, 1.1 * atoms.cell.array
    before = atoms.copy()
    counted = CountedCalculator(EMT())
    energy, forces, stress = energy_forces_and_stress(atoms, positions, cell, counted)
    assert counted.calls == 1
    assert atoms == before
    reference = Atoms(atoms.numbers, positions, cell=cell, pbc=True, calculator=EMT())
    assert energy == pytest.approx(reference.get_potential_energy())
    np.testing.assert_allclose(forces, reference.get_forces())
    np.testing.assert_allclose(stress, reference.get_stress(voigt=False))
    assert np.trace(stress) > 0, "a stretched crystal pulls"


def test_stress_that_is_not_finite_is_a_failure_where_it_is_asked_for():
    class NoStress(EMT):
        def calculate(self, *args, **kwargs):
            super().calculate(*args, **kwargs)
            self.results["stress"] = np.full(6, np.nan)

    atoms = strained_copper()
    counted = CountedCalculator(NoStress())
    with pytest.raises(CalculatorFailure, match="a stress that is not finite"):
        energy_forces_and_stress(atoms, atoms.positions, atoms.cell.array, counted)
    assert np.isfinite(energy_and_forces(atoms, atoms.positions, counted)[0])


def test_calculator_without_stress_is_told_in_one_sentence(water):
    with pytest.raises(InputError, match="Harmonic gives no stress"):
        energy_forces_and_stress(water, water.positions, np.eye(3), CountedCalculator(Harmonic(water.positions)))
