"""Many structures in one call: tasks that each ask for forces now and then, and whose structures go through together.

A task is the relaxation of a trial, or one of its force calls while it is sampled: ordinary code, any ASE optimizer
included, which knows nothing of the others. Each has a thread of its own that rests at its force call; only one of
them runs at any time, so that none of that code has to be safe beside another thread, and nothing depends on timing.
"""

import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any, Protocol

from ase import Atoms
from ase.calculators.calculator import PropertyNotImplementedError

from ase_gss.errors import InputError
from ase_gss.forces import CountedCalculator

#: What a batch may be asked for.
_PROPERTIES = "energy", "forces", "stress"

Task = Callable[[CountedCalculator], None]


class BatchCalculator(Protocol):
    """What an ASE calculator needs besides, so that many structures go through it in one call."""

    def calculate_batch(self, structures: Sequence[Atoms], stress: bool) -> list[dict[str, Any]]:
        """ASE's results of each structure.

        Parameters
        ----------
        structures : sequence of Atoms
            They are not to be changed or kept.
        stress : bool
            Whether the stress is needed, too.

        Returns
        -------
        list of dict
            In the same order: "energy" (eV), "forces" (N, 3) in eV/Å, and where asked for "stress", (6,) in eV/Å3 and
            Voigt order.

        Raises
        ------
        Exception
            Where it fails for any of them. It is then asked for each alone.
        """


def check_batches(calculator: CountedCalculator, name: str) -> None:
    """Raise `InputError` for a calculator that takes no batches."""
    if not callable(getattr(calculator.calculator, "calculate_batch", None)):
        raise InputError(
            f"The calculator {name!r} takes no batches: leave out batch (--batch), or take chgnet or another one with "
            "a method calculate_batch."
        )


def together(tasks: Mapping[int, Task], calculator: CountedCalculator, limit: int) -> None:
    """Do all tasks; the structures that they ask forces for go through the calculator in batches.

    At most `limit` tasks are under way; the next in order takes the place of one that has ended. A batch is made when
    each of them waits for it. So the batches are full while there is work, and what is in them depends on the tasks
    alone. Where a batch fails, each of its structures is tried alone: a failure is for the task that it belongs to.

    Parameters
    ----------
    tasks : mapping of int to callable
        In their order, by the place in the job of the trial that each belongs to. Each is called with a
        `CountedCalculator` of its own, which it may use until it ends.
    calculator : CountedCalculator
        Takes the batches. It counts nothing.
    limit : int
        Structures in a batch.

    Raises
    ------
    BaseException
        What a task raises, or what interrupts this thread. All others are then ended at their force calls, and their
        threads are gone.
    """
    waiting = [_Strand(place, task, calculator) for place, task in tasks.items()]
    under_way: list[_Strand] = []
    try:
        while waiting or under_way:
            while waiting and len(under_way) < limit:
                strand = waiting.pop(0)
                under_way.append(strand)
                strand.go_on()
                under_way = [each for each in under_way if each.asks]
            if under_way:
                _answer_all(under_way, calculator)
            for strand in under_way:
                strand.go_on()
            under_way = [each for each in under_way if each.asks]
    finally:
        for strand in under_way:
            strand.abort()
        for strand in under_way:
            strand.join()


class _Aborted(BaseException):
    """The tasks end here: one of them has raised something, or Ctrl-C came."""


class _Strand:
    """A task, the thread that it runs in, and what it asks for.

    Attributes
    ----------
    place : int
        In the job, of the trial.
    asks : tuple of Atoms and bool, or None
        The structure that it rests at, and whether it needs the stress; None before its start and after its end.
    answer : dict or Exception
        What it is given for that.
    """

    def __init__(self, place: int, task: Task, calculator: CountedCalculator) -> None:
        self.place, self._task, self._calculator = place, task, calculator
        self.asks: tuple[Atoms, bool] | None = None
        self.answer: dict[str, Any] | Exception = {}
        self._raised: BaseException | None = None
        self._aborted = False
        # One of the two threads waits for the other at any time.
        self._mine, self._theirs = threading.Semaphore(0), threading.Semaphore(0)
        self._thread: threading.Thread | None = None

    def go_on(self) -> None:
        """Let the task run up to its next force call, or to its end; raises what it raises."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name=f"ase-gss task {self.place}")
            self._thread.start()
        else:
            self._mine.release()
        self._theirs.acquire()
        if self.asks is None:
            self._thread.join()
            if self._raised is not None:
                raise self._raised

    def abort(self) -> None:
        """End the task at its force call, or at its next one."""
        self._aborted = True
        self._mine.release()

    def join(self) -> None:
        """Wait until its thread is gone."""
        with suppress(AttributeError, RuntimeError):  # Ctrl-C came before it was made, or started
            self._thread.join()

    def force_call(self, atoms: Atoms, stress: bool) -> dict[str, Any]:
        """Called by the task: rest until the answer is there."""
        if not self._aborted:
            self.asks = atoms, stress
            self._theirs.release()
            self._mine.acquire()
            self.asks = None
        if self._aborted:
            raise _Aborted
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer

    def _run(self) -> None:
        try:
            self._task(_StrandCalculator(self._calculator, self))
        except _Aborted:
            pass
        except BaseException as error:  # to be raised in the thread that waits
            self._raised = error
        self._theirs.release()


class _StrandCalculator(CountedCalculator):
    """A counted calculator whose answers come from a batch."""

    def __init__(self, calculator: CountedCalculator, strand: _Strand) -> None:
        super().__init__(calculator.calculator)
        # A free energy, for one, is only what a batch may bring besides.
        self.implemented_properties = [name for name in _PROPERTIES if name in self.implemented_properties]
        self._strand = strand

    def _answer(self, wanted: list[str]) -> dict[str, Any]:
        results = self._strand.force_call(self.atoms, "stress" in wanted)
        for name in wanted:
            if results.get(name) is None:
                raise PropertyNotImplementedError(f"{name} not present in this calculation")
        return results


def _answer_all(strands: Sequence[_Strand], calculator: CountedCalculator, again: bool = False) -> None:
    """Give each its results in one call; where this fails, and there are several, one by one."""
    structures, stresses = zip(*(strand.asks for strand in strands), strict=True)
    try:
        results = calculator.calculate_batch(structures, any(stresses), [each.place for each in strands], again)
        if len(results) != len(structures):
            raise ValueError(f"calculate_batch gave {len(results)} results for {len(structures)} structures")
    except Exception as error:  # whatever a foreign code raises ends one calculation, not the search
        if len(strands) > 1:
            for strand in strands:
                _answer_all([strand], calculator, again=True)
        else:
            strands[0].answer = error
        return
    for strand, answer in zip(strands, results, strict=True):
        strand.answer = answer
