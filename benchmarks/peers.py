"""Searches that people use, for comparison: basin hopping and minima hopping of ASE, and the genetic algorithm ase-ga.

All begin at the random starts of `ase_gss.starts`, have every force call counted, and begin again at the next start
where they are stuck: after a failure of the calculator, when minima hopping ends in pieces, or after `PATIENCE`
relaxations without a new minimum. Basin hopping and minima hopping need a first minimum in one piece; starts that give
none cost their calls. A relaxation has the 300 steps of a trial of this project's search, and everything relaxed is an
end, accepted or not. Settings, those that are not the packages' own defaults:

* `basin-hopping`: steps of at most 0.5 Å in each direction (default 0.1), 0.3 eV (0.0086). Ends in pieces are refused:
  they can be lower in energy than every molecule, and no step joins them again.
* `minima-hopping`: none; 1000 K and 0.5 eV at first, molecular dynamics until two minima of the energy were passed.
* `ase-ga`: as in its tutorial for clusters: population of 20, cut-and-splice pairing; in 3 of 10 mirror, rattle or
  permutation mutation. An end in pieces ranks below every molecule.

They relax with ASE's BFGS; with `-model` after the name with `ModelBFGS`, the optimizer of this project.

AGOX is not here: agox 3.11.1 installs beside the ASE of `constraints.txt` (3.29), but cannot be imported: it asks
`ase.constraints` for `IndexedConstraint`, which is not there.
"""

import contextlib
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms
from ase.calculators.calculator import Calculator, all_changes
from ase.calculators.singlepoint import SinglePointCalculator
from ase.optimize import BFGS
from ase.optimize.basin import BasinHopping
from ase.optimize.minimahopping import MinimaHopping
from ase.optimize.optimize import OptimizableAtoms

from ase_gss.bonds import is_connected
from ase_gss.errors import InputError
from ase_gss.forces import CalculatorFailure, CountedCalculator
from ase_gss.minima import MinimaList
from ase_gss.model_bfgs import ModelBFGS
from ase_gss.starts import minimum_separations, random_molecule

#: Relaxations in a row without a new minimum after which a peer begins at a new random start.
PATIENCE = 100
MAX_STEPS = 300


class _BudgetSpent(Exception):
    """The force calls are used up."""


class _Stuck(Exception):
    """To go on from here is useless."""


class _Budgeted(CountedCalculator):
    """Refuses the force call after the last one."""

    def __init__(self, calculator: Calculator, max_calls: int) -> None:
        super().__init__(calculator)
        self.max_calls = max_calls

    def calculate(self, atoms: Atoms | None = None, properties=None, system_changes=all_changes) -> None:
        if self.calls >= self.max_calls:
            raise _BudgetSpent
        super().calculate(atoms, properties, system_changes)


class Recorder:
    """What a peer has relaxed: each end in `ends`, with `calls` (so far) and `ended` in its `info`.

    Parameters
    ----------
    calculator : _Budgeted
        Counts the calls.
    fmax : float
        Largest force (eV/Å) of a minimum.
    """

    def __init__(self, calculator: _Budgeted, fmax: float) -> None:
        self.calculator, self.fmax = calculator, fmax
        self.ends: list[Atoms] = []
        self._known, self._idle = MinimaList(), 0

    def begin(self) -> None:
        """A new start: be patient again."""
        self._idle = 0

    def record(self, atoms: Atoms) -> str:
        """Take up a relaxed structure whose forces are known; say how it ended."""
        energy, forces = atoms.get_potential_energy(), atoms.get_forces()
        end = Atoms(atoms.numbers, positions=atoms.positions)
        end.calc = SinglePointCalculator(end, energy=energy, forces=forces)
        if not np.max(np.linalg.norm(forces, axis=1)) < self.fmax:
            ended = "not converged"
        else:
            ended = "minimum" if is_connected(end) else "fragments"
        end.info = {"calls": self.calculator.calls, "ended": ended}
        self.ends.append(end)
        is_new = ended == "minimum" and self._known.add(end, energy, len(self.ends), self.calculator.calls)[1]
        self._idle = 0 if is_new else self._idle + 1
        return ended

    def check_patience(self) -> None:
        """End what finds nothing new."""
        if self._idle >= PATIENCE:
            raise _Stuck


