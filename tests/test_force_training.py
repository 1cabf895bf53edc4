"""Forces that are learned once and for all: data, training, model files."""

import numpy as np
import pytest
from ase import Atoms
from ase.build import molecule
from ase.calculators.emt import EMT
from ase.io import write

from ase_gss import GenerativeRSS, InputError, load_score
from ase_gss.bonds import connected, is_connected
from ase_gss.cli import main
from ase_gss.composition import parse_formula
from ase_gss.score.force_data import LARGEST_FORCE, ForceData, force_validation_batches, read_forces
from ase_gss.score.learned_forces import load_forces
from ase_gss.score.model import read_model
from ase_gss.score.training import train

NAMES = "H2O", "CH4", "NH3", "CH3OH", "C2H6", "H2CO"


def frames(names=NAMES, n=12):
    rng, made = np.random.default_rng(0), []
    for name in names:
        for _ in range(n):
            atoms = molecule(name)
            atoms.positions += rng.normal(0, 0.05, atoms.positions.shape)
            atoms.calc = EMT()
            atoms.get_forces()
            made.append(atoms)
    return made


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("frames") / "frames.extxyz"
    write(path, frames())
    return str(path)


def test_what_is_read_are_the_structures_and_their_forces(file):
    data, first = read_forces(file), frames()[0]
    assert len(data) == 12 * len(NAMES)
    batch = data.batch(np.array([0, 40]))
    assert np.allclose(batch["forces"][:3], first.get_forces(), atol=1e-4)
    moved = batch["positions"][:3].numpy() - first.positions
    assert np.allclose(moved, moved[0], atol=1e-4)
    assert batch["structure"].tolist() == [0] * 3 + [1] * 6


def test_held_out_compositions_and_atoms_on_one_another_are_left_out(tmp_path):
    made = frames(["H2O", "CH4"], 2)
    made[0].set_positions(made[0].positions * 0.5)
    assert np.abs(made[0].get_forces()).max() > LARGEST_FORCE
    write(tmp_path / "x.extxyz", made)
    data = read_forces(str(tmp_path / "x.extxyz"), ["CH4"])
    assert data.numbers.tolist() == [8, 1, 1]


def test_no_composition_is_trained_on_and_validated_with(file):
    training, validation = read_forces(file).split(10, np.random.default_rng(0))
    compositions = [
        {tuple(sorted(part["numbers"].tolist())) for part in map(data.batch, np.arange(len(data))[:, None])}
        for data in (training, validation)
    ]
    assert not compositions[0] & compositions[1]
    assert len(training) + len(validation) == 12 * len(NAMES)
    judged = force_validation_batches(validation)
    assert sum(len(np.unique(batch["structure"])) for batch in judged) == len(validation)


def all_held_out(tmp_path):
    write(tmp_path / "water.extxyz", frames(["H2O"], 48))
    return tmp_path / "water.extxyz"


def test_what_cannot_be_learned_from_says_so(tmp_path):
    bare = str(tmp_path / "bare.extxyz")
    write(bare, [molecule("H2O")] * 3)
    with pytest.raises(InputError, match="without forces"):
        read_forces(bare)
    one = ForceData.from_arrays([(np.array([1, 1]), np.eye(3)[:2], np.zeros((2, 3)))] * 4)
    with pytest.raises(InputError, match="two compositions"):
        one.split(2, np.random.default_rng(0))
    with pytest.raises(InputError, match="qm9pack has no forces"):
        read_forces("qm9pack")
    periodic = molecule("H2O", calculator=EMT(), cell=[9, 9, 9], pbc=True)
    periodic.get_forces()
    write(tmp_path / "periodic.extxyz", periodic)
    with pytest.raises(InputError, match="periodic"):
        read_forces(str(tmp_path / "periodic.extxyz"))
    with pytest.raises(InputError, match=r"Of the 48 structures in .* none is left"):
        read_forces(str(all_held_out(tmp_path)), ["H2O"])
    with pytest.raises(InputError, match="give molecules, crystals, forces"):
        train(bare, str(tmp_path / "x.pt"), kind="stress")


def test_no_element_is_taken_away_from_training():
    parts = [([1, 1], 10), ([1, 7], 10), ([1, 6], 10), ([1, 1, 1], 10)]
    data = ForceData.from_arrays(
        [(np.array(z), np.eye(3)[: len(z)], np.zeros((len(z), 3))) for z, n in parts for _ in range(n)]
    )
    for seed in range(6):
        training, validation = data.split(15, np.random.default_rng(seed))
        assert set(training.numbers) == {1, 6, 7}
        assert len(validation) == 20


def test_a_large_composition_is_not_taken_away_from_training():
    small = [(np.array([1, 1]), np.eye(3)[:2], np.zeros((2, 3)))] * 10
    large = [(np.array([1, 8]), np.eye(3)[:2], np.zeros((2, 3)))] * 200
    for seed in range(6):
        training, validation = ForceData.from_arrays(small + large).split(30, np.random.default_rng(seed))
        assert (len(training), len(validation)) == (200, 10)


