"""Sampled search with sequential halving over a world model (paper, planning section; Danihelka et al. 2022)."""

from sb3_ezm.search.gumbel import SearchOutput, search
from sb3_ezm.search.model import BoundWorldModel, Evaluation, SearchModel
from sb3_ezm.search.noise import SearchNoise, deterministic_noise, draw_noise
from sb3_ezm.search.schedule import halving_levels

__all__ = [
    "BoundWorldModel",
    "Evaluation",
    "SearchModel",
    "SearchNoise",
    "SearchOutput",
    "deterministic_noise",
    "draw_noise",
    "halving_levels",
    "search",
]
