"""Where do four copper atoms sit on Al(111)? The slab stays, the atoms start anywhere in a layer above it."""

from ase.build import fcc111
from ase.constraints import FixAtoms
from ase.io import write

from ase_gss import GenerativeRSS

if __name__ == "__main__":
    slab = fcc111("Al", size=(3, 3, 3), vacuum=8.0, periodic=True)
    slab.set_constraint(FixAtoms(mask=slab.get_tags() > 1))  # the uppermost layer may relax
    top = slab.positions[:, 2].max()
    search = GenerativeRSS("Cu4", calculator="emt", template=slab, region=(top + 1, top + 4), seed=0)
    search.run(max_calls=1000)
    lowest = search.minima[0].get_potential_energy()
    for atoms in search.minima:
        print(f"{atoms.get_potential_energy() - lowest:.4f} eV above the lowest, {atoms.info['hits']} hits")
    write("surface.traj", search.minima)
