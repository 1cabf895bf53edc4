"""Models of torch-sim as ASE calculators that take batches.

torch-sim wraps many neural potentials (MACE, SevenNet, MatterSim, ORB, fairchem, metatomic, graph-pes) in one interface
that takes many structures at once, on a CPU or a GPU. ``pip install 'ase-gss[torch-sim]'`` and the model's package.
"""

from collections.abc import Sequence
from typing import Any

from ase import Atoms
from ase.calculators.calculator import CalculationFailed, Calculator, PropertyNotImplementedError, all_changes
from ase.stress import full_3x3_to_voigt_6_stress

from ase_gss.errors import InputError


class TorchSimCalculator(Calculator):
    """Energy, forces and stress from a model of torch-sim, one by one or in batches.

    Parameters
    ----------
    model : torch_sim.models.interface.ModelInterface
        On its device and in its precision, with forces; the cell of a crystal can be relaxed where it computes the
        stress, too.

    Raises
    ------
    InputError
        Where torch-sim is not installed, or the model computes no forces.

    Examples
    --------
    A search with workers needs a function at the top level of a module::

        def make_calculator():
            from mace.calculators.foundations_models import mace_mp
            from torch_sim.models.mace import MaceModel

            return TorchSimCalculator(MaceModel(mace_mp(return_raw_model=True), device="cuda", compute_stress=True))
    """

    implemented_properties = ["energy", "forces"]

    def __init__(self, model: Any, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        try:
            from torch_sim.io import atoms_to_state
        except ImportError as error:
            raise InputError("A model of torch-sim needs its package: pip install 'ase-gss[torch-sim]'.") from error
        if not model.compute_forces:
            raise InputError("This model computes no forces: make it with compute_forces=True.")
        self.model, self._to_state = model, atoms_to_state
        if model.compute_stress:
            self.implemented_properties = [*self.implemented_properties, "stress"]

    def calculate(self, atoms: Atoms | None = None, properties=None, system_changes=all_changes) -> None:
        """All properties at once."""
        super().calculate(atoms, properties, system_changes)
        (self.results,) = self.calculate_batch([self.atoms], stress="stress" in (properties or ()))

    def calculate_batch(self, structures: Sequence[Atoms], stress: bool) -> list[dict[str, Any]]:
        """Results of each structure, all in one call of the model; see `ase_gss.batch.BatchCalculator`."""
        if stress and "stress" not in self.implemented_properties:
            raise PropertyNotImplementedError("this model computes no stress")
        if any(atoms.pbc.any() and not atoms.pbc.all() for atoms in structures):
            raise CalculationFailed("torch-sim wants structures that are periodic in all directions or in none")
        state = self._to_state(list(structures), self.model.device, self.model.dtype)
        output = {name: value.detach().cpu().double().numpy() for name, value in self.model(state).items()}
        batch, start = [], 0
        for index, atoms in enumerate(structures):
            forces = output["forces"][start : start + len(atoms)]
            start += len(atoms)
            batch.append({"energy": float(output["energy"][index]), "forces": forces})
            if "stress" in output and atoms.cell.rank == 3:
                batch[-1]["stress"] = full_3x3_to_voigt_6_stress(output["stress"][index])
        return batch
