#!/usr/bin/env python3
"""Molecules: this search, its limits and its peers, by distinct minima against force calls.

    python benchmarks/molecules.py run --folder F --systems C3H6O C4H6O --methods gss rss diffusion --seeds 5 \
        --max-calls 40000 --processes 2
    python benchmarks/molecules.py report --folder F --plot molecules.svg
    python benchmarks/molecules.py modes --folder F --number 100

`run` searches each system with each method and seed and refines what was found. What was interrupted goes on: a search
where it stopped, a peer's run from its beginning. With more calls or seeds it goes on from what there is.

The counting rule, the same for every method: all ends in one piece that are converged (0.05 eV/Å) are relaxed to 0.005
eV/Å; two are one minimum when their bonding graphs are isomorphic, their energies agree within 5 meV and their sorted
distances within 0.05 Å. What has atoms on one another is no molecule. Calls for this are charged to nobody. All minima
that any run has met are pooled in F/reference_FORMULA.extxyz, which grows; a run is the list of the calls at which it
first met each of them. *Recovered* is the looser figure: an end as it is, of a force below 0.05 eV/Å, within 50 meV of
the pooled minimum that it refines to, and the comparison agrees.

What was counted of each run is kept in F/runs.json, so that `report` needs its database no more.

`report` writes F/report.json, F/curves.csv and F/report.md: means and standard errors over seeds; how many times the
calls random search needs for the same number (linear interpolation of the mean over all orders of its seeds, one after
the other, its trials being independent; standard error from those of both counts, random search's by the jackknife over
its seeds; ">" where all of them together have not got there); and how often the 90 % interval for the number of new
minima in the next 100 trials held.

`modes` counts the imaginary modes of some pooled minima of each system, for a relaxation to 0.005 eV/Å may end on a
ridge. The numbers stay with the minima, and `report` has a line on them.
"""

import argparse
import csv
import hashlib
import json
import os
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from itertools import permutations
from math import factorial
from multiprocessing import get_context
from pathlib import Path
from typing import Any, ClassVar

os.environ.setdefault("OMP_NUM_THREADS", "1")
import numpy as np
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import read, write
from peers import PEERS, run_peer

from ase_gss import GenerativeRSS
from ase_gss.archive import Archive
from ase_gss.bonds import is_connected, overlapping
from ase_gss.calculator_source import calculator_source
from ase_gss.calculators import calculator_factory
from ase_gss.completeness import predict_new
from ase_gss.composition import parse_formula, spin_multiplicity
from ase_gss.coupling import Mi
from ase_gss.forces import CalculatorFailure, CountedCalculator
from ase_gss.minima import Comparison, MinimaList
from ase_gss.relax import hand_off
from ase_gss.trial import Ended
from ase_gss.verify import vibrations

#: Formulas held out when the score was trained (C2H4O3 is not in QM9), and some of elements that QM9 does not have.
HELD_OUT = ("C3H6O", "C4H6O", "C2H4O3", "C2H5NO")
BEYOND = ("C2H6OS", "C2H5ClO", "C2H6OSi", "C2H5O2P", "CH6OSi")
BUDGETS = (1000, 2000, 5000, 10_000, 20_000, 40_000, 50_000, 75_000, 100_000, 200_000, 400_000)
#: Those at which random search is reported on with its seeds one after the other.
LONG_BUDGETS = (100_000, 200_000, 300_000, 400_000)
#: eV above the lowest known.
WINDOWS = (5.0, 2.0, 1.0)
FMAX, REFINED_FMAX = 0.05, 0.005
#: Random search must have met so many for a ratio of calls to mean something.
ENOUGH = 10
#: Orders of the seeds of random search over which is averaged at most.
MOST_ORDERS = 24
#: Trials after which the number of new minima in the next `HORIZON` is predicted.
CALIBRATION_POINTS, HORIZON = (100, 200, 400, 800, 1600, 3200, 6400, 12_800), 100
#: Force calls of the short table.
SHORT_TABLE = {"gss": (1000, 2000, 5000, 10_000, 20_000, 40_000), "diffusion": (40_000,), "rss": (10_000, 100_000)}
#: Marks in a text between which `report --readme` puts its table.
_BEGIN, _END = "<!-- molecules: begin -->", "<!-- molecules: end -->"
#: An end that is recovered: 50 meV, 0.05 Å.
RECOVERED = Comparison(0.05, 0.05, "elements", True)


@dataclass(frozen=True)
class PublishedMn:
    """Score, noise and, in the last 75 % of the schedule, the force at the Tweedie estimate, weighed as published."""

    start: float = 0.25
    gain: float = 0.0037

    point: ClassVar[str] = "x0"
    name: ClassVar[str] = "mn-published"

    def weights(self, k: int, n_steps: int, sigma: float) -> tuple[float, float, float]:
        """(1, 1, 1) from `start` on, (1, 1, 0) before it."""
        return 1.0, 1.0, float(k / n_steps >= self.start)

    def todict(self) -> dict:
        """Name and parameters."""
        return {"name": self.name} | asdict(self)


#: The published couplings as published, but for their additional force of a classical force field (weight 0.1), which
#: is left out, and for our score and its schedule; every sample is relaxed, with BFGS.
_AS_PUBLISHED = {"optimizer": "BFGS", "recognise": False}
METHODS: dict[str, dict[str, Any]] = {
    "gss": {},
    "gss-own-forces": {"forces": False},
    "rss": {"coupling": "rss"},
    "diffusion": {"coupling": "diffusion"},
    "diffusion-plain": {"coupling": "diffusion", "recognise": False},
    "hot": {"coupling": "hot"},
    **{name: {"regime": name} for name in ("hotter", "early")},
    "mi": {"coupling": "mi"},
    "mn": {"coupling": "mn"},
    "mi-published": {"coupling": Mi(k_mid=0.1, k_scale=0.15, start=0.25, gain=0.0037), **_AS_PUBLISHED},
    "mn-published": {"coupling": PublishedMn(), **_AS_PUBLISHED},
}


