"""Trees of arrays on disk, through orbax, with the checksum of every file.

`save` and `load` keep a tree; `write` and `read` keep a tree with notes. Both refuse
what was changed on the disk, and replace only directories that they wrote (see
`jaxkd.store`). `writer` writes beside a training, which does not wait for it::

    with checkpoint.writer(folder, keep=2) as saving:
        for epoch in range(epochs):
            ...
            saving.save(epoch, state, {"epoch": epoch}, score=accuracy)
    found = checkpoint.newest(folder, print)
    state = checkpoint.like(found.tree, state)

Many processes (`jaxkd.processes`) all call `writer` and `newest`, on a folder that all
of them see: what lies on several hosts is gathered, the first one writes, and all read
the same. `save` and `write` are for one process, and for whole arrays::

    whole = mesh.fetch(state)
    processes.once(lambda: checkpoint.write(path, whole, notes))

A file does not know how many processes there were: any other number can go on from it.
"""

from jaxkd.checkpoint.folders import at, clear_after, newest, steps
from jaxkd.checkpoint.trees import as_dicts, like, load, save
from jaxkd.checkpoint.whole import Checkpoint, damage, has_notes, read, write
from jaxkd.checkpoint.writing import Writer, writer

__all__ = [
    "Checkpoint",
    "Writer",
    "as_dicts",
    "at",
    "clear_after",
    "damage",
    "has_notes",
    "like",
    "load",
    "newest",
    "read",
    "save",
    "steps",
    "write",
    "writer",
]
