"""Batches: what goes through the calculator together ends as it does one by one, and is counted so."""

import os
import signal
import sys
import threading
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from importlib.metadata import version

import faulty
import numpy as np
import pytest
from ase import Atoms
from ase.calculators.calculator import CalculationFailed, PropertyNotImplementedError
from ase.calculators.lj import LennardJones
from ase.optimize import BFGS

from ase_gss.batch import together
from ase_gss.cli import main
from ase_gss.errors import InputError
from ase_gss.forces import CalculatorFailure, CountedCalculator, energy_and_forces
from ase_gss.jobs import Job
from ase_gss.relax import hand_off
from ase_gss.schedule import ConstantNoise
from ase_gss.search import GenerativeRSS
from ase_gss.trial import Ended
from ase_gss.workers import WorkerPool


class Argon(faulty.Argon):
    """Takes batches, whose sizes it notes; fails at structures with an atom beyond `edge` Å on the left."""

    edge = -500.0

    def __init__(self):
        super().__init__()
        self.sizes, self.in_batch = [], False

    def calculate(self, atoms=None, properties=None, system_changes=("positions",)):
        if not self.in_batch:
            self.sizes.append(1)
        super().calculate(atoms, properties, system_changes)

    def calculate_batch(self, structures, stress):
        self.sizes.append(len(structures))
        self.in_batch = True
        try:
            return [self.result(atoms, stress) for atoms in structures]
        finally:
            self.in_batch = False

    def result(self, atoms, stress):
        if atoms.positions[:, 0].min() < self.edge:
            raise ValueError("no convergence")
        self.calculate(atoms.copy(), ["energy", "forces", *(["stress"] if stress else [])])
        return {name: self.results[name] for name in ("energy", "forces", "stress") if name in self.results}


class Exiting(Argon):
    """Ends its process at such a structure."""

    def result(self, atoms, stress):
        if atoms.positions[:, 0].min() < self.edge:
            os._exit(3)
        return super().result(atoms, stress)

    def calculate(self, atoms=None, properties=None, system_changes=("positions",)):
        if atoms.positions[:, 0].min() < self.edge:
            os._exit(3)
        super().calculate(atoms, properties, system_changes)


class Sleeping(Exiting):
    """Sleeps there instead."""

    def calculate_batch(self, structures, stress):
        if any(atoms.positions[:, 0].min() < self.edge for atoms in structures):
            time.sleep(1000)
        return super().calculate_batch(structures, stress)


def clusters(number, n_atoms=4):
    """Random clusters of argon, none with atoms on one another."""
    rng, found = np.random.default_rng(0), []
    while len(found) < number:
        atoms = Atoms(f"Ar{n_atoms}", rng.uniform(-2.5, 2.5, (n_atoms, 3)))
        distances = atoms.get_all_distances()[np.triu_indices(n_atoms, 1)]
        if distances.min() > 1.3:
            found.append(atoms)
    return found


def search(calculator=Argon, **keywords):
    keywords = {"coupling": "rss", "score": faulty.score, "recognise": False} | keywords
    return GenerativeRSS("Ar4", calculator, **keywords)


def records(done):
    return {record.number: record for record in done.archive.records}


def assert_same_ends(done, other):
    """The same trials, force calls and ends; energies to 1e-9 eV."""
    assert records(done).keys() == records(other).keys()
    for number, record in records(done).items():
        same = records(other)[number]
        assert (record.ended, record.reason, record.force_calls) == (same.ended, same.reason, same.force_calls)
        if record.energy is not None:
            assert record.energy == pytest.approx(same.energy, abs=1e-9)
    assert done.energies == pytest.approx(other.energies, abs=1e-9)
    assert done.force_calls == other.force_calls


# Tasks together