@dataclass(frozen=True)
class End:
    """How one trial of a run, or one relaxation of a peer, ended.

    `calls` are those of the whole run so far; `atoms` may be None where it is no minimum; `known` is the trial whose
    end it was recognised as, without relaxation unless it is a minimum; `parent` the one whose end it was made from.
    """

    number: int
    calls: int
    atoms: Atoms | None
    energy: float | None
    is_minimum: bool
    known: int | None = None
    parent: int | None = None


@dataclass(frozen=True)
class Run:
    """One system, method and seed, and its files in the folder."""

    folder: Path
    formula: str
    method: str
    seed: int
    calculator: str = "gfn2"

    @property
    def name(self) -> str:
        """What its files are called."""
        return f"{self.formula}_{self.method}_{self.seed}"

    @property
    def ends_file(self) -> Path:
        """The database of a search, or the ends of a peer."""
        return self.folder / f"{self.name}{'.extxyz' if self.method in PEERS else '.db'}"

    @property
    def state_file(self) -> Path:
        """Budget that was reached, and time."""
        return self.folder / f"{self.name}.json"

    def refined_file(self, suffix: str) -> Path:
        """Refined ends (.extxyz), what they amount to (.json)."""
        return self.folder / "refined" / f"{self.name}{suffix}"

    def state(self) -> dict[str, Any]:
        """What the run has reached so far."""
        fresh = {"max_calls": 0, "calls": 0, "score_calls": 0, "trials": 0, "wall_time": 0.0}
        return json.loads(self.state_file.read_text()) if self.state_file.exists() else fresh

    @cached_property
    def numbers(self) -> np.ndarray:
        """Atomic numbers."""
        return parse_formula(self.formula)

    def new_calculator(self) -> CountedCalculator:
        """The physical calculator."""
        return self._source()

    @cached_property
    def _source(self) -> Callable[[], CountedCalculator]:
        return calculator_source(self.calculator, 0, spin_multiplicity(self.numbers, 0, None))[0]

    def ends(self) -> list[End]:
        """All ends in their order."""
        return _ends_of_peer(self.ends_file) if self.method in PEERS else ends_of_database(self.ends_file)


def ends_of_database(path: Path) -> list[End]:
    """The ends of the trials of a search."""
    calls, ends = 0, []
    for record, atoms in Archive(path, must_exist=True).ends():
        calls += record.force_calls
        is_minimum = record.ended is Ended.MINIMUM
        ends.append(End(record.number, calls, atoms, record.energy, is_minimum, record.known, record.parent))
    return ends


def _ends_of_peer(path: Path) -> list[End]:
    frames = read(path, ":") if path.stat().st_size else []
    return [
        End(number, int(atoms.info["calls"]), atoms, atoms.get_potential_energy(), atoms.info["ended"] == "minimum")
        for number, atoms in enumerate(frames)
    ]


# ---------------------------------------------------------------- running


def carry_out(run: Run, max_calls: int) -> str:
    """Search up to this budget, refine what is new, and say in one line what came of it."""
    import torch

    torch.set_num_threads(1)
    if run.state()["max_calls"] < max_calls:
        (_run_peer if run.method in PEERS else _run_search)(run, max_calls)
    account, state = account_of(run), run.state()
    return (
        f"{run.name}: {state['calls']} calls, {state['trials']} trials, {account['distinct']} minima, "
        f"{state['wall_time']:.0f} s; {account['refinement_calls']} calls to refine"
    )


def _run_search(run: Run, max_calls: int) -> None:
    before, begun = run.state(), time.perf_counter()
    # No limit on failures: a method whose samples the calculator cannot do is to show it in its numbers.
    keywords = {"fmax": FMAX, "seed": run.seed, "database": run.ends_file, "failure_limit": 1.0}
    search = GenerativeRSS(run.formula, run.calculator, **keywords, **METHODS[run.method])

    def save(reached: int = before["max_calls"]) -> None:
        state = {
            "max_calls": reached,
            "calls": search.force_calls,
            "score_calls": search.score_calls,
            "trials": search.trials,
            "wall_time": before["wall_time"] + time.perf_counter() - begun,
        }
        _replace(run.state_file, lambda path: path.write_text(json.dumps(state)))

    search.attach(save, 50)  # a kill loses little of the time
    try:
        search.run(max_calls=max_calls)
    except BaseException:
        save()
        raise
    save(max_calls)


def _run_peer(run: Run, max_calls: int) -> None:
    begun = time.perf_counter()
    make = calculator_factory(run.calculator, multiplicity=spin_multiplicity(run.numbers, 0, None))
    ends, calls = run_peer(run.method, run.numbers, make(), run.seed, max_calls, FMAX)
    _replace(run.ends_file, lambda path: write(path, ends, format="extxyz"))
    state = {"max_calls": max_calls, "calls": calls, "score_calls": 0, "trials": len(ends)}
    state["wall_time"] = time.perf_counter() - begun
    _replace(run.state_file, lambda path: path.write_text(json.dumps(state)))


def _replace(path: Path, write_to: Callable[[Path], Any]) -> None:
    """Write aside and move into place: a kill leaves the old file or the new one."""
    unfinished = path.with_name(path.name + ".part")
    write_to(unfinished)
    os.replace(unfinished, path)


# ---------------------------------------------------------------- counting


def refine_end(end: End, new_calculator: Callable[[], CountedCalculator]) -> Atoms:
    """A converged end, relaxed to 0.005 eV/Å; `info` has its `number`, `is_minimum` and the `calls` of this."""
    atoms = Atoms(end.atoms.numbers, positions=end.atoms.positions)
    atoms.calc = calculator = new_calculator()
    # The optimizer of the rule: the softest modes end elsewhere with another.
    outcome = hand_off(atoms, "BFGS", fmax=REFINED_FMAX, max_steps=300, maxstep=0.1)
    frozen = outcome.frozen(atoms)
    frozen.info = {"number": end.number, "calls": calculator.calls, "key": _key(end)}
    frozen.info["is_minimum"] = bool(outcome.converged and is_connected(atoms) and not overlapping(atoms))
    return frozen


