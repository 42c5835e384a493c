"""What every loss promises, asked of every loss.

A loss joins by being described once, as a `Case`, in logit_cases.py or
feature_cases.py. Shapes are few and fixed, because every new shape compiles again.
"""

import functools
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

from jaxkd import losses
from tests.losses import feature_cases, logit_cases, token_cases
from tests.losses.cases import Case, is_float

CASES: list[Case] = [
    *logit_cases.CASES,
    *token_cases.CASES,
    *feature_cases.CASES,
]
BATCH = 6
# Of more examples as many are kept as a batch has: one program fewer.
KEPT = np.array([True, False, True, True, False, True, True, False, True])
# Of a batch of one example they would train nothing.
RELATIONS = ("sp", "pkt", "cc", "rkd_distance", "rkd_angle", "rkd_angle_in_parts")

every_case = pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
# Shapes are fixed and values drawn; the same ones in every run.
drawn = settings(
    max_examples=15,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],  # x64 has no state
)
seeds = st.integers(0, 2**32 - 1)
# Compiling is nearly all that these tests do. The losses are also called as they are.
fast = {"xla_backend_optimization_level": 0}
traced = [0]


def count_traces(event: str, duration_secs: float, **_: str | int) -> None:
    """Counts every time that jax turns a function into a program."""
    if event == "/jax/core/compile/jaxpr_trace_duration":
        traced[0] += 1


jax.monitoring.register_event_duration_secs_listener(count_traces)


def of(condition, cases=CASES):
    """Parametrises a test over the cases for which something holds."""
    cases = [case for case in cases if condition(case)]
    return pytest.mark.parametrize("case", cases, ids=[case.name for case in cases])


def draw(case, seed=0, batch=(BATCH,), width=None, scale=1.0, dtype=np.float32):
    """Inputs of a case, floats scaled and cast."""
    inputs = case.draw(np.random.default_rng(seed), batch, width or case.width)
    return {
        name: (scale * array).astype(dtype) if is_float(array) else array
        for name, array in inputs.items()
    }


def change_floats(inputs, change):
    """Applies a function to the float inputs."""
    return {n: change(a) if is_float(a) else a for n, a in inputs.items()}


def make_equal(case, inputs):
    """The student says what the teacher says."""
    return {**inputs, **{student: inputs[teacher] for student, teacher in case.pairs}}


@functools.cache
def program(case_index):
    """The compiled loss and its weighted sum's gradients for all float inputs."""
    case = CASES[case_index]

    def total(floats, rest, order, weights, masks):
        merged = {**floats, **rest}
        loss = case.call({name: merged[name] for name in order}, **masks)
        return jnp.sum(weights * loss), loss

    graded = jax.value_and_grad(total, has_aux=True)
    graded = jax.jit(graded, static_argnums=2, compiler_options=fast)

    def run(inputs, weights, **masks):
        floats, rest = split(inputs)
        (_, loss), gradients = graded(floats, rest, tuple(inputs), weights, masks)
        return np.asarray(loss), {n: np.asarray(g) for n, g in gradients.items()}

    return run


def split(inputs):
    """The float inputs as arrays of jax, and the other inputs."""
    floats = {n: jnp.asarray(a) for n, a in inputs.items() if is_float(a)}
    return floats, {n: a for n, a in inputs.items() if n not in floats}


def graded(case, inputs, weights=None, **masks):
    """Losses `[*batch]` and gradients by argument, as numpy arrays.

    The weights differ, so that a gradient that lands in the wrong example shows.
    """
    if weights is None:
        sizes = [a.shape[case.axis(n)] for n, a in inputs.items() if case.axis(n) == 0]
        weights = np.arange(1.0, sizes[0] + 1) / sizes[0]
    return program(CASES.index(case))(inputs, weights, **masks)


def assert_finite(case, inputs, **masks):
    """No NaN and no infinity, in the values or in any gradient."""
    loss, gradients = graded(case, inputs, **masks)
    assert np.all(np.isfinite(loss)), f"loss {loss}"
    for name, gradient in gradients.items():
        assert np.all(np.isfinite(gradient)), f"gradient for {name}: {gradient}"


