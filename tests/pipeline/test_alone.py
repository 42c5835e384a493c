"""Every kind of stage as the only one of a run: it is the first and the last then."""

import json

import jax
import pytest

from jaxkd import checkpoint, models
from jaxkd.__main__ import main
from jaxkd.pipeline import reading, toml

SPACE = 'kind = "space"\nspace = "resnet"\nwidths = [4, 4, 4, 4]'
STAGES = {
    "train": "epochs = 1\nbatch_size = 50",
    "distill": "epochs = 1\nbatch_size = 50",
    "finetune": "epochs = 1\nbatch_size = 50",
    "transfer": "",
    "prune": "round_to = 1",
    "quantize": "epochs = 0\ncalibration = 50",
    "search": "epochs = 1\nbatch_size = 50\ncandidates = 1\nmost = 100_000",
    "evaluate": "",
    "export": "latency = false",
}
FRESH = ("train", "distill", "transfer")  # whose model needs no weights
PARAMETERS = [
    kind
    if kind in ("search", "transfer", "export")
    else pytest.param(kind, marks=pytest.mark.slow)
    for kind in STAGES
]


def text(kind, weights):
    mlp = 'kind = "mlp"\nwidths = [24]'
    trained = f'{mlp}\nweights = "{weights}"'
    student = SPACE if kind == "search" else mlp if kind in FRESH else trained
    models = f"[models.student]\n{student}\n"
    if kind in ("distill", "transfer"):
        models += f"[models.teacher]\n{trained}\n"
    data = "[data]\ntrain_images = 100\n"
    return f'{data}{models}[[stages]]\nkind = "{kind}"\n{STAGES[kind]}\n'


def test_these_are_all_kinds():
    assert {stage.kind for stage in toml.defaults().stages} == {*STAGES}


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Those of the trained model: fresh ones will do."""
    folder = tmp_path_factory.mktemp("weights") / "mlp"
    net = models.mlp((24,), classes=10)
    params, state = net.init(jax.random.key(0), jax.numpy.zeros((1, 8, 8, 1)))
    checkpoint.save(folder, {"params": params, "state": state})
    return folder


@pytest.mark.parametrize("kind", PARAMETERS)
def test_a_run_of_one_stage(kind, weights, tmp_path, capsys):
    path, run = tmp_path / "c.toml", tmp_path / "run"
    path.write_text(text(kind, weights))
    assert main(["run", str(path), "--check"]) == 0, capsys.readouterr().err
    assert main(["run", str(path), "--to", str(run)]) == 0, capsys.readouterr().err
    results = json.loads((run / "results.json").read_text())
    stages = [row["stage"] for row in results["rows"] if row["index"] == 0]
    assert results["finished"] and stages == ([] if kind == "search" else [kind])
    assert reading.load(run / "config.toml") == reading.load(path)
    before = (run / "metrics.jsonl").read_text()
    assert main(["resume", str(run)]) == 0 and main(["report", str(run)]) == 0
    assert (run / "metrics.jsonl").read_text() == before
    out, error = capsys.readouterr()
    assert "Traceback" not in error
    if kind == "search":
        assert "no model was measured" in out
        assert main(["export", str(run)]) == 2
        assert "has trained no model" in capsys.readouterr().err
