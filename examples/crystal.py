"""Polymorphs of silicon under pressure, then one crystal sampled step by step."""

import numpy as np
from ase.build import bulk
from ase.units import GPa

from ase_gss import GenerativeRSS, GSSDynamics

if __name__ == "__main__":
    search = GenerativeRSS("Si4", calculator="tersoff", pbc=True, units=(1, 2), pressure=5 * GPa, seed=0)
    search.run(max_calls=600)
    for atoms in search.minima[:5]:
        volume = atoms.get_volume() / len(atoms)
        print(f"{len(atoms)} atoms: {atoms.info['ranking_energy']:.4f} eV/atom, {volume:.2f} Å3/atom")

    # Noise of 0.5 Å and the strain that belongs to it, taken away again without a single force call.
    atoms = bulk("MgO", "rocksalt", a=4.2, cubic=True)
    dynamics = GSSDynamics(atoms, coupling="diffusion", sigma_start=0.5, rng=np.random.default_rng(0), logfile="-")
    dynamics.run()
    print(atoms.cell.cellpar())
