"""A database on a PostgreSQL server."""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

from ase_gss import database
from ase_gss.errors import InputError


class PostgreSQLServer(database.Database):
    """A database on a server; it holds one search, or one in each schema (`?options=-csearch_path=...`)."""

    def __init__(self, url: str) -> None:
        try:
            import ase_db_backends.postgresql
            import psycopg2
        except ImportError as error:
            raise InputError(
                "A database on a PostgreSQL server needs ase-db-backends: pip install 'ase-gss[postgresql]'."
            ) from error
        super().__init__(_without_password(url), url, "postgresql")
        self._error: type[Exception] = psycopg2.Error
        self._wrapped = ase_db_backends.postgresql.Connection
        self._url, self._driver, self._reached = url, psycopg2, False

    def make(self, metadata: dict[str, Any]) -> bool:
        """Make its tables. The metadata come last: without them and without rows it counts as not made."""
        with self.reading() as cursor:
            # ase.db commits as soon as it has made its tables, and two at once would fail: the lock is the session's.
            cursor.execute("SELECT pg_advisory_lock(hashtext('ase-gss makes a database'))")
            if _search_on_server(cursor) is not None:
                return False
            self.ase.metadata = {}
            for statement in database.OWN_TABLES:
                cursor.execute(statement)
            database.write_metadata(cursor, {**metadata, "schema": database.SCHEMA})
            self.ase.connection.commit()
            return True

    def metadata(self) -> dict[str, Any] | None:
        """Its metadata; tables of others are refused."""
        try:
            with self.reading() as cursor:
                if (found := _search_on_server(cursor)) is not None:
                    return found
                cursor.execute("SELECT to_regclass('systems')")
                if cursor.fetchone()[0] is not None:
                    cursor.execute("SELECT count(*) FROM systems")
                    if cursor.fetchone()[0]:
                        raise self._refused("it lacks the settings of a search")
        except database.ArchiveError as error:
            raise InputError(str(error)) from error
        return None

    def _connect(self) -> Any:
        give_up = time.monotonic() + database.PATIENCE
        while True:
            try:
                connection = self._driver.connect(self._url)
                break
            except self._driver.OperationalError as error:
                # A server that was there before is perhaps only being started again.
                if not self._reached or time.monotonic() > give_up:
                    raise database.ArchiveError(
                        f"The server of {self.name} cannot be reached ({_first_line(error)}): start it, or give its "
                        "right address."
                    ) from error
                time.sleep(1.0)
        self._reached = True
        return self._wrapped(connection)

    def _begin(self, cursor: Any) -> None:
        cursor.execute(f"SET LOCAL lock_timeout = {round(database.PATIENCE * 1000)}")
        # ase.db takes the id of a new row from the sequence, which another writer could have moved on. And as ids then
        # grow in the order of the commits, those who read on from the last id they know miss nothing.
        cursor.execute("LOCK TABLE systems IN SHARE ROW EXCLUSIVE MODE")

    @contextmanager
    def _faults(self) -> Iterator[None]:
        try:
            yield
        except self._error as error:
            raise database.ArchiveError(_postgresql_sentence(self.name, error)) from error


def _without_password(url: str) -> str:
    parts = urlsplit(url)
    user, at, host = parts.netloc.rpartition("@")
    return f"{parts.scheme}://{user.partition(':')[0]}{at}{host}{parts.path}"


def _search_on_server(cursor: Any) -> dict[str, Any] | None:
    """Metadata of the search there, None where there is none."""
    cursor.execute("SELECT to_regclass('information')")
    row = None if cursor.fetchone()[0] is None else database.metadata_row(cursor)
    found = {} if row is None else json.loads(row[0])
    return found if "schema" in found else None


def _postgresql_sentence(name: str, error: Exception) -> str:
    code, reason = getattr(error, "pgcode", None), _first_line(error)
    if code == "53100":
        return f"{name} cannot be written, as the disk of the server is full: free some space and {database.AGAIN}."
    if code in ("25006", "42501"):
        return f"{name} cannot be written ({reason}): give a user that may write it, or another database."
    if code == "55P03":
        patience = f"{database.PATIENCE:g} s"
        return f"{name} was locked by another program for more than {patience}: end that program and {database.AGAIN}."
    if code is None or code.startswith(("08", "57P")):
        return f"The connection to {name} was lost ({reason}): when the server is there again, {database.AGAIN}."
    return f"{name} cannot be read or written: {reason}."


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
