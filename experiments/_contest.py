"""Methods against each other: one teacher, one budget, the same seeds for all."""

import ast
import functools
import importlib
import json
import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from rich.console import Console

from experiments import _outcome as outcome, _protocol as protocol
from experiments._pair import refusing
from jaxkd import checkpoint, cost, log, recipes, report, train
from jaxkd.models import Net
from jaxkd.schemes import staged
from jaxkd.types import Batch

Result = dict[str, Any]


class Contestant(NamedTuple):
    """A recipe, and its options where they are not the published ones."""

    method: recipes.Method
    options: dict[str, Any]

    @property
    def about(self) -> str:
        """What the method is, in a line."""
        given = ", ".join(f"{k}={v}" for k, v in self.options.items())
        return recipes.summary(self.method) + (f" ({given})" if given else "")


def contestant(key: str) -> Contestant:
    """Read "dkd", "dkd:beta=2.0" or a function of one's own, "module:function".

    Raises:
      ValueError: if there is no such recipe or function.
    """
    name, _, rest = key.partition(":")
    if key == "none":
        return Contestant(recipes.labels, {})
    if name in recipes.names() or not rest:
        pairs = [pair.partition("=") for pair in rest.split(",") if pair]
        try:
            options = {k: ast.literal_eval(v) for k, _, v in pairs}
        except (ValueError, SyntaxError) as error:
            raise ValueError(f"options must be NAME=VALUE, got {rest!r}") from error
        return Contestant(recipes.get(name), options)
    try:
        return Contestant(getattr(importlib.import_module(name), rest), {})
    except (ImportError, AttributeError) as error:
        raise ValueError(f"no method {key!r}: {error}") from error


def contest(name: str, config: Any, contestants: tuple[str, ...]) -> list[Result]:
    """Trains the teacher, then a student by each method; prints and writes the table.

    What is done is kept at once in `results.jsonl`; a run that is given its directory
    as `config.resume` goes on after the last method that was finished.

    Args:
      name: of the experiment.
      config: has `teacher`, `student`, `dataset`, `archives`, `data_dir`,
        `evaluate_on`, `seeds`, `out`, `resume` and the method `protocols`.
      contestants: names of recipes, with options after a colon; "none" is added, the
        student alone.

    Returns:
      For each method its accuracies and what it cost, in the order of the table.
    """
    with refusing("no method"):
        chosen = {key: contestant(key) for key in ("none", *contestants)}
    of_student, of_teacher = config.protocols()
    world = protocol.world(config, of_student.train_images)
    whole = protocol.world(config, of_teacher.train_images)
    student = protocol.network(config.student, world.train.num_classes)
    teacher = protocol.network(config.teacher, world.train.num_classes)
    examples = len(world.train.images)
    batch = train.example(world.resident, world.test_view, min(256, examples))
    budget = _budget(of_student, config.student, examples)

    def make(entry: Contestant, variables: Any) -> recipes.Recipe:
        return recipes.build(
            entry.method,
            student,
            (teacher, variables),
            batch,
            dataset=world.train,
            budget=budget,
            **entry.options,
        )

    few = jax.tree.map(lambda a: a[:2], batch)
    shapes = jax.eval_shape(teacher.init, jax.random.key(0), few["image"])
    with refusing("cannot train"):
        for entry in chosen.values():
            _rehearse(functools.partial(make, entry), shapes, few)
    directory, write = opened(name, config)
    _, variables, taught = protocol.trained_teacher(
        config.teacher, whole, of_teacher, out=config.out, seed=0, write=write
    )
    results = directory / "results.jsonl"
    found = finished(results)
    done = {result["method"] for result in found}
    for key in [key for key in chosen if key not in done]:
        recipe, about = make(chosen[key], variables), chosen[key].about
        run = _run(key, recipe, about, world, of_student, config, write, directory)
        found.append(run)
        with results.open("a") as file:
            file.write(json.dumps(run) + "\n")
        Console(stderr=True).print(f"{key}: {report.mean_sd(run['accuracy'])}")
    return _finish(name, config, directory, teacher, student, taught, found, world)


def opened(name: str, config: Any) -> tuple[pathlib.Path, log.Log]:
    """The run's directory and log; a resumed run writes on in its own."""
    if config.resume is None:
        directory = outcome.run_directory(config.out, name)
        return directory, log.start(directory, config)
    directory = pathlib.Path(config.resume)
    with refusing("cannot resume"):
        before = json.loads((directory / "config.json").read_text())
    now = json.loads(json.dumps(vars(config), default=str))
    for field in sorted(set(before) - {"resume", "methods", "method", "out"}):
        if before[field] != now.get(field):
            raise SystemExit(
                f"cannot resume {directory}: its {field} was {before[field]}, "
                f"now it is {now.get(field)}"
            )

    def write(row: log.Row) -> None:
        with (directory / "metrics.jsonl").open("a") as file:
            file.write(json.dumps(row) + "\n")

    return directory, write


def finished(results: pathlib.Path) -> list[Result]:
    """The results of a run so far; a last line that was cut off does not count."""
    if not results.exists():
        return []
    whole = [line for line in results.read_text().splitlines(True) if line[-1] == "\n"]
    results.write_text("".join(whole))
    return [json.loads(line) for line in whole]


