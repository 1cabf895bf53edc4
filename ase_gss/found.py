"""What the finished trials have found."""

from ase_gss.archive import Archive, Record
from ase_gss.memory import Memory
from ase_gss.minima import MinimaList
from ase_gss.systems import comparison_of
from ase_gss.trial import Ended


class Found:
    """What the trials of an archive have found: the distinct minima, as compared while searching, and what was tried.

    Attributes
    ----------
    minima : MinimaList
        Distinct minima.
    memory : Memory
        Structures that need not be relaxed again.
    """

    def __init__(self, archive: Archive) -> None:
        comparison = comparison_of(archive.metadata.get("settings", {}))
        self.minima, self.memory = MinimaList(comparison), Memory(comparison)
        self._calls = 0
        self._minimum_of: dict[int, int] = {}
        for record in archive.records:
            self.take_up(record)

    def take_up(self, record: Record) -> None:
        """Learn from the next finished trial."""
        self._calls += record.force_calls
        if record.ended is Ended.MINIMUM:
            index, is_new = self.minima.add(record.atoms, record.energy, record.number, self._calls)
            self._minimum_of[record.number] = index
            if is_new:
                self.memory.remember(record.atoms, record.number)
        elif record.known is not None:
            self.minima.hit(self._minimum_of[record.known])
