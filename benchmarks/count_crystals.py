#!/usr/bin/env python3
"""Referee: how many distinct minima are in a set of relaxed crystals, by one rule for all methods.

Every end low enough to count is re-relaxed, its cell included, to max|F| < 0.01 eV/Å and max|stress + p| < 0.02 GPa,
and two ends are one minimum when `CrystalComparison.refined()` says so. FILE is anything ASE reads with one structure
for each trial, in order, with `info["force_calls"]` and `info["converged"]`. The count is given against the cumulative
calls; refinement calls are reported apart and charged to no method. The refined structures are kept beside FILE, so
that an interrupted count goes on where it stopped. Prints JSON.
"""

import argparse
import json
import os
import re
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
import numpy as np
from ase import Atoms
from ase.calculators.calculator import Calculator
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import read, write
from ase.units import GPa

from ase_gss.calculators import calculator_factory
from ase_gss.crystal_minima import CrystalComparison, space_group
from ase_gss.forces import CountedCalculator
from ase_gss.minima import MinimaList
from ase_gss.relax import hand_off

WINDOWS = (0.05, 0.1, 0.3)
BUDGETS = (1000, 2000, 5000, 10_000, 20_000, 50_000, 100_000)
#: Refinement lowers an end by less than this, eV/atom.
MARGIN = 0.03
FMAX, STRESS_TOLERANCE, MAX_STEPS = 0.01, 0.02 * GPa, 1000


def enthalpy_per_atom(atoms: Atoms, pressure: float) -> float:
    """Enthalpy in eV/atom at a pressure in eV/Å³; infinite where the end has no energy."""
    try:
        energy = atoms.get_potential_energy()
    except RuntimeError:
        return np.inf
    return (energy + pressure * atoms.get_volume()) / len(atoms)


class Refinery:
    """Refines the ends of one file, and keeps them in another beside it."""

    def __init__(self, path: Path, name: str, calculator: Calculator, pressure: float) -> None:
        self.calculator, self.pressure = calculator, pressure
        label = re.sub(r"\W+", "-", name)
        self.path = path.with_name(f"{path.name}.refined-{label}-{pressure / GPa:g}GPa.extxyz")
        stored = read(self.path, ":") if self.path.exists() else []
        self.known = {atoms.info["trial"]: atoms for atoms in stored}

    def refined(self, end: Atoms, trial: int) -> Atoms:
        """The end, relaxed; `info` has `trial`, `end_energy`, `converged` and `refinement_calls`."""
        known, end_energy = self.known.get(trial), round(end.get_potential_energy(), 6)
        # FILE may have been written anew since, with other ends.
        if known is not None and np.isclose(known.info["end_energy"], end_energy, rtol=0, atol=2e-6):
            return known
        atoms = Atoms(end.numbers, end.positions, cell=end.cell, pbc=True)
        atoms.calc = counted = CountedCalculator(self.calculator)
        outcome = hand_off(
            atoms, "ModelBFGS", FMAX, MAX_STEPS, pressure=self.pressure, stress_tolerance=STRESS_TOLERANCE
        )
        result = outcome.frozen(atoms)
        result.info = {
            "trial": trial,
            "end_energy": end_energy,
            "converged": outcome.converged,
            "refinement_calls": counted.calls,
        }
        write(self.path, result, append=True, format="extxyz")
        self.known[trial] = result
        return result


def energies_of(ends: list[Atoms], calculator: Calculator) -> int:
    """Give the converged ends that have no energy theirs; the number of force calls that took."""
    calls = 0
    for end in ends:
        if end.info.get("converged", True) and end.calc is None:
            end.calc = calculator
            energy = end.get_potential_energy()
            end.calc, calls = SinglePointCalculator(end, energy=energy), calls + 1
    return calls


def count(path: Path, name: str, pressure: float, window: float) -> dict:
    """All that is printed about one file; pressure in eV/Å³, window in eV/atom."""
    calculator = calculator_factory(name)()
    ends, refinery = read(path, ":"), Refinery(path, name, calculator, pressure)
    refinement_calls = energies_of(ends, calculator)
    converged = [bool(end.info.get("converged", True)) for end in ends]
    enthalpies = np.array(
        [enthalpy_per_atom(end, pressure) if ok else np.inf for end, ok in zip(ends, converged, strict=True)]
    )
    calls = np.cumsum([int(end.info.get("force_calls", 0)) for end in ends])
    minima, met, not_refined = MinimaList(CrystalComparison.refined(pressure)), [], 0
    low = enthalpies < enthalpies.min(initial=np.inf) + window + MARGIN
    for trial in np.flatnonzero(low).tolist():
        refined = refinery.refined(ends[trial], trial)
        refinement_calls += int(refined.info["refinement_calls"])
        if not refined.info["converged"]:
            not_refined += 1
            continue
        index, _ = minima.add(refined, refined.get_potential_energy(), trial, int(calls[trial]))
        met.append((int(calls[trial]), index))
    return {
        "file": str(path),
        "calculator": name,
        "pressure_GPa": pressure / GPa,
        "trials": len(ends),
        "converged": sum(converged),
        "force_calls": int(calls[-1]) if len(ends) else 0,
        "refined": len(met),
        "refinement_not_converged": not_refined,
        "refinement_calls": refinement_calls,
        "lowest_enthalpy_per_atom": min(minima.energies, default=None),
        "distinct": {f"{width:g}": _found(minima, met, width) for width in WINDOWS if width <= window},
        "minima": [_row(atoms, pressure) for atoms in minima.ranked()[:20]],
    }


def _found(minima: MinimaList, met: list[tuple[int, int]], width: float) -> dict:
    """Distinct minima and ends within `width` (eV/atom) of the lowest: in all, and after each budget of calls."""
    lowest = min(minima.energies, default=0.0)
    inside = [(calls, index) for calls, index in met if minima.energies[index] - lowest < width]
    first = {}
    for calls, index in inside:
        first.setdefault(index, calls)
    return {
        "in_all": len(first),
        "ends": len(inside),
        "at_budget": {str(budget): sum(calls <= budget for calls in first.values()) for budget in BUDGETS},
        "found_at_calls": sorted(first.values()),
    }


def _row(atoms: Atoms, pressure: float) -> dict:
    return {
        "enthalpy_per_atom": enthalpy_per_atom(atoms, pressure),
        "formula": atoms.get_chemical_formula(),
        "space_group": space_group(atoms)[0],
        "volume_per_atom": atoms.get_volume() / len(atoms),
        **{key: atoms.info[key] for key in ("hits", "first_call", "first_trial")},
    }


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE")
    parser.add_argument("--calculator", required=True, help="a name of ase_gss.calculators")
    parser.add_argument("--pressure", type=float, default=0.0, help="GPa")
    parser.add_argument("--window", type=float, default=0.1, help="count up to this far above the lowest, eV/atom")
    args = parser.parse_args()
    counted = [count(path, args.calculator, args.pressure * GPa, args.window) for path in args.files]
    print(json.dumps(counted, indent=1))


if __name__ == "__main__":
    main()
