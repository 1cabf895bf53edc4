"""The database of a search: an ASE database (SQLite) with one row for each trial, and what has been refined.

A trial counts as finished once its row is written. SQLite's own locking is used; ASE's lock file would outlive a kill.
"""

import json
import os
import sqlite3
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ase import Atoms
from ase.db import connect
from ase.db.row import AtomsRow

from ase_gss.errors import InputError
from ase_gss.trial import Ended, Trial

SCHEMA = 1

#: Settings that must be the same when a search is resumed: other values would make another search.
FIXED_SETTINGS = (
    "formula",
    "calculator",
    "charge",
    "multiplicity",
    "fmax",
    "seed",
    "coupling",
    "score",
    "fragments",
    "mirror_images_are_one",
    "periodic",
    "units",
    "pressure",
    "volume",
    "symmetry",
    "template",
    "template_cell",
    "template_positions",
    "template_fixed",
    "region",
)


@dataclass(frozen=True)
class Record:
    """A finished trial as it stands in the database.

    Attributes
    ----------
    number, force_calls, score_calls : int
        As in `Trial`.
    ended, reason, converged : Ended, str, bool
        As in `Trial`.
    atoms : Atoms
        The end, with its energy where there is one.
    energy : float or None
        eV.
    known : int or None
        As in `Trial`.
    """

    number: int
    force_calls: int
    score_calls: int
    ended: Ended
    reason: str
    converged: bool
    atoms: Atoms
    energy: float | None
    known: int | None = None


@dataclass(frozen=True)
class Refined:
    """What came of the tight relaxation of a minimum's representative.

    Attributes
    ----------
    number : int
        Trial that represents the minimum.
    atoms : Atoms
        With energy and forces where they are known.
    ended : Ended
        MINIMUM; NOT_CONVERGED or CALCULATOR where it is to be tried again; FRAGMENTS or SADDLE where it is no minimum.
    reason : str
        Why it is none; empty where it is one.
    fmax : float
        Largest force asked for, eV/Å.
    verified : bool
        Whether it was checked for imaginary modes.
    refinement_calls, verification_calls : int
        Force calls spent.
    """

    number: int
    atoms: Atoms
    ended: Ended
    reason: str
    fmax: float
    verified: bool
    refinement_calls: int
    verification_calls: int

    @property
    def settled(self) -> bool:
        """It need not be tried again."""
        return self.ended in (Ended.MINIMUM, Ended.FRAGMENTS, Ended.SADDLE, Ended.CELL)


