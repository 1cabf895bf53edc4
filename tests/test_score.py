"""The learned score: symmetries, limits, loading, the ASE calculator, training."""

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk, molecule
from ase.constraints import FixAtoms
from ase.data import atomic_numbers
from ase.io import write
from ase.optimize import FIRE
from hypothesis import given, settings
from hypothesis import strategies as st

from ase_gss import InputError, ScoreCalculator, load_score
from ase_gss.score.data import add_noise, read_structures
from ase_gss.score.denoiser import Denoiser, all_pairs
from ase_gss.score.elements import MAX_ATOMIC_NUMBER, element_table, period_and_group
from ase_gss.score.model import Score, save_model


@pytest.fixture(scope="module")
def score():
    return load_score("molecules")


def evaluate(score, atoms, sigma, positions=None):
    positions = atoms.positions if positions is None else positions
    sigma = np.broadcast_to(np.asarray(sigma, dtype=float), len(atoms))
    return score(atoms.numbers, positions, sigma, np.zeros(len(atoms), dtype=int))


def rotation(rng):
    q, r = np.linalg.qr(rng.normal(size=(3, 3)))
    return q * np.sign(np.diag(r))  # proper or not: the score of a mirror image is the mirror image


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([0.02, 0.1, 0.5, 2.0]))
def test_symmetries(score, seed, sigma):
    rng = np.random.default_rng(seed)
    atoms = molecule("CH3CONH2")
    atoms.positions += sigma * rng.normal(size=(len(atoms), 3))
    values = evaluate(score, atoms, sigma)
    scale = np.abs(values).max()
    turn, shift, order = rotation(rng), 100 * rng.normal(size=3), rng.permutation(len(atoms))
    np.testing.assert_allclose(evaluate(score, atoms, sigma, atoms.positions @ turn), values @ turn, atol=2e-4 * scale)
    np.testing.assert_allclose(evaluate(score, atoms, sigma, atoms.positions + shift), values, atol=2e-4 * scale)
    np.testing.assert_allclose(evaluate(score, atoms[order], sigma), values[order], atol=2e-4 * scale)
    np.testing.assert_allclose(values.sum(axis=0), 0, atol=2e-4 * scale)


def test_a_batch_of_different_molecules_is_each_alone(score):
    parts = [molecule(name) for name in ("H2O", "CH3COCH3", "C6H6", "N2")] * 12
    counts = [len(atoms) for atoms in parts]
    sigmas = np.linspace(0.05, 2.0, len(parts))
    calls = score.calls
    joined = score(
        np.concatenate([atoms.numbers for atoms in parts]),
        np.concatenate([atoms.positions for atoms in parts]),
        np.repeat(sigmas, counts),
        np.repeat(np.arange(len(parts)), counts),
    )
    assert score.calls - calls == len(parts)
    for atoms, sigma, values in zip(parts, sigmas, np.split(joined, np.cumsum(counts)[:-1]), strict=True):
        np.testing.assert_allclose(values, evaluate(score, atoms, sigma), rtol=1e-3, atol=1e-3)


def test_the_score_points_back_to_the_molecule(score):
    rng = np.random.default_rng(0)
    atoms = molecule("CH3CH2OH")
    noise = rng.normal(size=(len(atoms), 3))
    noise -= noise.mean(axis=0)
    for sigma in (0.05, 0.1, 0.2):
        restored = (
            atoms.positions + sigma * noise + sigma**2 * evaluate(score, atoms, sigma, atoms.positions + sigma * noise)
        )
        assert np.std(restored - atoms.positions) < 0.7 * sigma


def test_far_above_the_molecule_the_score_is_that_of_a_cloud(score):
    # For sigma far beyond the extent s of the molecule the score is -x/(s² + sigma²).
    rng = np.random.default_rng(0)
    atoms, sigma = molecule("CH3CH2OH"), 8.0
    x = sigma * rng.normal(size=(len(atoms), 3))
    x -= x.mean(axis=0)
    np.testing.assert_allclose(evaluate(score, atoms, sigma, x), -x / sigma**2, atol=0.4 * np.abs(x).max() / sigma**2)


