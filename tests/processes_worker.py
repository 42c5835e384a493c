"""What the processes of test_processes.py run: `python -m tests.processes_worker ...`.

train FOLDER [die]  trains and goes on from what is in the folder; with "die", the
                    last process kills itself once two epochs are saved
idle [SECONDS]      joins the others, if they come in time, and waits to be ended
fail PROCESS        this one raises an error, the others wait
"""

import json
import os
import pathlib
import signal
import sys
import time

import jax

from jaxkd import losses, processes

BATCH, STEPS, EPOCHS = 16, 5, 4


def small(width):
    """A network with batch statistics, and the tap that the terms need."""
    import flax.linen as nn

    from jaxkd.models.net import from_linen

    class Small(nn.Module):
        @nn.compact
        def __call__(self, x, train):
            x = nn.Dense(width)(x.reshape(len(x), -1))
            x = nn.BatchNorm(use_running_average=not train, momentum=0.9)(x)
            pooled = nn.relu(x)
            return nn.Dense(10)(pooled), {"pooled": pooled}

    return from_linen(Small())


def distiller(teacher, dataset):
    """Cross-entropy and KD, a loss of the batch's relations, and CRD's memory."""
    import optax

    from jaxkd import distill, terms

    spec = {
        "ce": (0.5, distill.on_labels(losses.cross_entropy)),
        "kd": (0.5, distill.on_logits(losses.kd, temperature=2.0)),
        "rkd": (1.0, distill.on_taps(losses.rkd_distance, "pooled", "pooled")),
        "crd": (
            0.1,
            terms.crd(index=dataset.index, labels=dataset.labels, dims=4, negatives=8),
        ),
    }
    tx = optax.sgd(0.1, momentum=0.9)
    return distill.distiller(small(4), distill.frozen(teacher), spec, tx)


def run(folder, dies=False):
    """Trains on the devices of all processes; where there is one, on one device."""
    from jaxkd import cache, checkpoint, data, distill, log, mesh, train
    from jaxkd.data.augment import to_float
    from jaxkd.data.dataset import take

    whole = data.load("digits", "train")
    dataset, key = take(whole, range(BATCH * STEPS), "train"), jax.random.key(0)
    resident, view, teacher = data.on_device(dataset), to_float(), small(6)
    procedure = distiller(teacher, dataset)
    example = train.example(resident, view)
    variables = jax.jit(teacher.init)(jax.random.key(1), example["image"])

    path, there = folder / "scores", []

    def scores():
        there.append(path.exists())
        speaker = distill.frozen(teacher)
        return cache.score(speaker, variables, dataset, view=view, path=path)

    scored = processes.in_turn(scores)
    state = jax.jit(procedure.init)(key, variables, example)
    found = checkpoint.newest(folder / "checkpoints", print)
    behind = 0
    if found is not None:
        state, behind = checkpoint.like(found.tree, state), found.meta["epoch"]
    write = log.start(folder / f"from{behind}", {"batch": BATCH})

    # Two processes have a half of every array, others all of it.
    pair = jax.process_count() == 2
    alone = jax.devices()[:1] if jax.process_count() == 1 else None
    on = mesh.make(model=2 if pair else 1, devices=alone)
    epoch = train.make_epoch(procedure, view=view, batch_size=BATCH, mesh=on)
    with checkpoint.writer(folder / "checkpoints", keep=EPOCHS) as saving:

        def after(state, row):
            saving.save(row["epoch"], state, {"epoch": row["epoch"]})
            saving.wait()  # else some would be left out
            last = jax.process_index() == jax.process_count() - 1
            if dies and last and row["epoch"] == 2:
                os.kill(os.getpid(), signal.SIGKILL)
            return {}

        train.fit(
            epoch,
            mesh.put(state, mesh.sharded(state, on, at_least=16)),
            mesh.put(variables, mesh.replicated(on)),
            mesh.put(resident, mesh.replicated(on)),
            key=key,
            epochs=EPOCHS,
            start=train.Place(behind),
            log=write,
            after=after,
        )
    total = float(scored.fields["teacher"].astype("float64").sum())
    stored = jax.config.jax_enable_compilation_cache
    return {"there": there, "total": total, "behind": behind, "stored": stored}


def main(what, *arguments):
    """Joins the others, and does what is asked."""
    patience = int(arguments[0]) if what == "idle" and arguments else 100
    processes.start(timeout=patience)
    if what == "train":
        folder, *dies = arguments
        print("result", json.dumps(run(pathlib.Path(folder), bool(dies))))
    else:
        print("here", flush=True)
        if what == "fail" and jax.process_index() == int(arguments[0]):
            raise FileNotFoundError("no such archive")
        time.sleep(100)


if __name__ == "__main__":
    main(*sys.argv[1:])