class Archive:
    """Trials of one search, in a file or, with `path=None`, in memory only.

    Parameters
    ----------
    path : str or None
        The file; made at the first write.
    must_exist : bool
        Raise where the file is not there.

    Raises
    ------
    InputError
        Where the file is not a database of this program.
    """

    def __init__(self, path: str | os.PathLike | None, must_exist: bool = False) -> None:
        self.path = None if path is None else os.fspath(path)
        self.records: list[Record] = []
        self.refined: dict[int, Refined] = {}
        self.totals = {"trials": 0, "force_calls": 0, "score_calls": 0, "refinement_calls": 0, "verification_calls": 0}
        self.metadata: dict = {}
        self._rows: dict[int, int] = {}
        self._refined_rows: dict[int, int] = {}
        self._database = None
        if self.path is None:
            return
        if os.path.exists(self.path):
            self._read()
        elif must_exist:
            raise InputError(f"There is no database {self.path}: give the file that a search has written.")
        elif not os.path.isdir(os.path.dirname(os.path.abspath(self.path))):
            raise InputError(f"{self.path} cannot be written: its folder does not exist.")

    @property
    def numbers(self) -> set[int]:
        """Numbers of the finished trials."""
        return {record.number for record in self.records}

    def open_for(self, settings: dict) -> None:
        """Take up these settings, or check that those of an earlier run agree.

        Raises
        ------
        InputError
            Where the database belongs to another search.
        """
        earlier = self.metadata.get("settings")
        for key in FIXED_SETTINGS if earlier else ():
            if earlier.get(key) != settings.get(key):
                before, now = _short(earlier.get(key)), _short(settings.get(key))
                difference = f"{key} {before}, not {now}" if before != now else f"another {key}"
                raise InputError(
                    f"{self.path} is of a search with {difference}: give another file, or the same settings."
                )
        self.metadata = {"schema": SCHEMA, **self.metadata, "settings": settings}

    def append(self, trials: list[Trial]) -> None:
        """Write finished trials; all of them or none, and none of them twice."""
        records = [_record_of(trial) for trial in trials]
        ids = self._write([(trial.atoms, self._values(trial)) for trial in trials])
        for record, row in zip(records, ids, strict=True):
            self._keep(record, row)

    def append_refined(self, refined: Refined) -> None:
        """Write a refined minimum; of several of one trial the last counts."""
        values = {
            "refined_trial": refined.number,
            "ended": str(refined.ended),
            "reason": refined.reason or "-",
            "refined_fmax": refined.fmax,
            "verified": refined.verified,
            "refinement_calls": refined.refinement_calls,
            "verification_calls": refined.verification_calls,
        }
        (row,) = self._write([(refined.atoms, values)])
        self._keep_refined(refined, row)

    def write_metadata(self, **values) -> None:
        """Add to the metadata; it is in the file when this returns."""
        self.metadata.update(values)
        if self.path is not None:
            self._connection().metadata = self.metadata

    def mark_minima(self, ranks: dict[int, int]) -> None:
        """Give the rows of these minima the key `minimum`, their rank from 1 on, and take it from all others.

        Where a minimum is refined, the refined structure is marked.

        Parameters
        ----------
        ranks : dict
            Rank of each trial that represents a minimum.
        """
        if self.path is None:
            return
        wanted = {self._refined_rows.get(number, self._rows[number]): rank for number, rank in ranks.items()}
        database = self._connection()
        with database:
            marked = {row.id: row.minimum for row in database.select("minimum>0", include_data=False)}
            for row, rank in marked.items():
                if wanted.get(row) != rank:
                    database.update(row, delete_keys=["minimum"])
            for row, rank in wanted.items():
                if marked.get(row) != rank:
                    database.update(row, minimum=rank)

    def _keep(self, record: Record, row: int) -> None:
        self._rows[record.number] = row
        self.records.append(record)
        self.totals["trials"] += 1
        self.totals["force_calls"] += record.force_calls
        self.totals["score_calls"] += record.score_calls

    def _keep_refined(self, refined: Refined, row: int) -> None:
        self.totals["refinement_calls"] += refined.refinement_calls
        self.totals["verification_calls"] += refined.verification_calls
        if refined.settled:
            self.refined[refined.number] = refined
            self._refined_rows.pop(refined.number, None)
            if refined.ended is Ended.MINIMUM:
                self._refined_rows[refined.number] = row

    def _connection(self):
        if self._database is None:
            if not os.path.exists(self.path):
                self._make()
            self._database = connect(self.path, type="db", use_lock_file=False)
        return self._database

    def _make(self) -> None:
        """Make the file aside and move it into place: a kill in between leaves no file that lacks its metadata."""
        unfinished = f"{self.path}.part"
        if os.path.exists(unfinished):
            os.remove(unfinished)
        connect(unfinished, type="db", use_lock_file=False).metadata = self.metadata
        with closing(sqlite3.connect(unfinished)) as connection:
            connection.execute("CREATE UNIQUE INDEX trial_once ON number_key_values (value) WHERE key = 'trial'")
            connection.commit()
        os.replace(unfinished, self.path)

    def _write(self, rows: list[tuple[Atoms, dict]]) -> list[int]:
        if self.path is None:
            return [0] * len(rows)
        database, ids = self._connection(), []
        with database:
            for atoms, values in rows:
                # An interrupt may have come after the commit and before anybody knew: then the trial is there already.
                there = next(database.select(trial=values["trial"]), None) if "trial" in values else None
                ids.append(database.write(atoms, **values) if there is None else there.id)
        return ids

    def _values(self, trial: Trial) -> dict:
        settings = self.metadata["settings"]
        coupling = getattr(trial.walk.coupling, "name", type(trial.walk.coupling).__name__)
        return {
            "trial": trial.number,
            "seed": settings["seed"],
            "coupling": coupling if trial.walk.schedule.n_steps else "rss",
            "ended": str(trial.ended),
            "reason": trial.reason or "-",
            "converged": trial.converged,
            **({} if trial.known is None else {"known": trial.known}),
            "force_calls": trial.force_calls,
            "score_calls": trial.score_calls,
        }

    def _read(self) -> None:
        """Read a file of this program; any other is refused before ase.db, which would write into it, sees it."""
        try:
            with closing(sqlite3.connect(f"{Path(self.path).absolute().as_uri()}?mode=ro", uri=True)) as connection:
                known = connection.execute("SELECT value FROM information WHERE name = 'metadata'").fetchone()
        except sqlite3.DatabaseError as error:
            raise InputError(f"{self.path} is not a database of ase-gss: {error}.") from error
        if known is None or json.loads(known[0]).get("schema") != SCHEMA:
            raise InputError(f"{self.path} is not a database of ase-gss, or of a version that this one cannot read.")
        database = self._connection()
        self.metadata = dict(database.metadata)
        for row in database.select(include_data=False, sort="id"):
            if "refined_trial" in row:
                self._keep_refined(_refined_of_row(row), row.id)
            elif "trial" in row:
                self._keep(_record_of_row(row), row.id)


def _record_of(trial: Trial) -> Record:
    return Record(
        trial.number,
        trial.force_calls,
        trial.score_calls,
        trial.ended,
        trial.reason,
        trial.converged,
        trial.atoms,
        energy=trial.atoms.get_potential_energy() if trial.atoms.calc is not None else None,
        known=trial.known,
    )


def _record_of_row(row: AtomsRow) -> Record:
    return Record(
        row.trial,
        row.force_calls,
        row.score_calls,
        Ended(row.ended),
        _reason(row),
        bool(row.converged),
        row.toatoms(),
        energy=float(row.energy) if "energy" in row else None,
        known=row.get("known"),
    )


def _refined_of_row(row: AtomsRow) -> Refined:
    spent = row.refinement_calls, row.verification_calls
    ended, atoms = Ended(row.ended), row.toatoms()
    return Refined(row.refined_trial, atoms, ended, _reason(row), row.refined_fmax, bool(row.verified), *spent)


def _reason(row: AtomsRow) -> str:
    # ase.db refuses an empty text.
    return "" if row.reason == "-" else row.reason


def _short(value: Any) -> Any:
    """The name of what has a name and parameters; nothing of a table, which would fill the screen."""
    if isinstance(value, list) and value and isinstance(value[0], list):
        return None
    return value.get("name", value) if isinstance(value, dict) else value
