"""Every recipe fits a small pair, has the authors' figures and takes a step."""

import doctest
import functools
import importlib.util
import inspect
import math

import jax
import numpy as np
import pytest

from jaxkd import _tree, data, distill, losses, recipes, transfer
from jaxkd.data import augment
from jaxkd.models.net import Net
from jaxkd.recipes import Budget, _taps
from jaxkd.schemes import mutual, self_teacher, staged
from jaxkd.types import Outputs
from tests.recipes.nets import CLASSES, dataset, example, shapes, student, teacher

STEPS = 781 * 240
# What has no published weight, and what has to be said besides.
OPTIONS = {
    "teacher_free": {"weight": 0.5},
    "pearson": {"weight": 1.0},
    "cwd": {"weight": 1.0},
    "cc": {"weight": 1.0},
    "assistants": {"between": {"middle": teacher}},
}
KD = {"ce": 0.1, "kd": 0.9}
# name: for each stage the terms' weights at its last step, and the lines they are in.
WEIGHTS = {
    # RepDistiller scripts/run_cifar_distill.sh, line in brackets, CE 1 unless stated.
    "labels": [{"ce": 1}],
    "kd": [KD],  # [5]
    "hint": [{"ce": 1, "hint": 100}],  # [7]
    "at": [{"ce": 1, "at": 1000}],  # [9]
    "sp": [{"ce": 1, "sp": 3000}],  # [11]
    "vid": [{"ce": 1, "vid": 1}],  # [15]
    "rkd": [{"ce": 1, "rkd": 1}],  # [17]
    "pkt": [{"ce": 1, "pkt": 30000}],  # [19]
    "nst": [{"ce": 1, "nst": 50}],  # [27]
    "crd": [{"ce": 1, "crd": 0.8}],  # [29]
    # RepDistiller helper/pretrain.py:72-74: nothing multiplies the loss.
    "fsp": [{"fsp": 1}, {"ce": 1}],
    # RepDistiller distiller_zoo/AB.py:13, 22-23: 3/1000 * 2**(i-n+1) * sum over units;
    # the teacher's stages have 8*8*4, 4*4*8 and 2*2*12.
    "ab": [
        {
            "ab_stage1_pre": 0.003 / 4 * 256,
            "ab_stage2_pre": 0.003 / 2 * 128,
            "ab_stage3_pre": 0.003 * 48,
        },
        {"ce": 1},
    ],
    # Factor-Transfer-pytorch train_student.py:35.
    "factor_transfer": [{"paraphraser": 1}, {"ce": 1, "factors": 500}],
    # FitNets yaml/cifar100_fitnet19_all.yaml:286-304: 4 to 1, without 3**2.
    "fitnets": [{"hint": 1}, {"ce": 1, "kd": 1 / 9}],
    # mdistiller mdistiller/engine/cfg.py:163-167.
    "dkd": [{"ce": 1, "dkd": 1}],
    # ReviewKD CIFAR-100/script/reviewKD.sh:7.
    "reviewkd": [{"ce": 1, "reviewkd": 5}],
    # overhaul-distillation CIFAR-100/train_with_distillation.py:91.
    "ofd": [{"ce": 1, "ofd": 1e-3}],
    # CTKD scripts/run_cifar_distill.sh:19.
    "ctkd": [{"ce": 0.1, "ctkd": 0.9}],
    # logit-standardization-KD README.md:57, mdistiller/engine/cfg.py:64.
    "lskd": [{"ce": 0.1, "lskd": 9}],
    # Multi-Level-Logit-Distillation KD_ours.py:114-254 with the two views equal: .1
    # twice; .9 masked by half plus .9; .9 masked by half.
    "mlkd": [{"ce": 0.2, "instance": 1.35, "batch": 0.45, "class": 0.45}],
    # RLD mdistiller/engine/cfg.py:180.
    "rld": [{"ce": 1, "rld": 1}],
    # cls_KD mmcls/models/classifiers/distiller.py:122-126.
    "nkd": [{"ce": 1, "nkd": 1}],
    # image_classification_sota configs/strategies/distill/dist_cifar.yaml:34-35.
    "dist": [{"ce": 1, "dist": 2}],
    # TTM README.md:22, 41.
    "ttm": [{"ce": 1, "ttm": 45}],
    "wttm": [{"ce": 1, "wttm": 4}],
    # cls_KD configs/distillers/cifar100/res34_distill_res18_cifar.py:50.
    "wsld": [{"ce": 1, "wsld": 2.25}],
    # ICKD Cifar100/README.md:40.
    "ickd": [{"ce": 1, "ickd": 2.5}],
    # WKD configs/cifar100/wkd_f/res32x4_res8x4.yaml:24-25: .08, at 0 in the end.
    "wasserstein": [{"ce": 1, "wasserstein": 0}],
    # WKD configs/cifar100/wkd_l/res32x4_res8x4.yaml:22-24: 600, at 0 in the end.
    "wkd_logits": [{"ce": 1, "label": 1, "wkd": 0}],
    # OFAKD train.py:82-91; SDD-CVPR2024 mdistiller/engine/cfg.py:63-64.
    "ofa": [{"ce": 1, "ofa": 1}],
    "sdd": [{"ce": 0.1, "sdd": 0.9}],
    # MGD cls/configs/distillers/res34_distill_res18_img.py:15.
    "mgd": [{"ce": 1, "mgd": 7e-5}],
    # Simple-Recipe-Distillation losses/single.py:172, 182; VkD
    # main_distributed.py:55-57.
    "srd": [{"ce": 1, "kd": 1, "srd": 2}],
    "vkd": [{"ce": 1, "kd": 1, "vkd": 1}],
    # KD_SRRL train_imagenet_distillation.py:23; SimKD scripts/run_distill.sh:22.
    "srrl": [{"ce": 1, "srrl": 1}],
    "simkd": [{"simkd": 1}],
    "label_smoothing": [{"label_smoothing": 1}],
    "soft_then_hard": [{"kd": 1}, {"ce": 1}],
    # What OPTIONS gives.
    "teacher_free": [{"ce": 0.5, "teacher_free": 0.5}],
    "pearson": [{"ce": 1, "pearson": 1}],
    "cwd": [{"ce": 1, "cwd": 1}],
    "cc": [{"ce": 1, "cc": 1}],
    # Schemes; mean-teacher pytorch/experiments/cifar10_test.py:44, losses.py:27.
    "ensemble": [KD],
    "stored": [KD],
    "mutual": [{"ce": 1, "mutual": 1}],
    "mean_teacher": [{"ce": 1, "consistency": 100 / CLASSES}],
    "born_again": [{"ce": 1, "kd": 1}],
    "assistants": [KD],
}