def test_relaxations_together_end_as_alone_and_are_counted_so():
    alone, batched, calls = clusters(7), clusters(7), {}
    calculator = Argon()

    def relax(place, counted):
        batched[place].calc = counted
        assert hand_off(batched[place], optimizer=BFGS, fmax=0.01).converged
        calls[place] = counted.calls

    together({place: partial(relax, place) for place in range(7)}, CountedCalculator(calculator), 3)
    for place, atoms in enumerate(alone):
        atoms.calc = counted = CountedCalculator(Argon())
        assert hand_off(atoms, optimizer=BFGS, fmax=0.01).converged
        np.testing.assert_allclose(batched[place].positions, atoms.positions, atol=1e-10)
        assert calls[place] == counted.calls
    assert sum(calculator.sizes) == sum(calls.values())
    # A finished one makes room: full batches, until nobody waits for room.
    assert max(calculator.sizes) == 3
    not_full = next(i for i, size in enumerate(calculator.sizes) if size < 3)
    last_one_began = max(calls.values())
    assert len(calculator.sizes) - not_full <= last_one_began
    assert calculator.sizes == sorted(calculator.sizes, reverse=True)


def test_a_failure_is_for_the_task_that_it_belongs_to():
    starts, failures, energies = clusters(4), {}, {}
    starts[2].positions[:, 0] -= 1000

    def once(place, counted):
        try:
            energies[place], _ = energy_and_forces(starts[place], starts[place].positions, counted)
        except CalculatorFailure as failure:
            failures[place] = str(failure)
        assert counted.calls == 1

    calculator = Argon()
    together({place: partial(once, place) for place in range(4)}, CountedCalculator(calculator), 4)
    assert failures == {2: "ValueError: no convergence"}
    assert list(energies) == [0, 1, 3]
    assert calculator.sizes == [4, 1, 1, 1, 1]


@pytest.mark.parametrize(
    ("results", "words"),
    [
        ([], "ValueError: calculate_batch gave 0 results for 1 structures"),
        ([{"energy": np.nan, "forces": np.zeros((4, 3))}], "the calculator returned an energy that is not finite"),
        ([{"energy": 0.0}], "PropertyNotImplementedError: forces not present in this calculation"),
    ],
)
def test_results_that_are_none_are_failures(results, words):
    class Strange(Argon):
        def calculate_batch(self, structures, stress):
            return results

    (atoms,), failures = clusters(1), []

    def once(counted):
        with pytest.raises(CalculatorFailure) as caught:
            energy_and_forces(atoms, atoms.positions, counted)
        failures.append(str(caught.value))

    together({0: once}, CountedCalculator(Strange()), 2)
    assert failures == [words]


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, MemoryError])
@pytest.mark.parametrize("where", ["calculator", "task"])
def test_what_interrupts_ends_all_threads(where, error):
    class Interrupted(Argon):
        def calculate_batch(self, structures, stress):
            if where == "calculator" and len(self.sizes) == 3 and error is not MemoryError:
                raise error
            return super().calculate_batch(structures, stress)

    cleaned, before = [], threading.active_count()

    def endless(place, counted):
        atoms = clusters(1)[0]
        try:
            while True:
                atoms.positions[0, 0] += 0.01
                energy_and_forces(atoms, atoms.positions, counted)
                if counted.calls == 3 and place == 1 and (where == "task" or error is MemoryError):
                    raise error
        finally:
            cleaned.append(place)

    began = time.monotonic()
    with pytest.raises(error):
        together({place: partial(endless, place) for place in range(5)}, CountedCalculator(Interrupted()), 3)
    assert time.monotonic() - began < 5
    assert sorted(cleaned) == [0, 1, 2]
    assert threading.active_count() == before


def test_ctrl_c_while_a_task_computes_ends_all_threads():
    calls = []

    def endless(place, counted):
        atoms = clusters(1)[0]
        while True:
            atoms.positions[0, 0] += 0.01
            energy_and_forces(atoms, atoms.positions, counted)
            calls.append(place)
            if len(calls) == 5:
                os.kill(os.getpid(), signal.SIGINT)
                time.sleep(0.3)

    before = threading.active_count()
    with pytest.raises(KeyboardInterrupt):
        together({place: partial(endless, place) for place in range(3)}, CountedCalculator(Argon()), 3)
    assert threading.active_count() == before
    assert len(calls) == 5


