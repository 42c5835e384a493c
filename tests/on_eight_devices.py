"""Run by test_mesh.py as a process of its own, which has eight devices.

    python -m tests.on_eight_devices small results.pickle

What one device computes and what a mesh computes, side by side, in float64: there, a
sum in another order is off by 1e-12 or so, and a mistake by far more.
"""

import pathlib
import pickle
import sys
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import PartitionSpec

from jaxkd import data, distill, losses, mesh, terms, train
from jaxkd.data import augment, dataset
from jaxkd.models import mlp, resnet
from jaxkd.schemes import ensemble, mutual
from tests import sharded_losses
from tests.terms import cases

FLAGS = "--xla_force_host_platform_device_count=8"
STEPS, BATCH = 10, 8
COMPILED = "/jax/core/compile/backend_compile_duration"


def one():
    """A mesh of one device."""
    return mesh.make(devices=jax.devices()[:1])


# Every term: two networks with BatchNorm, random views and dropout, through `fit`.


def wide(tree):
    """In float64."""
    widen = lambda a: a.astype(np.float64) if a.dtype == np.float32 else a
    return jax.tree.map(widen, tree)


def noisy(net):
    """Drops inputs out."""

    def apply(params, state, x, *, train, key=None):
        if train:
            x = jnp.where(jax.random.bernoulli(key, 0.9, x.shape), x, 0)
        return net.apply(params, state, x, train=train, key=key)

    return net._replace(apply=apply)


VIEW = augment.chain(
    augment.flip(),
    augment.crop(1),
    augment.to_float(),
    augment.View(lambda key, batch: {**batch, "image": wide(batch["image"])}, False),
)


def resident():
    """Sixteen digits: two batches."""
    digits = data.load("digits", "train")
    return data.on_device(dataset.take(digits, np.arange(2 * BATCH), "train"))


def start(d, variables):
    """The first state."""
    # Keys of this kind compile in a fraction of the time.
    key = jax.random.key(0, impl="unsafe_rbg")
    state = jax.jit(d.init)(key, variables, train.example(resident(), VIEW, BATCH))
    replace = lambda part: part._replace(key=jax.random.key(0))
    is_state = lambda part: isinstance(part, distill.TrainState)
    return jax.tree.map(replace, wide(state), is_leaf=is_state)


def trained(d, on, state, variables, *, split=()):
    """The same ten steps on any mesh."""
    everywhere = mesh.replicated(on)
    whole = lambda tree: jax.tree.map(lambda _: everywhere, tree)
    parts_of = lambda tree: mesh.sharded(tree, on, at_least=64)
    lies = (parts_of if "student" in split else whole)(state)
    if "optimiser" not in split and "student" in split:
        lies = lies._replace(opt_state=whole(lies.opt_state))
    state = mesh.put(state, lies)
    of_teacher = parts_of if "teacher" in split else whole
    variables = mesh.put(variables, of_teacher(variables))
    compiled = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, *_, **__: event == COMPILED and compiled.append(event)
    )
    counts, parts = [], []

    def step(state, variables, batch):
        image = batch["image"]
        see = lambda lies: parts.append(lies.shard_shape(image.shape))
        jax.debug.inspect_array_sharding(image, callback=see)
        return d.step(state, variables, batch)

    run = train.fit(
        train.make_epoch(d._replace(step=step), view=VIEW, batch_size=BATCH, mesh=on),
        state,
        variables,
        mesh.put(resident(), mesh.replicated(on)),
        key=jax.random.key(1),
        epochs=STEPS // 2,
        progress=False,
        after=lambda state, row: counts.append(len(compiled)) or {},
    )
    return {
        "params": mesh.fetch(wide_of(run.state, "params")),
        "state": mesh.fetch(wide_of(run.state, "state")),
        "history": run.history,
        "compilations": counts,
        "images of a device": set(parts),
        "donated": all(leaf.is_deleted() for leaf in jax.tree.leaves(state)),
        "kept": not any(leaf.is_deleted() for leaf in jax.tree.leaves(variables)),
        "bytes": {"student": bytes_of(run.state), "teacher": bytes_of(variables)},
        "split": any(not lie.is_fully_replicated for lie in jax.tree.leaves(lies)),
        "lies as before": jax.tree.all(
            jax.tree.map(
                lambda leaf, lie: leaf.sharding.is_equivalent_to(lie, leaf.ndim),
                run.state,
                lies,
            )
        ),
    }


