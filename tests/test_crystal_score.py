"""The score of crystals: its symmetries, its calculator, and that training learns."""

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import add_adsorbate, bulk, fcc111, make_supercell
from ase.calculators.fd import calculate_numerical_stress
from ase.constraints import FixAtoms
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from ase_gss import GSSDynamics
from ase_gss.errors import InputError
from ase_gss.schedule import CRYSTAL_SCHEDULE, cell_noise
from ase_gss.score import ScoreCalculator, load_score
from ase_gss.score.crystal_data import Crystals, NoisedCrystals, add_noise, bounded_strain, read_crystals
from ase_gss.score.crystal_denoiser import CrystalDenoiser, periodic_pairs
from ase_gss.score.model import CrystalScore, save_model
from ase_gss.score.training import CrystalTraining

SMALL = {"n_features": 16, "n_blocks": 3}


@pytest.fixture(scope="module")
def score():
    torch.manual_seed(0)
    denoiser = CrystalDenoiser(**SMALL).double()
    for parameter in denoiser.parameters():  # zero biases would hide what depends on them
        parameter.data += 0.05 * torch.randn_like(parameter)
    return CrystalScore(denoiser.float(), name="small")


def disordered(seed=0, n=6):
    rng = np.random.default_rng(seed)
    cell = 5 * np.eye(3) + 0.6 * rng.normal(size=(3, 3))
    return Atoms(rng.choice([8, 14, 22, 55], n), scaled_positions=rng.random((n, 3)), cell=cell, pbc=True)


def evaluate(score, atoms, sigma=0.3, sigma_cell=0.08):
    structure = np.zeros(len(atoms), int)
    values, strain = score(
        atoms.numbers,
        atoms.positions,
        np.broadcast_to(sigma, len(atoms)),
        structure,
        atoms.cell.array[None],
        np.array([sigma_cell]),
    )
    return values, strain[0]


def assert_close(values, expected):
    """Equal but for the rounding of single precision."""
    assert np.abs(values - expected).max() < 5e-5 * max(1.0, np.abs(expected).max())


def test_vectors_and_matrix_turn_with_the_crystal(score):
    atoms, rotation = disordered(), Rotation.random(rng=1).as_matrix()
    turned = Atoms(atoms.numbers, atoms.positions @ rotation.T, cell=atoms.cell.array @ rotation.T, pbc=True)
    (values, strain), (new_values, new_strain) = evaluate(score, atoms), evaluate(score, turned)
    assert np.abs(values).max() > 1e-3
    assert np.abs(strain).max() > 1e-3
    assert_close(new_values, values @ rotation.T)
    assert_close(new_strain, rotation @ strain @ rotation.T)


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 1000))
def test_where_the_origin_is_and_which_images_are_taken_does_not_matter(score, seed):
    rng, atoms = np.random.default_rng(seed), disordered(seed)
    moved = atoms.copy()
    moved.positions += rng.normal(size=3) + rng.integers(-2, 3, (len(atoms), 3)) @ atoms.cell.array
    (values, strain), (new_values, new_strain) = evaluate(score, atoms), evaluate(score, moved)
    assert_close(new_values, values)
    assert_close(new_strain, strain)


def test_order_of_the_atoms_does_not_matter(score):
    atoms, order = disordered(), np.array([3, 1, 5, 0, 2, 4])
    (values, strain), (new_values, new_strain) = evaluate(score, atoms), evaluate(score, atoms[order])
    assert_close(new_values, values[order])
    assert_close(new_strain, strain)


def test_choice_of_the_cell_does_not_matter(score):
    atoms = disordered()
    other = atoms.copy()
    other.set_cell(np.array([[1, 0, 0], [1, 1, 0], [-1, 2, 1]]) @ atoms.cell.array)
    (values, strain), (new_values, new_strain) = evaluate(score, atoms), evaluate(score, other)
    assert_close(new_values, values)
    assert_close(new_strain, strain)


@pytest.mark.parametrize("repeats", [(2, 1, 1), (1, 2, 2)])
def test_a_supercell_repeats_the_vectors_and_keeps_the_matrix(score, repeats):
    atoms = disordered()
    (values, strain), (new_values, new_strain) = evaluate(score, atoms), evaluate(score, atoms.repeat(repeats))
    assert_close(new_values, np.tile(values, (np.prod(repeats), 1)))
    assert_close(new_strain, strain)


def test_matrix_is_symmetric_and_vectors_have_no_net_shift(score):
    values, strain = evaluate(score, disordered())
    assert strain == pytest.approx(strain.T, abs=1e-6)
    assert values.sum(axis=0) == pytest.approx(0, abs=1e-4)