def test_stress_is_asked_for_where_it_is_needed():
    asked = []

    class Asked(Argon):
        def calculate_batch(self, structures, stress):
            asked.append(stress)
            return super().calculate_batch(structures, stress)

    crystal = Atoms("Ar4", [[0, 0, 0], [0, 2, 2], [2, 0, 2], [2, 2, 0]], cell=[4, 4, 4], pbc=True)
    crystal.rattle(0.1, seed=0)

    class Short(Asked):
        def __init__(self):
            super().__init__()
            self.parameters["rc"] = 8.0

    def relax(pressure, counted):
        atoms = crystal.copy()
        atoms.calc = counted
        assert hand_off(atoms, pressure=pressure, max_steps=3).energy is not None

    together({0: partial(relax, 0.0), 1: partial(relax, 0.0)}, CountedCalculator(Short()), 2)
    assert asked
    assert all(asked)
    asked.clear()
    together({0: partial(relax, None)}, CountedCalculator(Short()), 2)
    assert asked
    assert not any(asked)


# Searches


@pytest.fixture(scope="module")
def one_by_one():
    done = search()
    done.run(trials=20)
    return done


@pytest.mark.parametrize("batch", [4, 100])
def test_a_search_in_batches_finds_the_same(one_by_one, batch):
    calculator, filters = Argon(), list(warnings.filters)
    done = search(calculator, batch=batch)
    done.run(trials=20)
    assert_same_ends(done, one_by_one)
    assert max(calculator.sizes) == min(batch, 16)
    assert sum(calculator.sizes) == done.force_calls
    assert np.mean(calculator.sizes) > min(batch, 16) / 3
    assert warnings.filters == filters
    assert not [thread.name for thread in threading.enumerate() if "task" in thread.name]


def test_forces_while_sampling_go_in_batches():
    keywords = {"coupling": "force", "schedule": ConstantNoise(n_steps=4)}
    calculator = Argon()
    batched, alone = search(calculator, batch=8, **keywords), search(**keywords)
    batched.run(trials=8)
    alone.run(trials=8)
    assert_same_ends(batched, alone)
    assert calculator.sizes[:4] == [8] * 4


def test_workers_with_batches_find_the_same(one_by_one):
    done = search(workers=2, batch=4)
    done.run(trials=20)
    assert_same_ends(done, one_by_one)


def test_executors_get_batches(one_by_one):
    sizes = []

    class Watched(ThreadPoolExecutor):
        def submit(self, function, *arguments):
            sizes.append(len(arguments[-1]))
            return super().submit(function, *arguments)

    with Watched(2) as executor:
        done = search(executor=executor, workers=2, batch=5)
        done.run(trials=20)
    assert_same_ends(done, one_by_one)
    assert len(sizes) == 2  # all that wait of a generation go together, five at a time: 16 and 4


def starts(struck):
    """Sixteen clusters; those struck start far to the left."""
    found = clusters(16)
    for number in struck:
        found[number].positions[:, 0] -= 1000
    return found


@pytest.mark.parametrize(
    ("calculator", "reason"),
    [
        (Argon, "calculator: ValueError: no convergence"),
        (Exiting, "its worker died with exit code 3"),
        (Sleeping, "a force call took longer than 1 s"),
    ],
)
def test_who_strikes_in_a_batch_is_the_only_one_to_fail(calculator, reason):
    keywords = {"starts": starts([5]), "sigma_start": 1e-3}
    done = search(calculator, batch=8, workers=2, call_limit=1.0, **keywords)
    done.run(trials=16)
    struck = records(done).pop(5)
    if calculator is Sleeping:
        assert struck.reason in (reason, "its worker died with exit code 3")  # alone it exits
    else:
        assert struck.reason == reason
    assert struck.ended is Ended.CALCULATOR
    peaceful = search(starts=starts([]), sigma_start=1e-3)
    peaceful.run(trials=16)
    for number, record in records(peaceful).items():
        if number != 5:
            other = records(done)[number]
            assert other.ended is record.ended
            assert other.energy == pytest.approx(record.energy, abs=1e-9)
            assert other.force_calls >= record.force_calls  # those in its batch began anew


