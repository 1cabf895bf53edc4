"""The hand-off of crystals: cell and atoms together, under pressure, and what ends it."""

import numpy as np
import pytest
from ase.build import bulk, molecule
from ase.calculators.calculator import Calculator, all_changes
from ase.calculators.emt import EMT
from ase.calculators.mixing import SumCalculator
from ase.constraints import FixAtoms, FixSymmetry
from ase.filters import FrechetCellFilter, StrainFilter, UnitCellFilter
from ase.io import read
from ase.optimize.precon import Exp, PreconLBFGS
from ase.units import GPa
from conftest import Harmonic

from ase_gss.cell import cell_out_of_bounds
from ase_gss.errors import InputError
from ase_gss.forces import CountedCalculator
from ase_gss.model_bfgs import ModelBFGS
from ase_gss.model_hessian import filter_derivatives, model_hessian
from ase_gss.relax import hand_off

OPTIMIZERS = ["ModelBFGS", "FIRE", "BFGS", "LBFGS", "BFGSLineSearch", PreconLBFGS]
TOLERANCE = 0.1 * GPa


class Swelling(Calculator):
    """Pressure (eV/Å3) and nothing else; from call `bad_from` on a stress that is not a number."""

    implemented_properties = ["energy", "forces", "stress"]

    def __init__(self, pressure=0.0, bad_from=np.inf):
        super().__init__()
        self.pressure, self.bad_from, self.calls = pressure, bad_from, 0

    def calculate(self, atoms=None, properties=None, system_changes=all_changes):
        super().calculate(atoms, properties, system_changes)
        self.calls += 1
        stress = -self.pressure * np.array([1.0, 1, 1, 0, 0, 0])
        self.results = {
            "energy": -self.pressure * self.atoms.get_volume(),
            "forces": np.zeros((len(self.atoms), 3)),
            "stress": stress * (np.nan if self.calls >= self.bad_from else 1),
        }


def alloy(strain=0.05, rattle=0.1, seed=0, calculator=None):
    """Cu3Au, four atoms, strained and rattled."""
    rng = np.random.default_rng(seed)
    atoms = bulk("Cu", cubic=True, a=3.75)
    atoms.symbols[0] = "Au"
    shape = rng.normal(size=(3, 3))
    atoms.set_cell(atoms.cell.array @ (np.eye(3) + strain * (shape + shape.T) / 4), scale_atoms=True)
    atoms.positions += rng.normal(scale=rattle, size=(4, 3))
    atoms.calc = CountedCalculator(calculator or EMT())
    return atoms


def tersoff():
    from matscipy.calculators.manybody import Manybody
    from matscipy.calculators.manybody.explicit_forms import TersoffBrenner
    from matscipy.calculators.manybody.explicit_forms.tersoff_brenner import Tersoff_PRB_39_5566_Si_C

    return Manybody(**TersoffBrenner(Tersoff_PRB_39_5566_Si_C))


def excess(outcome, pressure):
    return np.max(np.abs(outcome.stress + pressure * np.array([1, 1, 1, 0, 0, 0])))


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("pressure", [0.0, 10 * GPa])
def test_relaxed_means_small_forces_and_the_stress_of_the_pressure(optimizer, pressure):
    atoms = alloy()
    keywords = {"precon": Exp(A=3)} if optimizer is PreconLBFGS else {}
    outcome = hand_off(atoms, optimizer, pressure=pressure, **keywords)
    assert outcome.converged, outcome.reason
    assert outcome.reason == ""
    assert outcome.fmax == pytest.approx(np.linalg.norm(outcome.forces, axis=1).max())
    assert outcome.fmax < 0.05
    assert excess(outcome, pressure) < TOLERANCE
    assert outcome.enthalpy == pytest.approx(outcome.energy + pressure * atoms.get_volume())
    fresh = atoms.copy()
    fresh.calc = EMT()
    np.testing.assert_allclose(fresh.get_stress(), outcome.stress, atol=1e-10)
    np.testing.assert_allclose(fresh.get_forces(), outcome.forces, atol=1e-10)
    np.testing.assert_array_equal(outcome.frozen(atoms).get_stress(), outcome.stress)