# Values.


@every_case
def test_is_public(case):
    assert case.loss is getattr(losses, case.loss.__name__)
    assert case.loss.__name__ in losses.__all__


@every_case
@pytest.mark.usefixtures("x64")
@drawn
@given(seed=seeds, scale=st.floats(0.1, 3.0))
def test_equals_an_independent_definition(case, seed, scale):
    inputs = draw(case, seed, scale=scale, dtype=np.float64)
    want = case.reference(**inputs, **case.knobs)
    got, _ = graded(case, inputs)
    assert got.dtype == np.float64
    np.testing.assert_allclose(got, want, rtol=case.rtol, atol=1e-12)


@every_case
def test_is_unreduced_and_float32(case):
    loss = case.call(draw(case))
    assert loss.shape == (BATCH,)
    assert loss.dtype == jnp.float32


@of(lambda case: case.leading)
def test_takes_any_leading_axes(case):
    inputs = draw(case, batch=(2, 3))
    flat = dict(inputs)
    for name, array in inputs.items():
        if (axis := case.axis(name)) is not None:
            first = np.moveaxis(array, (axis, axis + 1), (0, 1))
            rows = first.reshape(6, *first.shape[2:])
            flat[name] = np.moveaxis(rows, 0, axis)
    got, want = case.call(inputs), case.call(flat)
    assert got.shape == (2, 3)
    np.testing.assert_allclose(got.ravel(), want, rtol=1e-5, atol=1e-6)


@of(lambda case: case.leading and not case.across)
def test_takes_a_single_example_without_a_batch(case):
    inputs = draw(case)
    first = {
        name: array if case.axis(name) is None else np.take(array, 0, case.axis(name))
        for name, array in inputs.items()
    }
    got = case.call(first)
    assert got.shape == ()
    np.testing.assert_allclose(got, case.call(inputs)[0], rtol=1e-5, atol=1e-6)


@every_case
def test_jit_equals_eager(case):
    inputs = draw(case)
    inlined, _ = graded(case, inputs)
    np.testing.assert_allclose(inlined, case.call(inputs), rtol=1e-5, atol=1e-6)


@every_case
def test_step_by_step_equals_jit(case):
    inputs = draw(case)
    if case.class_axis:
        inputs = with_infinities(case, inputs, case.class_axis)
    if "labels" in inputs:
        inputs["labels"][1] = -1
    floats, rest = split(inputs)
    total = lambda floats: jnp.sum(
        weights * case.call({n: {**floats, **rest}[n] for n in inputs})
    )
    weights = np.arange(1, BATCH + 1, dtype=np.float32) / BATCH
    with jax.disable_jit():
        value, gradients = jax.value_and_grad(total)(floats)
    loss, want = graded(case, inputs, weights)
    np.testing.assert_allclose(value, weights @ loss, rtol=2e-5, atol=2e-6)
    for name, gradient in gradients.items():
        np.testing.assert_allclose(gradient, want[name], rtol=2e-4, atol=2e-5)


@of(lambda case: case.leading and not case.across)
def test_vmap_equals_batch(case):
    inputs = draw(case)
    axes = tuple(case.axis(name) for name in inputs)
    loss = functools.partial(case.loss, **case.knobs)
    got = jax.vmap(loss, in_axes=axes)(*inputs.values())
    np.testing.assert_allclose(got, case.call(inputs), rtol=1e-5, atol=1e-6)


@every_case
def test_permuting_examples_permutes_losses(case):
    inputs, order = draw(case), np.array([3, 0, 5, 1, 4, 2])
    got, want = case.call(case.take(inputs, order)), case.call(inputs)[order]
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)


@of(lambda case: case.symmetries)
@pytest.mark.usefixtures("x64")
def test_symmetries(case):
    inputs = draw(case, dtype=np.float64)
    want, _ = graded(case, inputs)
    for symmetry in case.symmetries:
        moved = symmetry(inputs)
        assert any(np.any(moved[name] != inputs[name]) for name in inputs)
        np.testing.assert_allclose(graded(case, moved)[0], want, rtol=1e-7, atol=1e-9)


