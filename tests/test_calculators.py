"""Calculators by name: what they know, what they cost, and that ours give what the official ones give."""

import pickle
import sys
from copy import deepcopy
from itertools import pairwise

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, molecule
from ase.calculators.calculator import CalculationFailed
from ase.calculators.fd import calculate_numerical_forces, calculate_numerical_stress
from ase.spacegroup import crystal

from ase_gss import calculators
from ase_gss.calculator_source import calculator_source
from ase_gss.calculators import CALCULATORS, calculator_factory, check_elements, known_elements
from ase_gss.errors import InputError
from ase_gss.forces import CalculatorFailure, energy_and_forces

WITHOUT_EXTRA = ["emt", "lj", "tersoff", "sw"]


def rutile():
    atoms = crystal(["Ti", "O"], [(0, 0, 0), (0.305, 0.305, 0)], spacegroup=136, cellpar=[4.6, 4.6, 2.96, 90, 90, 90])
    atoms.rattle(0.1, seed=0)
    return atoms


def sheared(atoms):
    strain = np.array([[0.01, 0.02, 0], [0, -0.01, 0.03], [0, 0, 0.02]])
    atoms.set_cell(atoms.cell.array @ (np.eye(3) + strain), scale_atoms=True)
    atoms.rattle(0.1, seed=0)
    return atoms


@pytest.mark.parametrize("name", [name for name, named in CALCULATORS.items() if named.extra])
def test_a_missing_package_is_one_sentence_with_its_extra(name, monkeypatch):
    named = CALCULATORS[name]
    monkeypatch.setitem(sys.modules, named.module.split(".")[0], None)
    monkeypatch.setitem(sys.modules, named.module, None)
    with pytest.raises(InputError, match=rf"'{name}' needs {named.module}: pip install 'ase-gss\[{named.extra}\]'\.$"):
        calculator_factory(name)


def test_unknown_names_and_charges_are_refused():
    with pytest.raises(InputError, match="No calculator 'vasp': give one of gfn2, gfn1, emt"):
        calculator_factory("vasp", charge=1)
    with pytest.raises(InputError, match="'sw' knows of no charge"):
        calculator_factory("sw", charge=1)


@pytest.mark.parametrize("name", WITHOUT_EXTRA)
def test_each_is_new_and_has_a_stress(name):
    factory = pickle.loads(pickle.dumps(calculator_factory(name)))
    assert factory() is not factory()
    assert "stress" in factory().implemented_properties


def test_elements():
    assert known_elements("sw") == {14}
    assert known_elements("tersoff") == {6, 14}
    assert known_elements("lj") is None is known_elements("mine:make")
    assert 84 not in known_elements("chgnet")
    assert 94 in known_elements("chgnet")
    check_elements("tersoff", [6, 14, 6])
    check_elements(object(), [118])
    check_elements("lj", [118])
    with pytest.raises(InputError, match="'sw' does not know C: take one of gfn2, gfn1, tersoff, chgnet, "):
        check_elements("sw", [14, 6])
    with pytest.raises(InputError, match="'tersoff' does not know O: take one of gfn2, "):
        check_elements("tersoff", [14, 8])
    with pytest.raises(InputError, match="'emt' does not know Ti: take one of gfn2, "):
        check_elements("emt", [22, 8])
    with pytest.raises(InputError, match=r"'chgnet' does not know Po, Cm: take a calculator of your own\.$"):
        check_elements("chgnet", [84, 96])


def test_a_model_is_loaded_once_and_calculators_share_nothing_else(monkeypatch, capsys):
    loaded = []

    def load():
        print("hello")
        loaded.append(1)
        return calculators._lennard_jones()

    monkeypatch.setitem(CALCULATORS, "heavy", calculators.NamedCalculator(load, model=True))
    calculators._loaded.cache_clear()
    new, name = calculator_source("heavy", 0, 1)
    one, other = new(), new()
    assert (name, loaded) == ("heavy", [1])
    assert capsys.readouterr().out == ""
    atoms = Atoms("Ar2", [[0, 0, 0], [0, 0, 1.1]])
    energy_and_forces(atoms, atoms.positions, one)
    assert one.calculator is not other.calculator
    assert not other.calculator.results
    calculators._loaded.cache_clear()