def test_the_flight_recorder_knows_a_batch_but_no_striker():
    plan = search(Exiting, starts=starts([1]), sigma_start=1e-3, batch=4).plan
    job = Job("relax", tuple(plan.begin(number) for number in range(3)))
    with WorkerPool(plan, 1) as pool:
        lost = pool.submit(job).exception(timeout=100)
    assert lost.number is None
    assert lost.calls == {0: 1, 1: 1, 2: 1}


def test_a_time_limit_is_for_each_trial_of_a_batch():
    plan = search(Sleeping, starts=starts([1]), sigma_start=1e-3, batch=4).plan
    job = Job("relax", tuple(plan.begin(number) for number in range(3)))
    with WorkerPool(plan, 1, trial_limit=0.5) as pool:
        lost = pool.submit(job).exception(timeout=100)
    assert (lost.reason, lost.number) == ("the relaxation of 3 trials took longer than 1.5 s", None)


def test_a_budget_keeps_batches_small(one_by_one):
    calculator = Argon()
    done = search(calculator, batch=16)
    done.run(max_calls=60)
    largest = max(record.force_calls for record in one_by_one.archive.records)
    assert 60 <= done.force_calls < 60 + 3 * largest
    assert max(calculator.sizes) < 16


def test_ctrl_c_in_a_batch_keeps_what_is_finished(tmp_path, one_by_one):
    class Interrupting(Argon):
        def calculate_batch(self, structures, stress):
            if sum(self.sizes) > one_by_one.force_calls // 2:
                raise KeyboardInterrupt
            return super().calculate_batch(structures, stress)

    Interrupting.__name__ = "Argon"  # the name of the calculator is kept in the database
    interrupted = search(Interrupting, batch=3, database=tmp_path / "x.db")
    with pytest.raises(KeyboardInterrupt):
        interrupted.run(trials=20)
    assert not [thread.name for thread in threading.enumerate() if "task" in thread.name]
    assert 0 < interrupted.trials < 20  # of the one job of the first sixteen, those that had ended
    again = search(batch=4, database=tmp_path / "x.db")  # another size of batches is no other search
    again.run(trials=20)
    assert_same_ends(again, one_by_one)


@pytest.mark.parametrize(
    ("calculator", "batch", "words"),
    [
        ("emt", 4, r"The calculator 'emt' takes no batches: leave out batch \(--batch\), or take chgnet or another"),
        (Argon, 0, "A batch is a whole number of structures, at least one, not 0"),
    ],
)
def test_refusals_are_one_sentence(calculator, batch, words):
    with pytest.raises(InputError, match=words):
        GenerativeRSS("Cu4", calculator, coupling="rss", batch=batch)


