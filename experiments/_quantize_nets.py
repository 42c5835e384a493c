"""Networks to quantize: teachers, students of all seeds, what QAT makes of them."""

import pathlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments import _protocol as protocol
from experiments._pair import kd_spec, refusing
from experiments._quantize_files import Cell, Subject, Variables
from experiments._quantize_report import ALONE, TAUGHT
from jaxkd import checkpoint, distill, log, train
from jaxkd.compress import prune, quantize
from jaxkd.distill import Spec
from jaxkd.models import CNNS, ZOO, Net, cnn
from jaxkd.schemes import staged


class Bench(NamedTuple):
    """What every row of the table is made from.

    Attributes:
      config: the experiment's.
      directory: of the run.
      world: the data of QAT and fine-tuning.
      calibration: batches of training images, as networks see them.
      teacher: the teacher's network and variables; None if nothing asks for it.
      reference: by seed, what the distilled student's own file says of the test images.
      write: the log.
    """

    config: Any
    directory: pathlib.Path
    world: protocol.World
    calibration: list[Any]
    teacher: tuple[Net, Variables] | None
    reference: list[np.ndarray]
    write: log.Log

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one image."""
        return self.world.train.images.shape[1:]


def network(name: str, classes: int) -> Net:
    """A network of the zoo, or one of `models.CNNS`."""
    if name in CNNS:
        return cnn(**{**CNNS[name], "classes": classes})
    if name not in ZOO:
        names = ", ".join(sorted({*ZOO, *CNNS}))
        raise SystemExit(f"no network {name!r}; there are {names}")
    return protocol.network(name, classes)


def quantization(config: Any, cell: Cell) -> quantize.Quantization:
    """What a cell means."""
    return quantize.Quantization(
        weights=cell.bits,
        activations=cell.activation_bits,
        per_channel=cell.per_channel,
        activation=cell.activation,
        estimator=config.estimator,
    )


def teacher_of(
    config: Any, world: protocol.World, write: log.Log
) -> tuple[Net, Variables]:
    """The teacher: from its checkpoint, or trained once and kept."""
    name, _, path = config.teacher.partition(":")
    if path:
        with refusing("cannot reuse the teacher"):
            saved = checkpoint.load(path)
            variables = (saved["params"], saved["state"])
        return network(name, world.train.num_classes), variables
    net, variables, _ = protocol.trained_teacher(
        name, world, config.protocols()[1], out=config.out, seed=0, write=write
    )
    return net, variables


def students(
    bench: Bench, net: Net, world: protocol.World, name: str
) -> list[Variables] | None:
    """The float networks of all seeds; None if only the other one is reused."""
    config, folder = bench.config, bench.directory / protocol.folder_name(name)
    if not folder.exists() and config.reuse is not None:
        earlier = pathlib.Path(config.reuse)
        of_run = earlier / protocol.folder_name(name)
        if not of_run.exists() and name == ALONE:
            return None
        with refusing("cannot reuse"):
            saved = checkpoint.load(of_run if of_run.exists() else earlier)
            return _of_seeds((saved["params"], saved["state"]), net, bench)
    if not folder.exists():
        budget = config.protocols()[0]
        rate = protocol.rate(budget, config.net)
        tx = protocol.optimiser(budget, rate, budget.epochs, len(world.train.images))
        how: dict[str, Any] = {}
        stages = protocol.on_labels(tx, budget.epochs)
        if name == TAUGHT and bench.teacher is not None:
            teacher, variables = bench.teacher
            how = {"teacher": distill.frozen(teacher), "teacher_variables": variables}
            stages = [staged.Stage("taught", kd_spec(config), budget.epochs, tx)]
        learned = protocol.learn(
            name, world, net, stages, protocol=budget, seeds=range(config.seeds),
            write=bench.write, every_epoch=False, **how,
        )  # fmt: skip
        params, state = learned.variables
        checkpoint.save(folder, {"params": params, "state": state})
    saved = checkpoint.load(folder)
    return _of_seeds((saved["params"], saved["state"]), net, bench)


def _of_seeds(variables: Variables, net: Net, bench: Bench) -> list[Variables]:
    """One network a seed: of stacked ones each its own, of a single one copies.

    Raises:
      ValueError: if they are not variables of this network, or of fewer seeds.
    """
    x = jax.ShapeDtypeStruct((1, *bench.shape), np.float32)
    wanted = jax.eval_shape(net.init, jax.random.key(0), x)
    shapes = lambda tree: [leaf.shape for leaf in jax.tree.leaves(tree)]
    seeds = bench.config.seeds
    if shapes(variables) == shapes(wanted):
        return [variables] * seeds
    if [s[1:] for s in shapes(variables)] != shapes(wanted):
        raise ValueError(f"these are not the variables of {bench.config.net}")
    if (there := shapes(variables)[0][0]) < seeds:
        raise ValueError(f"there are networks of {there} seeds, not of {seeds}")
    return [jax.tree.map(lambda leaf, i=i: leaf[i], variables) for i in range(seeds)]


def tuned(
    bench: Bench,
    name: str,
    net: Net,
    starts: list[Variables],
    teacher: Net,
    taught: list[Variables],
) -> list[Variables]:
    """Goes on training the network of every seed, taught by another.

    One program for all seeds; each starts from variables and has a teacher of its own.
    """
    budget = bench.config.protocols()[2]
    images = len(bench.world.train.images)
    tx = protocol.optimiser(budget, bench.config.tune_rate, budget.epochs, images)
    spec: Spec = kd_spec(bench.config)
    frozen, view = distill.frozen(teacher), bench.world.view
    epoch = train.make_epoch(
        distill.distiller(net, frozen, spec, tx),
        view=view,
        batch_size=budget.batch_size,
    )
    found = []
    for seed, (start, variables) in enumerate(zip(starts, taught, strict=True)):
        # Copies: training consumes its state.
        begin = Net(lambda *_, own=start: jax.tree.map(jnp.array, own), net.apply)
        key = jax.random.key(seed)
        d = distill.distiller(begin, frozen, spec, tx)
        run = train.fit(
            epoch,
            d.init(key, variables, train.example(bench.world.resident, view)),
            variables,
            bench.world.resident,
            key=key,
            epochs=budget.epochs,
            log=bench.write,
            name=f"{name}, seed {seed}",
        )
        if run.interrupted:
            raise SystemExit(f"interrupted in {name}; go on with --resume")
        pick = (run.state.params["student"], run.state.state["student"])
        found.append(jax.tree.map(np.asarray, pick))
    return found


def subjects(
    bench: Bench, cell: Cell, net: Net, variables: list[Variables], name: str = ""
) -> list[Subject]:
    """The networks of all seeds, folded, quantized, calibrated and, by QAT, trained."""
    config = quantization(bench.config, cell)
    folded = [quantize.fold(net, *own, bench.shape) for own in variables]
    plain = folded[0][0]
    if cell.method == "PTQ equalised":
        folded = [(n, quantize.equalise(n, p, s, bench.shape), s) for n, p, s in folded]
    made = [quantize.quantized(plain, p, s, config, bench.shape) for _, p, s in folded]
    ready = made[0][0]
    starts = [
        (params, quantize.calibrate(ready, params, state, bench.calibration))
        for _, params, state in made
    ]
    if cell.method == "PTQ corrected":
        images = bench.calibration
        starts = [(quantize.bias_correction(ready, *o, images), o[1]) for o in starts]
    if cell.method == "QAT":
        teacher, taught = plain, [(params, state) for _, params, state in folded]
        if bench.config.taught_by == "teacher" and bench.teacher is not None:
            teacher, taught = bench.teacher[0], [bench.teacher[1]] * len(starts)
        starts = tuned(bench, name or cell.name, ready, starts, teacher, taught)
    forget = lambda own: (own[0], {k: v for k, v in own[1].items() if k != "ranges"})
    plainly = Net(
        plain.init, lambda p, s, x, **how: plain.apply(*forget((p, s)), x, **how)
    )
    return [Subject(plainly, ready, own, config, cell) for own in starts]


def pruned(bench: Bench, net: Net, variables: list[Variables]) -> list[Variables]:
    """Half of every network, by one ratio and the L1 norm, fine-tuned by the whole."""
    few = []
    for own in variables:
        plan = prune.analyse_net(net, *own, bench.shape)
        target = prune.target(
            plan, "macs", fraction=bench.config.prune_to, round_to=bench.config.round_to
        )
        dropped = prune.uniform(plan, prune.criteria.l1(plan, own[0]), target)
        few.append(plan.apply(own, dropped))
    return tuned(bench, "pruned", prune.resized(net), few, net, variables)
