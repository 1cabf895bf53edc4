"""The shell: `ase-gss search`, `rank`, `summary`, `export`, `refine`, `train`."""

import argparse
import json
import logging
import os
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ase_gss.arguments import parser
from ase_gss.errors import InputError

if TYPE_CHECKING:
    from tqdm import tqdm

    from ase_gss.search import GenerativeRSS

#: s; after SIGTERM what is under way may take so long. Queue systems wait 30 s or more before they kill.
GRACE = 20.0
#: Where a search is given no end.
DEFAULT_CALLS = 4000


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command.

    Returns the exit code: 0, 1 for a search that cannot go on, 2 for bad input, 130 for Ctrl-C, 141 where nobody reads
    the output to its end, 143 for SIGTERM.
    """
    options = parser().parse_args(arguments)
    # Two threads in one process stall beside any other computing process, and molecules are too small to share.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    from ase_gss.database import ArchiveError

    try:
        code = _COMMANDS[options.command](options)
        sys.stdout.flush()
        return code
    except BrokenPipeError:  # as by `| head`; what is left to print must not be tried again at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except (InputError, ArchiveError) as error:
        print(f"ase-gss: {error}", file=sys.stderr)
        return 2 if isinstance(error, InputError) else 1
    except KeyboardInterrupt:
        print("ase-gss: interrupted", file=sys.stderr)
        return 130


def _reached(search: "GenerativeRSS", by_calls: bool, total: int) -> int:
    """Where the bar begins: what an earlier run has done is not this one's speed."""
    return min(search.force_calls if by_calls else search.trials, total)


def _spent(search: "GenerativeRSS", options: argparse.Namespace) -> bool:
    """Whether an earlier run has come to the end that is given now."""
    reached = ((search.trials, options.trials), (search.force_calls, options.max_calls))
    return any(end is not None and done >= end for done, end in reached)


def _default_calculator(options: argparse.Namespace, numbers: Sequence[int]) -> str:
    if not options.crystal:
        return "gfn2"
    return "tersoff" if set(numbers) <= {6, 14} else "chgnet"


def _search(options: argparse.Namespace) -> int:
    from ase_gss.composition import formula_of, parse_formula

    numbers = parse_formula(options.formula)
    formula = formula_of(numbers, options.crystal)
    calculator = options.calculator or _default_calculator(options, numbers.tolist())
    no_end = options.trials is None and options.max_calls is None
    if no_end:
        options.max_calls = DEFAULT_CALLS
    from ase.units import GPa
    from tqdm import tqdm

    from ase_gss.calculators import CALCULATORS, takes_charge
    from ase_gss.report import ranking_table, summary, summary_text
    from ase_gss.search import GenerativeRSS

    search = GenerativeRSS(
        formula,
        calculator,
        score=options.score,
        regime=options.regime,
        adapt=options.adapt,
        forces=options.forces,
        coupling=options.coupling,
        pbc=options.crystal,
        units=options.formula_units or (1,),
        pressure=options.pressure * GPa,
        volume=options.volume,
        symmetry=options.symmetry,
        optimizer=options.optimizer,
        fmax=options.fmax,
        charge=options.charge,
        multiplicity=options.multiplicity,
        fragments=options.fragments,
        verify=options.verify,
        refine=options.refine,
        database=options.output or f"{options.formula if options.formula.isalnum() else formula}.db",
        seed=options.seed,
        workers=options.workers,
        executor=options.scheduler,
        batch=options.batch,
        call_limit=options.call_limit,
        trial_limit=options.trial_limit,
        failure_limit=options.failure_limit,
    )
    if options.multiplicity is None and search.multiplicity == 2 and takes_charge(calculator):
        print(f"{formula} with charge {options.charge} has an odd number of electrons: multiplicity 2 is used.")
    if options.crystal:
        units = "-".join(str(n) for n in sorted({min(search.system.units), max(search.system.units)}))
        many = "" if units == "1" else "s"
        kind = f"crystals of {units} formula unit{many}, {options.pressure:g} GPa"
    else:
        kind = f"molecule of {len(search.numbers)} atoms, charge {options.charge}, multiplicity {search.multiplicity}"
    print(f"Searching {formula} ({kind}) with {calculator}.")
    if not options.crystal and calculator in CALCULATORS and CALCULATORS[calculator].model:
        print(f"{calculator} is made for crystals: to search for those, add --crystal.")
    if search.plan.forces is not None and not search.plan.settles_at_once:
        print("The learned forces do not know these elements, this charge or spin: the search learns its own first.")
    if no_end:
        print(f"Neither --trials nor --max-calls was given: the search ends after {DEFAULT_CALLS} force calls.")
    if search.trials:
        print(f"{search.archive.name}: going on after {search.trials} trials and {search.force_calls} force calls.")
    if _spent(search, options):
        print("It has spent that already: give more than this to go on (--trials and --max-calls are totals).")
    by_calls, unit = options.max_calls is not None, "eV/atom" if options.crystal else "eV"
    total = options.max_calls if by_calls else options.trials
    shown = 0.0
    with tqdm(
        total=total, unit="call" if by_calls else "trial", initial=_reached(search, by_calls, total), mininterval=0.5
    ) as bar:

        def show() -> None:
            nonlocal shown
            if time.monotonic() - shown < 0.5:
                return
            shown = time.monotonic()
            bar.n = _reached(search, by_calls, total)
            bar.set_description_str("", refresh=False)
            energies = search.energies
            best = f"{min(energies):.4f} {unit}" if energies else "-"
            bar.set_postfix_str(
                f"{search.trials} trials, {len(energies)} minima, best {best}, {search.force_calls} calls",
                refresh=False,
            )
            bar.update(0)

        show()
        search.attach(show)
        with _ending_of(search) as ending, _told_on(bar):
            search.run(trials=options.trials, max_calls=options.max_calls)
        shown = 0.0
        show()
    print()
    print(ranking_table(search.minima, options.top))
    print()
    print(summary_text(summary(search.archive)))
    if search.minima:
        name = search.archive.name
        print(f"All trials are in {name}; only the minima: ase gui '{name}@minimum>0'")
    if search.dried_up:
        print("The search has ended early: generation after generation, all that was sampled looked known.")
    return ending.told()