def wide_of(state, name):
    """A part of one TrainState, or of each of several."""
    if isinstance(state, distill.TrainState):
        return getattr(state, name)
    return [getattr(each, name) for each in state]


def bytes_of(tree):
    """How many bytes each device holds."""
    held = dict.fromkeys(range(jax.device_count()), 0)
    for leaf in jax.tree.leaves(tree):
        if not jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            for part in leaf.addressable_shards:
                held[part.device.id] += part.data.nbytes
    return [size for size in held.values() if size]


def learner(net, spec, tx=None):
    tx = tx or optax.sgd(1e-3, momentum=0.9)
    return distill.distiller(net, distill.frozen(cases.teacher), spec, tx)


def with_every_term(variables):
    """A student, and every term that the battery has and those that it lacks."""
    net, simkd = terms.simkd(
        cases.student,
        cases.teacher,
        variables,
        cases.images(BATCH)["image"],
        pair="stage3",
    )
    return net, cases.all_terms() | {
        "ctkd": terms.ctkd(ramp=5),
        "simkd": simkd,
        "paraphraser": terms.paraphraser("stage3"),
        "ce": distill.on_labels(losses.cross_entropy),
    }


def train_terms():
    """Every term."""
    variables = wide(cases.teacher_variables())
    net, every = with_every_term(variables)
    d = learner(noisy(net), {name: (1e-2, term) for name, term in every.items()})
    state = start(d, variables)
    return {
        "one": trained(d, one(), state, variables),
        "eight": trained(d, mesh.make(), state, variables),
    }


def train_small():
    """A few terms on more meshes."""
    variables = wide(cases.teacher_variables())
    spec = {
        "ce": (1.0, distill.on_labels(losses.cross_entropy)),
        "dist": (1.0, distill.on_logits(losses.dist)),
        "sp": (1.0, terms.sp("stage3")),
        "crd": (0.1, cases.all_terms()["crd"]),
    }
    d = learner(noisy(cases.student), spec)
    state = start(d, variables)
    run = lambda on, *split: trained(d, on, state, variables, split=split)
    return {
        "one": run(one()),
        "eight": run(mesh.make()),
        "teacher split over 2": run(mesh.make(2), "teacher"),
        "both split over 4": run(mesh.make(4), "student", "teacher"),
    }


def train_peers():
    """Two networks that teach each other."""
    spec = {
        "ce": (1.0, distill.on_labels(losses.cross_entropy)),
        "kd": (1.0, distill.on_logits(ensemble.each(losses.kd))),
    }
    peers = mlp([6], classes=10), mlp([5, 4], classes=10)
    d = mutual.distiller(peers, spec, optax.sgd(0.1))
    state = start(d, None)
    return {
        "one": trained(d, one(), state, None),
        "eight": trained(d, mesh.make(4), state, None, split=("student", "optimiser")),
    }


def train_seeds():
    """Two seeds at once, on meshes as well."""
    spec = {"ce": (1.0, distill.on_labels(losses.cross_entropy))}
    d = distill.distiller(
        mlp([5], classes=10), distill.no_teacher, spec, optax.sgd(0.1)
    )
    keys = jax.random.split(jax.random.key(2), 2)
    batch = train.example(resident(), VIEW, BATCH)
    states = wide(jax.jit(jax.vmap(d.init, in_axes=(0, None, None)))(keys, None, batch))

    def run(on):
        epoch = train.make_epoch(d, view=VIEW, batch_size=BATCH, mesh=on)
        states_, images = mesh.put((states, resident()), mesh.replicated(on))
        how = {"key": keys, "epochs": 2, "progress": False}
        ended = train.fit(train.over_seeds(epoch), states_, None, images, **how)
        return mesh.fetch(ended.state.params)

    return {"one": run(one()), "eight": run(mesh.make())}


