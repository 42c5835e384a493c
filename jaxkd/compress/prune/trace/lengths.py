"""Products of lengths of axes, by how many units of each group remain."""

import numpy as np

from jaxkd.compress.prune.plan import Products


def products(terms, unit, group_of, groups) -> Products:
    """Return products of lengths of arrays of labels, by the units that remain."""
    rows: dict[tuple, int] = {}
    lengths = []
    for _, axes in terms:
        indices = []
        for labels in axes:
            units = np.where(labels >= 0, unit[np.maximum(labels, 0)], -1)
            indices.append(_row(rows, units, group_of, groups))
        lengths.append(indices)
    return _assembled([c for c, _ in terms], lengths, rows, len(groups))


def sizes(leaves, group_of, groups) -> Products:
    """Return the number of entries of each variable, by the units that remain."""
    rows: dict[tuple, int] = {}
    lengths, constants = [], []
    for leaf in leaves:
        constant, indices = 1, []
        for n, units in zip(leaf.shape, leaf.units, strict=True):
            if units is None:
                constant *= n
            else:
                indices.append(_row(rows, units, group_of, groups))
        constants.append(constant)
        lengths.append(indices)
    return _assembled(constants, lengths, rows, len(groups))


def _row(rows, units, group_of, groups) -> int:
    """The number of an axis: its indices that stay, and those of each group's unit."""
    held = np.bincount(group_of[units[units >= 0]], minlength=len(groups))
    each = tuple(int(h) // len(g.units) for h, g in zip(held, groups, strict=True))
    return rows.setdefault((int((units < 0).sum()), *each), len(rows))


def _assembled(constants, lengths, rows, groups) -> Products:
    table = np.array([*rows, (1, *(0,) * groups)], np.int64).reshape(-1, groups + 1)
    most = max(map(len, lengths), default=0)
    one = len(rows)
    filled = [[*indices, *[one] * (most - len(indices))] for indices in lengths]
    return Products(
        table[:, 0],
        table[:, 1:],
        np.array(constants, np.int64),
        np.array(filled, np.int64).reshape(len(lengths), most),
    )