@of(lambda case: case.at_equal)
@pytest.mark.usefixtures("x64")
def test_least_where_student_equals_teacher(case):
    apart = draw(case, dtype=np.float64)
    loss, gradients = graded(case, make_equal(case, apart))
    if case.at_equal == "zero":
        np.testing.assert_allclose(loss, 0, atol=1e-6)
    if case.at_equal in ("zero", "least"):
        assert np.all(graded(case, apart)[0] > loss)
    for student, _ in case.pairs:
        np.testing.assert_allclose(gradients[student], 0, atol=1e-6)


# Gradients.


@every_case
@pytest.mark.usefixtures("x64")
def test_gradients_equal_finite_differences(case):
    inputs = draw(case, dtype=np.float64)
    names = case.differentiable
    if names is None:
        names = tuple(name for name in inputs if is_float(inputs[name]))
    if not names:
        pytest.skip("nothing of it has a gradient that finite differences can see")
    rng = np.random.default_rng(1)
    direction = {name: np.zeros_like(a) for name, a in split(inputs)[0].items()}
    direction |= {name: rng.normal(size=inputs[name].shape) for name in names}
    step = 1e-5

    def at(distance):
        moved = {name: inputs[name] + distance * direction[name] for name in names}
        return graded(case, {**inputs, **moved})[0]

    want = (at(step) - at(-step)) / (2 * step)
    _, gradients = graded(case, inputs)
    backward = sum(np.vdot(gradients[name], direction[name]) for name in names)
    weights = np.arange(1.0, 1 + BATCH) / BATCH
    np.testing.assert_allclose(backward, weights @ want, atol=1e-6, rtol=1e-6)

    floats, rest = split(inputs)
    call = lambda floats, rest: case.call({**floats, **rest})
    forwards = lambda floats, rest, direction: jax.jvp(
        lambda floats: call(floats, rest), (floats,), (direction,)
    )
    _, forward = jax.jit(forwards, compiler_options=fast)(floats, rest, direction)
    np.testing.assert_allclose(forward, want, atol=1e-6, rtol=1e-6)


# Hard inputs.


@every_case
@drawn
@given(seed=seeds, smaller=st.floats(0, 4))
def test_finite_at_large_inputs(case, seed, smaller):
    assert_finite(case, draw(case, seed, scale=case.largest / 10**smaller))


@every_case
def test_finite_at_equal_constant_and_zero_inputs(case):
    inputs = draw(case)
    assert_finite(case, make_equal(case, inputs))
    assert_finite(case, change_floats(inputs, lambda x: np.full_like(x, 0.7)))
    assert_finite(case, change_floats(inputs, np.zeros_like))
    for pair in case.pairs:  # and one network alone, as at a zero-initialised head
        for name in pair:
            assert_finite(case, {**inputs, name: np.zeros_like(inputs[name])})


@of(lambda case: case.name not in RELATIONS)
def test_finite_with_one_example(case):
    inputs = draw(case, batch=(1,))
    assert_finite(case, inputs)
    assert_finite(case, change_floats(inputs, np.zeros_like))
    assert graded(case, inputs)[0].shape == (1,)


@of(lambda case: case.name in RELATIONS)
def test_refuses_one_example_without_another_to_compare(case):
    with pytest.raises(ValueError, match="must hold 2 examples or more"):
        case.call(draw(case, batch=(1,)))


@every_case
def test_finite_with_the_fewest_classes(case):
    for scale in (1.0, case.largest):
        assert_finite(case, draw(case, width=case.narrow, scale=scale))


def exactly(half, dtype):
    """The same numbers in float32."""
    return {
        name: array.astype(np.float32) if array.dtype == dtype else array
        for name, array in half.items()
    }


