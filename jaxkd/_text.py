"""Hints in error messages: near names, and lists of what a name may be."""

import difflib
from collections.abc import Iterable

LISTED = 60  # names; a longer list is cut


def did_you_mean(name: object, names: Iterable[object]) -> str:
    """Return "; did you mean a or b?" with at most three near names, "" if none is.

    Upper and lower case are the same letter.

    >>> did_you_mean("trian", ["train", "distill", "prune"])
    '; did you mean train?'
    >>> did_you_mean("x", ["train", "distill"])
    ''
    """
    spelt = {str(n).lower(): str(n) for n in names}
    near = difflib.get_close_matches(str(name).lower(), spelt, n=3, cutoff=0.5)
    return f"; did you mean {' or '.join(spelt[n] for n in near)}?" if near else ""


def alternatives(name: object, names: Iterable[object]) -> str:
    """Return "; there are a, b, c" and near names, for the error of an unknown name.

    >>> alternatives("trian", ["train", "distill"])
    '; there are train, distill; did you mean train?'
    """
    known = list(dict.fromkeys(map(str, names)))
    listed = ", ".join(known[:LISTED]) or "none"
    more = f" and {len(known) - LISTED} more" if len(known) > LISTED else ""
    return f"; there are {listed}{more}{did_you_mean(name, known)}"
