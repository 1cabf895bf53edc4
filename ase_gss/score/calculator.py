"""A score as an ASE calculator."""

import numpy as np
from ase import Atoms, units
from ase.calculators.calculator import Calculator, all_changes
from ase.stress import full_3x3_to_voigt_6_stress

from ase_gss.cell import opened
from ase_gss.errors import InputError
from ase_gss.schedule import cell_noise
from ase_gss.score.model import Score, load_score
from ase_gss.walk import OUT_OF_REACH, free_atoms


class ScoreCalculator(Calculator):
    """Pseudo-forces kT·score at a given noise level, and for crystals the pseudo-stress -kT·score / volume.

    The stress is that of the score of the strain, with ASE's sign, so that cell filters work. The score is no gradient
    of an energy that we know: `energy` is 0.0 throughout, so that ASE's optimizers accept the calculator; only those
    that need no energy (FIRE, BFGS, ...) make sense.

    Parameters
    ----------
    score : Score or str
        A score, or what `load_score` takes. One of crystals is for periodic atoms.
    sigma : float
        Noise level, Å.
    temperature_K : float
        K.
    """

    implemented_properties = ["energy", "free_energy", "forces"]
    discard_results_on_any_change = True

    def __init__(self, score: Score | str = "molecules", sigma: float = 0.05, temperature_K: float = 300.0) -> None:
        super().__init__()
        self.score = load_score(score)
        if self.score.periodic:
            self.implemented_properties = [*self.implemented_properties, "stress"]
        self.parameters.update(sigma=sigma, temperature_K=temperature_K)

    def check_state(self, atoms: Atoms, tol: float = 1e-15) -> list[str]:
        """What has changed since the last calculation: which atoms are fixed counts, too."""
        changes = super().check_state(atoms, tol)
        if not changes and np.any(free_atoms(atoms) != free_atoms(self.atoms)):
            changes = ["constraints"]
        return changes

    def calculate(self, atoms: Atoms | None = None, properties=None, system_changes=all_changes) -> None:
        """Pseudo-forces (N, 3) in eV/Å, pseudo-stress (6,) in eV/Å3; fixed atoms are context and have no force."""
        super().calculate(atoms, properties, system_changes)
        numbers, positions = self.atoms.numbers, self.atoms.positions
        self.score.check_elements(numbers)
        kT, structure = units.kB * self.parameters["temperature_K"], np.zeros(len(self.atoms), dtype=int)
        sigma = self.parameters["sigma"] * free_atoms(self.atoms)
        self.results = {"energy": 0.0, "free_energy": 0.0}
        if not self.score.periodic:
            if self.atoms.pbc.any():
                raise InputError("This score is for molecules: take score='crystals', or set atoms.pbc = False.")
            self.results["forces"] = kT * self.score(numbers, positions, sigma, structure)
            return
        if self.atoms.cell.rank < 3 or not self.atoms.pbc.any():
            raise InputError("This score is for crystals: give the atoms a cell and pbc, or take score='molecules'.")
        sigma_cell = np.array([cell_noise(self.parameters["sigma"]) if self.atoms.pbc.all() and sigma.all() else 0.0])
        cell = opened(self.atoms.cell.array, self.atoms.pbc, positions, OUT_OF_REACH)
        values, strain = self.score(numbers, positions, sigma, structure, cell[None], sigma_cell)
        stress = -kT * strain[0] / self.atoms.get_volume()
        self.results |= {"forces": kT * values, "stress": full_3x3_to_voigt_6_stress(stress)}
