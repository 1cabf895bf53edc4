"""A symmetric start stays symmetric through the sampler."""

import numpy as np
import pytest
from ase.build import bulk

from ase_gss.coupling import Diffusion, Mn
from ase_gss.sampler import Field
from ase_gss.schedule import Schedule
from ase_gss.symmetry import Symmetry
from ase_gss.systems import Crystal
from ase_gss.walk import complete, propose, random_strain

spglib = pytest.importorskip("spglib")
pytest.importorskip("pyxtal")

NUMBERS = np.array([22, 22, 8, 8, 8, 8])


def rough_score(numbers, positions, sigma, structure, cells, sigma_cell):
    """No symmetry at all: the projection has to bring it."""
    rng = np.random.default_rng(0)
    strain = np.array([random_strain(rng) for _ in cells])
    return rng.normal(size=positions.shape), strain


def space_group_number(walk):
    scaled = walk.positions @ np.linalg.inv(walk.cell)
    return spglib.get_symmetry_dataset((walk.cell, scaled, walk.numbers), symprec=1e-4).number


@pytest.mark.parametrize("coupling", [Diffusion(), Mn(below=10.0)])
def test_every_step_keeps_the_space_group(coupling):
    system = Crystal(NUMBERS, symmetry=True)
    walks = [
        system.walk_from_noise(np.random.default_rng(seed), Schedule(2.0, 0.1, 6), coupling)[1] for seed in range(6)
    ]
    before = [space_group_number(walk) for walk in walks]
    rng = np.random.default_rng(1)
    while not walks[0].finished:
        propose(walks, rough_score)
        forces = [None if walk.point is None else rng.normal(size=walk.positions.shape) for walk in walks]
        complete(walks, forces, [None if force is None else 0.01 * random_strain(rng) for force in forces])
    assert max(before) > 2
    assert [space_group_number(walk) for walk in walks] == before


def test_projection_is_one_and_keeps_what_is_symmetric():
    atoms = bulk("NaCl", "rocksalt", a=5.6, cubic=True)
    symmetry = Symmetry.of(atoms)
    rng = np.random.default_rng(0)
    once = symmetry.projected(Field(rng.normal(size=(8, 3)), random_strain(rng)), atoms.cell.array)
    twice = symmetry.projected(once, atoms.cell.array)
    assert once.atoms == pytest.approx(0, abs=1e-12)  # every site has inversion symmetry
    assert once.strain == pytest.approx(np.trace(once.strain) / 3 * np.eye(3), abs=1e-12)
    assert twice.strain == pytest.approx(once.strain, abs=1e-12)


def test_noise_that_the_symmetry_allows_keeps_its_variance():
    """In the cubic cell only the volume is free: of unit variance per coordinate, a third of its trace's."""
    atoms, rng = bulk("Cu", cubic=True), np.random.default_rng(0)
    symmetry = Symmetry.of(atoms)
    nothing = np.zeros((4, 3))
    traces = [
        np.trace(symmetry.projected(Field(nothing, random_strain(rng)), atoms.cell.array).strain) for _ in range(4000)
    ]
    assert np.var(traces) == pytest.approx(3, rel=0.08)
