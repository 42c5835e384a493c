"""A student of the scored set is a student of the live teacher, on real digits."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxkd import data, distill, losses, models, train
from jaxkd.data import augment
from jaxkd.schemes import offline
from tests import toys

TEACHER = models.mlp([24], classes=10)
STUDENT = models.mlp([12], classes=10)
LIVE = distill.frozen(TEACHER)
CE = distill.on_labels(losses.cross_entropy)
PLAIN = augment.to_float()
RANDOM = augment.chain(augment.flip(), augment.jitter(1), augment.to_float())
T = 2.0


def with_kd(term):
    return {"ce": (0.3, CE), "kd": (0.7, term)}


SOFT = with_kd(distill.on_logits(losses.kd, temperature=T))


@pytest.fixture(scope="module")
def digits():
    return data.subset(data.load("digits", "train"), 160, seed=0)


@pytest.fixture(scope="module")
def variables():
    params, state = TEACHER.init(jax.random.key(7), jnp.zeros((2, 8, 8, 1)))
    # Logits of a size that makes a wrong example's scores matter.
    return jax.tree.map(lambda a: 3 * a, params), state


def fit(resident, teacher, its, spec, view=PLAIN, epochs=4):
    d = distill.distiller(STUDENT, teacher, spec, optax.adam(3e-3))
    batch = train.example(resident, view)
    state = jax.jit(d.init)(jax.random.key(0), its, batch)
    epoch = train.make_epoch(d, view=view, batch_size=32)
    return train.fit(epoch, state, its, resident, key=jax.random.key(1), epochs=epochs)


def same(one, other):
    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-5)
    jax.tree.map(close, one.state.params, other.state.params)
    for a, b in zip(one.history, other.history, strict=True):
        close(a["loss/kd"], b["loss/kd"])


@pytest.fixture(scope="module")
def live(digits, variables):
    return fit(data.on_device(digits), LIVE, variables, SOFT)


def test_soft_scores_teach_what_the_live_teacher_teaches(
    digits, variables, live, tmp_path
):
    scores = offline.score(LIVE, variables, digits, view=PLAIN, path=tmp_path / "s")
    resident = offline.on_device(digits, scores)
    assert resident["teacher"].shape == (160, 10)
    same(fit(resident, distill.cached, None, SOFT), live)
    in_turn = fit(resident, distill.cached, None, SOFT)
    same(in_turn, live)


def test_all_classes_kept_as_the_largest_teach_the_same(digits, variables, live):
    scores = offline.score(
        LIVE, variables, digits, view=PLAIN, kind="topk", k=10, temperature=T
    )
    resident = offline.on_device(digits, scores)
    same(
        fit(resident, distill.no_teacher, None, with_kd(offline.on_topk(scores))), live
    )


def test_few_classes_are_the_loss_of_few_classes(digits, variables):
    """By the definition of top-k distillation, on the live teacher's logits."""
    scores = offline.score(
        LIVE, variables, digits, view=PLAIN, kind="topk", k=3, temperature=T
    )
    batch = PLAIN(jax.random.key(0), offline.on_device(digits, scores))
    s = distill.Outputs(jnp.sin(jnp.arange(1600.0)).reshape(160, 10), {})
    found, _ = offline.on_topk(scores).apply({}, {}, s, None, batch)
    z = np.asarray(LIVE(variables, batch).logits, np.float64) / T
    p = np.exp(z) / np.exp(z).sum(-1, keepdims=True)
    q = np.exp(np.asarray(s.logits, np.float64) / T)
    q /= q.sum(-1, keepdims=True)
    for row in range(160):
        top = np.argsort(-p[row])[:3]
        both = [np.append(x[row, top], 1 - x[row, top].sum()) for x in (p, q)]
        expected = T**2 * np.sum(both[0] * np.log(both[0] / both[1]))
        np.testing.assert_allclose(found[row], expected, rtol=1e-4, atol=1e-5)


