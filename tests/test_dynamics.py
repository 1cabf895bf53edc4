"""GSSDynamics: ASE's manners, and the couplings as a user meets them."""

import io
from itertools import pairwise

import numpy as np
import pytest
from ase import Atoms
from ase.build import molecule
from ase.calculators.calculator import Calculator
from ase.constraints import FixAtoms, FixBondLength
from ase.io import read
from ase.optimize import FIRE
from conftest import GaussianScore, Harmonic

from ase_gss import GSSDynamics, InputError
from ase_gss.coupling import Diffusion, Force, Langevin, Mi, Mn
from ase_gss.forces import CalculatorFailure
from ase_gss.schedule import ConstantNoise, Schedule


@pytest.fixture
def score(water):
    return GaussianScore(water.positions)


def dynamics(atoms, score, coupling="diffusion", seed=0, **keywords):
    return GSSDynamics(atoms, score, coupling, rng=np.random.default_rng(seed), **keywords)


def test_diffusion_equals_an_independent_loop_without_force_calls(water, score):
    start, masses = water.positions.copy(), water.get_masses()
    schedule = Schedule(n_steps=9)
    water.calc = Harmonic(start)
    dynamics(water, score, schedule=schedule).run()

    def centred(move):
        return move - masses @ move / masses.sum()

    rng, sigmas = np.random.default_rng(0), [*np.linspace(4 ** (1 / 7), 0.02 ** (1 / 7), 9) ** 7, 0.0]
    x = np.tile(masses @ start / masses.sum(), (3, 1)) + centred(sigmas[0] * rng.normal(size=(3, 3)))
    for s0, s1 in pairwise(sigmas):
        xi = rng.normal(size=(3, 3))
        gradient = (start - x) / (0.1**2 + s0**2)
        x = x + centred((s0**2 - s1**2) * gradient + s1 * np.sqrt(s0**2 - s1**2) / s0 * xi)
    np.testing.assert_allclose(water.positions, x, rtol=0, atol=1e-10)
    assert water.calc.calls == 0


def test_force_equals_steepest_descent(water):
    places = water.positions.copy()
    water.rattle(0.1, seed=1)
    expected = water.positions.copy()
    water.calc = Harmonic(places, spring=3.0)
    score = GaussianScore(places)
    GSSDynamics(water, score, Force(gain=0.02)).run(10)
    for _ in range(10):
        expected = expected + 0.02 * (-3.0 * (expected - places))
    np.testing.assert_allclose(water.positions, expected, rtol=0, atol=1e-12)
    assert water.calc.calls == 10
    assert score.calls == 0


def test_the_physical_calculator_is_called_only_where_the_coupling_needs_it(water, score):
    water.calc = Harmonic(water.positions)
    schedule = Schedule(n_steps=20)
    dyn = dynamics(water, score, Mn(below=0.5), schedule=schedule)
    dyn.run()
    assert water.calc.calls == dyn.force_calls == np.sum(schedule.sigmas[:-1] < 0.5)
    water.calc.calls = 0
    dynamics(water, score, Mi(start=0.25), schedule=schedule).run()
    assert water.calc.calls == 15


def test_langevin_at_the_same_temperature_everywhere(water):
    # Score and force of one well at kT agree, so every mixture has the variance kT/k.
    kT, spring = 0.025852, 10.0
    variance = []
    for mix in (0.0, 0.5, 1.0):
        atoms = Atoms("Ar", positions=[[0, 0, 0]])
        atoms.calc = Harmonic([[0, 0, 0]], spring)
        score = GaussianScore([[0, 0, 0]], spread=np.sqrt(kT / spring - 1e-4))
        coupling = Langevin(mix=mix, temperature_K=300, step=4e-4, level=0.01)
        dyn = dynamics(atoms, score, coupling, schedule=ConstantNoise(0.01, 4e-4, 1500), keep_centre=False, max_step=9)
        trace = []
        dyn.attach(lambda trace=trace, atoms=atoms: trace.append(atoms.positions.copy()))
        dyn.run()
        variance.append(np.var(trace[200:]))
    np.testing.assert_allclose(variance, kT / spring, rtol=0.3)


