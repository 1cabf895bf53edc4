"""The archive of a search: one row for each trial, and what has been refined, in a database that searches may share.

A trial counts as finished once its row is written.
"""

import os
from collections.abc import Iterable, Iterator, KeysView
from contextlib import contextmanager
from typing import Any

from ase import Atoms

from ase_gss.database import SCHEMA, ArchiveError, Database, as_dict, database_at, trials_among
from ase_gss.errors import InputError
from ase_gss.frames import Frames
from ase_gss.records import (
    Record,
    data_of,
    last_relaxed,
    record_of,
    record_of_values,
    start_of,
    start_of_row,
    values_of,
)
from ase_gss.refined_rows import Refined, RefinedEnds, refined_of_row, values_of_refined
from ase_gss.reservations import Reservations
from ase_gss.settings import check_settings
from ase_gss.trial import Ended, Trial

#: Ends that are read from the database at once.
_CHUNK = 500


class Archive:
    """Trials of one search, in a file, on a server or, with `path=None`, in memory only.

    Several searches with the same settings may share a database, in one process or in many: each `reserve` takes trials
    that no other living search has taken, and `refresh` tells what the others have finished.

    Parameters
    ----------
    path : str, path or None
        The file, made at the first write; or the URL of a PostgreSQL database,
        ``postgresql://user:password@host:port/database``.
    must_exist : bool
        Raise where there is no search.

    Attributes
    ----------
    path : str or None
        As given; `name` is without the password.
    records : list of Record
        The finished trials, in the order in which they became known here.
    metadata : dict
        schema, settings, and what `write_metadata` has added.

    Raises
    ------
    InputError
        Where there is something else than a database of this program, or one of a newer version; where the server
        cannot be reached.
    """

    def __init__(self, path: str | os.PathLike | None, must_exist: bool = False) -> None:
        self.path = None if path is None else os.fspath(path)
        self.records: list[Record] = []
        self._totals = {"trials": 0, "force_calls": 0, "score_calls": 0}
        self.metadata: dict = {}
        self._rows: dict[int, int] = {}
        self._refined = RefinedEnds()
        self._last_row = 0  # up to here the database has been read
        self._ends: dict[int, Atoms] = {}  # without a database all, else those that came last
        self._starts: dict[int, Atoms | None] = {}  # of the same trials
        self._frames: dict[int, Frames] = {}  # only without a database
        self._reservations = Reservations()
        self._database = None if self.path is None else database_at(self.path)
        self._made = False
        if self._database is None:
            return
        if (metadata := self._database.metadata()) is not None:
            self._take_up(metadata)
        elif must_exist:
            raise InputError(f"There is no database {self.name}: give the one that a search has written.")

    @property
    def name(self) -> str:
        """What it is called in messages."""
        return "the memory" if self._database is None else self._database.name

    @property
    def numbers(self) -> KeysView[int]:
        """Numbers of the finished trials."""
        return self._rows.keys()

    @property
    def refined(self) -> dict[int, Refined]:
        """What refinement has settled, by the number of the trial."""
        return self._refined.by_trial

    @property
    def totals(self) -> dict[str, int]:
        """trials, force_calls, score_calls, refinement_calls, verification_calls."""
        return self._totals | self._refined.calls

    def open_for(self, settings: dict) -> None:
        """Take up these settings, or check that those of an earlier run agree.

        Raises
        ------
        InputError
            Where the database belongs to another search.
        """
        check_settings(self.name, self.metadata.get("settings"), settings)
        self.metadata = {"schema": SCHEMA, **self.metadata, "settings": settings}

    def append(self, trials: list[Trial]) -> list[Record]:
        """Write finished trials; all of them or none, and none of them twice.

        Returns
        -------
        list of Record
            What has come to `records`. More than `trials` where others have finished one of them in the meantime: then
            theirs counts, and all that they have found comes first.

        Raises
        ------
        ArchiveError
            Where they could not be written; the call can be repeated.
        """
        seed = self.metadata["settings"]["seed"]
        rows = self._write([(trial.atoms, values_of(trial, seed), data_of(trial)) for trial in trials])
        if self._database is not None:
            self._ends, self._starts = {}, {}
        if None in rows and self._database is not None:
            return self.refresh()
        missing = [(row, trial) for row, trial in zip(rows, trials, strict=True) if row is not None]
        new = [record_of(trial) for _, trial in missing]
        for record, (row, trial) in zip(new, missing, strict=True):
            self._keep(record, row)
            self._ends[record.number] = trial.atoms
            self._starts[record.number] = start_of(trial)
            if self._database is None and trial.frames is not None:
                self._frames[record.number] = trial.frames
        return new

    def append_refined(self, refined: Refined) -> None:
        """Write a refined minimum; of several of one trial the last counts.

        Raises
        ------
        ArchiveError
            Where it could not be written.
        """
        (row,) = self._write([(refined.atoms, values_of_refined(refined), {})])
        self._refined.take_up(refined, row)

    def refresh(self) -> list[Record]:
        """What other searches have written since: trials, which are returned, and refined minima.

        Raises
        ------
        ArchiveError
            Where the database cannot be read.
        """
        if self._database is None or not self._is_made():
            return []
        new, refined, last = [], [], self._last_row
        with self._database.reading() as cursor:
            cursor.execute("SELECT id, energy, key_value_pairs FROM systems WHERE id > ? ORDER BY id", (last,))
            for row, energy, column in cursor.fetchall():
                last, values = row, as_dict(column)
                if "trial" in values and int(values["trial"]) not in self._rows:
                    new.append((record_of_values(values, energy), row))
                elif "refined_trial" in values and not self._refined.has_seen(row):
                    refined.append(row)
        minima = [row for record, row in new if record.ended is Ended.MINIMUM]
        # Those of a whole search are read in turn, by `ends`.
        found = self._database.rows((minima if len(minima) <= _CHUNK else []) + refined)
        self._ends = {} if len(self._ends) > _CHUNK and self.path else self._ends
        for record, row in new:
            self._keep(record, row)
            if row in found:
                self._ends[record.number] = found[row].toatoms()
        for row in refined:
            self._refined.take_up(refined_of_row(found[row]), row)
        self._last_row = last
        return [record for record, _ in new]

    def atoms_of(self, number: int) -> Atoms:
        """The end of a finished trial, with its energy, forces and stress where they are known.

        Raises
        ------
        KeyError
            Where the trial is not finished.
        ArchiveError
            Where the database cannot be read.
        """
        if number in self._ends:
            return self._ends[number]
        return next(self._rows_of([number]))[1].toatoms()

    def ends(self) -> Iterator[tuple[Record, Atoms | None]]:
        """All records by number, those that ended in a minimum with their atoms: read in turn, and not kept."""
        records, kept = sorted(self.records, key=lambda record: record.number), dict(self._ends)
        minima = [record.number for record in records if record.ended is Ended.MINIMUM]
        rows = self._rows_of([number for number in minima if number not in kept])
        for record in records:
            if record.ended is not Ended.MINIMUM:
                yield record, None
            else:
                yield record, kept[record.number] if record.number in kept else next(rows)[1].toatoms()

    def starts(self, records: Iterable[Record]) -> dict[int, Atoms]:
        """Where the relaxations of those of these trials have begun of which it was kept, by their numbers.

        Raises
        ------
        ArchiveError
            Where the database cannot be read.
        """
        numbers = [record.number for record in records if record.leads_to_a_minimum]
        starts = {number: self._starts[number] for number in numbers if number in self._starts}
        missing = [number for number in numbers if number not in starts]
        starts.update({number: start_of_row(row) for number, row in self._rows_of(missing, include_data=True)})
        return {number: start for number, start in starts.items() if start is not None}

    def frames(self, below: int, most: int) -> Iterator[Frames]:
        """What the trials below this number went through, where it was kept: of the last ones up to `most` frames.

        Raises
        ------
        ArchiveError
            Where the database cannot be read.
        """
        numbers = last_relaxed(self.records, below, most)
        if self._database is None:
            yield from (self._frames[number] for number in numbers if number in self._frames)
            return
        for _, row in self._rows_of(numbers, include_data=True):
            if (frames := Frames.of_data(row.data)) is not None:
                yield frames

    def reserve(self, size: int, last: int | None = None) -> list[int]:
        """Reserve for this archive what is unfinished of a generation, until it is finished or given back.

        Parameters
        ----------
        size : int
            Generation m is the trials from m * size on.
        last : int, optional
            Number of trials wanted in all.

        Returns
        -------
        list of int
            Numbers of the trials in the lowest generation that has some which are neither finished nor reserved by a
            living search, this one included. Empty where there are none below `last`; others may still be at work.

        Raises
        ------
        ArchiveError
            Where it could not be written.
        InputError
            Where another search, with other settings, has made the database in the meantime.
        """
        with self._writing() as cursor:
            free, reserved = self._reservations.extended(cursor, self.numbers, size, last)
        self._reservations.reserved = reserved
        return free

    def heartbeat(self, database: Database) -> None:
        """Give a sign of life, as `append` does, so that other hosts do not take over what is reserved here.

        Parameters
        ----------
        database : Database
            A connection of the caller's to the same place: the archive's own is for one thread.
        """
        if self._reservations.reserved:
            with database.transaction() as cursor:
                self._reservations.beat(cursor)

    def release(self) -> None:
        """Give back what is reserved, for any search to take."""
        self._reservations.reserved = []
        if self._made:
            with self._database.transaction() as cursor:
                self._reservations.write(cursor, [])

    def write_metadata(self, **values) -> None:
        """Add to the metadata; it is in the database when this returns.

        Raises
        ------
        ArchiveError
            Where it could not be written.
        """
        metadata = {**self.metadata, **values}
        if self._database is not None:
            self._make()
            metadata = self._database.merge_metadata(metadata)
        self.metadata = metadata

    def mark_minima(self, ranks: dict[int, int]) -> None:
        """Give the rows of these minima the key `minimum`, their rank from 1 on, and take it from all others.

        Where a minimum is refined, the refined structure is marked.

        Parameters
        ----------
        ranks : dict
            Rank of each trial that represents a minimum.

        Raises
        ------
        ArchiveError
            Where they could not be written.
        """
        if self._database is None:
            return
        self._make()
        wanted = {self._refined.rows.get(number, self._rows[number]): rank for number, rank in ranks.items()}
        self._database.mark("minimum", wanted)

    def _take_up(self, metadata: dict) -> None:
        """Read what is there already."""
        if metadata.get("schema", 0) not in range(1, SCHEMA + 1):
            raise InputError(
                f"{self.name} is not a database of ase-gss, or one of a newer version: pip install -U ase-gss."
            )
        self.metadata, self._made = metadata, True
        try:
            self.refresh()
        except ArchiveError as error:
            raise InputError(str(error)) from error

    def _is_made(self) -> bool:
        """Whether there is a database, by now perhaps another's."""
        if not self._made and (metadata := self._database.metadata()) is not None:
            self._take_up_others(metadata)
        return self._made

    def _make(self) -> None:
        """Make the database where there is none; where another search was faster, it must be the same search."""
        if self._made:
            return
        if self._database.make(self.metadata):
            self._made = True
        else:
            self._take_up_others(self._database.metadata())

    def _take_up_others(self, metadata: dict) -> None:
        settings = self.metadata.get("settings")
        if settings is not None:
            check_settings(self.name, metadata.get("settings"), settings)
        self.metadata = {**metadata, **({} if settings is None else {"settings": settings})}
        self._made = True

    @contextmanager
    def _writing(self) -> Iterator[Any]:
        """A cursor to write with; None in memory."""
        if self._database is None:
            yield None
            return
        self._make()
        with self._database.transaction() as cursor:
            yield cursor

    def _write(self, rows: list[tuple[Atoms, dict, dict]]) -> list[int | None]:
        """Write rows; returns their ids, None for a trial that is there already.

        It may be there because an interrupt came after the commit and before anybody knew, or from another search.
        """
        if self._database is None:
            return [None if values.get("trial") in self._rows else 0 for _, values, _ in rows]
        ids: list[int | None] = []
        with self._writing() as cursor:
            for atoms, values, data in rows:
                number = values.get("trial")
                there = number is not None and trials_among(cursor, [number])
                ids.append(None if there else self._database.ase.write(atoms, data=data, **values))
            self._reservations.beat(cursor)
        return ids

    def _rows_of(self, numbers: list[int], include_data: bool = False) -> Iterator[tuple[int, Any]]:
        """Numbers and rows of these finished trials, read in turn."""
        for start in range(0, len(numbers), _CHUNK):
            part = numbers[start : start + _CHUNK]
            found = self._database.rows([self._rows[number] for number in part], include_data)
            yield from ((number, found[self._rows[number]]) for number in part)

    def _keep(self, record: Record, row: int) -> None:
        self._rows[record.number] = row
        self.records.append(record)
        self._totals["trials"] += 1
        self._totals["force_calls"] += record.force_calls
        self._totals["score_calls"] += record.score_calls
