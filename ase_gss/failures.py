"""The share of trials that fail: where it is large, not the structures are at fault, but the set-up."""

from ase_gss.trial import Ended, Trial

#: The share means something from so many trials on.
ENOUGH_TRIALS = 20


class SearchError(RuntimeError):
    """The search cannot go on; the message says why."""


class Failures:
    """Counts the trials that the calculator, an error in the optimizer or a lost cell has ended.

    Parameters
    ----------
    limit : float
        Share of the trials that may fail.
    """

    def __init__(self, limit: float) -> None:
        self.limit = limit
        self._judged = self._failed = 0
        self._last = ""

    def count(self, trial: Trial) -> None:
        """Take a finished trial into account; those that were never relaxed say nothing."""
        in_pieces_before = trial.ended is Ended.FRAGMENTS and not trial.force_calls
        if in_pieces_before or trial.ended in (Ended.KNOWN, Ended.FAMILIAR, Ended.BUDGET):
            return
        self._judged += 1
        if trial.ended.is_failure or trial.ended is Ended.CELL:
            self._failed += 1
            self._last = f"{trial.ended}: {trial.reason}"

    def check(self) -> None:
        """Raise `SearchError` where too many have failed."""
        if self._judged >= ENOUGH_TRIALS and self._failed > self.limit * self._judged:
            raise SearchError(
                f"{self._failed} of {self._judged} trials have failed, more than the limit of {self.limit:.0%}, "
                f"the last so: {self._last}"
            )
