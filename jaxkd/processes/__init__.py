"""Many processes, one program: how they find one another, take turns, and end.

Every process runs the same script on its own devices, and starts with::

    from jaxkd import mesh, processes
    processes.start()            # before anything that uses a device
    devices = mesh.make()        # over the devices of all processes

`start` reads the environment, and does nothing for a process that is alone:

    JAX_COORDINATOR_ADDRESS=HOST:PORT   where process 0 is, with a free port
    JAX_NUM_PROCESSES=N  JAX_PROCESS_ID=0 ... N-1

Under Slurm (`srun`), Open MPI (`mpirun`), Kubernetes and on TPU pods none of them is
needed: jax knows these clusters. `jax.process_count()` and `jax.process_index()` say
how many there are and which this is.

Written once: all processes call `log.start` and `checkpoint.writer`, and the first one
writes. `once` does that for other files. `in_turn` is for what finds its own results on
the disk, such as a teacher's stored scores::

    kept = lambda: cache.score(teacher, variables, train, view=view, path=path)
    scores = processes.in_turn(kept)  # `data.load`, which may download, likewise

A process that is killed, fails, or loses its host ends all of them. It is noticed at
once where its system still closes its connections, and within 45 s in any case. The
others say which it was, let what they are writing be finished (at most 20 s), and exit
with the code 75, "try again"; only where process 0 is gone, or one does not answer but
lives, jax's runtime may abort them first. The run resumes from its last checkpoint,
with any number of processes. A process that gives up should do so by an exception: of
`sys.exit` the others learn nothing, and wait for it.
"""

from jaxkd.processes.environment import Place, is_first, place
from jaxkd.processes.joining import start
from jaxkd.processes.peers import LOST
from jaxkd.processes.turns import barrier, in_turn, once

__all__ = ["LOST", "Place", "barrier", "in_turn", "is_first", "once", "place", "start"]
