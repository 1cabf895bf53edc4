"""Regimes: ways to make a trial, and which of them the next trials take."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ase_gss.coupling import Coupling
from ase_gss.ledger import Ledger
from ase_gss.schedule import NoiseSchedule

#: The search that chooses among a family of regimes.
ADAPTIVE = "adaptive"
#: Where a trial starts.
NOISE, RANDOM, KNOWN, TURNED = "noise", "random structure", "known minimum", "known minimum, turned"
#: Share of the trials that go to any regime, whatever it has found, to each for the same cost.
EXPLORING = 0.05
#: After so many generations without a force call its cost is no argument against a regime any more.
PATIENCE = 20
#: What sampling a structure costs, in force calls: a regime whose samples are never relaxed must not look free.
SAMPLING = 0.3
#: What the rate of a regime that samples without learned forces counts where there are some: it wastes what they spare.
BARE = 0.5


@dataclass(frozen=True)
class Regime:
    """One way to make a trial.

    Attributes
    ----------
    name : str
        What the archive calls it.
    coupling, schedule : Coupling, NoiseSchedule
        The sampler's; a schedule without steps goes to the optimizer at once.
    start : str
        `NOISE`: from noise at the first level of the schedule; `RANDOM`: a random structure; `KNOWN`: a minimum that
        earlier generations have found, with noise of `sigma`; `TURNED`: one with a part turned about a bond.
    sigma : float
        Å.
    promise : float
        New minima per force call, next to the other regimes, before anything is known.
    learned : bool
        It takes the score that the search has adapted to what it has found, so that it comes after the first lesson.
    settled : bool
        Its samples are relaxed with learned forces before they cost a force call, those that the search began with or
        has learned since.
    gives_up : bool
        A molecule that falls apart on the way to a minimum is given up, also where the trial began in pieces, and so is
        one that heads for a known end.
    """

    name: str
    coupling: Coupling
    schedule: NoiseSchedule
    start: str = NOISE
    sigma: float = 0.0
    promise: float = 1.0
    gives_up: bool = True
    learned: bool = False
    settled: bool = False

    @property
    def samples(self) -> bool:
        """It takes steps of the sampler."""
        return self.schedule.n_steps > 0

    def described(self) -> str | dict:
        """Name, with the parameters of the coupling where it samples."""
        if not self.samples:
            return self.name
        return self.coupling.todict() if hasattr(self.coupling, "todict") else type(self.coupling).__name__


def choose(
    regimes: Sequence[Regime], ledger: Ledger, n: int, rng: np.random.Generator, settling: bool = False
) -> list[Regime]:
    """Regimes for the next n trials: each goes to the highest of rates drawn at random (Thompson sampling).

    What is sought are new minima per force call. Of a regime with f1 only hits for C force calls this rate has about a
    gamma distribution of shape f1 + its promise and rate C + b; with b a regime of promise 1 is expected to do as well
    as all together. One trial in twenty goes to any regime, so that none is forgotten: to each for the same cost,
    sampling included, so seldom to one whose trials are dear. Equally often, random structures that nothing has settled
    would take a third of the calls of a late search. Where nothing has been worth a force call for long, they are what
    goes on finding, and all are tried equally often.

    Where there are learned forces, a way to sample without them is taken only once some such trials have shown that it
    does better, by far.

    Parameters
    ----------
    regimes : sequence of Regime
        To choose from; those that start from known minima, or turn them, only where there are any to take, and those
        whose score learns only after a lesson.
    ledger : Ledger
        What they have cost and found.
    n : int
        Number of trials.
    rng : numpy.random.Generator
        Source of all randomness.
    settling : bool
        There are learned forces.
    """
    usable = [each for each in regimes if (ledger.lesson or not each.learned) and (settling or not each.settled)]
    there = {KNOWN: ledger.known_minima(), TURNED: ledger.visits_to_turnable()}
    usable = [regime for regime in usable if there.get(regime.start, True)] or usable
    only = ledger.only_hits()
    once = np.array([only.get(regime.name, 0) for regime in usable])
    trials = np.array([ledger.trials.get(each.name, 0) for each in usable])
    cost = np.array([ledger.force_calls.get(each.name, 0) for each in usable]) + SAMPLING * trials
    prior = (cost.sum() + 1) / (once.sum() + 1)
    bare = np.array([settling and not regime.settled and regime.start != TURNED for regime in usable])
    promise = np.where(bare, 0.0, [regime.promise for regime in usable])
    rates = rng.gamma(once + promise, 1 / (cost + prior), size=(n, len(usable))) * np.where(bare, BARE, 1.0)
    explores = rng.random(n) < EXPLORING
    shares = (trials + 1) / (cost + 1) if ledger.idle_generations < PATIENCE else np.ones(len(usable))
    explored = rng.choice(len(usable), size=n, p=shares / shares.sum())
    indices = np.where(explores, explored, np.argmax(rates, axis=1))
    return [usable[index] for index in indices]
