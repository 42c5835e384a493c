"""Recipes that compare features of one example, in one stage."""

import functools
from collections.abc import Mapping
from typing import Any

import jax
from jaxtyping import Array

from jaxkd import distill, losses, terms
from jaxkd.models.net import Net
from jaxkd.recipes import _taps as taps
from jaxkd.recipes._record import (
    CE,
    CIFAR,
    Budget,
    Recipe,
    Trained,
    beside_labels,
    cosine_after,
    layer,
    needed,
    one_stage,
)
from jaxkd.terms.adapters import Adapter
from jaxkd.types import Batch

OFD = Budget(
    epochs=200, steps_per_epoch=390, learning_rate=0.1, drops=(0.5, 0.75), nesterov=True
)
REVIEWKD = CIFAR._replace(steps_per_epoch=390, learning_rate=0.1, nesterov=True)


def hint(
    student: Net,
    teacher: Trained,
    batch: Batch,
    *,
    budget: Budget = CIFAR,
    weight: float = 100.0,
) -> Recipe:
    """FitNets' hint beside the labels: the second stage's map, through a regressor.

    Cross-entropy of weight 1 and the mean squared difference of weight 100, after a
    convolution with BatchNorm and ReLU.

    Source: HobbitLong/RepDistiller scripts/run_cifar_distill.sh:7 (weight),
    train_student.py:88 (layer), models/util.py:131-154 (regressor).
    """
    pairs = taps.second(taps.match_stages(student, teacher, batch))
    term = terms.hint(pairs)
    return beside_labels(student, teacher, "hint", weight, term, budget)


def at(
    student: Net,
    teacher: Trained,
    batch: Batch,
    *,
    budget: Budget = CIFAR,
    weight: float = 1000.0,
) -> Recipe:
    """Attention maps of all stages, weight 1000, beside the labels.

    Source: HobbitLong/RepDistiller scripts/run_cifar_distill.sh:9 (weight),
    helper/loops.py:134-138 (layers).
    """
    term = terms.at(taps.match_stages(student, teacher, batch))
    return beside_labels(student, teacher, "at", weight, term, budget)


def nst(
    student: Net,
    teacher: Trained,
    batch: Batch,
    *,
    budget: Budget = CIFAR,
    weight: float = 50.0,
) -> Recipe:
    """Neuron selectivity patterns of all stages, weight 50, beside the labels.

    Source: HobbitLong/RepDistiller scripts/run_cifar_distill.sh:27 (weight),
    helper/loops.py:139-143 (layers).
    """
    term = terms.nst(taps.match_stages(student, teacher, batch))
    return beside_labels(student, teacher, "nst", weight, term, budget)


def vid(
    student: Net,
    teacher: Trained,
    batch: Batch,
    *,
    budget: Budget = CIFAR,
    weight: float = 1.0,
) -> Recipe:
    """Variational information of all stages, weight 1, beside the labels.

    Source: HobbitLong/RepDistiller scripts/run_cifar_distill.sh:15 (weight),
    helper/loops.py:166-170 (layers), distiller_zoo/VID.py:16-17 (variance).
    """
    term = terms.vid(taps.match_stages(student, teacher, batch), variance=5.0)
    return beside_labels(student, teacher, "vid", weight, term, budget)


def ofd(
    student: Net,
    teacher: Trained,
    batch: Batch,
    *,
    budget: Budget = OFD,
    weight: float = 1e-3,
    margins: Mapping[str, Array] | None = None,
) -> Recipe:
    """Features before the ReLU behind margins, weight .001, beside the labels.

    The authors' 200 epochs have batches of 128 and a rate of .1. Their margins come
    from the teacher's BatchNorm, `terms.margins`; without `margins` they are measured
    on the batch, which should then have a few hundred examples.

    Source: clovaai/overhaul-distillation CIFAR-100/train_with_distillation.py:21-25,
    91, 136-144, CIFAR-100/distiller.py:67-70 (shares of the layers).
    """
    pairs = taps.match_stages(student, teacher, batch, suffix="_pre")
    if margins is None:
        margins = _measure_margins(teacher, batch, list(pairs.values()))
    term = terms.ofd(pairs, margins=margins)
    return beside_labels(student, teacher, "ofd", weight, term, budget)


