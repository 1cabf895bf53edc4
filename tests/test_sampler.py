"""The equation against independent loops, and its distributions against quadrature."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import quad

from ase_gss.coupling import Diffusion, Force, Langevin, Mi, Mn
from ase_gss.sampler import Batch, Coefficients, Field, force_points, step
from ase_gss.schedule import ConstantNoise, Schedule


def particles(n, axes=3):
    """n independent one-atom structures."""
    return Batch(
        np.zeros((n, axes)), np.ones(n), np.ones(n, dtype=bool), np.arange(n), keep_centre=np.zeros(n, dtype=bool)
    )


def coefficients(n, weights, sigma=0.1, drift=0.01, noise=0.1, gain=0.01, max_step=np.inf):
    def filled(value):
        return np.full(n, float(value))

    return Coefficients(
        filled(sigma), filled(drift), filled(noise), filled(gain), *map(filled, weights), max_step=filled(max_step)
    )


def run_langevin(score, force, mix, e, kT=1.0, axes=1, n=4000, steps=1500, seed=0):
    """Positions (n, axes) after many Langevin steps in units where kT = 1."""
    rng = np.random.default_rng(seed)
    batch = particles(n)
    coupling = Langevin(mix=mix, step=e)
    schedule = ConstantNoise(level=0.01, step=e)
    c = coefficients(n, coupling.weights(0, 1, 0.01), 0.01, schedule.drift(0), schedule.noise(0), gain=e / kT)
    mask = np.arange(3) < axes
    for _ in range(steps):
        x = batch.positions
        noise = rng.normal(size=x.shape)
        fields = (Field(score(x) * mask), Field(noise * mask), Field(force(x) * mask))
        batch.positions = step(batch, *fields, c).positions
    return batch.positions[:, :axes]


def double_well(x):
    return (x**2 - 1) ** 2


def double_well_force(x):
    return -4 * x * (x**2 - 1)


def mean_over(density, function, width=4.0):
    return quad(lambda x: function(x) * density(x), -width, width)[0] / quad(density, -width, width)[0]


@pytest.mark.parametrize("mix", [0.0, 0.3, 1.0])
def test_langevin_samples_boltzmann_in_one_dimension(mix):
    exact = mean_over(lambda x: np.exp(-double_well(x)), np.square)
    errors = []
    for e in (0.05, 0.0125):
        x = run_langevin(double_well_force, double_well_force, mix, e, n=8000, steps=int(15 / e))
        errors.append(abs(np.mean(x**2) - exact))
    statistical = 3 * 0.6 / np.sqrt(8000)
    assert errors[1] < 0.012 + statistical
    assert errors[1] < errors[0]


@pytest.mark.parametrize("mix", [0.0, 0.5, 1.0])
def test_langevin_samples_boltzmann_in_two_dimensions(mix):
    # U = (x² - 1)² + (y - x)²: y given x is Gaussian about x with variance 1/2, and <xy> = <x²>.
    def force(x):
        out = np.zeros_like(x)
        out[:, 0] = double_well_force(x[:, 0]) + 2 * (x[:, 1] - x[:, 0])
        out[:, 1] = -2 * (x[:, 1] - x[:, 0])
        return out

    exact = mean_over(lambda x: np.exp(-double_well(x)), np.square)
    x = run_langevin(force, force, mix, 0.01, axes=2, n=8000, steps=1500)
    assert np.mean(x[:, 0] ** 2) == pytest.approx(exact, abs=0.03)
    assert np.mean(x[:, 0] * x[:, 1]) == pytest.approx(exact, abs=0.03)
    assert np.mean((x[:, 1] - x[:, 0]) ** 2) == pytest.approx(0.5, abs=0.03)


@pytest.mark.parametrize("mix", [0.0, 0.5, 1.0])
def test_langevin_with_a_perturbed_score_is_tilted_by_its_share(mix):
    # score + eps·grad(phi), phi = x, samples p·exp((1 - a)·eps·phi).
    eps = 0.8
    exact = mean_over(lambda x: np.exp(-double_well(x) + (1 - mix) * eps * x), lambda x: x)
    x = run_langevin(lambda x: double_well_force(x) + eps, double_well_force, mix, 0.01, n=8000, steps=2500)
    assert np.mean(x) == pytest.approx(exact, abs=0.03)


@pytest.mark.parametrize(("name", "a", "variance"), [("mi", 0.5, 0.25), ("mi", 0.2, 0.64), ("mn", 1.0, 0.5)])
def test_mi_and_mn_cool(name, a, variance):
    # On a harmonic well at kT = 1 with gain = h/kT; as documented in the README.
    rng, h, n = np.random.default_rng(1), 0.01, 20_000
    batch = particles(n)
    weights = (1 - a, 1 - a, a) if name == "mi" else (1, 1, 1)
    c = coefficients(n, weights, sigma=0.05, drift=h, noise=np.sqrt(2 * h), gain=h)
    point = np.full(n, "x_diff" if name == "mi" else "x0")
    for _ in range(800):
        xi = rng.normal(size=(n, 3))
        score = -batch.positions
        y, _ = force_points(batch, Field(score), Field(xi), c, point)
        batch.positions = step(batch, Field(score), Field(xi), Field(-y), c).positions
    assert batch.positions.var() == pytest.approx(variance, rel=0.05)


def test_force_is_plain_descent():
    rng = np.random.default_rng(0)
    batch = particles(5)
    batch.positions = rng.normal(size=(5, 3))
    forces = rng.normal(size=(5, 3))
    nan = np.full((5, 3), np.nan)
    new, _, capped = step(
        batch, Field(nan), Field(nan), Field(forces), coefficients(5, Force().weights(0, 1, 0.1), gain=0.07)
    )
    np.testing.assert_array_equal(new, batch.positions + 0.07 * forces)
    assert not capped.any()


def test_diffusion_is_the_ancestral_sampler():
    schedule, rng = Schedule(n_steps=7), np.random.default_rng(3)
    x = rng.normal(size=(4, 3))
    batch = particles(4)
    batch.positions = x.copy()
    for k in range(7):
        xi, s0, s1 = rng.normal(size=(4, 3)), schedule.sigmas[k], schedule.sigmas[k + 1]
        weights = Diffusion().weights(k, 7, s0)
        c = coefficients(4, weights, s0, schedule.drift(k), schedule.noise(k))
        fields = (Field(-batch.positions / (1 + s0**2)), Field(xi), Field(np.full((4, 3), np.nan)))
        batch.positions = step(batch, *fields, c).positions
        for i in range(4):
            x[i] = x[i] + (s0**2 - s1**2) * (-x[i] / (1 + s0**2)) + np.sqrt(s1**2 * (s0**2 - s1**2) / s0**2) * xi[i]
    np.testing.assert_allclose(batch.positions, x, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("n_steps", "tolerance"), [(60, 0.08), (240, 0.02)])
def test_ancestral_steps_sample_a_gaussian(n_steps, tolerance):
    # Data N(0, s²); what is missing of the variance is the error of finite steps.
    rng, spread, n = np.random.default_rng(0), 0.5, 8000
    schedule = Schedule(sigma_max=10.0, sigma_min=0.01, n_steps=n_steps)
    batch = particles(n)
    batch.positions = schedule.sigma(0) * rng.normal(size=(n, 3))
    for k in range(schedule.n_steps):
        sigma = schedule.sigma(k)
        c = coefficients(n, (1, 1, 0), sigma, schedule.drift(k), schedule.noise(k))
        score = -batch.positions / (spread**2 + sigma**2)
        fields = (Field(score), Field(rng.normal(size=(n, 3))), Field(np.zeros((n, 3))))
        batch.positions = step(batch, *fields, c).positions
    assert batch.positions.std() == pytest.approx(spread, rel=tolerance)


def test_force_points():
    batch = particles(3)
    score, xi = np.full((3, 3), 2.0), np.full((3, 3), 1.0)
    c = coefficients(3, (1, 1, 1), sigma=0.5, drift=0.1, noise=0.3)
    points, _ = force_points(batch, Field(score), Field(xi), c, np.array(["x", "x_diff", "x0"]))
    np.testing.assert_allclose(points[:, 0], [0.0, 0.1 * 2 + 0.3, 0.25 * 2])


def test_an_overlap_does_not_throw_atoms_away():
    batch = particles(2)
    batch.structure, batch.keep_centre = np.array([0, 0]), np.array([False])
    forces = np.array([[1000.0, 0, 0], [-500.0, 0, 0]])
    zero = np.zeros((2, 3))
    new, _, capped = step(
        batch, Field(zero), Field(zero), Field(forces), coefficients(1, (0, 0, 1), gain=0.01, max_step=0.2)
    )
    np.testing.assert_allclose(new, [[0.2, 0, 0], [-0.1, 0, 0]])
    assert capped.all()


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.booleans())
def test_what_a_step_conserves(seed, hold):
    rng = np.random.default_rng(seed)
    counts = rng.integers(2, 6, size=3)
    structure = np.repeat(np.arange(3), counts)
    n = len(structure)
    free = rng.random(n) < 0.7
    centred = np.array([hold and free[structure == s].all() for s in range(3)])
    batch = Batch(rng.normal(size=(n, 3)), rng.uniform(1, 20, n), free, structure, centred)
    score, xi, forces = rng.normal(size=(3, n, 3))
    new = step(batch, Field(score), Field(xi), Field(forces), coefficients(3, (0.5, 1, 1))).positions
    np.testing.assert_array_equal(new[~free], batch.positions[~free])
    for s in np.flatnonzero(centred):
        part = structure == s
        np.testing.assert_allclose(batch.masses[part] @ (new - batch.positions)[part], 0, atol=1e-12)
    alone = []
    for s in range(3):  # a structure does not notice what else is in the batch
        part = structure == s
        one = Batch(batch.positions[part], batch.masses[part], free[part], np.zeros(part.sum(), int), centred[[s]])
        fields = (Field(score[part]), Field(xi[part]), Field(forces[part]))
        alone.append(step(one, *fields, coefficients(1, (0.5, 1, 1))).positions)
    np.testing.assert_allclose(new, np.concatenate(alone), rtol=0, atol=1e-14)


def test_nan_without_weight_does_not_enter():
    batch = particles(2)
    nan = np.full((2, 3), np.nan)
    for weights, arguments in (((0, 1, 1), (nan, *np.ones((2, 2, 3)))), ((1, 1, 0), (*np.ones((2, 2, 3)), nan))):
        new = step(batch, *map(Field, arguments), coefficients(2, weights)).positions
        assert np.isfinite(new).all()


def test_weights_of_the_couplings():
    assert Diffusion().weights(3, 30, 1.0) == (1, 1, 0)
    assert Diffusion(score_scale=0.8).weights(3, 30, 1.0) == (0.8, 1, 0)
    assert Diffusion(score_scale=0.8).weights(3, 30, 0.2) == (1, 1, 0)
    assert Mn(below=0.5).weights(3, 30, 0.6) == (1, 1, 0)
    assert Mn(below=0.5).weights(3, 30, 0.4) == (1, 1, 1)
    assert Mi().weights(200, 1000, 1.0) == (1, 1, 0)
    # The published schedule: a = sigmoid((k - 100) / 150) in the last 750 of 1000 steps.
    w_score, w_noise, w_force = Mi().weights(400, 1000, 1.0)
    assert w_force == pytest.approx(1 / (1 + np.exp(-2)))
    assert w_score == w_noise == pytest.approx(1 - w_force)
