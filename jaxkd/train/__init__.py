"""Training: one verb for everyday use, and the three functions under it.

    run = train.learn(student, images, spec=spec, teacher=(net, variables),
                      tx=tx, view=view, batch_size=128, epochs=10, test=test_images)
    run.variables, run.history

`learn` is `distill.distiller`, its `init`, `make_epoch` and `fit` in a row; write them
out for a loop of your own::

    epoch = train.make_epoch(distiller, view=view, batch_size=128)
    state = distiller.init(key, teacher_variables, train.example(resident, view))
    run = train.fit(epoch, state, teacher_variables, resident, key=key, epochs=10)

An epoch is one compiled program over data that lies on the device: it shuffles indices,
gathers the examples, augments them and takes the steps, without returning to Python.
"""

from jaxkd.cache import cache_teacher
from jaxkd.train.learning import learn
from jaxkd.train.loop import Place, Run, Variables, fit
from jaxkd.train.programs import Epoch, Step, example, make_epoch, make_step, over_seeds

__all__ = [
    "Epoch",
    "Place",
    "Run",
    "Step",
    "Variables",
    "cache_teacher",
    "example",
    "fit",
    "learn",
    "make_epoch",
    "make_step",
    "over_seeds",
]
