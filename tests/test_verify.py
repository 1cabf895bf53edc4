"""Vibrations against what is known of them, and the way off saddle points."""

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, molecule
from ase.calculators.calculator import Calculator, all_changes
from ase.calculators.emt import EMT
from ase.calculators.lj import LennardJones
from ase.calculators.morse import MorsePotential
from ase.constraints import FixAtoms, FixBondLength
from ase.vibrations import Vibrations as AseVibrations

from ase_gss.errors import InputError
from ase_gss.forces import CountedCalculator
from ase_gss.relax import hand_off
from ase_gss.verify import push_off, verify_minimum, vibrations


class DoubleWell(Calculator):
    """One atom: 2 (x² - 1)² + 5 (y² + z²) eV; a saddle point at the origin, minima at x = -1 and 1 Å."""

    implemented_properties = ["energy", "forces"]

    def __init__(self, bad_from=np.inf):
        super().__init__()
        self.bad_from, self.calls = bad_from, 0

    def calculate(self, atoms=None, properties=None, system_changes=all_changes):
        super().calculate(atoms, properties, system_changes)
        self.calls += 1
        if self.calls >= self.bad_from:
            raise RuntimeError("no more")
        x, y, z = self.atoms.positions.T
        energy = 2 * (x**2 - 1) ** 2 + 5 * (y**2 + z**2)
        forces = -np.stack([8 * x * (x**2 - 1), 10 * y, 10 * z], axis=1)
        self.results = {"energy": float(energy.sum()), "forces": forces}


def in_double_well(x=0.0, **keywords):
    """A hydrogen atom in the well, held from rigid motion by a fixed atom far away that feels the same well."""
    atoms = Atoms("H2", [[x, 0, 0], [1, 0, 0]])
    atoms.set_constraint(FixAtoms([1]))
    atoms.calc = DoubleWell(**keywords)
    return atoms


def square(calculator=None):
    """Four Lennard-Jones atoms in a relaxed square: a saddle point between tetrahedra."""
    atoms = Atoms("Ar4", 1.11 * np.array([[0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0.0]]))
    atoms.calc = calculator or LennardJones(rc=10)
    assert hand_off(atoms, "FIRE", fmax=1e-3).converged
    return atoms


def test_frequencies_of_a_diatomic_molecule():
    atoms = Atoms("HCl", [[0, 0, 0], [0.3, 1.2, 0.3]])
    atoms.calc = MorsePotential(epsilon=4.0, r0=1.275, rho0=6.0)
    hand_off(atoms, fmax=1e-4)
    found = vibrations(atoms)
    assert found.wavenumbers.shape == (1,)
    assert found.modes.shape == (1, 2, 3)
    stiffness = 2 * 4.0 * (6.0 / 1.275) ** 2  # eV/Å²: second derivative of the Morse potential
    reduced = np.prod(atoms.get_masses()) / atoms.get_masses().sum()
    assert found.wavenumbers[0] == pytest.approx(521.47 * np.sqrt(stiffness / reduced), rel=2e-3)
    mode = found.modes[0]
    assert np.linalg.norm(mode, axis=1).max() == pytest.approx(1)
    np.testing.assert_allclose(atoms.get_masses() @ mode, 0, atol=1e-6)
    assert found.imaginary() == 0


@pytest.mark.parametrize(("name", "modes"), [("CH3OH", 12), ("CO2", 4), ("N2", 1)])
def test_frequencies_agree_with_ase(name, modes, tmp_path):
    atoms = molecule(name)
    atoms.calc = EMT()
    assert hand_off(atoms, fmax=1e-3).converged
    found = vibrations(atoms)
    assert len(found.wavenumbers) == modes
    reference = AseVibrations(atoms, name=str(tmp_path / "vib"))
    reference.run()
    expected = np.sort(reference.get_frequencies().real)[-modes:]
    stiff = expected > 300
    np.testing.assert_allclose(found.wavenumbers[stiff], expected[stiff], rtol=5e-3)


@pytest.mark.parametrize("bent", [0.0, 0.002, 0.005, 0.02])
def test_a_linear_molecule_that_is_not_quite_straight_keeps_both_bends(bent):
    tblite = pytest.importorskip("tblite.ase")
    atoms = molecule("CO2")
    atoms.positions[0, 0] += bent
    atoms.calc = tblite.TBLite(method="GFN2-xTB", verbosity=0)
    assert len(vibrations(atoms).wavenumbers) == 4


def test_rigid_motions_left_by_constraints():
    atoms = molecule("CH4")
    atoms.calc = EMT()
    hand_off(atoms, fmax=1e-3)
    for fixed, modes in (([], 9), ([0], 9), ([0, 1], 8), ([0, 1, 2], 6), ([0, 1, 2, 3, 4], 0)):
        atoms.set_constraint(FixAtoms(fixed))
        atoms.calc = calculator = CountedCalculator(EMT())
        found = vibrations(atoms)
        assert len(found.wavenumbers) == modes
        assert calculator.calls == 6 * (5 - len(fixed))
        assert not found.modes[:, fixed].any()
    crystal = bulk("Cu", cubic=True)
    crystal.calc = EMT()
    assert len(vibrations(crystal).wavenumbers) == 9


