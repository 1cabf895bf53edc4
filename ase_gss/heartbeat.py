"""Signs of life of a search, from a thread: for one structure a calculator may take longer than other hosts wait."""

from threading import Event, Thread

from ase_gss.archive import Archive
from ase_gss.database import ArchiveError, database_at

#: Seconds between two signs.
INTERVAL = 60.0


class Heartbeat:
    """As long as it is entered, other hosts do not take over what the search has reserved.

    Parameters
    ----------
    archive : Archive
        Of the search.
    """

    def __init__(self, archive: Archive) -> None:
        self._archive, self._over = archive, Event()
        # Made here, before anybody changes folders.
        self._database = None if archive.path is None else database_at(archive.path)
        self._thread = Thread(target=self._beat, name="heartbeat", daemon=True)

    def __enter__(self) -> "Heartbeat":
        if self._database is not None:
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        if self._thread.is_alive():
            self._thread.join()

    def _beat(self) -> None:
        while not self._over.wait(INTERVAL):
            try:
                self._archive.heartbeat(self._database)
            except ArchiveError:
                continue  # the search itself will meet it, too, and say so; else the next sign comes in time
