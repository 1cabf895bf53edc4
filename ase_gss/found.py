"""What the finished trials have found."""

from math import inf

from ase import Atoms

from ase_gss.archive import Archive, Record
from ase_gss.ledger import Entry, Ledger
from ase_gss.memory import Memory
from ase_gss.minima import Fingerprint, MinimaList
from ase_gss.systems import comparison_of, window_of
from ase_gss.trial import Ended
from ase_gss.turning import turnable_bonds


class Found:
    """What the trials of an archive have found: the distinct minima, as compared while searching, and what was tried.

    Parameters
    ----------
    archive : Archive
        Of the search.
    below : int, optional
        Take up the trials below this number only.
    starts : bool
        Read where relaxations have begun, too: only a search that goes on recognises by that.

    Attributes
    ----------
    minima : MinimaList
        Distinct minima.
    memory : Memory
        Structures that need not be relaxed again.
    ledger : Ledger
        What each way to make a trial has cost and found.
    minimum_of : dict
        Index in the list of the minimum that each trial was relaxed to.
    """

    def __init__(self, archive: Archive, below: float = inf, starts: bool = False) -> None:
        comparison = comparison_of(archive.metadata.get("settings", {}))
        self.minima, self.memory = MinimaList(comparison), Memory(comparison)
        self.ledger = Ledger(window_of(archive.metadata.get("settings", {})))
        self._archive = archive
        self._calls = 0
        self.minimum_of: dict[int, int] = {}
        self._first_trials: list[int] = []
        begun = archive.starts(archive.records) if starts and self.memory.compares_starts else {}
        for record, atoms in archive.ends():
            if record.number < below:
                self.take_up(record, atoms, begun.get(record.number))

    def take_up(self, record: Record, atoms: Atoms | None = None, start: Atoms | None = None) -> None:
        """Learn from the next finished trial.

        Parameters
        ----------
        record : Record
            Of the archive.
        atoms : Atoms, optional
            Its end; by default read from the archive where it is needed.
        start : Atoms, optional
            Where its relaxation has begun.
        """
        self._calls += record.force_calls
        index, energy, turnable = None, inf, False
        if record.ended is Ended.MINIMUM:
            end = self._archive.atoms_of(record.number) if atoms is None else atoms
            index, is_new = self.minima.add(end, record.energy, record.number, self._calls)
            self.minimum_of[record.number] = index
            if is_new:
                self._first_trials.append(record.number)
                # Described once: the memory compares by the same fingerprint, only without its energy.
                described = self.minima.described(index)
                self.memory.remember_described(described, record.number)
                turnable = isinstance(described, Fingerprint) and bool(turnable_bonds(described.graph))
            energy = self.minima.described(index).ranking_energy
        elif record.known is not None and record.known != record.parent:  # to turn back is to meet nothing
            index = self.minimum_of[record.known]
            self.minima.hit(index)
        if start is not None and index is not None:
            self.memory.remember_start(start, record.number, self._first_trials[index])
        # A sample in pieces has cost no call: it was not relaxed either.
        relaxed = record.force_calls > 0 and record.ended not in (Ended.KNOWN, Ended.FAMILIAR, Ended.BUDGET)
        # What is turned says nothing of what is sampled with the same bonds.
        bonds = record.bonds if relaxed and record.parent is None else ""
        came, parent = record.ended is Ended.MINIMUM, self.minimum_of.get(record.parent)
        lookalike = came and record.known is not None
        spent = record.regime, record.force_calls
        self.ledger.enter(Entry(record.number, *spent, index, energy, bonds, came, lookalike, parent, turnable))
