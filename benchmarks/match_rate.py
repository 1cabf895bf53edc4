#!/usr/bin/env python3
"""Match rate: how many known crystals, of chemical systems never trained on, one and ten trials recover.

    python benchmarks/match_rate.py run DATA.npz DIR --count 100 --trials 10 --methods diffusion mn hot
    python benchmarks/match_rate.py report DIR

The crystals are those of DATA.npz in the MP-20 test split (`mp20 == 2`) that experiment knows (`exp == 1`), with at
most 12 atoms, and whose chemical system is not among the structures of `mp20 == 0`: 1 569 at the time of writing. A
fixed seed puts them in one order, of which `--count` takes the first, so that fewer are a part of more. It stops where
the score was trained on one of their systems.

`run` searches the composition of each (all atoms of its cell) with each method, one database each in DIR. What is
finished is not repeated, and what was interrupted goes on; `--part 0/2` and `--part 1/2` share the work between two
processes. A trial recovers the crystal where its end is a minimum and pymatgen's StructureMatcher, with its default
tolerances, says that it is the structure in DATA.npz. Besides:

* `samples` are the structures that the method `diffusion` relaxes, before it does so: no force call at all;
* an end is `lower` where it is more than 5 meV/atom below the crystal relaxed in the same way, which is then not the
  calculator's ground state.

`report` prints the rates, each with its binomial standard error, and writes DIR/report.json. Crystals that the
calculator fails on, or whose elements it does not know, count as not recovered and are listed.
"""

import argparse
import hashlib
import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
import numpy as np
import torch
from ase import Atoms
from pymatgen.core import Structure
from pymatgen.io.ase import AseAtomsAdaptor

try:
    from pymatgen.core.structure_matcher import StructureMatcher
except ImportError:
    from pymatgen.analysis.structure_matcher import StructureMatcher

from ase_gss import GenerativeRSS
from ase_gss.archive import Record
from ase_gss.calculators import check_elements
from ase_gss.composition import formula_of
from ase_gss.crystal_minima import space_group
from ase_gss.errors import InputError
from ase_gss.score import Score, load_score
from ase_gss.score.crystal_data import chemical_system, parse_system
from ase_gss.search import SearchError
from ase_gss.stages import sample
from ase_gss.trial import Ended

METHODS = ("diffusion", "mn", "hot", "mi", "rss")
#: Seed of the order in which the crystals are drawn; trials of the crystal at place p have the seed p.
DRAW_SEED = 0
MOST_ATOMS = 12
#: eV/atom.
LOWER = 0.005
HELD_OUT = Path(__file__).with_name("held_out_systems.txt")


@dataclass
class Drawn:
    """A crystal to be recovered.

    Attributes
    ----------
    place : int
        In the order of the draw.
    name : str
        Its id in the data.
    atoms : Atoms
        As it is in the data.
    """

    place: int
    name: str
    atoms: Atoms

    @property
    def formula(self) -> str:
        """All atoms of its cell."""
        return formula_of(self.atoms.numbers, crystal=True)


def draw(path: Path, count: int) -> list[Drawn]:
    """The first `count` crystals of the order that `DRAW_SEED` gives."""
    with np.load(path, allow_pickle=False) as file:
        data = {key: file[key] for key in ("n", "Z", "frac", "cell", "id", "exp", "mp20")}
    first = np.concatenate([[0], np.cumsum(data["n"], dtype=int)])
    systems = [chemical_system(np.unique(data["Z"][a:b])) for a, b in pairwise(first)]
    seen = {systems[s] for s in np.flatnonzero(data["mp20"] == 0)}
    wanted = (data["mp20"] == 2) & (data["exp"] == 1) & (data["n"] <= MOST_ATOMS)
    candidates = sorted((str(data["id"][s]), s) for s in np.flatnonzero(wanted) if systems[s] not in seen)
    order = np.random.default_rng(DRAW_SEED).permutation(len(candidates))[:count]
    print(f"{len(candidates)} crystals to draw from, {len(order)} drawn", flush=True)
    drawn = []
    for place, (name, s) in enumerate(candidates[i] for i in order):
        part = slice(first[s], first[s + 1])
        atoms = Atoms(data["Z"][part], cell=data["cell"][s], scaled_positions=data["frac"][part], pbc=True)
        drawn.append(Drawn(place, name, atoms))
    return drawn