def train_by_learn():
    """`train.learn` on data on the devices and on a stream, on one device and eight."""
    digits = data.load("digits", "train")
    few = dataset.take(digits, np.arange(2 * BATCH), "train")
    stream = lambda on: data.Stream(data.mapped(few), BATCH, mesh=on)
    net, tx = mlp([5], classes=10), optax.sgd(0.1)
    variables = net.init(jax.random.key(3), cases.images(BATCH)["image"])
    kd = {"kd": (1.0, distill.on_logits(losses.kd))}
    how = {"view": augment.to_float(), "tx": tx, "spec": kd, "epochs": 2}

    def run(examples, on, batch_size):
        ended = train.learn(
            net,
            examples,
            teacher=(net, variables),
            mesh=on,
            batch_size=batch_size,
            progress=False,
            **how,
        )
        return mesh.fetch(ended.variables)

    return {
        "one": run(few, None, BATCH),
        "eight": run(few, mesh.make(), BATCH),
        "streamed": run(stream(mesh.make()), None, None),
    }


def train_half():
    """A residual network in bfloat16 that computes its blocks twice."""
    net = resnet(8, classes=10, widths=(4, 4, 4, 4), dtype=jnp.bfloat16, remat=True)
    spec = {"ce": (1.0, distill.on_labels(losses.cross_entropy))}
    d = distill.distiller(net, distill.no_teacher, spec, optax.sgd(0.01))
    state = start(d, None)
    state = jax.tree.map(
        lambda a: a.astype(np.float32) if a.dtype == np.float64 else a, state
    )
    return {
        "one": trained(d, one(), state, None),
        "eight": trained(d, mesh.make(), state, None),
    }


# What needs no training.


def accumulated():
    """One step on 16 images, and two on 8 each whose gradients are averaged."""
    on = mesh.make()
    spec = {
        "ce": (1.0, distill.on_labels(losses.cross_entropy)),
        "kd": (1.0, distill.on_logits(losses.kd)),
    }
    net, tx = mlp([5], classes=10), optax.sgd(0.1, momentum=0.9)
    variables = wide(net.init(jax.random.key(3), cases.images(BATCH)["image"]))
    whole = augment.chain(VIEW)(jax.random.key(0), resident())
    halves = jax.tree.map(lambda a: a.reshape(2, BATCH, *a.shape[1:]), whole)

    def after(tx, batches):
        d = distill.distiller(net, distill.frozen(net), spec, tx)
        state = mesh.put(start(d, variables), mesh.replicated(on))
        step = lambda state, batch: d.step(state, variables, mesh.split(batch, on))
        return mesh.fetch(
            jax.jit(lambda s, b: jax.lax.scan(step, s, b)[0].params)(state, batches)
        )

    return {
        "at once": after(tx, jax.tree.map(lambda a: a[None], whole)),
        "in halves": after(
            optax.MultiSteps(tx, 2, accumulator_dtype=np.float64), halves
        ),
    }


def per_device():
    """The similarity loss of a batch, and the mean of what each device's part gives."""
    on = mesh.make(devices=jax.devices()[:2])
    s, t = np.random.default_rng(0).normal(size=(2, BATCH, 5))
    of = lambda s, t: losses.sp(s, t).mean()
    alone = lambda s, t: jax.lax.pmean(of(s, t), mesh.AXES)
    rows = PartitionSpec(mesh.AXES)
    parts = jax.shard_map(alone, mesh=on, in_specs=rows, out_specs=PartitionSpec())
    s, t = mesh.put((s, t), mesh.rows(on))
    return {"global": float(jax.jit(of)(s, t)), "parts": float(jax.jit(parts)(s, t))}


