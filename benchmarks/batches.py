#!/usr/bin/env python3
"""Batches: structures per second through CHGNet and the scores, alone and together, and where the time goes.

    python benchmarks/batches.py                  # one core; about ten minutes
    python benchmarks/batches.py --device cuda    # prints the device's name

Prints tables in Markdown. The variants of a table take turns, `--rounds` times, and each figure is the median of its
rounds, so that another load on the machine hits all alike. The structures are starts of this package: random cells of
Ti4O8 (12 atoms), and for the score of molecules C3H6O at a noise of 0.5 Å.
"""

import argparse
import os
import time
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from statistics import median
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
import numpy as np
import torch
from ase import Atoms
from torch.profiler import ProfilerActivity, profile

from ase_gss import GenerativeRSS
from ase_gss.chgnet_calculator import CHGNetCalculator, CHGNetNetwork, find_neighbours
from ase_gss.composition import parse_formula
from ase_gss.crystal_starts import random_crystal
from ase_gss.score import load_score
from ase_gss.starts import random_molecule

CRYSTAL, MOLECULE = "Ti4O8", "C3H6O"
BATCHES = (2, 4, 8, 16, 32)
SCORE_BATCHES = (1, 16, 64)
#: Kinds of operations by the beginnings of their names; what is in none of them is "other".
KINDS = {
    "matrix products": ("aten::mm", "aten::addmm", "aten::bmm"),
    "gather and scatter": ("aten::index", "aten::scatter", "aten::gather", "aten::cat", "aten::_unique"),
    "elementwise and norms": (
        *("aten::add", "aten::mul", "aten::div", "aten::sub", "aten::silu", "aten::sigmoid", "aten::sum", "aten::pow"),
        *("aten::native_layer_norm", "aten::copy_", "aten::fill_", "aten::sin", "aten::cos", "aten::neg", "aten::acos"),
        *("aten::linalg", "aten::where", "aten::exp", "aten::masked", "aten::zero_", "aten::sqrt", "aten::reciprocal"),
    ),
}


def in_turns(variants: dict[str, Callable[[], Any]], rounds: int, device: str) -> dict[str, float]:
    """Median time (s) of each variant, after one turn that does not count."""
    times: dict[str, list[float]] = {name: [] for name in variants}
    for turn in range(rounds + 1):
        for name, variant in variants.items():
            _wait(device)
            began = time.perf_counter()
            variant()
            _wait(device)
            if turn:
                times[name].append(time.perf_counter() - began)
    return {name: median(each) for name, each in times.items()}