def check_held_out(drawn: list[Drawn], score: Score) -> None:
    """Stop where the score was trained on the chemical system of a drawn crystal."""
    names = score.card["held_out"] if "held_out" in score.card else HELD_OUT.read_text().split()
    held_out = {parse_system(name) for name in names}
    known = [crystal.formula for crystal in drawn if chemical_system(crystal.atoms.numbers) not in held_out]
    if known:
        some = ", ".join(known[:5])
        raise SystemExit(
            f"The chemical systems of {len(known)} drawn crystals ({some}) were not held out of the training of "
            f"{score.name!r}: give another score, or train one with --hold-out {HELD_OUT}."
        )


def check_folder(folder: Path, settings: dict[str, str]) -> None:
    """Keep results of one calculator and one score in a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "settings.json"
    if path.exists() and (earlier := json.loads(path.read_text())) != settings:
        raise SystemExit(f"{folder} has results of {earlier}, not of {settings}: give another folder.")
    write_whole(path, settings)


def write_whole(path: Path, content: Any) -> None:
    """Write JSON, whole or not at all."""
    unfinished = path.with_name(f"{path.name}.{os.getpid()}.part")
    unfinished.write_text(json.dumps(content, indent=1))
    unfinished.replace(path)


def digest(score: Score) -> str:
    """What tells the weights of one score from another's."""
    parts = [tensor.numpy().tobytes() for tensor in score.denoiser.state_dict().values()]
    return hashlib.sha256(b"".join(parts)).hexdigest()[:16]


def structure_of(atoms: Atoms) -> Structure:
    """The bare structure for pymatgen."""
    return AseAtomsAdaptor.get_structure(Atoms(atoms.numbers, atoms.positions, cell=atoms.cell, pbc=True))


class Target:
    """What the trials of a crystal are held against: the structure as given, and relaxed with the calculator.

    Parameters
    ----------
    atoms : Atoms
        As given.
    search : GenerativeRSS
        Relaxes it as it relaxes its trials.
    """

    def __init__(self, atoms: Atoms, search: GenerativeRSS) -> None:
        self.matcher = StructureMatcher()
        self.given, self.relaxed, self.energy = structure_of(atoms), None, None
        relaxed, plan = atoms.copy(), search.plan
        relaxed.calc = calculator = plan.new_calculator()
        outcome = search.system.relax(relaxed, optimizer=plan.optimizer, fmax=plan.fmax, max_steps=plan.max_steps)
        self.reason, self.calls = outcome.reason, calculator.calls
        if outcome.converged:
            self.relaxed, self.energy = structure_of(relaxed), outcome.energy / len(atoms)

    def facts(self) -> dict[str, Any]:
        """What is to be known of it; `stays` says whether relaxed it is still the one given."""
        stays = self.relaxed is not None and self._same(self.relaxed, self.given)
        return {"energy": self.energy, "stays": stays, "reason": self.reason, "calls": self.calls}

    def matches(self, atoms: Atoms) -> dict[str, bool]:
        """Whether a structure is the one given, and whether it is the relaxed one."""
        structure = structure_of(atoms)
        relaxed = self.relaxed is not None and self._same(structure, self.relaxed)
        return {"given": self._same(structure, self.given), "relaxed": relaxed}

    def end(self, record: Record, atoms: Atoms) -> dict[str, Any]:
        """What came of a trial that ended with these atoms."""
        minimum = record.ended is Ended.MINIMUM
        energy = record.energy / len(atoms) if minimum else None
        found = self.matches(atoms) if minimum else {"given": False, "relaxed": False}
        lower = minimum and self.energy is not None and energy < self.energy - LOWER
        return {
            **found,
            "lower": lower,
            "ended": str(record.ended),
            "energy": energy,
            "force_calls": record.force_calls,
        }

    def _same(self, a: Structure, b: Structure) -> bool:
        try:
            return bool(self.matcher.fit(a, b))
        except Exception:  # samples may have cells that cannot be reduced: they are no known crystal
            return False


