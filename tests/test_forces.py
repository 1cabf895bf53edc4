"""Counting and failing."""

import numpy as np
import pytest
from ase import Atoms
from ase.calculators.lj import LennardJones
from conftest import Harmonic

from ase_gss.forces import CalculatorFailure, CountedCalculator, energy_and_forces


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


def test_not_finite_is_a_failure():
    atoms = Atoms("Ar2", positions=[[0, 0, 0], [0, 0, 0]])
    counted = CountedCalculator(LennardJones())
    with pytest.raises(CalculatorFailure, match="not finite"), np.errstate(all="ignore"):
        energy_and_forces(atoms, atoms.positions, counted)