def test_training_writes_forces_that_a_search_takes(file, tmp_path):
    output = str(tmp_path / "mine.pt")
    small = {"steps": 30, "batch_size": 8, "n_features": 16, "n_blocks": 2, "validate_every": 15, "progress": False}
    train(file, output, kind="forces", hold_out=("CH4",), **small)
    forces = load_forces(output)
    assert {1, 8} < forces.elements <= {1, 6, 7, 8}
    assert forces.knows([1, 8])
    assert not forces.knows([1, 16])
    positions = np.array([molecule("H2O").positions])
    assert np.isfinite(forces(np.array([8, 1, 1]), positions)).all()
    with pytest.raises(InputError, match="has learned forces, not a score"):
        load_score(output)
    search = GenerativeRSS("CH2O", "emt", forces=output, adapt=False)
    search.run(trials=16)
    assert any(record.regime.startswith("settled") for record in search.archive.records)
    assert search.archive.metadata["settings"]["forces"] == forces.source
    assert forces.source.startswith("mine.pt ")
    with pytest.raises(InputError, match=r"another n_features \(16\): remove it, or give another output"):
        train(file, output, kind="forces", hold_out=("CH4",), **small | {"n_features": 24})
    with pytest.raises(InputError, match=r"another kind \(forces\)"):
        train(file, output, hold_out=("CH4",), **small)


@pytest.mark.parametrize(("steps", "every", "expected"), [(7, 1000, 7), (15, 10, 14), (20, 10, 20)])
def test_the_last_step_is_written(file, tmp_path, steps, every, expected):
    output = str(tmp_path / "mine.pt")
    small = {"batch_size": 4, "n_features": 8, "n_blocks": 1, "progress": False}
    train(file, output, kind="forces", steps=steps, validate_every=every, **small)
    assert read_model(output, "forces")[2]["steps"] == expected


def test_a_score_is_no_forces():
    with pytest.raises(InputError, match="is a score of molecules, not forces"):
        load_forces("molecules")
    with pytest.raises(InputError, match="Score is no learned forces"):
        load_forces(load_score("molecules"))
    with pytest.raises(InputError, match="LearnedForces is no score"):
        GenerativeRSS("C2H6O", "lj", score=load_forces("molecules-forces"))


def test_the_shipped_forces_say_what_they_know():
    forces = load_forces("molecules-forces")
    assert forces.elements == {1, 6, 7, 8, 9}
    assert forces.source.startswith("molecules-forces ")
    atoms = molecule("CH3OH")
    atoms.set_cell([9, 9, 9])
    atoms.pbc, atoms.calc = True, forces
    with pytest.raises(InputError, match=r"set atoms\.pbc = False"):
        atoms.get_forces()


def test_the_shipped_forces_lead_to_the_shape_of_molecules():
    """Of formaldehyde distorted by 0.1 Å: bond lengths of GFN2-xTB."""
    forces, atoms = (
        load_forces("molecules-forces"),
        Atoms("COH2", positions=[[0, 0, 0], [1.25, 0.1, 0], [-0.5, 1.0, 0.1], [-0.6, -0.9, 0]]),
    )
    atoms.calc = forces
    from ase_gss.relax import hand_off

    hand_off(atoms, fmax=0.05)
    assert atoms.get_distance(0, 1) == pytest.approx(1.20, abs=0.03)
    assert atoms.get_distance(0, 2) == pytest.approx(1.10, abs=0.03)


def test_a_search_settles_from_the_first_trial_on_where_the_elements_are_known(tmp_path):
    search = GenerativeRSS("CH2O", "emt", adapt=False, database=tmp_path / "x.db")
    search.run(trials=32)
    settled = [record for record in search.archive.records if record.regime.startswith("settled")]
    assert len(settled) > 24
    with pytest.raises(InputError, match="forces"):
        GenerativeRSS("CH2O", "emt", adapt=False, forces=False, database=tmp_path / "x.db")
    assert not GenerativeRSS("CH4Si", "lj", adapt=False).plan.settles_at_once
    names = {regime.name for regime in GenerativeRSS("CH4Si", "lj", adapt=False).plan.regimes}
    assert not any(name.startswith("settled") for name in names)


def test_the_shell_says_where_they_have_to_wait(tmp_path, capsys):
    for formula, waits in (("CH3Al", True), ("CH2O", False)):
        assert main(["search", formula, "-c", "emt", "--trials", "1", "-o", str(tmp_path / f"{formula}.db")]) == 0
        assert ("learned forces do not know" in capsys.readouterr().out) == waits


def test_the_shell_can_leave_them_out(tmp_path, capsys):
    database = str(tmp_path / "x.db")
    arguments = ["search", "CH2O", "-c", "emt", "--trials", "4", "--no-adapt", "-o", database]
    assert main([*arguments, "--forces", "none"]) == 0
    assert main(arguments) == 2
    assert "give --forces none" in capsys.readouterr().err


def test_one_piece_or_not_is_what_the_bonding_graph_says():
    rng, numbers = np.random.default_rng(0), parse_formula("C3H6O")
    positions = 0.7 * rng.normal(size=(200, len(numbers), 3))
    expected = [is_connected(Atoms(numbers, positions=each)) for each in positions]
    assert 10 < sum(expected) < 190
    assert connected(numbers, positions).tolist() == expected
    wide = connected(numbers, positions, np.full(200, 2.0))
    assert np.all(wide >= expected)
