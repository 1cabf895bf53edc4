"""GSSDynamics on crystals and slabs: the cell as a user meets it."""

import io

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import add_adsorbate, bulk, fcc100, graphene
from ase.calculators.emt import EMT
from ase.calculators.lj import LennardJones
from ase.constraints import FixAtoms
from ase.filters import FrechetCellFilter
from ase.io import read
from ase.optimize import FIRE
from ase.units import GPa
from conftest import GaussianCrystalScore, GaussianScore, Harmonic

from ase_gss import GSSDynamics, InputError
from ase_gss.coupling import Force, Mn
from ase_gss.dynamics import CellOutOfBounds
from ase_gss.schedule import Schedule
from ase_gss.score import ScoreCalculator
from ase_gss.score.crystal_denoiser import CrystalDenoiser
from ase_gss.score.model import CrystalScore

SHORT = Schedule(sigma_max=2.0, sigma_min=0.02, n_steps=15)


class CountingEMT(EMT):
    """EMT; counts its calls, and fails in one way or another in every n-th."""

    def __init__(self, fail=None, every=3):
        super().__init__()
        self.calls, self.fail, self.every = 0, fail, every

    def calculate(self, *args, **kwargs):
        self.calls += 1
        super().calculate(*args, **kwargs)
        if self.fail and self.calls % self.every == 0:
            if self.fail == "raise":
                raise RuntimeError("no convergence")
            self.results["stress"] = np.full(6, np.nan)


@pytest.fixture
def copper():
    return bulk("Cu", "fcc", a=3.6, cubic=True)


@pytest.fixture
def score(copper):
    return GaussianCrystalScore(copper)


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return CrystalScore(CrystalDenoiser(n_features=8, n_blocks=2), name="small")


def dynamics(atoms, score, coupling="diffusion", seed=0, **keywords):
    keywords.setdefault("schedule", SHORT if coupling == "diffusion" or isinstance(coupling, Mn) else None)
    return GSSDynamics(atoms, score, coupling, rng=np.random.default_rng(seed), **keywords)


def elsewhere(atoms, strain=0.1, seed=3):
    """The same atoms in a cell of another shape."""
    matrix = np.random.default_rng(seed).normal(size=(3, 3))
    other = atoms.copy()
    other.set_cell(atoms.cell.array @ (np.eye(3) + strain * (matrix + matrix.T) / 2), scale_atoms=True)
    return other


def slab(vacuum=5.0):
    """Two layers of aluminium, the lower one fixed, with a copper atom on top."""
    atoms = fcc100("Al", (2, 2, 2), vacuum=vacuum)
    add_adsorbate(atoms, "Cu", 2.0, "hollow")
    atoms.set_constraint(FixAtoms([atom.index for atom in atoms if atom.tag == 2]))
    return atoms


def test_diffusion_finds_positions_and_cell_without_force_calls(copper, score):
    atoms = elsewhere(copper)
    atoms.calc = CountingEMT()
    dyn = dynamics(atoms, score)
    dyn.run()
    assert atoms.calc.calls == dyn.force_calls == 0
    assert score.calls == 15
    np.testing.assert_allclose(atoms.cell.cellpar(), [3.6, 3.6, 3.6, 90, 90, 90], rtol=0.05)
    distances = atoms.get_all_distances(mic=True)[np.triu_indices(4, 1)]
    np.testing.assert_allclose(distances, 3.6 / np.sqrt(2), rtol=0.08)
    assert not atoms.has("momenta")


def test_by_default_a_crystal_begins_with_its_atoms_anywhere_and_near_the_given_shape(copper, score):
    far, near = copper.copy(), copper.copy()
    for _ in dynamics(far, score).irun(0):
        pass
    for _ in dynamics(near, score, sigma_start=0.1).irun(0):
        pass
    moved = [
        np.abs(atoms.get_all_distances(mic=True) - copper.get_all_distances(mic=True)).max() for atoms in (far, near)
    ]
    assert moved[0] > 0.5 > moved[1] > 0.01
    assert 0.3 < far.get_volume() / copper.get_volume() < 3
    assert near.get_volume() != copper.get_volume()