def test_hard_labels_teach_what_the_live_teachers_decision_teaches(digits, variables):
    scores = offline.score(LIVE, variables, digits, view=PLAIN, kind="hard")
    resident = offline.on_device(digits, scores)
    decided = with_kd(distill.on_logits(losses.hard_label))
    live = fit(data.on_device(digits), LIVE, variables, decided, epochs=2)
    spec = with_kd(offline.on_hard_labels(scores))
    same(fit(resident, distill.no_teacher, None, spec, epochs=2), live)
    assert (resident["teacher_label"] != resident["label"]).any()
    relabelled = {**resident, "label": resident["teacher_label"]}
    spec = {"ce": (0.0, CE), "kd": (1.0, CE)}
    run = fit(relabelled, distill.no_teacher, None, spec, epochs=1)
    assert np.isfinite(run.history[0]["loss/kd"])


@pytest.fixture(scope="module")
def views():
    return offline.replayed(RANDOM, seed=3, views=3)


def test_replayed_views_teach_what_a_live_teacher_shown_them_teaches(
    digits, variables, views
):
    scores = offline.score(LIVE, variables, digits, view=views)
    resident = offline.on_device(digits, scores)
    assert resident["teacher_views"].shape == (160, 3, 10)
    with_scores = fit(resident, distill.cached, None, SOFT, views)
    shown = fit(data.on_device(digits), LIVE, variables, SOFT, views)
    same(with_scores, shown)
    # The comparison can tell: the scores of a wrong view teach something else.
    wrong = {**resident, "teacher_views": jnp.roll(resident["teacher_views"], 1, 1)}
    wrong = fit(wrong, distill.cached, None, SOFT, views)
    with pytest.raises(AssertionError):
        same(with_scores, wrong)


def test_epochs_go_through_the_views_in_one_program(digits, views):
    seen, traces = [], []

    def step(state, teacher_variables, batch):
        traces.append(1)
        found = {"loss": batch["image"].sum(), "view": batch["view"].mean()}
        return state._replace(step=state.step + 1), found

    d = distill.Distiller(lambda *_: None, step)
    state = distill.TrainState(jnp.zeros((), jnp.int32), {}, {}, {}, jax.random.key(0))
    epoch = train.make_epoch(d, view=views, batch_size=50)
    run = train.fit(
        epoch,
        state,
        None,
        data.on_device(digits),
        key=jax.random.key(1),
        epochs=5,
        log=seen.append,
    )
    assert [row["view"] for row in run.history] == [0, 1, 2, 0, 1]
    assert len(traces) == 1


def test_several_seeds_learn_from_the_scores_at_once(digits, variables, views):
    scores = offline.score(LIVE, variables, digits, view=views)
    resident = offline.on_device(digits, scores)
    d = distill.distiller(STUDENT, distill.cached, SOFT, optax.adam(3e-3))
    batch = train.example(resident, views)
    keys = jnp.stack([jax.random.key(5), jax.random.key(0)])
    epoch = train.make_epoch(d, view=views, batch_size=32)
    run = train.fit(
        train.over_seeds(epoch),
        jax.jit(jax.vmap(d.init, (0, None, None)))(keys, None, batch),
        None,
        resident,
        key=jnp.stack([jax.random.key(6), jax.random.key(1)]),
        epochs=2,
    )
    one = fit(resident, distill.cached, None, SOFT, views, epochs=2)
    found = [row["loss/kd"][1] for row in run.history]
    expected = [row["loss/kd"] for row in one.history]
    np.testing.assert_allclose(found, expected, rtol=2e-4)


def test_a_view_depends_on_seed_number_and_index_and_on_nothing_else(digits, views):
    show = jax.jit(lambda key, b: views(key, b)["image"])
    whole = offline.showing(data.on_device(digits), 1)
    images = show(jax.random.key(0), whole)
    some = jax.tree.map(lambda a: a[jnp.array([40, 7, 99])], whole)
    np.testing.assert_array_equal(
        show(jax.random.key(9), some), images[jnp.array([40, 7, 99])]
    )
    other = show(jax.random.key(0), {**whole, "view": whole["view"] + 1})
    changed = (other != images).any((1, 2, 3))
    assert changed.mean() > 0.8  # 17 of 18 draws are other draws
    moved = show(jax.random.key(0), {**whole, "index": whole["index"] + 1})
    assert ((moved != images).any((1, 2, 3))).mean() > 0.8
    seed = offline.replayed(RANDOM, seed=4, views=3)
    assert (seed(jax.random.key(0), whole)["image"] != images).any()
    # Three views: the fourth is the first.
    again = show(jax.random.key(0), {**whole, "view": whole["view"] + 3})
    np.testing.assert_array_equal(again, images)


