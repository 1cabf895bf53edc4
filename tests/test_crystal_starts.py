"""Random crystals, their cells and volumes, and atoms on a surface."""

import sys

import numpy as np
import pytest
from ase import Atoms
from ase.build import add_vacuum, bulk, fcc111
from ase.cell import Cell
from ase.constraints import FixAtoms
from ase.geometry import get_distances
from hypothesis import given, settings
from hypothesis import strategies as st

from ase_gss import InputError, symmetric_starts
from ase_gss.composition import parse_formula
from ase_gss.crystal_starts import random_crystal, uniform_crystal
from ase_gss.random_cells import compact_cell, random_cell
from ase_gss.starts import minimum_separations
from ase_gss.surface_starts import random_in_region
from ase_gss.systems import Surface
from ase_gss.volumes import typical_volume

COMPOSITIONS = ["Ti4O8", "Al4O6", "Ca2Ti2O6", "Si16", "C", "HLi"]


def closest(atoms):
    """Distances (N, N) to the nearest image, on the diagonal to an atom's own nearest one, counted the slow way."""
    distances = np.full((len(atoms), len(atoms)), np.inf)
    for image in np.ndindex(7, 7, 7):
        image = (np.array(image) - 3) * atoms.pbc
        shifted = atoms.positions + image @ atoms.cell
        between = np.linalg.norm(atoms.positions[:, None] - shifted[None], axis=-1)
        if not image.any():
            np.fill_diagonal(between, np.inf)
        distances = np.minimum(distances, between)
    return distances


# --- volumes ---


@pytest.mark.parametrize(
    ("formula", "volume", "tolerance"),
    # Å3 an atom, measured. The first ten are of the systems that no fit has seen, the others of systems that it has.
    [
        ("TiO2", 10.8, 0.1),
        ("SiO2", 12.6, 0.1),
        ("Al2O3", 8.5, 0.16),
        ("CaTiO3", 11.2, 0.1),
        ("MgO", 9.3, 0.12),
        ("SiC", 10.3, 0.1),
        ("NaCl", 22.4, 0.1),
        ("ZnS", 19.8, 0.1),
        ("GaAs", 22.6, 0.1),
        ("Si", 20.0, 0.28),
        ("Fe", 11.8, 0.1),
        ("AgBr", 24.1, 0.16),
        ("MgAl2O4", 9.4, 0.1),
        ("Au", 17.0, 0.1),
    ],
)
def test_typical_volumes_are_those_of_nature(formula, volume, tolerance):
    numbers = parse_formula(formula)
    assert typical_volume(numbers) / len(numbers) == pytest.approx(volume, rel=tolerance)
    assert typical_volume(np.tile(numbers, 3)) == pytest.approx(3 * typical_volume(numbers))


def test_every_element_to_plutonium_has_a_volume():
    volumes = [typical_volume([number]) for number in range(1, 95)]
    assert 5 < min(volumes) < max(volumes) < 90
    for numbers in ([], [95], [0]):
        with pytest.raises(InputError):
            typical_volume(np.array(numbers))


# --- cells ---


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10**6), st.floats(5, 2000))
def test_random_cells_are_compact_and_right_handed(seed, volume):
    cell = random_cell(volume, np.random.default_rng(seed))
    assert np.linalg.det(cell) == pytest.approx(volume)
    angles = Cell(cell).angles()
    assert np.all((angles > 59.9) & (angles < 120.1))
    assert np.all(angles <= 90) or np.all(angles >= 90)
    assert np.all(np.diff(np.linalg.norm(cell, axis=1)) >= -1e-9)
    np.testing.assert_allclose(np.triu(cell, 1), 0.0, atol=1e-9)
    np.testing.assert_array_equal(cell, random_cell(volume, np.random.default_rng(seed)))


