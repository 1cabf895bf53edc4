#!/usr/bin/env python3
"""Crystals: this search against random search, by force calls.

    python benchmarks/crystals.py run DIR --systems Ti4O8 Si16 --methods gss rss rss-symmetric --seeds 0 1 2
    python benchmarks/crystals.py report DIR

`run` searches each system with each method and seed up to its budget, one database each in DIR; a run that was
interrupted goes on, one that is finished is not repeated, so several processes may share the work by their seeds.
`report` writes DIR/report.json and prints tables, all by the same rule for every method:

* calls per good trial: force calls over the trials that were relaxed to within 0.05 eV/atom of the lowest structure
  known; a sample that is recognised as a known minimum is a trial, but no good one;
* calls to the lowest: force calls until a trial ended in it (within 5 meV/atom and StructureMatcher agrees);
* distinct minima within 0.1 eV/atom of it, of the ends as they are; `count_crystals.py` counts refined ones.
"""

import argparse
import json
import os
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
import numpy as np
import torch
from ase import Atoms
from ase.io import write

from ase_gss import GenerativeRSS
from ase_gss.archive import Archive, Record
from ase_gss.crystal_minima import CrystalComparison, space_group
from ase_gss.minima import MinimaList
from ase_gss.trial import Ended

#: Calculator, and force calls for this search and for random search.
SYSTEMS = {
    "Ti4O8": ("chgnet", 3000, 30_000),
    "Al4O6": ("chgnet", 3000, 30_000),
    "Ca2Ti2O6": ("chgnet", 3000, 30_000),
    "Si8C8": ("tersoff", 3000, 30_000),
    "Si16": ("sw", 3000, 30_000),
}
METHODS = {
    "gss": {},
    "adaptive": {"regime": "adaptive"},
    "gss-all": {"recognise": False},
    "hot": {"coupling": "hot"},
    "mn": {"coupling": "mn"},
    "mi": {"coupling": "mi"},
    "rss": {"coupling": "rss"},
    "rss-symmetric": {"coupling": "rss", "symmetry": True},
}
GOOD, DISTINCT, SAME = 0.05, 0.1, 0.005


def run(options: argparse.Namespace) -> None:
    """Search, one database for each system, method and seed."""
    torch.set_num_threads(1)
    options.folder.mkdir(parents=True, exist_ok=True)
    for seed in options.seeds:
        for system in options.systems:
            for method in options.methods:
                calculator, ours, random = SYSTEMS[system]
                budget = options.max_calls or (random if method.startswith("rss") else ours)
                keywords = dict(METHODS[method])
                if options.score and not method.startswith("rss"):
                    keywords["score"] = options.score
                database = options.folder / f"{system}_{method}_{seed}.db"
                search = GenerativeRSS(system, calculator, pbc=True, database=database, seed=seed, **keywords)
                search.run(max_calls=budget)
                lowest = min(search.energies, default=np.nan)
                print(
                    f"{system} {method} seed {seed}: {search.trials} trials, {search.force_calls} calls, "
                    f"{len(search.energies)} minima, lowest {lowest:.4f} eV/atom",
                    flush=True,
                )


@dataclass(frozen=True)
class End:
    """A finished trial with its structure, and the force calls spent up to and including it."""

    record: Record
    atoms: Atoms
    calls: int

    @property
    def per_atom(self) -> float:
        """Energy of a minimum in eV/atom, infinite for a trial that ended elsewhere."""
        return self.record.energy / len(self.atoms) if self.record.ended is Ended.MINIMUM else np.inf


def ends_of(archive: Archive) -> list[End]:
    """Finished trials, in their order."""
    calls = np.cumsum([record.force_calls for record in archive.records]).tolist()
    return [End(r, archive.atoms_of(r.number), spent) for r, spent in zip(archive.records, calls, strict=True)]


def facts_of(ends: list[End], lowest: Atoms, energy: float, budget: int | None) -> dict[str, float]:
    """The figures of one run; `energy` (eV/atom) is that of the lowest structure known."""
    comparison = CrystalComparison.searching()
    target = comparison.describe(lowest, energy * len(lowest))
    ends = [end for end in ends if budget is None or end.calls <= budget]
    met, good, minima = None, 0, MinimaList(comparison)
    for end in ends:
        value, record = end.per_atom, end.record
        good += value - energy < GOOD
        if record.ended is not Ended.MINIMUM or value - energy >= DISTINCT:
            continue
        minima.add(end.atoms, record.energy, record.number, end.calls)
        if met is None and value - energy < SAME:
            described = comparison.describe(end.atoms, record.energy)
            met = end.calls if np.isfinite(comparison.distance(described, target)) else None
    spent = ends[-1].calls if ends else 0
    return {
        "trials": len(ends),
        "calls": spent,
        "calls_per_trial": spent / max(len(ends), 1),
        "good_percent": 100 * good / max(len(ends), 1),
        "calls_per_good": spent / good if good else np.nan,
        "calls_to_lowest": np.nan if met is None else met,
        "distinct": len(minima),
        "lowest": min((end.per_atom for end in ends), default=np.nan) - energy,
    }