def _budget(budget: protocol.Protocol, student: str, examples: int) -> recipes.Budget:
    """The protocol's lengths and rates for these networks and data."""
    return recipes.Budget(
        epochs=budget.epochs,
        steps_per_epoch=examples // budget.batch_size,
        learning_rate=protocol.rate(budget, student),
        drops=budget.milestones,
        decay=budget.decay,
        momentum=budget.momentum,
        weight_decay=budget.weight_decay,
    )


def _rehearse(
    make: Callable[[Any], recipes.Recipe], variables: Any, batch: Batch
) -> None:
    """Makes every stage's state, as shapes, before a teacher is trained.

    Raises:
      ValueError: if the recipe does not fit, or is one of several networks.
    """

    def start(variables: Any) -> Any:
        recipe = make(variables)
        if recipe.scheme != "staged":
            raise ValueError(f"this recipe is run by jaxkd.schemes.{recipe.scheme}")
        before = None
        for stage in recipe.stages:
            d = staged.stage_distiller(stage, recipe.net, recipe.teacher, before)
            before = d.init(jax.random.key(0), recipe.teacher_variables, batch)
        return before

    jax.eval_shape(start, variables)


def _run(
    key: str,
    recipe: recipes.Recipe,
    about: str,
    world: protocol.World,
    budget: protocol.Protocol,
    config: Any,
    write: log.Log,
    directory: pathlib.Path,
) -> Result:
    """Trains the student of every seed by one method."""
    run = protocol.learn(
        key,
        world,
        recipe.net,
        recipe.stages,
        protocol=budget,
        seeds=range(config.seeds),
        write=write,
        teacher=recipe.teacher,
        teacher_variables=recipe.teacher_variables,
        every_epoch=config.every_epoch,
    )
    params, state = run.variables
    folder = directory / protocol.folder_name(key)
    checkpoint.save(folder, {"params": params, "state": state})
    epochs = sum(stage.epochs for stage in recipe.stages)
    images = epochs * len(world.train.images) * config.seeds
    return {
        "method": key,
        "about": about,
        "accuracy": (100 * run.accuracy).round(4).tolist(),
        "nll": run.nll.round(5).tolist(),
        "minutes": round(run.minutes, 2),
        "images/s": round(images / (60 * run.minutes)),
        "parameters": cost.parameters(params) // config.seeds,
    }


def _finish(
    name: str,
    config: Any,
    directory: pathlib.Path,
    teacher: Net,
    student: Net,
    taught: float,
    found: list[Result],
    world: protocol.World,
) -> list[Result]:
    """The table, from the best method to the worst, and the picture."""
    alone = np.asarray(next(r for r in found if r["method"] == "none")["accuracy"])
    order = sorted(found, key=lambda r: -float(np.mean(r["accuracy"])))
    rows: list[dict[str, Any]] = [
        {
            "method": f"teacher {config.teacher}",
            "test accuracy %": f"{100 * taught:.2f}",
            "parameters": f"{_parameters(teacher, world):,}",
        }
    ]
    rows += [
        {
            "method": result["method"],
            "test accuracy %": report.mean_sd(result["accuracy"]),
            "gain ± s.e.": _gain(np.asarray(result["accuracy"]) - alone, result),
            "NLL": report.mean_sd(result["nll"], digits=3),
            "parameters": f"{result['parameters']:,}",
            "minutes": f"{result['minutes']:.1f}",
        }
        for result in order
    ]
    columns = rows[1].keys()
    rows = [{column: row.get(column, "") for column in columns} for row in rows]
    sentence = _sentence(order, alone)
    title = (
        f"{name}: {config.teacher} to {config.student}, {len(world.train.images):,} "
        f"images of {config.dataset}, {config.seeds} seeds"
    )
    report.show(rows, title)
    print(sentence)
    drawn = report.dots(
        directory / "methods.png",
        {r["method"]: r["accuracy"] for r in order},
        x_label="test accuracy, %",
        line=float(alone.mean()),
    )
    picture = "![Test accuracy by method](methods.png)\n\n" if drawn else ""
    made = report.listed(log.versions())
    (directory / "report.md").write_text(
        f"# {title}\n\n{report.markdown(rows)}\nAfter the last epoch, mean ± standard "
        f"deviation over seeds; gains are paired.\n\n{sentence}\n\n{picture}{made}"
    )
    print(f"report: {directory / 'report.md'}")
    return order


def _parameters(net: Net, world: protocol.World) -> int:
    return cost.of(net, world.train.images.shape[1:]).parameters


def _gain(difference: np.ndarray, result: Result) -> str:
    """The mean gain of paired seeds in points, and its standard error."""
    if result["method"] == "none":
        return ""
    n = len(difference)
    error = f" ± {difference.std(ddof=1) / np.sqrt(n):.2f}" if n > 1 else ""
    return f"{difference.mean():+.2f}{error}"


def _sentence(order: list[Result], alone: np.ndarray) -> str:
    """How many methods help by more than two standard errors, and how many hurt."""
    better: list[str] = []
    worse: list[str] = []
    unclear: list[str] = []
    for result in order:
        if result["method"] == "none":
            continue
        gain = np.asarray(result["accuracy"]) - alone
        error = gain.std(ddof=1) / np.sqrt(len(gain)) if len(gain) > 1 else np.inf
        if abs(gain.mean()) <= 2 * error:
            unclear.append(result["method"])
        else:
            (better if gain.mean() > 0 else worse).append(result["method"])
    say = lambda names: ", ".join(names) if names else "none"
    return (
        "Against the student alone, by more than two standard errors: better "
        f"{say(better)}; worse {say(worse)}; neither {say(unclear)}."
    )
