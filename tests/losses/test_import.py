"""`import jaxkd.losses` is light: it needs jax and nothing that jax does not."""

import subprocess
import sys

PROGRAM = """
import sys, time
import jax, jax.numpy, jaxtyping
start = time.process_time()
import jaxkd.losses
print(time.process_time() - start)
heavy = ("flax", "optax", "orbax", "tensorflow", "tensorflow_datasets", "torch")
print([name for name in heavy if name in sys.modules])
"""


def test_loads_nothing_heavy_and_fast():
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True
    )
    seconds, heavy = done.stdout.splitlines()
    assert heavy == "[]"
    assert float(seconds) < 1.5