def test_atoms_are_left_alone():
    atoms = square()
    before, calculator = atoms.positions.copy(), atoms.calc
    vibrations(atoms)
    np.testing.assert_array_equal(atoms.positions, before)
    assert atoms.calc is calculator


def test_minimum_is_left_where_it_is():
    atoms = in_double_well(1.0)
    found = verify_minimum(atoms)
    assert found.is_minimum
    assert found.reason == ""
    assert found.pushes == 0
    assert found.relaxation is None
    assert found.calls == atoms.calc.calls == 6
    np.testing.assert_allclose(atoms.positions[0], [1, 0, 0])


@pytest.mark.parametrize(("x", "end"), [(0.0, None), (0.002, 1.0), (-0.002, -1.0)])
def test_double_well_saddle_is_pushed_off_downhill(x, end):
    atoms = in_double_well(x)
    calculator = atoms.calc
    assert vibrations(atoms).imaginary() == 1
    calculator.calls = 0
    found = verify_minimum(atoms, relax=lambda atoms: hand_off(atoms, fmax=0.001))
    assert found.is_minimum
    assert found.pushes == 1
    assert found.vibrations.imaginary() == 0
    assert abs(atoms.positions[0, 0]) == pytest.approx(1, abs=1e-3)
    if end is not None:
        assert atoms.positions[0, 0] == pytest.approx(end, abs=1e-3)
    assert found.relaxation.energy == pytest.approx(0, abs=1e-5)
    assert atoms.calc is calculator
    assert found.calls == calculator.calls


def test_push_off_reaches_both_sides():
    atoms = in_double_well()
    mode = vibrations(atoms).modes[0]
    ends = []
    for distance in (0.1, -0.1):
        pushed = push_off(atoms, mode, distance)
        assert np.linalg.norm(pushed.positions - atoms.positions, axis=1).max() == pytest.approx(0.1)
        assert hand_off(pushed, fmax=0.001).converged
        ends.append(pushed.positions[0, 0])
    np.testing.assert_allclose(np.sort(ends), [-1, 1], atol=1e-3)
    np.testing.assert_array_equal(atoms.positions[0], 0)


def test_square_of_argon_becomes_a_tetrahedron():
    atoms = square()
    found = verify_minimum(atoms, relax=lambda atoms: hand_off(atoms, fmax=1e-3))
    assert found.is_minimum
    assert found.pushes >= 1
    assert found.relaxation.energy == pytest.approx(-6.0, abs=0.01)


def test_planar_ammonia_becomes_a_pyramid():
    pytest.importorskip("tblite")
    from tblite.ase import TBLite

    angles = np.radians([0, 120, 240])
    atoms = Atoms("NH3", [[0, 0, 0], *np.stack([np.cos(angles), np.sin(angles), 0 * angles], axis=1)])
    atoms.calc = TBLite(method="GFN2-xTB", verbosity=0)
    assert hand_off(atoms, fmax=0.01).converged
    planar = atoms.get_potential_energy()
    assert np.ptp(atoms.positions[:, 2]) < 1e-3, "forces do not leave the plane"
    found = verify_minimum(atoms)
    assert found.is_minimum
    assert found.pushes == 1
    assert found.relaxation.energy < planar - 0.1
    assert np.ptp(atoms.positions[:, 2]) > 0.2


def test_giving_up_on_a_saddle_point():
    def nothing(atoms):
        atoms.positions[0, 0] = 0.0
        return hand_off(atoms, fmax=0.05)

    found = verify_minimum(in_double_well(), relax=nothing, max_pushes=2)
    assert not found.is_minimum
    assert found.pushes == 2
    assert "saddle point" in found.reason
    assert found.vibrations.imaginary() == 1


def test_relaxation_that_does_not_converge_ends_the_check():
    found = verify_minimum(in_double_well(), relax=lambda atoms: hand_off(atoms, max_steps=1))
    assert not found.is_minimum
    assert found.reason == "not converged after 1 steps"
    assert not found.relaxation.converged


@pytest.mark.parametrize("bad_from", [3, 9])
def test_failing_calculator(bad_from):
    atoms = in_double_well(bad_from=bad_from)
    calculator = atoms.calc
    found = verify_minimum(atoms)
    assert not found.is_minimum
    assert found.reason == "calculator: RuntimeError: no more"
    assert found.calls == bad_from
    assert atoms.calc is calculator
    assert np.isfinite(atoms.positions).all()


def test_wrong_input():
    atoms = molecule("H2O")
    with pytest.raises(InputError, match="calculator"):
        vibrations(atoms)
    atoms.calc = EMT()
    atoms.set_constraint(FixBondLength(0, 1))
    with pytest.raises(InputError, match="FixAtoms"):
        verify_minimum(atoms)
