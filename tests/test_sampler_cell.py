"""The equation for crystals: positions and strain against independent loops, and what a step leaves as it is."""

from dataclasses import replace

import numpy as np
import pytest
from ase.build import bulk
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.linalg import expm
from scipy.spatial.transform import Rotation

from ase_gss.coupling import Diffusion, Langevin, Mn
from ase_gss.sampler import Batch, Coefficients, Field, force_points, step
from ase_gss.schedule import CRYSTAL_SCHEDULE, Schedule
from ase_gss.walk import Walk, complete, propose, random_strain


def symmetric(rng, n, scale=1.0):
    return scale * np.array([random_strain(rng) for _ in range(n)])


def crystals(seed=0, counts=(3, 1, 4), free_cell=True, free=1.0):
    """Disordered crystals, and a score, noise and force for them."""
    rng = np.random.default_rng(seed)
    structure, n = np.repeat(np.arange(len(counts)), counts), sum(counts)
    cells = 4 * np.eye(3) + 0.5 * rng.normal(size=(len(counts), 3, 3))
    batch = Batch(
        2 * rng.normal(size=(n, 3)),
        rng.uniform(1, 20, n),
        rng.random(n) < free,
        structure,
        np.zeros(len(counts), dtype=bool),
        cells,
        np.broadcast_to(free_cell, len(counts)).copy(),
    )
    return batch, *(Field(rng.normal(size=(n, 3)), symmetric(rng, len(counts), 0.3)) for _ in range(3))


def coefficients(n, weights=(1, 1, 1), max_step=np.inf, max_strain=np.inf):
    def filled(*values):
        return [np.full(n, float(value)) for value in values]

    return Coefficients(
        *filled(0.4, 0.03, 0.2, 0.05, *weights, max_step), *filled(0.1, 0.02, 0.06, 0.04), *filled(max_strain)
    )


def loop(batch, c, atoms_move, strains):
    """Positions and cells after a displacement and then a strain, one structure and one atom at a time."""
    positions, cells = [], []
    for s in range(len(batch.cells)):
        deformation = expm(strains[s])
        cells.append(np.array([vector @ deformation for vector in batch.cells[s]]))
        for i in np.flatnonzero(batch.structure == s):
            positions.append((batch.positions[i] + atoms_move[i]) @ deformation)
    return np.array(positions), np.array(cells)


def test_a_step_equals_an_independent_loop():
    batch, score, xi, force = crystals()
    c = coefficients(3, (0.7, 0.9, 0.4))
    new, cells, capped = step(batch, score, xi, force, c)
    move = 0.7 * 0.03 * score.atoms + 0.9 * 0.2 * xi.atoms + 0.4 * 0.05 * force.atoms
    strain = 0.7 * 0.02 * score.strain + 0.9 * 0.06 * xi.strain + 0.4 * 0.04 * force.strain
    expected, expected_cells = loop(batch, c, move, strain)
    np.testing.assert_allclose(new, expected, rtol=0, atol=1e-12)
    np.testing.assert_allclose(cells, expected_cells, rtol=0, atol=1e-12)
    assert not capped.any()


def test_where_the_force_is_taken():
    batch, score, xi, _ = crystals()
    c = coefficients(3)
    points, cells = force_points(batch, score, xi, c, np.array(["x", "x_diff", "x0"]))
    drift, noise = np.array([0, 0.03, 0.4**2])[batch.structure, None], np.array([0, 0.2, 0])[batch.structure, None]
    strain = np.array([0, 0.02, 0.1**2])[:, None, None] * score.strain
    strain += np.array([0, 0.06, 0])[:, None, None] * xi.strain
    expected, expected_cells = loop(batch, c, drift * score.atoms + noise * xi.atoms, strain)
    np.testing.assert_allclose(points, expected, rtol=0, atol=1e-12)
    np.testing.assert_allclose(cells, expected_cells, rtol=0, atol=1e-12)