def _wait(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def table(times: dict[str, float], count: dict[str, int], heading: str, reference: str) -> None:
    """Print structures per second, time (ms) of a structure, and the ratio to the variant `reference`."""
    print(f"\n| {heading} | structures/s | ms/structure | times {reference} |\n| --- | --- | --- | --- |")
    rates = {name: count[name] / seconds for name, seconds in times.items()}
    for name, rate in rates.items():
        print(f"| {name} | {rate:.1f} | {1000 / rate:.2f} | {rate / rates[reference]:.2f} |")


def potential(ours: CHGNetCalculator, structures: Sequence[Atoms], rounds: int, device: str) -> None:
    """CHGNet as it comes, and ours, one by one and in batches; all give energy, forces and stress."""
    from chgnet.model import CHGNet
    from chgnet.model import CHGNetCalculator as Theirs
    from pymatgen.io.ase import AseAtomsAdaptor

    model = CHGNet.load(use_device=device, verbose=False)
    theirs = Theirs(model, use_device=device)
    crystals = [AseAtomsAdaptor.get_structure(atoms) for atoms in structures]

    def one_by_one(calculator: Any) -> None:
        for atoms in structures:
            calculator.calculate(atoms, ["energy", "forces", "stress"])

    variants = {
        "chgnet's ASE calculator": partial(one_by_one, theirs),
        "chgnet's `predict_structure`, batches of 16": lambda: model.predict_structure(
            crystals, task="efs", batch_size=16
        ),
        "ours one by one": partial(one_by_one, ours),
        **{f"ours in batches of {size}": partial(in_batches, ours, structures, size) for size in BATCHES},
    }
    times = in_turns(variants, rounds, device)
    table(times, dict.fromkeys(times, len(structures)), f"CHGNet, {CRYSTAL}", "ours one by one")


def in_batches(calculator: CHGNetCalculator, structures: Sequence[Atoms], size: int) -> None:
    """All structures through the calculator, `size` at a time."""
    for start in range(0, len(structures), size):
        calculator.calculate_batch(structures[start : start + size], stress=True)


def scores(structures: Sequence[Atoms], rounds: int, device: str) -> None:
    """Score calls of one and of many structures."""
    rng = np.random.default_rng(0)
    numbers = parse_formula(MOLECULE)
    molecules = [random_molecule(numbers, rng) for _ in range(max(SCORE_BATCHES))]
    crystals = [structures[index % len(structures)] for index in range(max(SCORE_BATCHES))]
    for name, all_of_them in (("molecules", molecules), ("crystals", crystals)):
        score = load_score(name, device=device)
        times = in_turns({f"{n}": partial(call, score, all_of_them[:n]) for n in SCORE_BATCHES}, 3 * rounds, device)
        table(times, {f"{n}": n for n in SCORE_BATCHES}, f"score `{name}`, structures in a call", "1")


def call(score: Any, structures: Sequence[Atoms]) -> None:
    """One call of a score at a noise of 0.5 Å."""
    numbers = np.concatenate([atoms.numbers for atoms in structures])
    positions = np.concatenate([atoms.positions for atoms in structures])
    structure = np.repeat(np.arange(len(structures)), [len(atoms) for atoms in structures])
    of_crystals = ()
    if score.periodic:
        of_crystals = np.stack([atoms.cell.array for atoms in structures]), np.full(len(structures), 0.1)
    score(numbers, positions, np.full(len(numbers), 0.5), structure, *of_crystals)


def where_the_time_goes(calculator: CHGNetCalculator, structures: Sequence[Atoms], device: str) -> None:
    """Shares of the time by kinds of operations, and the rate of the matrix products beside what is possible."""
    network = calculator.network
    cutoffs = network.cutoff, network.angle_cutoff
    listed = in_turns({"": lambda: [find_neighbours(atoms, *cutoffs) for atoms in structures]}, 5, "cpu")[""]
    matrix = torch.randn(2048, 2048, device=device)
    peak = 2 * 2048**3 / in_turns({"": lambda: matrix @ matrix}, 9, device)[""] / 1e9
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device.startswith("cuda") else [])]
    print(f"\nA product of two matrices of 2048 × 2048: {peak:.0f} GFLOP/s.\n")
    print("| ms per structure | one by one | batches of 16 |\n| --- | --- | --- |")
    columns = []
    for size in (1, 16):
        in_batches(calculator, structures, size)
        with profile(activities=activities, with_flops=True) as profiled:
            in_batches(calculator, structures, size)
        events = profiled.key_averages()
        spent = dict.fromkeys([*KINDS, "other"], 0.0)
        for event in events:
            kind = next((kind for kind, names in KINDS.items() if event.key.startswith(names)), "other")
            own = event.self_device_time_total if device.startswith("cuda") else event.self_cpu_time_total
            spent[kind] += own / 1000 / len(structures)
        flops = sum(event.flops for event in events if event.key.startswith(KINDS["matrix products"]))
        per_second = flops / len(structures) / 1e6 / max(spent["matrix products"], 1e-9)
        operations = sum(event.count for event in events if event.key.startswith("aten::")) / len(structures)
        columns.append((spent, flops / len(structures) / 1e9, per_second, operations))
    for kind in columns[0][0]:
        print(f"| {kind} | " + " | ".join(f"{column[0][kind]:.2f}" for column in columns) + " |")
    print(f"| neighbour lists (timed alone) | {1000 * listed / len(structures):.2f} | the same |")
    print("| GFLOP of the matrix products | " + " | ".join(f"{column[1]:.2f}" for column in columns) + " |")
    print("| their GFLOP/s | " + " | ".join(f"{column[2]:.0f}" for column in columns) + " |")
    print("| operations begun | " + " | ".join(f"{column[3]:.0f}" for column in columns) + " |")


def relaxations(calculator: CHGNetCalculator, trials: int, rounds: int, device: str) -> None:
    """Whole searches, one by one and in batches of 16."""
    calls: dict[str, list[int]] = {}

    def search(batch: int) -> None:
        done = GenerativeRSS(CRYSTAL, calculator, pbc=True, batch=batch)
        done.run(trials=trials)
        calls[str(batch)] = [done.force_calls, len(done.minima)]

    times = in_turns({str(batch): partial(search, batch) for batch in (1, 16)}, rounds, device)
    print(f"\n| {CRYSTAL}, {trials} trials, `--batch` | trials/min | force calls | distinct minima |")
    print("| --- | --- | --- | --- |")
    for name, seconds in times.items():
        print(f"| {name} | {60 * trials / seconds:.1f} | {calls[name][0]} | {calls[name][1]} |")


def main() -> None:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default: %(default)s)")
    parser.add_argument("--structures", type=int, default=32, help="default: %(default)s")
    parser.add_argument("--rounds", type=int, default=5, help="default: %(default)s")
    parser.add_argument("--trials", type=int, default=16, help="of the searches; 0 for none (default: %(default)s)")
    parser.add_argument("--search-rounds", type=int, default=1, help="default: %(default)s")
    options = parser.parse_args()
    from chgnet.model import CHGNet

    torch.set_num_threads(1)
    name = torch.cuda.get_device_name() if options.device.startswith("cuda") else "one core"
    print(f"Device: {options.device} ({name}), torch {torch.__version__}")
    rng = np.random.default_rng(0)
    numbers = parse_formula(CRYSTAL)
    structures = [random_crystal(numbers, rng) for _ in range(options.structures)]
    ours = CHGNetCalculator(CHGNetNetwork(CHGNet.load(use_device=options.device, verbose=False)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        potential(ours, structures, options.rounds, options.device)
        where_the_time_goes(ours, structures, options.device)
        scores(structures, options.rounds, options.device)
        if options.trials:
            relaxations(ours, options.trials, options.search_rounds, options.device)


if __name__ == "__main__":
    main()
