"""What an archive keeps of a finished trial, and how it stands in a row of ase.db."""

from collections.abc import Iterable
from dataclasses import dataclass
from sys import intern
from typing import Any

from ase import Atoms
from ase.db.row import AtomsRow

from ase_gss.trial import Ended, Trial


@dataclass(frozen=True, slots=True)
class Record:
    """A finished trial: plain numbers only, so that a long search does not fill the memory.

    Its structure is `Archive.atoms_of(number)`.

    Attributes
    ----------
    number, force_calls, score_calls : int
        As in `Trial`.
    ended, reason, converged : Ended, str, bool
        As in `Trial`.
    energy : float or None
        eV, where it is known.
    known, parent : int or None
        As in `Trial`.
    second_look, turned : bool
        As in `Trial`.
    regime : str
        As in `Trial`; empty where there is none.
    bonds : str
        As in `Trial`; empty where there is none.
    """

    number: int
    force_calls: int
    score_calls: int
    ended: Ended
    reason: str
    converged: bool
    energy: float | None
    known: int | None = None
    parent: int | None = None
    second_look: bool = False
    turned: bool = False
    regime: str = ""
    bonds: str = ""

    @property
    def leads_to_a_minimum(self) -> bool:
        """It began with a structure that was looked at, and its relaxation came to a minimum or headed for one."""
        return bool(self.bonds and self.force_calls) and self.ended in (Ended.MINIMUM, Ended.HEADING)


def record_of(trial: Trial) -> Record:
    """What is kept of a finished trial."""
    return Record(
        number=trial.number,
        force_calls=trial.force_calls,
        score_calls=trial.score_calls,
        ended=trial.ended,
        reason=intern(trial.reason),
        converged=bool(trial.converged),
        energy=float(trial.atoms.get_potential_energy()) if trial.atoms.calc is not None else None,
        known=trial.known,
        parent=trial.parent,
        second_look=trial.second_look,
        turned=trial.turned,
        regime=intern(trial.regime),
        bonds=intern(trial.bonds),
    )


def values_of(trial: Trial, seed: int) -> dict[str, Any]:
    """The key-value pairs of a finished trial's row."""
    coupling = getattr(trial.walk.coupling, "name", type(trial.walk.coupling).__name__)
    return {
        "trial": trial.number,
        "seed": seed,
        "coupling": coupling if trial.walk.schedule.n_steps else "rss",
        "ended": str(trial.ended),
        "reason": text_of_reason(trial.reason),
        "converged": bool(trial.converged),
        **{name: value for name in ("known", "parent") if (value := getattr(trial, name)) is not None},
        "force_calls": trial.force_calls,
        "score_calls": trial.score_calls,
        **{name: True for name in ("second_look", "turned") if getattr(trial, name)},
        **({"regime": trial.regime} if trial.regime else {}),
        **({"bonds": trial.bonds} if trial.bonds else {}),
    }


def data_of(trial: Trial) -> dict[str, Any]:
    """The data of a finished trial's row."""
    data = {} if trial.frames is None else trial.frames.as_data()
    return data if trial.start is None else {**data, "start_positions": trial.start}


def start_of(trial: Trial) -> Atoms | None:
    """Where the relaxation of this trial has begun, where that is kept."""
    return None if trial.start is None else Atoms(trial.atoms.numbers, positions=trial.start)


def start_of_row(row: AtomsRow) -> Atoms | None:
    """Where the relaxation of the trial that stands in this row has begun, where that was kept."""
    positions = row.data.get("start_positions")
    return None if positions is None else Atoms(row.numbers, positions=positions)


def record_of_values(values: dict[str, Any], energy: float | None) -> Record:
    """The record for a row with these key-value pairs and this energy in eV."""
    return Record(
        number=int(values["trial"]),
        force_calls=int(values["force_calls"]),
        score_calls=int(values["score_calls"]),
        ended=Ended(values["ended"]),
        reason=reason_of_values(values),
        converged=bool(values["converged"]),
        energy=energy,
        known=values.get("known"),
        parent=values.get("parent"),
        second_look=bool(values.get("second_look", False)),
        turned=bool(values.get("turned", False)),
        regime=intern(values.get("regime", "")),
        bonds=intern(values.get("bonds", "")),
    )


def last_relaxed(records: Iterable[Record], below: int, most: int) -> list[int]:
    """Numbers of the last trials below this number that have cost up to `most` force calls together."""
    calls, numbers = 0, []
    for record in sorted(records, key=lambda record: -record.number):
        if record.number < below and record.force_calls:
            calls += record.force_calls
            if calls > most:
                break
            numbers.append(record.number)
    return numbers[::-1]


def text_of_reason(reason: str) -> str:
    """The text that stands in a row for this reason."""
    # ase.db refuses an empty text, PostgreSQL the character 0, and both what is no character, as in the names of
    # folders in another encoding: all may stand in what a calculator has printed.
    return reason.replace("\0", "").encode("utf-8", "replace").decode("utf-8") or "-"


def reason_of_values(values: dict[str, Any]) -> str:
    """The reason that a row with these key-value pairs was written with."""
    # Interned: most of the reasons of a long search are alike.
    return "" if values["reason"] == "-" else intern(values["reason"])
