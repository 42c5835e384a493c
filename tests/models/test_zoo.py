"""Every network of the zoo costs what the literature says and has its taps."""

import functools

import jax
import jax.numpy as jnp
import pytest

from jaxkd import cost
from jaxkd.models.zoo import ZOO
from tests.models.zoo_sheets import IMAGENET, SHEETS

KEY = jax.random.key(0)
# Of the same layers as another one.
ALIKE = {
    "vgg11_bn", "vgg13_bn", "vgg19_bn",
    "wide_resnet50_2", "regnet_x_400mf", "mobilenetv3_small_100",
    "mobilenetv3_large_100", "vit_small_patch16_224", "vit_small_patch14_dinov2",
    *(f"tf_efficientnet_lite{i}" for i in range(5)),
}  # fmt: skip
every_network = pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=[pytest.mark.slow] * (n in ALIKE)) for n in ZOO],
)


def classes_of(name):
    return 1000 if name in IMAGENET else 100


@functools.cache
def traced(name):
    """(parameters, MACs, taps' shapes, names of layers), from one trace."""
    side = 224 if name in IMAGENET else 32
    net = ZOO[name](classes=classes_of(name))
    x = jax.ShapeDtypeStruct((1, side, side, 3), jnp.float32)
    params, state = jax.eval_shape(net.init, KEY, x)
    taps = {}

    def logits(params, state, x):
        out, _ = net.apply(params, state, x, train=False)
        taps.update({k: v.shape[1:] for k, v in out.taps.items()})
        return out.logits

    macs = cost.macs(logits, params, state, x)
    return cost.parameters(params), macs, taps, params


def test_the_sheets_are_of_the_whole_zoo():
    assert set(SHEETS) == set(ZOO)


@every_network
def test_parameters_and_macs_are_those_of_the_layers_on_paper(name):
    parameters, macs, *_ = traced(name)
    sheet, classes = SHEETS[name], classes_of(name)
    assert (parameters, macs) == (sheet.parameters(classes), sheet.macs(classes))


# https://docs.pytorch.org/vision/stable/models.html: num_params and GFLOPS (of
# multiply-accumulates), at 224x224 with 1000 classes.
TORCHVISION = {
    "resnet18": (11_689_512, 1.814),
    "resnet34": (21_797_672, 3.664),
    "resnet50": (25_557_032, 4.089),
    "mobilenet_v2_imagenet": (3_504_872, 0.301),
    "mobilenet_v3_small": (2_542_856, 0.057),
    "mobilenet_v3_large": (5_483_032, 0.217),
    "efficientnet_b0": (5_288_548, 0.386),
    "convnext_tiny": (28_589_128, 4.456),
    "densenet121": (7_978_856, 2.834),
    "regnet_y_400mf": (4_344_144, 0.402),
    "regnet_x_400mf": (5_495_976, 0.414),
    "resnext50_32x4d": (25_028_904, 4.230),
    "shufflenet_v2_imagenet": (2_278_604, 0.145),
    "vit_base": (86_567_656, 17.564),
}


@pytest.mark.parametrize("name", TORCHVISION)
def test_as_large_as_torchvisions(name):
    parameters, macs, *_ = traced(name)
    assert (parameters, round(macs / 1e9, 3)) == TORCHVISION[name]


# The classes, millions of parameters and of multiply-accumulates (None: not compared)
# as printed in the papers. Option B's shortcuts, which He et al.'s CIFAR nets have not,
# are 16 * 32 + 32 * 64 weights and 2 * (32 + 64) numbers of BatchNorm.
PAPERS = {
    "resnet20": (10, "0.27", None),  # He et al. (2016), table 6
    "resnet32": (10, "0.46", None),
    "resnet44": (10, "0.66", None),
    "resnet56": (10, "0.85", None),
    "resnet110": (10, "1.7", None),
    "wrn_40_1": (10, "0.6", None),  # Zagoruyko & Komodakis (2016), table 4
    "wrn_40_2": (10, "2.2", None),
    "wrn_28_10": (10, "36.5", None),
    "mobilenet_v1": (1000, "4.2", "569"),  # Howard et al. (2017), table 6
    "mobilenet_v1_050": (1000, "1.3", "149"),
    "shufflenet_v2_imagenet": (1000, "2.3", None),  # Ma et al. (2018), table 8
    "deit_small": (1000, "22", None),  # Touvron et al. (2021), table 1
}


@pytest.mark.parametrize("name", PAPERS)
def test_as_large_as_in_its_paper(name):
    parameters, macs, *_ = traced(name)
    classes, millions, million_macs = PAPERS[name]
    if classes != classes_of(name):
        parameters -= (classes_of(name) - classes) * (SHEETS[name].features + 1)
    if name.startswith("resnet"):
        parameters -= 16 * 32 + 32 * 64 + 2 * (32 + 64)
    digits = len(millions.partition(".")[2])
    assert f"{parameters / 1e6:.{digits}f}" == millions
    assert million_macs is None or f"{macs / 1e6:.0f}" == million_macs


@every_network
def test_taps_have_the_promised_names_and_shapes(name):
    *_, taps, _ = traced(name)
    wanted = dict(SHEETS[name].taps)
    if "distilled_pooled" in wanted:
        wanted |= dict.fromkeys(
            ("class_logits", "distilled_logits"), (classes_of(name),)
        )
    assert taps == wanted


OTHER_LAYERS = {
    "stem", "last", "head", "distilled", "class", "register", "positions",
}  # fmt: skip


@every_network
def test_layers_are_named_by_rule(name):
    *_, taps, params = traced(name)
    assert params["head"]["kernel"].shape == (*taps["pooled"], classes_of(name))
    assert any(layer.startswith("stem_conv") for layer in params)
    stages = {tap for tap in taps if tap.startswith("stage") and "_" not in tap}
    for layer in params:
        first = layer.split("_")[0]
        assert first in stages | OTHER_LAYERS
    assert {layer.split("_")[0] for layer in params} >= stages