@dataclass
class _Ending:
    """How a search, or a refinement, has ended: exit code, and what there is to say of it."""

    status: int = 0
    message: str = ""

    def told(self) -> int:
        """Print the message, last of all, and return the exit code."""
        if self.message:
            print(self.message, file=sys.stderr)
        return self.status


@contextmanager
def _ending_of(search: "GenerativeRSS") -> Iterator[_Ending]:
    """Let signals and what cannot go on end what is done in this block, and not the command."""
    from ase_gss.search import SearchError
    from ase_gss.workers import WorkersError

    ending, terminated = _Ending(), []
    try:
        with _until_sigterm(search) as terminated:
            yield ending
    except KeyboardInterrupt:
        ending.status, ending.message = 130, "Interrupted; the same command goes on from here."
    except (SearchError, WorkersError) as error:
        ending.status, ending.message = 1, f"ase-gss: {error}"
    if terminated:
        ending.status, ending.message = 143, "Stopped by SIGTERM; the same command goes on from here."


class _OnBar(logging.Handler):
    """What the search says it is at, before the bar: a lesson takes half a minute, in which nothing else moves."""

    def __init__(self, bar: "tqdm") -> None:
        super().__init__(logging.INFO)
        self._bar = bar

    def emit(self, record: logging.LogRecord) -> None:
        """Show it."""
        self._bar.set_description_str(record.getMessage())


@contextmanager
def _told_on(bar: "tqdm") -> Iterator[None]:
    """Let the bar show what the search says of its agenda."""
    log, handler = logging.getLogger("ase_gss.agenda"), _OnBar(bar)
    before, log.propagate = (log.level, log.propagate), False
    log.setLevel(logging.INFO)
    log.addHandler(handler)
    try:
        yield
    finally:
        log.removeHandler(handler)
        log.setLevel(before[0])
        log.propagate = before[1]


@contextmanager
def _until_sigterm(search: "GenerativeRSS") -> Iterator[list[int]]:
    """Let SIGTERM end the search: what is under way may be finished within `GRACE`, a second one ends it at once."""
    came: list[int] = []

    def at_once(number: int, frame: object) -> None:
        # What has been found is written now: nothing more may come in between.
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        if hasattr(signal, "SIGALRM"):
            signal.setitimer(signal.ITIMER_REAL, 0)
        raise KeyboardInterrupt

    def stop(number: int, frame: object) -> None:
        came.append(number)
        search.stop()
        signal.signal(signal.SIGTERM, at_once)
        if hasattr(signal, "SIGALRM"):
            signal.signal(signal.SIGALRM, at_once)
            signal.setitimer(signal.ITIMER_REAL, GRACE)

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield came
    finally:
        signal.signal(signal.SIGTERM, before)
        if came and hasattr(signal, "SIGALRM"):
            signal.setitimer(signal.ITIMER_REAL, 0)


