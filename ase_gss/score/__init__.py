"""The learned score: network, noising, training, loading, and its ASE calculator."""

from ase_gss.score.calculator import ScoreCalculator
from ase_gss.score.model import Score, load_score, score_for

__all__ = ["Score", "ScoreCalculator", "load_score", "score_for"]