def test_fixed_atoms_have_no_score_and_are_context(score):
    atoms = molecule("CH3CH2OH")
    atoms.rattle(0.1, seed=1)
    sigma = np.full(len(atoms), 0.2)
    sigma[:4] = 0
    values = evaluate(score, atoms, sigma)
    assert np.all(values[:4] == 0)
    assert np.all(np.linalg.norm(values[4:], axis=1) > 0)
    moved = atoms.copy()
    moved.positions[0] += 0.3
    assert not np.allclose(evaluate(score, moved, sigma)[4:], values[4:])


def test_the_shipped_score_says_where_it_comes_from(score):
    assert set(score.card["held_out"]) >= {"C3H6O", "C4H6O", "C2H5NO", "C3H5NO", "C5H8O", "C4H7NO", "C2H3NO2"}
    assert {"data", "git_revision", "training_seconds", "validation_loss", "structures"} <= set(score.card)
    assert all(loss < 1 for loss in score.card["validation_loss"].values())


def test_elements_beyond_training_have_finite_scores(score):
    for name in ("CH3SiH3", "CH3Cl", "CH3SH", "PH3", "LiH"):
        assert np.isfinite(evaluate(score, molecule(name), 0.1)).all()
    score.check_elements(np.array([1, 96]))
    with pytest.raises(InputError, match="atomic number 97"):
        score.check_elements(np.array([6, 97]))


def test_score_calculator_works_with_fire():
    atoms = molecule("CH3CH2OH")
    reference = atoms.get_distance(0, 1)
    atoms.rattle(0.05, seed=3)
    atoms.set_constraint(FixAtoms([0]))
    fixed = atoms.positions[0].copy()
    atoms.calc = ScoreCalculator("molecules", sigma=0.1)
    assert atoms.get_potential_energy() == 0.0
    FIRE(atoms, logfile=None).run(fmax=0.05, steps=100)
    assert atoms.get_distance(0, 1) == pytest.approx(reference, abs=0.1)
    np.testing.assert_array_equal(atoms.positions[0], fixed)


def test_score_calculator_notices_what_has_changed():
    atoms = molecule("C2H6")
    atoms.rattle(0.05, seed=0)
    calculator = atoms.calc = ScoreCalculator("molecules", sigma=0.05)
    before = atoms.get_forces()
    calculator.set(sigma=0.5)
    after = atoms.get_forces()
    assert np.abs(after).max() < np.abs(before).max() / 10
    atoms.set_constraint(FixAtoms([0]))
    held = atoms.get_forces(apply_constraint=False)
    assert np.all(held[0] == 0)
    assert not np.allclose(held[1:], after[1:])
    atoms.cell, atoms.pbc = np.eye(3) * 10, True
    with pytest.raises(InputError, match="take score='crystals'"):
        atoms.get_forces()


def test_unreadable_models_are_refused(tmp_path):
    with pytest.raises(InputError, match="No score 'molecule'"):
        load_score("molecule")
    text = tmp_path / "text.pt"
    for content in ("not a model", "the model is not here", ""):
        text.write_text(content)
        with pytest.raises(InputError, match="not a model file"):
            load_score(text)
    other = tmp_path / "other.pt"
    torch.save({"weights": torch.zeros(3)}, other)
    with pytest.raises(InputError, match="format"):
        load_score(other)

    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "written"), "w"))

    torch.save(Evil(), tmp_path / "evil.pt")
    with pytest.raises(InputError, match="safely"):
        load_score(tmp_path / "evil.pt")
    assert not (tmp_path / "written").exists()


