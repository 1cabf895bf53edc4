"""What trials are expected to cost, from what those before them have cost."""

from collections.abc import Iterable

from ase_gss.archive import Record
from ase_gss.jobs import Job

#: Force calls that a trial is expected to need before one has been seen.
EXPECTED_CALLS = 40


class Expectation:
    """Force calls of a trial that costs any, by experience."""

    def __init__(self) -> None:
        self._trials = self._force_calls = 0

    def learn(self, records: Iterable[Record]) -> None:
        """Take finished trials into account."""
        for record in records:
            if record.force_calls:
                self._trials += 1
                self._force_calls += record.force_calls

    @property
    def of_trial(self) -> float:
        """Of one trial."""
        return self._force_calls / self._trials if self._trials else EXPECTED_CALLS

    def of_jobs(self, jobs: Iterable[Job]) -> float:
        """Of jobs under way."""
        return self.of_trial * sum(
            job.stage == "relax" or trial.walk.sampling_force_calls > 0 for job in jobs for trial in job.trials
        )

    def affordable(self, left: float, sampling_force_calls: int = 0) -> int:
        """Trials for which so many force calls are good, at least one; with those of their sampling."""
        return max(1, int(left / max(self.of_trial, sampling_force_calls + 1)))
