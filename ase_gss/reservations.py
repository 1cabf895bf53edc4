"""Which search runs which trials: what a living search has reserved, no other one begins.

A search lives as long as its process exists, or, on another host, as long as it gives signs of life.
"""

import os
import socket
import time
from collections.abc import Iterable
from typing import Any
from uuid import uuid4
from weakref import WeakSet

#: Seconds after its last sign of life at which a search on another host counts as dead.
LIFETIME = 600.0

_alive_here: "WeakSet[Reservations]" = WeakSet()


class Reservations:
    """What one archive has reserved, among what others have: rows of the table `reservations`.

    The methods that take a cursor are called within a transaction.
    """

    def __init__(self) -> None:
        self.owner = uuid4().hex
        self._host, self._process = _this_host(), _process(os.getpid())
        _alive_here.add(self)

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

    def _lives(self, owner: str, host: str, process: str, heartbeat: float) -> bool:
        if host != self._host:
            return time.time() - heartbeat < LIFETIME
        if process == self._process:
            return any(reservations.owner == owner for reservations in _alive_here)
        number, _, _ = process.partition(" ")
        return _process(int(number)) == process


def overlap(a: range, b: range) -> bool:
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
