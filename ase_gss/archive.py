"""The database of a search: an ASE database (SQLite) with one row for each trial, and what has been refined.

A trial counts as finished once its row is written. SQLite's own locking is used; ASE's lock file would outlive a kill.
"""

import os
from dataclasses import dataclass

from ase import Atoms
from ase.db import connect
from ase.db.row import AtomsRow

from ase_gss.errors import InputError
from ase_gss.trial import Ended, Trial

SCHEMA = 1

#: Settings that must be the same when a search is resumed: other values would make another search.
FIXED_SETTINGS = ("formula", "calculator", "charge", "multiplicity", "fmax", "seed")


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
    """The tightly relaxed representative of a minimum.

    Attributes
    ----------
    number : int
        Trial that represents the minimum.
    atoms : Atoms
        With energy and forces.
    kept, verified : bool
        Whether it is a minimum after all, and whether it was checked for imaginary modes.
    reason : str
        Why it is none; empty where it is one.
    """

    number: int
    atoms: Atoms
    kept: bool
    verified: bool
    reason: str


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
        self.totals = {"trials": 0, "force_calls": 0, "score_calls": 0}
        self.metadata: dict = {}
        self._rows: dict[int, int] = {}
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
                raise InputError(
                    f"{self.path} is of a search with {key} {earlier.get(key)}, not {settings.get(key)}: "
                    "give another file, or the same settings."
                )
        self.metadata = {"schema": SCHEMA, **self.metadata, "settings": settings}

    def append(self, trials: list[Trial]) -> None:
        """Write finished trials; all of them or none."""
        for trial in trials:
            if trial.number in self._rows:
                raise ValueError(f"trial {trial.number} is in the archive already")
        records = [_record_of(trial) for trial in trials]
        ids = self._write([(trial.atoms, self._values(trial)) for trial in trials])
        for record, row in zip(records, ids, strict=True):
            self._keep(record, row)

    def append_refined(self, refined: Refined, refinement_calls: int, verification_calls: int) -> None:
        """Write a refined minimum, which replaces an earlier one of the same trial, and what it has cost."""
        values = {"refined_trial": refined.number, "kept": refined.kept, "verified": refined.verified}
        self._write([(refined.atoms, values | {"reason": refined.reason or "-"})])
        self.refined[refined.number] = refined
        self.write_metadata(
            refinement_calls=self.metadata.get("refinement_calls", 0) + refinement_calls,
            verification_calls=self.metadata.get("verification_calls", 0) + verification_calls,
        )

    def write_metadata(self, **values) -> None:
        """Add to the metadata; it is in the file when this returns."""
        self.metadata.update(values)
        if self.path is not None:
            self._connection().metadata = self.metadata

    def mark_minima(self, ranks: dict[int, int]) -> None:
        """Give the rows of these trials the key `minimum`, their rank from 1 on, and take it from all others.

        Parameters
        ----------
        ranks : dict
            Rank of each trial that represents a minimum.
        """
        if self.path is None:
            return
        database = self._connection()
        with database:
            for row in list(database.select("minimum>0", include_data=False)):
                if ranks.get(row.trial) != row.minimum:
                    database.update(row.id, delete_keys=["minimum"])
            marked = {row.trial for row in database.select("minimum>0", include_data=False)}
            for number, rank in ranks.items():
                if number not in marked:
                    database.update(self._rows[number], minimum=rank)

    def _keep(self, record: Record, row: int) -> None:
        self._rows[record.number] = row
        self.records.append(record)
        self.totals["trials"] += 1
        self.totals["force_calls"] += record.force_calls
        self.totals["score_calls"] += record.score_calls

    def _connection(self):
        if self._database is None:
            if not os.path.exists(self.path):
                # Made aside and moved into place: a kill in between leaves no file that lacks its metadata.
                unfinished = f"{self.path}.{os.getpid()}.part"
                connect(unfinished, type="db", use_lock_file=False).metadata = self.metadata
                os.replace(unfinished, self.path)
            self._database = connect(self.path, type="db", use_lock_file=False)
        return self._database

    def _write(self, rows: list[tuple[Atoms, dict]]) -> list[int]:
        if self.path is None:
            return [0] * len(rows)
        database = self._connection()
        with database:
            return [database.write(atoms, **values) for atoms, values in rows]

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
        try:
            database = self._connection()
            self.metadata = dict(database.metadata)
            rows = list(database.select(include_data=False))
        except Exception as error:  # sqlite3 and ase.db raise many kinds for a file that is none of theirs
            raise InputError(f"{self.path} is not an ASE database: {error}.") from error
        if self.metadata.get("schema") != SCHEMA:
            raise InputError(f"{self.path} is not a database of ase-gss, or of a version that this one cannot read.")
        for row in rows:
            if "refined_trial" in row:
                self.refined[row.refined_trial] = Refined(
                    row.refined_trial, row.toatoms(), bool(row.kept), bool(row.verified), _reason(row)
                )
            elif "trial" in row:
                self._keep(_record_of_row(row), row.id)
        self.records.sort(key=lambda record: record.number)


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


def _reason(row: AtomsRow) -> str:
    # ase.db refuses an empty text.
    return "" if row.reason == "-" else row.reason
