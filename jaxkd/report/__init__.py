"""What people look at: tables, curves as pictures, and the report of runs.

`markdown`, `listed`, `show`, `mean_sd`, `gain`, `curves`, `dots`, `pyplot`, `save` are
for experiments.
`write` makes the report of run directories (their format: `jaxkd.pipeline`), which it
reads as files only: `report.md`, and `report.html`, one file that needs no network and
no scripts. Charts need matplotlib (the extra `plots`); all else is there without.
`write_events` makes TensorBoard's files (the extra `tensorboard`).
"""

from jaxkd.report.events import write as write_events
from jaxkd.report.pictures import curves, dots, pyplot, save
from jaxkd.report.tables import Rows, gain, listed, markdown, mean_sd, show
from jaxkd.report.writing import write

__all__ = [
    "Rows",
    "curves",
    "dots",
    "gain",
    "listed",
    "markdown",
    "mean_sd",
    "pyplot",
    "save",
    "show",
    "write",
    "write_events",
]