def _measure_margins(
    teacher: Trained, batch: Batch, names: list[str]
) -> dict[str, Array]:
    """Return the teacher's mean negative features; shapes if it is given as shapes."""
    net, variables = teacher

    def measure(variables: Any, images: Array) -> dict[str, Array]:
        return terms.measured_margins(
            net.apply(*variables, images, train=False)[0], names
        )

    inputs = (variables, batch["image"])
    if any(isinstance(x, jax.ShapeDtypeStruct) for x in jax.tree.leaves(inputs)):
        return jax.eval_shape(measure, *inputs)
    return jax.jit(measure)(*inputs)


def reviewkd(
    student: Net,
    teacher: Trained,
    batch: Batch,
    *,
    budget: Budget = REVIEWKD,
    weight: float = 5.0,
) -> Recipe:
    """All stages, fused from deep to shallow, after a warm-up, beside the labels.

    The student's stages after the ReLU and its embedding are compared with the
    teacher's stages before the ReLU and its embedding. The weight grows to 5 over 20 of
    240 epochs; the authors take .6 for resnet56 to resnet20, 1 for resnet110 to
    resnet32 and 8 for resnet32x4 to ShuffleNetV2, batches of 128 and a rate of .1.

    Source: dvlab-research/ReviewKD CIFAR-100/script/reviewKD.sh:7-15 (weights),
    CIFAR-100/train.py:21-27, 50, 168-179 (warm-up, rates), 222 (teacher's layers),
    CIFAR-100/model/reviewkd.py:76-78 (student's layers).
    """
    stages = taps.match_stages(student, teacher, batch, teacher_suffix="_pre")
    term = terms.reviewkd({**stages, "pooled": "pooled"})
    warm = budget.warm_up(weight)
    return beside_labels(student, teacher, "reviewkd", warm, term, budget)


def ickd(
    student: Net,
    teacher: Trained,
    batch: Batch,
    *,
    budget: Budget = CIFAR,
    weight: float = 2.5,
) -> Recipe:
    """Correlations between the last map's channels, weight 2.5, beside the labels.

    The student's map passes a 1x1 convolution with BatchNorm.

    Source: ADLab-AutoDrive/ICKD Cifar100/README.md:40 (weight),
    Cifar100/helper/loops.py:151-155 (layer), Cifar100/distiller_zoo/ICKD.py:19-27
    (convolution), 55 (the loss is divided by the batch once).
    """
    (here, there), *_ = taps.last(taps.match_stages(student, teacher, batch)).items()
    adapter = functools.partial(Adapter, norm=True)
    term = distill.on_taps(losses.ickd, here, there, adapter=adapter)
    return beside_labels(student, teacher, "ickd", weight, term, budget)


def wasserstein(
    student: Net,
    teacher: Trained,
    batch: Batch,
    *,
    budget: Budget = CIFAR,
    weight: float = 0.08,
    mean_weight: float = 4.0,
) -> Recipe:
    """WKD-F: mean and deviation of the last map's channels, beside the labels.

    Weight .08, in it 4 for the means and 1 for the deviations, after a 1x1 convolution
    with BatchNorm and ReLU; from epoch 150 of 240 on it falls to 0 along a cosine.

    Source: JiamingLv/WKD configs/cifar100/wkd_f/res32x4_res8x4.yaml:22-30,
    mdistiller/distillers/WKD.py:203-211 (cosine), mdistiller/distillers/
    _common.py:44-71 (convolution).
    """
    (here, there), *_ = taps.last(taps.match_stages(student, teacher, batch)).items()
    term = distill.on_taps(
        losses.wasserstein_features,
        here,
        there,
        adapter=functools.partial(Adapter, norm=True, relu=True),
        mean_weight=mean_weight,
    )
    falling = cosine_after(weight, budget.scale_steps(150), budget.scale_steps(240))
    return beside_labels(student, teacher, "wasserstein", falling, term, budget)


def pearson(
    student: Net,
    teacher: Trained,
    batch: Batch,
    *,
    budget: Budget = CIFAR,
    weight: float | None = None,
) -> Recipe:
    """PKD: standardised channels of the last map, beside the labels.

    There is no published weight: the authors compare the feature pyramids of detectors.

    Source: Cao et al. 2022, arXiv:2207.02039.
    """
    w = needed("pearson", weight, "the paper is about detectors")
    term = terms.pearson(taps.last(taps.match_stages(student, teacher, batch)))
    return beside_labels(student, teacher, "pearson", w, term, budget)


