"""The symmetry that a crystal starts with, kept on its way through the sampler."""

from dataclasses import dataclass

import numpy as np
from ase import Atoms

from ase_gss.errors import InputError
from ase_gss.sampler import Field

#: Å; starts are symmetric to rounding.
_PRECISION = 1e-3


@dataclass(frozen=True)
class Symmetry:
    """The operations of a space group on one structure of N atoms; a value that pickles.

    Attributes
    ----------
    rotations : ndarray of int, shape (G, 3, 3)
        Of fractional coordinates as columns: W.
    permutations : ndarray of int, shape (G, N)
        Atom that each atom is taken to.
    """

    rotations: np.ndarray
    permutations: np.ndarray

    @classmethod
    def of(cls, atoms: Atoms) -> "Symmetry":
        """All operations of a crystal, by spglib."""
        try:
            import spglib
        except ImportError as error:
            raise InputError("Symmetric starts need spglib: pip install 'ase-gss[crystals]'.") from error
        scaled = atoms.get_scaled_positions()
        found = spglib.get_symmetry((atoms.cell.array, scaled, atoms.numbers), symprec=_PRECISION)
        if found is None:
            return cls(np.eye(3, dtype=int)[None], np.arange(len(atoms))[None])
        permutations = []
        for rotation, translation in zip(found["rotations"], found["translations"], strict=True):
            images = scaled @ rotation.T + translation
            apart = images[:, None] - scaled[None]
            apart -= np.rint(apart)
            distances = np.linalg.norm(apart @ atoms.cell.array, axis=2)
            distances[atoms.numbers[:, None] != atoms.numbers[None]] = np.inf
            permutations.append(distances.argmin(axis=1))
        return cls(np.array(found["rotations"], dtype=int), np.array(permutations))

    def projected(self, field: Field, cell: np.ndarray) -> Field:
        """The symmetric part of a field on this structure: the mean over all operations.

        Of isotropic noise it is isotropic noise on the coordinates that the symmetry leaves free, with the same
        variance for each.

        Parameters
        ----------
        field : Field
            Vectors (N, 3) and a matrix (3, 3).
        cell : ndarray, shape (3, 3)
            Lattice vectors as rows, Å, with this symmetry.
        """
        # Row vectors v turn into v @ R, R = inv(cell) W^T cell, which is orthogonal where the cell has the symmetry.
        turns = np.linalg.inv(cell) @ self.rotations.transpose(0, 2, 1) @ cell
        atoms = np.zeros_like(field.atoms)
        for turn, permutation in zip(turns, self.permutations, strict=True):
            atoms[permutation] += field.atoms @ turn
        strain = np.mean(turns.transpose(0, 2, 1) @ field.strain @ turns, axis=0)
        return Field(atoms / len(turns), (strain + strain.T) / 2)