@pytest.mark.parametrize("larger", ["strain", "atoms"])
def test_a_force_too_large_is_shortened_as_a_whole(larger):
    batch, score, xi, force = crystals()
    limits = {"max_step": np.inf, "max_strain": 0.002} if larger == "strain" else {"max_step": 0.01}
    free, shortened = (coefficients(3, (0, 0, 1), **limit) for limit in ({}, limits))
    new, cells, capped = step(batch, score, xi, force, shortened)
    # In logarithms a capped step is a shorter one along the same direction, the same for the atoms and the cell.
    ratio = []
    for s in range(3):
        part = batch.structure == s
        moves = 0.05 * np.linalg.norm(force.atoms[part], axis=1).max()
        strains = 0.04 * np.abs(np.linalg.eigvalsh(force.strain[s])).max()
        ratio.append(min(1, 0.002 / strains if larger == "strain" else 0.01 / moves))
    assert max(ratio) < 1
    assert capped.all()
    ratio = np.array(ratio)
    expected = step(
        batch,
        score,
        xi,
        Field(ratio[batch.structure, None] * force.atoms, ratio[:, None, None] * force.strain),
        free,
    )
    np.testing.assert_allclose(new, expected.positions, rtol=0, atol=1e-12)
    np.testing.assert_allclose(cells, expected.cells, rtol=0, atol=1e-12)


@pytest.mark.parametrize("nan", ["score", "noise", "force"])
def test_nan_without_weight_does_not_enter(nan):
    batch, *fields = crystals()
    index = ["score", "noise", "force"].index(nan)
    fields[index] = Field(np.full_like(fields[index].atoms, np.nan), np.full_like(fields[index].strain, np.nan))
    weights = [1, 1, 1]
    weights[index] = 0
    new, cells, _ = step(batch, *fields, coefficients(3, weights, max_step=0.1, max_strain=0.01))
    assert np.isfinite(new).all()
    assert np.isfinite(cells).all()
    assert not np.allclose(cells, batch.cells)


def test_a_cell_that_is_fixed_stays_to_the_last_bit_and_so_do_fixed_atoms_in_it():
    batch, score, xi, force = crystals(free_cell=[True, False, False], counts=(3, 4, 5), free=0.5)
    c = coefficients(3)
    new, cells, _ = step(batch, score, xi, force, c)
    points, point_cells = force_points(batch, score, xi, c, np.full(3, "x_diff"))
    held = ~batch.free & (batch.structure > 0)
    assert held.any()
    for positions, lattice in ((new, cells), (points, point_cells)):
        np.testing.assert_array_equal(lattice[1:], batch.cells[1:])
        np.testing.assert_array_equal(positions[held], batch.positions[held])
        assert not np.allclose(lattice[0], batch.cells[0])
    # NaN for a cell that does not move, as a calculator without stress may give it, moves nothing either.
    strain = force.strain.copy()
    strain[1:] = np.nan
    again = step(batch, score, xi, Field(force.atoms, strain), c)
    np.testing.assert_array_equal(again.positions, new)
    np.testing.assert_array_equal(again.cells, cells)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6))
def test_a_turned_crystal_takes_the_turned_step(seed):
    batch, *fields = crystals(seed)
    turn = Rotation.random(rng=seed).as_matrix()
    turned = replace(batch, positions=batch.positions @ turn.T, cells=batch.cells @ turn.T)
    turned_fields = [Field(field.atoms @ turn.T, turn @ field.strain @ turn.T) for field in fields]
    c = coefficients(3, (0.5, 1, 1), max_step=0.1, max_strain=0.01)
    new, cells, capped = step(batch, *fields, c)
    other, other_cells, other_capped = step(turned, *turned_fields, c)
    np.testing.assert_allclose(other, new @ turn.T, rtol=0, atol=1e-11)
    np.testing.assert_allclose(other_cells, cells @ turn.T, rtol=0, atol=1e-11)
    np.testing.assert_array_equal(capped, other_capped)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6))
def test_a_strain_alone_carries_the_atoms_along_and_its_trace_is_the_volume(seed):
    batch, *fields = crystals(seed)
    still = [Field(np.zeros_like(field.atoms), field.strain) for field in fields]
    new, cells, _ = step(batch, *still, coefficients(3))
    trace = np.trace(0.02 * fields[0].strain + 0.06 * fields[1].strain + 0.04 * fields[2].strain, axis1=1, axis2=2)
    np.testing.assert_allclose(np.linalg.det(cells), np.linalg.det(batch.cells) * np.exp(trace), rtol=1e-10)
    for s in range(3):
        part = batch.structure == s
        before, after = (
            np.linalg.solve(cell.T, x[part].T) for cell, x in ((batch.cells[s], batch.positions), (cells[s], new))
        )
        np.testing.assert_allclose(after, before, atol=1e-8)