def report(options: argparse.Namespace) -> None:
    """Tables of all databases in the folder."""
    runs: dict[str, dict[str, dict[int, list]]] = defaultdict(lambda: defaultdict(dict))
    for path in sorted(options.folder.glob("*_*_*.db")):
        system, method, seed = path.stem.rsplit("_", 2)
        archive = Archive(path, must_exist=True)
        runs[system][method][int(seed)] = ends_of(archive)
        if options.write_ends:
            frames = [_frame(end) for end in runs[system][method][int(seed)]]
            write(path.with_suffix(".extxyz"), frames)
    everything = {}
    for system, methods in runs.items():
        best = min((end for seeds in methods.values() for ends in seeds.values() for end in ends), key=_per_atom)
        energy = best.per_atom
        print(f"\n{system}: lowest known {energy:.4f} eV/atom, {space_group(best.atoms)[0]}")
        print(
            f"{'method':<20} {'seeds':>5} {'calls':>7} {'/trial':>7} {'good %':>7} {'calls/good':>12} "
            f"{'to lowest':>12} {'met':>5} {'distinct':>12}"
        )
        everything[system] = {"lowest": energy, "space_group": space_group(best.atoms)[0], "methods": {}}
        for method, seeds in methods.items():
            for budget in options.budgets or [None]:
                facts = [facts_of(ends, best.atoms, energy, budget) for ends in seeds.values()]
                everything[system]["methods"][method if budget is None else f"{method}@{budget}"] = facts
                print(_line(method if budget is None else f"{method}@{budget}", facts))
    (options.folder / "report.json").write_text(json.dumps(everything, indent=1))


def _per_atom(end: End) -> float:
    return end.per_atom


def _frame(end: End) -> Atoms:
    atoms = end.atoms.copy()
    atoms.calc = end.atoms.calc
    atoms.info = {"force_calls": end.record.force_calls, "converged": end.record.ended is Ended.MINIMUM}
    return atoms


def _line(method: str, facts: list[dict[str, float]]) -> str:
    def mean(name: str) -> str:
        values = np.array([fact[name] for fact in facts], dtype=float)
        values = values[np.isfinite(values)]
        if not len(values):
            return "-"
        error = values.std(ddof=1) / np.sqrt(len(values)) if len(values) > 1 else np.nan
        return f"{values.mean():.0f}±{error:.0f}"

    met = sum(np.isfinite(fact["calls_to_lowest"]) for fact in facts)
    calls, per_trial = (np.mean([fact[name] for fact in facts]) for name in ("calls", "calls_per_trial"))
    # Pooled: a run without a good trial has no figure of its own.
    good = sum(fact["good_percent"] * fact["trials"] / 100 for fact in facts)
    pooled = sum(fact["calls"] for fact in facts) / good if good else np.nan
    percent = 100 * good / sum(fact["trials"] for fact in facts)
    return (
        f"{method:<20} {len(facts):5d} {calls:7.0f} {per_trial:7.1f} {percent:7.1f} {pooled:12.0f} "
        f"{mean('calls_to_lowest'):>12} {met:2d}/{len(facts)} {mean('distinct'):>12}"
    )


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    runner = commands.add_parser("run")
    runner.set_defaults(function=run)
    runner.add_argument("folder", type=Path)
    runner.add_argument("--systems", nargs="+", choices=SYSTEMS, default=list(SYSTEMS))
    runner.add_argument("--methods", nargs="+", choices=METHODS, default=["gss", "rss", "rss-symmetric"])
    runner.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2, 3, 4])
    runner.add_argument("--max-calls", type=int, help="instead of the budgets of the systems")
    runner.add_argument("--score", help="model file instead of the shipped score")
    reporter = commands.add_parser("report")
    reporter.set_defaults(function=report)
    reporter.add_argument("folder", type=Path)
    reporter.add_argument("--budgets", nargs="+", type=int, help="report at these numbers of force calls")
    reporter.add_argument("--write-ends", action="store_true", help="write DIR/*.extxyz for count_crystals.py")
    options = parser.parse_args()
    options.function(options)


if __name__ == "__main__":
    main()
