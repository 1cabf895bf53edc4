"""Same crystal or another one; the ranked list by energy per atom; recognising samples; space groups."""

import math
import pickle
import sys
import time
from dataclasses import replace

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, make_supercell, molecule
from ase.calculators.singlepoint import SinglePointCalculator
from ase.spacegroup import crystal
from ase.units import GPa
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from ase_gss.crystal_minima import CrystalComparison, space_group
from ase_gss.errors import InputError
from ase_gss.memory import Memory
from ase_gss.minima import MinimaList

pytest.importorskip("pymatgen")

SETTINGS = [CrystalComparison.searching, CrystalComparison.refined]


def spaced(spacegroup, cellpar, **sites):
    """A crystal, from its Wyckoff positions."""
    symbols = [name.rstrip("0123456789") for name in sites]
    atoms = crystal(symbols, list(sites.values()), spacegroup=spacegroup, cellpar=cellpar, primitive_cell=True)
    atoms.info = {}
    return atoms


def quartz(spacegroup):
    """Of either hand."""
    hand = 1 if spacegroup == 154 else -1
    atoms = spaced(154, [4.916, 4.916, 5.405, 90, 90, 120], Si=(0.4697, 0, 0), O=(0.4135, 0.2669, 0.1191))
    atoms.positions[:, 2] *= hand
    return atoms


def graphite(shift=0.0, height=6.7):
    """Two layers, the second moved by a part of the cell."""
    places = [[0, 0, 0], [1 / 3, 2 / 3, 0], [shift, 0, 0.5], [1 / 3 + shift, 2 / 3, 0.5]]
    return Atoms("C4", scaled_positions=places, cell=[2.46, 2.46, height, 90, 90, 120], pbc=True)


RUTILE = spaced(136, [4.594, 4.594, 2.959, 90, 90, 90], Ti=(0, 0, 0), O=(0.3053, 0.3053, 0))
ANATASE = spaced(141, [3.785, 3.785, 9.514, 90, 90, 90], Ti=(0, 0, 0), O=(0, 0, 0.2081))
BROOKITE = spaced(
    61,
    [9.184, 5.447, 5.145, 90, 90, 90],
    Ti=(0.1289, 0.0972, 0.8628),
    O1=(0.0095, 0.1491, 0.1835),
    O2=(0.2314, 0.1110, 0.5366),
)
CRYSTALS = {
    "rutile": RUTILE,
    "anatase": ANATASE,
    "quartz": quartz(154),
    "diamond": bulk("C", "diamond", 3.567),
    "zinc": bulk("Zn"),
    "salt": bulk("NaCl", "rocksalt", a=5.64),
}


def with_energy(atoms, energy_per_atom=0.0):
    atoms = atoms.copy()
    atoms.calc = SinglePointCalculator(atoms, energy=energy_per_atom * len(atoms))
    return atoms


def same(comparison, a, b, difference=0.0):
    return comparison.same(with_energy(a), with_energy(b, difference))


def rewritten(atoms, seed, factor=1):
    """The same crystal in another cell, `factor` times as large, moved, turned, its atoms in another order."""
    rng = np.random.default_rng(seed)
    cell = np.eye(3, dtype=int)
    for _ in range(2):
        i, j = rng.choice(3, 2, replace=False)
        cell[i] += rng.choice([-1, 1]) * cell[j]
    cell[rng.integers(3)] *= factor
    other = make_supercell(atoms, cell)[rng.permutation(len(atoms) * factor)]
    other.positions += rng.normal(scale=5, size=3)
    other.set_cell(other.cell @ Rotation.random(rng=seed).as_matrix(), scale_atoms=True)
    other.wrap()
    return other


def strained(atoms, scale, seed):
    """With a random symmetric strain of this size and atoms moved by `scale` Å."""
    rng = np.random.default_rng(seed)
    strain, other = rng.uniform(-scale, scale, (3, 3)), atoms.copy()
    other.set_cell(other.cell @ (np.eye(3) + (strain + strain.T) / 2), scale_atoms=True)
    other.positions += rng.uniform(-scale, scale, other.positions.shape)
    return other


