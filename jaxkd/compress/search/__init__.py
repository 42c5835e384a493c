"""Architecture search under a limit of MACs, parameters or latency.

    space = search.resnet_space(10)
    cost = search.macs(space, (32, 32, 3))
    base = space.tokens(**search.resnet_base(space))
    limit = search.limit("MACs", cost, space.sizes, most=0.83 * cost(base))
    start = search.within(limit, base, space.sizes)
    found = search.run(
        search.anneal(space.sizes, start),
        search.short_training(space, course, epochs=3),
        budget=20,
        feasible=limit.feasible,
        journal="search.jsonl",
        settings={**space.settings, **limit.settings},
    )
    print(space.values(search.best(found).tokens))

A controller is pure functions of a state; a space is data; an evaluator is a function
of tokens. Each can be one's own.
"""

from jaxkd.compress.search._anneal import AnnealState, anneal
from jaxkd.compress.search._controller import Controller, Feasible, Tokens, anything
from jaxkd.compress.search._evaluators import (
    Course,
    short_training,
    trained,
    training_program,
)
from jaxkd.compress.search._evolve import EvolveState, evolve
from jaxkd.compress.search._halving import Rung, in_order, successive_halving
from jaxkd.compress.search._latency import TableError, latency, table_errors, xla_ms
from jaxkd.compress.search._limit import Limit, limit, macs, parameters, within
from jaxkd.compress.search._mobilenet_space import mobilenet_base, mobilenet_space
from jaxkd.compress.search._pool import in_pool, pool
from jaxkd.compress.search._proxy import naswot, proxy, synflow
from jaxkd.compress.search._random import RandomState, random_search, sample
from jaxkd.compress.search._resnet_space import resnet_base, resnet_space
from jaxkd.compress.search._run import Evaluate, Trial, best, run, trials
from jaxkd.compress.search._space import Space

__all__ = [
    "AnnealState",
    "Controller",
    "Course",
    "Evaluate",
    "EvolveState",
    "Feasible",
    "Limit",
    "RandomState",
    "Rung",
    "Space",
    "TableError",
    "Tokens",
    "Trial",
    "anneal",
    "anything",
    "best",
    "evolve",
    "in_order",
    "in_pool",
    "latency",
    "limit",
    "macs",
    "mobilenet_base",
    "mobilenet_space",
    "naswot",
    "parameters",
    "pool",
    "proxy",
    "random_search",
    "resnet_base",
    "resnet_space",
    "run",
    "sample",
    "short_training",
    "successive_halving",
    "synflow",
    "table_errors",
    "trained",
    "training_program",
    "trials",
    "within",
    "xla_ms",
]