class _Ending:
    """An optimizer that ends after `MAX_STEPS`, for peers that would let it run for ever."""

    def run(self, fmax: float = 0.05, steps: int = MAX_STEPS) -> bool:
        return super().run(fmax=fmax, steps=steps)


class EndingBFGS(_Ending, BFGS):
    """ASE's BFGS."""


class EndingModelBFGS(_Ending, ModelBFGS):
    """`ModelBFGS`."""

    def __init__(self, atoms: Atoms | OptimizableAtoms, *args: Any, **keywords: Any) -> None:
        # Basin hopping hands over what is around the atoms; the model wants the atoms.
        super().__init__(atoms.atoms if isinstance(atoms, OptimizableAtoms) else atoms, *args, **keywords)


class _WholeBasinHopping(BasinHopping):
    """Refuses ends in pieces; a step after which the calculator fails is refused as well."""

    def __init__(self, atoms: Atoms, recorder: Recorder, **keywords: Any) -> None:
        self._recorder, self._has_begun = recorder, False
        super().__init__(atoms, trajectory=None, local_minima_trajectory=None, logfile=None, **keywords)

    def get_energy(self, positions: np.ndarray) -> float | None:
        if not np.any(self.positions != positions):
            return self.energy
        self._recorder.check_patience()
        try:
            energy = super().get_energy(positions)
            ended = self._recorder.record(self._atoms())
        except CalculatorFailure:
            if not self._has_begun:
                raise
            return None
        if ended != "minimum" and not self._has_begun:
            raise _Stuck
        self._has_begun = True
        return energy if ended == "minimum" else None


def _basin_hopping(start: Callable[[], Atoms], recorder: Recorder, optimizer: type, rng: np.random.Generator) -> None:
    np.random.seed(rng.integers(2**32))  # noqa: NPY002 - it knows no other source of randomness
    keywords = {"temperature": 0.3, "dr": 0.5, "optimizer": optimizer, "fmax": recorder.fmax, "optimizer_logfile": None}
    _WholeBasinHopping(start(), recorder, **keywords).run(10**9)


class _RecordedMinimaHopping(MinimaHopping):
    """Begins anew where it ends in pieces."""

    def __init__(self, atoms: Atoms, recorder: Recorder, **keywords: Any) -> None:
        self._recorder = recorder
        super().__init__(atoms, **keywords)

    def _optimize(self) -> None:
        self._recorder.check_patience()
        super()._optimize()
        if self._recorder.record(self._atoms) != "minimum":
            raise _Stuck


def _minima_hopping(start: Callable[[], Atoms], recorder: Recorder, optimizer: type, rng: np.random.Generator) -> None:
    with _temporary_folder():
        _RecordedMinimaHopping(start(), recorder, optimizer=optimizer, fmax=recorder.fmax, rng=rng)()


