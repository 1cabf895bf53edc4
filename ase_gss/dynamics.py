"""Generative structure search as an ASE dynamics."""

from collections.abc import Iterator
from typing import IO, Any

import numpy as np
from ase import Atoms
from ase.md.md import MolecularDynamics

from ase_gss.cell import cell_out_of_bounds
from ase_gss.coupling import Coupling, default_schedule, get_coupling
from ase_gss.errors import InputError
from ase_gss.forces import CalculatorFailure, CountedCalculator, energy_and_forces, energy_forces_and_stress
from ase_gss.relax import DEFAULT_OPTIMIZER, Relaxation, hand_off
from ase_gss.schedule import ConstantNoise, NoiseSchedule
from ase_gss.walk import Walk, complete, propose

#: So many failures of the calculator one after the other mean that the set-up is wrong.
MAX_FAILURES = 20

HEADER = f"{'Step':>5} {'sigma/Å':>9} {'w_score':>8} {'w_noise':>8} {'w_force':>8} {'Epot/eV':>14} {'Fmax/eV/Å':>10} "
HEADER += f"{'dScore/Å':>9}"


class CellOutOfBounds(RuntimeError):
    """The cell that was being sampled has collapsed, become flat or flown apart; the message says which."""


class GSSDynamics(MolecularDynamics):
    """Sample one structure: each step follows a learned score and, where the coupling asks for it, a physical force.

    Of a structure that is periodic in all three directions and has no fixed atoms the cell is sampled, too.

    The physical calculator is the one attached to the atoms; it is called only in steps whose coupling gives the
    force a weight, and not at all where none does. No time passes and no momenta are kept.

    Parameters
    ----------
    atoms : Atoms
        The structure; moved in place. Atoms held by FixAtoms stay and are context to the score.
    score : str, path or Score, optional
        What :func:`ase_gss.load_score` takes; by default "molecules", for periodic structures "crystals". Or any
        callable ``score(numbers, positions, sigma, structure)`` of arrays (A,), (A, 3), (A,), (A,) that returns (A, 3)
        in 1/Å. That of a periodic structure gets ``cells`` (S, 3, 3) and ``sigma_cell`` (S,) as well and returns the
        score of the strain (S, 3, 3), too.
    coupling : str or Coupling
        "diffusion", "hot", "mi", "mn", "force", "langevin", or an object with ``point`` and ``weights``.
    schedule : Schedule or ConstantNoise, optional
        Noise levels; by default the coupling's own.
    sigma_start : float, optional
        Noise (Å) added to the given positions at the first step; the schedule begins there. By default a falling
        schedule begins from pure noise about the centre of the free atoms (the given positions are replaced; in a
        crystal by positions anywhere in the cell, whose shape is that given but for noise), and a constant one from
        the positions as they are.
    gain : float, optional
        g in Å²/eV; by default the coupling's own.
    max_step : float
        Largest displacement (Å) of an atom by the force in one step. A longer one is shortened as a whole, keeping its
        direction, and marked in the log.
    keep_centre : bool, optional
        Hold the centre of mass; by default for a molecule without fixed atoms.
    pressure : float
        External pressure on a cell that moves, eV/Å3.
    rng : numpy.random.Generator, optional
        Source of all randomness.
    trajectory, logfile, loginterval, append_trajectory
        As in every ASE dynamics. The energy and the largest force in the log belong to the point where they were
        computed, which for "mi" and "mn" is not the structure itself.

    Raises
    ------
    InputError
        For a coupling, schedule or constraint that cannot be used.
    CellOutOfBounds
        Where the cell collapses; the atoms keep the step before.
    CalculatorFailure
        After 20 failures of the calculator in a row; a single one only leaves the force out of its step.

    Examples
    --------
    >>> dyn = GSSDynamics(atoms, score="molecules", coupling="mn", logfile="-")
    >>> dyn.run()
    >>> dyn.hand_off(fmax=0.05)
    """

    def __init__(
        self,
        atoms: Atoms,
        score: Any = None,
        coupling: str | Coupling = "mn",
        schedule: NoiseSchedule | None = None,
        sigma_start: float | None = None,
        gain: float | None = None,
        max_step: float = 0.2,
        keep_centre: bool | None = None,
        pressure: float = 0.0,
        rng: np.random.Generator | None = None,
        trajectory: str | None = None,
        logfile: IO | str | None = None,
        loginterval: int = 1,
        append_trajectory: bool = False,
    ) -> None:
        self.coupling = get_coupling(coupling)
        if schedule is None:
            schedule = default_schedule(self.coupling, bool(atoms.pbc.any()))
        if sigma_start is not None and not sigma_start > 0:
            raise InputError(f"sigma_start must be a positive noise level in Å, not {sigma_start}.")
        if sigma_start is not None and hasattr(schedule, "starting_at"):
            schedule = schedule.starting_at(sigma_start)
        self.schedule, self.sigma_start = schedule, sigma_start
        from ase_gss.score import score_for  # torch is needed only here

        self.score = score_for(atoms.numbers, bool(atoms.pbc.any()), score)
        self.walk = Walk.from_atoms(
            atoms, schedule, self.coupling, rng or np.random.default_rng(), gain, max_step, keep_centre, pressure
        )
        super().__init__(
            atoms, timestep=1.0, trajectory=trajectory, loginterval=loginterval, append_trajectory=append_trajectory
        )
        self.atoms.arrays.pop("momenta", None)  # the base class has put zeros there
        self.loginterval = loginterval
        self._log = self.openfile(file=logfile, comm=self.comm, mode="a") if logfile is not None else None
        self.force_calls = 0
        self._failures = 0
        self._started = False
        self._last: dict[str, Any] = {}

    def todict(self) -> dict[str, Any]:
        """Parameters, as they are written into a trajectory."""
        coupling = self.coupling.todict() if hasattr(self.coupling, "todict") else {"name": repr(self.coupling)}
        return {
            "type": "molecular-dynamics",
            "md-type": self.__class__.__name__,
            "coupling": coupling,
            "n_steps": self.schedule.n_steps,
            "sigma_start": self.sigma_start,
            "gain": self.walk.gain,
            "max_step": self.walk.max_step,
            "keep_centre": self.walk.keep_centre,
            "pressure": self.walk.pressure,
        }

    def run(self, steps: int | None = None) -> bool:
        """Take `steps` steps, by default all that remain of the schedule.

        Returns
        -------
        bool
            True where the schedule has come to its end.
        """
        for _ in self.irun(steps):
            pass
        return self.walk.finished

    def irun(self, steps: int | None = None) -> Iterator[bool]:
        """As `run`, step by step."""
        remaining = self.schedule.n_steps - self.walk.k
        if not self._started and self.schedule.n_steps:
            self._start()
        yield from super().irun(remaining if steps is None else min(steps, remaining))

    def step(self) -> None:
        """One step of the schedule."""
        if self.walk.finished:
            raise InputError("The schedule has come to its end: make a new GSSDynamics to sample again.")
        self._read_atoms()
        propose([self.walk], self.score)
        sigma, wanted = self.walk.sigma, self.walk.weights
        energy, forces, stress, failure = None, None, None, ""
        if self.walk.point is not None:
            energy, forces, stress, failure = self._physical_force()
        complete([self.walk], [forces], [stress])
        self._write_atoms()
        self._last = {"sigma": sigma, "weights": wanted, "energy": energy, "forces": forces, "failure": failure}

    def hand_off(self, optimizer: Any = DEFAULT_OPTIMIZER, fmax: float = 0.05, **keywords) -> Relaxation:
        """Relax the atoms with their own calculator, and a cell that was sampled with them.

        Its calls count among `force_calls`.

        See :func:`ase_gss.relax.hand_off`.
        """
        if self.walk.free_cell:
            keywords.setdefault("pressure", self.walk.pressure)
        physical = self.atoms.calc
        if physical is None:
            raise InputError("The hand-off needs forces: attach a calculator to the atoms.")
        self.atoms.calc = counted = CountedCalculator(physical)
        try:
            return hand_off(self.atoms, optimizer, fmax, **keywords)
        finally:
            self.atoms.calc = physical
            self.force_calls += counted.calls

    def log(self) -> None:
        """One line for the last step, and the header before the first."""
        if self._log is None or self.nsteps % self.loginterval:
            return
        if self.nsteps == 0:
            self._log.write(HEADER + "\n")
        last, walk = self._last, self.walk
        w_score, w_noise, w_force = last.get("weights", (0.0, 0.0, 0.0))
        energy = f"{last['energy']:14.4f}" if last.get("energy") is not None else f"{'-':>14}"
        forces = last.get("forces")
        fmax = f"{np.linalg.norm(forces, axis=1).max():10.4f}" if forces is not None else f"{'-':>10}"
        remark = "  capped" if walk.capped else f"  no force: {last['failure']}" if last.get("failure") else ""
        self._log.write(
            f"{self.nsteps:5d} {last.get('sigma', walk.sigma):9.4f} {w_score:8.3f} {w_noise:8.3f} {w_force:8.3f} "
            f"{energy} {fmax} {walk.largest_score:9.4f}{remark}\n"
        )
        self._log.flush()

    def _start(self) -> None:
        """Put the noise of the first level on the atoms."""
        self._started = True
        self._read_atoms()
        if self.sigma_start is not None:
            self.walk.scatter(self.sigma_start)
        elif not isinstance(self.schedule, ConstantNoise):
            self.walk.scatter_from_nothing(self.schedule.sigma(0))
        self._write_atoms()

    def _read_atoms(self) -> None:
        """Take up what others have done to the atoms."""
        self.walk.positions = self.atoms.get_positions()
        if self.walk.cell is not None:
            self.walk.cell = self.atoms.cell.array.copy()

    def _write_atoms(self) -> None:
        if self.walk.free_cell:  # a fixed one is the caller's, whatever vacuum is in it
            if reason := cell_out_of_bounds(
                Atoms(self.walk.numbers, self.walk.positions, cell=self.walk.cell, pbc=True), contacts=False
            ):
                raise CellOutOfBounds(f"Sampling has ended at step {self.walk.k}: {reason}.")
            self.atoms.set_cell(self.walk.cell)
        self.atoms.set_positions(self.walk.positions, apply_constraint=False)

    def _physical_force(self) -> tuple[float | None, np.ndarray | None, np.ndarray | None, str]:
        """Energy, forces, stress and "" at the walk's point; None and the reason where the calculator fails."""
        walk, stress = self.walk, None
        if self.atoms.calc is None:
            raise InputError(
                f"The coupling needs forces at sigma = {walk.sigma:.3g} Å: attach a calculator to the atoms."
            )
        if walk.free_cell and (
            reason := cell_out_of_bounds(Atoms(walk.numbers, walk.point, cell=walk.point_cell, pbc=True))
        ):
            return None, None, None, reason
        self.force_calls += 1
        calculator = CountedCalculator(self.atoms.calc)
        try:
            if walk.free_cell:
                energy, forces, stress = energy_forces_and_stress(self.atoms, walk.point, walk.point_cell, calculator)
            else:
                energy, forces = energy_and_forces(self.atoms, walk.point, calculator)
        except CalculatorFailure as failure:
            self._failures += 1
            if self._failures >= MAX_FAILURES:
                raise CalculatorFailure(
                    f"The calculator failed {MAX_FAILURES} times in a row, last with {failure}"
                ) from failure
            return None, None, None, str(failure)
        self._failures = 0
        return energy, forces, stress, ""

    def _refresh_properties(self) -> None:
        """Nothing: a step without a force call must not cause one."""
