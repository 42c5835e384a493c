"""The kinds of stages, each a class in a file of its own.

The class has the options (its fields are the keys of a table in a configuration), the
checks, and what is done: see `stage.Stage`. A new kind is a new file and a place in
`KINDS`, whose order is that of `jaxkd config --defaults`.
"""

from typing import TYPE_CHECKING, Union

from jaxkd.pipeline.stages.distilling import Distill
from jaxkd.pipeline.stages.evaluating import Evaluate
from jaxkd.pipeline.stages.exporting import Export
from jaxkd.pipeline.stages.finetuning import Finetune
from jaxkd.pipeline.stages.pruning import Prune
from jaxkd.pipeline.stages.quantizing import Quantize
from jaxkd.pipeline.stages.searching import Search
from jaxkd.pipeline.stages.stage import Replay, Stage
from jaxkd.pipeline.stages.train import Train
from jaxkd.pipeline.stages.transferring import Transfer

KINDS: tuple[type[Stage], ...] = (
    *(Search, Train, Transfer, Distill, Prune),
    *(Finetune, Quantize, Evaluate, Export),
)

# How each step of a recipe is replayed: those of all kinds.
STEPS: dict[str, Replay] = {
    name: replay for kind in KINDS for name, replay in kind.steps.items()
}

if TYPE_CHECKING:
    AnyStage = Stage
else:
    AnyStage = Union[KINDS]  # noqa: UP007