def test_it_stops_where_the_criterion_holds_first():
    checked = []

    def look(atoms):
        small = np.linalg.norm(atoms.get_forces(), axis=1).max() < 0.05
        checked.append(small and np.abs(atoms.get_stress()).max() < TOLERANCE)

    outcome = hand_off(alloy(), "FIRE", pressure=0.0, give_up=look, give_up_interval=1)
    assert outcome.converged
    assert checked == [False] * outcome.steps + [True]  # at the beginning, too


@pytest.mark.filterwarnings("ignore:.where. used without")  # matscipy, when a bond order is zero
def test_pressure_makes_the_cell_smaller():
    volumes = []
    for pressure in (0.0, 20 * GPa):
        atoms = bulk("C", cubic=True)
        atoms.calc = tersoff()
        outcome = hand_off(atoms, pressure=pressure, stress_tolerance=0.01 * GPa)
        assert outcome.converged
        assert excess(outcome, pressure) < 0.01 * GPa
        volumes.append(atoms.get_volume())
    assert volumes[1] / volumes[0] == pytest.approx(1 - 20 / 426, abs=0.01)  # the potential's bulk modulus: 426 GPa


@pytest.mark.parametrize("make", [EMT, lambda: SumCalculator([EMT(), Swelling()])])
def test_energy_forces_and_stress_of_a_structure_are_one_call(make):
    atoms = alloy(calculator=make())
    outcome = hand_off(atoms, pressure=0.0)
    assert outcome.converged
    assert atoms.calc.calls == outcome.steps + 1
    atoms.get_stress(), atoms.get_forces(), atoms.get_potential_energy()
    assert atoms.calc.calls == outcome.steps + 1, "the results at the end are there without another call"


def test_without_pressure_the_cell_stays():
    atoms = alloy()
    before = atoms.cell.array.copy()
    outcome = hand_off(atoms)
    assert outcome.converged
    assert outcome.stress is None
    assert outcome.enthalpy is None
    np.testing.assert_array_equal(atoms.cell.array, before)


def test_fewer_calls_than_other_optimizers():
    calls = {}
    for optimizer in ("ModelBFGS", "BFGS", "FIRE"):
        calls[optimizer] = 0
        for seed in range(2):
            atoms = alloy(seed=seed)
            assert hand_off(atoms, optimizer, pressure=0.0).converged
            calls[optimizer] += atoms.calc.calls
    assert calls["ModelBFGS"] < 0.7 * calls["BFGS"]
    assert calls["ModelBFGS"] < 0.4 * calls["FIRE"]


def test_from_a_cell_far_away_in_few_calls():
    atoms = alloy(strain=0.2, rattle=0.3, seed=1)
    atoms.set_cell(1.15 * atoms.cell.array, scale_atoms=True)
    outcome = hand_off(atoms, pressure=0.0)
    assert outcome.converged
    assert atoms.calc.calls < 60


def test_constraints_are_kept():
    atoms = alloy(strain=0.0, rattle=0.0)
    atoms.set_constraint(FixSymmetry(atoms))
    outcome = hand_off(atoms, pressure=0.0)
    assert outcome.converged
    np.testing.assert_allclose(atoms.cell.angles(), 90, atol=1e-6)
    atoms = alloy(strain=0.0)
    before = atoms.get_scaled_positions()
    atoms.set_constraint(FixAtoms([0]))
    assert hand_off(atoms, pressure=0.0).converged
    np.testing.assert_allclose(atoms.get_scaled_positions()[0], before[0], atol=1e-8)


@pytest.mark.parametrize("keywords", [{"mask": [1, 1, 1, 0, 0, 0]}, {"hydrostatic_strain": True}])
def test_filters_of_the_callers_own_still_work(keywords):
    atoms = alloy(strain=0.02, rattle=0.05)
    before = atoms.cell.array.copy()
    outcome = hand_off(FrechetCellFilter(atoms, **keywords), fmax=0.05)
    assert outcome.converged
    assert not np.array_equal(atoms.cell.array, before)


@pytest.mark.parametrize("kind", [StrainFilter, UnitCellFilter])
def test_other_filters_work_too(kind):
    atoms = bulk("Cu", cubic=True, a=3.7)
    atoms.calc = EMT()
    outcome = hand_off(kind(atoms), fmax=0.01)
    assert outcome.converged, outcome.reason
    assert atoms.cell.lengths() == pytest.approx([3.59] * 3, abs=0.01)


