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
    returned : set of int
        Trials that came back to the minimum that they were made from, which is no hit.
    """

    def __init__(self, archive: Archive, below: float = inf, starts: bool = False) -> None:
        comparison = comparison_of(archive.metadata.get("settings", {}))
        self.minima, self.memory = MinimaList(comparison), Memory(comparison)
        self.ledger = Ledger(window_of(archive.metadata.get("settings", {})))
        self._archive = archive
        self._calls = 0
        self.minimum_of: dict[int, int] = {}
        self.returned: set[int] = set()
        self._first_trials: list[int] = []
        self._turnable: list[bool] = []
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
        index, energy, is_new, parent = None, inf, False, self.minimum_of.get(record.parent)
        if record.ended is Ended.MINIMUM:
            end = self._archive.atoms_of(record.number) if atoms is None else atoms
            index, is_new = self.minima.add(end, record.energy, record.number, self._calls, hits=0)
            self.minimum_of[record.number] = index
            if is_new:
                self._first_trials.append(record.number)
                # Described once: the memory compares by the same fingerprint, only without its energy.
                described = self.minima.described(index)
                self.memory.remember_described(described, record.number)
                self._turnable.append(isinstance(described, Fingerprint) and bool(turnable_bonds(described.graph)))
            energy = self.minima.described(index).ranking_energy
        elif record.known is not None:
            index = self.minimum_of[record.known]
        returned = index is not None and not is_new and index == parent
        if returned:
            self.returned.add(record.number)
        elif index is not None:
            self.minima.hit(index)
        if start is not None and index is not None:
            self.memory.remember_start(start, record.number, self._first_trials[index])
        # A sample in pieces has cost no call: it was not relaxed either.
        relaxed = record.force_calls > 0 and record.ended not in (Ended.KNOWN, Ended.FAMILIAR, Ended.BUDGET)
        # What is turned says nothing of what is sampled with the same bonds.
        entry = Entry(
            record.number,
            record.regime,
            record.force_calls,
            minimum=index,
            energy=energy,
            bonds=record.bonds if relaxed and not record.turned else "",
            came=record.ended is Ended.MINIMUM,
            returned=returned,
            second_look=record.second_look,
            turned=parent if record.turned else None,
            turnable=index is not None and self._turnable[index],
        )
        self.ledger.enter(entry)
