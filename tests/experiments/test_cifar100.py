"""Methods against each other, run small on the digits in the package, and resumed."""

import dataclasses
import json

import numpy as np
import pytest

from experiments import cifar100
from jaxkd import recipes

TINY = cifar100.Config(
    teacher="resnet8",
    student="resnet8",
    methods=("kd",),
    dataset="digits",
    seeds=2,
    epochs=1,
    teacher_epochs=1,
    train_images=128,
    batch_size=32,
)


def own(student, teacher, batch, *, budget):
    """Soft labels alone: a recipe of one's own."""
    recipe = recipes.kd(student, teacher, batch, budget=budget)
    (stage,) = recipe.stages
    alone = stage._replace(spec={"kd": (1.0, stage.spec["kd"][1])})
    return recipe._replace(stages=(alone,))


@pytest.mark.slow
def test_a_run_is_resumed_with_more_methods(tmp_path):
    first = cifar100.main(dataclasses.replace(TINY, out=str(tmp_path)))
    (directory,) = (tmp_path / "cifar100").iterdir()
    methods = ("kd", f"{__name__}:own", "fitnets")
    again = dataclasses.replace(
        TINY, methods=methods, out=str(tmp_path), resume=str(directory)
    )
    found = {result["method"]: result for result in cifar100.main(again)}
    assert set(found) == {"labels", *methods}
    for result in first:
        assert found[result["method"]] == result  # not trained again
    assert found["kd"]["accuracy"] != found["labels"]["accuracy"]
    assert all(np.isfinite(result["nll"]).all() for result in found.values())

    rows = (directory / "metrics.jsonl").read_text().splitlines()
    names = [json.loads(row)["run"] for row in rows]
    assert names.count("kd: task") == 1 and "fitnets: task" in names
    report = (directory / "report.md").read_text()
    assert "| fitnets |" in report and "128 images of digits, 2 seeds" in report
    assert (directory / "methods.svg").read_bytes().startswith(b"<svg ")

    other = dataclasses.replace(again, batch_size=64)
    with pytest.raises(SystemExit, match="batch_size was 32, is 64"):
        cifar100.main(other)


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"methods": ("kdd",)}, "no recipe 'kdd'"),
        ({"methods": ("no.such:thing",)}, "No module named 'no'"),
        ({"methods": ("kd:tau=2",)}, "kd has no option 'tau'"),
        ({"methods": ("mutual",)}, "mutual is for schemes.mutual"),
        ({"student": "resnet9"}, "there is no: 'resnet9'"),
        ({"batch_size": 200}, "batch_size must be at most n = 128"),
    ],
)
def test_what_cannot_work_is_refused_before_a_teacher_is_trained(
    tmp_path, wrong, message
):
    config = dataclasses.replace(TINY, **wrong, teacher_epochs=10**9, out=str(tmp_path))
    with pytest.raises(SystemExit, match=message):
        cifar100.main(config)