class Recovery:
    """All methods on one crystal, and the file in which the outcome is kept.

    Parameters
    ----------
    crystal : Drawn
        The crystal.
    score : Score
        For all methods but "rss".
    options : argparse.Namespace
        Those of the command line.
    """

    def __init__(self, crystal: Drawn, score: Score, options: argparse.Namespace) -> None:
        self.crystal, self.score, self.options = crystal, score, options
        self.path = options.folder / f"{crystal.name}.json"
        self.result: dict[str, Any] = {
            "name": crystal.name,
            "formula": crystal.formula,
            "place": crystal.place,
            "space_group": space_group(crystal.atoms)[0],
            "failure": "",
            "methods": {},
        }
        if self.path.exists():
            self.result = json.loads(self.path.read_text())
        self._target: Target | None = None

    @property
    def missing(self) -> list[str]:
        """Methods whose trials are not all done."""
        if self.result["failure"]:
            return []
        done = self.result["methods"]
        wanted = ["samples", *self.options.methods]
        return [m for m in wanted if m not in done or len(done[m]["trials"]) < self.options.trials]

    def run(self) -> None:
        """Do what is missing; the file is written after each method."""
        try:
            check_elements(self.options.calculator, self.crystal.atoms.numbers)
        except InputError as error:
            self.result["failure"] = str(error)
            write_whole(self.path, self.result)
        for method in self.missing:
            start = time.monotonic()
            search = self._search(method)
            if self._target is None:
                self._target = Target(self.crystal.atoms, search)
                self.result["reference"] = self._target.facts()
            outcome = self._sample(search) if method == "samples" else self._relax(search)
            self.result["methods"][method] = {**outcome, "seconds": round(time.monotonic() - start, 1)}
            write_whole(self.path, self.result)

    def _search(self, method: str) -> GenerativeRSS:
        return GenerativeRSS(
            self.crystal.formula,
            self.options.calculator,
            pbc=True,
            coupling="diffusion" if method == "samples" else method,
            score=self.score,
            database=None if method == "samples" else self.options.folder / f"{self.crystal.name}_{method}.db",
            seed=self.crystal.place,
            recognise=False,
        )

    def _sample(self, search: GenerativeRSS) -> dict[str, Any]:
        """The structures of the search's trials, not relaxed."""
        trials = [search.plan.begin(number) for number in range(self.options.trials)]
        sample(trials, search.plan)
        ends = [self._target.matches(trial.sampled()) | {"force_calls": 0} for trial in trials]
        return {"trials": ends, "failure": ""}

    def _relax(self, search: GenerativeRSS) -> dict[str, Any]:
        failure = ""
        try:
            search.run(trials=self.options.trials)
        except SearchError as error:
            failure = str(error)
        records = sorted(search.archive.records, key=lambda record: record.number)
        trials = [
            self._target.end(record, search.archive.atoms_of(record.number))
            for record in records
            if record.number < self.options.trials
        ]
        if all(Ended(trial["ended"]).is_failure for trial in trials):
            failure = failure or f"every trial: {search.archive.records[-1].reason}"
        nothing = {"given": False, "relaxed": False, "lower": False, "ended": "", "energy": None, "force_calls": 0}
        return {"trials": trials + [nothing] * (self.options.trials - len(trials)), "failure": failure}

    def line(self) -> str:
        """The progress in words."""
        head = f"{self.crystal.name} {self.crystal.formula}"
        if self.result["failure"]:
            return f"{head}: not recovered. {self.result['failure']}"
        words = []
        for method in ["samples", *self.options.methods]:
            done = self.result["methods"][method]
            trials = done["trials"][: self.options.trials]
            calls = np.mean([trial["force_calls"] for trial in trials])
            found, lower = (sum(trial.get(key, False) for trial in trials) for key in ("given", "lower"))
            words.append(f"{method} {found}/{len(trials)}, {lower} lower, {calls:.0f} calls, {done['seconds']:.0f} s")
        return f"{head}: {'; '.join(words)}"


