"""Generative structure search for the Atomic Simulation Environment."""

from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import Any

try:
    __version__ = version("ase-gss")
except PackageNotFoundError:  # a source tree that is not installed
    __version__ = "0.0.0"

# Imported at first use: `ase-gss rank` and its like need no torch.
_HOMES = {
    "GSSDynamics": "ase_gss.dynamics",
    "GenerativeRSS": "ase_gss.search",
    "ScoreCalculator": "ase_gss.score",
    "load_score": "ase_gss.score",
    "load_forces": "ase_gss.score",
    "Schedule": "ase_gss.schedule",
    "InputError": "ase_gss.errors",
}

__all__ = list(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'ase_gss' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
