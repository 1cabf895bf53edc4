"""Couplings: how score, noise and physical force are weighed against each other along the schedule.

A coupling is any object with `point`, one of "x", "x_diff" and "x0" (where the force is taken: at the structure, at
the step that plain diffusion proposes, at the Tweedie estimate x + sigma²·score), and
`weights(k, n_steps, sigma)` -> (w_s, w_n, w_f). Where w_f is 0 there is no force call. It may have a `gain` (Å²/eV)
and a `schedule()` of its own; with `moves_cell = False` the cell of a crystal stays as it is.
"""

from dataclasses import asdict, dataclass
from typing import ClassVar, Protocol

import numpy as np
from ase import units

from ase_gss.errors import InputError
from ase_gss.schedule import CRYSTAL_SCHEDULE, ConstantNoise, NoiseSchedule, Schedule

POINTS = ("x", "x_diff", "x0")
Weights = tuple[float, float, float]


class Coupling(Protocol):
    """What the sampler needs to know about a coupling."""

    point: str

    def weights(self, k: int, n_steps: int, sigma: float) -> Weights:
        """Weights of score, noise and force in step k, which starts at `sigma` (Å)."""


@dataclass(frozen=True)
class _ReverseDiffusion:
    """What the couplings along a falling sigma share.

    Parameters
    ----------
    score_scale : float
        Factor of the score's displacement while sigma is above `hot_above`. Below 1 the structure keeps more of the
        noise ("hot"): samples are less typical of the training data and cover more.
    hot_above : float
        Å.
    """

    score_scale: float = 1.0
    hot_above: float = 0.3

    point: ClassVar[str] = "x"
    name: ClassVar[str] = ""

    def _score_weight(self, sigma: float) -> float:
        return self.score_scale if sigma > self.hot_above else 1.0

    def schedule(self) -> NoiseSchedule:
        """The default schedule."""
        return Schedule()

    def todict(self) -> dict:
        """Name and parameters."""
        return {"name": self.name} | asdict(self)


@dataclass(frozen=True)
class Diffusion(_ReverseDiffusion):
    """The plain sampler: no forces."""

    name: ClassVar[str] = "diffusion"

    def weights(self, k: int, n_steps: int, sigma: float) -> Weights:
        """(1, 1, 0)."""
        return self._score_weight(sigma), 1.0, 0.0


@dataclass(frozen=True)
class Hot(Diffusion):
    """Diffusion that keeps more of the noise while bonds are still open."""

    score_scale: float = 0.7

    name: ClassVar[str] = "hot"


@dataclass(frozen=True)
class Mi(_ReverseDiffusion):
    """Interpolation between the proposed diffusion step and the force there: (1-a, 1-a, a).

    a = sigmoid((k - k_mid) / k_scale), from step `start` on; all three in units of the number of steps. The defaults
    are the published ones (100, 150 and the last 750 of 1000 steps; arXiv:2604.27636). A search dynamics: it cools.
    """

    k_mid: float = 0.1
    k_scale: float = 0.15
    start: float = 0.25
    gain: float = 0.0037

    point: ClassVar[str] = "x_diff"
    name: ClassVar[str] = "mi"

    def weights(self, k: int, n_steps: int, sigma: float) -> Weights:
        """(1, 1, 0) before `start`, (1-a, 1-a, a) after it."""
        score = self._score_weight(sigma)
        fraction = k / n_steps
        if fraction < self.start:
            return score, 1.0, 0.0
        a = 1 / (1 + np.exp(-(fraction - self.k_mid) / self.k_scale))
        return (1 - a) * score, 1 - a, a


@dataclass(frozen=True)
class Mn(_ReverseDiffusion):
    """Diffusion plus the force at the Tweedie estimate, once sigma (Å) is below `below`."""

    below: float = 0.5
    gain: float = 0.05

    point: ClassVar[str] = "x0"
    name: ClassVar[str] = "mn"

    def weights(self, k: int, n_steps: int, sigma: float) -> Weights:
        """(1, 1, 1) below the threshold, (1, 1, 0) above it."""
        return self._score_weight(sigma), 1.0, float(sigma < self.below)


@dataclass(frozen=True)
class Force:
    """Plain descent x' = x + gain·F(x); needs no score."""

    gain: float = 0.005

    point: ClassVar[str] = "x"
    name: ClassVar[str] = "force"

    def weights(self, k: int, n_steps: int, sigma: float) -> Weights:
        """(0, 0, 1)."""
        return 0.0, 0.0, 1.0

    def schedule(self) -> NoiseSchedule:
        """A hundred steps from the positions as they are; the noise level is not used."""
        return ConstantNoise(n_steps=100)

    def todict(self) -> dict:
        """Name and parameters."""
        return {"name": self.name} | asdict(self)


@dataclass(frozen=True)
class Langevin:
    """Langevin steps in a mixture of score and force: x' = x + e·[(1-a)·score + a·F/kT] + sqrt(2e)·xi.

    With a score that equals F/kT this samples the Boltzmann distribution for every a. The cell of a crystal stays.

    Parameters
    ----------
    mix : float
        a, from 0 (score only, no force calls) to 1.
    temperature_K : float
        Temperature of the physical part, K.
    step : float
        e, Å².
    level : float
        Noise level of the score, Å.
    n_steps : int
        Length of the default schedule.
    """

    mix: float = 0.5
    temperature_K: float = 300.0
    step: float = 1e-4
    level: float = 0.02
    n_steps: int = 1000

    point: ClassVar[str] = "x"
    name: ClassVar[str] = "langevin"
    moves_cell: ClassVar[bool] = False

    @property
    def gain(self) -> float:
        """e/kT, Å²/eV."""
        return self.step / (units.kB * self.temperature_K)

    def weights(self, k: int, n_steps: int, sigma: float) -> Weights:
        """(1-a, 1, a)."""
        return 1 - self.mix, 1.0, self.mix

    def schedule(self) -> NoiseSchedule:
        """Constant noise with this step."""
        return ConstantNoise(self.level, self.step, self.n_steps)

    def todict(self) -> dict:
        """Name and parameters."""
        return {"name": self.name} | asdict(self)


COUPLINGS = {coupling.name: coupling for coupling in (Diffusion, Hot, Mi, Mn, Force, Langevin)}


def get_coupling(coupling: str | Coupling) -> Coupling:
    """A coupling by its name with default parameters; an object is checked and returned.

    Raises
    ------
    InputError
        For an unknown name, or an object that is not a coupling.
    """
    if isinstance(coupling, str):
        if coupling not in COUPLINGS:
            raise InputError(f"No coupling {coupling!r}: give one of {', '.join(COUPLINGS)} (in a search also rss).")
        return COUPLINGS[coupling]()
    if getattr(coupling, "point", None) not in POINTS or not callable(getattr(coupling, "weights", None)):
        raise InputError("A coupling needs `point` (x, x_diff or x0) and a method `weights(k, n_steps, sigma)`.")
    return coupling


def default_schedule(coupling: Coupling, periodic: bool = False) -> NoiseSchedule:
    """The schedule of a coupling, in a periodic structure that of crystals where it falls."""
    schedule = coupling.schedule() if hasattr(coupling, "schedule") else Schedule()
    return CRYSTAL_SCHEDULE if periodic and schedule == Schedule() else schedule
