"""Where an archive lies: an ASE database in a file (SQLite) or on a server (PostgreSQL), and what can befall it.

Both are written in transactions that wait for one another, with SQLite's and PostgreSQL's own locking; ASE's lock file
would outlive a kill. What goes wrong is one `ArchiveError`, and then nothing of the transaction is written.
"""

import errno
import json
import os
import sqlite3
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

from ase.db import connect
from ase.db.core import now

from ase_gss.errors import InputError

#: Version of what is in a database. 1: trials and refined minima. 2: reservations, the keys `regime` and `bonds`.
#: 3: of a search that learns, the structures and forces that its relaxations went through, as data; of molecules where
#: relaxations have begun, and the keys `parent`, `turned` and `second_look`, which older files lack.
SCHEMA = 3
#: Seconds to wait for another program that writes, or for a server that has gone away.
PATIENCE = 60.0

#: What is in a database beside ase.db's own tables. The index keeps any trial from being written twice.
OWN_TABLES = (
    "CREATE UNIQUE INDEX IF NOT EXISTS trial_once ON number_key_values (value) WHERE key = 'trial'",
    "CREATE TABLE IF NOT EXISTS reservations (first INTEGER PRIMARY KEY, stop INTEGER, owner TEXT, host TEXT, "
    "process TEXT, heartbeat DOUBLE PRECISION)",
)
#: What there is to do where something has gone wrong.
AGAIN = "start the search again, it goes on from the last trial that was written"


class ArchiveError(RuntimeError):
    """The database of a search cannot be read or written any more; the message says why and what to do.

    Nothing is half written, and what the archive has in memory is what is in the database: the call can be repeated.
    """


class Database(ABC):
    """The ASE database of one search.

    Attributes
    ----------
    name : str
        What it is called in messages: a path, or an address without its password.
    ase : ase.db.core.Database
        For the rows; within `reading` and `transaction` it shares their connection.
    """

    def __init__(self, name: str, address: str, kind: str) -> None:
        self.name = name
        self.ase = connect(address, type=kind, use_lock_file=False)

    @abstractmethod
    def make(self, metadata: dict[str, Any]) -> bool:
        """Make it, with this metadata, or not at all; False where another search was faster."""

    @abstractmethod
    def metadata(self) -> dict[str, Any] | None:
        """Its metadata, None where there is no database yet.

        Raises
        ------
        InputError
            Where there is something else.
        """

    @contextmanager
    def reading(self) -> Iterator[Any]:
        """A cursor to read with; placeholders are question marks."""
        with self._faults():
            connection = self._connect()
            # ase.db closes its connection only where the commit succeeds, so it is given one for each occasion.
            self.ase.connection, self.ase.change_count = connection, 0
            try:
                yield connection.cursor()
            finally:
                self.ase.connection = None
                self._undo(connection)
                connection.close()

    def rows(self, ids: list[int], include_data: bool = False) -> dict[int, Any]:
        """The rows with these ids, which lie close together."""
        if not ids:
            return {}
        wanted, between = set(ids), f"id>={min(ids)},id<={max(ids)}"
        with self.reading():
            return {row.id: row for row in self.ase.select(between, include_data=include_data) if row.id in wanted}

    @contextmanager
    def transaction(self) -> Iterator[Any]:
        """A cursor to write with, while no other program writes; all of it is written, or nothing."""
        with self.reading() as cursor:
            self._begin(cursor)
            (text,) = metadata_row(cursor)
            if json.loads(text)["schema"] < SCHEMA:
                for statement in OWN_TABLES:
                    cursor.execute(statement)
                write_metadata(cursor, {**json.loads(text), "schema": SCHEMA})
            yield cursor
            self.ase.connection.commit()

    def merge_metadata(self, values: dict[str, Any]) -> dict[str, Any]:
        """Write these values into the metadata; returns all of it."""
        with self.transaction() as cursor:
            (text,) = metadata_row(cursor)
            merged = {**json.loads(text), **values, "schema": SCHEMA}
            write_metadata(cursor, merged)
        return merged

    def mark(self, key: str, wanted: dict[int, int]) -> None:
        """Give the rows with these ids this key and value, and take the key from all others.

        As ase.db would do it row by row, which takes minutes for thousands.
        """
        with self.transaction() as cursor:
            cursor.execute("SELECT id, value FROM number_key_values WHERE key = ?", (key,))
            marked = {row: int(value) for row, value in cursor.fetchall()}
            if marked == wanted:
                return
            for row in sorted({row for row, _ in marked.items() ^ wanted.items()}):
                cursor.execute("SELECT key_value_pairs FROM systems WHERE id = ?", (row,))
                values = as_dict(cursor.fetchone()[0])
                values.pop(key, None)
                if row in wanted:
                    values[key] = wanted[row]
                cursor.execute(
                    "UPDATE systems SET mtime = ?, key_value_pairs = ? WHERE id = ?", (now(), json.dumps(values), row)
                )
            cursor.execute("DELETE FROM number_key_values WHERE key = ?", (key,))
            cursor.execute("DELETE FROM keys WHERE key = ?", (key,))
            for row, value in sorted(wanted.items()):
                cursor.execute("INSERT INTO number_key_values VALUES (?, ?, ?)", (key, float(value), row))
                cursor.execute("INSERT INTO keys VALUES (?, ?)", (key, row))

    @abstractmethod
    def _connect(self) -> Any: ...

    def _undo(self, connection: Any) -> None:  # noqa: B027 - nothing to do for most
        """Undo what has not been committed, where closing the connection alone does not."""

    @abstractmethod
    def _begin(self, cursor: Any) -> None:
        """Wait until no other program writes, and keep it so."""

    @abstractmethod
    def _faults(self) -> Any:
        """Context in which whatever goes wrong becomes an `ArchiveError`."""

    def _refused(self, why: str) -> InputError:
        return InputError(f"{self.name} is not a database of ase-gss: {why}.")