@pytest.mark.parametrize(("pressure", "words"), [(-2.0, "collapsed"), (2.0, "flown apart")])
@pytest.mark.parametrize("optimizer", ["ModelBFGS", "FIRE"])
def test_a_cell_that_runs_away_ends_with_its_reason(optimizer, pressure, words):
    atoms = bulk("Cu", cubic=True)
    atoms.calc = CountedCalculator(Swelling(pressure))
    outcome = hand_off(atoms, optimizer, pressure=0.0, max_steps=2000)
    assert not outcome.converged
    assert not outcome.failed
    assert words in outcome.reason
    assert cell_out_of_bounds(atoms) is None, "the atoms are where they last were sound"
    assert outcome.energy == pytest.approx(-pressure * atoms.get_volume())


def test_a_start_out_of_bounds_costs_no_call():
    atoms = bulk("Cu", cubic=True)
    atoms.set_cell(0.4 * atoms.cell.array, scale_atoms=True)
    atoms.calc = CountedCalculator(EMT())
    outcome = hand_off(atoms, pressure=0.0)
    assert "collapsed" in outcome.reason
    assert (outcome.converged, outcome.energy, outcome.stress, atoms.calc.calls) == (False, None, None, 0)


def test_stress_that_is_not_finite():
    atoms = bulk("Cu", cubic=True)
    atoms.calc = CountedCalculator(Swelling(0.1, bad_from=3))
    outcome = hand_off(atoms, pressure=0.0)
    assert outcome.failed
    assert outcome.reason == "calculator: the calculator returned a stress that is not finite"
    assert np.isfinite(outcome.stress).all()


def test_steps_run_out():
    atoms = alloy()
    outcome = hand_off(atoms, "FIRE", pressure=0.0, max_steps=2)
    assert outcome.reason == "not converged after 2 steps"
    assert outcome.stress.shape == (6,)


def test_trajectory_keeps_cell_and_stress(tmp_path):
    atoms = alloy()
    outcome = hand_off(atoms, pressure=0.0, trajectory=str(tmp_path / "relax.traj"))
    frames = read(tmp_path / "relax.traj", ":")
    assert len(frames) == outcome.steps + 1
    assert frames[0].get_volume() != frames[-1].get_volume()
    np.testing.assert_allclose(frames[-1].get_stress(), outcome.stress)


def no_stress():
    atoms = bulk("Cu", cubic=True)
    atoms.calc = Harmonic(atoms.positions)
    return atoms


def sum_without_stress():
    atoms = no_stress()
    atoms.calc = SumCalculator([EMT(), atoms.calc])
    return atoms


def periodic_in_two_directions():
    atoms = alloy()
    atoms.pbc = [True, True, False]
    return atoms


@pytest.mark.parametrize(
    ("make", "keywords", "words"),
    [
        (no_stress, {}, "Harmonic gives no stress"),
        (sum_without_stress, {}, "SumCalculator gives no stress"),
        (periodic_in_two_directions, {}, "crystal"),
        (lambda: FrechetCellFilter(alloy()), {}, "filter"),
        (alloy, {"optimizer": "CellAwareBFGS"}, "CellAwareBFGS"),
        (alloy, {"pressure": np.nan}, "finite pressure"),
        (alloy, {"stress_tolerance": 0.0}, "positive stress_tolerance"),
    ],
)
def test_wrong_input_is_told_in_one_sentence(make, keywords, words):
    with pytest.raises(InputError, match=words) as error:
        hand_off(make(), **{"pressure": 0.0, **keywords})
    assert str(error.value).endswith(".")


@pytest.mark.parametrize(
    ("deform", "words"),
    [
        (lambda cell: 0.4 * cell, "Å3 per atom"),
        (lambda cell: 4.0 * cell, "flown apart"),
        (lambda cell: cell[[1, 0, 2]], "left-handed"),
        (lambda cell: cell * [[1], [1], [0]], "in one plane"),
        (lambda cell: cell * [[4], [2], [0.2]], "faces"),
        (lambda cell: cell * np.nan, "not finite"),
        (lambda cell: cell, None),
        (lambda cell: 0.8 * cell, None),
    ],
)
def test_bounds_of_a_cell(deform, words):
    atoms = bulk("Cu", cubic=True)
    atoms.cell[:] = deform(atoms.cell.array)
    reason = cell_out_of_bounds(atoms)
    assert reason is None if words is None else words in reason


