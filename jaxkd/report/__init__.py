"""Tables, charts, and the report of runs.

`markdown`, `listed`, `show`, `mean_sd`, `gain`, `curves`, `dots` are for experiments.
`write` makes the report of run directories (their format: `jaxkd.pipeline`), which it
reads as files only: `report.html`, one page that needs no network and no scripts, and
`results.md`, its tables of results. `write_events` makes TensorBoard's files (the extra
`tensorboard`).
"""

from jaxkd.report.charts import Panel, Series, average, chart, curves, dots, save
from jaxkd.report.events import write as write_events
from jaxkd.report.page import write
from jaxkd.report.tables import Rows, gain, listed, markdown, mean_sd, show

__all__ = [
    "Panel",
    "Rows",
    "Series",
    "average",
    "chart",
    "curves",
    "dots",
    "gain",
    "listed",
    "markdown",
    "mean_sd",
    "save",
    "show",
    "write",
    "write_events",
]
