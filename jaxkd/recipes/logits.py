"""Recipes that compare logits only, or need no teacher."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from jaxkd import distill, losses, terms
from jaxkd.distill import Term
from jaxkd.models.net import Net
from jaxkd.recipes import _taps as taps
from jaxkd.recipes._record import (
    CE,
    CIFAR,
    Budget,
    Recipe,
    Trained,
    cosine_after,
    layer,
    needed,
    one_stage,
)
from jaxkd.types import Batch

MLKD = CIFAR._replace(learning_rate=0.025)
TEMPERATURES = (2.0, 3.0, 4.0, 5.0, 6.0)  # of MLKD


def labels(
    student: Net, teacher: Trained | None, batch: Batch, *, budget: Budget = CIFAR
) -> Recipe:
    """The student alone, on its labels.

    Cross-entropy of weight 1, without a teacher.

    Source: HobbitLong/RepDistiller helper/loops.py:31.
    """
    return one_stage(student, None, {"ce": (1.0, CE)}, budget)


def label_smoothing(
    student: Net,
    teacher: Trained | None,
    batch: Batch,
    *,
    budget: Budget = CIFAR,
    epsilon: float = 0.1,
) -> Recipe:
    """The student alone, on labels that leave a tenth to the other classes.

    Source: Szegedy et al. 2016, arXiv:1512.00567, section 7 (epsilon).
    """
    term = distill.on_labels(losses.label_smoothing, epsilon=epsilon)
    return one_stage(student, None, {"label_smoothing": (1.0, term)}, budget)


def teacher_free(
    student: Net,
    teacher: Trained | None,
    batch: Batch,
    *,
    budget: Budget = CIFAR,
    weight: float | None = None,
    confidence: float = 0.99,
    temperature: float = 20.0,
) -> Recipe:
    """Tf-KD: a virtual teacher that is nearly always right, beside the labels.

    The weight w of the virtual teacher leaves 1 - w to the cross-entropy. There is no
    published weight: the authors' program softens the probabilities of the virtual
    teacher a second time and multiplies the term by up to 100, while the library has
    the paper's loss.

    Source: yuanli2333/Teacher-free-Knowledge-Distillation my_loss_function.py:39
    (confidence), experiments/base_experiments/base_resnet18/params.json:6
    (temperature).
    """
    reason = "the authors' program computes another loss than their paper"
    w = needed("teacher_free", weight, reason)
    term = distill.on_labels(
        losses.teacher_free, confidence=confidence, temperature=temperature
    )
    spec = {"ce": (1 - w, CE), "teacher_free": (w, term)}
    return one_stage(student, None, spec, budget)


def kd(
    student: Net,
    teacher: Trained,
    batch: Batch,
    *,
    budget: Budget = CIFAR,
    temperature: float = 4.0,
) -> Recipe:
    """Soft labels: .1 cross-entropy, .9 KL divergence at temperature 4.

    Source: HobbitLong/RepDistiller scripts/run_cifar_distill.sh:5 (weights),
    train_student.py:78 (temperature).
    """
    term = distill.on_logits(losses.kd, temperature=temperature)
    return one_stage(student, teacher, {"ce": (0.1, CE), "kd": (0.9, term)}, budget)


def lskd(
    student: Net,
    teacher: Trained,
    batch: Batch,
    *,
    budget: Budget = CIFAR,
    temperature: float = 2.0,
) -> Recipe:
    """Soft labels of standardised logits: .1 cross-entropy, 9 KL at temperature 2.

    Source: sunshangquan/logit-standardization-KD README.md:57 (temperature, weight),
    mdistiller/engine/cfg.py:64 (cross-entropy).
    """
    term = distill.on_logits(losses.lskd, temperature=temperature)
    return one_stage(student, teacher, {"ce": (0.1, CE), "lskd": (9.0, term)}, budget)


def ctkd(
    student: Net, teacher: Trained, batch: Batch, *, budget: Budget = CIFAR
) -> Recipe:
    """Soft labels at a temperature that learns to make them harder.

    .1 cross-entropy and .9 KL; the temperature starts at 15.6 of 1 to 21, and its
    gradient is reversed fully after 10 of 240 epochs.

    Source: zhengli97/CTKD scripts/run_cifar_distill.sh:19-22 (weights, 10 epochs),
    train_student.py:89-90 (1 and 20), models/temp_global.py:13 (start).
    """
    term = terms.ctkd(ramp=budget.scale_steps(10), start=1.0, spread=20.0)
    return one_stage(student, teacher, {"ce": (0.1, CE), "ctkd": (0.9, term)}, budget)


def dkd(
    student: Net,
    teacher: Trained,
    batch: Batch,
    *,
    budget: Budget = CIFAR,
    alpha: float = 1.0,
    beta: float = 8.0,
    temperature: float = 4.0,
) -> Recipe:
    """Decoupled soft labels: alpha 1, beta 8 at temperature 4, after a warm-up.

    Both the cross-entropy and the decoupled divergence have weight 1, the latter from 0
    over 20 of 240 epochs (step by step here, epoch by epoch there). The authors' beta
    is 8 for resnet32x4 to resnet8x4, 6 for vgg13 to vgg8 and 2 for resnet56 to
    resnet20.

    Source: megvii-research/mdistiller mdistiller/engine/cfg.py:163-167,
    configs/cifar100/dkd/vgg13_vgg8.yaml:19, configs/cifar100/dkd/res56_res20.yaml:19.
    """
    term = distill.on_logits_and_labels(
        losses.dkd, alpha=alpha, beta=beta, temperature=temperature
    )
    spec = {"ce": (1.0, CE), "dkd": (budget.warm_up(1.0), term)}
    return one_stage(student, teacher, spec, budget)


def rld(
    student: Net,
    teacher: Trained,
    batch: Batch,
    *,
    budget: Budget = CIFAR,
    alpha: float = 1.0,
    beta: float = 8.0,
    temperature: float = 4.0,
) -> Recipe:
    """Refined logits: the label's confidence, and the classes the teacher ranks below.

    Cross-entropy of weight 1, and a term of alpha 1, beta 8 at temperature 4 whose
    weight grows to 1 over 20 of 240 epochs.

    Source: zju-SWJ/RLD mdistiller/engine/cfg.py:180-185.
    """
    term = distill.on_logits_and_labels(
        losses.rld, alpha=alpha, beta=beta, temperature=temperature
    )
    spec = {"ce": (1.0, CE), "rld": (budget.warm_up(1.0), term)}
    return one_stage(student, teacher, spec, budget)


def nkd(
    student: Net,
    teacher: Trained,
    batch: Batch,
    *,
    budget: Budget = CIFAR,
    gamma: float = 3.5,
    temperature: float = 3.0,
) -> Recipe:
    """Normalised soft labels of the other classes, beside a cross-entropy.

    Both have weight 1. The defaults are the authors' for CIFAR-100; on ImageNet they
    take gamma 1.5 at temperature 1.

    Source: yzd-v/cls_KD configs/distillers/cifar100/res34_distill_res18_cifar.py:67-68,
    configs/distillers/imagenet/res34_distill_res18_img.py:67-68,
    mmcls/models/classifiers/distiller.py:122-126 (cross-entropy).
    """
    term = distill.on_logits_and_labels(
        losses.nkd, gamma=gamma, temperature=temperature
    )
    return one_stage(student, teacher, {"ce": (1.0, CE), "nkd": (1.0, term)}, budget)


def dist(
    student: Net,
    teacher: Trained,
    batch: Batch,
    *,
    budget: Budget = CIFAR,
    temperature: float = 4.0,
) -> Recipe:
    """Correlations of the predictions, within examples and within classes.

    Cross-entropy of weight 1 and both correlations of weight 2, at temperature 4 on
    CIFAR-100 and 1 on ImageNet.

    Source: hunto/image_classification_sota configs/strategies/distill/dist_cifar.yaml:
    34-36, lib/models/losses/kd_loss.py:68-71 (beta, gamma, temperature).
    """
    term = distill.on_logits(losses.dist, temperature=temperature)
    return one_stage(student, teacher, {"ce": (1.0, CE), "dist": (2.0, term)}, budget)


def _over_temperatures(loss: Callable[..., Any]) -> Term:
    """Lift the sum of a loss at MLKD's temperatures."""

    def summed(student_logits: Any, teacher_logits: Any) -> Any:
        each = [
            loss(student_logits, teacher_logits, temperature=t) for t in TEMPERATURES
        ]
        return sum(each[1:], each[0])

    return distill.on_logits(summed)