def make(name, variables=None, batch=None, **options):
    """A recipe for the small pair, whose teacher is given as shapes by default."""
    variables = shapes() if variables is None else variables
    taught = (teacher, variables)
    if name == "ensemble":
        taught = [taught, taught]
    options = {**OPTIONS.get(name, {}), **options}
    batch = example() if batch is None else batch
    return recipes.build(name, student, taught, batch, dataset=dataset(), **options)


def states(recipe, batch, variables):
    """After one step of each stage, the state and the metrics."""
    found, before = [], None
    for stage in recipe.stages:
        d = staged.stage_distiller(stage, recipe.net, recipe.teacher, before)
        start = d.init(jax.random.key(0), variables, batch)
        before, metrics = d.step(start, variables, batch)
        found.append((before, metrics))
    return found


def at_end(weight, steps):
    return float(weight(steps)) if callable(weight) else weight


def test_the_table_has_every_recipe():
    assert set(WEIGHTS) == set(recipes.names())
    public = set(recipes.names()) | {"Budget", "Method", "Recipe", "Trained"}
    helpers = {"build", "get", "knobs", "names", "summary"}
    assert set(recipes.__all__) == public | helpers


@pytest.mark.parametrize("name", WEIGHTS)
def test_weights_are_the_authors(name):
    recipe = make(name)
    assert importlib.util.find_spec(f"jaxkd.schemes.{recipe.scheme}")
    for stage, expected in zip(recipe.stages, WEIGHTS[name], strict=True):
        spec = stage.spec
        if callable(spec):  # needs a trained paraphraser: as shapes
            first = recipe._replace(stages=recipe.stages[:1])
            run = lambda variables, r=first: states(r, example(), variables)[0][0]
            spec = spec(jax.eval_shape(run, shapes()))
        found = {k: at_end(w, stage.epochs * 781) for k, (w, _) in spec.items()}
        assert found == pytest.approx(expected, rel=1e-6, abs=1e-9), stage.name