def unwanted(*batch):
    pytest.fail("a score was asked for")


def test_force_lowers_the_enthalpy_to_the_stress_of_the_pressure(copper):
    atoms, pressure, enthalpies = elsewhere(copper, 0.03), 10 * GPa, []
    atoms.calc = EMT()

    def enthalpy():
        enthalpies.append(atoms.get_potential_energy() + pressure * atoms.get_volume())

    dyn = GSSDynamics(atoms, unwanted, Force(gain=0.08), pressure=pressure, max_step=0.2)
    dyn.attach(enthalpy)
    dyn.run()
    assert np.all(np.diff(enthalpies) < 1e-9)
    np.testing.assert_allclose(atoms.get_stress() / GPa, [-10, -10, -10, 0, 0, 0], atol=0.3)
    assert np.abs(atoms.get_forces()).max() < 0.05


def test_mn_feels_stress_and_pressure(copper):
    volumes = []
    for pressure in (0.0, 60 * GPa):
        atoms = copper.copy()
        atoms.calc = CountingEMT()
        # The cell is left to the force: the score's leads there only weakly.
        score = GaussianCrystalScore(copper, spread_cell=1.0)
        dyn = dynamics(atoms, score, Mn(below=0.2, gain=0.3), sigma_start=0.2, pressure=pressure)
        dyn.run()
        assert dyn.force_calls == atoms.calc.calls > 0
        volumes.append(atoms.get_volume())
    assert volumes[1] < 0.97 * volumes[0]


def test_a_calculator_without_stress_is_refused_before_the_cell_has_moved_by_it(copper, score):
    copper.calc = Harmonic(copper.positions)
    with pytest.raises(InputError, match=r"Harmonic gives no stress.*\.$"):
        dynamics(copper, score, Mn(below=9)).run()


def test_a_slab_keeps_its_cell_and_its_fixed_atoms_to_the_last_bit(score):
    atoms = slab()
    before, free = atoms.copy(), np.ones(9, dtype=bool)
    free[atoms.constraints[0].index] = False
    atoms.calc = CountingEMT()
    seen = []

    def upwards(numbers, positions, sigma, structure, cells, sigma_cell):
        seen.append((sigma > 0, sigma_cell))
        return (before.positions - positions) / (0.01 + sigma[:, None] ** 2), np.ones_like(cells)

    dynamics(atoms, upwards, Mn(below=0.5), sigma_start=0.6).run()
    np.testing.assert_array_equal(atoms.cell.array, before.cell.array)
    np.testing.assert_array_equal(atoms.positions[~free], before.positions[~free])
    assert np.all(np.linalg.norm(atoms.positions - before.positions, axis=1)[free] > 1e-3)
    assert all(np.array_equal(moving, free) and not level.any() for moving, level in seen)
    assert atoms.calc.calls > 0
    assert len(atoms.constraints) == 1
    assert not atoms.pbc[2]


@pytest.mark.parametrize("make", [lambda: slab(vacuum=60.0), lambda: graphene(vacuum=20.0)])
def test_vacuum_is_no_cell_that_has_flown_apart(make):
    atoms = make()
    cell = atoms.cell.array.copy()
    dynamics(atoms, lambda *batch: (np.zeros_like(batch[1]), np.zeros_like(batch[4])), sigma_start=0.1).run()
    np.testing.assert_array_equal(atoms.cell.array, cell)


def test_a_crystal_with_a_fixed_atom_keeps_its_cell(copper, score):
    copper.set_constraint(FixAtoms([0]))
    cell, place = copper.cell.array.copy(), copper.positions[0].copy()
    dynamics(copper, score).run()
    np.testing.assert_array_equal(copper.cell.array, cell)
    np.testing.assert_array_equal(copper.positions[0], place)