def _key(end: End) -> str:
    """Of this end and no other: peers run from their beginning again where they are given more calls."""
    return _hash(f"{end.number}{np.round(end.atoms.positions, 3) + 0.0}")


def _hash(text: str) -> str:
    return hashlib.sha1(text.encode()).hexdigest()[:16]


def refined_ends(run: Run, ends: Sequence[End]) -> list[tuple[End, Atoms]]:
    """Every converged end and its refined form, from the file where it is there."""
    path = run.refined_file(".extxyz")
    path.parent.mkdir(exist_ok=True)
    there = {atoms.info["key"]: atoms for atoms in (read(path, ":") if path.exists() else [])}
    converged = [end for end in ends if end.is_minimum]
    missing = [end for end in converged if _key(end) not in there]
    for done, end in enumerate(missing, start=1):
        there[_key(end)] = refine_end(end, run.new_calculator)
        if done % 200 == 0 or end is missing[-1]:
            _replace(path, lambda part: write(part, list(there.values()), format="extxyz"))
    return [(end, there[_key(end)]) for end in converged]


def count_alone(pairs: Iterable[tuple[End, Atoms]]) -> tuple[MinimaList, dict[int, int]]:
    """The distinct minima of one run by the counting rule, and which of them each end is, by the end's number."""
    minima, which = MinimaList(Comparison.refined()), {}
    for end, refined in pairs:
        if refined.info["is_minimum"]:
            which[end.number] = minima.add(refined, refined.get_potential_energy(), end.number, end.calls)[0]
    return minima, which


def loosely_met(ends: Sequence[End]) -> list[int | None]:
    """Which minimum each trial ended in, as a search tells them apart on its way.

    None for those that ended in none, or came back to the one that they were made from, which says nothing.
    """
    minima, of_trial, met = MinimaList(), {}, []
    for end in ends:
        index, is_new = of_trial.get(end.known) if end.known is not None else None, False
        if end.is_minimum:
            index, is_new = minima.add(end.atoms, end.energy, end.number, end.calls)
            of_trial[end.number] = index
        returned = end.parent is not None and not is_new and index == of_trial.get(end.parent)
        met.append(None if returned else index)
    return met


def account_of(run: Run) -> dict[str, Any]:
    """What a run amounts to on its own; from its file unless the run has gone on since.

    Returns
    -------
    dict
        `calls` and `met` (see `loosely_met`) of every trial; `which`, number of the end: its distinct minimum;
        `distinct`, their number; `recovered`, see `recovered_at`; `refinement_calls`; keys are strings.
    """
    ends, path = run.ends(), run.refined_file(".json")
    last = next((end for end in reversed(ends) if end.is_minimum), None)
    digest = f"{len(ends)} {ends[-1].calls if ends else 0} {_key(last) if last else ''}"
    if path.exists() and (account := json.loads(path.read_text()))["digest"] == digest:
        return account
    pairs = refined_ends(run, ends)
    minima, which = count_alone(pairs)
    account = {
        "digest": digest,
        "calls": [end.calls for end in ends],
        "met": loosely_met(ends),
        "numbers": [end.number for end in ends],
        "which": which,
        "distinct": len(minima),
        "recovered": recovered_at(pairs, which),
        "refinement_calls": sum(int(refined.info["calls"]) for _, refined in pairs),
    }
    path.parent.mkdir(exist_ok=True)
    _replace(path, lambda part: part.write_text(json.dumps(account)))
    return json.loads(path.read_text())


def recovered_at(pairs: Sequence[tuple[End, Atoms]], which: dict[int, int]) -> dict[int, int]:
    """Force calls at which each distinct minimum was first met by an end that as it is counts as recovering it."""
    found: dict[int, int] = {}
    for end, refined in pairs:
        index = which.get(end.number)
        if index is None or index in found:
            continue
        two = RECOVERED.describe(end.atoms, end.energy), RECOVERED.describe(refined, refined.get_potential_energy())
        if np.isfinite(RECOVERED.distance(*two)):
            found[index] = end.calls
    return found


class Pool:
    """All distinct minima of a system that any run has met, in the order in which they came.

    Parameters
    ----------
    path : Path, optional
        Where it is kept.
    """

    def __init__(self, path: Path | None = None) -> None:
        self.path, self._list, self.frames = path, MinimaList(Comparison.refined()), []
        #: Index of each minimum in the file.
        self.kept = [
            self.index(atoms, atoms.info["met_by"])
            for atoms in (read(path, ":") if path is not None and path.exists() else [])
        ]

    def index(self, atoms: Atoms, met_by: str) -> int:
        """Index of this refined minimum, which is taken up where it is new."""
        energy = atoms.get_potential_energy()
        index, is_new = self._list.add(atoms, energy, 0, 0)
        if is_new:
            frame = Atoms(atoms.numbers, positions=atoms.positions, info={"met_by": met_by})
            if "imaginary" in atoms.info:
                frame.info["imaginary"] = atoms.info["imaginary"]
            frame.calc = SinglePointCalculator(frame, energy=energy)
            self.frames.append(frame)
        return index

    def compare_anew(self) -> list[int]:
        """Compare all with one another, as when the file is read, until none fall together; their new indices.

        A minimum is compared by the lowest end that was met of it, which is not the one that is kept: two may be one.
        """
        where, n_before = list(range(len(self.frames))), -1
        while len(self.frames) != n_before:
            n_before, frames = len(self.frames), self.frames
            self._list, self.frames = MinimaList(Comparison.refined()), []
            now = [self.index(atoms, atoms.info["met_by"]) for atoms in frames]
            where = [now[index] for index in where]
        return where

    @property
    def energies(self) -> np.ndarray:
        """Energy of each in eV."""
        return np.array(self._list.energies)

    def within(self, window: float) -> np.ndarray:
        """Whether each is within a window (eV) of the lowest."""
        return self.energies - self.energies.min(initial=np.inf) < window

    @property
    def modes(self) -> np.ndarray:
        """Imaginary modes of each as `check_modes` has counted them; -1 where it has not."""
        return np.array([frame.info.get("imaginary", -1) for frame in self.frames], dtype=int)

    def save(self) -> None:
        """Write it to its file."""
        if self.frames:
            _replace(self.path, lambda part: write(part, self.frames, format="extxyz"))


