"""What a search does with each trial: checked input, and what suits the system where nothing was given."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha1
from typing import TYPE_CHECKING, Any

import numpy as np
from ase import Atoms

from ase_gss.batch import check_batches
from ase_gss.calculator_source import calculator_source
from ase_gss.calculators import check_elements, takes_charge
from ase_gss.composition import same_composition, spin_multiplicity
from ase_gss.coupling import Coupling, default_schedule, get_coupling
from ase_gss.errors import InputError
from ase_gss.families import FAMILY
from ase_gss.forces import CountedCalculator
from ase_gss.frames import Frames
from ase_gss.ledger import GENERATION, Ledger
from ase_gss.lesson import ForceFunction, Part
from ase_gss.regimes import ADAPTIVE, KNOWN, NOISE, RANDOM, TURNED, Regime, choose
from ase_gss.relax import optimizer_class
from ase_gss.schedule import ConstantNoise, NoiseSchedule, Schedule
from ase_gss.symmetry import Symmetry
from ase_gss.systems import System
from ase_gss.trial import Trial
from ase_gss.turning import turned
from ase_gss.walk import ScoreFunction

if TYPE_CHECKING:
    from ase_gss.score.learned_forces import LearnedForces


@dataclass
class Plan:
    """How the trials of a search are made.

    Attributes
    ----------
    system : System
        What is searched.
    new_calculator, calculator_name : callable, str
        Makes the physical calculator; its name.
    score : callable or None
        See `ScoreFunction`; None where nothing is sampled.
    regimes : tuple of Regime
        Ways to make a trial; where there are several, what they have found decides.
    starts, sigma_start : list of Atoms or None, float
        Structures of the user's, and the noise (Å) put on them.
    optimizer : optimizer class
        The hand-off.
    fmax, max_steps : float, int
        Largest force (eV/Å) of a minimum, and optimizer steps after which a trial is given up.
    charge, multiplicity, seed : int
        As for `GenerativeRSS`.
    batch : int
        Structures that go through the calculator in one call.
    forces : LearnedForces or None
        Learned forces that a search begins with.
    settles_at_once : bool
        They know the elements, and there is neither charge nor spin; else the search learns its own from them.
    """

    system: System
    new_calculator: Callable[[], CountedCalculator]
    calculator_name: str
    score: ScoreFunction | None
    regimes: tuple[Regime, ...]
    starts: list[Atoms] | None
    sigma_start: float
    optimizer: type
    fmax: float
    max_steps: int
    charge: int
    multiplicity: int
    seed: int
    batch: int = 1
    forces: "LearnedForces | None" = None
    settles_at_once: bool = False

    @classmethod
    def checked(
        cls,
        system: System,
        calculator: Any,
        *,
        score: Any,
        regime: str | None,
        coupling: str | Coupling | None,
        schedule: NoiseSchedule | None,
        starts: Sequence[Atoms] | None,
        sigma_start: float,
        optimizer: Any,
        fmax: float,
        max_steps: int,
        charge: int,
        multiplicity: int | None,
        seed: int,
        adapt: bool | None,
        forces: Any,
        batch: int,
    ) -> "Plan":
        """The plan for this input, as given to `GenerativeRSS`.

        Raises
        ------
        InputError
            For input that cannot be searched.
        """
        if not (fmax > 0 and max_steps > 0 and sigma_start > 0):
            raise InputError("fmax, max_steps and sigma_start must be positive.")
        if not isinstance(seed, int | np.integer) or seed < 0:
            raise InputError(f"The seed is a whole number, not negative, and not {seed!r}.")
        if not isinstance(batch, int) or batch < 1:
            raise InputError(f"A batch is a whole number of structures, at least one, not {batch!r}.")
        if (charge or multiplicity) and (not isinstance(calculator, str) or system.periodic):
            raise InputError(
                "charge and multiplicity are for molecules with a calculator by name: set them in your own calculator."
            )
        spin = 1 if system.periodic else spin_multiplicity(system.numbers, charge, multiplicity)
        if multiplicity and not takes_charge(calculator):
            raise InputError(f"The calculator {calculator!r} cannot be told a multiplicity: leave it out.")
        regimes = _regimes(system, regime, coupling, schedule, starts is not None)
        if starts is not None and getattr(system, "symmetry", False):
            raise InputError("Own starts have the symmetry that they have: leave out symmetry, or the starts.")
        own_starts = None if starts is None else _own_starts(starts, system)
        optimizer = optimizer_class(optimizer or system.optimizer)
        check_elements(calculator, system.elements)
        new_calculator, name = calculator_source(calculator, charge, spin)
        system.check_calculator(new_calculator())
        if batch > 1:
            check_batches(new_calculator(), name)
        loaded = None
        if any(each.samples for each in regimes):
            from ase_gss.score import score_for  # torch is needed only here

            loaded = score_for(system.elements, system.periodic, score)
        can_adapt = any(each.learned for each in regimes) and hasattr(loaded, "denoiser")
        if adapt and not can_adapt:
            raise InputError(
                "Only an adaptive search for molecules can learn, with a score from a model file: leave out adapt."
            )
        if not can_adapt or adapt is False:
            regimes = tuple(each for each in regimes if not each.learned)
        learns, can_settle = can_adapt and adapt is not False, any(each.settled for each in regimes)
        forces = False if isinstance(forces, str) and forces.lower() == "none" else forces
        own_forces = forces is not None and forces is not False
        if own_forces and not (can_settle and hasattr(loaded, "denoiser")):
            raise InputError(
                "Only an adaptive search for molecules, without a coupling or one regime, takes learned forces: leave "
                "out forces."
            )
        learned_forces, at_once = None, False
        if can_settle and forces is not False and hasattr(loaded, "denoiser"):
            from ase_gss.score.learned_forces import load_forces

            learned_forces = load_forces(forces if own_forces else "molecules-forces")
            # Else they are only what the search learns its own from.
            at_once = learned_forces.knows(system.elements) and charge == 0 and spin == 1
        if not (at_once or learns):
            if own_forces:
                raise InputError(
                    f"The forces {forces} do not know these elements, or this charge or spin, and a search that does "
                    "not learn cannot mend that: leave out forces."
                )
            learned_forces, regimes = None, tuple(each for each in regimes if not each.settled)
        return cls(
            system=system,
            new_calculator=new_calculator,
            calculator_name=name,
            score=loaded,
            regimes=regimes,
            starts=own_starts,
            sigma_start=sigma_start,
            optimizer=optimizer,
            fmax=fmax,
            max_steps=max_steps,
            charge=charge,
            multiplicity=spin,
            seed=int(seed),
            batch=batch,
            forces=learned_forces,
            settles_at_once=at_once,
        )

    @property
    def learns(self) -> bool:
        """There are regimes whose score learns from what has been found."""
        return any(regime.learned for regime in self.regimes)

    def settings(self) -> dict[str, Any]:
        """What is written into the database."""
        single = self.regimes[0] if len(self.regimes) == 1 else None
        return {
            "formula": self.system.formula,
            "calculator": self.calculator_name,
            **({"calculator_parameters": stated} if (stated := self.new_calculator.parameters) else {}),
            "charge": self.charge,
            "multiplicity": self.multiplicity,
            "fmax": self.fmax,
            "seed": self.seed,
            "coupling": ADAPTIVE if single is None else single.described(),
            "regime": next((each.name for each in self.system.family if each == single), None),
            "score": str(getattr(self.score, "name", None)),
            **({"adapt": True} if self.learns else {}),
            **({"forces": self.forces.source} if self.forces is not None else {}),
            **({"family": FAMILY} if single is None and not self.system.periodic else {}),
            **self.system.settings(),
            "n_steps": max(each.schedule.n_steps for each in self.regimes),
            **({} if single is None or not single.samples else {"schedule": _described(single.schedule)}),
            "own_starts": 0 if self.starts is None else len(self.starts),
            **({} if self.starts is None else {"starts": self._digest_of_starts(), "sigma_start": self.sigma_start}),
            "optimizer": self.optimizer.__name__,
            "max_steps": self.max_steps,
        }

    def _digest_of_starts(self) -> str:
        """Tells these starts from others."""
        matter = [
            (a.numbers.tolist(), *((m.round(6) + 0.0).tolist() for m in (a.positions, a.cell.array)))
            for a in self.starts
        ]
        return sha1(repr(matter).encode()).hexdigest()[:16]

    def learn(self, part: Part) -> ScoreFunction | ForceFunction:
        """The score, or the forces, as a part of a lesson has taught them."""
        from ase_gss.score.adapt import adapted  # torch is needed only here
        from ase_gss.score.learned_forces import learn_forces

        if isinstance(part.matter, Frames):
            return learn_forces(self.forces or self.score, self.system.numbers, part.matter, self.seed, part.steps)
        return adapted(self.score, part.matter, self.seed, part.copy, part.steps)

    def begin_generation(self, index: int, numbers: Sequence[int], ledger: Ledger, end_of: Callable) -> list[Trial]:
        """The trials with these numbers, which are all of generation `index` or what is left of it.

        Parameters
        ----------
        index, numbers : int, sequence of int
            Generation, and numbers of the trials.
        ledger : Ledger
            What the regimes have found, as far as this generation may know.
        end_of : callable
            ``end_of(number)`` is the end of an earlier trial, Atoms.
        """
        # A stream of its own, next to those of the trials.
        rng = np.random.default_rng(np.random.SeedSequence(self.seed, spawn_key=(index, 0)))
        settling = self.settles_at_once or (self.learns and ledger.lesson > 0)
        chosen = choose(self.regimes, ledger, GENERATION, rng, settling)
        there = ledger.known_minima(), ledger.visits_to_turnable(), end_of
        trials = [self.begin(number, chosen[number % GENERATION], *there) for number in numbers]
        for trial in trials:
            if trial.settles:
                trial.ceiling = ledger.ceiling
        return trials

    def begin(
        self,
        number: int,
        regime: Regime | None = None,
        known: Sequence[int] = (),
        turnable: Mapping[int, int] | None = None,
        end_of: Callable | None = None,
    ) -> Trial:
        """Trial `number`, at its start; its random stream is from the seed and the number alone.

        Parameters
        ----------
        number : int
            Its number.
        regime : Regime, optional
            By default the first.
        known : sequence of int
            Trials that have met the known minima.
        turnable : dict, optional
            Visits to those that have a part to turn. One with half the visits is taken twice as often: what all trials
            meet has been approached from everywhere.
        end_of : callable
            Gives the ends of these trials.
        """
        rng = np.random.default_rng(np.random.SeedSequence(self.seed, spawn_key=(number,)))
        regime = regime or self.regimes[0]
        coupling, schedule, system, parent = regime.coupling, regime.schedule, self.system, None
        turns = bool(self.starts is None and regime.start == TURNED and turnable)
        if self.starts is not None or (regime.start == KNOWN and known):
            if self.starts is not None:
                atoms, sigma = self.starts[number % len(self.starts)].copy(), self.sigma_start
            else:
                parent = known[rng.integers(len(known))]
                atoms, sigma = end_of(parent).copy(), regime.sigma
                atoms.calc = None
            if hasattr(schedule, "starting_at") and regime.samples:
                schedule = schedule.starting_at(sigma)
            walk = system.walk_from(atoms, rng, schedule, coupling)
            walk.scatter(sigma)
        elif turns:
            rarity = 1 / np.array(list(turnable.values()))
            parent = list(turnable)[rng.choice(len(turnable), p=rarity / rarity.sum())]
            atoms = turned(end_of(parent), rng)
            walk = system.walk_from(atoms, rng, schedule, coupling)
        elif regime.start in (NOISE, KNOWN):
            atoms, walk = system.walk_from_noise(rng, schedule, coupling)
        else:
            atoms = system.random_start(rng)
            walk = system.walk_from(atoms, rng, schedule, coupling)
            if regime.samples and getattr(system, "symmetry", False):
                walk.symmetry = Symmetry.of(atoms)
        return Trial(
            number,
            atoms,
            walk,
            regime=regime.name,
            gives_up=regime.gives_up,
            learned=regime.learned,
            settles=regime.settled,
            parent=parent,
            turned=turns,
        )


def _described(schedule: NoiseSchedule) -> dict[str, str]:
    """Tells this schedule from others."""
    steps = [
        [round(float(f(k)), 9) for f in (schedule.sigma, schedule.drift, schedule.noise)]
        for k in range(schedule.n_steps)
    ]
    return {"name": type(schedule).__name__, "digest": sha1(repr(steps).encode()).hexdigest()[:16]}


def _regimes(
    system: System,
    regime: str | None,
    coupling: str | Coupling | None,
    schedule: NoiseSchedule | None,
    own_starts: bool,
) -> tuple[Regime, ...]:
    """The family, or one regime where a coupling, a schedule or own starts ask for it."""
    if regime is not None and coupling is not None:
        raise InputError("Give a regime or a coupling, not both.")
    if regime is not None and schedule is not None:
        raise InputError("A regime has a schedule of its own: give a coupling to go with yours.")
    if regime is not None and own_starts:
        raise InputError("A regime has starts of its own: give a coupling to go with yours.")
    if regime is not None and getattr(system, "symmetry", False):
        raise InputError("Regimes keep no space group: give a coupling with symmetry.")
    fixed = coupling is not None or schedule is not None or own_starts
    if regime is None:
        regime = None if fixed else system.regime
    family = {each.name: each for each in system.family if not (each.learned or each.settled)}
    if regime == ADAPTIVE:
        if schedule is not None or own_starts:
            raise InputError(
                "An adaptive search has starts and schedules of its own: give a coupling to go with yours."
            )
        return tuple(system.family)
    if regime is not None:
        if regime not in family:
            raise InputError(f"No regime {regime!r}: give one of {', '.join([ADAPTIVE, *family])}.")
        return (family[regime],)
    coupling = coupling or system.coupling
    if isinstance(coupling, str) and coupling == "rss":
        return (Regime("rss", get_coupling("diffusion"), Schedule(n_steps=0), RANDOM, gives_up=False),)
    coupling = get_coupling(coupling)
    schedule = default_schedule(coupling, system.periodic) if schedule is None else schedule
    start = NOISE if schedule.n_steps and not isinstance(schedule, ConstantNoise) else RANDOM
    return (Regime(getattr(coupling, "name", type(coupling).__name__), coupling, schedule, start),)


def _own_starts(starts: Sequence[Atoms], system: System) -> list[Atoms]:
    copies = [atoms.copy() for atoms in ([starts] if isinstance(starts, Atoms) else starts)]
    for atoms in copies:
        system.check_start(atoms)
    allowed = [np.tile(system.numbers, units) for units in getattr(system, "units", (1,))]
    if not copies or not all(any(same_composition(a.numbers, n) for n in allowed) for a in copies):
        raise InputError(f"Every one of the starts must be a structure of {system.formula}, and there must be one.")
    return copies
