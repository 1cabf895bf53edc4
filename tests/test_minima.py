"""Same minimum or another one; the ranked list; how complete it is."""

import math

import numpy as np
import pytest
from ase import Atoms
from ase.build import molecule
from ase.calculators.emt import EMT
from ase.calculators.singlepoint import SinglePointCalculator
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from ase_gss.completeness import chance_next_is_new, chao1
from ase_gss.minima import Comparison, MinimaList

SETTINGS = [Comparison.searching, Comparison.refined]
NAMES = ["CH3CH2OH", "CH3OCH3", "C3H4_D2d", "H2O2", "isobutane", "C6H6", "CH3CONH2", "HCN", "C3H6_D3h"]


def with_energy(atoms, energy=0.0, forces=None):
    atoms = atoms.copy()
    atoms.calc = SinglePointCalculator(atoms, energy=energy, forces=forces)
    return atoms


def same(comparison, a, b, difference=0.0):
    return comparison.same(with_energy(a), with_energy(b, difference))


def mirrored(atoms):
    atoms = atoms.copy()
    atoms.positions[:, 0] *= -1
    return atoms


def moved(atoms, seed, mirror=False):
    """The same molecule elsewhere, turned, with its atoms in another order."""
    rng = np.random.default_rng(seed)
    atoms = (mirrored(atoms) if mirror else atoms)[rng.permutation(len(atoms))]
    atoms.positions = atoms.positions @ Rotation.random(rng=seed).as_matrix().T + rng.normal(scale=10, size=3)
    return atoms


def butane(dihedral):
    atoms = molecule("trans-butane")
    turning = [3, 5, 8, 9, 12, 13]  # everything that hangs on the third carbon
    atoms.set_dihedral(0, 1, 2, 3, dihedral, indices=turning)
    return atoms


def substituted(name, ligands):
    """A g2 molecule with hydrogens replaced, {index: (symbol, bond length in Å)}."""
    atoms = molecule(name)
    carbons = [k for k in range(len(atoms)) if atoms.numbers[k] == 6]
    for index, (symbol, length) in ligands.items():
        carbon = min(carbons, key=lambda k: atoms.get_distance(index, k))
        atoms.set_distance(carbon, index, length, fix=0)
        atoms.symbols[index] = symbol
    return atoms


F = ("F", 1.34)
HALOMETHANE = substituted("CH4", {1: F, 2: ("Cl", 1.76), 3: ("Br", 1.94)})
CIS, TRANS = substituted("C2H4", {2: F, 4: F}), substituted("C2H4", {2: F, 5: F})
E_IMINE = Atoms("CNFHH", [[0, 0, 0], [1.26, 0, 0], [-0.67, 1.16, 0], [-0.54, -0.94, 0], [1.60, -0.97, 0]])
Z_IMINE = Atoms("CNFHH", [[0, 0, 0], [1.26, 0, 0], [-0.67, 1.16, 0], [-0.54, -0.94, 0], [1.60, 0.97, 0]])
HCN = Atoms("HCN", [[-1.07, 0, 0], [0, 0, 0], [1.16, 0, 0]])
HNC = Atoms("HCN", [[2.17, 0, 0], [0, 0, 0], [1.17, 0, 0]])
# Two sets of four points with the same six distances; the bonds differ.
TRAPEZOID = Atoms("C4", 1.06 * np.array([[0, 0, 0], [4, 0, 0], [3, 1, 0], [1, 1, 0]]))
KITE = Atoms("C4", 1.06 * np.array([[0, 0, 0], [4, 0, 0], [1, 1, 0], [1, -1, 0]]))
TWO_WATERS = molecule("H2O") + Atoms("OH2", molecule("H2O").positions + np.array([5, 0, 0]))
PEROXIDE_AND_HYDROGENS = molecule("H2O2") + Atoms("H2", [[6, 0, 0], [6.75, 0, 0]])

