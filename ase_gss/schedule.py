"""Noise levels: how sigma falls, and what one step of the reverse process is at each level."""

from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np

from ase_gss.errors import InputError

#: Noise of a cell (strain) where the positions' is 1 Å.
CELL_NOISE = 0.15


def cell_noise(sigma: float | np.ndarray) -> float | np.ndarray:
    """Noise level of a cell, a strain, where that of the positions is `sigma` (Å).

    It falls with the square root only: where the atoms are nearly in place, at 0.02 Å, a strain of 2 % is left to be
    judged. One proportional to sigma would be far below what a universal model knows of bond lengths.
    """
    return CELL_NOISE * np.sqrt(sigma)


class NoiseSchedule(Protocol):
    """What the sampler needs to know about the noise; k counts from the maximum noise."""

    n_steps: int

    def sigma(self, k: int) -> float:
        """Noise level before step k, Å."""

    def drift(self, k: int) -> float:
        """Factor of the score in step k, Å²."""

    def noise(self, k: int) -> float:
        """Standard deviation of the noise that step k adds, Å."""

    def sigma_cell(self, k: int) -> float:
        """Noise level of a crystal's cell before step k, a strain; with 0 the cell is context."""

    def drift_cell(self, k: int) -> float:
        """Factor of the cell's score in step k."""

    def noise_cell(self, k: int) -> float:
        """Standard deviation of the strain that step k adds."""


@dataclass(frozen=True)
class Schedule:
    """Reverse diffusion from `sigma_max` to `sigma_min` and, in the last step, to no noise at all.

    Levels are those of EDM (Karras et al., arXiv:2206.00364, Eq. 5). Steps are ancestral: from sigma to sigma',

        drift = sigma² - sigma'²,    noise² = sigma'² (sigma² - sigma'²) / sigma²

    Parameters
    ----------
    sigma_max, sigma_min : float
        First and last noise level, Å.
    n_steps : int
        Number of steps, each one score call; 0 leaves the structure as it is.
    rho : float
        The larger, the more of the steps lie at small noise.
    """

    sigma_max: float = 4.0
    sigma_min: float = 0.02
    n_steps: int = 30
    rho: float = 7.0

    def __post_init__(self) -> None:
        if not (0 < self.sigma_min <= self.sigma_max and self.n_steps >= 0 and self.rho > 0):
            raise InputError(
                "A schedule needs 0 < sigma_min <= sigma_max, no negative number of steps and a positive rho."
            )

    @cached_property
    def sigmas(self) -> np.ndarray:
        """Noise levels (n_steps + 1,) in Å; the last is 0."""
        ends = self.sigma_max ** (1 / self.rho), self.sigma_min ** (1 / self.rho)
        return np.append(np.linspace(*ends, self.n_steps) ** self.rho, 0.0)

    def sigma(self, k: int) -> float:
        """Noise level before step k, Å."""
        return float(self.sigmas[k])

    def drift(self, k: int) -> float:
        """Factor of the score in step k, Å²."""
        return float(self.sigmas[k] ** 2 - self.sigmas[k + 1] ** 2)

    def noise(self, k: int) -> float:
        """Standard deviation of the noise that step k adds, Å."""
        return float(self.sigmas[k + 1] / self.sigmas[k] * np.sqrt(self.drift(k)))

    def sigma_cell(self, k: int) -> float:
        """Noise level of a crystal's cell before step k; see `cell_noise`."""
        return float(cell_noise(self.sigmas[k]))

    def drift_cell(self, k: int) -> float:
        """Factor of the cell's score in step k."""
        return self.sigma_cell(k) ** 2 - self.sigma_cell(k + 1) ** 2

    def noise_cell(self, k: int) -> float:
        """Standard deviation of the strain that step k adds."""
        return float(self.sigma_cell(k + 1) / self.sigma_cell(k) * np.sqrt(self.drift_cell(k)))

    def starting_at(self, sigma: float) -> "Schedule":
        """The part of this schedule below `sigma` (Å), beginning exactly there; nothing of one without steps."""
        if not self.n_steps:
            return self
        below = int(np.sum((self.sigmas < sigma) & (self.sigmas > 0)))
        return Schedule(sigma, min(self.sigma_min, sigma), below + 1, self.rho)


#: For crystals, whose atoms are anywhere in the cell at 3 Å.
CRYSTAL_SCHEDULE = Schedule(sigma_max=3.0, sigma_min=0.02, n_steps=50, rho=5.0)


@dataclass(frozen=True)
class ConstantNoise:
    """Langevin steps x' = x + step·drift(x) + sqrt(2 step)·xi at one noise level.

    Parameters
    ----------
    level : float
        Noise level at which the score is taken, Å.
    step : float
        Step e of the Euler-Maruyama discretisation, Å²; the stationary distribution is exact as e goes to 0.
    n_steps : int
        Number of steps.
    """

    level: float = 0.02
    step: float = 1e-4
    n_steps: int = 1000

    def __post_init__(self) -> None:
        if not (self.level > 0 and self.step > 0 and self.n_steps >= 1):
            raise InputError("Constant noise needs a positive level, a positive step and at least one step.")

    def sigma(self, k: int) -> float:
        """Noise level before step k, Å."""
        return self.level

    def drift(self, k: int) -> float:
        """Factor of the score in step k, Å²."""
        return self.step

    def noise(self, k: int) -> float:
        """Standard deviation of the noise that step k adds, Å."""
        return float(np.sqrt(2 * self.step))

    def sigma_cell(self, k: int) -> float:
        """0: the cell is context."""
        return 0.0

    def drift_cell(self, k: int) -> float:
        """0: the score does not move the cell."""
        return 0.0

    def noise_cell(self, k: int) -> float:
        """0: no noise moves the cell."""
        return 0.0