def run(options: argparse.Namespace) -> None:
    """Search the compositions of the drawn crystals."""
    torch.set_num_threads(1)
    score = load_score(options.score)
    if not score.periodic:
        raise SystemExit(f"The score {score.name!r} is for molecules: give --score a model file for crystals.")
    drawn = draw(options.data, options.count)
    check_held_out(drawn, score)
    check_folder(options.folder, {"calculator": options.calculator, "score": f"{score.name} ({digest(score)})"})
    part, parts = options.part
    mine = drawn[part::parts]
    for number, crystal in enumerate(mine, start=1):
        recovery = Recovery(crystal, score, options)
        recovery.run()
        print(f"[{number}/{len(mine)}] {recovery.line()}", flush=True)


def rate(values: list[bool]) -> tuple[float, float]:
    """Fraction and its binomial standard error."""
    p = float(np.mean(values))
    return p, float(np.sqrt(p * (1 - p) / len(values)))


def _found(trial: dict[str, Any]) -> bool:
    return trial["given"]


def _relaxed(trial: dict[str, Any]) -> bool:
    return trial["relaxed"]


def _lower(trial: dict[str, Any]) -> bool:
    return trial.get("lower", False)


def _found_or_lower(trial: dict[str, Any]) -> bool:
    return trial["given"] or _lower(trial)


QUESTIONS: dict[str, Callable[[dict[str, Any]], bool]] = {
    "match": _found,
    "match_relaxed": _relaxed,
    "lower": _lower,
    "match_or_lower": _found_or_lower,
}


def facts_of(results: list[dict[str, Any]], method: str, numbers: list[int]) -> dict[str, Any]:
    """The figures of a method, over the crystals with as many trials of it as the largest of `numbers`."""
    done = [
        [] if result["failure"] else result["methods"][method]["trials"]
        for result in results
        if result["failure"] or len(result["methods"].get(method, {"trials": []})["trials"]) >= max(numbers)
    ]
    trials = [trial for each in done for trial in each[: max(numbers)]]
    if not trials:
        return {"crystals": len(done)}
    facts: dict[str, Any] = {
        "crystals": len(done),
        "trials": len(trials),
        "force_calls_per_trial": float(np.mean([trial["force_calls"] for trial in trials])),
        "matching_trials": float(np.mean([trial["given"] for trial in trials])),
    }
    for question, answer in QUESTIONS.items():
        for number in numbers:
            value, error = rate([any(map(answer, each[:number])) for each in done])
            facts[f"{question}@{number}"] = {"rate": value, "error": error}
    return facts


def failures_of(results: list[dict[str, Any]]) -> list[str]:
    """What failed, in words."""
    lines = [f"{result['name']} {result['formula']}: {result['failure']}" for result in results if result["failure"]]
    for result in results:
        head = f"{result['name']} {result['formula']}"
        methods = result["methods"].items()
        lines += [f"{head}, {name}: {method['failure']}" for name, method in methods if method["failure"]]
        if "reference" in result and result["reference"]["energy"] is None:
            lines.append(f"{head}: the crystal itself was not relaxed, {result['reference']['reason']}")
    return lines


