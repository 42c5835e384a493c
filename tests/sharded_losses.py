"""Every loss of a linear map of its inputs, which is trained, on a mesh."""

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from jaxkd import mesh
from tests.losses.cases import is_float
from tests.losses.test_battery import CASES

STEPS, BATCH = 10, 8


def drawn(case):
    """The maps that are trained, at first 1, and the inputs of ten batches."""
    rng = np.random.default_rng(3)
    batches = [case.draw(rng, (BATCH,), case.width) for _ in range(STEPS)]
    maps = {
        name: np.eye(array.shape[-1])
        for name, array in batches[0].items()
        if is_float(array) and case.axis(name) is not None
    }
    return maps, jax.tree.map(lambda *a: np.stack(a), *batches)


def train_all(on):
    """The maps after ten steps, and the losses of all steps, of all cases at once."""
    maps, inputs = {}, {}
    for case in CASES:
        maps[case.name], inputs[case.name] = drawn(case)

    def split(case, name, array):
        axis = case.axis(name)
        if axis is None:
            return array
        spec = PartitionSpec(*(None,) * axis, mesh.AXES)
        return jax.lax.with_sharding_constraint(array, NamedSharding(on, spec))

    def objective(maps, batch):
        said = {}
        for case in CASES:
            given = {n: split(case, n, a) for n, a in batch[case.name].items()}
            given |= {n: given[n] @ w for n, w in maps[case.name].items()}
            said[case.name] = case.call(given).mean()
        return sum(said.values()), said

    def step(maps, batch):
        grads, said = jax.grad(objective, has_aux=True)(maps, batch)
        return jax.tree.map(lambda w, g: w - 0.01 * g, maps, grads), said

    run = jax.jit(lambda maps, inputs: jax.lax.scan(step, maps, inputs))
    everywhere = mesh.replicated(on)
    return mesh.fetch(run(mesh.put(maps, everywhere), mesh.put(inputs, everywhere)))