def _genetic(start: Callable[[], Atoms], recorder: Recorder, optimizer: type, rng: np.random.Generator) -> None:
    try:
        from ase_ga.cutandsplicepairing import CutAndSplicePairing
        from ase_ga.data import DataConnection, PrepareDB
        from ase_ga.offspring_creator import OperationSelector
        from ase_ga.population import Population
        from ase_ga.standard_comparators import InteratomicDistanceComparator
        from ase_ga.standardmutations import MirrorMutation, PermutationMutation, RattleMutation
    except ImportError as error:
        raise InputError("The genetic algorithm needs ase-ga: pip install ase-ga.") from error
    first = start()
    n, size = len(first), 20
    box = Atoms(cell=[20.0] * 3)
    separations = minimum_separations(first.numbers)
    closest = {
        (int(a), int(b)): float(separations[i, j])
        for i, a in enumerate(first.numbers)
        for j, b in enumerate(first.numbers)
    }
    random = np.random.RandomState(rng.integers(2**32))
    mutations = [
        MirrorMutation(closest, n, rng=random),
        RattleMutation(closest, n, rng=random),
        PermutationMutation(n, rng=random),
    ]
    if len(set(first.numbers)) == 1:
        mutations.pop()  # there is nothing to permute
    mutation = OperationSelector([1.0] * len(mutations), mutations, rng=random)
    pairing = CutAndSplicePairing(box, n, closest, rng=random)
    comparator = InteratomicDistanceComparator(n_top=n, pair_cor_cum_diff=0.015, pair_cor_max=0.7, dE=0.02, mic=False)

    def relaxed(atoms: Atoms) -> Atoms | None:
        recorder.check_patience()
        free = Atoms(atoms.numbers, positions=atoms.positions)
        free.calc = recorder.calculator
        try:
            with optimizer(free, logfile=None) as dynamics:
                dynamics.run(fmax=recorder.fmax)
            ended = recorder.record(free)
        except CalculatorFailure:
            return None
        energy = free.get_potential_energy()
        free.cell = box.cell
        free.center()
        free.calc = SinglePointCalculator(free, energy=energy)
        score = -energy if ended == "minimum" else -energy - 1000.0
        free.info = {"key_value_pairs": {"raw_score": score}, "data": {}}
        return free

    with _temporary_folder():
        PrepareDB("ga.db", simulation_cell=box, stoichiometry=list(map(int, first.numbers)))
        database = DataConnection("ga.db")
        database.c.use_lock_file = False
        individuals = 0
        while individuals < size:
            individual = relaxed(first if individuals == 0 else start())
            first = start() if individual is None else first
            if individual is not None:
                individual.info["key_value_pairs"].update(generation=0, extinct=0)
                database.add_relaxed_candidate(individual)
                individuals += 1
        population = Population(database, size, comparator=comparator, rng=random)
        while True:
            parents = population.get_two_candidates()
            if parents is None:
                raise _Stuck
            child, description = pairing.get_new_individual(parents)
            if child is None:
                continue
            database.add_unrelaxed_candidate(child, description=description)
            if random.rand() < 0.3:
                mutant, description = mutation.get_new_individual([child])
                if mutant is not None:
                    child = mutant
                    database.add_unrelaxed_step(child, description)
            individual = relaxed(child)
            if individual is None:
                database.kill_candidate(child.info["confid"])
                continue
            individual.info.update(confid=child.info["confid"], data=child.info["data"])
            individual.info["key_value_pairs"]["extinct"] = 0
            database.add_relaxed_step(individual)
            population.update()


@contextlib.contextmanager
def _temporary_folder() -> Iterator[None]:
    """Work where a peer may write its files: some have fixed names."""
    here = Path.cwd()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        try:
            yield
        finally:
            os.chdir(here)


_ALGORITHMS = {"basin-hopping": _basin_hopping, "minima-hopping": _minima_hopping, "ase-ga": _genetic}
PEERS: dict[str, tuple[Callable, type]] = {
    name + suffix: (algorithm, optimizer)
    for name, algorithm in _ALGORITHMS.items()
    for suffix, optimizer in (("", EndingBFGS), ("-model", EndingModelBFGS))
}


def run_peer(
    name: str, numbers: np.ndarray, calculator: Calculator, seed: int, max_calls: int, fmax: float = 0.05
) -> tuple[list[Atoms], int]:
    """Search with a peer until the force calls are spent.

    Parameters
    ----------
    name : str
        One of `PEERS`.
    numbers : ndarray, shape (N,)
        Atomic numbers.
    calculator : ase calculator
        The physical one.
    seed : int
        Start n is that of trial n of a random search with this seed.
    max_calls : int
        Force calls.
    fmax : float
        eV/Å.

    Returns
    -------
    ends, calls
        The ends, as in `Recorder`, and the force calls spent.
    """
    algorithm, optimizer = PEERS[name]
    counted = _Budgeted(calculator, max_calls)
    recorder, begun = Recorder(counted, fmax), 0

    def start() -> Atoms:
        nonlocal begun
        rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(begun,)))
        atoms = random_molecule(numbers, rng)
        atoms.calc = counted
        begun += 1
        return atoms

    with contextlib.suppress(_BudgetSpent):
        while True:
            recorder.begin()
            # A stream of its own beside those of the starts.
            rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(begun, 1)))
            with contextlib.suppress(_Stuck, CalculatorFailure):
                algorithm(start, recorder, optimizer, rng)
    return recorder.ends, counted.calls