@dataclass
class Counted:
    """A run in terms of the pool.

    Attributes
    ----------
    first, recovered : dict
        Force calls at which each pooled minimum was first met, and first recovered, by its index.
    limit : float
        Force calls up to which the run says something.
    distinct, whole, refinement_calls : int
        Minima by themselves, trials that ended in one, and force calls of the refinement.
    predictions : list of dict
        See `check_predictions`.
    state : dict
        See `Run.state`.
    """

    run: Run
    first: dict[int, int]
    recovered: dict[int, int]
    limit: float
    distinct: int
    whole: int
    refinement_calls: int
    predictions: list[dict[str, float]]
    state: dict[str, Any]

    def as_record(self) -> dict[str, Any]:
        """What is kept of it: minima are numbers in the file of the pool."""
        facts = {each.name: getattr(self, each.name) for each in fields(self) if each.name != "run"}
        return {"formula": self.run.formula, "method": self.run.method, "seed": self.run.seed, **facts}

    @classmethod
    def from_record(cls, folder: Path, record: dict[str, Any], pool: "Pool") -> "Counted":
        """A run whose database is elsewhere."""
        run = Run(folder, record["formula"], record["method"], record["seed"])
        facts = {each.name: record[each.name] for each in fields(cls) if each.name != "run"}
        if max(map(int, record["first"]), default=-1) >= len(pool.kept):
            raise SystemExit(f"{pool.path} lacks minima of {run.name}: put back the file that runs.json came with.")
        for key in ("first", "recovered"):
            facts[key] = {pool.kept[int(index)]: calls for index, calls in record[key].items()}
        return cls(run, **facts)

    def marks(self, within: np.ndarray, recovered: bool = False) -> np.ndarray:
        """Sorted calls at which pooled minima within the window (a mask) were first met."""
        first = self.recovered if recovered else self.first
        return np.sort([calls for index, calls in first.items() if within[index]])


def _moved(calls: dict[int, int], where: Sequence[int]) -> dict[int, int]:
    """First calls by the new indices of the minima."""
    moved: dict[int, int] = {}
    for index, first in calls.items():
        moved[where[index]] = min(first, moved.get(where[index], first))
    return moved


def counted_in(run: Run, pool: Pool) -> Counted:
    """Take a run's minima up into the pool, and the run in terms of it."""
    account, state = account_of(run), run.state()
    calls_of = dict(zip(account["numbers"], account["calls"], strict=True))
    first_end: dict[int, int] = {}
    for number in account["numbers"]:
        if (own := account["which"].get(str(number))) is not None:
            first_end.setdefault(own, number)
    path = run.refined_file(".extxyz")
    refined = {int(atoms.info["number"]): atoms for atoms in (read(path, ":") if path.exists() else [])}
    first, recovered = {}, {}
    for own, number in first_end.items():
        index = pool.index(refined[number], run.name)
        first[index] = min(calls_of[number], first.get(index, calls_of[number]))
        if (calls := account["recovered"].get(str(own))) is not None:
            recovered[index] = min(calls, recovered.get(index, calls))
    # A search that has dried up would spend no more: it stays where it is.
    limit = max(state["max_calls"], account["calls"][-1] if account["calls"] else 0)
    whole = sum(index is not None for index in account["met"])
    predictions = check_predictions(account["met"], predict_new)
    return Counted(
        run, first, recovered, limit, account["distinct"], whole, account["refinement_calls"], predictions, state
    )


# ---------------------------------------------------------------- curves


def counts_at(marks: Sequence[float], calls: Sequence[float]) -> np.ndarray:
    """How many of the sorted marks have been passed after each of these numbers of calls."""
    return np.searchsorted(np.asarray(marks, dtype=float), np.asarray(calls, dtype=float), side="right")


