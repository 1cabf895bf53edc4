"""The families of regimes that an adaptive search chooses from, from pure diffusion to random search."""

from ase_gss.coupling import Diffusion, Hot
from ase_gss.regimes import KNOWN, NOISE, RANDOM, Regime
from ase_gss.schedule import CRYSTAL_SCHEDULE, Schedule

#: Promises are roughly those of the first thousand force calls on C3H6O.
MOLECULES = (
    Regime("diffusion", Diffusion(), Schedule(), NOISE, promise=2.0),
    Regime("hot", Hot(0.7), Schedule(), NOISE, promise=2.0),
    Regime("hotter", Hot(0.5, hot_above=0.1), Schedule(), NOISE, promise=1.0),
    # The last step of a schedule goes to the Tweedie estimate, here from 1 Å.
    Regime("early", Hot(0.7), Schedule(sigma_min=1.0, n_steps=15), NOISE, promise=0.7),
    Regime("again", Hot(0.7), Schedule(), KNOWN, sigma=1.2, promise=0.7),
    Regime("rss", Diffusion(), Schedule(n_steps=0), RANDOM, promise=0.3),
    Regime("learned", Hot(0.7), Schedule(), NOISE, promise=2.0, learned=True),
    Regime("learned-hotter", Hot(0.5, hot_above=0.1), Schedule(), NOISE, promise=2.0, learned=True),
    Regime("settled", Hot(0.7), Schedule(), NOISE, promise=4.0, learned=True, settled=True),
    Regime("settled-hotter", Hot(0.5, hot_above=0.1), Schedule(), NOISE, promise=4.0, learned=True, settled=True),
)
CRYSTALS = (
    Regime("diffusion", Diffusion(), CRYSTAL_SCHEDULE, NOISE),
    Regime("again", Diffusion(), CRYSTAL_SCHEDULE, KNOWN, sigma=0.7),
    Regime("rss", Diffusion(), Schedule(n_steps=0), RANDOM, promise=0.5),
)