def test_atoms_on_top_of_each_other():
    atoms = bulk("Cu", cubic=True)
    atoms.positions[1] = [0.1, 0.1, -0.5]
    assert "two atoms are 0.5" in cell_out_of_bounds(atoms)
    atoms.positions[1] = [np.inf, 0.1, -0.5]
    assert "not finite" in cell_out_of_bounds(atoms)


def oxide():
    """Chains with torsions, a four-ring, and bonds across the boundary."""
    atoms = bulk("TiO", "rocksalt", a=4.2, cubic=True)
    atoms.symbols[[0, 2]] = "Si"
    del atoms[[5]]
    atoms.rattle(0.1, seed=3)
    return atoms


@pytest.mark.parametrize("atoms", [alloy(), bulk("C", cubic=True), oxide()], ids=["alloy", "diamond", "oxide"])
def test_model_hessian_with_strain(atoms):
    n = 3 * len(atoms)
    hessian = model_hessian(atoms, strain=True)
    assert hessian.shape == (n + 9, n + 9)
    np.testing.assert_allclose(hessian, hessian.T, atol=1e-9)
    assert np.linalg.eigvalsh(hessian)[0] > 0.1
    np.testing.assert_array_equal(hessian[:n, :n], model_hessian(atoms))
    # Moving all atoms feels no strain, and twice the cell is twice as stiff, but for what is added.
    np.testing.assert_allclose(hessian[n:, :n].reshape(9, -1, 3).sum(axis=1), 0, atol=1e-9)
    twice = model_hessian(atoms * (1, 2, 1), strain=True)
    np.testing.assert_allclose(twice[-9:, -9:], 2 * hessian[-9:, -9:], atol=1e-8 * abs(twice).max())


def test_strain_of_the_model_is_a_displacement_of_the_far_atom():
    """In a cell so large that images do not meet, a strain moves the atoms as a displacement does."""
    atoms = molecule("CH3CH2OH", cell=[20, 20, 20], pbc=True)
    atoms.rattle(0.05, seed=0)
    n = 3 * len(atoms)
    hessian = model_hessian(atoms, strain=True)
    hessian -= np.diag(np.r_[np.ones(n), np.full(9, 0.03 * 20**3)])
    for k, strain in enumerate(np.eye(9).reshape(9, 3, 3)):
        displacement = (atoms.positions @ strain.T).ravel()
        np.testing.assert_allclose(hessian[:n, n + k], hessian[:n, :n] @ displacement, atol=1e-7)
        assert hessian[n + k, n + k] == pytest.approx(displacement @ hessian[:n, :n] @ displacement, abs=1e-7)


def test_derivatives_of_the_filter():
    atoms = alloy()
    crystal = FrechetCellFilter(atoms)
    rng = np.random.default_rng(0)
    atoms.set_cell(atoms.cell.array @ (np.eye(3) + 0.1 * rng.normal(size=(3, 3))), scale_atoms=True)
    positions, cell, at = atoms.positions.copy(), atoms.cell.array.copy(), crystal.get_positions()
    step = 1e-6 * rng.normal(size=at.shape)
    crystal.set_positions(at + step)
    predicted = filter_derivatives(crystal) @ step.ravel()
    strain = np.linalg.solve(cell, atoms.cell.array - cell).T
    np.testing.assert_allclose(predicted[-9:].reshape(3, 3), strain, atol=1e-10)
    moved = atoms.positions - positions - positions @ strain.T
    np.testing.assert_allclose(predicted[:-9].reshape(-1, 3), moved, atol=1e-10)


def test_no_step_is_longer_than_allowed():
    atoms = alloy(strain=0.3, rattle=0.4, seed=2)
    crystal = FrechetCellFilter(atoms)
    optimizer = ModelBFGS(crystal, logfile=None, maxstep=0.1, maxstrain=0.02)
    for _ in range(5):
        before = crystal.get_positions()
        optimizer.step()
        step = crystal.get_positions() - before
        assert np.linalg.norm(step[:-3], axis=1).max() < 0.1001
        assert np.linalg.norm(step[-3:], axis=1).max() < 0.02001 * len(atoms)