DIFFERENT = {
    "ethanol, dimethyl ether": (molecule("CH3CH2OH"), molecule("CH3OCH3")),
    "cyclopropane, propene": (molecule("C3H6_D3h"), molecule("C3H6_Cs")),
    "HCN, HNC (a hydrogen moved)": (HCN, HNC),
    "anti, gauche": (butane(180), butane(65)),
    "cis, trans": (CIS, TRANS),
    "E, Z": (E_IMINE, Z_IMINE),
    "same distances, other bonds": (TRAPEZOID, KITE),
    "two waters, hydrogen peroxide and hydrogen": (TWO_WATERS, PEROXIDE_AND_HYDROGENS),
}


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("pair", DIFFERENT.values(), ids=DIFFERENT)
@pytest.mark.parametrize("difference", [0.0, 0.004])
def test_different_minima_of_equal_energy_stay_apart(setting, pair, difference):
    a, b = pair
    assert not same(setting(), a, b, difference)
    assert not same(setting(), b, a, difference)
    assert not same(setting(mirror_images_are_one=False), a, b, difference)


def test_homometric_pair_has_equal_distances():
    distances = [np.sort(atoms.get_all_distances()[np.triu_indices(4, 1)]) for atoms in (TRAPEZOID, KITE)]
    assert np.allclose(*distances)


@pytest.mark.parametrize("setting", SETTINGS)
def test_energy_alone_separates(setting):
    comparison, atoms = setting(), molecule("CH3CH2OH")
    assert same(comparison, atoms, atoms, 0.9 * comparison.energy_tolerance)
    assert not same(comparison, atoms, atoms, 1.1 * comparison.energy_tolerance)


def test_loose_ends_are_one_while_searching_and_two_when_refined():
    loose = butane(172)
    assert same(Comparison.searching(), butane(180), loose, 0.03)
    assert not same(Comparison.refined(), butane(180), loose, 0.03)


@settings(max_examples=80, deadline=None)
@given(
    name=st.sampled_from(NAMES),
    seed=st.integers(0, 2**32 - 1),
    mirror=st.booleans(),
    setting=st.sampled_from(SETTINGS),
    scatter=st.floats(0, 0.01),
)
def test_order_place_orientation_and_hand_do_not_matter(name, seed, mirror, setting, scatter):
    atoms = molecule(name)
    other = moved(atoms, seed, mirror)
    other.positions += scatter * np.random.default_rng(seed).uniform(-1, 1, other.positions.shape)
    assert same(setting(), atoms, other, 0.003)


CHIRAL = {
    "CHFClBr": HALOMETHANE,
    "H2O2 (an axis, no stereocentre)": molecule("H2O2"),
    "gauche butane": butane(65),
    "difluoroallene": substituted("C3H4_D2d", {3: F, 5: F}),
}
ACHIRAL = {
    "anti butane": butane(180),
    "allene": molecule("C3H4_D2d"),
    "cis": CIS,
}


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("atoms", CHIRAL.values(), ids=CHIRAL)
@pytest.mark.parametrize("seed", range(3))
def test_enantiomers(setting, atoms, seed):
    one, two = setting(), setting(mirror_images_are_one=False)
    assert same(one, atoms, moved(atoms, seed, mirror=True))
    assert not same(two, atoms, moved(atoms, seed, mirror=True))
    assert same(two, atoms, moved(atoms, seed))


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("atoms", ACHIRAL.values(), ids=ACHIRAL)
def test_a_molecule_equal_to_its_mirror_image_has_no_second_hand(setting, atoms):
    for seed in range(3):
        other = moved(atoms, seed, mirror=True)
        other.positions += np.random.default_rng(seed).uniform(-0.01, 0.01, other.positions.shape)
        assert same(setting(mirror_images_are_one=False), atoms, other)


@pytest.mark.parametrize("one", [True, False])
def test_list_keeps_enantiomers_apart_on_request(one):
    minima = MinimaList(Comparison.refined(mirror_images_are_one=one))
    for trial in range(6):
        minima.add(moved(HALOMETHANE, trial, mirror=trial % 2 == 1), -1.0, trial, trial)
    assert minima.hits == ([6] if one else [3, 3])


