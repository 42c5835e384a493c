"""Where a study works: its data, its run directory, and its teachers."""

import hashlib
import json
import pathlib
from typing import Any, NamedTuple

import jax
import optax

from experiments import _outcome as outcome, _pair as pair
from experiments.studies import _nets, _probe
from experiments.studies._config import Config, Scale
from experiments.studies._probe import Metrics, Seen
from jaxkd import checkpoint, data, log, train
from jaxkd.data import augment
from jaxkd.models import Net


class Lab(NamedTuple):
    """What every study is given.

    Attributes:
      config: of the command line.
      scale: how large the study is.
      task: the students' images and the test set.
      whole: the teacher's images and the same test set.
      log: where the rows go.
      directory: of this run.
    """

    config: Config
    scale: Scale
    task: pair.Task
    whole: pair.Task
    log: log.Log
    directory: pathlib.Path

    @property
    def together(self) -> bool:
        """Seeds by vmap, except for convolutions on CPU, which it makes slow."""
        convolves = self.scale.dataset == "cifar10"
        return not convolves or jax.default_backend() != "cpu"


def lab(config: Config, scale: Scale) -> Lab:
    """Loads the data and opens the run's directory."""
    train_set, test_set = _splits(config, scale)
    with pair.refusing("cannot train"):
        mine = _part(train_set, scale.student_images, scale.batch_size)
        whole = _part(train_set, scale.teacher_images, scale.teacher_batch_size)
    view = augment.chain(
        augment.to_float(), augment.normalise(*data.channel_statistics(train_set))
    )
    directory = outcome.run_directory(f"{config.out}/studies", config.study)
    write = log.start(directory, {"options": vars(config), "used": vars(scale)})
    task, all_of_it = (pair.task(part, test_set, view) for part in (mine, whole))
    return Lab(config, scale, task, all_of_it, write, directory)


def _splits(config: Config, scale: Scale) -> tuple[data.Dataset, data.Dataset]:
    choosing = config.evaluate_on == "validation"
    where: dict[str, Any] = {"archives": config.archives, "data_dir": config.data_dir}
    with pair.refusing("no data"):
        train_set = data.load(
            scale.dataset, "train_rest" if choosing else "train", **where
        )
        return train_set, data.load(scale.dataset, config.evaluate_on, **where)


def _part(dataset: data.Dataset, n: int, batch_size: int) -> data.Dataset:
    """The first n of a fixed order, so that a small one is within a large one."""
    part = data.subset(dataset, n, seed=0) if n else dataset
    # Not run: it refuses a batch that is too large, before anything is trained.
    epoch = lambda key: data.epoch(key, len(part.images), batch_size)
    jax.eval_shape(epoch, jax.random.key(0))
    return part


class Taught(NamedTuple):
    """A trained teacher and what it says about the test set."""

    net: Net
    variables: Any
    probe: _probe.Probe
    seen: Seen
    metrics: Metrics


def teacher(lab: Lab, epochs: int | None = None) -> Taught:
    """The teacher, trained on its labels, or read if an earlier study trained it."""
    spec = _nets.TEACHERS[lab.scale.dataset]
    epochs = epochs or lab.scale.teacher_epochs
    net = _nets.build(spec)
    folder = _teacher_folder(lab, spec, epochs)
    batch = train.example(lab.whole.resident, lab.whole.view)
    like = jax.eval_shape(net.init, jax.random.key(0), batch["image"])
    try:
        found = checkpoint.load(folder / "variables", {"of": like})["of"]
    except FileNotFoundError:
        found = _trained(lab, net, epochs, folder)
    probe = _probe.prober(net, lab.task.view)
    seen = probe(found, lab.task.resident_test)
    metrics = _probe.against(seen, seen, lab.task.resident_test["label"])
    lab.log({"run": f"teacher, {epochs} epochs", **_probe.listed(metrics)})
    return Taught(net, found, probe, seen, metrics)


def _teacher_folder(lab: Lab, spec: _nets.Spec, epochs: int) -> pathlib.Path:
    """Named by everything that the trained teacher depends on."""
    identity = {
        "net": spec,
        "epochs": epochs,
        "batch_size": lab.scale.teacher_batch_size,
        "learning_rate": lab.config.learning_rate,
        "data": data.fingerprint(lab.whole.train),
    }
    text = json.dumps(identity, sort_keys=True)
    name = f"{lab.scale.dataset}_{epochs}_epochs"
    digest = hashlib.sha256(text.encode()).hexdigest()[:12]
    return pathlib.Path(lab.config.out) / "studies" / "teachers" / f"{name}_{digest}"


def _trained(lab: Lab, net: Net, epochs: int, folder: pathlib.Path) -> Any:
    trainer = pair.Trainer(
        optax.adam(lab.config.learning_rate),
        lab.scale.teacher_batch_size,
        lab.log,
        lab.directory,
        lab.together,
    )
    with pair.refusing("cannot train the teacher"):
        run = trainer(f"teacher {epochs}", net, lab.whole, seeds=1, epochs=epochs)
    variables = outcome.first(run)
    checkpoint.save(folder / "variables", {"of": variables})
    return variables
