"""The driver: trials in generations, through sampler and hand-off, whoever does the work, until the budget is spent."""

import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, CancelledError, Future, wait
from itertools import count

import numpy as np
from ase import Atoms

from ase_gss.agenda import Agenda
from ase_gss.archive import Archive, Record
from ase_gss.budget import Expectation
from ase_gss.failures import Failures, SearchError
from ase_gss.found import Found
from ase_gss.generation import LAG, Generation, known_before
from ase_gss.ledger import GENERATION
from ase_gss.lesson import Lessons
from ase_gss.memory import KnownEnds
from ase_gss.plan import Plan
from ase_gss.trial import Ended, Need, Trial
from ase_gss.workers import Job, Runner, WorkerLost, WorkersError
from ase_gss.worth import SecondLooks

#: Finished trials wait at most so long (s) for others to be written with them; one write costs about 20 ms.
WRITE_INTERVAL = 0.5
#: So many generations without a force call mean that this search meets nothing new; an adaptive one needs patience.
IDLE_GENERATIONS, ADAPTIVE_IDLE_GENERATIONS = 20, 60

#: So often (s) what has become free elsewhere is looked for.
PATIENCE = 60.0


class Driver:
    """Runs the trials of a search.

    Parameters
    ----------
    plan, archive : Plan, Archive
        What to do, and where the finished trials go.
    crew : Runner
        Who does the work.
    recognise : bool
        End a sampled structure that looks like a known minimum, unless it is worth a second look.
    failure_limit : float
        Share of failed trials above which the search stops.
    written : callable
        Told of every trial that has been written, by the number of trials in the archive.

    Attributes
    ----------
    found : Found
        What the trials have found; nothing that follows an unfinished trial, until that is finished, too.
    stopping : bool
        Nothing more is begun.
    """

    def __init__(
        self,
        plan: Plan,
        archive: Archive,
        crew: Runner,
        recognise: bool,
        failure_limit: float,
        written: Callable[[int], None],
    ) -> None:
        self.plan, self.archive, self.crew = plan, archive, crew
        self.recognise = recognise
        self.stopping = False
        self._written = written
        self._flying: dict[Future, Job] = {}
        self._finished: list[Trial] = []
        done = archive.numbers
        gap = next(number for number in count() if number not in done)
        self.found = Found(archive, below=gap, starts=True)
        self._waiting: dict[int, tuple[Record, Atoms | None, Atoms | None]] = {}
        self._wait(record for record in archive.records if record.number > gap)
        self._last_write = time.monotonic()
        self._failures, self._expected = Failures(failure_limit), Expectation()
        self._expected.learn(archive.records)
        self._agenda = Agenda(plan, crew.slots, self._expected, self._known_ends)
        self._lessons = Lessons(plan.learns, plan.settles_at_once, archive, self.found.ledger)

    @property
    def dried_up(self) -> bool:
        """The last generations have met nothing that was worth a force call, as far as the next one may know."""
        enough = ADAPTIVE_IDLE_GENERATIONS if len(self.plan.regimes) > 1 else IDLE_GENERATIONS
        return self.found.ledger.idle_generations >= enough

    @property
    def unwritten(self) -> Iterator[Trial]:
        """The trials that are begun, but not in the archive yet."""
        yield from self._finished
        yield from self._agenda.trials

    @property
    def force_calls(self) -> int:
        """Force calls so far, as far as they have been reported."""
        return self.archive.totals["force_calls"] + sum(trial.force_calls for trial in self.unwritten)

    def run(self, trials: int | None, max_calls: int | None) -> None:
        """Go on until so many trials or force calls have been spent in all, or `stopping` is set.

        Raises
        ------
        SearchError
            Where too large a share of the trials has failed.
        """
        while True:
            self._open_generations(trials, max_calls)
            while len(self._flying) < self.crew.slots and (job := self._next_job(max_calls)) is not None:
                self._flying[self.crew.submit(job)] = job
            if self.stopping or self._spent(max_calls):
                self._forget_what_waits()
            if not self._flying:
                break
            self._collect()
        if self._spent(max_calls):
            self._give_up("the force calls were used up before its relaxation")
        elif self.stopping:  # what a worker that was lost has left
            self._give_up("the search was stopped before its relaxation")
        self._agenda.clear()
        self.flush()
        self._read_others()  # what others wrote last counts in the list and in the marks, too
        self._take_up()  # nothing is under way any more: gaps hold nobody back

    def flush(self) -> None:
        """Write what is finished."""
        finished, self._finished = sorted(self._finished, key=lambda trial: trial.number), []
        self._last_write = time.monotonic()
        if not finished:
            return
        before = self.archive.totals["trials"]
        try:
            written = self.archive.append(finished)
            self._expected.learn(written)
            self._wait(written)
        except BaseException:
            self._finished = finished + self._finished
            raise
        self._take_up()
        for number in range(before + 1, self.archive.totals["trials"] + 1):
            self._written(number)

    def keep_ended(self) -> None:
        """After an interrupt: trials that have ended inside a job that never came back count, too."""
        self._finished += [trial for trial in self._agenda.trials if trial.needs is Need.NOTHING]
        self._agenda.clear()

    def _wait(self, records: Iterable[Record]) -> None:
        """Keep what is written until all that comes before it is."""
        records = list(records)
        starts = self.archive.starts(records) if self.found.memory.compares_starts else {}
        for record in records:
            end = self.archive.atoms_of(record.number) if record.ended is Ended.MINIMUM else None
            self._waiting[record.number] = record, end, starts.get(record.number)

    def stop(self) -> None:
        """Begin nothing more; what is under way is finished, what waits for a worker is not begun."""
        self.stopping = True
        for future, job in list(self._flying.items()):
            if self._is_lost_for_nothing(job):
                future.cancel()

    def _open_generations(self, trials: int | None, max_calls: int | None) -> None:
        """Begin the generations that may know enough by now."""
        while not (self.stopping or self.dried_up or self._spent(max_calls)):
            limits = [] if trials is None else [trials]
            if under_way := self._agenda.generations:  # no generation that would have to know these
                limits.append((under_way[0].index + LAG) * GENERATION)
            self._read_others()
            numbers = self.archive.reserve(GENERATION, min(limits, default=None))
            if not numbers:
                return
            index = numbers[0] // GENERATION
            self.found.ledger.advance(before=known_before(index))
            if self.dried_up:  # what is reserved is given back at the end of the run
                return
            familiarity = self.found.ledger.familiarity()
            adaptive = len(self.plan.regimes) > 1 and self.plan.system.knows_bonds
            second_looks = self.found.ledger.second_looks(LAG * GENERATION) if adaptive else SecondLooks()
            begun = self.plan.begin_generation(index, numbers, self.found.ledger, self.archive.atoms_of)
            # What is turned goes along with those to be sampled, to be looked at like them.
            ready = [each.number for each in begun if each.needs is Need.RELAXATION and not each.turned]
            unsampled = [trial.number for trial in begun if trial.number not in ready]
            by_number = {trial.number: trial for trial in begun}
            lesson = self._lessons.for_trials(begun)
            self._agenda.add(Generation(index, by_number, unsampled, ready, familiarity, second_looks, lesson))

    def _next_job(self, max_calls: int | None) -> Job | None:
        """What is to be done next; None where that is nothing, or has to wait for what is under way."""
        if self._spent(max_calls):
            return None
        if self.stopping:
            return self._agenda.last_job()
        if max_calls is None:
            return self._agenda.next_job(None)
        left = max_calls - self.force_calls - self._expected.of_jobs(self._flying.values())
        return None if left <= 0 and self._flying else self._agenda.next_job(left)

    def _known_ends(self, generation: Generation) -> KnownEnds | None:
        """What relaxations of this generation may be recognised to head for."""
        return self.found.memory.first_ends(generation.known_before) if self.recognise else None

    def _collect(self) -> None:
        """Take what the crew has done."""
        patience = WRITE_INTERVAL if self._finished else PATIENCE
        done, _ = wait(self._flying, timeout=patience, return_when=FIRST_COMPLETED)
        for future in sorted(done, key=lambda future: self._flying[future].first):
            job = self._flying.pop(future)
            if self.stopping and future.cancelled():
                continue
            if job.stage == "learn":
                self._take_back_part(job, future)
                continue
            try:
                trials = future.result()
            except WorkerLost as lost:
                trials = self._lost(job, lost)
            for trial in trials:
                self._take_back(trial, job)
        if self._finished and time.monotonic() - self._last_write > WRITE_INTERVAL:
            self.flush()
        self._close_generations()
        self._failures.check()

    def _forget_what_waits(self) -> None:
        """Do not wait for what nobody has begun and nobody will miss."""
        for future, job in list(self._flying.items()):
            if self._is_lost_for_nothing(job) and future.cancel():
                del self._flying[future]

    def _is_lost_for_nothing(self, job: Job) -> bool:
        """Parts of lessons, as nothing more will be sampled; of a search that stops all that has cost no force call."""
        return job.stage == "learn" or (self.stopping and not any(trial.force_calls for trial in job.trials))

    def _take_back_part(self, job: Job, future: Future) -> None:
        """A part of a lesson comes back from the crew."""
        lesson = self._agenda.lesson(job.part.lesson)
        try:
            lesson.take_back(job.part, future.result())
        except WorkerLost as lost:
            if not lesson.lose(job.part):
                raise _no_lesson(lost) from lost
        except (CancelledError, WorkersError):
            raise
        except Exception as error:  # whatever torch and its devices raise
            raise _no_lesson(error) from error

    def _take_back(self, trial: Trial, job: Job) -> None:
        """A trial comes back from the crew."""
        generation = self._agenda.generation_of(trial.number)
        generation.trials[trial.number] = trial
        if job.stage == "sample" and trial.needs is Need.RELAXATION:
            generation.alone.discard(trial.number)
            self._recognise(trial, generation)
        if trial.needs is Need.NOTHING:
            del generation.trials[trial.number]
            self._finished.append(trial)
            self._failures.count(trial)
        elif trial.needs is Need.RELAXATION:
            generation.ready.append(trial.number)
            generation.ready.sort()
        else:
            generation.unsampled.append(trial.number)

    def _recognise(self, trial: Trial, generation: Generation) -> None:
        """End a sampled structure that looks like a known minimum, or has bonds that have nothing new to give.

        Unless it is worth a second look; and choose the minima of which its relaxation is one.
        """
        if not self.recognise or not trial.formed:
            return
        before = generation.known_before
        trial.known, why, trial.bonds = self.found.memory.look_at(trial.sampled(), before)
        draw = trial.walk.rng.random()
        trial.spared = frozenset(end for end, share in generation.second_looks.repeats.items() if draw < share)
        if trial.known is not None:
            if trial.known not in trial.spared:
                trial.end(Ended.KNOWN, why)
            else:
                trial.second_look = True
                trial.bonds = ""  # what comes of a lookalike says nothing of others with its bonds
        elif self.plan.system.knows_bonds and not generation.second_looks.dull and not trial.turned:
            interest = generation.familiarity.interest(trial.bonds)
            if trial.walk.rng.random() > interest:
                trial.end(Ended.FAMILIAR, "its bonds are those of samples that were relaxed before")
        if trial.needs is Need.RELAXATION and trial.known is None and self.found.memory.compares_starts:
            trial.start = trial.walk.positions.astype(np.float32)

    def _lost(self, job: Job, lost: WorkerLost) -> list[Trial]:
        """What becomes of the trials of a worker that is gone: the one that struck it is over, others begin anew."""
        striker = lost.number if lost.number is not None or len(job.trials) > 1 else job.trials[0].number
        trials = []
        for trial in job.trials:
            trial.force_calls += lost.calls.get(trial.number, 0)
            if trial.number == striker:
                trial.end(Ended.CALCULATOR, lost.reason)
            elif striker is None:
                # Who it was is not known: one at a time it will show.
                self._agenda.generation_of(trial.number).alone.add(trial.number)
            trials.append(trial)
        return trials

    def _close_generations(self) -> None:
        """Let go of the generations that are complete."""
        for generation in [each for each in self._agenda.generations if not each.trials]:
            self.flush()
            self._agenda.remove(generation)
            self._take_up()

    def _read_others(self) -> None:
        """Take up what other searches on this database have written."""
        self._wait(self.archive.refresh())

    def _take_up(self) -> None:
        """Learn from what is written, in the order of the trials: nothing that follows an unfinished one."""
        frontier = min((trial.number for trial in self._agenda.trials), default=None)
        for number in sorted(self._waiting):
            if frontier is not None and number > frontier:
                break
            self.found.take_up(*self._waiting.pop(number))

    def _give_up(self, reason: str) -> None:
        """Of the trials that are not finished keep only those that have cost force calls."""
        for trial in self._agenda.trials:
            if trial.force_calls:
                trial.end(Ended.BUDGET, reason)
                self._finished.append(trial)

    def _spent(self, max_calls: int | None) -> bool:
        return max_calls is not None and self.force_calls >= max_calls


def _no_lesson(error: Exception) -> SearchError:
    words = " ".join(str(error).split()) or type(error).__name__
    return SearchError(f"The search cannot learn from what was found ({words}): search without adapt (--no-adapt).")