def test_structures_of_a_batch_do_not_see_each_other():
    batch, *fields = crystals(counts=(3, 1, 4, 2), free_cell=[True, False, True, True])
    c = coefficients(4, max_step=0.05, max_strain=0.01)
    together = step(batch, *fields, c)
    for s in range(4):
        part = batch.structure == s
        one = Batch(
            batch.positions[part],
            batch.masses[part],
            batch.free[part],
            np.zeros(part.sum(), int),
            batch.keep_centre[[s]],
            batch.cells[[s]],
            batch.free_cell[[s]],
        )
        alone = step(
            one,
            *(Field(field.atoms[part], field.strain[[s]]) for field in fields),
            coefficients(1, max_step=0.05, max_strain=0.01),
        )
        np.testing.assert_allclose(alone.positions, together.positions[part], rtol=0, atol=1e-13)
        np.testing.assert_allclose(alone.cells[0], together.cells[s], rtol=0, atol=1e-13)


def strain_from_unit_cube(cells):
    """Symmetric logarithms (S, 3, 3) of the shapes of cells, whatever their orientation."""
    values, vectors = np.linalg.eigh(cells.transpose(0, 2, 1) @ cells)
    return (vectors * (0.5 * np.log(values))[:, None, :]) @ vectors.transpose(0, 2, 1)


def test_reverse_diffusion_of_the_cell_samples_a_gaussian_of_strains():
    # Strains of deviation s on the diagonal and s / sqrt(2) off it: small, so that they add up like numbers. The
    # schedule ends far below s: its last step, to no noise at all, takes the rest of the noise off at once.
    rng, n, s = np.random.default_rng(0), 3000, 0.02
    schedule = Schedule(sigma_max=0.3, sigma_min=1e-4, n_steps=60)
    cells = np.eye(3) + symmetric(rng, n, np.hypot(s, schedule.sigma_cell(0)))
    nothing, no = np.zeros((n, 3)), np.zeros(n, dtype=bool)
    batch = Batch(nothing, np.ones(n), ~no, np.arange(n), no, cells, ~no)
    for k in range(schedule.n_steps):
        level = schedule.sigma_cell(k)
        c = coefficients(n, (1, 1, 0))
        c.drift_cell, c.noise_cell = np.full(n, schedule.drift_cell(k)), np.full(n, schedule.noise_cell(k))
        score = -strain_from_unit_cube(batch.cells) / (s**2 + level**2)
        fields = Field(nothing, score), Field(nothing, symmetric(rng, n)), Field(nothing, np.full((n, 3, 3), np.nan))
        batch.cells = step(batch, *fields, c).cells
    end = strain_from_unit_cube(batch.cells)
    diagonal, off = end[:, [0, 1, 2], [0, 1, 2]], end[:, [0, 0, 1], [1, 2, 2]]
    assert diagonal.std() == pytest.approx(s, rel=0.08)
    assert off.std() == pytest.approx(s / np.sqrt(2), rel=0.08)
    assert diagonal.mean() == pytest.approx(0, abs=0.002)


def walk(atoms, coupling, seed=0, pressure=0.0):
    return Walk.from_atoms(atoms, CRYSTAL_SCHEDULE, coupling, np.random.default_rng(seed), pressure=pressure)


def test_crystals_that_walk_together_go_where_each_goes_alone():
    def score(numbers, positions, sigma, structure, cells, sigma_cell):
        volume = np.linalg.det(cells)
        strain = -np.log(volume / 30)[:, None, None] * np.eye(3) / (0.1 + sigma_cell[:, None, None])
        return np.sin(positions) / (1 + sigma[:, None]), strain

    def walks():
        made = [bulk("Si"), bulk("NaCl", "rocksalt", a=5.6), bulk("Cu", cubic=True)]
        couplings = [Diffusion(), Mn(below=9.0), Langevin()]
        return [
            walk(atoms, coupling, seed, 0.01)
            for seed, (atoms, coupling) in enumerate(zip(made, couplings, strict=True))
        ]

    def go(some):
        for _ in range(5):
            propose(some, score)
            forces = [None if w.point is None else np.cos(w.point) for w in some]
            complete(some, forces, [None if w.point is None else np.diag([0.1, 0.0, -0.1]) for w in some])
        return some

    for together, alone in zip(go(walks()), (go([one])[0] for one in walks()), strict=True):
        np.testing.assert_allclose(together.positions, alone.positions, rtol=0, atol=1e-10)
        np.testing.assert_allclose(together.cell, alone.cell, rtol=0, atol=1e-10)


def test_langevin_leaves_the_cell_to_the_last_bit():
    one = walk(bulk("Si"), Langevin())
    cell = one.cell.copy()
    for _ in range(3):
        propose([one], lambda *batch: (np.ones_like(batch[1]), np.ones_like(batch[4])))
        complete([one], [np.ones((2, 3))], [np.eye(3)])
    np.testing.assert_array_equal(one.cell, cell)