def test_a_model_that_cannot_be_loaded_is_one_sentence(monkeypatch):
    def load():
        raise OSError("401\nno access.")

    monkeypatch.setitem(CALCULATORS, "gated", calculators.NamedCalculator(load, model=True))
    with pytest.raises(InputError, match=r"^The model of 'gated' cannot be loaded.*: OSError: 401 no access\.$"):
        calculator_source("gated", 0, 1)


@pytest.mark.parametrize(
    ("name", "symbols", "structure", "constant", "energy"),
    [  # lattice constant (Å) and cohesive energy (eV/atom) as published with the potentials
        ("tersoff", "C", "diamond", 3.566, -7.371),
        ("tersoff", "Si", "diamond", 5.432, -4.630),
        ("tersoff", "SiC", "zincblende", 4.321, -6.165),
        ("sw", "Si", "diamond", 5.431, -4.337),
    ],
)
def test_published_lattice_constants(name, symbols, structure, constant, energy):
    new = calculator_factory(name)

    def pressure(a):
        atoms = bulk(symbols, structure, a=a)
        atoms.calc = new()
        return atoms.get_stress()[:3].mean()

    atoms = bulk(symbols, structure, a=constant)
    atoms.calc = new()
    assert atoms.get_potential_energy() / len(atoms) == pytest.approx(energy, abs=1e-3)
    assert pressure(constant - 1e-3) < 0 < pressure(constant + 1e-3)


@pytest.mark.parametrize("name", WITHOUT_EXTRA)
def test_forces_and_stress_are_derivatives_of_the_energy(name):
    symbols, structure, a = {
        "emt": ("Cu", "fcc", 3.6),
        "lj": ("Ar", "fcc", 1.6),
        "tersoff": ("SiC", "zincblende", 4.3),
        "sw": ("Si", "diamond", 5.4),
    }[name]
    atoms = sheared(bulk(symbols, structure, a=a, cubic=True))
    atoms.calc = calculator_factory(name)()
    np.testing.assert_allclose(atoms.get_stress(), calculate_numerical_stress(atoms), atol=2e-6)
    np.testing.assert_allclose(atoms.get_forces(), calculate_numerical_forces(atoms), atol=2e-5)


def test_many_body_needs_no_cell_and_refuses_other_elements(recwarn):
    new, _ = calculator_source("tersoff", 0, 1)
    cluster = Atoms("Si3", [[0, 0, 0], [2.4, 0, 0], [0, 2.4, 0]])
    boxed = cluster.copy()
    boxed.center(5)
    for name in ("tersoff", "sw"):
        calculator = calculator_source(name, 0, 1)[0]()
        energy, forces = energy_and_forces(cluster, cluster.positions, calculator)
        assert calculator.calls == 1
        assert energy == pytest.approx(energy_and_forces(boxed, boxed.positions, calculator)[0])
        np.testing.assert_allclose(forces.sum(axis=0), 0, atol=1e-10)
    water = molecule("H2O")
    with pytest.raises(CalculatorFailure, match="no parameters"):
        energy_and_forces(water, water.positions, new())
    assert not recwarn.list


@pytest.fixture(scope="module")
def network():
    pytest.importorskip("chgnet")
    return calculator_factory("chgnet")().network


@pytest.fixture(scope="module")
def exact_network(network):
    from ase_gss.chgnet_calculator import CHGNetNetwork

    return CHGNetNetwork(deepcopy(network.model).double())