def test_list_counts_hits_and_keeps_the_lowest():
    minima, ethanol, ether = MinimaList(), molecule("CH3CH2OH"), molecule("CH3OCH3")
    assert minima.add(ethanol, -10.00, 0, 30) == (0, True)
    assert minima.add(ether, -10.01, 2, 90) == (1, True)
    assert minima.add(moved(ethanol, 1), -10.02, 3, 120) == (0, False)
    assert minima.add(moved(ethanol, 2), -9.99, 5, 180) == (0, False)
    assert len(minima) == 2
    assert minima.hits == [3, 1]
    assert minima.energies == [-10.02, -10.01]
    first, second = minima.ranked()
    assert first.info == {"hits": 3, "first_trial": 0, "first_call": 30, "trial": 3, "ranking_energy": -10.02}
    assert second.info == {"hits": 1, "first_trial": 2, "first_call": 90, "trial": 2, "ranking_energy": -10.01}
    assert [atoms.get_potential_energy() for atoms in (first, second)] == [-10.02, -10.01]
    assert np.array_equal(first.positions, moved(ethanol, 1).positions)


def test_one_end_can_stand_for_several_trials():
    minima = MinimaList()
    minima.add(HCN, 0.0, 0, 10, hits=3)
    assert minima.add(HCN, 0.01, 7, 90, hits=2) == (0, False)
    assert minima.hits == [5]


def test_ends_of_one_minimum_gather_around_the_lowest():
    minima, atoms = MinimaList(Comparison(0.1, 0.1)), molecule("CH3CH2OH")
    for trial, energy in enumerate([0.09, 0.0, -0.05, 0.04]):
        assert minima.add(atoms, energy, trial, trial) == (0, trial == 0)
    # 0.09 above the first end, but 0.14 above the lowest.
    assert minima.add(atoms, 0.09, 4, 4) == (1, True)


def test_the_nearest_of_several_is_hit():
    minima = MinimaList(Comparison(0.1, 0.1))
    assert minima.add(butane(180), 0.0, 0, 0) == (0, True)
    assert minima.add(butane(150), 0.0, 1, 1) == (1, True)
    # 0.09 Å from the first, 0.04 Å from the second.
    assert minima.add(butane(160), 0.0, 2, 2) == (1, False)


def test_forces_are_copied_and_no_calculator_is_kept():
    atoms = molecule("N2")
    atoms.calc = EMT()
    energy, forces = atoms.get_potential_energy(), atoms.get_forces().copy()
    minima = MinimaList()
    minima.add(atoms, energy, 0, 1)
    atoms.positions[0] += 1
    atoms.get_forces()
    (kept,) = minima.ranked()
    assert isinstance(kept.calc, SinglePointCalculator)
    assert np.array_equal(kept.get_forces(), forces)
    kept.positions += 1
    assert np.array_equal(minima.ranked()[0].get_forces(), forces)


def test_forces_of_other_positions_are_not_taken():
    atoms = with_energy(molecule("N2"), 0.0, np.zeros((2, 3)))
    atoms.positions[0, 2] += 0.01
    minima = MinimaList()
    minima.add(atoms, 0.0, 0, 1)
    assert minima.ranked()[0].calc.results == {"energy": 0.0}


def test_energies_must_be_finite():
    with pytest.raises(ValueError, match="finite energy"):
        MinimaList().add(molecule("N2"), math.nan, 0, 1)


def test_a_long_list_is_searched_in_a_few_comparisons():
    class Counting(Comparison):
        comparisons = 0

        def distance(self, a, b):
            Counting.comparisons += 1
            return super().distance(a, b)

    minima = MinimaList(Counting(0.005, 0.05))
    n_minima = 2000
    for trial in range(n_minima):
        minima.add(HCN, 0.02 * trial, trial, trial)
    assert len(minima) == n_minima
    Counting.comparisons = 0
    assert minima.add(HCN, 0.02 * 777, n_minima, n_minima) == (777, False)
    assert Counting.comparisons <= 3


