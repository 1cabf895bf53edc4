"""The families of regimes that an adaptive search chooses from, from pure diffusion to random search."""

from ase_gss.coupling import Diffusion, Hot
from ase_gss.regimes import KNOWN, NOISE, RANDOM, TURNED, Regime
from ase_gss.schedule import CRYSTAL_SCHEDULE, Schedule

_HOT, _HOTTER = Hot(0.7), Hot(0.5, hot_above=0.1)
#: The last step of a schedule goes to the Tweedie estimate, here from 1 Å.
_EARLY = Schedule(sigma_min=1.0, n_steps=15)
#: Number of the family of molecules: regimes of the same name were others in an earlier one.
FAMILY = 4
#: Promises are roughly those of the first thousand force calls on C3H6O.
MOLECULES = (
    Regime("diffusion", Diffusion(), Schedule(), NOISE, promise=2.0),
    Regime("hot", _HOT, Schedule(), NOISE, promise=2.0),
    Regime("hotter", _HOTTER, Schedule(), NOISE, promise=1.0),
    Regime("early", _HOT, _EARLY, NOISE, promise=0.7),
    Regime("again", _HOT, Schedule(), KNOWN, sigma=1.2, promise=0.7),
    Regime("turned", Diffusion(), Schedule(n_steps=0), TURNED, promise=2.0),
    Regime("rss", Diffusion(), Schedule(n_steps=0), RANDOM, promise=0.3),
    Regime("settled-hot", _HOT, Schedule(), NOISE, promise=4.0, settled=True),
    Regime("settled-hotter", _HOTTER, Schedule(), NOISE, promise=4.0, settled=True),
    Regime("settled-early", _HOT, _EARLY, NOISE, promise=2.0, settled=True),
    Regime("settled-again", _HOT, Schedule(), KNOWN, sigma=1.2, promise=4.0, settled=True),
    Regime("settled-turned", Diffusion(), Schedule(n_steps=0), TURNED, promise=2.0, settled=True),
    Regime("settled-rss", Diffusion(), Schedule(n_steps=0), RANDOM, promise=2.0, settled=True),
    Regime("settled-learned", _HOT, Schedule(), NOISE, promise=4.0, learned=True, settled=True),
    Regime("settled-learned-hotter", _HOTTER, Schedule(), NOISE, promise=4.0, learned=True, settled=True),
)
CRYSTALS = (
    Regime("diffusion", Diffusion(), CRYSTAL_SCHEDULE, NOISE),
    Regime("again", Diffusion(), CRYSTAL_SCHEDULE, KNOWN, sigma=0.7),
    Regime("rss", Diffusion(), Schedule(n_steps=0), RANDOM, promise=0.5),
)