@pytest.mark.parametrize(
    "name", [n for n in WEIGHTS if n not in ("mutual", "mean_teacher")]
)
def test_every_recipe_takes_a_step(name):
    # Traced only: nothing is compiled.
    batch = {**example(), "teacher": np.zeros((6, CLASSES), np.float32)}

    def steps(variables):
        recipe = make(name, variables)
        given = recipe.teacher_variables
        return [metrics for _, metrics in states(recipe, batch, given)]

    for metrics in jax.eval_shape(steps, shapes()):
        assert metrics["loss"].shape == ()


@pytest.mark.parametrize("name", ["mutual", "mean_teacher"])
def test_schemes_take_a_step_with_the_recipe_s_options(name):
    recipe = make(name)
    (stage,) = recipe.stages
    if name == "mutual":
        d = mutual.distiller(recipe.options["peers"], stage.spec, stage.tx)
    else:
        d = self_teacher.distiller(recipe.net, stage.spec, stage.tx, **recipe.options)

    def step():
        return d.step(d.init(jax.random.key(0), None, example()), None, example())

    assert jax.eval_shape(step)


@pytest.mark.parametrize("name", ["factor_transfer", "ofd", "simkd"])
def test_recipes_train(name):
    budget = Budget(epochs=2, steps_per_epoch=2, learning_rate=0.01)
    variables = jax.jit(teacher.init)(jax.random.key(1), example()["image"])
    recipe = make(name, variables, example(24), budget=budget)
    runs = staged.fit(
        recipe.stages,
        recipe.net,
        recipe.teacher,
        recipe.teacher_variables,
        data.on_device(dataset()),
        view=augment.to_float(),
        key=jax.random.key(0),
        batch_size=12,
        progress=False,
    )
    assert [len(run.history) for run in runs] == [s.epochs for s in recipe.stages]
    for run in runs:
        assert np.isfinite(run.history[-1]["loss"])


def moved(name, stage):
    """The student's parameters that a stage's optimiser moves, under decay alone."""
    recipe = make(name)
    d = staged.stage_distiller(recipe.stages[stage], recipe.net, recipe.teacher)
    variables = recipe.teacher_variables
    state = jax.eval_shape(d.init, jax.random.key(0), variables, example())
    ones = jax.tree.map(lambda x: np.ones(x.shape, np.float32), state.params)
    tx = transfer.train_only(recipe.stages[stage].tx, recipe.stages[stage].trains)
    nothing = jax.tree.map(np.zeros_like, ones)
    updates, _ = tx.update(nothing, tx.init(ones), ones)
    return {
        layer: any(np.any(leaf) for leaf in jax.tree.leaves(tree))
        for layer, tree in updates["student"].items()
    }


@pytest.mark.parametrize(
    ("name", "still"),
    [
        ("fsp", {"head"}),
        ("ab", {"head"}),
        ("fitnets", {"head", "stage3_conv", "stage3_norm"}),
    ],
)
def test_first_stages_leave_what_lies_above_alone(name, still):
    layers = moved(name, 0)
    assert {layer for layer, moves in layers.items() if not moves} == still


@pytest.mark.parametrize("name", ["fsp", "ab", "factor_transfer", "fitnets"])
def test_first_stages_are_30_epochs_at_a_constant_rate_before_the_240(name):
    first, main = make(name).stages
    assert (first.epochs, main.epochs) == (30, 240)
    rates = {"factor_transfer": 0.01}  # RepDistiller helper/pretrain.py:25
    # The rate at the first step and after the last.
    for stage, end in ((first, 1.0), (main, 1e-3)):
        start = rates.get(name, 0.05) if stage is first else 0.05
        for count, factor in ((0, 1.0), (stage.epochs * 781, end)):
            got = rate_of(stage.tx, count)
            np.testing.assert_allclose(got, start * factor, rtol=1e-5)


def rate_of(tx, count):
    """The learning rate of a step, from what weight decay does to a weight of 1."""
    weight = {"w": np.ones((), np.float32)}
    state = jax.tree.map(
        lambda x: np.asarray(count, x.dtype) if x.dtype == "int32" else np.asarray(x),
        tx.init(weight),
    )
    update, _ = tx.update({"w": np.zeros((), np.float32)}, state, weight)
    return -update["w"] / 5e-4


