#!/usr/bin/env python3
"""Structures with forces for `ase-gss train --forces`: what relaxations of samples and random starts go through.

    python benchmarks/force_data.py frames.extxyz --frames 100000 --seed 0 --hold-out C3H6O C4H6O

Small molecules of random compositions of H, C, N, O and F, stable ones and others, held-out compositions left out. A
trial is made as a search makes it, in one of its regimes, and relaxed with the calculator; every structure on the way
is kept, with its forces. The file grows; the same command goes on after an interrupt, with other random numbers.
"""

import argparse
import os
from collections.abc import Iterator
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
import numpy as np
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import write

from ase_gss import GenerativeRSS
from ase_gss.composition import formula_of, parse_formula
from ase_gss.score.data import formula_key
from ase_gss.score.force_data import LARGEST_FORCE
from ase_gss.stages import relax, sample

#: Probabilities of the heavy atoms C, N, O and F, how many there are, and trials of one composition.
HEAVY, SHARES, MOST_HEAVY, TRIALS = "CNOF", (0.56, 0.17, 0.22, 0.05), 7, 12
#: Shares of the regimes.
REGIMES = {"hot": 0.3, "hotter": 0.25, "early": 0.1, "diffusion": 0.1, "rss": 0.25}


def random_formula(rng: np.random.Generator, held_out: set[tuple[int, ...]]) -> str:
    """Two to seven heavy atoms that saturate one another more or less, with an even number of electrons."""
    while True:
        heavy = rng.choice(list(HEAVY), p=SHARES, size=rng.integers(2, MOST_HEAVY + 1))
        counts = {symbol: int(np.sum(heavy == symbol)) for symbol in HEAVY}
        most = 2 * counts["C"] + counts["N"] + 2 - counts["F"]  # of a chain without rings
        hydrogens = most - 2 * rng.integers(0, 1 + max(most // 2, 0)) if most > 0 else -1
        if hydrogens < 0:
            continue
        formula = "".join(f"{symbol}{n}" for symbol, n in (("C", counts["C"]), ("H", hydrogens)) if n)
        formula += "".join(f"{symbol}{n}" for symbol, n in counts.items() if n and symbol != "C")
        numbers = parse_formula(formula)
        if len(numbers) > 3 and formula_key(numbers) not in held_out:
            return formula_of(numbers)


def frames_of(formula: str, calculator: str, rng: np.random.Generator) -> Iterator[Atoms]:
    """Structures of some trials of this composition, with their forces."""
    plan = GenerativeRSS(formula, calculator, seed=int(rng.integers(2**31))).plan
    regimes = [next(each for each in plan.regimes if each.name == name) for name in REGIMES]
    drawn = rng.choice(len(regimes), p=list(REGIMES.values()), size=TRIALS)
    trials = [plan.begin(number, regimes[which]) for number, which in enumerate(drawn)]
    sample(trials, plan)
    relax([trial for trial in trials if trial.ended is None], plan)
    for trial in trials:
        if trial.frames is None:
            continue
        for positions, forces in zip(trial.frames.positions, trial.frames.forces, strict=True):
            if np.abs(forces).max() <= LARGEST_FORCE:
                atoms = Atoms(plan.system.numbers, positions)
                atoms.calc = SinglePointCalculator(atoms, forces=forces)
                yield atoms


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, help="extended xyz")
    parser.add_argument("--frames", type=int, default=100_000, help="structures to add")
    parser.add_argument("--calculator", default="gfn2")
    parser.add_argument("--hold-out", nargs="+", default=[], metavar="FORMULA")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    import torch

    torch.set_num_threads(1)
    size = options.file.stat().st_size if options.file.exists() else 0
    rng = np.random.default_rng((options.seed, size))
    held_out = {formula_key(parse_formula(formula)) for formula in options.hold_out}
    done = 0
    while done < options.frames:
        formula = random_formula(rng, held_out)
        frames = list(frames_of(formula, options.calculator, rng))
        if frames:
            write(options.file, frames, format="extxyz", append=True)
        done += len(frames)
        print(f"{done} {formula} {len(frames)}", flush=True)


if __name__ == "__main__":
    main()
