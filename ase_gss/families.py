"""The families of regimes that an adaptive search chooses from, from pure diffusion to random search."""

from ase_gss.coupling import Diffusion, Hot
from ase_gss.regimes import KNOWN, NOISE, RANDOM, Regime
from ase_gss.schedule import CRYSTAL_SCHEDULE, Schedule

MOLECULES = (
    Regime("diffusion", Diffusion(), Schedule(), NOISE),
    Regime("hot", Hot(0.7), Schedule(), NOISE),
    Regime("hotter", Hot(0.5, hot_above=0.1), Schedule(), NOISE),
    # The last step of a schedule goes to the Tweedie estimate, here from 1 Å.
    Regime("early", Hot(0.7), Schedule(sigma_min=1.0, n_steps=15), NOISE),
    Regime("again", Hot(0.7), Schedule(), KNOWN, sigma=1.2),
    Regime("rss", Diffusion(), Schedule(n_steps=0), RANDOM),
)
CRYSTALS = (Regime("diffusion", Diffusion(), CRYSTAL_SCHEDULE, NOISE),)