class SQLiteFile(Database):
    """A database in a file."""

    def __init__(self, path: str) -> None:
        super().__init__(path, path, "db")
        self._path = Path(path).absolute()

    def make(self, metadata: dict[str, Any]) -> bool:
        """Make it aside and move it into place: a kill in between leaves no file that lacks its metadata."""
        unfinished = f"{self._path}.{uuid4().hex[:8]}.part"
        with self._faults():
            try:
                with closing(sqlite3.connect(unfinished)) as connection:
                    ase = connect(unfinished, type="db", use_lock_file=False)
                    ase.connection, ase.change_count = connection, 0
                    ase.metadata = {**metadata, "schema": SCHEMA}
                    for statement in OWN_TABLES:
                        connection.execute(statement)
                    connection.commit()
                return _move_without_overwriting(unfinished, self._path)
            finally:
                with suppress(OSError):
                    os.remove(unfinished)

    def metadata(self) -> dict[str, Any] | None:
        """Its metadata; any other file is refused before ase.db, which would write into it, sees it."""
        if not os.path.exists(self._path):
            if not self._path.parent.is_dir():
                raise InputError(f"{self.name} cannot be written: its folder does not exist.")
            return None
        try:
            with closing(self._connect()) as connection:
                row = metadata_row(connection.cursor())
        except sqlite3.DatabaseError as error:
            if _code(error) in (sqlite3.SQLITE_ERROR, sqlite3.SQLITE_NOTADB):
                raise self._refused(str(error)) from error
            raise InputError(_sqlite_sentence(self.name, error)) from error
        if row is None:
            raise self._refused("it lacks the settings of a search")
        return json.loads(row[0])

    def _undo(self, connection: sqlite3.Connection) -> None:
        # The traceback of an error may keep a cursor, and it the lock, for longer than the connection.
        with suppress(sqlite3.Error):
            connection.rollback()

    def _connect(self) -> sqlite3.Connection:
        # Never made anew in place of a file that is gone. Not read-only either: what a kill has left half written is
        # undone by whoever reads first.
        return sqlite3.connect(f"{self._path.as_uri()}?mode=rw", uri=True, timeout=PATIENCE)

    def _begin(self, cursor: Any) -> None:
        # Two transactions that have begun by reading could not wait for each other.
        cursor.execute("BEGIN IMMEDIATE")

    @contextmanager
    def _faults(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, OSError) as error:
            if not os.path.exists(self._path.parent):
                raise ArchiveError(f"{self.name} is gone, its folder included: put it back, and {AGAIN}.") from error
            raise ArchiveError(_sqlite_sentence(self.name, error)) from error


