"""Calculators that strike, each in its own way, at some structures; for searches with workers."""

import ctypes
import os
import signal
import sys
import time

import numpy as np
from ase.calculators.emt import EMT


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


def with_a_program():
    """Starts a program that outlives it, and waits for it."""
    return Faulty(lambda: os.system("sleep 98765"))


def only_for_the_driver():
    """Cannot be made in a worker."""
    import multiprocessing

    if multiprocessing.parent_process() is not None:
        raise RuntimeError("no licence here")
    return EMT()


def score(numbers, positions, sigma, structure):
    """Leads towards the origin."""
    return -np.asarray(positions) / (1 + np.asarray(sigma)[:, None] ** 2)
