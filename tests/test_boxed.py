"""Molecules in a box, for calculators that need a cell."""

import numpy as np
import pytest
from ase.build import molecule
from ase.calculators.emt import EMT
from conftest import Harmonic
from faulty import Program

from ase_gss import GenerativeRSS, InputError
from ase_gss.boxed import BoxedCalculator
from ase_gss.calculator_source import CalculatorSource
from ase_gss.forces import CalculatorFailure, CountedCalculator, energy_and_forces


class NeedsACell(EMT):
    """EMT that looks at what it is given."""

    def calculate(self, atoms=None, *arguments, **keywords):
        self.seen = atoms.copy()
        assert atoms.cell.rank == 3
        super().calculate(atoms, *arguments, **keywords)


def test_the_molecule_is_in_the_middle_and_energy_and_forces_are_its_own():
    free, boxed = molecule("CH3CH2OH"), molecule("CH3CH2OH")
    boxed.positions += 100.0
    free.calc, inner = EMT(), NeedsACell()
    boxed.calc = BoxedCalculator(inner, cell=(12.0, 13.0, 14.0))
    assert boxed.get_potential_energy() == pytest.approx(free.get_potential_energy())
    np.testing.assert_allclose(boxed.get_forces(), free.get_forces(), atol=1e-9)
    assert boxed.cell.rank == 0
    np.testing.assert_array_equal(inner.seen.cell.lengths(), [12.0, 13.0, 14.0])
    assert inner.seen.pbc.all()
    assert not inner.seen.has("initial_magmoms")
    middle = (inner.seen.positions.min(axis=0) + inner.seen.positions.max(axis=0)) / 2
    np.testing.assert_allclose(middle, [6.0, 6.5, 7.0])


def test_a_force_call_runs_a_program_once():
    class OnlyWhatIsAsked(EMT):
        runs = 0

        def calculate(self, atoms=None, properties=("energy",), system_changes=()):
            OnlyWhatIsAsked.runs += 1
            super().calculate(atoms, properties, system_changes)
            if "forces" not in properties:
                del self.results["forces"]

    atoms = molecule("H2O")
    atoms.calc = CountedCalculator(BoxedCalculator(OnlyWhatIsAsked(), 12.0))
    atoms.get_potential_energy()
    atoms.get_forces()
    assert OnlyWhatIsAsked.runs == atoms.calc.calls == 1


def test_a_radical_has_its_moment_and_walls_do_not_repeat():
    atoms, inner = molecule("CH3"), NeedsACell()
    atoms.calc = BoxedCalculator(inner, 10.0, pbc=False, moment=1.0)
    atoms.get_forces()
    assert inner.seen.get_initial_magnetic_moments().sum() == pytest.approx(1.0)
    assert not inner.seen.pbc.any()


def test_too_large_a_molecule_costs_its_trial_and_no_call():
    atoms, inner = molecule("trans-butane"), Harmonic(molecule("trans-butane").positions)
    calculator = CountedCalculator(BoxedCalculator(inner, 9.0))
    with pytest.raises(CalculatorFailure, match=r"A molecule of \d\.\d Å leaves less than 6.0 Å of the box"):
        energy_and_forces(atoms, atoms.positions, calculator)
    with pytest.raises(InputError, match="larger than the gap"):
        BoxedCalculator(inner, 5.0)
    with pytest.raises(InputError, match="one length or by three"):
        BoxedCalculator(inner, 10 * np.eye(3))


def test_a_search_in_a_box_is_the_same_search():
    plain = GenerativeRSS("C2H2", "emt", coupling="rss", seed=1)
    boxed = GenerativeRSS("C2H2", BoxedCalculator(EMT(), 40.0), coupling="rss", seed=1)
    for search in (plain, boxed):
        search.run(trials=3)
    for one, other in zip(plain.archive.records, boxed.archive.records, strict=True):
        assert (one.ended, one.force_calls) == (other.ended, other.force_calls)
    stated = CalculatorSource(BoxedCalculator(Program(), 20.0)).parameters
    assert (stated["class"], stated["cell"]) == ("BoxedCalculator", [20.0] * 3)
    assert stated["parts"][0]["name"] == "Program"