def mlkd(
    student: Net,
    teacher: Trained,
    batch: Batch,
    *,
    budget: Budget = MLKD,
) -> Recipe:
    """Logits compared by example, by batch and by class, at five temperatures.

    The authors train on two views of each image at once, weakly and strongly augmented,
    and mask half of the examples and classes of the weak one. These are the weights of
    their program where the two views are the same: cross-entropy .2, examples 1.35,
    batch and classes .45, at a learning rate of .025.

    Source: Jin-Ying/Multi-Level-Logit-Distillation mdistiller/distillers/
    KD_ours.py:114-254, mdistiller/engine/cfg.py:62-64 (.1 and .9),
    configs/cifar100/ours/res32x4_res8x4.yaml:12 (learning rate).
    """
    instance = distill.on_logits(losses.mlkd_instance, temperatures=TEMPERATURES)
    spec = {
        "ce": (0.2, CE),
        "instance": (1.35, instance),
        "batch": (0.45, _over_temperatures(losses.mlkd_batch)),
        "class": (0.45, _over_temperatures(losses.mlkd_class)),
    }
    return one_stage(student, teacher, spec, budget)


def ofa(
    student: Net,
    teacher: Trained,
    batch: Batch,
    *,
    budget: Budget = CIFAR,
    weight: float = 1.0,
    gamma: float = 1.0,
) -> Recipe:
    """Soft labels raised at the label, for networks of unlike architectures.

    Cross-entropy and the raised soft labels have weight 1, at temperature 1; gamma is 1
    on CIFAR-100 and 1.5 on ImageNet, from a transformer to a residual network. The
    authors give the student further heads at four stages, each with this loss at weight
    1; this recipe has that of the logits alone. They train 300 epochs along a cosine.

    Source: Hao840/OFAKD train.py:82-92 (weights, temperature), README.md:85, 63
    (gamma), distillers/ofa.py:117-126 (which losses).
    """
    term = distill.on_logits_and_labels(losses.ofa, gamma=gamma)
    spec = {"ce": (1.0, CE), "ofa": (weight, term)}
    return one_stage(student, teacher, spec, budget)


