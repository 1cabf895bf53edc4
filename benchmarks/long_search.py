"""What a long search costs beside its calculations: memory, and the driver's time per trial.

The search proper is left out: its ends are made up (a distorted molecule, so that thousands have the same bonding graph
and near energies, which is the worst case), and go through the archive, the list of minima and the memory as a search
would send them.

    python benchmarks/long_search.py                        # a file in a temporary folder
    python benchmarks/long_search.py --trials 2000 --minima 100 --database x.db
"""

import argparse
import os
import resource
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
from ase import Atoms
from ase.build import molecule
from ase.calculators.singlepoint import SinglePointCalculator

from ase_gss.archive import Archive
from ase_gss.found import Found
from ase_gss.trial import Ended, Trial

GENERATION = 32
CHECKPOINTS = (1_000, 5_000, 10_000, 20_000)
SETTINGS = {"formula": "C4H10", "seed": 0, "fmax": 0.05}
#: Atoms moved by this much (Å) are another conformer, or the same one relaxed loosely.
ANOTHER, SAME = 0.11, 0.004


def parser() -> argparse.ArgumentParser:
    """The options."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--trials", type=int, default=20_000)
    options.add_argument("--minima", type=int, nargs="+", default=[100, 14_000], help="from so many ends are drawn")
    options.add_argument("--database", help="file or URL; by default a file in a temporary folder")
    return options


def resident() -> float:
    """Memory of this process, MB."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE") / 1e6
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3


def end_of(number: int, minima: int) -> Trial:
    """A finished trial: one of the minima, drawn at random once each has been met."""
    rng = np.random.default_rng((1, number))
    which = number if number < minima else int(rng.integers(minima))
    atoms = molecule("trans-butane")
    of_minimum = np.random.default_rng((2, which))
    atoms.positions += of_minimum.normal(scale=ANOTHER, size=atoms.positions.shape)
    energy = -100.0 + of_minimum.uniform(0, 1.0)
    atoms.positions += rng.normal(scale=SAME, size=atoms.positions.shape)
    atoms.calc = SinglePointCalculator(atoms, energy=energy, forces=rng.normal(scale=0.01, size=atoms.positions.shape))
    coupling, schedule = SimpleNamespace(name="hot"), SimpleNamespace(n_steps=30)
    walk = SimpleNamespace(coupling=coupling, schedule=schedule, score_calls=60)
    return Trial(number, atoms, walk, force_calls=40, ended=Ended.MINIMUM, converged=True, regime="hot")


class Clock:
    """Adds up what parts of the work have taken of the processor; waiting for the disk is not in it."""

    def __init__(self) -> None:
        self.spent: dict[str, float] = {}

    def __call__(self, what: str, function, *arguments):
        """Call it, on the clock."""
        begun = time.process_time()
        result = function(*arguments)
        self.spent[what] = self.spent.get(what, 0.0) + time.process_time() - begun
        return result


def run(path: str, trials: int, minima: int) -> None:
    """One search, in generations, and the time to take it up again."""
    archive = Archive(path)
    archive.open_for(SETTINGS)
    found, clock, done, before = Found(archive), Clock(), 0, 0
    print(f"\nEnds drawn from {minima} minima; ms of processor time per trial since the last line")
    print(f"{'trials':>7} {'minima':>7} {'MB':>6}   ms")
    while numbers := clock("reserve", archive.reserve, GENERATION, trials):
        ends = [end_of(number, minima) for number in numbers]
        for trial in ends:
            clock("recall", found.memory.look_at, _bare(trial.atoms), numbers[0])
        new = clock("append", archive.append, ends)
        for record in new:
            clock("minima", found.take_up, record)
        clock("ledger", found.ledger.advance, numbers[0])
        clock("ledger", found.ledger.familiarity)
        clock("ledger", found.ledger.known_minima)
        clock("refresh", archive.refresh)
        done += len(numbers)
        if any(before < point <= done for point in CHECKPOINTS) or done == trials:
            parts = ", ".join(f"{what} {1000 * spent / (done - before):.2f}" for what, spent in clock.spent.items())
            total = 1000 * sum(clock.spent.values()) / (done - before)
            print(f"{done:7d} {len(found.minima):7d} {resident():6.0f}   {total:.2f} = {parts}", flush=True)
            clock, before = Clock(), done
    archive.release()
    ranked = clock("rank", found.minima.ranked)
    clock("mark", archive.mark_minima, {atoms.info["trial"]: rank for rank, atoms in enumerate(ranked, start=1)})
    again = clock("open", Archive, path)
    clock("found", Found, again)
    print("at the end, s: " + ", ".join(f"{what} {spent:.2f}" for what, spent in clock.spent.items()), flush=True)


def _bare(atoms: Atoms) -> Atoms:
    return Atoms(atoms.numbers, atoms.positions)


def main() -> None:
    """One search for each number of minima, each in a process of its own, as memory is hardly ever given back."""
    options = parser().parse_args()
    if len(options.minima) == 1:
        with tempfile.TemporaryDirectory() as folder:
            run(options.database or f"{folder}/x.db", options.trials, options.minima[0])
        return
    for minima in options.minima:
        child = os.fork()
        if not child:
            with tempfile.TemporaryDirectory() as folder:
                run(f"{folder}/x.db", options.trials, minima)
            os._exit(0)
        os.waitpid(child, 0)


if __name__ == "__main__":
    main()