@pytest.mark.parametrize("coupling", ["diffusion", "hot", "mi", "mn", "langevin"])
def test_same_seed_same_numbers_and_the_centre_stays(water, score, coupling):
    ends = []
    for _ in range(2):
        atoms = water.copy()
        atoms.positions += [5.0, -3.0, 1.0]
        centre = atoms.get_center_of_mass()
        atoms.calc = Harmonic(atoms.positions)
        shifted = GaussianScore(atoms.positions)
        dynamics(atoms, shifted, coupling, seed=7).run()
        np.testing.assert_allclose(atoms.get_center_of_mass(), centre, atol=1e-8)
        assert not atoms.has("momenta")
        ends.append(atoms.positions)
    np.testing.assert_array_equal(*ends)


def test_five_steps_and_the_rest_are_the_whole_schedule(water, score):
    whole, parts = water.copy(), water.copy()
    dynamics(whole, score).run()
    dyn = dynamics(parts, score)
    assert not dyn.run(5)
    assert dyn.nsteps == 5
    assert dyn.run()
    assert dyn.nsteps == 30
    np.testing.assert_array_equal(whole.positions, parts.positions)
    with pytest.raises(InputError, match="schedule has come to its end"):
        dyn.step()


def test_sigma_start_adds_noise_to_what_is_given(water):
    score = GaussianScore(water.positions, spread=0.01)
    start = water.positions.copy()
    dyn = dynamics(water, score, sigma_start=0.3)
    steps = [water.positions.copy() for _ in dyn.irun()]
    assert 0.05 < np.std(steps[0] - start) < 1.0
    assert np.std(steps[-1] - start) < 0.05


@pytest.mark.parametrize("keywords", [{}, {"sigma_start": 0.3}])
def test_a_schedule_without_steps_leaves_the_structure_as_it_is(water, score, keywords):
    start = water.positions.copy()
    assert dynamics(water, score, schedule=Schedule(n_steps=0), **keywords).run()
    np.testing.assert_array_equal(water.positions, start)


def test_a_constant_schedule_begins_at_the_positions_as_they_are(water, score):
    start = water.positions.copy()
    water.calc = Harmonic(start)
    for _ in dynamics(water, score, "langevin").irun(0):
        np.testing.assert_array_equal(water.positions, start)


def test_fixed_atoms_do_not_move_and_are_context(water, score):
    seen = []

    def watching(numbers, positions, sigma, structure):
        seen.append(sigma)
        return score(numbers, positions, sigma, structure) + 1.0

    fixed = water.positions[0].copy()
    water.set_constraint(FixAtoms([0]))
    water.calc = Harmonic(water.positions + 1)
    dynamics(water, watching, "mn").run()
    np.testing.assert_array_equal(water.positions[0], fixed)
    assert all(sigma[0] == 0 and sigma[1] > 0 for sigma in seen)
    assert len(water.constraints) == 1


def test_another_constraint_is_refused_in_one_sentence(water, score):
    water.set_constraint(FixBondLength(0, 1))
    with pytest.raises(InputError, match="FixAtoms only"):
        dynamics(water, score)


def test_trajectory_logfile_and_observers(water, score, tmp_path):
    water.calc = Harmonic(water.positions)
    log, path, seen = io.StringIO(), tmp_path / "gss.traj", []
    dyn = dynamics(water, score, "mn", trajectory=str(path), logfile=log)
    dyn.attach(seen.append, 10, "ten")
    dyn.run()
    lines = log.getvalue().splitlines()
    assert len(lines) == 1 + 31
    assert lines[0].split()[:3] == ["Step", "sigma/Å", "w_score"]
    assert lines[2].split()[5] == "-"  # no energy where no force was computed
    assert float(lines[-1].split()[5]) >= 0
    frames = read(path, ":")
    assert len(frames) == 31
    np.testing.assert_array_equal(frames[-1].positions, water.positions)
    assert len(seen) == 4
    more = dynamics(water, score, sigma_start=0.1, trajectory=str(path), append_trajectory=True)
    more.run(3)
    assert len(read(path, ":")) == 31 + 4
    description = dyn.todict()
    assert description["md-type"] == "GSSDynamics"
    assert description["coupling"]["name"] == "mn"