def _roll(key, batch):
    return {**batch, "image": jnp.roll(batch["image"], 1, 0)}


@pytest.mark.bad_input
@pytest.mark.parametrize(
    "mixing",
    [
        augment.chain(augment.to_float(), augment.mixup(0.4)),
        augment.View(_roll, True),
    ],
    ids=["mixup", "a neighbour's image"],
)
def test_views_that_mix_examples_are_refused(digits, variables, mixing):
    view = offline.replayed(mixing, seed=0, views=2)
    with pytest.raises(ValueError, match="mixes the examples of a batch"):
        offline.score(LIVE, variables, digits, view=view)


@pytest.mark.bad_input
def test_errors_say_what_to_do(digits, variables, views):
    soft = offline.score(LIVE, variables, digits, view=PLAIN)
    hard = offline.score(LIVE, variables, digits, view=PLAIN, kind="hard")
    top = offline.score(
        LIVE, variables, digits, view=PLAIN, kind="topk", k=2, temperature=1
    )
    fewer = data.subset(digits, 20, seed=0)
    with pytest.raises(ValueError, match="scores of other data"):
        offline.on_device(fewer, soft)
    with pytest.raises(ValueError, match="must be of kind 'topk', got 'soft'"):
        offline.on_topk(soft)
    with pytest.raises(ValueError, match="must be of kind 'hard', got 'topk'"):
        offline.on_hard_labels(top)
    with pytest.raises(ValueError, match="temperature is that of the scores, 1.0"):
        offline.on_topk(top, temperature=2.0)
    outputs, batch = distill.Outputs(jnp.zeros((2, 4)), {}), {}
    with pytest.raises(ValueError, match=r"10 \(teacher\) and 4 \(student\)"):
        offline.on_hard_labels(hard).init(None, outputs, outputs, batch)
    outputs = distill.Outputs(jnp.zeros((2, 10)), {})
    with pytest.raises(ValueError, match="no field 'teacher_label'"):
        offline.on_hard_labels(hard).init(None, outputs, outputs, batch)
    with pytest.raises(ValueError, match=r"needs the fields \['view'\]"):
        views(jax.random.key(0), data.on_device(digits))
    with pytest.raises(ValueError, match="views must be >= 1"):
        offline.replayed(RANDOM, seed=0, views=0)


@pytest.mark.bad_input
def test_scores_under_a_view_that_cannot_be_theirs_are_refused(
    digits, variables, views
):
    hard = offline.score(LIVE, variables, digits, view=PLAIN, kind="hard")
    resident = offline.on_device(digits, hard)
    spec = with_kd(offline.on_hard_labels(hard))
    with pytest.raises(ValueError, match="the view is random"):
        fit(resident, distill.no_teacher, None, spec, RANDOM)
    scores = offline.score(LIVE, variables, digits, view=views)
    resident = offline.on_device(digits, scores)
    two = offline.replayed(RANDOM, seed=3, views=2)
    with pytest.raises(ValueError, match="of 3 views of each example, but .* has 2"):
        fit(resident, distill.cached, None, SOFT, two)


def test_toys_have_the_same_classes_as_what_is_kept_of_them():
    """The classes are known before anything is scored: too large a k costs nothing."""
    with pytest.raises(ValueError, match="k must be at most the 5 classes, got 6"):
        offline.score(
            distill.frozen(toys.teacher),
            toys.teacher_variables(),
            toys.dataset(),
            view=toys.view,
            kind="topk",
            k=6,
            temperature=1.0,
        )
