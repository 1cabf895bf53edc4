"""A score as an ASE calculator."""

import numpy as np
from ase import Atoms, units
from ase.calculators.calculator import Calculator, all_changes

from ase_gss.score.model import Score, load_score
from ase_gss.walk import free_atoms


class ScoreCalculator(Calculator):
    """Pseudo-forces kT·score at a given noise level.

    The score is no gradient of an energy that we know: `energy` is 0.0 throughout, so that ASE's optimizers accept the
    calculator; only those that need no energy (FIRE, BFGS, ...) make sense.

    Parameters
    ----------
    score : Score or str
        A score, or what `load_score` takes.
    sigma : float
        Noise level, Å.
    temperature_K : float
        K.
    """

    implemented_properties = ["energy", "free_energy", "forces"]

    def __init__(self, score: Score | str = "molecules", sigma: float = 0.05, temperature_K: float = 300.0) -> None:
        super().__init__()
        self.score = load_score(score)
        self.parameters.update(sigma=sigma, temperature_K=temperature_K)

    def calculate(self, atoms: Atoms | None = None, properties=None, system_changes=all_changes) -> None:
        """Pseudo-forces (N, 3) in eV/Å; fixed atoms are context and have none."""
        super().calculate(atoms, properties, system_changes)
        self.score.check_elements(self.atoms.numbers)
        sigma = self.parameters["sigma"] * free_atoms(self.atoms)
        values = self.score(self.atoms.numbers, self.atoms.positions, sigma, np.zeros(len(self.atoms), dtype=int))
        forces = units.kB * self.parameters["temperature_K"] * values
        self.results = {"energy": 0.0, "free_energy": 0.0, "forces": forces}