def mean_curve(
    marks: Sequence[np.ndarray], limits: Sequence[float], calls: Sequence[float]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean number of minima over runs, its standard error, and the number of runs that have come so far.

    Parameters
    ----------
    marks : sequence of ndarray
        Of each run the calls at which it met something new, sorted.
    limits : sequence of float
        Calls that each run has spent.
    calls : sequence of float
        Where to take the mean; NaN where no run has come so far.
    """
    calls = np.asarray(calls, dtype=float)
    counts = np.array([counts_at(m, calls) for m in marks], dtype=float).reshape(len(marks), len(calls))
    counts[calls[None] > np.asarray(limits, dtype=float)[:, None]] = np.nan
    number = np.sum(np.isfinite(counts), axis=0)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = np.nansum(counts, axis=0) / np.where(number, number, np.nan)
        variance = np.nansum((counts - mean) ** 2, axis=0) / np.where(number > 1, number - 1, np.nan)
        return mean, np.sqrt(variance / number), number


def calls_to_reach(marks: Sequence[np.ndarray], limits: Sequence[float], count: float) -> float:
    """Calls at which the mean of these runs reaches `count`, by linear interpolation; infinite where it does not."""
    if count <= 0:
        return 0.0
    limit = min(limits)
    calls = np.unique(np.concatenate([[0.0], *marks, [limit]]))
    calls = calls[calls <= limit]
    mean = mean_curve(marks, limits, calls)[0]
    reached = np.flatnonzero(mean >= count)
    if not len(reached):
        return np.inf
    k = reached[0]
    if k == 0:
        return float(calls[0])
    return float(calls[k - 1] + (count - mean[k - 1]) / (mean[k] - mean[k - 1]) * (calls[k] - calls[k - 1]))


@dataclass(frozen=True)
class Ratio:
    """How many times the calls random search needs: the value, its standard error, and whether it is a bound only."""

    value: float
    error: float
    is_bound: bool

    def __str__(self) -> str:
        digits = 0 if self.value >= 10 else 1
        if self.is_bound:
            return f">{self.value:.{digits}f}"
        error = f" ± {self.error:.{digits}f}" if np.isfinite(self.error) else ""
        return f"{self.value:.{digits}f}{error}"


def one_after_another(group: Sequence[Counted], within: np.ndarray) -> tuple[np.ndarray, float]:
    """Marks and limit of one long run made of several: for random search, whose trials know nothing of one another.

    Parameters
    ----------
    group : sequence of Counted
        The runs in their order.
    within : ndarray of bool
        Which pooled minima count.
    """
    first, limit = {}, 0.0
    for each in group:
        for index, calls in each.first.items():
            first.setdefault(index, limit + calls)
        limit += each.limit
    return np.sort([calls for index, calls in first.items() if within[index]]), limit


class Accumulation:
    """What random search meets on the mean: its seeds one after the other, over all their orders.

    As far as the shortest seed that is the mean of the seeds.

    Parameters
    ----------
    group, within : sequence of Counted, ndarray of bool
        As for `one_after_another`.
    """

    def __init__(self, group: Sequence[Counted], within: np.ndarray) -> None:
        self._marks, self.limit = self._joined(group, within)
        others = [[*group[:k], *group[k + 1 :]] for k in range(len(group))]
        self._without_one = [self._joined(each, within) for each in others if each]

    @staticmethod
    def _joined(group: Sequence[Counted], within: np.ndarray) -> tuple[list[np.ndarray], float]:
        if factorial(len(group)) <= MOST_ORDERS:
            orders = list(permutations(group))
        else:
            rng = np.random.default_rng(0)
            orders = [[group[k] for k in rng.permutation(len(group))] for _ in range(MOST_ORDERS)]
        return [one_after_another(order, within)[0] for order in orders], sum(each.limit for each in group)

    def count(self, calls: float) -> float:
        """Minima after these calls."""
        return float(np.mean([counts_at(marks, [calls])[0] for marks in self._marks]))

    def calls_to_reach(self, count: float) -> float:
        """Calls for so many minima; infinite where it has not got there."""
        return calls_to_reach(self._marks, [self.limit] * len(self._marks), count)

    def error(self, calls: float) -> float:
        """Standard error of `count`: the jackknife over the seeds, beyond all but one of them at their end."""
        if len(self._without_one) < 2:
            return np.nan
        counts = [
            np.mean([counts_at(marks, [min(calls, limit)])[0] for marks in many]) for many, limit in self._without_one
        ]
        return float(np.sqrt(len(counts) - 1) * np.std(counts))

    def slope(self, calls: float) -> float:
        """Minima per call, over the fifth of the calls before these."""
        return (self.count(calls) - self.count(0.8 * calls)) / (0.2 * calls)


def ratio_at(
    ours: Sequence[np.ndarray], our_limits: Sequence[float], theirs: Accumulation, calls: float
) -> Ratio | None:
    """Calls that random search needs for what we have after `calls`, over `calls`.

    Of our runs those count that have got so far. None where there are none, or where they have met fewer than `ENOUGH`.
    The standard error is that of both counts, over the seeds; with one seed of ours there is none.

    Parameters
    ----------
    ours, our_limits : sequence of ndarray, sequence of float
        As for `mean_curve`.
    theirs : Accumulation
        Of random search.
    calls : float
        Our calls.
    """
    mean, error, _ = (float(each[0]) for each in mean_curve(ours, our_limits, [calls]))
    if not mean >= ENOUGH:
        return None
    needed = theirs.calls_to_reach(mean)
    if not np.isfinite(needed):
        return Ratio(theirs.limit / calls, np.nan, True)
    slope = theirs.slope(needed)
    error = np.hypot(error, theirs.error(needed)) / slope / calls if slope > 0 else np.nan
    return Ratio(needed / calls, float(error), False)


# ---------------------------------------------------------------- calibration

Prediction = Callable[..., tuple[float, float, float]]


def check_predictions(
    met: Sequence[int | None], predict: Prediction, points: Sequence[int] = CALIBRATION_POINTS, horizon: int = HORIZON
) -> list[dict[str, float]]:
    """Predicted and actual numbers of new minima after some numbers of trials of one run.

    Parameters
    ----------
    met : sequence of int or None
        As of `loosely_met`.
    predict : callable
        As `ase_gss.completeness.predict_new`: of hits, trials so far, trials to come and where each minimum was first
        met the mean and the lower and upper end of the interval.
    points, horizon : sequence of int, int
        After how many trials, for how many.
    """
    checks = []
    for point in points:
        if len(met) < point + horizon:
            continue
        before = [index for index in met[:point] if index is not None]
        if not before:
            continue
        hits = np.bincount(before)
        first_met = {index: met.index(index) for index in before}
        new = len(set(met[: point + horizon]) - {None} - set(before))
        mean, low, high = predict(
            [int(hits[index]) for index in first_met], point, horizon, first_met=list(first_met.values())
        )
        checks.append({"trials": point, "mean": mean, "low": low, "high": high, "new": new})
    return checks


# ---------------------------------------------------------------- reporting


def evaluate(
    folder: Path,
    formula: str,
    runs: Sequence[Run],
    records: dict[str, dict[str, Any]],
    budgets: Sequence[int],
) -> dict[str, Any]:
    """Everything that is reported on one system; the minima of the runs are taken up into its reference set.

    Parameters
    ----------
    folder, formula : Path, str
        Where the reference set is, and of what.
    runs : sequence of Run
        With their files.
    records : dict
        By their names all runs, also those without files; is brought up to date.
    budgets : sequence of int
        As on the command line.
    """
    pool = Pool(folder / f"reference_{formula}.extxyz")
    names = {run.name for run in runs}
    counted = [counted_in(run, pool) for run in runs]
    counted += [
        Counted.from_record(folder, record, pool)
        for name, record in records.items()
        if record["formula"] == formula and name not in names
    ]
    where = pool.compare_anew()
    for each in counted:
        each.first, each.recovered = (_moved(calls, where) for calls in (each.first, each.recovered))
    counted.sort(key=lambda each: ([*METHODS, *PEERS].index(each.run.method), each.run.seed))
    records.update({each.run.name: each.as_record() for each in counted})
    pool.save()
    by_method: dict[str, list[Counted]] = {}
    for each in counted:
        by_method.setdefault(each.run.method, []).append(each)
    facts: dict[str, Any] = {"pooled": len(pool.frames), "windows": {}, "methods": {}, "runs": {}}
    for window in WINDOWS:
        facts["windows"][str(window)] = _curves(by_method, pool.within(window), budgets)
    for method, group in by_method.items():
        facts["methods"][method] = _totals(group)
    for each in counted:
        facts["runs"][each.run.name] = {
            "first_met": {str(k): calls for k, calls in sorted(each.first.items())},
            "distinct_alone": each.distinct,
            "limit": each.limit,
            **each.state,
        }
    if np.any(pool.modes >= 0):
        facts["modes"] = _modes(by_method, pool.modes, pool.within(WINDOWS[0]))
    facts["energies"] = (pool.energies - pool.energies.min(initial=np.inf)).tolist()
    return facts


def _curves(by_method: dict[str, list[Counted]], within: np.ndarray, budgets: Sequence[int]) -> dict[str, Any]:
    result: dict[str, Any] = {"pooled": int(np.sum(within)), "methods": {}, "random_search": []}
    marks = {method: [each.marks(within) for each in group] for method, group in by_method.items()}
    limits = {method: [each.limit for each in group] for method, group in by_method.items()}
    longest = max(max(limit) for limit in limits.values())
    random_search = Accumulation(by_method["rss"], within) if "rss" in by_method else None
    for calls in LONG_BUDGETS if random_search else ():
        if calls <= random_search.limit:
            row = {"calls": calls, "mean": random_search.count(calls), "standard_error": random_search.error(calls)}
            result["random_search"].append(row)

    def ratio(method: str, budget: float) -> Ratio | None:
        if method == "rss" or random_search is None:
            return None
        return ratio_at(marks[method], limits[method], random_search, budget)

    for method, group in by_method.items():
        reached = [budget for budget in budgets if budget <= max(limits[method])]
        grid = np.unique(np.geomspace(100, max(longest, 101), 120).round())
        grid = grid[grid <= max(limits[method])]
        mean, error, seeds = mean_curve(marks[method], limits[method], reached)
        loose = mean_curve([each.marks(within, True) for each in group], limits[method], reached)[0]
        smooth_mean, smooth_error, _ = mean_curve(marks[method], limits[method], grid)
        ratios = [ratio(method, budget) for budget in reached]
        result["methods"][method] = {
            "calls": reached,
            "mean": mean.tolist(),
            "standard_error": error.tolist(),
            "seeds": seeds.tolist(),
            "recovered": loose.tolist(),
            "ratio": [None if ratio is None else asdict(ratio) for ratio in ratios],
            "curve": {"calls": grid.tolist(), "mean": smooth_mean.tolist(), "standard_error": smooth_error.tolist()},
        }
    return result


def _totals(group: Sequence[Counted]) -> dict[str, Any]:
    """Cost and calibration of one method, over its seeds."""
    calls, trials = (sum(each.state[key] for each in group) for key in ("calls", "trials"))
    checks = [{"seed": each.run.seed, **check} for each in group for check in each.predictions]
    held = [check["low"] <= check["new"] <= check["high"] for check in checks]
    return {
        "seeds": len(group),
        "calls": calls,
        "trials": trials,
        "calls_per_trial": calls / max(trials, 1),
        "whole_percent": 100 * sum(each.whole for each in group) / max(trials, 1),
        "seconds_per_1000_calls": 1000 * sum(each.state["wall_time"] for each in group) / max(calls, 1),
        "refinement_calls": sum(each.refinement_calls for each in group),
        "predictions": checks,
        "predictions_held_percent": 100 * float(np.mean(held)) if held else None,
    }


def _modes(by_method: dict[str, list[Counted]], modes: np.ndarray, within: np.ndarray) -> dict[str, Any]:
    """Of the pooled minima within the window that were checked, those without imaginary mode, and who has met them."""
    checked = within & (modes >= 0)
    metastable = checked & (modes == 0)
    methods = {
        method: {
            "checked": float(np.mean([len(each.marks(checked)) for each in group])),
            "metastable": float(np.mean([len(each.marks(metastable)) for each in group])),
        }
        for method, group in by_method.items()
    }
    return {"checked": int(np.sum(checked)), "metastable": int(np.sum(metastable)), "methods": methods}


def runs_in(folder: Path, calculator: str) -> dict[str, list[Run]]:
    """The runs in a folder that have come to a budget, by formula."""
    order, found = [*METHODS, *PEERS], []
    for path in folder.glob("*_*_*.json"):
        formula, method, seed = path.stem.rsplit("_", 2)
        if method in order and (folder / f"{path.stem}{'.extxyz' if method in PEERS else '.db'}").exists():
            found.append(Run(folder, formula, method, int(seed), calculator))
    return {formula: [run for run in found if run.formula == formula] for formula in {run.formula for run in found}}


def tables(facts: dict[str, Any], window: float) -> str:
    """Markdown of all systems: minima within a window against calls, ratios of calls, and totals."""
    lines = []
    for formula, system in facts.items():
        curves = system["windows"][str(window)]
        budgets = sorted({calls for method in curves["methods"].values() for calls in method["calls"]})
        head = " | ".join(map(_spaced, budgets))
        kind = "held out" if formula in HELD_OUT else "elements beyond QM9" if formula in BEYOND else "own choice"
        lines += [
            "",
            f"### {formula} ({kind}): {curves['pooled']} known within {window:g} eV",
            "",
            "Distinct minima after so many force calls; (×) the calls of random search for as many; "
            f"[n] of n seeds only. {system['pooled']} known in all.",
            "",
            f"| method | seeds | {head} | recovered | whole / % | calls/trial | s/1000 calls | interval held / % |",
            "| --- " * (len(budgets) + 7) + "|",
        ]
        for method, curve in curves["methods"].items():
            at = dict(zip(curve["calls"], range(len(curve["calls"])), strict=True))
            cells = [_cell(curve, at[budget]) if budget in at else "" for budget in budgets]
            total = system["methods"][method]
            recovered = f"{curve['recovered'][-1]:.1f}" if curve["recovered"] else ""
            held = total["predictions_held_percent"]
            cells += [
                recovered,
                f"{total['whole_percent']:.0f}",
                f"{total['calls_per_trial']:.1f}",
                f"{total['seconds_per_1000_calls']:.1f}",
                "" if held is None else f"{held:.0f} of {len(total['predictions'])}",
            ]
            lines.append(f"| {method} | {total['seeds']} | {' | '.join(cells)} |")
        if curves["random_search"]:
            long = [f"{_with_error(row)} for {_spaced(row['calls'])}" for row in curves["random_search"]]
            lines += ["", f"Random search, its seeds one after the other: {', '.join(long)}."]
        if "modes" in system and window == WINDOWS[0]:
            modes = system["modes"]
            met = [
                f"{method} {each['metastable']:.1f} of {each['checked']:.1f}"
                for method, each in modes["methods"].items()
            ]
            lines += [
                "",
                f"Without imaginary mode: {modes['metastable']} of the {modes['checked']} that were checked. Of those "
                f"that a run has met, on the mean over seeds: {', '.join(met)}.",
            ]
    return "\n".join(lines).strip()


def short_table(facts: dict[str, Any], window: float) -> str:
    """Markdown of this search beside its limits: one line for each system, as the README has it."""
    columns = [(method, calls) for method, budgets in SHORT_TABLE.items() for calls in budgets]
    names = {"gss": "`ase-gss search`", "diffusion": "`diffusion`", "rss": "random search"}
    head = [f"{names[method]}, {_spaced(calls)}" for method, calls in columns]
    head.append(f"random search, {_spaced(LONG_BUDGETS[-1])} (seeds joined)")
    lines = [f"| formula | known | {' | '.join(head)} | seeds |", "| --- " * (3 + len(head)) + "|"]
    for formula, system in facts.items():
        curves, totals = system["windows"][str(window)], system["methods"]
        cells = []
        for method, calls in columns:
            curve = curves["methods"].get(method, {"calls": []})
            cells.append(_cell(curve, curve["calls"].index(calls)) if calls in curve["calls"] else "")
        cells.append(
            next((_with_error(row) for row in curves["random_search"] if row["calls"] == LONG_BUDGETS[-1]), "")
        )
        seeds = ", ".join(str(totals[method]["seeds"]) for method in ("gss", "rss") if method in totals)
        lines.append(f"| {formula} | {curves['pooled']} | {' | '.join(cells)} | {seeds} |")
    return "\n".join(lines)


def _spaced(number: int) -> str:
    """Digits in groups of three."""
    return f"{number:_}".replace("_", " ")


def write_into(path: Path, table: str) -> None:
    """Put the table between the marks of a text, in place of what is there."""
    text = path.read_text()
    try:
        before, rest = text.split(_BEGIN)
        after = rest.split(_END)[1]
    except (ValueError, IndexError) as error:
        raise SystemExit(f"{path} needs the line {_BEGIN} and after it the line {_END}, once each.") from error
    _replace(path, lambda part: part.write_text(f"{before}{_BEGIN}\n\n{table}\n\n{_END}{after}"))


def _with_error(row: dict[str, float]) -> str:
    error = f" ± {row['standard_error']:.0f}" if np.isfinite(row["standard_error"]) else ""
    return f"{row['mean']:.0f}{error}"


def _cell(curve: dict[str, Any], k: int) -> str:
    error = curve["standard_error"][k]
    text = f"{curve['mean'][k]:.1f}" + (f" ± {error:.1f}" if np.isfinite(error) else "")
    ratio, seeds = curve["ratio"][k], curve["seeds"]
    text = text if ratio is None else f"{text} ({Ratio(**ratio)}×)"
    return text if seeds[k] == max(seeds) else f"{text} [{seeds[k]}]"


def _without_nan(value: Any) -> Any:
    """The same with None for NaN, which JSON does not know."""
    if isinstance(value, dict):
        return {key: _without_nan(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_without_nan(each) for each in value]
    return None if isinstance(value, float) and not np.isfinite(value) else value


def write_csv(facts: dict[str, Any], path: Path) -> None:
    """The curves at the budgets, one row for each system, window, method and budget."""
    columns = "formula window method calls seeds mean standard_error recovered pooled ratio ratio_error ratio_is_bound"
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(columns.split())
        for formula, system in facts.items():
            for window, curves in system["windows"].items():
                for method, curve in curves["methods"].items():
                    keys = "calls seeds mean standard_error recovered ratio".split()
                    for *numbers, ratio in zip(*(curve[key] for key in keys), strict=True):
                        ratio = ["", "", ""] if ratio is None else list(ratio.values())
                        writer.writerow([formula, window, method, *numbers, curves["pooled"], *ratio])


# ---------------------------------------------------------------- the command line


def run_all(options: argparse.Namespace) -> None:
    """The command `run`."""
    options.folder.mkdir(parents=True, exist_ok=True)
    runs = [
        Run(options.folder.absolute(), formula, method, seed, options.calculator)
        for seed in range(options.first_seed, options.first_seed + options.seeds)
        for formula in options.systems
        for method in options.methods
    ]
    if options.processes == 1:
        done = [_tell(run, lambda run=run: carry_out(run, options.max_calls)) for run in runs]
    else:
        with ProcessPoolExecutor(options.processes, mp_context=get_context("spawn")) as pool:
            futures = {pool.submit(carry_out, run, options.max_calls): run for run in runs}
            try:
                done = [_tell(futures[future], future.result) for future in as_completed(futures)]
            except KeyboardInterrupt:
                pool.shutdown(cancel_futures=True)
                raise
    if not all(done):
        raise SystemExit(f"{done.count(False)} of {len(runs)} runs have failed; the same command goes on with them.")


def _tell(run: Run, result: Callable[[], str]) -> bool:
    """Print what came of a run, and say whether it succeeded: what goes wrong in one does not end the others."""
    try:
        print(result(), flush=True)
    except Exception as error:
        print(f"{run.name}: {type(error).__name__}: {error}", flush=True)
        return False
    return True


def report(options: argparse.Namespace) -> None:
    """The command `report`."""
    folder, kept = options.folder.absolute(), options.folder / "runs.json"
    records = json.loads(kept.read_text()) if kept.exists() else {}
    records = {name: record for name, record in records.items() if record["method"] in (*METHODS, *PEERS)}
    groups = runs_in(folder, options.calculator)
    there = {*groups, *(each["formula"] for each in records.values())}
    order = dict.fromkeys([*HELD_OUT, *BEYOND, *sorted(there)])
    chosen = [each for each in order if each in there and (not options.systems or each in options.systems)]
    if not chosen:
        raise SystemExit(f"There are no runs in {options.folder}.")
    facts = {
        formula: evaluate(folder, formula, groups.get(formula, []), records, options.budgets) for formula in chosen
    }
    _replace(kept, lambda part: part.write_text(json.dumps(_without_nan(records))))
    (options.folder / "report.json").write_text(json.dumps(_without_nan(facts), indent=1))
    write_csv(facts, options.folder / "curves.csv")
    text = "\n\n".join(tables(facts, window) for window in options.windows)
    (options.folder / "report.md").write_text(text + "\n")
    print(text)
    if options.readme:
        write_into(options.readme, short_table(facts, options.windows[0]))
    if options.plot:
        from plots import draw_curves

        draw_curves(facts, options.windows[0], options.plot)


def check_modes(options: argparse.Namespace) -> None:
    """The command `modes`.

    Those to check are drawn by their positions, so that more minima hardly change the draw. What is known stays in
    `info`, as `imaginary`; where the calculator has failed it is tried again.
    """
    for path in sorted(options.folder.glob("reference_*.extxyz")):
        formula = path.stem.removeprefix("reference_")
        if options.systems and formula not in options.systems:
            continue
        run, frames = Run(options.folder, formula, "gss", 0, options.calculator), read(path, ":")
        lowest = min(atoms.get_potential_energy() for atoms in frames)
        within = [atoms for atoms in frames if atoms.get_potential_energy() - lowest < WINDOWS[0]]
        chosen = sorted(within, key=lambda atoms: _hash(f"{np.round(atoms.positions, 3) + 0.0}"))[: options.number]
        unknown = [atoms for atoms in chosen if "imaginary" not in atoms.info]
        for done, atoms in enumerate(unknown, start=1):
            there = Atoms(atoms.numbers, positions=atoms.positions)
            there.calc = run.new_calculator()
            try:
                atoms.info["imaginary"] = vibrations(there).imaginary()
            except CalculatorFailure as failure:
                print(f"{formula}: {failure}", flush=True)
            if done % 20 == 0 or atoms is unknown[-1]:
                _replace(path, lambda part, frames=frames: write(part, frames, format="extxyz"))
        known = [atoms.info["imaginary"] for atoms in chosen if "imaginary" in atoms.info]
        print(f"{formula}: {known.count(0)} of {len(known)} without imaginary mode", flush=True)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    runner = commands.add_parser("run")
    runner.set_defaults(function=run_all)
    runner.add_argument("--systems", nargs="+", default=[*HELD_OUT, *BEYOND], metavar="FORMULA")
    runner.add_argument("--methods", nargs="+", choices=[*METHODS, *PEERS], default=["gss", "rss", "diffusion", "mn"])
    runner.add_argument("--seeds", type=int, default=5, help="number of seeds")
    runner.add_argument("--first-seed", type=int, default=0)
    runner.add_argument("--max-calls", type=int, default=40_000)
    runner.add_argument("--processes", type=int, default=1)
    reporter = commands.add_parser("report")
    reporter.set_defaults(function=report)
    reporter.add_argument("--systems", nargs="+", metavar="FORMULA", help="only these")
    reporter.add_argument("--budgets", nargs="+", type=int, default=list(BUDGETS), help="force calls to report at")
    reporter.add_argument(
        "--windows", nargs="+", type=float, choices=WINDOWS, default=[WINDOWS[0]], help="of the tables"
    )
    reporter.add_argument("--readme", type=Path, help="write the short table into this text, between its marks")
    reporter.add_argument("--plot", type=Path, help="draw the curves: .png, .svg, .pdf")
    checker = commands.add_parser("modes")
    checker.set_defaults(function=check_modes)
    checker.add_argument("--systems", nargs="+", metavar="FORMULA", help="only these")
    checker.add_argument("--number", type=int, default=100, help="minima of each system")
    for command in (runner, reporter, checker):
        command.add_argument("--folder", type=Path, required=True)
        command.add_argument("--calculator", default="gfn2")
    options = parser.parse_args()
    options.function(options)


if __name__ == "__main__":
    main()