@settings(max_examples=25, deadline=None)
@given(
    name=st.sampled_from(list(CRYSTALS)),
    seed=st.integers(0, 2**32 - 1),
    factor=st.integers(1, 3),
    setting=st.sampled_from(SETTINGS),
)
def test_cell_order_place_and_orientation_do_not_matter(name, seed, factor, setting):
    other = rewritten(CRYSTALS[name], seed, factor)
    assert same(setting(), CRYSTALS[name], other, 0.003)
    assert same(setting(), other, CRYSTALS[name], 0.003)


@settings(max_examples=15, deadline=None)
@given(name=st.sampled_from(list(CRYSTALS)), seed=st.integers(0, 2**32 - 1), setting=st.sampled_from(SETTINGS))
def test_what_relaxation_leaves_does_not_matter(name, seed, setting):
    other = strained(rewritten(CRYSTALS[name], seed), 0.005, seed)
    assert same(setting(), CRYSTALS[name], other, 0.002)


@pytest.mark.parametrize("setting", SETTINGS)
def test_polymorphs_of_equal_energy_stay_apart(setting):
    polymorphs = [RUTILE, ANATASE, BROOKITE]
    for k, a in enumerate(polymorphs):
        for m, b in enumerate(polymorphs):
            assert same(setting(), a, b) == (k == m)
    assert not same(setting(), bulk("Zn"), bulk("Zn", "bcc", 2.9))
    assert not same(setting(), bulk("Zn"), bulk("Mg"))


@pytest.mark.parametrize("setting", SETTINGS)
def test_energy_per_atom_separates(setting):
    comparison, big = setting(), rewritten(ANATASE, 0, 3)
    assert same(comparison, ANATASE, big, 0.9 * comparison.energy_tolerance)
    assert not same(comparison, ANATASE, big, 1.1 * comparison.energy_tolerance)


@pytest.mark.parametrize("setting", SETTINGS)
def test_volume_separates(setting):
    wide = RUTILE.copy()
    wide.set_cell(1.1 * wide.cell, scale_atoms=True)
    assert not same(setting(), RUTILE, wide)


@pytest.mark.parametrize("setting", SETTINGS)
def test_mirror_images_are_one(setting):
    left, right = quartz(154), quartz(152)
    assert {space_group(left)[1], space_group(right)[1]} == {152, 154}
    assert same(setting(), left, right)


@pytest.mark.parametrize("shift", [1 / 3, 0.17])
def test_layers_count_once_when_refined(shift):
    assert same(CrystalComparison.refined(), graphite(), graphite(shift, height=7.9))
    assert same(CrystalComparison.refined(), graphite(), rewritten(graphite(shift), 1, 2))
    assert not same(CrystalComparison.refined(), graphite(), graphite(shift), 0.006)
    assert not same(CrystalComparison.searching(), graphite(), graphite(0.17, height=7.9))
    assert not same(CrystalComparison.refined(), graphite(), bulk("C", "diamond", 3.567))


def test_a_list_ranks_per_atom():
    minima = MinimaList(CrystalComparison.searching())
    big = rewritten(RUTILE, 3, 2)
    assert minima.add(ANATASE, -8.00 * len(ANATASE), 0, 10) == (0, True)
    assert minima.add(RUTILE, -8.05 * len(RUTILE), 1, 20) == (1, True)
    # Twelve atoms have the lower energy, six the lower energy per atom.
    assert minima.add(big, -8.046 * len(big), 2, 30) == (1, False)
    assert minima.hits == [1, 2]
    assert minima.energies == pytest.approx([-8.00, -8.05])
    rutile, anatase = minima.ranked()
    counted = {"hits": 2, "first_trial": 1, "first_call": 20, "trial": 1}
    assert counted.items() <= rutile.info.items()
    assert rutile.get_potential_energy() == pytest.approx(-8.05 * len(RUTILE))
    assert len(anatase) == len(ANATASE)