def wkd_logits(
    student: Net,
    teacher: Trained,
    batch: Batch,
    *,
    budget: Budget = CIFAR,
    weight: float = 600.0,
    temperature: float = 8.0,
    cost: Array | None = None,
    head: str = "head",
) -> Recipe:
    """WKD-L: the cost of moving probability between classes, beside the labels.

    Cross-entropy of weight 1, the same times the teacher's probability of the label,
    and transport of weight 600 at temperature 8, which from epoch 150 of 240 on falls
    to 0 along a cosine. On ImageNet the authors take 30 and 2, without the fall.

    `cost` is `losses.class_costs` of the teacher's features, as published. Without it,
    costs come from the cosines between the classes' weights in the teacher's classifier
    `head`, which the authors' program has as its other choice.

    Source: JiamingLv/WKD configs/cifar100/wkd_l/res32x4_res8x4.yaml:22-32 (weights,
    temperature, Sinkhorn), configs/imagenet/r34_r18/wkd_l.yaml:26-35,
    mdistiller/distillers/WKD.py:54-56 (label), 142-157 (costs), 203-211 (cosine).
    """
    if cost is None:
        cost = _costs_of(layer(teacher, head)["kernel"])
    transport = functools.partial(
        losses.wkd_logits, gamma=weight, temperature=temperature, epsilon=0.05
    )

    def of_label(student_logits: Any, teacher_logits: Any, labels: Any) -> Any:
        certainty = jnp.exp(-losses.cross_entropy(teacher_logits, labels))
        return certainty * losses.cross_entropy(student_logits, labels)

    def moved(student_logits: Any, teacher_logits: Any, labels: Any) -> Any:
        logits = (student_logits, teacher_logits)
        return transport(*logits, labels, cost) - of_label(*logits, labels)

    # The 600 is within the loss: only then is little lost by the subtraction.
    falling = cosine_after(1.0, budget.scale_steps(150), budget.scale_steps(240))
    spec = {
        "ce": (1.0, CE),
        "label": (1.0, distill.on_logits_and_labels(of_label)),
        "wkd": (falling, distill.on_logits_and_labels(moved)),
    }
    return one_stage(student, teacher, spec, budget)


