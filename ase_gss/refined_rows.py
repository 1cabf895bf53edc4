"""What refinement has made of the ends in an archive, and how it stands in a row of ase.db."""

from dataclasses import dataclass
from typing import Any

from ase import Atoms
from ase.db.row import AtomsRow

from ase_gss.records import reason_of_values, text_of_reason
from ase_gss.trial import Ended


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
        MINIMUM; NOT_CONVERGED, CALCULATOR or OPTIMIZER where it is to be tried again; FRAGMENTS or SADDLE where it is
        no minimum.
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
        if self.ended is Ended.SADDLE and self.reason.startswith("calculator: "):
            return False  # of an earlier version: the check has failed
        return self.ended in (Ended.MINIMUM, Ended.FRAGMENTS, Ended.SADDLE, Ended.CELL, Ended.COLLAPSED)


class RefinedEnds:
    """All that has been refined in an archive; of several rows of one trial the last that is settled counts.

    Attributes
    ----------
    by_trial : dict of Refined
        What is settled, by the number of the trial.
    rows : dict of int
        Of each trial whose end is a minimum still, the row.
    calls : dict of int
        refinement_calls and verification_calls of all rows.
    """

    def __init__(self) -> None:
        self.by_trial: dict[int, Refined] = {}
        self.rows: dict[int, int] = {}
        self.calls = {"refinement_calls": 0, "verification_calls": 0}
        self._seen: set[int] = set()

    def has_seen(self, row: int) -> bool:
        """Whether this row is taken up already."""
        return row in self._seen

    def take_up(self, refined: Refined, row: int) -> None:
        """Take up what stands in this row."""
        self._seen.add(row)
        self.calls["refinement_calls"] += refined.refinement_calls
        self.calls["verification_calls"] += refined.verification_calls
        if refined.settled:
            self.by_trial[refined.number] = refined
            self.rows.pop(refined.number, None)
            if refined.ended is Ended.MINIMUM:
                self.rows[refined.number] = row


def values_of_refined(refined: Refined) -> dict[str, Any]:
    """The key-value pairs of a refined minimum's row."""
    return {
        "refined_trial": refined.number,
        "ended": str(refined.ended),
        "reason": text_of_reason(refined.reason),
        "refined_fmax": refined.fmax,
        "verified": bool(refined.verified),
        "refinement_calls": refined.refinement_calls,
        "verification_calls": refined.verification_calls,
    }


def refined_of_row(row: AtomsRow) -> Refined:
    """The refined minimum that stands in this row."""
    spent = row.refinement_calls, row.verification_calls
    ended, atoms, reason = Ended(row.ended), row.toatoms(), reason_of_values(row.key_value_pairs)
    return Refined(row.refined_trial, atoms, ended, reason, row.refined_fmax, bool(row.verified), *spent)
