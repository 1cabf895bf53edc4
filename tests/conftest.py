"""Shared by all tests: one thread, and scores and potentials whose answers are known."""

import os
import signal

os.environ.setdefault("OMP_NUM_THREADS", "1")
# A shell lets what it starts in the background ignore Ctrl-C, and so would all that is tested here.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

import numpy as np
import pytest
from ase import Atoms
from ase.calculators.calculator import Calculator, all_changes


class Harmonic(Calculator):
    """Springs (eV/Å²) to fixed places; counts its calls."""

    implemented_properties = ["energy", "forces"]

    def __init__(self, places, spring=1.0):
        super().__init__()
        self.places, self.spring, self.calls = np.array(places), spring, 0

    def calculate(self, atoms=None, properties=None, system_changes=all_changes):
        super().calculate(atoms, properties, system_changes)
        self.calls += 1
        away = self.atoms.positions - self.places
        self.results = {"energy": 0.5 * self.spring * np.sum(away**2), "forces": -self.spring * away}


class GaussianScore:
    """The exact score of one known structure, blurred: (x0 - x) / (spread² + sigma²); counts its structures."""

    def __init__(self, positions, spread=0.1):
        self.positions, self.spread, self.calls = np.array(positions), spread, 0

    def __call__(self, numbers, positions, sigma, structure):
        n_structures = structure[-1] + 1
        self.calls += n_structures
        clean = np.tile(self.positions, (n_structures, 1))
        return (clean - positions) / (self.spread**2 + sigma[:, None] ** 2)


class GaussianCrystalScore:
    """Leads to one known crystal, atom by atom and by its shape, in whatever direction it lies; counts its structures.

    `seen` keeps the noise levels of the last call.
    """

    def __init__(self, crystal, spread=0.05, spread_cell=0.02):
        self.scaled, self.cell = crystal.get_scaled_positions(), crystal.cell.array.copy()
        self.spread, self.spread_cell, self.calls, self.seen = spread, spread_cell, 0, None

    def __call__(self, numbers, positions, sigma, structure, cells, sigma_cell):
        self.calls += len(cells)
        self.seen = sigma, sigma_cell
        away = np.zeros_like(positions)
        for s, cell in enumerate(cells):
            part = structure == s
            scaled = self.scaled - np.linalg.solve(cell.T, positions[part].T).T
            away[part] = (scaled - np.rint(scaled)) @ cell
        # The symmetric strain that gives the cell the shape of the known one.
        change = np.linalg.solve(cells, np.broadcast_to(self.cell, cells.shape))
        values, vectors = np.linalg.eigh(change @ change.transpose(0, 2, 1))
        strain = (vectors * (0.5 * np.log(values))[:, None, :]) @ vectors.transpose(0, 2, 1)
        widths = self.spread_cell**2 + sigma_cell[:, None, None] ** 2
        return away / (self.spread**2 + sigma[:, None] ** 2), strain / widths


@pytest.fixture(autouse=True)
def _one_thread():
    import torch

    torch.set_num_threads(1)


@pytest.fixture
def water() -> Atoms:
    return Atoms("OH2", positions=[[0, 0, 0.12], [0, 0.76, -0.48], [0, -0.76, -0.48]])
