"""The network for crystals: the same blocks with periodic neighbours, the surroundings' shape, and a strain."""

import math

import torch
from torch import nn

from ase_gss.score._schnetpack import GaussianRBF
from ase_gss.score.network import ScoreNetwork, SigmaEmbedding, biased, interact

# Symmetric 3x3 matrices as xx, yy, zz, yz, xz, xy; how often each counts in the matrix's norm.
_FIRST, _SECOND = [0, 1, 2, 1, 0, 0], [0, 1, 2, 2, 2, 1]
_WEIGHT = (1.0, 1.0, 1.0, 2.0, 2.0, 2.0)
#: Sums over neighbours are of order one after division by this.
_TYPICAL_SUM = 4.0
_MATRIX = [[0, 5, 4], [5, 1, 3], [4, 3, 2]]


class Surroundings(nn.Module):
    """Symmetric traceless matrices of each atom: the shape of its surroundings.

    At a site with inversion symmetry, as most cations have, all vectors of an equivariant network vanish. These sums of
    directions times themselves do not, and tell an octahedron from a stretched one.

    Parameters
    ----------
    n_features, n_basis, n_shapes : int
        Width of the scalars, number of radial functions, matrices of each atom.
    """

    def __init__(self, n_features: int, n_basis: int, n_shapes: int) -> None:
        super().__init__()
        self.filters = nn.Linear(n_basis, n_shapes)
        self.sender = nn.Linear(n_features, n_shapes)
        self.to_scalars = nn.Sequential(
            nn.Linear(n_features + n_shapes, n_features), nn.SiLU(), nn.Linear(n_features, n_features)
        )

    def forward(
        self, q: torch.Tensor, radial: torch.Tensor, products: torch.Tensor, i: torch.Tensor, j: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Scalars that know the shapes, (A, 1, F), and the shapes, (A, 6, n_shapes)."""
        weights = biased(self.filters, radial) * self.sender(q[:, 0]).index_select(0, j) / _TYPICAL_SUM
        shapes = torch.zeros((len(q), 6, weights.shape[1]), dtype=q.dtype, device=q.device)
        shapes = shapes.index_add(0, i, products[:, :, None] * weights[:, None, :])
        size = (shapes * shapes * shapes.new_tensor(_WEIGHT)[:, None]).sum(dim=1).clamp_min(1e-12).sqrt()
        return q + self.to_scalars(torch.cat([q[:, 0], size], dim=1))[:, None], shapes


class CrystalNetwork(ScoreNetwork):
    """One equivariant vector for each atom, and one symmetric matrix for each structure.

    Parameters
    ----------
    reach : float
        Neighbours are seen up to this distance beyond touching, d - (r_i + r_j) with covalent radii r, in Å: about as
        many for every element, which a cutoff in the distance itself would not give.
    n_shapes : int
        See `Surroundings`.
    **network
        As for `ScoreNetwork`.
    """

    def __init__(
        self, reach: float = 2.5, n_shapes: int = 16, n_features: int = 64, n_basis: int = 20, **network
    ) -> None:
        super().__init__(n_features=n_features, n_basis=n_basis, cutoff=reach, **network)
        self.reach = reach
        self.basis = GaussianRBF(n_rbf=n_basis, start=-1.5, cutoff=math.asinh(reach))
        self.sigma_cell = SigmaEmbedding(n_features, 0.005, 0.6)
        self.middle = Surroundings(n_features, n_basis, n_shapes)
        self.last = Surroundings(n_features, n_basis, n_shapes)
        self.mix = nn.Linear(n_features, n_shapes, bias=False)
        self.to_strain = nn.Sequential(
            nn.Linear(n_features, n_features), nn.SiLU(), nn.Linear(n_features, 2 * n_shapes + 1)
        )

    def forward(
        self,
        numbers: torch.Tensor,
        sigma: torch.Tensor,
        sigma_cell: torch.Tensor,
        pairs: torch.Tensor,
        vectors: torch.Tensor,
        structure: torch.Tensor,
        n_structures: int,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Vectors and matrices of order one.

        Parameters
        ----------
        numbers : Tensor, shape (A,)
            Atomic numbers of all structures, one after the other.
        sigma, sigma_cell : Tensor, shape (A,)
            Noise level of each atom (Å) and of its cell (strain); 0 marks an atom or a cell that is context.
        pairs : Tensor, shape (2, E)
            Receiving and sending atom of every pair, periodic images included.
        vectors : Tensor, shape (E, 3)
            From the receiving to the sending atom, Å.
        structure : Tensor, shape (A,)
            Structure of each atom, ascending.
        n_structures : int
            S.

        Returns
        -------
        vectors : Tensor, shape (A, 3)
        matrices : Tensor, shape (S, 3, 3)
            Symmetric; a mean over the atoms, so that a supercell has the same.
        """
        i, j = pairs[0], pairs[1]
        distance = (vectors * vectors).sum(dim=1, keepdim=True).sqrt().clamp_min(1e-6)
        unit = vectors / distance
        gap = distance[:, 0] - self.radii[numbers[i]] - self.radii[numbers[j]]
        cutoff = 0.5 * (torch.cos(gap.clamp(0.0, self.reach) * (torch.pi / self.reach)) + 1.0)
        radial = self.radial(gap, (cutoff * (gap < self.reach))[:, None])
        filters = biased(self.filters, radial)[:, None].split(3 * self.n_features, dim=-1)
        products = unit[:, _FIRST] * unit[:, _SECOND] - unit.new_tensor([1 / 3, 1 / 3, 1 / 3, 0.0, 0.0, 0.0])
        noise = self.sigma(sigma) + self.sigma_cell(sigma_cell)
        q, mu = (self.element(numbers) + noise)[:, None], None
        for block, to_block in enumerate(self.sigma_to_block):
            q = q + to_block(noise)[:, None]
            q, mu = interact(self.interactions[block], q, mu, filters[block], unit[:, :, None], i, j, 0)
            q, mu = self.mixing[block](q, mu)
            if block == 1:
                q, _ = self.middle(q, radial, products, i, j)
        q, shapes = self.last(q, radial, products, i, j)
        by_shapes, by_vectors, isotropic = self.to_strain(q[:, 0]).split([shapes.shape[2], shapes.shape[2], 1], dim=1)
        mixed = self.mix(mu)
        strain = (shapes * by_shapes[:, None]).sum(dim=2)
        strain = strain + (mixed[:, _FIRST] * mixed[:, _SECOND] * by_vectors[:, None]).sum(dim=2)
        strain = strain + isotropic * strain.new_tensor([1.0, 1.0, 1.0, 0.0, 0.0, 0.0])
        total = strain.new_zeros((n_structures, 6)).index_add(0, structure, strain)
        counts = torch.bincount(structure, minlength=n_structures)[:, None]
        return self.read_vectors(q, mu), (total / counts)[:, _MATRIX]