@every_case
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16], ids=["bfloat", "float"])
def test_half_precision_is_computed_in_float32(case, dtype):
    unit = float(jnp.finfo(dtype).eps) / 2
    smallest = float(jnp.finfo(dtype).smallest_subnormal)
    for scale in (1.0, min(1e3, case.largest)):
        half = draw(case, scale=scale, dtype=dtype)
        loss, gradients = graded(case, half)
        assert loss.dtype == np.float32
        want, wanted = graded(case, exactly(half, dtype))
        np.testing.assert_allclose(loss, want, rtol=1e-5, atol=1e-6)
        for name, gradient in gradients.items():
            assert gradient.dtype == dtype
            # The gradient of features of 1e3 may be more than float16 can hold.
            fits = np.abs(wanted[name]) < float(jnp.finfo(dtype).max)
            assert np.all(fits) or (scale > 1 and not case.class_axis), name
            assert np.all(np.isfinite(gradient) == fits), name
            # Only the last cast rounds: by half a unit of its bits. Where large terms
            # cancel, the two programs add them in another order.
            size = np.max(np.abs(wanted[name]))
            np.testing.assert_allclose(
                gradient.astype(np.float32)[fits],
                wanted[name][fits],
                rtol=1.01 * unit + 1e-5,
                atol=1e-6 * max(1, size) + smallest,
            )


# Masks.


@every_case
@pytest.mark.usefixtures("x64")
def test_where_equals_slicing(case):
    inputs = draw(case, batch=KEPT.shape, dtype=np.float64)
    spoilt = {
        name: spoil(case, name, array) if is_float(array) else array
        for name, array in inputs.items()
    }
    weights = np.arange(1.0, len(KEPT) + 1)
    loss, gradients = graded(case, spoilt, weights, where=KEPT)
    np.testing.assert_array_equal(loss[~KEPT], 0)
    want, wanted = graded(case, case.take(inputs, KEPT), weights[KEPT])
    np.testing.assert_allclose(loss[KEPT], want, rtol=1e-9, atol=1e-12)
    exact, exact_gradients = graded(case, inputs, weights, where=KEPT)
    np.testing.assert_array_equal(exact, loss)
    assert set(wanted) == set(gradients)
    for name, gradient in gradients.items():
        np.testing.assert_array_equal(gradient, exact_gradients[name])
        axis, kept = case.axis(name), gradient
        if axis is not None:
            np.testing.assert_array_equal(np.compress(~KEPT, gradient, axis), 0)
            kept = np.compress(KEPT, gradient, axis)
        np.testing.assert_allclose(kept, wanted[name], rtol=1e-9, atol=1e-12)


def spoil(case, name, array):
    """Fills the excluded examples with NaN and infinities."""
    axis = case.axis(name)
    if axis is None:
        return array
    spoilt = np.moveaxis(array.copy(), axis, 0)
    spoilt[1], spoilt[4], spoilt[7] = np.nan, np.inf, -np.inf
    return np.moveaxis(spoilt, 0, axis)


@every_case
@pytest.mark.usefixtures("x64")
def test_where_excluding_all_is_zero(case):
    inputs = draw(case, batch=KEPT.shape, dtype=np.float64)
    loss, gradients = graded(case, inputs, where=np.zeros_like(KEPT))
    np.testing.assert_array_equal(loss, 0)
    for name, gradient in gradients.items():
        assert np.all(gradient == 0), name


def widen(case, inputs, fill, width):
    """Appends two classes to the logits, and the mask that excludes them."""
    wide = {
        name: np.concatenate([array, np.full_like(array[..., :2], fill)], axis=-1)
        if name in case.class_axis
        else array
        for name, array in inputs.items()
    }
    for name in case.class_square:
        wide[name] = np.pad(inputs[name], (0, 2), constant_values=1.5)
    return wide, np.arange(width + 2) < width


