"""`import jaxkd.losses` is light: it needs jax and nothing that jax does not."""

import subprocess
import sys

PROGRAM = """
import sys
import jaxkd.losses
heavy = ("flax", "optax", "orbax", "tensorflow", "tensorflow_datasets", "torch")
print([name for name in heavy if name in sys.modules])
"""


def test_loads_nothing_heavy():
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True
    )
    assert done.stdout == "[]\n"