def round_trip():
    """What comes back of what was put, by rule."""
    on = mesh.make(4)
    tree = {
        "large": np.arange(24.0).reshape(2, 12),
        "odd": np.arange(9.0).reshape(3, 3),
        "square": jnp.arange(64.0).reshape(8, 8),
        "key": jax.random.key(5),
        "none": None,
    }
    lies = mesh.sharded(tree, on, at_least=9)
    put = mesh.put(tree, lies)
    rows = mesh.put_rows({"image": np.arange(32).reshape(16, 2)}, on)["image"]
    jax.jit(lambda x: x + 1, donate_argnums=0)(
        mesh.put(tree["square"], mesh.replicated(on))
    )
    back = mesh.fetch(put)
    return {
        "specs": {name: tuple(lie.spec) for name, lie in lies.items() if lie},
        "lies as said": jax.tree.all(
            jax.tree.map(lambda a, b: a == b, mesh.shardings(put), lies)
        ),
        "equal": all(
            np.array_equal(back[n], tree[n]) for n in ("large", "odd", "square")
        ),
        "key": bool(back["key"] == tree["key"]),
        "rows": [part.data.shape for part in rows.addressable_shards],
        "rows equal": np.array_equal(mesh.fetch(rows), np.arange(32).reshape(16, 2)),
        "kept": not tree["square"].is_deleted(),
        "in order": mesh.make(2, jax.devices()[::-1]) == mesh.make(2),
    }


def refusals():
    """The messages of what cannot work, each before a step was taken."""
    eight, four = mesh.make(), mesh.make(2)
    spec = {"ce": (1.0, distill.on_labels(losses.cross_entropy))}
    d = distill.distiller(
        mlp([3], classes=10), distill.no_teacher, spec, optax.sgd(0.1)
    )
    steps = []
    d = d._replace(step=lambda *args: steps.append(1))
    state, images = start(d, None), resident()
    on = lambda tree, where: mesh.put(tree, mesh.replicated(where))

    def fit(mesh_, state, images):
        epoch = train.make_epoch(d, view=VIEW, batch_size=8, mesh=mesh_)
        train.fit(epoch, state, None, images, key=jax.random.key(0), epochs=1)

    tries = {
        "three": lambda: mesh.make(3),
        "rows": lambda: mesh.put_rows(np.zeros((9, 2)), eight),
        "batch": lambda: train.make_epoch(d, view=VIEW, batch_size=12, mesh=eight),
        "state": lambda: fit(eight, state, on(images, eight)),
        "data": lambda: fit(eight, on(state, eight), images),
        "other": lambda: fit(four, on(state, eight), on(images, four)),
        "unsaid": lambda: fit(None, on(state, eight), on(images, eight)),
    }
    said = {}
    for name, attempt in tries.items():
        try:
            attempt()
        except ValueError as error:
            said[name] = str(error)
    return said | {"steps": steps}


SMALL = (train_small, accumulated, per_device, round_trip, refusals, train_by_learn)


def everything():
    """Every loss and every term."""
    return {
        "losses": {
            "one": sharded_losses.train_all(one()),
            "eight": sharded_losses.train_all(mesh.make()),
        },
        "train_terms": train_terms(),
        "train_half": train_half(),
        "train_peers": train_peers(),
        "train_seeds": train_seeds(),
    }


if __name__ == "__main__":
    jax.config.update("jax_enable_x64", True)
    jax.config.update("jax_numpy_rank_promotion", "raise")
    warnings.simplefilter("error")
    small = sys.argv[1] == "small"
    found = {part.__name__: part() for part in SMALL} if small else everything()
    pathlib.Path(sys.argv[2]).write_bytes(pickle.dumps(found))