@of(lambda case: case.class_axis)
@pytest.mark.parametrize("fill", [1.5, 1e4, -np.inf, np.nan], ids=str)
def test_masked_classes_do_not_exist(case, fill):
    inputs = draw(case)
    wide, mask = widen(case, inputs, fill, case.width)
    loss, gradients = graded(case, wide, class_mask=mask)
    want, want_gradients = graded(case, inputs)
    np.testing.assert_allclose(loss, want, rtol=2e-5, atol=1e-6)
    for name in gradients:
        got = gradients[name]
        if name in case.class_axis:
            np.testing.assert_array_equal(got[..., case.width :], 0)
            got = got[..., : case.width]
        if name in case.class_square:
            assert np.sum(got != 0) <= case.width**2
            got = got[: case.width, : case.width]
        np.testing.assert_allclose(got, want_gradients[name], rtol=2e-4, atol=1e-5)


@of(lambda case: case.class_axis)
def test_infinitely_unlikely_classes_do_not_exist(case):
    width = case.width - 2
    inputs = draw(case, width=width)
    want = case.reference(**inputs, **case.knobs)
    loss, gradients = graded(case, widen(case, inputs, -np.inf, width)[0])
    np.testing.assert_allclose(loss, want, rtol=1e-4, atol=1e-6)
    for name in case.class_axis:
        np.testing.assert_array_equal(gradients[name][..., width:], 0)
        assert np.all(np.isfinite(gradients[name]))


def with_infinities(case, inputs, names):
    """Logits of -inf in one or both of the arguments named."""
    changed = {n: np.moveaxis(inputs[n].copy(), case.axis(n), 0) for n in names}
    first, last = changed[names[0]], changed[names[-1]]
    first[0, ..., 0] = -np.inf
    last[1, ..., 0] = -np.inf
    first[2, ..., 0] = last[2, ..., 0] = -np.inf
    last[3, ..., 1:] = -np.inf  # a network that is certain, and one that knows nothing
    first[4, ..., 1:] = -np.inf
    last[5] = -np.inf
    moved = {n: np.moveaxis(array, 0, case.axis(n)) for n, array in changed.items()}
    return {**inputs, **moved}


@of(lambda case: case.class_axis)
@pytest.mark.parametrize("order", [1, -1], ids=["as they are", "exchanged"])
def test_finite_at_minus_infinity_on_either_side(case, order):
    inputs = with_infinities(case, draw(case), case.class_axis[::order])
    assert_finite(case, inputs)
    _, gradients = graded(case, inputs)
    for name in case.class_axis:
        np.testing.assert_array_equal(gradients[name][inputs[name] == -np.inf], 0)


@of(lambda case: case.class_axis)
def test_a_row_without_classes_is_zero(case):
    inputs = draw(case)
    mask = np.ones((BATCH, case.width), bool)
    mask[2] = False
    loss, gradients = graded(case, inputs, class_mask=mask)
    assert loss[2] == 0 and np.all(np.isfinite(loss))
    for name, gradient in gradients.items():
        assert np.all(np.isfinite(gradient)), name


# Labels.


@of(lambda case: "labels" in draw(case))
def test_examples_without_a_label_are_excluded(case):
    inputs, none = draw(case), np.array([1, 3, 4])
    for name in case.class_axis:
        inputs[name][4] = np.nan
    kept = ~np.isin(np.arange(BATCH), none)
    want, wanted = graded(case, inputs, where=kept)
    inputs["labels"][none] = -1, -100, 255
    loss, gradients = graded(case, inputs, where=np.ones(BATCH, bool))
    np.testing.assert_array_equal(loss, want)
    np.testing.assert_array_equal(loss[none], 0)
    for name, gradient in gradients.items():
        np.testing.assert_array_equal(gradient, wanted[name])
        if name in case.class_axis:
            np.testing.assert_array_equal(gradient[none], 0)


@of(lambda case: "labels" in draw(case))
@pytest.mark.parametrize("wrong", [-2, -100, 255, "as many as classes"], ids=str)
@pytest.mark.bad_input
def test_refuses_labels_that_are_no_class(case, wrong):
    inputs, kept = draw(case), np.arange(BATCH) != 2
    wrong = case.width if isinstance(wrong, str) else wrong
    inputs["labels"][2] = wrong
    match = rf"labels must be classes from 0 to 4, or -1 .*got {wrong}; .*where="
    with pytest.raises(ValueError, match=match):
        case.call(inputs)
    small = {**inputs, "labels": inputs["labels"].astype(np.int16)}
    with pytest.raises(ValueError, match=match):
        case.loss(**small, **case.knobs)
    assert np.all(np.isfinite(case.call(inputs, where=kept)))