def test_rates_that_are_not_the_protocol_s():
    # MLKD configs/cifar100/ours/res32x4_res8x4.yaml:12; ReviewKD train.py:24, without
    # its Nesterov momentum's first step; overhaul train_with_distillation.py:23.
    for name, rate in {"mlkd": 0.025, "kd": 0.05}.items():
        np.testing.assert_allclose(rate_of(make(name).stages[0].tx, 0), rate, rtol=1e-5)
    for name, (epochs, rate) in {"reviewkd": (240, 0.1), "ofd": (200, 0.1)}.items():
        (stage,) = make(name).stages
        assert stage.epochs == epochs
        # Nesterov: the step is the gradient and momentum times it.
        np.testing.assert_allclose(rate_of(stage.tx, 0), rate * 1.9, rtol=1e-5)


def schedule(name, term, **options):
    (stage,) = make(name, **options).stages
    return stage.spec[term][0]


@pytest.mark.parametrize(
    ("name", "end"), [("dkd", 1.0), ("rld", 1.0), ("reviewkd", 5.0)]
)
def test_warm_ups_last_20_of_240_epochs(name, end):
    budget = Budget()
    weight = schedule(name, name, budget=budget)
    steps = 781 * 20
    found = [float(weight(s)) for s in (0, steps // 2, steps, STEPS)]
    np.testing.assert_allclose(found, [0, end / 2, end, end], rtol=1e-3)


def test_a_short_budget_shortens_what_was_published_for_240_epochs():
    short = Budget(epochs=24, steps_per_epoch=10)
    weight = schedule("dkd", "dkd", budget=short)
    assert float(weight(10)) == 0.5 and float(weight(20)) == 1.0
    assert [s.epochs for s in make("fsp", budget=short).stages] == [3, 24]
    assert [s.epochs for s in make("fsp", budget=Budget(epochs=1)).stages] == [1, 1]


@pytest.mark.parametrize(
    ("name", "term", "start"),
    [("wasserstein", "wasserstein", 0.08), ("wkd_logits", "wkd", 1.0)],
)
def test_the_wasserstein_weights_fall_along_a_cosine_from_epoch_150(name, term, start):
    weight = schedule(name, term)
    epochs = np.array([0, 150, 195, 240])
    found = [float(weight(781 * e)) / start for e in epochs]
    np.testing.assert_allclose(found, [1, 1, 0.5, 0], atol=1e-6)


@pytest.mark.parametrize("given", [True, False])
def test_wkd_s_terms_are_the_loss_at_the_authors_knobs(given):
    cost = np.random.default_rng(1).uniform(size=(CLASSES, CLASSES))
    cost = cost.astype(np.float32)
    variables = jax.jit(teacher.init)(jax.random.key(1), example()["image"])
    recipe = make("wkd_logits", variables, **({"cost": cost} if given else {}))
    (stage,) = recipe.stages
    if not given:
        kernel = np.asarray(variables[0]["head"]["kernel"], np.float64)
        kernel /= np.linalg.norm(kernel, axis=0)
        cost = (1 - np.exp(kernel.T @ kernel - 1)).astype(np.float32)
    s, t = np.random.default_rng(0).normal(size=(2, 6, CLASSES)).astype(np.float32)
    label, moved = (
        stage.spec[name][1].apply({}, {}, out(s), out(t), example())[0]
        for name in ("label", "wkd")
    )
    knobs = {"gamma": 600.0, "temperature": 8.0, "epsilon": 0.05, "iterations": 10}
    want = losses.wkd_logits(s, t, example()["label"], cost, **knobs)
    # A cost of a class to itself of 1e-7, by rounding, is 6e-5 after the 600.
    np.testing.assert_allclose(label + moved, want, rtol=1e-4, atol=1e-4)


def test_sdd_looks_at_the_logits_of_regions():
    recipe = make("sdd")
    variables = jax.jit(teacher.init)(jax.random.key(1), example()["image"])
    said = jax.jit(lambda v: recipe.teacher(v, example()))(variables)
    maps = said.tap("logit_map")
    assert maps.shape == (6, 2, 2, CLASSES)
    np.testing.assert_allclose(maps.mean((1, 2)), said.logits, rtol=1e-4, atol=1e-5)
    s = jax.random.normal(jax.random.key(2), maps.shape)
    (stage,) = recipe.stages
    given = Outputs(said.logits, {"logit_map": s})
    got, _ = stage.spec["sdd"][1].apply({}, {}, given, said, example())
    kd = functools.partial(losses.kd, temperature=4.0)
    knobs = {"loss": kd, "scales": (1, 2), "complementary": 2.0}
    want = losses.sdd(s, maps, example()["label"], **knobs)
    np.testing.assert_allclose(got, want, rtol=1e-5)


def test_the_mean_teacher_s_weight_grows_as_exp_of_minus_5_squares():
    weight = schedule("mean_teacher", "consistency")
    ramp = 781 * 240 * 5 / 180
    found = [float(weight(ramp * share)) for share in (0, 0.5, 1, 9)]
    expected = [20 * math.exp(-5), 20 * math.exp(-5 / 4), 20, 20]
    np.testing.assert_allclose(found, expected, rtol=1e-3)


def test_fitnets_soft_labels_fade_without_the_squared_temperature():
    _, main = make("fitnets").stages
    weight, term = main.spec["kd"]
    faded = STEPS * 4 / 5
    found = [9 * float(weight(s)) for s in (0, faded / 2, faded, STEPS)]
    np.testing.assert_allclose(found, [4, 2.5, 1, 1], rtol=1e-4)


def out(logits):
    return Outputs(logits, {})


@pytest.mark.parametrize(
    ("name", "term", "loss", "knobs", "labelled"),
    [
        ("kd", "kd", losses.kd, {"temperature": 4.0}, False),
        ("lskd", "lskd", losses.lskd, {"temperature": 2.0}, False),
        ("dist", "dist", losses.dist, {"temperature": 4.0}, False),
        ("ttm", "ttm", losses.ttm, {"gamma": 0.1}, False),
        ("wttm", "wttm", losses.wttm, {"gamma": 0.2}, False),
        ("dkd", "dkd", losses.dkd, {"alpha": 1, "beta": 8, "temperature": 4}, True),
        ("rld", "rld", losses.rld, {"alpha": 1, "beta": 8, "temperature": 4}, True),
        ("nkd", "nkd", losses.nkd, {"gamma": 3.5, "temperature": 3.0}, True),
        ("wsld", "wsld", losses.wsld, {"temperature": 4.0}, True),
        ("ofa", "ofa", losses.ofa, {"gamma": 1.0, "temperature": 1.0}, True),
        ("srd", "kd", losses.kd, {"temperature": 1.0}, False),
        ("vkd", "kd", losses.kd, {"temperature": 1.0}, False),
    ],
)
def test_knobs_of_logit_losses_are_the_authors(name, term, loss, knobs, labelled):
    (stage,) = make(name).stages
    rng = np.random.default_rng(0)
    s, t = rng.normal(size=(2, 6, CLASSES)).astype(np.float32)
    batch = example()
    got, _ = stage.spec[term][1].apply({}, {}, out(s), out(t), batch)
    more = (batch["label"],) if labelled else ()
    np.testing.assert_allclose(got, loss(s, t, *more, **knobs), rtol=1e-6)


def test_mlkd_sums_every_level_over_five_temperatures():
    (stage,) = make("mlkd").stages
    s, t = np.random.default_rng(0).normal(size=(2, 6, CLASSES)).astype(np.float32)
    for term, loss in {
        "instance": losses.kd,
        "batch": losses.mlkd_batch,
        "class": losses.mlkd_class,
    }.items():
        got, _ = stage.spec[term][1].apply({}, {}, out(s), out(t), example())
        expected = sum(loss(s, t, temperature=float(temp)) for temp in range(2, 7))
        np.testing.assert_allclose(got, expected, rtol=1e-5)


def test_taps_are_the_authors():
    batch, taught = example(), (teacher, shapes())
    stages = _taps.match_stages(student, taught, batch)
    assert stages == {f"stage{i}": f"stage{i}" for i in (1, 2, 3)}
    assert _taps.second(stages) == {"stage2": "stage2"}
    assert _taps.last(stages) == {"stage3": "stage3"}
    # The parameters of a term have the names of the student's taps it compares.
    for name, term, keys in [
        ("hint", "hint", {"stage2"}),
        ("vid", "vid", set(stages)),
        ("ofd", "ofd", {f"{tap}_pre" for tap in stages}),
        ("reviewkd", "reviewkd", {"level1", "level2", "level3", "level4"}),
        ("fsp", "fsp", {"stem_to_stage1", "stage1_to_stage2", "stage2_to_stage3"}),
    ]:
        recipe = make(name)
        spec = recipe.stages[0].spec
        s, t = _taps.outputs(student, taught, batch)
        params, _ = jax.eval_shape(spec[term][1].init, jax.random.key(0), s, t, batch)
        assert set(params) == keys, name


@pytest.mark.parametrize("name", ["hint", "wasserstein"])
def test_regressors_end_in_batch_norm_and_relu(name):
    # RepDistiller models/util.py:146-152; WKD mdistiller/distillers/_common.py:61-67.
    (stage,) = make(name).stages
    s, t = _taps.outputs(student, (teacher, shapes()), example())
    term = stage.spec[name][1]
    draw = lambda x: jax.random.normal(jax.random.key(x.size), x.shape)
    s, t = jax.tree.map(draw, s), jax.tree.map(lambda x: -abs(draw(x)), t)
    params, state = term.init(jax.random.key(0), s, t, example())
    shift = lambda by: _tree.map_with_path(
        lambda path, x: x + by if path.endswith("norm/bias") else x, params
    )
    loss = lambda params: term.apply(params, state, s, t, example())[0]
    # A bias of -100 after the BatchNorm closes the ReLU, whatever the convolution does.
    closed = loss(shift(-100.0))
    np.testing.assert_allclose(closed, loss(shift(-200.0)))
    assert (closed != loss(params)).all()


def test_teachers_are_those_the_method_has():
    assert make("kd").teacher_variables is not None
    for name in ("labels", "teacher_free", "label_smoothing", "mutual"):
        assert make(name).teacher is distill.no_teacher
    assert make("stored").teacher is distill.cached
    assert len(make("ensemble").teacher_variables) == 2
    assert make("simkd").net is not student


def test_every_recipe_names_its_sources():
    for name in recipes.names():
        text = inspect.getdoc(recipes.get(name))
        assert "Source:" in text, name
        first = text.split("\n")[0]
        assert recipes.summary(name) == first and first.endswith("."), name


def test_the_examples_of_the_documentation_are_right():
    tried, failed = 0, 0
    for module in (recipes, recipes.features, recipes.logits):
        result = doctest.testmod(module)
        tried, failed = tried + result.attempted, failed + result.failed
    assert tried >= 2 and failed == 0


# --- bad input ---


@pytest.mark.bad_input
@pytest.mark.parametrize("name", ["teacher_free", "pearson", "cwd", "cc"])
def test_what_has_no_published_weight_asks_for_one(name):
    with pytest.raises(ValueError, match=f"{name} has no published weight .*weight="):
        make(name, weight=None)


@pytest.mark.bad_input
def test_unknown_names_and_options_suggest_near_ones():
    with pytest.raises(ValueError, match="no recipe 'dkb'; there are .*mean dkd"):
        recipes.get("dkb")
    with pytest.raises(ValueError, match="dkd has no option 'betta'.*mean beta"):
        make("dkd", betta=2.0)


@pytest.mark.bad_input
def test_what_a_recipe_needs_is_said():
    taught = (teacher, shapes())
    with pytest.raises(ValueError, match="crd needs dataset="):
        recipes.build("crd", student, taught, example())
    with pytest.raises(ValueError, match=r"a list of teachers, .* got one"):
        recipes.build("ensemble", student, taught, example())
    with pytest.raises(ValueError, match="no layer 'fc'; there are.*head"):
        recipes.build("srrl", student, taught, example(), head="fc")


@pytest.mark.bad_input
def test_networks_without_alike_maps_are_refused():
    def apply(params, state, x, *, train, key=None):
        return Outputs(x[:, 0, 0], {"stage1": x[:, :3, :3]}), {}

    other = Net(lambda key, x: ({}, {}), apply)
    with pytest.raises(ValueError, match=r"equal size: student .*'stage1': \(3, 3\)"):
        recipes.at(other, (teacher, shapes()), example())
