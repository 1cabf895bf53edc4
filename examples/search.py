"""Search for the isomers of C3H6O (needs the extra xtb); run it again to go on where it stopped."""

from ase.io import write
from tblite.ase import TBLite

from ase_gss import GenerativeRSS


def make_calculator():
    return TBLite(method="GFN2-xTB", verbosity=0)


if __name__ == "__main__":
    search = GenerativeRSS("C3H6O", calculator=make_calculator, score="molecules", database="example.db", seed=0)
    search.attach(lambda: print(search.trials, "trials,", search.force_calls, "force calls"), 20)
    search.run(max_calls=2000)

    lowest = search.minima[0].get_potential_energy()
    for atoms in search.minima[:10]:
        print(f"{atoms.get_potential_energy() - lowest:8.3f} eV  {atoms.info['hits']:3d} hits")
    write("minima.extxyz", search.minima)