def report(options: argparse.Namespace) -> None:
    """The table of all results in the folder."""
    if not (options.folder / "settings.json").exists():
        raise SystemExit(f"{options.folder} has no results: give the folder that `run` has filled.")
    settings = json.loads((options.folder / "settings.json").read_text())
    paths = [path for path in options.folder.glob("*.json") if path.stem not in ("settings", "report")]
    results = sorted((json.loads(path.read_text()) for path in paths), key=lambda result: result["place"])
    methods = [m for m in ("samples", *METHODS) if any(m in result["methods"] for result in results)]
    if not methods:
        raise SystemExit(f"No crystal in {options.folder} is finished.")
    facts = {method: facts_of(results, method, options.trials) for method in methods}
    stays = rate([result["reference"]["stays"] if "reference" in result else False for result in results])
    failures = failures_of(results)
    print_table(facts, options.trials)
    print(f"\n{len(results)} crystals, {settings['calculator']}, score {settings['score']}")
    print(f"The crystal itself, relaxed with the calculator, is still the one given: {_percent(*stays)}")
    print(f"Failed: {len(failures)}", *failures, sep="\n  ")
    everything = {"settings": settings, "methods": facts, "reference_stays": stays, "failures": failures}
    write_whole(options.folder / "report.json", everything)


def print_table(facts: dict[str, dict[str, Any]], numbers: list[int]) -> None:
    """Rates in percent, for each question within so many trials."""
    words = {"match": "match", "match_relaxed": "relaxed", "lower": "lower", "match_or_lower": "either"}
    columns = [(question, number) for question in QUESTIONS for number in numbers]
    titles = "".join(f"{f'{words[question]}@{number}':>14}" for question, number in columns)
    print(f"{'method':<10} {'crystals':>8} {'calls/trial':>11} {'trials':>8}{titles}")
    for method, fact in facts.items():
        if "trials" not in fact:
            print(f"{method:<10} {fact['crystals']:8d}  no crystal with {max(numbers)} trials yet: see --trials")
            continue
        cells = [fact[f"{question}@{number}"] for question, number in columns]
        # Of a sample without a force call no energy is known.
        blank = [method == "samples" and "lower" in question for question, _ in columns]
        rates = "".join(
            f"{'-' if b else _percent(c['rate'], c['error']):>14}" for c, b in zip(cells, blank, strict=True)
        )
        trials = f"{100 * fact['matching_trials']:.1f} %"
        print(f"{method:<10} {fact['crystals']:8d} {fact['force_calls_per_trial']:11.1f} {trials:>8}{rates}")
    print(
        "In percent of the crystals. match: the structure given; relaxed: that structure relaxed with the calculator;"
        f"\nlower: more than {1000 * LOWER:.0f} meV/atom below it; either: match or lower; trials: single trials that "
        "match."
    )


def _percent(value: float, error: float) -> str:
    return f"{100 * value:.1f} ± {100 * error:.1f}"


def _part(text: str) -> tuple[int, int]:
    part, _, parts = text.partition("/")
    if not (part.isdigit() and parts.isdigit() and int(part) < int(parts)):
        raise argparse.ArgumentTypeError(f"{text!r} is no part: write 0/2 for the first of two")
    return int(part), int(parts)


def _positive(text: str) -> int:
    if not (text.isdigit() and int(text)):
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive number")
    return int(text)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    runner = commands.add_parser("run")
    runner.set_defaults(function=run)
    runner.add_argument("data", type=Path, help="the .npz file with the crystals")
    runner.add_argument("folder", type=Path)
    runner.add_argument("--count", type=_positive, default=100, help="crystals to draw")
    runner.add_argument("--trials", type=_positive, default=10, help="of each method and crystal")
    runner.add_argument("--methods", nargs="+", choices=METHODS, default=["diffusion"])
    runner.add_argument("--calculator", default="chgnet")
    runner.add_argument("--score", default="crystals", help="shipped score or model file")
    runner.add_argument("--part", type=_part, default=(0, 1), help="this share of the crystals only, such as 0/2")
    reporter = commands.add_parser("report")
    reporter.set_defaults(function=report)
    reporter.add_argument("folder", type=Path)
    reporter.add_argument("--trials", nargs="+", type=_positive, default=[1, 10], help="rates within so many trials")
    options = parser.parse_args()
    try:
        options.function(options)
    except InputError as error:
        raise SystemExit(str(error)) from error


if __name__ == "__main__":
    main()
