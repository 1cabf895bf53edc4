"""The search: which trial next, until the budget is spent."""

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from ase import Atoms
from ase.calculators.calculator import Calculator

from ase_gss.archive import Archive
from ase_gss.coupling import Coupling
from ase_gss.driver import Driver, SearchError
from ase_gss.errors import InputError
from ase_gss.forces import CalculatorFactory
from ase_gss.found import Found
from ase_gss.heartbeat import Heartbeat
from ase_gss.minima import MinimaList
from ase_gss.plan import Plan
from ase_gss.refine import refine, refined_minima, what_to_refine
from ase_gss.schedule import NoiseSchedule
from ase_gss.settings import check_calculator, check_order, keywords_to_refine
from ase_gss.systems import choose_system
from ase_gss.trial import Need, Trial
from ase_gss.workers import crew_of

__all__ = ["GenerativeRSS", "SearchError"]


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
    regime : str, optional
        "adaptive", for molecules the default without a coupling, schedule or starts: trials are made in several
        ways, more often in those that meet new minima for the fewest force calls. Or one of these ways; see
        `ase_gss.families`.
    adapt : bool, optional
        Of an adaptive search: learn while searching. After 150 force calls, and whenever there are twice as many as at
        the last time, copies of the score are trained for some seconds on the minima found so far, and some regimes
        take them; another copy of its network learns the forces that the calculator has given so far, and samples are
        relaxed with these before they cost a force call. Needs a score from a model file; the default where it can be.
    forces : str, path or False, optional
        Of an adaptive search: learned forces (see `ase_gss.score.learned_forces.load_forces`) with which samples and
        random structures are relaxed before they cost a force call, and from which it learns its own. By default those
        that ship with the package, from the first trial on where they know the elements and there is neither charge nor
        spin; False begins without any, so that without `adapt` there are none.
    coupling : str or Coupling, optional
        Instead of a regime: every trial goes through the sampler with this coupling, as for `GSSDynamics`; with "rss"
        random starts go to the optimizer without any sampling.
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
        End a sampled structure without a force call where it looks like a minimum of an earlier generation, or begins
        where a relaxation to one has begun, and a molecule's relaxation where it comes close to one; that counts as a
        hit. Leave molecules, too, whose bonds promise nothing new. An adaptive search relaxes all these once they
        promise as much as it has brought of late. What is in pieces is given up in any case.
    mirror_images_are_one : bool
        Count a structure and its mirror image once.
    refine : bool
        Relax the distinct minima tightly at the end of a run and merge what falls together; counted apart. The workers,
        or the executor, do it, too.
    verify : None or "hessian"
        In this refinement (it implies `refine`) check each for imaginary modes, and push a saddle point off; counted
        apart.
    database : path or URL, optional
        ASE database that gets every trial: an SQLite file, or ``postgresql://user:password@host/name``. Where it
        exists, the search goes on from there. Several searches may share one.
    seed : int
        Trial n has its own random stream from (seed, n).
    workers : int
        Processes that do the work, one thread each. With 1 and no time limit it is done in this process.
    executor : concurrent.futures executor or str, optional
        Does the work instead: anything with its ``submit``, or the address of a Dask scheduler; `workers` is then the
        number of jobs that it can do at once. It has no time limits.
    batch : int
        Trials of one generation, of which there are 16, that are relaxed together, their structures in one call of the
        calculator: "chgnet", or one with a method `calculate_batch` (see `ase_gss.batch`). The trials are the same;
        their numbers may differ by the rounding of the potential. Forces of the sampler go in batches, too.
    call_limit, trial_limit : float, optional
        Seconds after which a force call, or a trial, counts as hung: its process is killed, and the trial has failed.
        The former holds for refinements, too.
    failure_limit : float
        Share of failed trials above which the search stops, from 20 trials on: then the set-up is wrong.

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
        regime: str | None = None,
        adapt: bool | None = None,
        forces: Any = None,
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
        workers: int = 1,
        executor: Any = None,
        batch: int = 1,
        call_limit: float | None = None,
        trial_limit: float | None = None,
        failure_limit: float = 0.5,
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
            regime=regime,
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
            adapt=adapt,
            forces=forces,
            batch=batch,
        )
        if verify not in (None, "hessian"):
            raise InputError(f"verify is None or 'hessian', not {verify!r}.")
        if verify and self.system.periodic:
            raise InputError("Vibrations are checked for molecules only: refine without verify.")
        self.recognise, self.refine, self.verify = recognise, refine, verify
        if workers < 1:
            raise InputError("A search needs at least one worker.")
        if not 0 < failure_limit <= 1:
            raise InputError("The failure limit is a share of the trials, above 0 and at most 1.")
        if any(limit is not None and not limit > 0 for limit in (call_limit, trial_limit)):
            raise InputError("Time limits are positive, in seconds.")
        if executor is not None and (call_limit is not None or trial_limit is not None):
            raise InputError("Time limits are for workers of the search's own: leave them out with an executor.")
        self.workers, self.executor = workers, executor
        self.call_limit, self.trial_limit, self.failure_limit = call_limit, trial_limit, failure_limit
        self.archive = Archive(database)
        self.archive.open_for(self.plan.settings() | {"recognise": recognise})
        check_order(self.archive, self.plan)
        self._found = Found(self.archive)
        self._driver: Driver | None = None
        self._stopping = self._only_to_look_at = False
        self.refinement_failures: list[str] = []  # of the last `refine_minima`: see `ase_gss.refine.refine`
        self._observers: list[tuple[Callable, int, tuple, dict]] = []
        self.dried_up = False

    @classmethod
    def resumed(
        cls,
        database: str | os.PathLike,
        calculator: Any = None,
        verify: str | None = None,
        workers: int = 1,
        executor: Any = None,
        call_limit: float | None = None,
    ) -> "GenerativeRSS":
        """The search that a database holds, to look at or to refine; it takes no score.

        Parameters
        ----------
        database : path
            As written by a search.
        calculator : str, function or ase calculator, optional
            By default the one that the search was given by name.
        verify, workers, executor, call_limit
            As in `GenerativeRSS`: how it is refined, and by whom.
        """
        archive = Archive(database, must_exist=True)
        settings = archive.metadata["settings"]
        keywords = keywords_to_refine(archive.name, settings, calculator)
        keywords |= {"verify": verify, "workers": workers, "executor": executor, "call_limit": call_limit}
        search = cls(settings["formula"], coupling="rss", **keywords)
        check_calculator(archive.name, settings, search.plan)
        search.archive, search._found, search._only_to_look_at = archive, Found(archive), True
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
        """Energy (eV; periodic: enthalpy, eV/atom) of each distinct minimum met, in the order of discovery."""
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
        """Force calls of all trials so far, earlier runs and failed trials included, those cut short by Ctrl-C not."""
        return self.archive.totals["force_calls"] + sum(trial.force_calls for trial in self._unwritten)

    @property
    def score_calls(self) -> int:
        """Score calls of all trials so far."""
        return self.archive.totals["score_calls"] + sum(trial.score_calls for trial in self._unwritten)

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
        return self.archive.totals["trials"] + sum(trial.needs is Need.NOTHING for trial in self._unwritten)

    def attach(self, function: Callable, interval: int = 1, *args, **kwargs) -> None:
        """Call `function(*args, **kwargs)` after every `interval` finished trials."""
        self._observers.append((function, interval, args, kwargs))

    def run(self, trials: int | None = None, max_calls: int | None = None) -> list[Atoms]:
        """Search until this many trials or force calls have been spent in all, earlier runs included.

        Parameters
        ----------
        trials, max_calls : int
            At least one of them. `max_calls` is kept to within one trial or batch, with workers to within two for each.

        Returns
        -------
        list of Atoms
            `minima`. It ends early after 20 generations, an adaptive search after 60, in which all looked known.

        Raises
        ------
        InputError
            Where there is no end, no room for a start, or the search was resumed only to be looked at.
        SearchError
            Where more trials have failed than `failure_limit` allows.
        ArchiveError
            Where the database cannot be written.
        """
        if self._only_to_look_at:
            raise InputError("What was resumed is to look at and refine: to search on, call GenerativeRSS as at first.")
        if trials is None and max_calls is None:
            raise InputError("Give the search an end: trials, max_calls, or both.")
        if not self.archive.totals["trials"]:
            self.plan.begin(0)  # a start that is impossible is wrong input: nothing is written then
        crew = crew_of(self.plan, self.workers, self.executor, self.call_limit, self.trial_limit)
        driver = None
        try:
            driver = Driver(self.plan, self.archive, crew, self.recognise, self.failure_limit, self._tell)
            self._driver, self._found = driver, driver.found
            if self._stopping:  # it came while the file was read
                driver.stop()
            with Heartbeat(self.archive):
                driver.run(trials, max_calls)
        except BaseException:  # Ctrl-C may come anywhere: keep what is finished, and believe the file
            crew.terminate()
            if driver is not None:
                driver.keep_ended()
                driver.flush()
                self._found = Found(self.archive)
            raise
        finally:
            try:
                crew.close()
            finally:
                self._driver, self._stopping = None, False
                self.archive.release()
                self._write_totals()
        self.dried_up = driver.dried_up
        refines = (self.refine or self.verify) and not driver.stopping
        return self.refine_minima() if refines else self.minima

    def stop(self) -> None:
        """End the run, or refinement, under way, or else the next one, once what is under way is finished.

        That is what is with the calculator, and with a coupling that samples with forces the relaxation of what has
        been sampled: else these force calls were lost. For signal handlers.
        """
        self._stopping = True
        if self._driver is not None:
            self._driver.stop()

    def refine_minima(self, fmax: float = 0.005, max_steps: int = 300, every_end: bool = False) -> list[Atoms]:
        """Relax the distinct minima, or the ends of all trials, tightly and merge what falls together.

        Those refined before are not repeated, those whose calculation, or optimizer, failed are. The calls are counted
        apart. It is done by the search's workers with its `call_limit`, or by its executor, which has to be open still.

        Parameters
        ----------
        fmax : float
            Largest force, eV/Å.
        max_steps : int
            Optimizer steps for each.
        every_end : bool
            Not one end for each minimum, but all: the comparison of a search takes some for one that are two.

        Returns
        -------
        list of Atoms
            `minima`.

        Raises
        ------
        InputError
            Where the calculator cannot be sent to workers.
        WorkersError
            Where these cannot go on, or the executor is broken or shut down.
        ArchiveError
            Where the database cannot be written.
        """
        verify = self.verify is not None
        numbers = what_to_refine(self._found.minima, self.archive, fmax, verify, every_end)
        self.refinement_failures = []
        try:
            if numbers:
                plan = replace(self.plan, score=None, forces=None)  # neither is needed, nor torch
                limits = self.call_limit, self.trial_limit
                with crew_of(plan, self.workers, self.executor, *limits, jobs=len(numbers)) as crew:
                    refine(
                        numbers,
                        self.archive,
                        crew,
                        fmax=fmax,
                        max_steps=max_steps,
                        verify=verify,
                        stopping=lambda: self._stopping,
                        reasons=self.refinement_failures,
                    )
        finally:
            self._stopping = False
            self._write_totals()
        return self.minima

    @property
    def _unwritten(self) -> list[Trial]:
        return [] if self._driver is None else list(self._driver.unwritten)

    def _current(self) -> MinimaList:
        return refined_minima(self._found, self.archive)

    def _tell(self, number: int) -> None:
        """Call those who watch."""
        for function, interval, args, kwargs in self._observers:
            if number % interval == 0:
                function(*args, **kwargs)

    def _write_totals(self) -> None:
        """Bring the metadata and the marks on the rows of the minima up to date."""
        if self.archive.totals["trials"]:
            self.archive.write_metadata(**self.archive.totals)
            self.archive.mark_minima({atoms.info["trial"]: rank for rank, atoms in enumerate(self.minima, start=1)})
