"""The search: which trial next, until the budget is spent."""

import os
import time
from collections.abc import Callable, Sequence
from itertools import count, takewhile
from typing import Any

import numpy as np
from ase import Atoms
from ase.calculators.calculator import Calculator

from ase_gss.archive import Archive
from ase_gss.calculators import CALCULATORS
from ase_gss.coupling import Coupling
from ase_gss.errors import InputError
from ase_gss.forces import CalculatorFactory
from ase_gss.found import Found
from ase_gss.minima import MinimaList
from ase_gss.plan import Plan
from ase_gss.refine import refine, refined_minima
from ase_gss.schedule import NoiseSchedule
from ase_gss.stages import relax, sample
from ase_gss.systems import choose_system
from ase_gss.trial import Ended, Need, Trial

#: So many trials ended by the calculator one after the other mean that the set-up is wrong.
MAX_FAILURES = 20
#: Generation m is the trials from m times this number on; they are sampled together and know only what earlier
#: generations have found, so that a trial does not depend on where a search was stopped in between.
GENERATION = 32
#: Finished trials wait at most so long (s) for others to be written with them; one write costs about 20 ms.
WRITE_INTERVAL = 0.5
#: So many generations without a force call mean that this search meets nothing new.
IDLE_GENERATIONS = 10
#: Force calls that a relaxation is expected to need before one has been seen.
EXPECTED_CALLS = 40


class SearchError(RuntimeError):
    """The search cannot go on; the message says why."""


