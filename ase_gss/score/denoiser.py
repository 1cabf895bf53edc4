"""From network to denoiser: preconditioning, and what a free molecule's centre of mass must do."""

import torch
from torch import nn

from ase_gss.score.network import ScoreNetwork

#: Å; root mean square coordinate of an atom about the centre of an N-atom molecule is close to this times N^(1/3).
EXTENT = 0.55


def sum_by_structure(values: torch.Tensor, structure: torch.Tensor, n_structures: int) -> torch.Tensor:
    """Sum values (A, ...) over the atoms of each structure: (S, ...)."""
    total = torch.zeros((n_structures, *values.shape[1:]), dtype=values.dtype, device=values.device)
    return total.index_add(0, structure, values)


def all_pairs(structure: torch.Tensor, n_structures: int, with_itself: bool = False) -> torch.Tensor:
    """Ordered pairs (2, E) of atoms of the same structure.

    Parameters
    ----------
    structure : Tensor, shape (A,)
        Index of the structure of each atom, ascending.
    n_structures : int
        Number of structures.
    with_itself : bool
        Also every atom with itself.
    """
    counts = torch.bincount(structure, minlength=n_structures)
    first = torch.cumsum(counts, 0) - counts
    partners = counts[structure]
    i = torch.repeat_interleave(torch.arange(len(structure), device=structure.device), partners)
    start = torch.repeat_interleave(torch.cumsum(partners, 0) - partners, partners)
    j = torch.arange(len(i), device=structure.device) - start + first[structure[i]]
    pairs = torch.stack([i, j])
    return pairs if with_itself else pairs[:, i != j]


class Denoiser(nn.Module):
    """Estimate of the clean structure from a noised one.

    The network's output F of order one is turned into positions as in EDM (Karras et al., arXiv:2206.00364, Eq. 7),
    about the centre of the structure as it is, with the extent of a molecule of N atoms as the scale of the data:

        D(x) = centre + c_skip (x - centre) + c_out F(x)

    Where every atom has noise, the centre stays where it is. An atom with sigma = 0 is context and stays too.

    Parameters
    ----------
    **network
        Keyword arguments of `ScoreNetwork`.
    """

    def __init__(self, **network) -> None:
        super().__init__()
        self.network = ScoreNetwork(**network)

    def scales(
        self, sigma: torch.Tensor, structure: torch.Tensor, n_structures: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """c_skip and c_out, both (A, 1), for noise levels (A,) in Å."""
        counts = torch.bincount(structure, minlength=n_structures)[structure]
        # In double precision: the last elements of an array are raised to a power in another way than the others.
        extent = (EXTENT * counts.double() ** (1 / 3)).to(sigma.dtype)
        variance = extent**2 + sigma**2
        return (extent**2 / variance)[:, None], (sigma * extent / variance.sqrt())[:, None]

    def raw(
        self,
        numbers: torch.Tensor,
        positions: torch.Tensor,
        sigma: torch.Tensor,
        structure: torch.Tensor,
        n_structures: int,
    ) -> torch.Tensor:
        """The network's output F (A, 3); zero for context, without a net shift where all atoms have noise."""
        size = len(numbers) // n_structures
        if bool((torch.bincount(structure, minlength=n_structures) != size).any()):
            size = 0
        pairs = all_pairs(structure, n_structures, with_itself=size > 0)
        vectors = positions[pairs[1]] - positions[pairs[0]]
        if self.training and not size:
            # Of structures of many sizes, as in training, far pairs, whose filters are 0, cost memory. Where samples
            # are made they stay: then sums over pairs do not depend, not even by rounding, on what else is sampled.
            near = (vectors**2).sum(dim=1) < self.network.cutoff**2
            pairs, vectors = pairs[:, near], vectors[near]
        output = self.network(numbers, sigma, pairs, vectors, size)
        free = (sigma > 0).to(output.dtype)[:, None]
        counts = sum_by_structure(torch.ones_like(free), structure, n_structures)
        whole = sum_by_structure(free, structure, n_structures) == counts
        shift = sum_by_structure(output, structure, n_structures) / counts * whole
        return (output - shift[structure]) * free

    def centres(self, positions: torch.Tensor, structure: torch.Tensor, n_structures: int) -> torch.Tensor:
        """Centre (A, 3) of the structure of each atom."""
        counts = torch.bincount(structure, minlength=n_structures)[:, None]
        return (sum_by_structure(positions, structure, n_structures) / counts)[structure]

    def forward(
        self,
        numbers: torch.Tensor,
        positions: torch.Tensor,
        sigma: torch.Tensor,
        structure: torch.Tensor,
        n_structures: int,
    ) -> torch.Tensor:
        """Clean positions (A, 3) in Å from noised positions (A, 3) and noise levels (A,), both in Å.

        `structure` (A,), ascending, gives the structure of each atom; `numbers` (A,) are atomic numbers.
        """
        c_skip, c_out = self.scales(sigma, structure, n_structures)
        centre = self.centres(positions, structure, n_structures)
        output = self.raw(numbers, positions, sigma, structure, n_structures)
        return centre + c_skip * (positions - centre) + c_out * output


def denoising_loss(denoiser: Denoiser, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """What training minimises, a mean over the atoms with noise.

    It is the mean squared error of the network's output F against the value that would restore the clean structure
    exactly (EDM's weighting; Karras et al., arXiv:2206.00364, Eq. 8).

    Parameters
    ----------
    denoiser : Denoiser
        As it is.
    batch : dict of Tensor
        As `ase_gss.score.data.add_noise` makes it.
    """
    structure, n_structures = batch["structure"], int(batch["structure"][-1]) + 1
    output = denoiser.raw(batch["numbers"], batch["noised"], batch["sigma"], structure, n_structures)
    c_skip, c_out = denoiser.scales(batch["sigma"], structure, n_structures)
    centre = denoiser.centres(batch["noised"], structure, n_structures)
    free = batch["sigma"] > 0
    target = (batch["clean"] - centre - c_skip * (batch["noised"] - centre)) / c_out.clamp_min(1e-6)
    return (((output - target) ** 2).mean(dim=1) * free).sum() / free.sum()
