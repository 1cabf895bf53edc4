"""The hand-off: physics of the default optimizer, and its manners with any other."""

import numpy as np
import pytest
from ase import Atoms
from ase.build import add_adsorbate, bulk, fcc111, molecule
from ase.calculators.calculator import Calculator, all_changes
from ase.calculators.emt import EMT
from ase.calculators.lj import LennardJones
from ase.constraints import FixAtoms, FixCartesian
from ase.filters import Filter, FrechetCellFilter
from ase.io import read
from ase.optimize import BFGS, FIRE
from scipy.spatial.distance import pdist

from ase_gss.errors import InputError
from ase_gss.forces import CountedCalculator
from ase_gss.model_bfgs import ModelBFGS, updated
from ase_gss.model_hessian import model_hessian
from ase_gss.relax import fallen_apart, hand_off

PLACES = np.array([[0.0, 0.0, 0.0], [1.1, 0.0, 0.0], [0.0, 1.2, 0.3]])


class Springs(Calculator):
    """Springs (eV/Å²) to fixed places; from call `bad_from` on it returns NaN, or raises what `raises` says."""

    implemented_properties = ["energy", "forces"]

    def __init__(self, places=PLACES, spring=20.0, bad_from=np.inf, raises=None):
        super().__init__()
        self.places, self.spring, self.bad_from, self.raises, self.calls = places, spring, bad_from, raises, 0

    def calculate(self, atoms=None, properties=None, system_changes=all_changes):
        super().calculate(atoms, properties, system_changes)
        self.calls += 1
        away = self.atoms.positions - self.places
        if self.calls >= self.bad_from:
            if self.raises is not None:
                raise self.raises
            away = away * np.nan
        self.results = {"energy": 0.5 * self.spring * np.sum(away**2), "forces": -self.spring * away}


def displaced(calculator, by=0.3):
    atoms = Atoms("OH2", PLACES + by * np.array([[1, 0.5, -0.2], [-0.4, 1, 0.1], [0.2, -0.3, 1]]))
    atoms.calc = calculator
    return atoms


def cluster(seed=0):
    rng = np.random.default_rng(seed)
    shell = [[0, 0, 0], *(1.1 * np.vstack([np.eye(3), -np.eye(3)]))]
    atoms = Atoms("Ar7", shell + rng.normal(scale=0.08, size=(7, 3)))
    atoms.calc = LennardJones(rc=10)
    return atoms


def slab():
    atoms = fcc111("Cu", (2, 2, 2), vacuum=6)
    add_adsorbate(atoms, molecule("CH3OH"), 2.0, "ontop")
    atoms.set_constraint(FixAtoms(mask=atoms.get_tags() == 2))
    atoms.calc = EMT()
    return atoms


@pytest.mark.parametrize("optimizer", ["ModelBFGS", "FIRE", "BFGS", "LBFGS", "BFGSLineSearch", ModelBFGS, FIRE])
def test_harmonic_well_is_found_to_its_bottom(optimizer):
    atoms = displaced(Springs())
    outcome = hand_off(atoms, optimizer, fmax=0.01)
    assert outcome.converged
    assert outcome.reason == ""
    assert not outcome.failed
    assert outcome.fmax < 0.01
    assert outcome.energy == pytest.approx(0, abs=1e-4)
    np.testing.assert_allclose(atoms.positions, PLACES, atol=0.01 / 20)


def test_default_needs_few_calls_in_a_harmonic_well():
    calculator = CountedCalculator(Springs())
    assert hand_off(displaced(calculator, by=0.1), fmax=0.01).converged
    assert calculator.calls < 25


def test_default_needs_fewer_calls_than_bfgs_for_a_molecule():
    pytest.importorskip("tblite")
    from tblite.ase import TBLite

    calls = {}
    for optimizer in ("ModelBFGS", "BFGS"):
        calls[optimizer], ends = 0, []
        for seed in range(3):
            atoms = molecule("CH3CH2OH")
            atoms.rattle(0.1, seed=seed)
            atoms.calc = calculator = CountedCalculator(TBLite(method="GFN2-xTB", verbosity=0))
            outcome = hand_off(atoms, optimizer)
            assert outcome.converged
            calls[optimizer] += calculator.calls
            ends.append(outcome.energy)
        assert np.ptp(ends) < 0.2
    assert calls["ModelBFGS"] < 0.7 * calls["BFGS"]


