"""Which search runs which trials: what a living search has reserved, no other one begins.

A search lives as long as its process exists, or, on another host, as long as it gives signs of life.
"""

import logging
import os
import socket
import time
from collections.abc import Container, Iterable
from typing import Any
from uuid import uuid4
from weakref import WeakSet

from ase_gss.database import trials_among

#: Seconds after its last sign of life at which a search on another host counts as dead.
LIFETIME = 600.0

_LOG = logging.getLogger(__name__)
_alive_here: "WeakSet[Reservations]" = WeakSet()


class Reservations:
    """What one archive has reserved, among what others have: rows of the table `reservations`.

    The methods that take a cursor are called within a transaction; without a database it is None.

    Attributes
    ----------
    owner : str
        Tells this archive from all others.
    reserved : list of range
        Numbers of the trials that it has reserved.
    """

    def __init__(self) -> None:
        self.owner = uuid4().hex
        self.reserved: list[range] = []
        self._told = False
        self._full = 0  # all trials below this number are finished
        self._host, self._process = _this_host(), _process(os.getpid())
        _alive_here.add(self)

    def extended(
        self, cursor: Any, finished: Container[int], size: int, last: int | None
    ) -> tuple[list[int], list[range]]:
        """Write what is reserved, what is unfinished of the next generation included.

        Parameters
        ----------
        cursor : cursor or None
            Of the database.
        finished : container of int
            Numbers of the trials that are known to be finished.
        size, last : int
            See :meth:`ase_gss.archive.Archive.reserve`.

        Returns
        -------
        list of int
            Numbers of the trials that have come to it.
        list of range
            What is `reserved` once the transaction has succeeded.
        """
        while self._full in finished:
            self._full += 1
        ours = [numbers for numbers in self.reserved if any(number not in finished for number in numbers)]
        others = [] if cursor is None else self.others(cursor)
        free = self._first_free(cursor, finished, size, last, ours + others)
        if free:
            ours.append(range(free[0], free[-1] + 1))
        elif not ours and not self._told and any(n < last and n not in finished for numbers in others for n in numbers):
            self._told = True
            _LOG.warning(
                "the trials that are missing are with another search on this database; if that is dead, the same call "
                "takes them over %d minutes after its last sign of life",
                LIFETIME // 60,
            )
        if cursor is not None:
            # Another may have taken over what was ours: then we seemed dead, and what it reserves counts.
            self.write(cursor, [numbers for numbers in ours if not any(_overlap(numbers, other) for other in others)])
        return free, ours

    def others(self, cursor: Any) -> list[range]:
        """Numbers of the trials that other living searches have reserved; what the dead had is freed."""
        cursor.execute("SELECT first, stop, owner, host, process, heartbeat FROM reservations")
        living = []
        for first, stop, owner, *signs in cursor.fetchall():
            if owner == self.owner:
                continue
            if self._lives(owner, *signs):
                living.append(range(first, stop))
            else:
                cursor.execute("DELETE FROM reservations WHERE first = ?", (first,))
        return living

    def write(self, cursor: Any, reserved: Iterable[range]) -> None:
        """Let these be what this archive has reserved."""
        cursor.execute("DELETE FROM reservations WHERE owner = ?", (self.owner,))
        for numbers in reserved:
            row = (numbers.start, numbers.stop, self.owner, self._host, self._process, time.time())
            cursor.execute("INSERT INTO reservations VALUES (?, ?, ?, ?, ?, ?)", row)

    def beat(self, cursor: Any) -> None:
        """Give a sign of life."""
        cursor.execute("UPDATE reservations SET heartbeat = ? WHERE owner = ?", (time.time(), self.owner))

    def _first_free(
        self, cursor: Any, finished: Container[int], size: int, last: int | None, taken: list[range]
    ) -> list[int]:
        """Numbers of the lowest generation with some that are neither finished nor taken."""
        start = self._full - self._full % size
        while last is None or start < last:
            stop = start + size if last is None else min(start + size, last)
            free = [n for n in range(start, stop) if n not in finished and not any(n in numbers for numbers in taken)]
            if free and cursor is not None:  # others may have finished some that are not known here yet
                elsewhere = trials_among(cursor, free)
                free = [number for number in free if number not in elsewhere]
            if free:
                # One range without those of others in between, who may have generations of another size.
                end = min([numbers.start for numbers in taken if numbers.start > free[0]], default=stop)
                return [number for number in free if number < end]
            start += size
        return []

    def _lives(self, owner: str, host: str, process: str, heartbeat: float) -> bool:
        if host != self._host:
            return time.time() - heartbeat < LIFETIME
        if process == self._process:
            return any(reservations.owner == owner for reservations in _alive_here)
        number, _, _ = process.partition(" ")
        return _process(int(number)) == process


def _overlap(a: range, b: range) -> bool:
    """Whether they have a number in common."""
    return a.start < b.stop and b.start < a.stop


def _this_host() -> str:
    """What tells one host, since its last start, from another, and containers with process numbers of their own."""
    parts = [socket.gethostname()]
    for read in (_boot, lambda: os.readlink("/proc/self/ns/pid")):
        try:
            parts.append(read())
        except OSError:  # not Linux
            parts.append("")
    return " ".join(parts)


def _boot() -> str:
    with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
        return file.read().strip()


def _process(number: int) -> str:
    """Number and start time of a process, since numbers are given again; empty where it is gone.

    Where the system does not tell the start time, the number alone.
    """
    try:
        with open(f"/proc/{number}/stat", encoding="utf-8", errors="replace") as file:
            fields = file.read().rpartition(")")[2].split()  # the name, in brackets, may have blanks
        return "" if fields[0] in "ZX" else f"{number} {fields[19]}"
    except OSError:
        if os.path.exists("/proc/self/stat") or not _exists(number):
            return ""
        return f"{number} "


def _exists(number: int) -> bool:
    """Whether there is a process of this number, without /proc."""
    if os.name == "nt":  # there the signal 0 would end it; signs of life have to do
        return True
    try:
        os.kill(number, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