def test_at_sites_of_inversion_symmetry_vectors_vanish_and_the_matrix_does_not(score):
    atoms = bulk("NaCl", "rocksalt", a=5.6)
    atoms.set_cell(atoms.cell.array @ np.diag([1.1, 1.0, 0.95]), scale_atoms=True)
    values, strain = evaluate(score, atoms)
    assert values == pytest.approx(0, abs=1e-4)
    traceless = strain - np.trace(strain) / 3 * np.eye(3)
    assert np.abs(np.diag(traceless)).max() > 1e-3
    assert np.abs(strain - np.diag(np.diag(strain))).max() < 1e-4


def test_context_has_no_score_and_changes_that_of_the_others(score):
    atoms = disordered()
    sigma = np.where(np.arange(6) < 3, 0.0, 0.3)
    values, strain = evaluate(score, atoms, sigma, 0.0)
    assert not values[:3].any()
    assert not strain.any()
    assert not np.allclose(values[3:], evaluate(score, atoms)[0][3:], atol=1e-3)


def test_structures_of_a_batch_do_not_see_each_other(score):
    several = [disordered(seed, n) for seed, n in enumerate((3, 6, 1, 5))]
    structure = np.repeat(np.arange(4), [len(atoms) for atoms in several])
    levels = np.array([0.05, 0.1, 0.0, 0.2])
    values, strain = score(
        np.concatenate([atoms.numbers for atoms in several]),
        np.concatenate([atoms.positions for atoms in several]),
        np.full(len(structure), 0.2),
        structure,
        np.array([atoms.cell.array for atoms in several]),
        levels,
    )
    for s, atoms in enumerate(several):
        alone, alone_strain = evaluate(score, atoms, 0.2, levels[s])
        assert_close(values[structure == s], alone)
        assert_close(strain[s], alone_strain)


def test_pairs_reach_beyond_the_cell():
    atoms = bulk("Cu", "fcc", a=3.6)
    pairs, vectors = periodic_pairs(atoms.numbers, atoms.positions, atoms.cell.array[None], np.zeros(1, int), 1.2)
    lengths = np.sort(np.linalg.norm(vectors, axis=1))
    assert lengths == pytest.approx([3.6 / np.sqrt(2)] * 12 + [3.6] * 6, abs=1e-5)
    assert not pairs.any()


def test_noise_can_be_undone():
    atoms = make_supercell(bulk("Si", a=5.43), np.eye(3) + 1)
    one = Crystals(
        atoms.numbers, atoms.get_scaled_positions(), atoms.cell.array[None], np.array([0, len(atoms)]), np.ones(1)
    )
    rng = np.random.default_rng(0)
    batch = add_noise(one, np.array([0]), np.array([0.2]), np.array([0.1]), np.array([False]), 2.5, rng)
    assert batch["noise"].sum(dim=0).numpy() == pytest.approx(0, abs=1e-4)
    assert batch["strain"][0].numpy() == pytest.approx(batch["strain"][0].T.numpy())
    distances = np.linalg.norm(batch["vectors"].numpy(), axis=1)
    assert distances.std() > 0.05


def test_strain_noise_is_the_same_for_every_direction():
    rng = np.random.default_rng(0)
    strains = np.array([bounded_strain(rng, 0.01) for _ in range(20_000)])
    direction = np.array([1.0, 2.0, -1.0]) / np.sqrt(6)
    along = np.einsum("sij,i,j->s", strains, direction, direction)
    assert along.std() == pytest.approx(1, abs=0.02)
    assert (strains**2).sum(axis=(1, 2)).mean() == pytest.approx(6, rel=0.02)


def test_training_learns_positions_and_cell():
    atoms = bulk("NaCl", "rocksalt", a=5.6, cubic=True)
    crystals = Crystals(
        atoms.numbers, atoms.get_scaled_positions(), atoms.cell.array[None], np.array([0, 8]), np.ones(1)
    )
    torch.manual_seed(0)
    module = CrystalTraining(SMALL, 1e-3, 100, "unused", {})
    stream = iter(NoisedCrystals(crystals, 8, (0.05, 0.3), 2.5, 0))
    optimizer = torch.optim.AdamW(module.parameters(), lr=5e-3)
    history = []
    for _ in range(150):
        losses = module.losses(next(stream))
        optimizer.zero_grad()
        sum(losses.values()).backward()
        optimizer.step()
        history.append([float(losses[name].detach()) for name in ("loss_positions", "loss_cell")])
    assert np.max(np.mean(history[-30:], axis=0)) < 0.6


