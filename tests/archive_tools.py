"""Trials without a search, for the tests of the archive; run as a program it is another search on the same file."""

import os
import sqlite3
import sys
import time
from types import SimpleNamespace

import numpy as np
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from ase.db import connect

from ase_gss.archive import Archive
from ase_gss.frames import Frames
from ase_gss.trial import Ended, Trial

SETTINGS = {"formula": "Ar4", "seed": 0, "fmax": 0.05}


def archive_at(path, **settings):
    archive = Archive(path)
    archive.open_for({**SETTINGS, **settings})
    return archive


def ended_trial(number, ended=Ended.MINIMUM, reason="", energy=-1.0, known=None, regime="", bonds=""):
    """A finished trial as a search would have it."""
    rng = np.random.default_rng(number)
    atoms = Atoms("Ar4", positions=rng.normal(size=(4, 3)))
    if energy is not None:
        atoms.calc = SinglePointCalculator(atoms, energy=energy - number, forces=rng.normal(size=(4, 3)))
    coupling, schedule = SimpleNamespace(name="hot"), SimpleNamespace(n_steps=30)
    return Trial(
        number,
        atoms,
        SimpleNamespace(coupling=coupling, schedule=schedule, score_calls=30),
        force_calls=number + 1,
        ended=ended,
        converged=ended is Ended.MINIMUM,
        known=known,
        reason=reason,
        regime=regime,
        bonds=bonds,
        start=rng.normal(size=(4, 3)).astype(np.float32) if ended is Ended.MINIMUM and known is None else None,
        frames=Frames.of([tuple(rng.normal(size=(2, 4, 3))) for _ in range(number + 1)]),
    )


def numbers_in(path):
    """Numbers of the trials in a file, with repetitions."""
    return sorted(row.trial for row in connect(path).select("trial>=0"))


def _say(words):
    print(words, flush=True)


def _work(path, trials):
    archive = archive_at(path)
    _say("ready")
    sys.stdin.readline()
    done = []
    while numbers := archive.reserve(4, int(trials)):
        for number in numbers:
            archive.append([ended_trial(number)])
            done.append(number)
        archive.refresh()
    archive.release()
    _say(" ".join(map(str, done)))


def _reserve(path, size):
    archive = archive_at(path)
    _say(" ".join(map(str, archive.reserve(int(size)))))
    sys.stdin.readline()


def _lock(path):
    connection = sqlite3.connect(path)
    connection.execute("BEGIN IMMEDIATE")
    _say("locked")
    sys.stdin.readline()
    time.sleep(1.0)
    connection.rollback()


def _half(path):
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA cache_size = 1")
    connection.execute("BEGIN IMMEDIATE")
    rows = (("half", "x" * 1000, 1) for _ in range(200))
    connection.executemany("INSERT INTO text_key_values VALUES (?, ?, ?)", rows)
    _say("half")
    sys.stdin.readline()


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    {"work": _work, "reserve": _reserve, "lock": _lock, "half": _half}[sys.argv[1]](*sys.argv[2:])
