"""Run directories made by hand: real images, a really trained softmax regression."""

import json

import numpy as np

from jaxkd import data

CONFIG = """
name = {name}
seed = {seed}
out = "runs"
[data]
name = "digits"
[[stages]]
kind = "train"
name = "teach"
model = "teacher"
epochs = {epochs}
[[stages]]
kind = "distill"
name = "distill"
model = "student"
epochs = {epochs}
temperature = {temperature}
[[stages]]
kind = "prune"
name = "prune"
model = "student"
[[stages]]
kind = "search"
name = "search"
model = "student"
[[stages]]
kind = "export"
name = "export"
model = "student"
"""


def softmax(z):
    e = np.exp(z - z.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def _views(pool):
    """Training and test pixels, averaged over squares of `pool` pixels."""
    for split in ("train", "test"):
        images = data.load("digits", split).images / 255.0
        n, h, w, _ = images.shape
        x = images.reshape(n, h // pool, pool, w // pool, pool).mean((2, 4))
        yield np.concatenate([x.reshape(n, -1), np.ones((n, 1))], 1)


def train(pool, seed, epochs, taught=None, temperature=1.0):
    """Softmax regression by gradient descent: (logits on test and train, losses)."""
    labels = data.load("digits", "train").labels
    x, test = _views(pool)
    hard = np.eye(10)[labels]
    soft = hard if taught is None else softmax(taught / temperature)
    w = 0.01 * np.random.default_rng(seed).normal(size=(x.shape[1], 10))
    rows = []
    for _ in range(epochs):
        p = softmax(x @ w)
        ce = -np.mean(np.log(p[np.arange(len(p)), labels]))
        kd = -np.mean((soft * np.log(p)).sum(1))
        rows.append((float(ce), float(kd)))
        w += 4.0 * x.T @ (soft - p) / len(x)
    return (test @ w).astype(np.float32), x @ w, rows


def scores(logits, teacher):
    """The measurements of a row of results.json, by their definitions."""
    labels = data.load("digits", "test").labels
    p = softmax(logits.astype(np.float64))
    top, right = p.max(1), logits.argmax(1) == labels
    bins = np.minimum(np.ceil(top * 15).astype(int) - 1, 14)
    ece = sum(abs((right - top.clip())[bins == b].sum()) for b in range(15)) / len(p)
    return {
        "accuracy": float(right.mean()),
        "nll": float(-np.log(p[np.arange(len(p)), labels]).mean()),
        "ece": float(ece),
        "agreement": float((logits.argmax(1) == teacher.argmax(1)).mean()),
    }


def make(path, *, seed=0, name="digits", temperature=2.0, epochs=30, finished=True):
    """Writes a run with a teacher, a student, a pruning, a search and files."""
    teacher, taught, rows_t = train(1, seed, epochs)
    student, _, rows_s = train(2, seed, epochs, taught, temperature)
    test = data.load("digits", "test")
    logits = {"00-teach": teacher, "01-distill": student, "02-prune": 0.5 * student}
    for stage, array in logits.items():
        (path / "stages" / stage).mkdir(parents=True)
        np.save(path / "stages" / stage / "logits.npy", array)
    (path / "test").mkdir()
    np.save(path / "test" / "labels.npy", test.labels)
    np.save(path / "test" / "images.npy", test.images[:400])
    config = CONFIG.format(
        name=json.dumps(name), seed=seed, epochs=epochs, temperature=temperature
    )
    (path / "config.toml").write_text(config)
    _facts(path, name, seed, test)
    lines = [*_curves("teach", rows_t), *_curves("distill", rows_s), *_others()]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (path / "metrics.jsonl").write_text(text)
    _results(path, name, seed, logits, finished)
    return path


def _facts(path, name, seed, test):
    facts = {
        "format": 1,
        "name": name,
        "seed": seed,
        "started": "2026-01-31T12:00:00+00:00",
        "jaxkd": "0.1.0",
        "versions": {"jax": "0.10.2", "device": "1 x cpu (cpu)"},
        "device": "1 x cpu (cpu)",
        "git": {"commit": "0123456789abcdef", "changed": True},
        "command": ["jaxkd", "run", name],
        "data": {"name": "digits", "classes": list(test.classes), "test": 500},
    }
    (path / "run.json").write_text(json.dumps(facts))


def _curves(stage, rows):
    for epoch, (ce, kd) in enumerate(rows, start=1):
        row = {"stage": stage, "kind": stage, "epoch": epoch, "seconds": 0.5}
        yield row | {"loss": 0.1 * ce + 0.9 * kd, "loss/ce": ce, "loss/kd": kd}


def _others():
    yield {"stage": "prune", "kind": "prune", "dropped": {"conv1": [0, 3], "fc": []}}
    for trial, (width, reward) in enumerate([(4, 0.5), (16, 0.9), (8, 0.8)], start=1):
        row = {"stage": "search", "kind": "search", "trial": trial, "tokens": [trial]}
        row |= {"values": {"width": width}, "reward": reward, "macs": 100 * width}
        yield row | {"parameters": 10 * width, "seconds": 1.0}


def _results(path, name, seed, logits, finished):
    rows = []
    models = {"00-teach": "teacher", "01-distill": "student", "02-prune": "student"}
    for index, (stage, array) in enumerate(logits.items()):
        pixels = 65 if models[stage] == "teacher" else 17
        row = {
            "index": index,
            "stage": stage[3:],
            "kind": "train" if stage[3:] == "teach" else stage[3:],
            "model": models[stage],
            "directory": f"stages/{stage}",
            **scores(array, logits["00-teach"]),
            "parameters": 10 * pixels,
            "macs": 10 * (pixels - 1),
            "bytes": 40 * pixels,
            "seconds": 6.0,
            "images/s": None if stage == "02-prune" else 1000.0 + seed,
            "files": [],
        }
        rows.append(row)
    folder = path / "stages" / "02-prune"
    (folder / "groups.txt").write_text("2 groups\nconv1: 8 units\n  a\nfc: 4 units\n")
    points = {"conv1": {"6": 0.75, "4": 0.5}, "fc": {"1": 0.625}}
    curves = {"whole": 0.875, "points": points, "settings": {"metric": "accuracy"}}
    (folder / "sensitivities.json").write_text(json.dumps(curves))
    file = {"format": "tflite", "bytes": 1234 + seed, "milliseconds": 0.025}
    file |= {"path": "stages/04-export/files/student.tflite", "difference": 0.046}
    file |= {"accuracy": rows[-1]["accuracy"] - 0.002, "nll": rows[-1]["nll"]}
    last = {"index": 4, "stage": "export", "kind": "export", "files": [file]}
    rows.append(rows[-1] | last)
    found = {"format": 1, "name": name, "seed": seed, "teacher": "teacher"}
    found |= {"finished": finished, "rows": rows}
    (path / "results.json").write_text(json.dumps(found))
