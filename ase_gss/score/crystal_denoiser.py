"""From the crystal network to the noise of positions and cell."""

import numpy as np
import torch
from ase.data import covalent_radii
from matscipy.neighbours import neighbour_list
from torch import nn

from ase_gss.score.crystal_network import CrystalNetwork
from ase_gss.score.denoiser import sum_by_structure


def periodic_pairs(
    numbers: np.ndarray, positions: np.ndarray, cells: np.ndarray, structure: np.ndarray, reach: float
) -> tuple[np.ndarray, np.ndarray]:
    """Ordered pairs of atoms, periodic images included, closer than the sum of their covalent radii plus `reach`.

    Parameters
    ----------
    numbers, structure : ndarray, shape (A,)
        Atomic numbers; structure of each atom, ascending.
    positions : ndarray, shape (A, 3)
        Å.
    cells : ndarray, shape (S, 3, 3)
        Lattice vectors as rows, Å.
    reach : float
        Å.

    Returns
    -------
    pairs : ndarray, shape (2, E)
        First and second atom.
    vectors : ndarray, shape (E, 3)
        From the first to the second, Å.
    """
    radii = covalent_radii[numbers] + reach / 2
    first = np.searchsorted(structure, np.arange(len(cells) + 1))
    pairs, vectors = [], []
    for cell, start, end in zip(cells, first[:-1], first[1:], strict=True):
        part = slice(start, end)
        i, j, vector = neighbour_list(
            "ijD", cell=cell, pbc=np.ones(3, bool), positions=positions[part], cutoff=radii[part]
        )
        pairs.append(np.stack([i, j]) + start)
        vectors.append(vector)
    return np.concatenate(pairs, axis=1).astype(np.int64), np.concatenate(vectors).astype(np.float32)


class CrystalDenoiser(nn.Module):
    """Estimate of the noise in a crystal's positions and cell.

    The network's output is the noise itself, without EDM's skip connection: of a crystal the origin means nothing, and
    regressing the raw noise gives the score of the wrapped normal distribution by itself.

    Parameters
    ----------
    **network
        Keyword arguments of `CrystalNetwork`.
    """

    def __init__(self, **network) -> None:
        super().__init__()
        self.network = CrystalNetwork(**network)

    def forward(
        self,
        numbers: torch.Tensor,
        sigma: torch.Tensor,
        sigma_cell: torch.Tensor,
        pairs: torch.Tensor,
        vectors: torch.Tensor,
        structure: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Expected noise of positions and strain, both in units of their noise levels.

        Parameters
        ----------
        numbers, sigma, structure : Tensor, shape (A,)
            Atomic numbers, noise levels of the atoms in Å (0: context), structure of each atom, ascending.
        sigma_cell : Tensor, shape (S,)
            Noise levels of the cells; 0 for a cell that is context.
        pairs, vectors : Tensor, shape (2, E) and (E, 3)
            As from `periodic_pairs`.

        Returns
        -------
        noise : Tensor, shape (A, 3)
            0 for context; without a net shift where all atoms of a structure have noise.
        strain : Tensor, shape (S, 3, 3)
            Symmetric; 0 for a cell that is context.
        """
        n_structures = len(sigma_cell)
        noise, strain = self.network(numbers, sigma, sigma_cell[structure], pairs, vectors, structure, n_structures)
        free = (sigma > 0).to(noise.dtype)[:, None]
        counts = sum_by_structure(torch.ones_like(free), structure, n_structures)
        whole = sum_by_structure(free, structure, n_structures) == counts
        shift = sum_by_structure(noise, structure, n_structures) / counts * whole
        return (noise - shift[structure]) * free, strain * (sigma_cell > 0)[:, None, None]
