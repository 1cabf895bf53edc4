"""Noise levels."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ase_gss import InputError
from ase_gss.schedule import ConstantNoise, Schedule


@given(st.floats(0.5, 20), st.floats(0.001, 0.4), st.integers(1, 60))
def test_levels_fall_to_zero_and_steps_add_up(sigma_max, sigma_min, n_steps):
    schedule = Schedule(sigma_max, sigma_min, n_steps)
    assert schedule.sigma(0) == pytest.approx(sigma_max)
    assert schedule.sigmas[-1] == 0
    assert np.all(np.diff(schedule.sigmas) < 0)
    assert sum(schedule.drift(k) for k in range(n_steps)) == pytest.approx(sigma_max**2)
    assert schedule.noise(n_steps - 1) == 0
    for k in range(n_steps):  # ancestral: what is taken away and put back leaves the variance of the next level
        s0, s1 = schedule.sigmas[k : k + 2]
        assert (s1**2 / s0**2 * s0) ** 2 + schedule.noise(k) ** 2 == pytest.approx(s1**2)


def test_starting_lower_keeps_the_levels_below():
    schedule = Schedule()
    part = schedule.starting_at(0.5)
    assert part.sigma(0) == pytest.approx(0.5)
    assert part.sigmas[-2] == pytest.approx(schedule.sigmas[-2])
    assert 0 < part.n_steps < schedule.n_steps


@pytest.mark.parametrize("wrong", [{"sigma_max": 0.01}, {"sigma_min": 0}, {"n_steps": -1}, {"rho": 0}])
def test_impossible_schedules_are_refused(wrong):
    with pytest.raises(InputError):
        Schedule(**wrong)


def test_constant_noise():
    schedule = ConstantNoise(0.05, 0.01, 7)
    assert (schedule.sigma(3), schedule.drift(6), schedule.noise(0)) == (0.05, 0.01, pytest.approx(0.02**0.5))
    with pytest.raises(InputError):
        ConstantNoise(step=0)