def test_default_relaxes_a_van_der_waals_cluster_and_a_surface():
    for atoms in (cluster(), slab()):
        reference = atoms.copy()
        reference.calc = atoms.calc.__class__(**atoms.calc.parameters)
        BFGS(reference, logfile=None).run(fmax=0.01, steps=500)
        outcome = hand_off(atoms, fmax=0.01)
        assert outcome.converged
        assert outcome.energy == pytest.approx(reference.get_potential_energy(), abs=0.02)


def test_overlapping_atoms_come_apart():
    pytest.importorskip("tblite")
    from tblite.ase import TBLite

    atoms = molecule("CH3OH")
    atoms.positions[2] = atoms.positions[0] + [0.0, 0.0, 0.3]
    atoms.calc = TBLite(method="GFN2-xTB", verbosity=0)
    outcome = hand_off(atoms)
    assert outcome.converged or outcome.reason
    assert np.isfinite(atoms.positions).all()
    assert pdist(atoms.positions).min() > 0.6


def test_fixed_atoms_do_not_move():
    atoms = slab()
    fixed, before = atoms.constraints[0].get_indices(), atoms.positions.copy()
    assert hand_off(atoms).converged
    np.testing.assert_array_equal(atoms.positions[fixed], before[fixed])
    atoms = displaced(Springs())
    atoms.set_constraint([FixCartesian(1, mask=[True, False, False])])
    before = atoms.positions.copy()
    outcome = hand_off(atoms)
    assert outcome.converged
    assert atoms.positions[1, 0] == before[1, 0]
    np.testing.assert_allclose(atoms.positions[[0, 2]], PLACES[[0, 2]], atol=0.01)
    assert abs(outcome.forces[1, 0]) > 1, "the forces of the outcome are the calculator's own"
    assert outcome.fmax < 0.05, "and its fmax is what the constraint leaves"


def test_cell_filter():
    atoms = bulk("Cu", cubic=True)
    atoms.set_cell(1.04 * atoms.cell.array, scale_atoms=True)
    atoms.rattle(0.05, seed=1)
    atoms.calc = EMT()
    assert hand_off(FrechetCellFilter(atoms), fmax=0.01).converged
    assert atoms.get_volume() == pytest.approx(3.59**3, rel=0.01)


@pytest.mark.parametrize("optimizer", ["ModelBFGS", "FIRE", "BFGS", "LBFGS", "BFGSLineSearch", "SciPyFminBFGS"])
@pytest.mark.parametrize("raises", [None, RuntimeError("SCF did not\n converge"), KeyError("charge")])
def test_failing_calculator_ends_the_relaxation_at_the_last_good_positions(optimizer, raises):
    calculator = Springs(bad_from=3, raises=raises)
    atoms = displaced(calculator)
    start = atoms.positions.copy()
    if optimizer.startswith("SciPy"):
        import ase.optimize.sciopt

        optimizer = getattr(ase.optimize.sciopt, optimizer)
    outcome = hand_off(atoms, optimizer)
    assert not outcome.converged
    assert outcome.failed
    assert outcome.reason.startswith("calculator: ")
    assert "\n" not in outcome.reason
    assert ("not finite" if raises is None else type(raises).__name__) in outcome.reason
    assert np.isfinite(atoms.positions).all()
    assert not np.array_equal(atoms.positions, start)
    assert outcome.energy == pytest.approx(10 * np.sum((atoms.positions - PLACES) ** 2))
    np.testing.assert_allclose(outcome.forces, -20 * (atoms.positions - PLACES))
    assert atoms.calc is calculator
    assert calculator.calls == 3


def test_calculator_that_fails_at_once_leaves_the_atoms_alone():
    atoms = displaced(Springs(bad_from=1))
    start = atoms.positions.copy()
    outcome = hand_off(atoms)
    assert outcome.failed
    assert outcome.energy is None
    assert outcome.forces is None
    assert outcome.fmax is None
    np.testing.assert_array_equal(atoms.positions, start)
    assert outcome.frozen(atoms).calc is None


def test_optimizer_that_loses_its_way_does_not_leave_nan_behind():
    class Lost(BFGS):
        def determine_step(self, dpos, steplengths):
            return dpos * (np.nan if self.nsteps == 2 else 0.1)

    atoms = displaced(Springs())
    outcome = hand_off(atoms, Lost)
    assert not outcome.converged
    assert not outcome.failed
    assert "not finite" in outcome.reason
    assert np.isfinite(atoms.positions).all()
    assert outcome.energy == pytest.approx(10 * np.sum((atoms.positions - PLACES) ** 2))