def test_model_file_is_read_back(score, tmp_path):
    save_model(score.denoiser, SMALL, {"data": "test"}, str(tmp_path / "small.pt"))
    loaded = load_score(tmp_path / "small.pt")
    assert loaded.periodic
    for a, b in zip(evaluate(loaded, disordered()), evaluate(score, disordered()), strict=True):
        assert a == pytest.approx(b, abs=1e-6)


def test_read_crystals_leaves_out_whole_chemical_systems(tmp_path):
    cells = np.array(
        [bulk("NaCl", "rocksalt", a=5.6).cell.array, bulk("Si").cell.array, bulk("MgO", "rocksalt", a=4.2).cell.array]
    )
    arrays = {
        "n": np.array([2, 2, 2]),
        "Z": np.array([11, 17, 14, 14, 12, 8]),
        "frac": np.array([[0, 0, 0], [0.5, 0.5, 0.5]] * 3),
        "cell": cells,
    }
    np.savez(tmp_path / "few.npz", **arrays)
    kept = read_crystals(str(tmp_path / "few.npz"), ["Cl-Na", "Si"])
    assert kept.numbers.tolist() == [12, 8]
    assert len(kept) == 1
    with pytest.raises(InputError, match="no chemical system"):
        read_crystals(str(tmp_path / "few.npz"), ["Foo-O"])


class TestCalculator:
    def test_stress_has_the_sign_of_ase(self, score):
        """Along its own strain score the log density rises: a cell filter must move the cell that way."""
        atoms = disordered()
        atoms.calc = ScoreCalculator(score, sigma=0.3, temperature_K=300)
        _, strain = evaluate(score, atoms, 0.3, cell_noise(0.3))
        stress = atoms.get_stress(voigt=False)
        assert np.sum(stress * strain) < 0
        assert stress * atoms.get_volume() / 0.025852 == pytest.approx(-strain, rel=1e-3, abs=1e-5)

    def test_a_molecule_is_refused(self, score):
        with pytest.raises(InputError, match="for crystals"):
            Atoms("CO", positions=[[0, 0, 0], [0, 0, 1.1]], calculator=ScoreCalculator(score)).get_forces()


def test_numerical_stress_of_ase_has_the_sign_that_is_meant():
    from ase.calculators.emt import EMT

    atoms = bulk("Cu", a=3.4)
    atoms.calc = EMT()
    assert calculate_numerical_stress(atoms)[0] < 0  # under compression, as the stress of the score's calculator


@pytest.mark.parametrize("n", [1, 2, 3])
def test_a_score_does_not_depend_on_what_is_evaluated_with_it(score, n):
    """To the last bit, as for molecules."""
    crystals = [disordered(seed, n) for seed in range(16)]
    structure = np.repeat(np.arange(16), n)
    together, strains = score(
        np.concatenate([atoms.numbers for atoms in crystals]),
        np.concatenate([atoms.positions for atoms in crystals]),
        np.full(16 * n, 0.3),
        structure,
        np.array([atoms.cell.array for atoms in crystals]),
        np.full(16, 0.08),
    )
    alone = [evaluate(score, atoms) for atoms in crystals]
    np.testing.assert_array_equal(together, np.concatenate([values for values, _ in alone]))
    np.testing.assert_array_equal(strains, [strain for _, strain in alone])


def test_a_surface_is_not_seen_through_its_vacuum(score):
    slab = fcc111("Cu", (2, 2, 2), vacuum=2.0)
    add_adsorbate(slab, "O", 1.2, "fcc")
    slab.set_constraint(FixAtoms(range(8)))
    higher = slab.copy()
    higher.cell[2, 2] += 20.0
    repeated = slab.copy()
    repeated.pbc = True

    def forces(atoms):
        atoms.calc = ScoreCalculator(score, sigma=0.3)
        return atoms.get_forces()

    np.testing.assert_allclose(forces(slab), forces(higher), atol=1e-6)
    assert not np.allclose(forces(slab), forces(repeated), atol=1e-4)
    ends = []
    for atoms in (slab, higher):
        atoms.calc = None
        dynamics = GSSDynamics(
            atoms, score, "diffusion", CRYSTAL_SCHEDULE, sigma_start=0.3, rng=np.random.default_rng(0)
        )
        dynamics.run(5)
        ends.append(atoms.positions)
    np.testing.assert_allclose(*ends, atol=1e-4)