def test_a_saved_model_is_the_same_score(tmp_path, score):
    network = {"n_features": 16, "n_blocks": 2}
    torch.manual_seed(0)
    denoiser = Denoiser(**network)
    save_model(denoiser, network, {"data": "none"}, str(tmp_path / "m.pt"))
    atoms = molecule("H2O")
    again = load_score(tmp_path / "m.pt")
    assert again.card == {"data": "none"}
    np.testing.assert_array_equal(evaluate(again, atoms, 0.3), evaluate(Score(denoiser), atoms, 0.3))
    assert [path.name for path in tmp_path.iterdir()] == ["m.pt"]


def test_periodic_table():
    places = {"H": (1, 1), "He": (1, 18), "C": (2, 14), "S": (3, 16), "Ti": (4, 4), "Zn": (4, 12), "La": (6, 19)}
    places |= {"Hf": (6, 4), "Au": (6, 11), "U": (7, 19), "Cs": (6, 1), "Ba": (6, 2), "Br": (4, 17), "Sn": (5, 14)}
    for symbol, place in places.items():
        assert period_and_group(atomic_numbers[symbol]) == place
    classes, values = element_table()
    assert classes.shape[0] == values.shape[0] == MAX_ATOMIC_NUMBER + 1
    assert np.all(classes[1:].sum(axis=1) == 1)


@given(st.lists(st.integers(1, 5), min_size=1, max_size=6))
def test_all_pairs(counts):
    structure = np.repeat(np.arange(len(counts)), counts)
    pairs = all_pairs(torch.as_tensor(structure), len(counts)).numpy().T
    expected = [(i, j) for i in range(len(structure)) for j in range(len(structure)) if i != j]
    expected = [(i, j) for i, j in expected if structure[i] == structure[j]]
    assert sorted(map(tuple, pairs)) == expected
    with_itself = all_pairs(torch.as_tensor(structure), len(counts), with_itself=True).numpy().T
    assert sorted(map(tuple, with_itself)) == sorted(expected + [(i, i) for i in range(len(structure))])


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("n", [1, 2, 7])
def test_structures_of_one_size_are_as_in_a_mixed_batch(n, training):
    """They go another way through the network, and so do its gradients."""
    torch.manual_seed(0)
    denoiser = Denoiser(n_features=16, n_blocks=2, jitter=0.0).train(training)
    numbers, copies = torch.tensor(([6, 8, 7] + [1] * n)[:n]), 3
    positions, other = 1.5 * torch.randn(copies * n, 3), torch.randn(n + 1, 3)
    structure = torch.arange(copies).repeat_interleave(n)

    def outcome(mixed):
        batch = [numbers.repeat(copies), positions, torch.full((copies * n,), 0.3), structure]
        if mixed:
            more = [torch.ones(n + 1, dtype=torch.long), other, torch.ones(n + 1), torch.full((n + 1,), copies)]
            batch = [torch.cat(pair) for pair in zip(batch, more, strict=True)]
        output = denoiser.raw(*batch, copies + mixed)[: copies * n]
        return output, torch.autograd.grad((output**2).sum(), denoiser.network.filters.weight, allow_unused=True)[0]

    for one_size, mixed in zip(outcome(False), outcome(True), strict=True):
        torch.testing.assert_close(one_size, mixed, atol=1e-5, rtol=1e-4)


