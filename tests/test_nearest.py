"""The quick search for the most similar structure answers as the comparison with every one would."""

from dataclasses import replace
from math import inf

import numpy as np
import pytest
from ase.build import bulk, molecule

from ase_gss.crystal_minima import CrystalComparison
from ase_gss.minima import Comparison
from ase_gss.nearest import Nearest


def distorted(make, number, sizes):
    rng = np.random.default_rng(number)
    atoms = make()
    base = np.random.default_rng(number % 12)
    atoms.positions += base.normal(scale=sizes[0], size=atoms.positions.shape)
    atoms.positions += rng.normal(scale=sizes[1], size=atoms.positions.shape)
    return atoms, base.uniform(0, 0.2) + rng.uniform(0, 0.02)


CASES = [
    (Comparison.searching(), lambda: molecule("CH3CH2OH"), (0.06, 0.01)),
    (Comparison.searching(mirror_images_are_one=False), lambda: molecule("CH3CH2OH"), (0.06, 0.01)),
    (Comparison.refined(), lambda: molecule("CH3CH2OH"), (0.03, 0.01)),
    (Comparison.searching(), lambda: molecule("H2"), (0.02, 0.005)),
    (CrystalComparison.searching(), lambda: bulk("NaCl", "rocksalt", a=5.6, cubic=True), (0.2, 0.02)),
    (CrystalComparison.refined(), lambda: bulk("NaCl", "rocksalt", a=5.6, cubic=True), (0.2, 0.02)),
]


@pytest.mark.parametrize("energies_count", [True, False])
@pytest.mark.parametrize(("comparison", "make", "sizes"), CASES)
def test_as_comparing_with_every_one(comparison, make, sizes, energies_count):
    if not energies_count:
        comparison = replace(comparison, energy_tolerance=inf)
    n = 80 if isinstance(comparison, Comparison) else 16
    described = [comparison.describe(*distorted(make, number, sizes)) for number in range(n)]
    nearest, known, found = Nearest(comparison), {}, 0
    for label, new in enumerate(described):
        for below in (inf, label // 2):
            distances = [(comparison.distance(new, other), k) for k, other in known.items() if k < below]
            distance, expected = min(distances, default=(inf, None))
            assert nearest.find(new, below) == (None if distance == inf else expected)
            found += distance < inf
        if label % 3 == 2 and (old := nearest.find(new)) is not None:
            nearest.replace(old, new)
            known[old] = new
        else:
            nearest.add(label, new)
            known[label] = new
    assert found > 0


def test_nothing_is_like_nothing():
    comparison = Comparison.searching()
    nearest = Nearest(comparison)
    one = comparison.describe(molecule("H2"), 0.0)
    assert nearest.find(one) is None
    nearest.add(7, one)
    assert nearest.find(one) == 7
    assert nearest.find(comparison.describe(molecule("O2"), 0.0)) is None
    atom = comparison.describe(molecule("O"), 0.0)  # without any distance
    nearest.add(8, atom)
    assert nearest.find(atom) == 8
