"""The building blocks taken from SchNetPack, imported in one place.

SchNetPack 2.0 imports a type variable that torch 2.13 no longer defines; it is put back before the import. SchNetPack
2.1 would not need it but pins sympy so low that torch falls back to 2.4.
"""

from typing import TypeVar

import torch.utils.data.dataloader as _dataloader

if not hasattr(_dataloader, "T_co"):
    _dataloader.T_co = TypeVar("T_co", covariant=True)

from schnetpack.nn import (
    CosineCutoff,
    GatedEquivariantBlock,
    GaussianRBF,
    build_gated_equivariant_mlp,
    replicate_module,
)
from schnetpack.representation.painn import PaiNNInteraction, PaiNNMixing

__all__ = [
    "CosineCutoff",
    "GatedEquivariantBlock",
    "GaussianRBF",
    "PaiNNInteraction",
    "PaiNNMixing",
    "build_gated_equivariant_mlp",
    "replicate_module",
]
