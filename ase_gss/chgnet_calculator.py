"""CHGNet as an ASE calculator: the published network, several times faster on one core than chgnet's own calculator.

The energy is a function of the vectors between neighbours alone, so one gradient with respect to these gives forces
and stress together; chgnet takes two and keeps both differentiable. And the part of a linear layer that acts on an
atom or a bond is computed once there, not again for each bond or angle that it takes part in.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from ase import Atoms
from ase.calculators.calculator import CalculationFailed, Calculator, PropertyNotImplementedError, all_changes
from ase.stress import full_3x3_to_voigt_6_stress
from matscipy.neighbours import neighbour_list
from torch import Tensor
from torch.nn import Linear
from torch.nn.functional import silu

from ase_gss.allocation import keep_large_blocks

#: Elements that CHGNet has an embedding for.
MAX_ATOMIC_NUMBER = 94


@dataclass(frozen=True)
class Neighbours:
    """The bonds and angles of one structure, or of several one after the other.

    A directed bond is counted from 0 to 2 B: b < B is bond b from `first` to `second`, B + b its reverse.

    Attributes
    ----------
    vectors : array (B, 3)
        From atom `first` to atom `second` (Å), each bond once.
    first, second : array (B,)
        Atoms of each bond.
    left, right : array (A,)
        Angles: ordered pairs of different short directed bonds that start at the same atom.
    """

    vectors: np.ndarray
    first: np.ndarray
    second: np.ndarray
    left: np.ndarray
    right: np.ndarray


def find_neighbours(atoms: Atoms, cutoff: float, angle_cutoff: float) -> Neighbours:
    """Bonds shorter than `cutoff` (Å), and angles between bonds shorter than `angle_cutoff` (Å)."""
    if not atoms.cell.rank:
        atoms = Atoms(atoms.numbers, atoms.positions, cell=np.eye(3))  # matscipy's list wants some cell
    first, second, image, vectors = neighbour_list("ijSD", atoms, cutoff)
    # Of the two directions of a bond keep the one whose first number here that is not zero is positive.
    signs = np.column_stack([second - first, image])
    once = np.take_along_axis(signs, (signs != 0).argmax(axis=1)[:, None], axis=1)[:, 0] > 0
    first, second, vectors = first[once], second[once], vectors[once]
    short = np.tile(np.linalg.norm(vectors, axis=1) < angle_cutoff, 2)
    left, right = _pairs_with_one_start(np.concatenate([first, second]), np.flatnonzero(short), len(atoms))
    return Neighbours(vectors, first, second, left, right)


def _pairs_with_one_start(start: np.ndarray, bonds: np.ndarray, n_atoms: int) -> tuple[np.ndarray, np.ndarray]:
    """Ordered pairs of different ones among `bonds` (S,) whose `start` (2 B,) is one atom."""
    bonds = bonds[np.argsort(start[bonds], kind="stable")]
    at_atom = np.bincount(start[bonds], minlength=n_atoms)
    partners = at_atom[start[bonds]]
    first_partner = (np.cumsum(at_atom) - at_atom)[start[bonds]]
    left = np.repeat(np.arange(len(bonds)), partners)
    running = np.arange(len(left)) - np.repeat(np.cumsum(partners) - partners, partners)
    right = np.repeat(first_partner, partners) + running
    return bonds[left[left != right]], bonds[right[left != right]]


def _joined(parts: Sequence[Neighbours], n_atoms: Sequence[int]) -> Neighbours:
    """The neighbours of several structures, atoms and bonds numbered through."""
    n_bonds = np.array([len(part.first) for part in parts])
    columns = []
    for part, atom, bond, n in zip(parts, _starts(n_atoms), _starts(n_bonds), n_bonds, strict=True):
        # The reverses of all bonds follow all bonds.
        angles = [bond + side + (side >= n) * (n_bonds.sum() - n) for side in (part.left, part.right)]
        columns.append((part.vectors, part.first + atom, part.second + atom, *angles))
    return Neighbours(*(np.concatenate(column) for column in zip(*columns, strict=True)))


def _starts(counts: Sequence[int]) -> np.ndarray:
    return np.cumsum(counts) - counts


class _GatedLayer:
    """chgnet's `GatedMLP` on an input that is given in parts, each where it belongs: at an atom, a bond or an angle."""

    def __init__(self, layer: Any, n_parts: int) -> None:
        core, gate = (
            [one for one in mlp.layers if isinstance(one, Linear)] for mlp in (layer.mlp_core, layer.mlp_gate)
        )
        weights = torch.cat([core[0].weight, gate[0].weight])
        self.parts = [part.T.contiguous() for part in weights.chunk(n_parts, dim=1)]
        self.bias = torch.cat([core[0].bias, gate[0].bias])
        self.later = list(zip(core[1:], gate[1:], strict=True))
        self.norms = layer.bn1, layer.bn2

    def finish(self, hidden: Tensor) -> Tensor:
        """Output (..., F) from the sum of all parts times their weights (..., 2 F), the core's before the gate's."""
        core, gate = (hidden + self.bias).chunk(2, dim=-1)
        for core_layer, gate_layer in self.later:
            core, gate = core_layer(silu(core)), gate_layer(silu(gate))
        return silu(self.norms[0](core)) * torch.sigmoid(self.norms[1](gate))

    def along_angles(self, atoms: Tensor, bonds: Tensor, angles: Tensor, ends: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        """Output (A, F) for each angle, `ends` (A,) being its left bond, its right bond and the atom at its corner."""
        at_left, at_right, at_angle, at_corner = self.parts
        hidden = angles @ at_angle
        for features, weights, end in zip((bonds, bonds, atoms), (at_left, at_right, at_corner), ends, strict=True):
            hidden = hidden + (features @ weights).index_select(0, end)
        return self.finish(hidden)


class CHGNetNetwork:
    """The published CHGNet, for energies, forces and stresses of many structures at once.

    Parameters
    ----------
    model : chgnet.model.CHGNet
        As published: energies per atom, one MLP for each atom before the sum. On whatever device it is.

    Attributes
    ----------
    dtype, device : torch.dtype, torch.device
        Of its parameters, and of what is computed.
    """

    def __init__(self, model: Any) -> None:
        if not (model.is_intensive and model.mlp_first):
            raise ValueError("This CHGNet does not sum its energy over atoms as the published one does.")
        keep_large_blocks()
        self.model = model.eval().requires_grad_(False)
        self.cutoff = model.graph_converter.atom_graph_cutoff
        self.angle_cutoff = model.graph_converter.bond_graph_cutoff
        self.dtype, self.device = model.bond_embedding.weight.dtype, model.bond_embedding.weight.device
        self._atom_layers = [_GatedLayer(layer.twoBody_atom, 3) for layer in model.atom_conv_layers]
        self._bond_layers = [_GatedLayer(layer.twoBody_bond, 4) for layer in model.bond_conv_layers]
        self._angle_layers = [_GatedLayer(layer.twoBody_bond, 4) for layer in model.angle_layers]

    def evaluate(self, structures: Sequence[Atoms]) -> list[tuple[float, np.ndarray, np.ndarray]]:
        """Energy (eV), forces (N, 3) in eV/Å and virial (3, 3) in eV of each structure.

        The virial is the derivative of the energy with respect to strain: the stress times the volume.

        Raises
        ------
        CalculationFailed
            Where an atom has no neighbour, of which CHGNet knows nothing.
        """
        parts = [self._neighbours(atoms) for atoms in structures]
        n_atoms = [len(atoms) for atoms in structures]
        all_of_them = _joined(parts, n_atoms)
        vectors = torch.tensor(all_of_them.vectors, dtype=self.dtype, device=self.device, requires_grad=True)
        numbers = torch.as_tensor(np.concatenate([atoms.numbers for atoms in structures]), device=self.device)
        energies = self._atomic_energies(numbers, vectors, all_of_them)
        (gradients,) = torch.autograd.grad(energies.sum(), vectors)
        energies, gradients = energies.detach().cpu().double().numpy(), gradients.cpu().double().numpy()
        results = []
        for part, atom, bond, n in zip(
            parts, _starts(n_atoms), _starts([len(part.first) for part in parts]), n_atoms, strict=True
        ):
            pull = gradients[bond : bond + len(part.first)]
            forces = np.zeros((n, 3))
            np.add.at(forces, part.first, pull)
            np.subtract.at(forces, part.second, pull)
            virial = part.vectors.T @ pull
            results.append((float(energies[atom : atom + n].sum()), forces, (virial + virial.T) / 2))
        return results

    def _neighbours(self, atoms: Atoms) -> Neighbours:
        neighbours = find_neighbours(atoms, self.cutoff, self.angle_cutoff)
        alone = len(atoms) - len(np.unique(np.concatenate([neighbours.first, neighbours.second])))
        if alone:
            raise CalculationFailed(f"{alone} of {len(atoms)} atoms have no neighbour within {self.cutoff} Å")
        return neighbours

    def _atomic_energies(self, numbers: Tensor, vectors: Tensor, neighbours: Neighbours) -> Tensor:
        """Energies (N,) in eV from atomic numbers (N,) and bond vectors (B, 3) in Å."""
        model = self.model
        first, second, left, right = (
            torch.as_tensor(indices, device=self.device)
            for indices in (neighbours.first, neighbours.second, neighbours.left, neighbours.right)
        )
        n_bonds = len(first)
        start, end = torch.cat([first, second]), torch.cat([second, first])
        # Only bonds that take part in an angle have messages along angles.
        short = torch.unique(left % n_bonds)
        place = torch.zeros(n_bonds, dtype=torch.long, device=self.device)
        place[short] = torch.arange(len(short), device=self.device)
        ends = place[left % n_bonds], place[right % n_bonds], start[left]

        lengths = vectors.norm(dim=1)
        radial = model.bond_basis_expansion.rbf_expansion_ag(lengths)
        atoms = model.atom_embedding(numbers - 1)
        bonds = model.bond_embedding(radial)
        atom_weights = model.bond_weights_ag(radial)
        short_weights = model.bond_weights_bg(model.bond_basis_expansion.rbf_expansion_bg(lengths[short]))
        angle_weights = short_weights.index_select(0, ends[0]) * short_weights.index_select(0, ends[1])
        directions = vectors / lengths[:, None]
        directions = torch.cat([directions, -directions])
        angles = model.angle_embedding(model.angle_basis_expansion(directions[left], directions[right]))

        for k, layer in enumerate(self._atom_layers):
            at_start, at_bond, at_end = layer.parts
            hidden = (atoms @ at_start).index_select(0, start) + (atoms @ at_end).index_select(0, end)
            messages = layer.finish(hidden.view(2, n_bonds, -1) + bonds @ at_bond) * atom_weights
            received = torch.zeros_like(atoms).index_add(0, start, messages.view(2 * n_bonds, -1))
            atoms = atoms + model.atom_conv_layers[k].mlp_out(received)
            if k == len(self._bond_layers) or not len(left):
                continue
            messages = self._bond_layers[k].along_angles(atoms, bonds[short], angles, ends) * angle_weights
            received = torch.zeros_like(bonds[short]).index_add(0, ends[0], messages)
            bonds = bonds.index_add(0, short, model.bond_conv_layers[k].mlp_out(received))
            angles = angles + self._angle_layers[k].along_angles(atoms, bonds[short], angles, ends)
        reference = model.composition_model.fc.weight[0, numbers - 1]
        return model.mlp(model.readout_norm(atoms))[:, 0] + reference


class CHGNetCalculator(Calculator):
    """Energy, forces and stress from a `CHGNetNetwork`; magnetic moments are not computed.

    Structures may be given in batches: see `ase_gss.batch.BatchCalculator`.
    """

    implemented_properties = ["energy", "free_energy", "forces", "stress"]

    def __init__(self, network: CHGNetNetwork, **kwargs) -> None:
        super().__init__(**kwargs)
        self.network = network

    def calculate(self, atoms: Atoms | None = None, properties=None, system_changes=all_changes) -> None:
        """All properties at once; stress (eV/Å³) for a structure with a cell."""
        super().calculate(atoms, properties, system_changes)
        (self.results,) = self.calculate_batch([self.atoms], stress="stress" in (properties or ()))

    def calculate_batch(self, structures: Sequence[Atoms], stress: bool) -> list[dict[str, Any]]:
        """Results of each structure, all in one pass through the network.

        The other structures of a batch change a number by float32 rounding only, below 1e-5 eV/atom and 1e-4 eV/Å.

        Parameters
        ----------
        structures : sequence of Atoms
            They are not touched.
        stress : bool
            Whether the stress (eV/Å³) is needed. A structure with a cell has one in any case: it costs nothing.
        """
        if any((atoms.numbers > MAX_ATOMIC_NUMBER).any() for atoms in structures):
            raise CalculationFailed(f"CHGNet knows the elements up to number {MAX_ATOMIC_NUMBER}")
        if stress and any(atoms.cell.rank < 3 for atoms in structures):
            raise PropertyNotImplementedError("stress needs a cell")
        batch = []
        for atoms, (energy, forces, virial) in zip(structures, self.network.evaluate(structures), strict=True):
            results = {"energy": energy, "free_energy": energy, "forces": forces}
            if atoms.cell.rank == 3:
                results["stress"] = full_3x3_to_voigt_6_stress(virial / atoms.get_volume())
            batch.append(results)
        return batch
