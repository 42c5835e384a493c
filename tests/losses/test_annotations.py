"""The shapes in the annotations are true: every case once under a type checker."""

import subprocess
import sys

PROGRAM = """
import warnings
import jax
import jaxtyping
warnings.simplefilter("ignore")
with jaxtyping.install_import_hook("jaxkd.losses", "beartype.beartype"):
    import jaxkd.losses
import numpy as np
from tests.losses.test_battery import CASES, draw
called = 0
for case in CASES:
    inputs = {name: jax.numpy.asarray(array) for name, array in draw(case).items()}
    masks = {"where": jax.numpy.ones(6, bool)}
    if case.class_axis:
        masks["class_mask"] = jax.numpy.ones(case.width, bool)
    jax.eval_shape(lambda inputs: case.call(inputs, **masks), inputs)
    called += 1
    try:  # the checker is really there: a loss called with a rank it does not take
        wrong = {name: array.astype(complex) for name, array in inputs.items()}
        jax.eval_shape(case.call, wrong)
    except jaxtyping.TypeCheckError:
        pass
    else:
        raise SystemExit(f"{case.name}: not checked")
print(called, len(CASES))
"""


def test_annotations_hold():
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    called, cases = done.stdout.split()
    assert called == cases and int(called) > 20