def test_the_trajectory_has_the_cells(copper, score, tmp_path):
    path, log = str(tmp_path / "gss.traj"), io.StringIO()
    atoms = elsewhere(copper)
    atoms.calc = EMT()
    dyn = dynamics(atoms, score, Mn(below=0.5), trajectory=path, logfile=log)
    dyn.run()
    frames = read(path, ":")
    assert len(frames) == 16
    assert len({round(frame.get_volume(), 6) for frame in frames}) == 16
    np.testing.assert_array_equal(frames[-1].cell.array, atoms.cell.array)
    assert frames[0].pbc.all()
    assert len(log.getvalue().splitlines()) == 1 + 16
    assert dyn.todict()["pressure"] == 0.0


def test_hand_off_relaxes_the_cell_that_was_sampled_against_the_pressure(copper, score):
    copper.calc = EMT()
    dyn = dynamics(copper, score, pressure=5 * GPa)
    dyn.run()
    outcome = dyn.hand_off(fmax=0.02)
    assert outcome.converged
    np.testing.assert_allclose(copper.get_stress() / GPa, [-5, -5, -5, 0, 0, 0], atol=0.1)
    assert isinstance(copper.calc, EMT)
    atoms = slab()
    cell = atoms.cell.array.copy()
    atoms.calc = EMT()
    dyn = dynamics(atoms, lambda *batch: (np.zeros_like(batch[1]), np.zeros_like(batch[4])), sigma_start=0.05)
    dyn.run(2)
    assert dyn.hand_off(FIRE, fmax=0.3).converged
    np.testing.assert_array_equal(atoms.cell.array, cell)


def test_a_score_of_the_other_kind_is_refused_in_one_sentence(copper, network):
    with pytest.raises(InputError, match=r"^The score 'molecules' is for molecules: give score='crystals'.*\.$"):
        GSSDynamics(copper, "molecules")
    with pytest.raises(InputError, match=r"^The score 'small' is for crystals: give score='molecules'.*\.$"):
        GSSDynamics(Atoms("N2", positions=[[0, 0, 0], [0, 0, 1.1]]), network)


def test_an_element_beyond_the_score_is_refused_in_one_sentence(network):
    with pytest.raises(InputError, match="no descriptors for atomic number 97"):
        GSSDynamics(bulk("Bk", "fcc", a=5), network)


def test_a_periodic_structure_without_a_whole_cell_is_refused(score):
    with pytest.raises(InputError, match="three lattice vectors"):
        dynamics(Atoms("Cu", cell=[3, 3, 0], pbc=(True, True, False)), score)


@pytest.mark.parametrize(("sign", "message"), [(-1, "collapsed"), (1, "flown apart")])
def test_a_cell_out_of_bounds_ends_the_run_and_leaves_the_atoms_usable(copper, sign, message):
    def score(numbers, positions, sigma, structure, cells, sigma_cell):
        return np.zeros_like(positions), sign * 40 * np.eye(3)[None] * np.ones((len(cells), 1, 1))

    copper.calc = EMT()
    with pytest.raises(CellOutOfBounds, match=rf"Sampling has ended at step \d+: the cell has {message}.*\.$"):
        dynamics(copper, score).run()
    assert 1 < copper.get_volume() / 4 < 1000
    assert np.isfinite(copper.get_potential_energy())
    assert np.isfinite(copper.get_scaled_positions()).all()


def test_a_score_that_is_not_finite_ends_the_run_and_leaves_the_atoms_usable(copper):
    with pytest.raises(CellOutOfBounds, match="not finite"):
        dynamics(copper, lambda *batch: (np.zeros_like(batch[1]), np.full_like(batch[4], np.nan))).run()
    assert np.isfinite(copper.positions).all()
    assert np.isfinite(copper.cell.array).all()