def cwd(
    student: Net,
    teacher: Trained,
    batch: Batch,
    *,
    budget: Budget = CIFAR,
    weight: float | None = None,
) -> Recipe:
    """Where each channel of the last map looks, beside the labels.

    There is no published weight: the paper is about segmentation.

    Source: Shu et al. 2021, arXiv:2011.13256.
    """
    w = needed("cwd", weight, "the paper is about segmentation")
    term = terms.cwd(taps.last(taps.match_stages(student, teacher, batch)))
    return beside_labels(student, teacher, "cwd", w, term, budget)


def mgd(
    student: Net,
    teacher: Trained,
    batch: Batch,
    *,
    budget: Budget = CIFAR,
    weight: float = 7e-5,
    masked: float = 0.15,
) -> Recipe:
    """The teacher's last map, regenerated from a part of the student's channels.

    Cross-entropy of weight 1 and the sum of squares of weight 7e-5, with .15 of the
    channels masked: the authors' figures for ImageNet.

    Source: yzd-v/MGD cls/configs/distillers/res34_distill_res18_img.py:15-16,
    cls/mmcls/distillation/distillers/classification_distiller.py:88 (layer).
    """
    pair = taps.last(taps.match_stages(student, teacher, batch))
    term = terms.mgd(pair, masked=masked)
    return beside_labels(student, teacher, "mgd", weight, term, budget)


def srd(
    student: Net,
    teacher: Trained,
    batch: Batch,
    *,
    budget: Budget = CIFAR,
    weight: float = 2.0,
) -> Recipe:
    """Standardised embeddings behind a projector, beside soft and hard labels.

    Cross-entropy of weight 1, KL divergence at temperature 1 of weight 1 and the
    logarithm of the fourth powers of weight 2: the authors' figures for ImageNet.

    Source: roymiles/Simple-Recipe-Distillation imagenet/torchdistill/losses/single.py:
    168-182 (weights), imagenet/configs/ilsvrc2012/ours/res3418.yaml:102-107, 131.
    """
    soft = distill.on_logits(losses.kd, temperature=1.0)
    spec = {"ce": (1.0, CE), "kd": (1.0, soft), "srd": (weight, terms.srd("pooled"))}
    return one_stage(student, teacher, spec, budget)


def vkd(
    student: Net,
    teacher: Trained,
    batch: Batch,
    *,
    budget: Budget = CIFAR,
    weight: float = 1.0,
) -> Recipe:
    """Embeddings behind an orthogonal projection, beside soft and hard labels.

    All three have weight 1, KL divergence at temperature 1: the authors' figures for
    ImageNet, where a head of its own gives a transformer's logits for the soft labels.

    Source: roymiles/VkD main_distributed.py:55-58 (weights), engine.py:49
    (temperature), 93-108 (losses).
    """
    soft = distill.on_logits(losses.kd, temperature=1.0)
    spec = {"ce": (1.0, CE), "kd": (1.0, soft), "vkd": (weight, terms.vkd("pooled"))}
    return one_stage(student, teacher, spec, budget)


def srrl(
    student: Net,
    teacher: Trained,
    batch: Batch,
    *,
    budget: Budget = CIFAR,
    weight: float = 1.0,
    head: str = "head",
) -> Recipe:
    """Embeddings, and what the teacher's classifier makes of them, beside the labels.

    `head` names the teacher's classifier among its parameters.

    Source: jingyang2017/KD_SRRL train_imagenet_distillation.py:23, 115-120 (weights).
    """
    term = terms.srrl("pooled", head=layer(teacher, head))
    return beside_labels(student, teacher, "srrl", weight, term, budget)


def simkd(
    student: Net,
    teacher: Trained,
    batch: Batch,
    *,
    budget: Budget = CIFAR,
    weight: float = 1.0,
    head: str = "head",
) -> Recipe:
    """The student's last map, projected, into the teacher's classifier; no labels.

    The network that is trained is the student, a projector and the teacher's frozen
    classifier, which is what is deployed.

    Source: DefangChen/SimKD scripts/run_distill.sh:22 (weights), train_student.py:67
    (factor 2), helper/loops.py:150-153 (layer).
    """
    net, variables = teacher
    layer(teacher, head)
    combined, term = terms.simkd(
        student,
        net,
        variables,
        batch["image"],
        pair=taps.last(taps.match_stages(student, teacher, batch)),
        head=head,
        factor=2,
    )
    return one_stage(combined, teacher, {"simkd": (weight, term)}, budget)