def _costs_of(kernel: Array) -> Array:
    """Return 1 - exp(-(1 - cosine)) between the columns of a classifier's kernel."""

    def make(kernel: Array) -> Array:
        weights = kernel / jnp.linalg.norm(kernel, axis=0, keepdims=True)
        return -jnp.expm1(weights.T @ weights - 1)

    if isinstance(kernel, jax.ShapeDtypeStruct):  # the shapes of a trained teacher
        return jnp.zeros(jax.eval_shape(make, kernel).shape)
    return jax.jit(make)(kernel)


def sdd(
    student: Net,
    teacher: Trained,
    batch: Batch,
    *,
    budget: Budget = CIFAR,
    temperature: float = 4.0,
    scales: tuple[int, ...] = (1, 2),
    head: str = "head",
) -> Recipe:
    """SD-KD: soft labels on regions of the image, .1 cross-entropy, .9 KL.

    Temperature 4; regions where exactly one of the teacher's predictions is right have
    weight 2. Halves of each side for resnet32x4 to resnet8x4, and quarters as well for
    most other pairs. The networks must end in the mean of their last map and a Dense
    layer `head`.

    Source: shicaiwei123/SDD-CVPR2024 mdistiller/engine/cfg.py:61-64 (temperature,
    weights), mdistiller/distillers/KD.py:85-92 (regions), teacher_resnet32x4.sh:24, 27
    (scales).
    """
    (here, there), *_ = taps.last(taps.match_stages(student, teacher, batch)).items()
    layer(teacher, head)
    net, variables = teacher
    whole = (terms.logit_maps(net, there, head=head), variables)
    loss = functools.partial(losses.kd, temperature=temperature)
    spec = {"ce": (0.1, CE), "sdd": (0.9, terms.sdd(loss=loss, scales=scales))}
    return one_stage(terms.logit_maps(student, here, head=head), whole, spec, budget)


def ttm(
    student: Net,
    teacher: Trained,
    batch: Batch,
    *,
    budget: Budget = CIFAR,
    weight: float = 45.0,
    gamma: float = 0.1,
) -> Recipe:
    """Soft labels whose temperature acts on the teacher alone.

    Cross-entropy of weight 1 and a term of weight 45 at exponent .1, for vgg13 to vgg8;
    the authors choose both for each pair of networks.

    Source: zkxufo/TTM README.md:21-22.
    """
    term = distill.on_logits(losses.ttm, gamma=gamma)
    return one_stage(student, teacher, {"ce": (1.0, CE), "ttm": (weight, term)}, budget)


def wttm(
    student: Net,
    teacher: Trained,
    batch: Batch,
    *,
    budget: Budget = CIFAR,
    weight: float = 4.0,
    gamma: float = 0.2,
) -> Recipe:
    """TTM in which smoother soft labels weigh more.

    Cross-entropy of weight 1 and a term of weight 4 at exponent .2, which the authors
    give for vgg13 to vgg8 beside CRD; they choose both for each pair of networks.

    Source: zkxufo/TTM README.md:40-41.
    """
    term = distill.on_logits(losses.wttm, gamma=gamma)
    spec = {"ce": (1.0, CE), "wttm": (weight, term)}
    return one_stage(student, teacher, spec, budget)


def wsld(
    student: Net,
    teacher: Trained,
    batch: Batch,
    *,
    budget: Budget = CIFAR,
    weight: float = 2.25,
    temperature: float = 4.0,
) -> Recipe:
    """Soft labels that count more where the student is worse than the teacher.

    Cross-entropy of weight 1 and a term of weight 2.25 at temperature 4 on CIFAR-100;
    on ImageNet the authors take 2.5 and 2.

    Source: yzd-v/cls_KD configs/distillers/cifar100/res34_distill_res18_cifar.py:49-50;
    bellymonster/Weighted-Soft-Label-Distillation knowledge_distiller.py:40-41, 83.
    """
    term = distill.on_logits_and_labels(losses.wsld, temperature=temperature)
    spec = {"ce": (1.0, CE), "wsld": (weight, term)}
    return one_stage(student, teacher, spec, budget)