# Compilation.


@of(lambda case: case.vary)
def test_other_knobs_do_not_compile_again(case):
    inputs = {n: jnp.asarray(a) for n, a in draw(case).items()}
    once = case.call(inputs)
    before = traced[0]
    again = case.call(inputs, **case.vary)
    assert traced[0] == before
    assert np.any(np.asarray(once) != np.asarray(again))


@of(lambda case: any(is_float(np.asarray(v)) for v in case.vary.values()))
def test_knobs_may_be_traced(case):
    inputs = {n: jnp.asarray(a) for n, a in draw(case).items()}
    for name, value in case.vary.items():
        value = float(value)
        f = lambda v, name=name: case.call(inputs, **{name: v}).sum()
        got, gradient = jax.jit(jax.value_and_grad(f))(value)
        np.testing.assert_allclose(got, f(value), rtol=1e-5, atol=1e-5)
        assert np.isfinite(gradient)


@every_case
def test_inlines_into_an_outer_program(case):
    inputs = {n: jnp.asarray(a) for n, a in draw(case).items()}
    # In the lowered text, because newer versions of jax inline only there.
    lowered = jax.jit(lambda inputs: 2 * case.call(inputs)).lower(inputs).as_text()
    assert "func.func public @main" in lowered
    assert f"@{case.loss.__name__}(" not in lowered


# Bad inputs.


@every_case
@pytest.mark.bad_input
def test_refuses_batches_of_different_sizes(case):
    inputs = draw(case)
    with_examples = [name for name in inputs if case.axis(name) is not None]
    if len(with_examples) < 2:
        pytest.skip("only one argument has examples")
    for name in with_examples:
        for size in (1, BATCH - 1):  # 1 would broadcast
            short = np.take(inputs[name], range(size), case.axis(name))
            with pytest.raises(ValueError, match="|".join(with_examples)):
                case.call({**inputs, name: short})


@of(lambda case: not case.free_width)
@pytest.mark.bad_input
def test_refuses_pairs_of_different_widths(case):
    inputs = draw(case)
    for pair in case.pairs:
        for name in pair:
            with pytest.raises(ValueError, match=name):
                case.call({**inputs, name: inputs[name][..., :1]})


@every_case
@pytest.mark.bad_input
def test_refuses_an_empty_batch(case):
    with pytest.raises(ValueError, match="empty"):
        case.call(case.take(draw(case), np.zeros(BATCH, bool)))


@every_case
@pytest.mark.bad_input
def test_refuses_wrong_masks(case):
    inputs = draw(case)
    with pytest.raises(ValueError, match="where must be boolean"):
        case.call(inputs, where=np.ones(BATCH))
    with pytest.raises(ValueError, match="where must have shape"):
        case.call(inputs, where=np.ones(BATCH - 1, bool))
    if case.class_axis:
        with pytest.raises(ValueError, match="class_mask must be boolean"):
            case.call(inputs, class_mask=np.ones(case.width))
        with pytest.raises(ValueError, match=r"class_mask .* broadcast"):
            case.call(inputs, class_mask=np.ones(case.width + 1, bool))


@every_case
@pytest.mark.bad_input
def test_refuses_integer_features_and_real_labels(case):
    inputs = draw(case)
    for name, array in inputs.items():
        wrong = array.astype(int) if is_float(array) else array.astype(np.float32)
        with pytest.raises(ValueError, match=name):
            case.call({**inputs, name: wrong})


@every_case
@pytest.mark.bad_input
def test_refuses_knobs_out_of_range(case):
    inputs = draw(case)
    for name in inspect.signature(case.loss).parameters:
        if name == "temperature":
            for wrong in (0, -1.0, float("nan"), float("inf"), "warm"):
                with pytest.raises(ValueError, match="temperature must be"):
                    case.call(inputs, temperature=wrong)