@pytest.mark.parametrize("coupling", ["diffusion", "hot", "mi", "mn", "langevin"])
def test_same_seed_same_numbers(copper, score, coupling):
    ends = []
    for seed in (7, 7, 8):
        atoms = elsewhere(copper)
        atoms.calc = EMT()
        dynamics(atoms, score, coupling, seed=seed, sigma_start=0.3).run(8)
        ends.append(np.concatenate([atoms.cell.array, atoms.positions]))
    np.testing.assert_array_equal(ends[0], ends[1])
    assert not np.allclose(ends[0], ends[2])


def test_five_steps_and_the_rest_are_the_whole_schedule(copper, score):
    whole, parts = copper.copy(), copper.copy()
    dynamics(whole, score).run()
    dyn = dynamics(parts, score)
    assert not dyn.run(5)
    assert dyn.run()
    np.testing.assert_array_equal(whole.positions, parts.positions)
    np.testing.assert_array_equal(whole.cell.array, parts.cell.array)


@pytest.mark.parametrize("how", ["raise", "nan"])
def test_a_failed_calculation_never_enters_the_structure(copper, score, how):
    atoms = elsewhere(copper)
    atoms.calc, log = CountingEMT(fail=how), io.StringIO()
    dynamics(atoms, score, Mn(below=0.3), sigma_start=0.3, logfile=log).run()
    assert np.isfinite(atoms.positions).all()
    assert np.isfinite(atoms.cell.array).all()
    assert log.getvalue().count("no force:") == atoms.calc.calls // 3 > 0


def test_no_force_is_asked_for_where_atoms_lie_on_one_another(copper):
    def onto_the_first(numbers, positions, sigma, structure, cells, sigma_cell):
        towards = np.zeros_like(positions)
        towards[1] = positions[0] + [0.1, 0, 0] - positions[1]
        return towards / sigma[:, None] ** 2, np.zeros_like(cells)

    copper.calc, log = CountingEMT(), io.StringIO()
    dyn = dynamics(copper, onto_the_first, Mn(below=9.0), sigma_start=0.3, logfile=log)
    dyn.run(4)
    assert copper.calc.calls == dyn.force_calls == 0
    assert log.getvalue().count("no force: two atoms are 0.1") == 4


def test_what_others_do_to_the_cell_is_taken_up(copper, score):
    dyn = dynamics(copper, score, sigma_start=0.2)
    dyn.run(1)
    copper.set_cell(copper.cell.array * 1.1, scale_atoms=True)
    volume = copper.get_volume()
    before = score.calls
    dyn.run(1)
    assert score.calls == before + 1
    assert copper.get_volume() < volume


def test_a_network_makes_a_whole_run(copper, network):
    atoms = elsewhere(copper)
    dyn = dynamics(atoms, network, schedule=SHORT)
    dyn.run(3)
    assert np.isfinite(atoms.positions).all()
    assert not np.allclose(atoms.cell.array, elsewhere(copper).cell.array)


def test_the_score_is_a_calculator_for_fire_and_a_cell_filter(copper, network):
    atoms = elsewhere(copper, 0.02)
    before = atoms.copy()
    atoms.calc = ScoreCalculator(network, sigma=0.1)
    optimizer = FIRE(FrechetCellFilter(atoms), logfile=None)
    optimizer.run(fmax=1e-6, steps=5)
    assert optimizer.nsteps == 5
    assert np.isfinite(atoms.positions).all()
    assert not np.allclose(atoms.cell.array, before.cell.array)


def test_langevin_samples_a_crystal_in_its_cell(copper, score):
    copper.calc = LennardJones(sigma=2.3, epsilon=0.4, rc=5.0)
    cell = copper.cell.array.copy()
    dynamics(copper, score, "langevin").run(3)
    np.testing.assert_array_equal(copper.cell.array, cell)


def test_a_molecule_still_has_a_score_of_four_arguments(water):
    dynamics(water, GaussianScore(water.positions), schedule=SHORT).run()
