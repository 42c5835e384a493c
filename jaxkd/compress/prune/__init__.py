"""Remove channels from a network, whichever module of linen or nnx it is.

    plan = analyse_net(net, params, state, (32, 32, 3))   # what goes together
    print(plan.listing())
    scores = criteria.l1(plan, params)                     # one for each unit
    dropped = choose(plan, scores, 0.5)                    # half of every group
    small = resized(net)                                   # the same network ...
    params, state = plan.apply((params, state), dropped)   # ... with fewer channels

Instead of `choose`, to meet a target::

    half = target(plan, "macs", fraction=0.5)              # or what a phone measures
    dropped = uniform(plan, scores, half)                  # one ratio for all groups
    dropped = global_threshold(plan, scores, half)         # one threshold
    metric = masked_metric(                                # without training, but with
        net, plan, (params, state), validation, view=view, # batch statistics of its own
        recalibrate_on=some_training_images,
    )
    dropped = sensitivity(plan, scores, half, metric)      # equal predicted loss
    dropped = search(plan, scores, half, metric).dropped   # by simulated annealing

`gradual` fades channels while a network trains, `fine_tuner` distils the whole network
into what is left, and `iterative` prunes and fine-tunes in turn.
"""

from jaxkd.compress.prune import criteria
from jaxkd.compress.prune._fine_tune import fine_tuner, from_variables, kd_spec
from jaxkd.compress.prune._gradual import GradualState, cubic, gradual
from jaxkd.compress.prune._iterative import Steps, iterative
from jaxkd.compress.prune._recalibrated import recalibrated
from jaxkd.compress.prune._search import SearchResult, annealing, random, search
from jaxkd.compress.prune._sensitivity import Curves, curves, equal_loss, sensitivity
from jaxkd.compress.prune.analysis import analyse, analyse_net, logits_of
from jaxkd.compress.prune.check import CheckResult, check, check_net
from jaxkd.compress.prune.metric import Metric, masked_metric
from jaxkd.compress.prune.plan import Frozen, Group, Leaf, Member, Plan
from jaxkd.compress.prune.ratios import (
    choose,
    counts,
    global_threshold,
    lowest,
    uniform,
)
from jaxkd.compress.prune.resized import Resized, resized
from jaxkd.compress.prune.targets import Target, target

__all__ = [
    "CheckResult",
    "Curves",
    "Frozen",
    "GradualState",
    "Group",
    "Leaf",
    "Member",
    "Metric",
    "Plan",
    "Resized",
    "SearchResult",
    "Steps",
    "Target",
    "analyse",
    "analyse_net",
    "annealing",
    "check",
    "check_net",
    "choose",
    "counts",
    "criteria",
    "cubic",
    "curves",
    "equal_loss",
    "fine_tuner",
    "from_variables",
    "global_threshold",
    "gradual",
    "iterative",
    "kd_spec",
    "logits_of",
    "lowest",
    "masked_metric",
    "random",
    "recalibrated",
    "resized",
    "search",
    "sensitivity",
    "target",
    "uniform",
]