class GenerativeRSS:
    """Search for the minima of a composition.

    Parameters
    ----------
    composition : str or Atoms
        A formula such as "C3H6O", or atoms whose elements are taken.
    calculator : str, function, or ase calculator
        "gfn2" and its like (see `ase_gss.calculators.CALCULATORS`), "module:factory", a function without arguments that
        makes a calculator (called once), or a calculator.
    score : str, path, Score or callable
        As for `GSSDynamics`; by default "molecules", for a periodic search "crystals". Not used by "rss".
    coupling : str or Coupling
        As for `GSSDynamics`, or "rss": random starts go to the optimizer without any sampling. By default "hot" for
        molecules and "diffusion" for crystals.
    pbc : bool
        Search for crystals: positions and cell.
    units : sequence of int
        Of a crystal: numbers of formula units `composition` that a cell may have; each trial draws one.
    pressure : float
        Of a crystal: external pressure, eV/Å3 (10 GPa are ``10 * ase.units.GPa``). The enthalpy is what is minimised.
    volume : float, optional
        Of a crystal: volume of one unit at which trials start, Å3; by default what is typical of its elements.
    symmetry : bool
        Of a crystal: each trial starts with a random space group and keeps it: score, noise and force are projected
        onto it. Such a trial is cheap and meets symmetric crystals far more often, but may end on a ridge.
    template : Atoms, optional
        Search for places of the atoms `composition` on this slab, in its cell; what is to stay is held by FixAtoms.
    region : tuple of float, optional
        Lowest and highest height (Å) at which they start; by default just above the template's highest atom.
    schedule : Schedule, optional
        Noise levels; by default the coupling's own.
    starts : sequence of Atoms, optional
        Structures to start from, taken in turn, instead of random ones.
    sigma_start : float, optional
        Noise (Å) put on each of `starts`; 0.5 by default.
    optimizer : str or optimizer class, optional
        The hand-off; see :func:`ase_gss.relax.hand_off`.
    fmax : float
        Largest force (eV/Å) at which a trial counts as relaxed; the stress of a crystal is then within 0.1 GPa.
    max_steps : int
        Optimizer steps at which a trial is given up.
    charge, multiplicity : int
        For calculators given by name. The multiplicity defaults to 1 for an even and to 2 for an odd number of
        electrons.
    fragments : bool
        Keep ends that are not in one piece.
    recognise : bool
        End a sampled structure without a force call where it looks like a minimum of an earlier generation; it counts
        as a hit.
    mirror_images_are_one : bool
        Count a structure and its mirror image once.
    refine : bool
        Relax the distinct minima tightly at the end of a run and merge what falls together; counted apart.
    verify : None or "hessian"
        In this refinement (it implies `refine`) check each for imaginary modes, and push a saddle point off; counted
        apart.
    database : path, optional
        ASE database (SQLite) that gets every trial. Where it exists, the search goes on from there.
    seed : int
        Trial n has its own random stream from (seed, n).

    Raises
    ------
    InputError
        For input that cannot be searched; nothing is written then.
    """

    def __init__(
        self,
        composition: str | Atoms,
        calculator: str | CalculatorFactory | Calculator,
        *,
        score: Any = None,
        coupling: str | Coupling | None = None,
        schedule: NoiseSchedule | None = None,
        pbc: bool = False,
        units: Sequence[int] = (1,),
        pressure: float = 0.0,
        volume: float | None = None,
        symmetry: bool = False,
        template: Atoms | None = None,
        region: tuple[float, float] | None = None,
        starts: Sequence[Atoms] | None = None,
        sigma_start: float = 0.5,
        optimizer: Any = None,
        fmax: float = 0.05,
        max_steps: int = 300,
        charge: int = 0,
        multiplicity: int | None = None,
        fragments: bool = False,
        recognise: bool = True,
        mirror_images_are_one: bool = True,
        refine: bool = False,
        verify: str | None = None,
        database: str | os.PathLike | None = None,
        seed: int = 0,
    ) -> None:
        self.system = choose_system(
            composition,
            pbc=pbc,
            template=template,
            region=region,
            units=units,
            pressure=pressure,
            volume=volume,
            symmetry=symmetry,
            fragments=fragments,
            mirror_images_are_one=mirror_images_are_one,
        )
        self.plan = Plan.checked(
            self.system,
            calculator,
            score=score,
            coupling=coupling,
            schedule=schedule,
            starts=starts,
            sigma_start=sigma_start,
            optimizer=optimizer,
            fmax=fmax,
            max_steps=max_steps,
            charge=charge,
            multiplicity=multiplicity,
            seed=seed,
        )
        if verify not in (None, "hessian"):
            raise InputError(f"verify is None or 'hessian', not {verify!r}.")
        if verify and self.system.periodic:
            raise InputError("Vibrations are checked for molecules only: refine without verify.")
        self.recognise, self.refine, self.verify = recognise, refine, verify
        self.archive = Archive(database)
        self.archive.open_for(self.plan.settings())
        self._found = Found(self.archive)
        self._begun: list[Trial] = []
        self._observers: list[tuple[Callable, int, tuple, dict]] = []
        self._failures = 0
        self._written = time.monotonic()
        self.dried_up = False

    @classmethod
    def resumed(cls, database: str | os.PathLike, calculator: Any = None, verify: str | None = None) -> "GenerativeRSS":
        """The search that a database holds, to look at or to refine; it takes no score.

        Parameters
        ----------
        database : path
            As written by a search.
        calculator : str, function or ase calculator, optional
            By default the one that the search was given by name.
        verify : None or "hessian"
            As in `GenerativeRSS`.
        """
        archive = Archive(database, must_exist=True)
        settings = archive.metadata["settings"]
        if "template" in settings:
            raise InputError("A search on a template cannot be refined from its file: go on with it in Python.")
        keys = ["fmax", "seed"]
        if settings.get("periodic"):
            keys += ["units", "pressure", "volume", "symmetry"]
        else:
            keys += ["fragments", "mirror_images_are_one"]
            if calculator is None or isinstance(calculator, str):
                keys += ["charge", "multiplicity"]
        by_name = settings["calculator"] in CALCULATORS or ":" in settings["calculator"]
        if calculator is None and not by_name:
            raise InputError(
                f"The calculator of {database}, {settings['calculator']}, was not given by name: "
                "give it now (-c in the shell)."
            )
        search = cls(
            settings["formula"],
            settings["calculator"] if calculator is None else calculator,
            coupling="rss",
            pbc=bool(settings.get("periodic")),
            verify=verify,
            **{key: settings[key] for key in keys},
        )
        search.archive, search._found = archive, Found(archive)
        return search

    @property
    def numbers(self) -> np.ndarray:
        """Atomic numbers of one unit of the composition."""
        return self.system.numbers

    @property
    def multiplicity(self) -> int:
        """Spin multiplicity, 2S + 1."""
        return self.plan.multiplicity

    @property
    def energies(self) -> list[float]:
        """Energy of each distinct minimum met while searching, in the order of discovery.

        In eV; for periodic structures the enthalpy in eV/atom.
        """
        return self._found.minima.energies

    @property
    def minima(self) -> list[Atoms]:
        """Distinct minima, lowest first, refined where a refinement is on file.

        Each has energy and forces; `info` has `hits`, `first_call`, `first_trial` and `trial` (its representative).
        """
        return self._current().ranked()

    @property
    def hits(self) -> list[int]:
        """Hits of each distinct minimum."""
        return self._current().hits

    @property
    def force_calls(self) -> int:
        """Force calls of all trials so far, earlier runs and failed trials included."""
        return self.archive.totals["force_calls"] + sum(trial.force_calls for trial in self._begun)

    @property
    def score_calls(self) -> int:
        """Score calls of all trials so far."""
        return self.archive.totals["score_calls"] + sum(trial.score_calls for trial in self._begun)

    @property
    def refinement_calls(self) -> int:
        """Force calls of refinements, in no other total."""
        return self.archive.totals["refinement_calls"]

    @property
    def verification_calls(self) -> int:
        """Force calls of vibrational checks, in no other total."""
        return self.archive.totals["verification_calls"]

    @property
    def trials(self) -> int:
        """Finished trials."""
        return self.archive.totals["trials"] + sum(trial.needs is Need.NOTHING for trial in self._begun)

    def attach(self, function: Callable, interval: int = 1, *args, **kwargs) -> None:
        """Call `function(*args, **kwargs)` after every `interval` finished trials."""
        self._observers.append((function, interval, args, kwargs))

    def run(self, trials: int | None = None, max_calls: int | None = None) -> list[Atoms]:
        """Search until this many trials or force calls have been spent in all, earlier runs included.

        Parameters
        ----------
        trials, max_calls : int
            At least one of them. `max_calls` is kept to within one trial.

        Returns
        -------
        list of Atoms
            `minima`. It ends early after 10 generations of which every structure was recognised.

        Raises
        ------
        SearchError
            After 20 trials in a row that the calculator or a lost cell has ended.
        """
        if trials is None and max_calls is None:
            raise InputError("Give the search an end: trials, max_calls, or both.")
        self._failures = idle = 0
        try:
            while (numbers := self._next_numbers(trials)) and not self._spent(max_calls) and idle < IDLE_GENERATIONS:
                before = self.force_calls
                self._run_generation(numbers, max_calls)
                idle = 0 if self.force_calls > before else idle + 1
            self._flush()
        except BaseException:  # Ctrl-C may come anywhere: keep what is finished, and believe the file
            self._flush()
            self._found = Found(self.archive)
            raise
        finally:
            self._begun = []
            self._write_totals()
        self.dried_up = idle >= IDLE_GENERATIONS
        return self.refine_minima() if self.refine or self.verify else self.minima

    def refine_minima(self, fmax: float = 0.005, max_steps: int = 300) -> list[Atoms]:
        """Relax the distinct minima to `fmax` (eV/Å) and merge what falls together.

        Those refined before are not repeated. The calls are counted apart.
        """
        try:
            refine(
                self._found.minima,
                self.archive,
                self.system,
                self.plan.new_calculator,
                fmax=fmax,
                max_steps=max_steps,
                verify=self.verify is not None,
            )
        finally:
            self._write_totals()
        return self.minima

    def _current(self) -> MinimaList:
        return refined_minima(self._found.minima, self.archive)

    def _next_numbers(self, trials: int | None) -> list[int]:
        """Numbers that are not finished in the lowest generation that has one."""
        done = self.archive.numbers
        first = next(number for number in count() if number not in done)
        start = first - first % GENERATION
        end = start + GENERATION if trials is None else min(start + GENERATION, trials)
        return [number for number in range(start, end) if number not in done]

    def _spent(self, max_calls: int | None) -> bool:
        return max_calls is not None and self.force_calls >= max_calls

    def _run_generation(self, numbers: list[int], max_calls: int | None) -> None:
        """Sample these trials together, as many as the budget is good for, then relax one after the other."""
        while numbers and not self._spent(max_calls):
            self._begun = [self.plan.begin(number) for number in numbers]
            sampling = max(trial.walk.sampling_force_calls for trial in self._begun)
            if sampling and max_calls is not None:
                done = self.archive.totals["trials"]
                expected = max(self.force_calls / done if done else EXPECTED_CALLS, sampling + 1)
                affordable = max(1, int((max_calls - self.force_calls) / expected))
                self._begun = self._begun[:affordable]
            numbers = numbers[len(self._begun) :]
            sample(self._begun, self.plan)
            if self.recognise:
                self._recognise(self._begun)
            for trial in list(self._begun):
                if self._spent(max_calls):
                    self._give_up(from_number=trial.number)
                    break
                if trial.needs is Need.RELAXATION:
                    relax(trial, self.plan)
                self._judge_failure(trial)
                if time.monotonic() - self._written > WRITE_INTERVAL:
                    self._flush()
            self._flush()

    def _give_up(self, from_number: int) -> None:
        """The budget is spent: of the trials from this one on keep only those that have cost force calls."""
        kept = []
        for trial in self._begun:
            if trial.number >= from_number and trial.force_calls and trial.needs is not Need.NOTHING:
                trial.end(Ended.BUDGET, "the force calls were used up before its relaxation")
            if trial.number < from_number or trial.force_calls:
                kept.append(trial)
        self._begun = kept

    def _recognise(self, trials: list[Trial]) -> None:
        """End the sampled trials that look like known minima; what this generation finds plays no part yet."""
        for trial in trials:
            if trial.needs is Need.RELAXATION and trial.walk.k:
                start = trial.number - trial.number % GENERATION
                trial.known = self._found.memory.recall(trial.sampled(), before=start)
                if trial.known is not None:
                    trial.end(Ended.KNOWN, f"looks like the end of trial {trial.known}")

    def _judge_failure(self, trial: Trial) -> None:
        """Count trials that the calculator or a lost cell has ended, and raise after too many in a row."""
        if trial.ended in (Ended.KNOWN, Ended.BUDGET):
            return
        self._failures = self._failures + 1 if trial.ended in (Ended.CALCULATOR, Ended.CELL) else 0
        if self._failures >= MAX_FAILURES:
            raise SearchError(
                f"{MAX_FAILURES} trials in a row ended without a structure, the last so: {trial.ended}: {trial.reason}"
            )

    def _flush(self) -> None:
        """Write the finished trials, in their order; then they count, and those who watch are told."""
        finished = list(takewhile(lambda trial: trial.needs is Need.NOTHING, self._begun))
        if not finished:
            return
        self.archive.append(finished)
        self._begun = self._begun[len(finished) :]
        self._written = time.monotonic()
        new = self.archive.records[-len(finished) :]
        for record in new:
            self._found.take_up(record)
        for number, _ in enumerate(new, self.archive.totals["trials"] - len(new) + 1):
            for function, interval, args, kwargs in self._observers:
                if number % interval == 0:
                    function(*args, **kwargs)

    def _write_totals(self) -> None:
        """Bring the metadata and the marks on the rows of the minima up to date."""
        if self.archive.totals["trials"] == 0:
            return
        self.archive.write_metadata(**self.archive.totals)
        self.archive.mark_minima({atoms.info["trial"]: rank for rank, atoms in enumerate(self.minima, start=1)})
