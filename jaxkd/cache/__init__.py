"""A frozen teacher runs once: its scores of a data set, kept and recognised."""

from jaxkd.cache.replay import replayed, settings, showing
from jaxkd.cache.scores import Scores, cache_teacher, load, score

__all__ = [
    "Scores",
    "cache_teacher",
    "load",
    "replayed",
    "score",
    "settings",
    "showing",
]