ENDS = st.tuples(st.sampled_from(NAMES[:4]), st.floats(-1, 1), st.integers(0, 2**32 - 1))


@settings(max_examples=30, deadline=None)
@given(st.lists(ENDS, min_size=1, max_size=15))
def test_every_trial_hits_one_minimum_and_the_ranking_is_sorted(ends):
    minima = MinimaList(Comparison.refined())
    for trial, (name, energy, seed) in enumerate(ends):
        before = len(minima)
        index, is_new = minima.add(moved(molecule(name), seed), energy, trial, 10 * trial)
        assert index == before if is_new else index < before
        assert abs(minima.energies[index] - energy) < 0.005
    assert sum(minima.hits) == len(ends)
    energies = [atoms.get_potential_energy() for atoms in minima.ranked()]
    assert energies == sorted(minima.energies)
    assert min(energies) == min(energy for _, energy, _ in ends)


def test_completeness_by_hand():
    assert [chance_next_is_new(hits) for hits in ([], [1, 1, 2, 6], [4, 3])] == [1.0, 0.2, 0.0]
    assert [chao1(hits) for hits in ([], [1, 1, 1, 2, 5], [3, 4])] == [0.0, 5 + 3 * 2 / (2 * 2), 2.0]


def test_completeness_estimates_a_known_population():
    rng = np.random.default_rng(0)
    weights = rng.dirichlet(np.full(200, 0.5))
    samples = rng.multinomial(300, weights, size=50)
    true_chance = np.mean([weights[hits == 0].sum() for hits in samples])
    assert np.mean([chance_next_is_new(hits) for hits in samples]) == pytest.approx(true_chance, rel=0.1)
    assert all((hits > 0).sum() <= chao1(hits) < 1.1 * len(weights) for hits in samples)


def test_relaxed_conformers_stay_apart():
    tblite = pytest.importorskip("tblite.ase")
    from ase.optimize import BFGS

    minima = MinimaList()
    for trial, dihedral in enumerate((180, 65, -65, 170)):
        atoms = butane(dihedral)
        atoms.calc = tblite.TBLite(method="GFN2-xTB", verbosity=0)
        assert BFGS(atoms, logfile=None).run(fmax=0.05, steps=200)
        minima.add(atoms, atoms.get_potential_energy(), trial, trial)
    assert minima.hits == [2, 2]
    assert minima.ranked()[0].get_dihedral(0, 1, 2, 3) == pytest.approx(180, abs=15)


def alkanol(n, turned):
    """All-trans chain of n carbon atoms, its hydroxyl group anti or turned by 120 degrees; not relaxed."""
    step = np.array([1.27, 0, 0])
    heavy = [k * step + [0, 0, 0.85 * (k % 2)] for k in range(n + 1)]
    symbols, places = ["C"] * n + ["O"], list(heavy)
    for k in range(n):
        down = 2 * (k % 2) - 1
        for side in (0.89, -0.89):
            symbols.append("H")
            places.append(heavy[k] + [0, side, 0.63 * down])
    symbols += ["H", "H"]
    places += [heavy[0] + [-0.77, 0, 0.77], heavy[n] + [0.9, 0, 0.3 * (1 - 2 * (n % 2))]]
    atoms = Atoms(symbols, places)
    atoms.set_dihedral(n - 2, n - 1, n, len(atoms) - 1, 60 if turned else 180, indices=[len(atoms) - 1])
    return atoms


@pytest.mark.parametrize("n", [8, 12, 18])
def test_a_turned_group_weighs_no_less_in_a_large_molecule(n):
    anti, gauche, loose = alkanol(n, False), alkanol(n, True), alkanol(n, False)
    loose.rattle(0.02, seed=0)
    assert same(Comparison.searching(), anti, loose, 0.03)
    assert not same(Comparison.searching(), anti, gauche, 0.0)
