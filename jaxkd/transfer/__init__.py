"""Weights that change networks: copying them, freezing them, moving them slowly.

Fine-tuning starts a network from another one's weights, with a head of its own:

    fresh = student.init(key, images)
    variables, report = transfer.copy(source, fresh, exclude="head/*")
    print(report)  # what was copied, and what was not

Fine-tuning and distilling at once is a Distiller whose student starts there:

    state = distiller.init(key, teacher_variables, batch)
    state = transfer.warm_start(state, variables, tx)

Which leaves move, and how fast, is the optimiser's business: `freeze`, `train_only` and
`layer_wise` make one from path patterns (see `jaxkd._tree`) over the parameters of a
TrainState, whose paths begin with "student/" or "terms/". What BatchNorm does with the
new images' statistics is the network's: `frozen_statistics`.
"""

from jaxkd.transfer.copying import CopyReport, copy, match, warm_start
from jaxkd.transfer.moving import by_depth, freeze, layer_wise, train_only
from jaxkd.transfer.statistics import frozen_statistics

__all__ = [
    "CopyReport",
    "by_depth",
    "copy",
    "freeze",
    "frozen_statistics",
    "layer_wise",
    "match",
    "train_only",
    "warm_start",
]
