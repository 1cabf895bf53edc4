"""A coupling of one's own: any object with `point` and `weights`. Here every third step is a force step."""

import numpy as np
from ase.build import molecule
from ase.calculators.emt import EMT

from ase_gss import GSSDynamics


class EveryThird:
    point = "x"  # where the force is taken
    gain = 0.01  # Å²/eV

    def weights(self, k, n_steps, sigma):
        """Weights of score, noise and force in step k of n_steps, which begins at sigma (Å)."""
        return (0.0, 0.0, 1.0) if k % 3 == 2 and sigma < 0.3 else (1.0, 1.0, 0.0)


atoms = molecule("CH3CH2OH")
atoms.calc = EMT()
dyn = GSSDynamics(atoms, coupling=EveryThird(), sigma_start=1.0, rng=np.random.default_rng(0), logfile="-")
dyn.run()
dyn.hand_off(fmax=0.05)
print(
    "sampling took",
    dyn.force_calls,
    "force calls and",
    dyn.walk.score_calls,
    "score calls;",
    atoms.get_potential_energy(),
    "eV",
)