def test_a_capped_step_is_in_the_log(water, score):
    water.calc = Harmonic(water.positions + 10, spring=1000)
    before, log = water.positions.copy(), io.StringIO()
    dynamics(water, score, Force(gain=0.01), max_step=0.15, logfile=log).run(1)
    assert "capped" in log.getvalue()
    np.testing.assert_allclose(np.linalg.norm(water.positions - before, axis=1), 0.15)


class Failing(Calculator):
    implemented_properties = ("energy", "forces")

    def __init__(self, how, every=1):
        super().__init__()
        self.how, self.every, self.calls = how, every, 0

    def calculate(self, atoms=None, properties=None, system_changes=()):
        super().calculate(atoms, properties, system_changes)
        self.calls += 1
        forces = np.zeros((len(self.atoms), 3))
        if self.calls % self.every == 0:
            if self.how == "raise":
                raise RuntimeError("SCF not converged")
            forces[0] = np.nan
        self.results = {"energy": 0.0, "forces": forces}


@pytest.mark.parametrize("how", ["raise", "nan"])
def test_a_failed_calculation_never_enters_the_structure(water, score, how):
    water.calc = Failing(how, every=3)
    log = io.StringIO()
    dynamics(water, score, Mn(below=9), logfile=log).run()
    assert np.isfinite(water.positions).all()
    assert log.getvalue().count("no force:") == 10


def test_a_calculator_that_always_fails_ends_the_run_with_its_message(water, score):
    water.calc = Failing("raise")
    with pytest.raises(CalculatorFailure, match="20 times in a row, last with RuntimeError: SCF not converged"):
        dynamics(water, score, Mn(below=9)).run()


def test_no_calculator_is_needed_without_forces_and_asked_for_with(water, score):
    dynamics(water, score).run()
    with pytest.raises(InputError, match="attach a calculator"):
        dynamics(water, score, "mn").run()


def test_a_coupling_of_ones_own(water, score):
    class Alternate:
        point = "x"

        def weights(self, k, n_steps, sigma):
            return (1.0, 1.0, 0.0) if k % 2 else (0.0, 0.0, 1.0)

    water.calc = Harmonic(water.positions)
    dynamics(water, score, Alternate()).run()
    assert water.calc.calls == 15
    with pytest.raises(InputError, match="point"):
        dynamics(water, score, object())
    with pytest.raises(InputError, match="diffusion"):
        dynamics(water, score, "difusion")
    water.set_constraint(FixAtoms([0]))
    with pytest.raises(InputError, match="leave out keep_centre"):
        dynamics(water, score, keep_centre=True)


def test_force_calls_of_the_hand_off_count(water, score):
    water.calc = Harmonic(water.positions + 0.1)
    dyn = dynamics(water, score, Mn(below=0.5))
    dyn.run()
    sampling = dyn.force_calls
    physical = water.calc
    outcome = dyn.hand_off(optimizer="FIRE")
    assert dyn.force_calls >= sampling + outcome.steps > sampling
    assert water.calc is physical
    water.calc = None
    with pytest.raises(InputError, match="attach a calculator"):
        dyn.hand_off()


def test_hand_off_gives_the_structure_to_an_optimizer(water, score):
    water.calc = Harmonic(water.positions)
    places = water.positions.copy()
    dyn = dynamics(water, score)
    dyn.run()
    assert dyn.hand_off(FIRE, fmax=0.001).converged
    np.testing.assert_allclose(water.positions, places, atol=0.002)
    assert isinstance(water.calc, Harmonic)


def test_plain_diffusion_with_the_shipped_score_makes_ethanol_like_molecules():
    from ase_gss.bonds import is_connected

    atoms = molecule("CH3CH2OH")
    whole = 0
    for seed in range(4):
        dynamics(atoms, "molecules", Diffusion(), seed=seed).run()
        whole += is_connected(atoms)
    assert whole >= 2