def test_random_cells_are_as_long_and_as_oblique_as_known_crystals():
    rng = np.random.default_rng(0)
    cells = np.array([random_cell(100.0, rng) for _ in range(400)])
    lengths = np.linalg.norm(cells, axis=2)
    # Quartiles of 32 000 known crystals: 1.04, 1.43, 1.92 (many of them cubic), and 0.85, 0.89, 1.
    assert np.median(lengths[:, 2] / lengths[:, 0]) == pytest.approx(1.55, abs=0.15)
    assert 2.2 < np.quantile(lengths[:, 2] / lengths[:, 0], 0.95) < 3.5
    assert np.median(100.0 / lengths.prod(axis=1)) == pytest.approx(0.91, abs=0.03)


@pytest.mark.parametrize(
    "cell",
    [
        np.eye(3),
        bulk("Cu").cell[:],
        bulk("Ti").cell[:],
        [[3, 0, 0], [30, 4, 0], [-17, 9, 5]],
        [[0, 0, 2], [0, 3, 0], [4, 0, 0]],
    ],
)
def test_a_compact_cell_spans_the_same_lattice(cell):
    cell = np.array(cell, dtype=float)
    compact, operation = compact_cell(cell)
    assert round(abs(np.linalg.det(operation))) == 1
    same = operation @ cell
    np.testing.assert_allclose(compact @ compact.T, same @ same.T, atol=1e-9)
    assert np.linalg.det(compact) > 0


# --- crystals ---


@settings(max_examples=25, deadline=None)
@given(st.sampled_from(COMPOSITIONS), st.integers(0, 10**6))
def test_starts_keep_their_distances_from_all_images(formula, seed):
    numbers = parse_formula(formula)
    atoms = random_crystal(numbers, np.random.default_rng(seed))
    assert np.all(closest(atoms) >= minimum_separations(numbers) - 1e-6)
    assert atoms.pbc.all()
    np.testing.assert_array_equal(atoms.numbers, numbers)
    again = random_crystal(numbers, np.random.default_rng(seed))
    np.testing.assert_array_equal(atoms.positions, again.positions)
    np.testing.assert_array_equal(atoms.cell, again.cell)
    assert not np.allclose(atoms.cell, random_crystal(numbers, np.random.default_rng(seed + 1)).cell)


@pytest.mark.parametrize("start", [uniform_crystal, random_crystal])
def test_starts_have_the_volume_asked_for_and_its_spread(start):
    numbers = parse_formula("Ti4O8")
    rng = np.random.default_rng(0)
    assert start(numbers, rng, volume=150.0, spread=0.0).get_volume() == pytest.approx(150.0)
    volumes = np.array([start(numbers, rng, spread=0.1).get_volume() for _ in range(100)])
    assert np.mean(np.log(volumes / typical_volume(numbers))) == pytest.approx(0.0, abs=0.04)
    assert np.std(np.log(volumes)) == pytest.approx(0.1, abs=0.03)


def test_noise_fills_the_cell_evenly_and_keeps_no_distances():
    numbers = np.full(200, 6)
    atoms = uniform_crystal(numbers, np.random.default_rng(0))
    np.testing.assert_allclose(atoms.get_scaled_positions().mean(axis=0), 0.5, atol=0.08)
    assert atoms.get_all_distances(mic=True)[np.triu_indices(200, 1)].min() < 0.5


def test_the_cell_grows_where_it_is_crowded_but_not_without_end():
    numbers = parse_formula("Si8")
    separations = np.full((8, 8), 2.2)
    crowded = random_crystal(numbers, np.random.default_rng(0), volume=100.0, separations=separations, spread=0.0)
    assert 100.0 < crowded.get_volume() < 165.0
    assert np.all(closest(crowded) >= 2.2 - 1e-6)
    for volume in (7.0, 30.0):  # one that nothing fits into, and one that good luck might fill
        with pytest.raises(InputError, match="no room") as error:
            random_crystal(numbers, np.random.default_rng(0), volume=volume, separations=separations, spread=0.0)
        assert len(str(error.value).splitlines()) == 1