def small_data(path, n=40):
    rng = np.random.default_rng(0)
    frames = []
    for name in ("H2O", "NH3", "CH4", "CH3OH"):
        for _ in range(n // 4):
            atoms = molecule(name)
            atoms.positions += 0.01 * rng.normal(size=(len(atoms), 3))
            frames.append(atoms)
    write(path, frames)
    return str(path)


def test_held_out_formulas_are_left_out(tmp_path):
    source = small_data(tmp_path / "small.extxyz")
    assert len(read_structures(source)) == 40
    kept = read_structures(source, hold_out=["CH4O"])
    assert len(kept) == 30
    assert 8 not in kept.numbers[: kept.first[-1]] or set(np.diff(kept.first)) == {3, 4, 5}
    with pytest.raises(InputError, match="no structure"):
        read_structures(source, hold_out=["CH4O", "CH4", "H2O", "H3N"])


def test_crystals_are_no_molecules_to_learn_from(tmp_path):
    write(tmp_path / "x.extxyz", [bulk("NaCl", "rocksalt", a=5.6), bulk("Si")])
    with pytest.raises(InputError, match="periodic: add --crystal"):
        read_structures(str(tmp_path / "x.extxyz"))


def test_noise_is_that_of_its_level_and_moves_no_centre(tmp_path):
    structures = read_structures(small_data(tmp_path / "small.extxyz"))
    rng = np.random.default_rng(0)
    batch = add_noise(structures, np.arange(40), np.full(40, 0.5), rng, context=0.0)
    noise = (batch["noised"] - batch["clean"]).numpy()
    assert np.std(noise) == pytest.approx(0.5 * np.sqrt(1 - 40 / len(noise)), rel=0.1)
    for b in range(40):
        np.testing.assert_allclose(noise[batch["structure"].numpy() == b].mean(axis=0), 0, atol=1e-6)
    part = add_noise(structures, np.arange(40), np.full(40, 0.5), rng, context=1.0)
    fixed = (part["sigma"] == 0).numpy()
    assert 0 < fixed.mean() < 1
    np.testing.assert_array_equal(part["noised"][fixed], part["clean"][fixed])


def test_one_structure_is_too_few_to_learn_from(tmp_path):
    from ase_gss.score.training import train

    write(tmp_path / "one.extxyz", molecule("H2O"))
    write(tmp_path / "crystal.extxyz", bulk("Cu"))
    for name, kind in (("one.extxyz", "molecules"), ("crystal.extxyz", "crystals")):
        with pytest.raises(InputError, match="too few structures"):
            train(str(tmp_path / name), str(tmp_path / "model.pt"), steps=1, kind=kind, progress=False)


def test_training_learns_resumes_and_ships(tmp_path):
    from ase_gss.score.training import train

    source, output = small_data(tmp_path / "small.extxyz"), str(tmp_path / "model.pt")
    small = {
        "n_features": 16,
        "n_blocks": 2,
        "batch_size": 16,
        "validate_every": 20,
        "learning_rate": 3e-3,
        "progress": False,
    }
    train(source, output, steps=20, hold_out=("CH4O",), **small)
    first = load_score(output).card
    assert first["steps"] == 20
    assert first["held_out"] == ["CH4O"]
    assert first["elements"] == [1, 6, 7, 8]
    train(source, output, steps=200, hold_out=("CH4O",), **small)
    second = load_score(output).card
    assert second["steps"] == 200
    assert second["validation_loss"]["validation_0.1"] < first["validation_loss"]["validation_0.1"]
    atoms = Atoms("OH2", positions=[[0, 0, 0], [0.9, 0, 0], [0, 0.9, 0]])
    assert np.isfinite(evaluate(load_score(output), atoms, 0.1)).all()


@pytest.mark.parametrize("n", [7, 10, 13, 17])
def test_a_score_does_not_depend_on_what_is_evaluated_with_it(n):
    """To the last bit: a trial is what it is whoever is sampled along with it, also after an interruption."""
    score, rng, copies = load_score("molecules"), np.random.default_rng(0), 16
    numbers = np.array(([6, 6, 8] + [1] * n)[:n])
    sigma = np.geomspace(0.1, 4.0, copies)
    positions = [rng.normal(size=(n, 3)) * (1.5 + level) for level in sigma]
    structure = np.repeat(np.arange(copies), n)
    together = score(np.tile(numbers, copies), np.concatenate(positions), np.repeat(sigma, n), structure)
    alone = [score(numbers, p, np.full(n, level), np.zeros(n, int)) for p, level in zip(positions, sigma, strict=True)]
    np.testing.assert_array_equal(together, np.concatenate(alone))