def database_at(path: str) -> Database:
    """The database in the file `path`, or at this URL, ``postgresql://user:password@host:port/database``."""
    if not is_url(path):
        return SQLiteFile(path)
    from ase_gss.postgresql import PostgreSQLServer  # which is made of what stands here

    return PostgreSQLServer(path)


def is_url(path: str) -> bool:
    """Whether it names a server and not a file."""
    return path.startswith(("postgresql://", "postgres://"))


def trials_among(cursor: Any, numbers: Sequence[int]) -> set[int]:
    """Those of these trials that are in the database."""
    # Not by a range: SQLite then goes through all rows of the key instead of the index `trial_once`.
    which = ", ".join("?" for _ in numbers)
    cursor.execute(f"SELECT value FROM number_key_values WHERE key = 'trial' AND value IN ({which})", tuple(numbers))
    return {int(value) for (value,) in cursor.fetchall()}


def as_dict(column: Any) -> dict[str, Any]:
    """The key-value pairs of a row: text in SQLite, decoded already in PostgreSQL."""
    return column if isinstance(column, dict) else json.loads(column)


def metadata_row(cursor: Any) -> tuple[str] | None:
    """The row with the metadata."""
    cursor.execute("SELECT value FROM information WHERE name = 'metadata'")
    return cursor.fetchone()


def write_metadata(cursor: Any, metadata: dict[str, Any]) -> None:
    """Write them all anew."""
    cursor.execute("UPDATE information SET value = ? WHERE name = 'metadata'", (json.dumps(metadata),))


def _move_without_overwriting(source: str, target: Path) -> bool:
    """Whether the target was not there already; then it is the source now."""
    try:
        os.link(source, target)
    except FileExistsError:
        return False
    except OSError:  # a file system without links
        if os.path.exists(target):
            return False
        os.replace(source, target)
    return True


def _code(error: sqlite3.Error) -> int:
    return getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF


def _sqlite_sentence(name: str, error: sqlite3.Error | OSError) -> str:
    if isinstance(error, OSError):
        full, forbidden = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG), (errno.EACCES, errno.EPERM, errno.EROFS)
        code = {**dict.fromkeys(full, sqlite3.SQLITE_FULL), **dict.fromkeys(forbidden, sqlite3.SQLITE_READONLY)}.get(
            error.errno
        )
    else:
        code = _code(error)
    if code == sqlite3.SQLITE_CANTOPEN and not os.path.exists(name):
        return f"{name} is gone, or its folder is read-only: see to it, and {AGAIN}."
    if code == sqlite3.SQLITE_FULL:
        return f"{name} cannot be written, as the disk is full: free some space and {AGAIN}."
    if code == sqlite3.SQLITE_IOERR:
        return f"{name} cannot be written ({error}), perhaps as the disk or a quota is full: see to it and {AGAIN}."
    if code in (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM, sqlite3.SQLITE_AUTH):
        return f"{name} cannot be opened or written ({error}): make the file and its folder writable, or give another."
    if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return f"{name} was locked by another program for more than {PATIENCE:g} s: end that program and {AGAIN}."
    if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
        return f"{name} is damaged ({error}): go back to a copy, or save what is left with `sqlite3 {name} .recover`."
    return f"{name} cannot be read or written: {error}."