@pytest.mark.filterwarnings("ignore:Converting a tensor")  # chgnet's own
def test_chgnet_gives_what_its_own_calculator_gives(network, exact_network):
    from chgnet.model import CHGNetCalculator as Official

    from ase_gss.chgnet_calculator import CHGNetCalculator

    official = Official(network.model, use_device="cpu")
    slab = rutile()
    slab.center(6, axis=2)
    slab.pbc = (True, True, False)
    sparse = bulk("Cs", a=6.2)  # no bond is short enough for an angle
    for atoms in (rutile(), bulk("SiC", "zincblende", a=4.3), slab, sparse):
        ours, theirs = atoms.copy(), atoms.copy()
        ours.calc, theirs.calc = CHGNetCalculator(network), official
        # Single precision: both are as far from the same network in double precision.
        energy, forces, virial = exact_network.evaluate([atoms])[0]
        for each in (ours, theirs):
            assert each.get_potential_energy() == pytest.approx(energy, abs=1e-5 * len(atoms))
            np.testing.assert_allclose(each.get_forces(), forces, atol=1e-4)
            stress = each.get_stress(voigt=False)
            np.testing.assert_allclose(stress, virial / atoms.get_volume(), atol=1e-5)


def test_chgnet_forces_and_stress_are_derivatives_of_the_energy(exact_network):
    from ase_gss.chgnet_calculator import CHGNetCalculator

    atoms = sheared(bulk("SiC", "zincblende", a=4.4))
    atoms.calc = CHGNetCalculator(exact_network)
    np.testing.assert_allclose(atoms.get_forces(), calculate_numerical_forces(atoms, eps=1e-4), atol=1e-5)
    np.testing.assert_allclose(atoms.get_stress(), calculate_numerical_stress(atoms, eps=1e-5), atol=1e-6)


def test_chgnet_in_batches_is_chgnet_one_by_one(exact_network):
    structures = [rutile(), bulk("Cs", a=6.2), bulk("SiC", "zincblende", a=4.3), bulk("Si")]
    for atoms, batched in zip(structures, exact_network.evaluate(structures), strict=True):
        for one, other in zip(exact_network.evaluate([atoms])[0], batched, strict=True):
            np.testing.assert_allclose(one, other, atol=1e-10)


def test_chgnet_finds_each_bond_once_and_each_angle_twice():
    from ase_gss.chgnet_calculator import find_neighbours

    atoms = bulk("Si", "diamond", a=5.4)
    neighbours = find_neighbours(atoms, 4.0, 3.0)
    assert len(neighbours.first) == 2 * (4 + 12) / 2
    assert len(neighbours.left) == 2 * 4 * 3
    start = np.concatenate([neighbours.first, neighbours.second])
    np.testing.assert_array_equal(start[neighbours.left], start[neighbours.right])
    pairs = sorted(zip(neighbours.left, neighbours.right, strict=True))
    assert all(one != other for one, other in pairwise(pairs))


def test_chgnet_without_a_cell_and_its_failures(network):
    from ase_gss.chgnet_calculator import CHGNetCalculator

    new, _ = calculator_source("chgnet", 0, 1)
    water = molecule("H2O")
    boxed = water.copy()
    boxed.center(6)
    calculator = new()
    energy, _ = energy_and_forces(water, water.positions, calculator)
    assert energy == pytest.approx(energy_and_forces(boxed, boxed.positions, calculator)[0], abs=1e-5)
    assert calculator.calls == 2
    alone = Atoms("Ti2O", [[0, 0, 0], [2, 0, 0], [10, 10, 10]], cell=[20, 20, 20], pbc=True)
    with pytest.raises(CalculatorFailure, match="1 of 3 atoms have no neighbour within 6 Å"):
        energy_and_forces(alone, alone.positions, new())
    heavy = bulk("Cu")
    heavy.numbers[:] = 96
    heavy.calc = CHGNetCalculator(network)
    with pytest.raises(CalculationFailed, match="up to number 94"):
        heavy.get_potential_energy()