def test_symmetric_starts_grow_and_give_up_too():
    pytest.importorskip("pyxtal")
    numbers = parse_formula("Si4")
    with pytest.raises(InputError, match="no room"):
        random_crystal(numbers, np.random.default_rng(0), volume=5.0, symmetry=True)
    separations = np.full((4, 4), 2.3)
    crowded = random_crystal(numbers, np.random.default_rng(0), 30.0, separations, symmetry=True, spread=0.0)
    assert 30.0 < crowded.get_volume() < 50.0
    assert np.all(closest(crowded) >= 2.3 - 1e-6)


@pytest.mark.parametrize("volume", [0.0, -5.0, np.nan, np.inf])
def test_volumes_that_are_none_are_refused(volume):
    rng = np.random.default_rng(0)
    numbers = parse_formula("Si2")
    for call in (
        lambda: random_cell(volume, rng),
        lambda: uniform_crystal(numbers, rng, volume=volume),
        lambda: random_crystal(numbers, rng, volume=volume),
    ):
        with pytest.raises(InputError, match="volume"):
            call()


def test_a_crystal_has_atoms():
    with pytest.raises(InputError):
        random_crystal(np.array([], dtype=int), np.random.default_rng(0))


# --- symmetry ---


@pytest.mark.parametrize("formula", COMPOSITIONS)
def test_symmetric_starts_have_their_symmetry_atoms_volume_and_distances(formula):
    pytest.importorskip("pyxtal")
    spglib = pytest.importorskip("spglib")
    numbers = parse_formula(formula)
    groups = set()
    for seed in range(12):
        atoms = random_crystal(numbers, np.random.default_rng(seed), symmetry=True, spread=0.0)
        np.testing.assert_array_equal(atoms.numbers, numbers)
        assert atoms.get_volume() == pytest.approx(typical_volume(numbers), rel=0.2)
        assert np.linalg.det(atoms.cell) > 0
        assert np.all(closest(atoms) >= minimum_separations(numbers) - 1e-6)
        found = spglib.get_symmetry((atoms.cell[:], atoms.get_scaled_positions(), numbers), symprec=1e-4)
        group = atoms.info["space_group"]
        order = len(symmetric_starts._space_group(group).sites[0].rotations)
        assert order > 1
        assert len(found["rotations"]) % order == 0  # or a supergroup, of a multiple of the order
        groups.add(group)
    assert len(groups) > 6
    again = random_crystal(numbers, np.random.default_rng(11), symmetry=True, spread=0.0)
    np.testing.assert_array_equal(atoms.positions, again.positions)


@pytest.mark.parametrize(
    "number", [2, 5, 15, 38, 43, 62, 76, 88, 122, 146, 155, 161, 167, 194, 205, 214, 221, 227, 230]
)
def test_general_positions_have_just_the_symmetry_of_their_group(number):
    pytest.importorskip("pyxtal")
    spglib = pytest.importorskip("spglib")
    rng = np.random.default_rng(number)
    group = symmetric_starts._space_group(number)
    general = group.sites[0]
    size = len(general.rotations)
    conventional = symmetric_starts._conventional_cell(group.lattice, 500.0, rng)
    cell, operation = compact_cell(group.primitive @ conventional)
    indices = {22: np.arange(size), 8: np.arange(size, 2 * size)}
    scaled = symmetric_starts._place_orbits(
        [(22, general), (8, general)], cell, np.linalg.inv(operation), indices, np.zeros((2 * size, 2 * size)), rng
    )
    found = spglib.get_symmetry_dataset((cell, scaled, np.repeat([22, 8], size)), symprec=1e-4)
    assert found.number == number


def test_without_pyxtal_symmetry_is_refused_in_one_sentence(monkeypatch):
    monkeypatch.setitem(sys.modules, "pyxtal.symmetry", None)
    symmetric_starts._space_group.cache_clear()
    with pytest.raises(InputError, match=r"pip install 'ase-gss\[crystals\]'"):
        random_crystal(parse_formula("Si2"), np.random.default_rng(0), symmetry=True)