def test_stress_is_kept():
    atoms = RUTILE.copy()
    atoms.calc = SinglePointCalculator(atoms, energy=-1.0, forces=np.ones((6, 3)), stress=np.arange(6.0))
    minima = MinimaList(CrystalComparison.searching())
    minima.add(atoms, -1.0, 0, 1)
    (kept,) = minima.ranked()
    assert np.array_equal(kept.get_stress(), np.arange(6.0))
    assert np.array_equal(kept.get_forces(), np.ones((6, 3)))


def test_under_pressure_the_enthalpy_ranks():
    comparison = CrystalComparison.refined(pressure=10 * GPa)
    described = comparison.describe(ANATASE, -12.0)
    assert described.energy == -12.0
    assert described.ranking_energy == pytest.approx((-12.0 + 10 * GPa * ANATASE.get_volume()) / len(ANATASE))


def test_memory_recognises_rough_samples_only():
    memory = Memory(CrystalComparison.searching())
    memory.remember(RUTILE, 0)
    memory.remember(ANATASE, 1)
    for seed in range(5):
        sampled = strained(rewritten(ANATASE, seed, 2), 0.05, seed)
        sampled.set_cell(1.04 * sampled.cell, scale_atoms=True)
        assert memory.look_at(sampled, before=2).known == 1
    assert memory.look_at(BROOKITE, before=2).known is None
    assert memory.look_at(ANATASE, before=1).known is None
    rough = strained(ANATASE, 0.0, 0)
    rough.positions[0] += [0.9, 0.3, 0.2]
    assert memory.look_at(rough, before=2).known is None


def test_without_energies_any_energy_goes():
    comparison = replace(CrystalComparison.searching(), energy_tolerance=math.inf)
    assert same(comparison, RUTILE, rewritten(RUTILE, 0, 2), 5.0)
    assert not same(comparison, RUTILE, ANATASE)


def test_a_molecule_is_no_crystal():
    with pytest.raises(InputError, match="three lattice vectors"):
        CrystalComparison.searching().describe(molecule("H2O"), 0.0)


def test_without_pymatgen_the_extra_is_named(monkeypatch):
    for module in ("core", "analysis"):
        monkeypatch.setitem(sys.modules, f"pymatgen.{module}.structure_matcher", None)
    with pytest.raises(InputError, match=r"ase-gss\[crystals\]"):
        CrystalComparison.searching()


def test_a_comparison_travels_to_workers():
    comparison = pickle.loads(pickle.dumps(CrystalComparison.refined()))
    assert comparison == CrystalComparison.refined()
    assert same(comparison, RUTILE, rewritten(RUTILE, 0))


def test_space_groups():
    assert space_group(RUTILE) == ("P4_2/mnm (136)", 136)
    assert space_group(strained(RUTILE, 0.005, 0)) == ("P4_2/mnm (136)", 136)
    assert space_group(bulk("C", "diamond", 3.567))[1] == 227


@pytest.mark.parametrize("cell", [np.zeros((3, 3)), np.diag([5.0, 5.0, 1e-9])])
def test_space_group_of_nonsense(cell):
    assert space_group(Atoms("H2", np.zeros((2, 3)), cell=cell, pbc=True)) == ("P1 (1)", 1)


def test_hundreds_of_ends_take_seconds():
    ends = [rewritten(CRYSTALS[name], seed) for seed in range(5) for name in CRYSTALS]
    minima, start = MinimaList(CrystalComparison.searching()), time.process_time()
    for trial in range(120):
        atoms = ends[trial % len(ends)]
        minima.add(atoms, -0.001 * len(atoms), trial, trial)
    assert len(minima) == len(CRYSTALS)
    assert time.process_time() - start < 10