def test_optimizer_that_raises_ends_with_its_reason():
    class Broken(BFGS):
        def determine_step(self, dpos, steplengths):
            raise RuntimeError("LineSearch failed!")

    outcome = hand_off(displaced(Springs()), Broken)
    assert not outcome.converged
    assert not outcome.failed
    assert outcome.reason == "optimizer: RuntimeError: LineSearch failed!"


def test_steps_run_out():
    atoms = displaced(Springs())
    outcome = hand_off(atoms, "FIRE", max_steps=3)
    assert not outcome.converged
    assert not outcome.failed
    assert outcome.reason == "not converged after 3 steps"
    assert outcome.steps == 3
    np.testing.assert_allclose(outcome.forces, atoms.get_forces())
    assert outcome.fmax == pytest.approx(np.linalg.norm(atoms.get_forces(), axis=1).max())
    outcome = hand_off(atoms, "FIRE", max_steps=0)
    assert outcome.steps == 0
    assert outcome.energy == pytest.approx(atoms.get_potential_energy())


def test_given_calculator_is_given_back_and_counts():
    own = Springs()
    atoms = displaced(own)
    hand_off(atoms)
    assert atoms.calc is own
    counted = CountedCalculator(Springs())
    atoms = displaced(counted)
    outcome = hand_off(atoms)
    assert atoms.calc is counted
    assert counted.calls == counted.calculator.calls == outcome.steps + 1
    atoms.get_forces()
    assert counted.calls == outcome.steps + 1, "the results at the end are there without another call"


def test_frozen_copy_has_energy_and_forces():
    atoms = displaced(Springs())
    outcome = hand_off(atoms)
    frozen = outcome.frozen(atoms)
    assert frozen.get_potential_energy() == outcome.energy
    np.testing.assert_array_equal(frozen.get_forces(), outcome.forces)
    np.testing.assert_array_equal(frozen.positions, atoms.positions)


def test_giving_up():
    asked = []

    def give_up(atoms):
        asked.append(atoms.positions.copy())
        return "enough" if len(asked) == 2 else None

    atoms = displaced(Springs())
    outcome = hand_off(atoms, "FIRE", give_up=give_up, give_up_interval=3)
    assert (outcome.converged, outcome.reason, outcome.steps, outcome.failed) == (False, "enough", 3, False)
    np.testing.assert_array_equal(atoms.positions, asked[-1])


def test_fallen_apart():
    atoms = molecule("CH3OH")
    assert fallen_apart(atoms) is None
    atoms.positions[1] += [0, 20.0, 0]
    assert fallen_apart(atoms) == "fallen apart"


def test_trajectory_and_log_are_written(tmp_path):
    atoms = displaced(Springs())
    outcome = hand_off(atoms, trajectory=str(tmp_path / "relax.traj"), logfile=str(tmp_path / "relax.log"))
    frames = read(tmp_path / "relax.traj", ":")
    assert len(frames) == outcome.steps + 1
    assert frames[-1].get_potential_energy() == pytest.approx(outcome.energy)
    assert "ModelBFGS" in (tmp_path / "relax.log").read_text()


@pytest.mark.parametrize(
    "keywords", [{"optimizer": "NoSuch"}, {"optimizer": 3}, {"no_such_keyword": 1}, {"fmax": 0}, {"max_steps": -1}]
)
def test_wrong_input_is_told_in_one_sentence(keywords):
    calculator = Springs()
    atoms = displaced(calculator)
    with pytest.raises(InputError) as error:
        hand_off(atoms, **keywords)
    message = str(error.value)
    assert message.endswith(".")
    assert "\n" not in message
    assert atoms.calc is calculator
    assert calculator.calls == 0


def test_atoms_without_calculator():
    with pytest.raises(InputError, match="calculator"):
        hand_off(Atoms("H2", [[0, 0, 0], [0, 0, 1]]))


@pytest.mark.parametrize("name", ["CH3OH", "C2H2", "CO2", "Si2H6", "H2"])
def test_model_hessian_is_stiff_for_changes_of_shape_only(name):
    atoms = molecule(name)
    n = len(atoms)
    hessian = model_hessian(atoms)
    np.testing.assert_allclose(hessian, hessian.T, atol=1e-10)
    values = np.linalg.eigvalsh(hessian)
    floor = values[0]
    assert floor > 0.4
    assert values[-1] > 30 * floor
    centred = atoms.positions - atoms.positions.mean(axis=0)
    for axis in np.eye(3):
        shift, turn = np.tile(axis, n), np.cross(axis, centred).ravel()
        np.testing.assert_allclose(hessian @ shift, floor * shift, atol=1e-8)
        np.testing.assert_allclose(hessian @ turn, floor * turn, atol=0.05)
    rigid = 5 if name in ("C2H2", "CO2", "H2") else 6
    assert np.sum(values < floor + 1e-3) == rigid