# --- surfaces ---


def slab(pbc=(True, True, False)):
    """Two layers of Cu(111), all fixed, in a cell of 20 Å."""
    atoms = fcc111("Cu", (2, 2, 2), vacuum=5.0)
    add_vacuum(atoms, 20.0 - atoms.cell[2, 2])
    atoms.pbc = pbc
    atoms.set_constraint(FixAtoms(range(len(atoms))))
    return atoms


@settings(max_examples=20, deadline=None)
@given(st.sampled_from(["O", "CuO2", "C2H4", "Cu6"]), st.integers(0, 10**6), st.booleans())
def test_atoms_come_onto_the_slab(formula, seed, periodic):
    template, numbers = slab((True, True, periodic)), parse_formula(formula)
    atoms = random_in_region(template, numbers, np.random.default_rng(seed))
    np.testing.assert_array_equal(atoms.numbers, np.concatenate([template.numbers, numbers]))
    np.testing.assert_array_equal(atoms.positions[: len(template)], template.positions)
    np.testing.assert_array_equal(atoms.cell, template.cell)
    np.testing.assert_array_equal(atoms.constraints[0].index, template.constraints[0].index)
    np.testing.assert_array_equal(atoms.pbc, template.pbc)
    assert np.all(closest(atoms)[len(template) :] >= minimum_separations(atoms.numbers)[len(template) :] - 1e-6)
    height = atoms.positions[len(template) :, 2] - template.positions[:, 2].max()
    assert np.all((height > -1.0) & (height < 8.0))
    again = random_in_region(template, numbers, np.random.default_rng(seed))
    np.testing.assert_array_equal(atoms.positions, again.positions)
    assert len(template.constraints[0].index) == len(template) == 8


@pytest.mark.parametrize("third", [[0, 0, 20], [9, 4, 20], [0, 0, 0]])
def test_the_region_is_kept_whatever_the_third_vector(third):
    template = slab()
    template.cell[2] = third
    for seed in range(10):
        atoms = random_in_region(template, parse_formula("Cu3"), np.random.default_rng(seed), region=(8.5, 12.0))
        heights = atoms.positions[len(template) :, 2]
        assert np.all((heights >= 8.5) & (heights <= 12.0))
        distances = get_distances(atoms.positions[-3:], atoms.positions, cell=template.cell, pbc=template.pbc)[1]
        distances[np.arange(3), len(template) + np.arange(3)] = np.inf
        assert np.all(distances >= minimum_separations(atoms.numbers)[-3:] - 1e-6)


def test_regions_that_cannot_be_are_refused_in_one_sentence():
    rng = np.random.default_rng(0)
    for template, formula, region in (
        (slab(), "O", (9.0, 9.0)),
        (slab(), "Cu9", (9.0, 9.5)),
        (Atoms(cell=[5, 5, 5], pbc=True), "O", None),
        (Atoms("Cu"), "O", None),
    ):
        with pytest.raises(InputError) as error:
            random_in_region(template, parse_formula(formula), rng, region=region)
        assert len(str(error.value).splitlines()) == 1


def test_a_search_draws_tight_starts_again():
    template = slab()
    top = template.positions[:, 2].max()
    tight = Surface(parse_formula("Cu6"), template, (top + 1.5, top + 2.5))
    alone = [_has_room(tight, seed) for seed in range(20)]
    assert 0 < sum(alone) < 20
    for seed in range(20):
        assert len(tight.random_start(np.random.default_rng(seed))) == len(template) + 6
    hopeless = Surface(parse_formula("Cu9"), template, (top + 1.5, top + 1.6))
    with pytest.raises(InputError, match="finds no room"):
        hopeless.random_start(np.random.default_rng(0))


def _has_room(surface, seed):
    try:
        random_in_region(surface.template, surface.numbers, np.random.default_rng(seed), surface.region)
    except InputError:
        return False
    return True