def test_command_line(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    common = ["search", "Ar4", "--coupling", "rss", "--trials", "4", "--batch", "3", "-c"]
    assert main([*common, "lj"]) == 2
    assert "takes no batches: leave out batch (--batch)" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
    assert main([*common, "test_batch:Argon"]) == 0
    assert "rank" in capsys.readouterr().out


# CHGNet, and torch-sim


def test_chgnet_in_batches_is_chgnet():
    pytest.importorskip("chgnet")
    from test_calculators import rutile

    from ase_gss.calculators import calculator_factory

    calculator, structures = calculator_factory("chgnet")(), []
    for seed in range(4):
        atoms = rutile()
        atoms.rattle(0.1, seed=seed)
        structures.append(atoms * (1 + seed % 2, 1, 1))
    molecule = Atoms("CO2", [[0, 0, 0], [0, 0, 1.2], [0, 0, -1.2]])
    together = calculator.calculate_batch([*structures, molecule], stress=False)
    for atoms, results in zip([*structures, molecule], together, strict=True):
        (alone,) = calculator.calculate_batch([atoms], stress=False)
        assert results["energy"] == pytest.approx(alone["energy"], abs=1e-5 * len(atoms))
        np.testing.assert_allclose(results["forces"], alone["forces"], atol=1e-4)
        assert ("stress" in results) == bool(atoms.cell.rank)
        if atoms.cell.rank:
            np.testing.assert_allclose(results["stress"], alone["stress"], atol=1e-5)
    with pytest.raises(PropertyNotImplementedError, match="stress needs a cell"):
        calculator.calculate_batch([molecule], stress=True)


def torch_sim_argon(**keywords):
    """Lennard-Jones argon from torch-sim, in double precision.

    In torch-sim 0.3 its forces and stress are twice the derivatives of its energy, which is put right here, and its
    periodic images are right only where the cell is symmetric.
    """
    pytest.importorskip("torch_sim", reason="torch-sim is not installed: pip install 'ase-gss[torch-sim]'")
    import torch
    from torch_sim.models.lennard_jones import LennardJonesModel

    from ase_gss.torch_sim_calculator import TorchSimCalculator

    class Argon(LennardJonesModel):
        def forward(self, state):
            output = super().forward(state)
            factor = 0.5 if version("torch-sim-atomistic").startswith("0.3.") else 1.0
            return {name: value * (1.0 if name == "energy" else factor) for name, value in output.items()}

    keywords = {"compute_stress": True, "cutoff": 12.0, "dtype": torch.float64} | keywords
    return TorchSimCalculator(Argon(sigma=1.9, epsilon=0.1, **keywords))


def ase_argon():
    return LennardJones(sigma=1.9, epsilon=0.1, rc=12.0)


@pytest.mark.parametrize("periodic", [True, False])
def test_torch_sim_gives_what_ase_gives(periodic):
    calculator, structures = torch_sim_argon(), clusters(5)
    structures[1] = structures[1][:3]
    for atoms in structures if periodic else ():
        atoms.set_cell([6.1, 7, 8.1])
        atoms.pbc = True
    together = calculator.calculate_batch(structures, stress=periodic)
    for atoms, results in zip(structures, together, strict=True):
        atoms.calc = ase_argon()
        # ASE's potential is shifted to zero at its cutoff, that of torch-sim is not.
        assert results["energy"] == pytest.approx(atoms.get_potential_energy(), abs=1e-3 * len(atoms))
        np.testing.assert_allclose(results["forces"], atoms.get_forces(), rtol=1e-6, atol=1e-9)
        assert ("stress" in results) == periodic
        if periodic:
            np.testing.assert_allclose(results["stress"], atoms.get_stress(), rtol=1e-6, atol=1e-9)
        alone = atoms.copy()
        alone.calc = calculator
        assert alone.get_potential_energy() == pytest.approx(results["energy"], abs=1e-9)


def test_a_search_with_torch_sim_finds_what_ase_finds():
    batched, alone = search(torch_sim_argon, batch=8), search(ase_argon)
    batched.run(trials=8)
    alone.run(trials=8)
    assert batched.energies == pytest.approx(alone.energies, abs=1e-3)
    assert [each.ended for each in records(batched).values()] == [each.ended for each in records(alone).values()]


def test_torch_sim_refuses_what_it_cannot_do():
    with pytest.raises(InputError, match="computes no forces: make it with compute_forces=True"):
        torch_sim_argon(compute_forces=False)
    calculator, (atoms,) = torch_sim_argon(compute_stress=False), clusters(1)
    assert "stress" not in calculator.implemented_properties
    with pytest.raises(PropertyNotImplementedError, match="no stress"):
        calculator.calculate_batch([atoms], stress=True)
    atoms.set_cell([9, 9, 9])
    atoms.pbc = [True, True, False]
    with pytest.raises(CalculationFailed, match="periodic in all directions or in none"):
        calculator.calculate_batch([atoms], stress=False)


def test_without_torch_sim_its_extra_is_named(monkeypatch):
    from ase_gss.torch_sim_calculator import TorchSimCalculator

    monkeypatch.setitem(sys.modules, "torch_sim.io", None)
    with pytest.raises(InputError, match=r"pip install 'ase-gss\[torch-sim\]'"):
        TorchSimCalculator(None)