def test_model_hessian_turns_with_the_molecule():
    atoms = molecule("CH3OH")
    before = np.linalg.eigvalsh(model_hessian(atoms))
    atoms.rotate(40, (1, 2, 3))
    atoms.translate([5, -3, 2])
    np.testing.assert_allclose(np.linalg.eigvalsh(model_hessian(atoms)), before, atol=1e-8)


def test_model_hessian_across_a_periodic_boundary():
    inside = molecule("CH3OH", cell=[8, 8, 8], pbc=True)
    inside.center()
    across = inside.copy()
    across.translate([4, 4, 4])
    across.wrap()
    np.testing.assert_allclose(model_hessian(across), model_hessian(inside), atol=1e-8)


def test_model_hessian_of_coinciding_atoms_is_finite():
    assert np.isfinite(model_hessian(Atoms("CH3", np.zeros((4, 3))))).all()


def quadratic(seed=0, n=9):
    """A Hessian, and one that is not quite it."""
    rng = np.random.default_rng(seed)
    basis = np.linalg.qr(rng.normal(size=(n, n)))[0]
    return basis @ np.diag(np.geomspace(0.5, 40, n)) @ basis.T, np.eye(n) * 5.0, rng


@pytest.mark.parametrize("steps", [1, 2, 5])
def test_hessian_has_the_curvature_that_steps_have_shown(steps):
    true, model, rng = quadratic()
    directions = [each / np.linalg.norm(each) for each in rng.normal(size=(steps, 9))]
    hessian = updated(model, directions, [true @ each for each in directions])
    np.testing.assert_allclose(hessian, hessian.T)
    for direction in directions:
        np.testing.assert_allclose(hessian @ direction, true @ direction, atol=1e-8)
    assert np.linalg.eigvalsh(hessian)[0] > 0


def test_hessian_of_steps_in_one_direction_is_that_of_the_latest():
    true, model, rng = quadratic()
    direction = rng.normal(size=9)
    direction /= np.linalg.norm(direction)
    hessian = updated(model, [direction, direction, -direction], [true @ direction, 3 * direction, -7 * direction])
    np.testing.assert_allclose(hessian @ direction, true @ direction, atol=1e-8)


def test_negative_curvature_is_seen_and_no_curvature_is_harmless():
    _, model, _ = quadratic()
    along, other = np.eye(9)[:2]
    hessian = updated(model, [along], [-2 * along])
    assert hessian[0, 0] == pytest.approx(-2)
    assert hessian[1, 1] == pytest.approx(5)
    assert np.isfinite(updated(model, [along, other], [0 * along, 0 * other])).all()
    np.testing.assert_array_equal(updated(model, [], []), model)


def test_a_restart_file_holds_the_last_step(tmp_path):
    atoms, file = displaced(Springs()), str(tmp_path / "restart.json")
    ModelBFGS(atoms, restart=file, logfile=None).run(fmax=1e-6, steps=3)
    fresh, resumed = ModelBFGS(atoms.copy(), logfile=None), ModelBFGS(atoms, restart=file, logfile=None)
    fresh.atoms.calc = Springs()
    for optimizer in (fresh, resumed):
        optimizer.run(fmax=1e-6, steps=1)
    assert not np.allclose(resumed.state.hessian, fresh.state.hessian, rtol=1e-3)


def test_a_filter_of_some_atoms():
    atoms = displaced(Springs())
    before = atoms.positions.copy()
    ModelBFGS(Filter(atoms, indices=[0, 2]), logfile=None).run(fmax=0.05, steps=100)
    np.testing.assert_array_equal(atoms.positions[1], before[1])
    assert np.linalg.norm(atoms.get_forces()[[0, 2]], axis=1).max() < 0.05


def test_time_of_a_step_does_not_grow(monkeypatch):
    atoms = cluster()
    optimizer = ModelBFGS(atoms, logfile=None, maxstep=0.001)
    optimizer.run(fmax=1e-9, steps=60)
    assert len(optimizer._taken) <= 40
