"""Calculators that strike, each in its own way, at some structures; for searches with workers."""

import ctypes
import hashlib
import os
import signal
import sys
import time
from pathlib import Path

import numpy as np
from ase.calculators.calculator import FileIOCalculator
from ase.calculators.emt import EMT
from ase.calculators.lj import LennardJones
from ase.io import read, write


class Faulty(EMT):
    """EMT that does something else in its third call for a structure that is far to the left."""

    def __init__(self, way):
        super().__init__()
        self.way, self.count = way, 0

    def calculate(self, atoms=None, properties=("energy",), system_changes=("positions",)):
        self.count += far_to_the_left(atoms)
        if self.count == 3 and far_to_the_left(atoms):
            self.way()
        super().calculate(atoms, properties, system_changes)


def far_to_the_left(atoms):
    """Where the tests put a trial that is to be struck."""
    return atoms.positions[:, 0].min() < -500


def sleep():
    time.sleep(1000)


def hang_with_the_lock():
    """Sleep in C without letting any other Python thread run."""
    ctypes.PyDLL(None).usleep(200_000_000)


def segmentation_fault():
    os.kill(os.getpid(), signal.SIGSEGV)


def raise_something():
    raise ValueError("no convergence")


def leave():
    sys.exit(5)


def sleeping():
    return Faulty(sleep)


def hanging():
    return Faulty(hang_with_the_lock)


def exiting():
    return Faulty(lambda: os._exit(3))


def exiting_quietly():
    return Faulty(lambda: os._exit(0))


def leaving():
    return Faulty(leave)


def crashing():
    return Faulty(segmentation_fault)


def raising():
    return Faulty(raise_something)


class _NotANumber(Faulty):
    def calculate(self, *args, **keywords):
        super().calculate(*args, **keywords)
        if self.count == 3 and far_to_the_left(self.atoms):
            self.results["energy"] = np.nan


def not_a_number():
    return _NotANumber(lambda: None)


class _Slow(EMT):
    def calculate(self, *args, **keywords):
        time.sleep(0.05)
        super().calculate(*args, **keywords)


def slow():
    return _Slow()


class Program(FileIOCalculator):
    """EMT as a program that reads and writes files, for a while each."""

    implemented_properties = ("energy", "forces")

    def __init__(self):
        super().__init__(command="sleep 0.02 && cp structure.traj answer.traj")

    def write_input(self, atoms, properties=None, system_changes=None):
        super().write_input(atoms, properties, system_changes)
        write(Path(self.directory) / "structure.traj", atoms)

    def read_results(self):
        atoms = read(Path(self.directory) / "answer.traj")
        atoms.calc = EMT()
        self.results = {"energy": atoms.get_potential_energy(), "forces": atoms.get_forces()}


def with_a_program():
    """Starts a program that outlives it, and waits for it."""
    return Faulty(lambda: os.system("sleep 98765"))


def wait_for_a_file():
    end = time.monotonic() + 30
    while not Path(os.environ["GO_ON"]).exists() and time.monotonic() < end:
        time.sleep(0.05)


def pausing():
    """Pauses until a file is there, for 30 s at most."""
    return Faulty(wait_for_a_file)


class Argon(LennardJones):
    """Bonded as ase_gss understands it, and quickly relaxed."""

    def __init__(self):
        super().__init__(sigma=1.9, epsilon=0.1, rc=30.0)


class Striking(Argon):
    """Strikes in each of `WAYS` at a share of all structures, the same ones in whatever process and order.

    Parameters
    ----------
    share : float
        Of the structures, for each way.
    salt : int
        Which ones.
    seen : list, optional
        Gets the positions of every structure.
    """

    WAYS = ("exception", "not a number", "hang", "exit")

    def __init__(self, share=0.0, salt=0, seen=None):
        super().__init__()
        self.share, self.salt, self.seen = share, salt, seen

    def way_at(self, positions):
        """The way in which it strikes at this structure, or None."""
        digest = hashlib.sha256(b"%d" % self.salt + (np.round(positions, 6) + 0.0).tobytes()).digest()
        fraction = int.from_bytes(digest[:8], "big") / 2**64
        return next((way for i, way in enumerate(self.WAYS, start=1) if fraction < i * self.share), None)

    def calculate(self, atoms=None, properties=None, system_changes=("positions",)):
        if self.seen is not None:
            self.seen.append(atoms.positions.copy())
        way = self.way_at(atoms.positions)
        if way == "exception":
            raise_something()
        elif way == "hang":
            while True:
                sleep()
        elif way == "exit":
            os._exit(3)
        super().calculate(atoms, properties, system_changes)
        if way == "not a number":
            self.results["forces"][0] = np.nan


class _Unhurried(Argon):
    def calculate(self, *args, **keywords):
        time.sleep(0.02)
        super().calculate(*args, **keywords)


def unhurried():
    """As `Argon`, but leaves the processor to others."""
    return _Unhurried()


class _Stuck(Argon):
    count = 0

    def calculate(self, *args, **keywords):
        self.count += 1
        if self.count == 60:
            Path(os.environ["STUCK"]).touch()
            sleep()
        super().calculate(*args, **keywords)


def stuck():
    """Hangs in its 60th call, and leaves a file to say so."""
    return _Stuck()


def only_for_the_driver():
    """Cannot be made in a worker."""
    import multiprocessing

    if multiprocessing.parent_process() is not None:
        raise RuntimeError("no licence here")
    return EMT()


def score(numbers, positions, sigma, structure):
    """Leads towards the origin."""
    return -np.asarray(positions) / (1 + np.asarray(sigma)[:, None] ** 2)
