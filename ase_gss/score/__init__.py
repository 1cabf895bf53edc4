"""The learned score and learned forces: network, noising, training, loading, and their ASE calculators."""

from ase_gss.score.calculator import ScoreCalculator
from ase_gss.score.learned_forces import LearnedForces, load_forces
from ase_gss.score.model import Score, load_score, score_for

__all__ = ["LearnedForces", "Score", "ScoreCalculator", "load_forces", "load_score", "score_for"]
