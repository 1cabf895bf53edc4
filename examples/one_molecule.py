"""Sample one isomer of C3H6O with a learned score and GFN2-xTB forces, then relax it."""

import numpy as np
from ase import Atoms
from ase.optimize import FIRE
from tblite.ase import TBLite

from ase_gss import GSSDynamics

atoms = Atoms("C3H6O", positions=np.zeros((10, 3)))
atoms.calc = TBLite(method="GFN2-xTB", verbosity=0)

dyn = GSSDynamics(
    atoms, score="molecules", coupling="mn", rng=np.random.default_rng(1), trajectory="gss.traj", logfile="-"
)
dyn.run()

FIRE(atoms, trajectory="fire.traj").run(fmax=0.05)
print(f"{atoms.get_potential_energy():.4f} eV; look at it with: ase gui fire.traj")
