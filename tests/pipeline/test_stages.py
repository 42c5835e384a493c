"""Kinds of stages: one class each, from which the rest is made."""

import inspect
import typing

import jax
import numpy as np
import pytest

import jaxkd.pipeline
from jaxkd.pipeline import data_kinds, networks, parts, run as runs, toml
from jaxkd.pipeline.config import AnyStage, Config
from jaxkd.pipeline.stages import KINDS, STEPS
from jaxkd.pipeline.stages.stage import Stage
from tests.pipeline.small import read, rows


def subclasses(kind):
    found = kind.__subclasses__()
    return [*found, *(s for sub in found for s in subclasses(sub))]


def test_every_kind_is_listed_documented_and_in_a_file_of_its_own():
    tagged = {k for k in subclasses(Stage) if k.__struct_config__.tag is not None}
    assert tagged == {*KINDS} == {*typing.get_args(AnyStage)}
    tags = [kind.__struct_config__.tag for kind in KINDS]
    assert len({*tags}) == len(tags) == len({inspect.getfile(k) for k in KINDS})
    assert all(f"`{tag}`" in jaxkd.pipeline.__doc__ for tag in tags)
    assert {type(stage) for stage in toml.defaults().stages} == {*KINDS}
    for kind in KINDS:
        assert kind.__doc__ and kind.__doc__.splitlines()[0].endswith(".")
        for method in ("run", "rehearse"):
            assert getattr(kind, method) is not getattr(Stage, method), kind


def test_each_step_of_a_recipe_is_of_one_kind():
    assert len(STEPS) == sum(len(kind.steps) for kind in KINDS)
    assert {*STEPS} == {"choose", "recipe", "prune", "fold", "quantize"}
    model = parts.MlpTable()
    how = {"classes": 10, "image_shape": (8, 8, 1)}
    with pytest.raises(ValueError, match="unknown step 'prun'; .*did you mean prune"):
        networks.build(model, [{"step": "prun"}], {}, {}, **how)
    with pytest.raises(ValueError, match="no network before a search"):
        networks.build(parts.SpaceTable(), [], {}, {}, **how)


def test_evaluate_measures_a_split_and_changes_nothing(tmp_path):
    stages = ["train", "evaluate", "evaluate"]
    train, before, after = (
        {k.__struct_config__.tag: k for k in KINDS}[name] for name in stages
    )
    config = Config(
        data=data_kinds.Tfds(train_images=100),
        models={"student": parts.MlpTable(widths=(8,))},
        stages=(
            train(name="train", epochs=1, batch_size=50),
            before(name="seen", split="train"),
            after(name="unseen", split="test"),
        ),
    )
    run = runs.start(config, tmp_path / "run")
    seen, unseen = rows(run)[-2:]
    assert (seen["images"], unseen["images"]) == (100, 500)
    trained, first, last = read(run)["rows"]
    assert trained["digest"] == first["digest"] == last["digest"]
    assert unseen["accuracy"] == pytest.approx(trained["accuracy"])
    assert unseen["nll"] == pytest.approx(trained["nll"]) != seen["nll"]
    splits = runs.run_data.make(config.data)
    held = runs.loading.loaded(config, "student", run / "models" / "student", splits)
    images = splits.plain(jax.random.key(0), {"image": splits.train.images})["image"]
    outputs, _ = held.net.apply(held.params, held.state, images, train=False)
    right = np.mean(outputs.logits.argmax(-1) == splits.train.labels)
    assert seen["accuracy"] == pytest.approx(right)