def _rank(options: argparse.Namespace) -> int:
    from ase_gss.archive import Archive
    from ase_gss.report import minima_of, ranking_table

    print(ranking_table(minima_of(Archive(options.database, must_exist=True)).ranked(), options.top))
    return 0


def _summary(options: argparse.Namespace) -> int:
    from ase_gss.archive import Archive
    from ase_gss.report import summary, summary_text

    facts = summary(Archive(options.database, must_exist=True))
    print(json.dumps(facts, indent=2) if options.json else summary_text(facts))
    return 0


def _export(options: argparse.Namespace) -> int:
    from ase.io import write
    from ase.io.formats import UnknownFileTypeError

    from ase_gss.archive import Archive
    from ase_gss.database import is_url
    from ase_gss.report import minima_of

    minima = minima_of(Archive(options.database, must_exist=True)).ranked()
    there = os.path.exists(options.output) and not is_url(options.database)
    if there and os.path.samefile(options.output, options.database):
        raise InputError(f"{options.output} is the database itself: export to another file.")
    if not minima:
        raise InputError(f"{options.database} has no minimum to export.")
    try:
        write(options.output, minima)
    except UnknownFileTypeError as error:
        raise InputError(f"{options.output} has no ending of a format that ASE writes: try .extxyz.") from error
    except (OSError, ValueError) as error:
        raise InputError(f"{options.output} cannot be written: {error}.") from error
    print(f"{len(minima)} minima written to {options.output}")
    return 0


def _refine(options: argparse.Namespace) -> int:
    from ase_gss.report import minima_of, ranking_table, summary, summary_text
    from ase_gss.search import GenerativeRSS

    search = GenerativeRSS.resumed(
        options.database,
        options.calculator,
        options.verify,
        workers=options.workers,
        executor=options.scheduler,
        call_limit=options.call_limit,
    )
    with _ending_of(search) as ending:
        search.refine_minima(fmax=options.fmax, every_end=options.every_end)
    minima = minima_of(search.archive)
    print(ranking_table(minima.ranked(), options.top))
    print()
    print(summary_text(summary(search.archive, minima)))
    failures = search.refinement_failures
    if failures and all(failures):
        ending.status = ending.status or 1
    return ending.told()


def _names(arguments: Sequence[str]) -> list[str]:
    """The arguments; of one that is a file the words in it."""
    names: list[str] = []
    for argument in arguments:
        names += Path(argument).read_text().split() if os.path.isfile(argument) else [argument]
    return names


def _train(options: argparse.Namespace) -> int:
    from ase_gss.score.training import train

    for name in ("pytorch_lightning", "lightning_fabric"):  # what devices there are, and advertisements
        logging.getLogger(name).setLevel(logging.WARNING)
    losses = train(
        options.data,
        options.output,
        kind="crystals" if options.crystal else "forces" if options.forces else "molecules",
        hold_out=tuple(_names(options.hold_out)),
        steps=options.steps,
        batch_size=options.batch_size,
        learning_rate=options.learning_rate,
        n_features=options.features,
        n_blocks=options.blocks,
        jitter=options.jitter,
        start_from=options.start_from,
        device=options.device,
        validate_every=options.validate_every,
        compile_network=options.compile,
        seed=options.seed,
    )
    if not losses:
        print(f"{options.output}.checkpoints has all {options.steps} steps: there was nothing left to do.")
        return 0
    of_what = (
        "error of forces in eV/Å, by the largest of a structure"
        if options.forces
        else "loss (1: nothing learned), by noise level in Å"
    )
    print(f"{options.output} is written. Validation {of_what}:")
    for name, loss in losses.items():
        print(f"  {name.removeprefix('validation_').replace('_', ' '):>16} {loss:.4f}")
    return 0


_COMMANDS = {
    "search": _search,
    "rank": _rank,
    "summary": _summary,
    "export": _export,
    "refine": _refine,
    "train": _train,
}

if __name__ == "__main__":
    sys.exit(main())
