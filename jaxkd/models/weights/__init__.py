"""Weights of other libraries in and out: `load_weights`, `save_weights`.

A file is read into arrays by their names (`formats`, `torch_file`); a table of rules
for each family (`tables`, `rules`) says what they are called here. The tables are
written for whole families: any depth and width that a constructor of the zoo makes.
"""

from jaxkd.models.weights.loading import Report, load_weights
from jaxkd.models.weights.preprocessing import PublishedInput, preprocessing
from jaxkd.models.weights.rules import Rule, Table
from jaxkd.models.weights.saving import save_weights

__all__ = [
    "PublishedInput",
    "Report",
    "Rule",
    "Table",
    "load_weights",
    "preprocessing",
    "save_weights",
]
