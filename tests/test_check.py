"""Each check names the argument, what was expected and what came."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd import _check

NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("check", "good", "bad"),
    [
        (_check.positive, (1, 0.5, np.float32(2)), (0, -1, NAN, INF, "1", None)),
        (_check.not_negative, (0, 3.0), (-0.1, NAN, INF)),
        (_check.open_unit, (0.5,), (0, 1, -1, NAN)),
        (_check.closed_unit, (0, 1, 0.5), (1.01, -0.01, NAN)),
        (_check.positives, ((1, 2.0), [3]), ((1, 0), 3, (NAN,))),
        (_check.whole(2), (2, np.int64(5)), (1, 2.0, True, "2")),
        (_check.one_of("a", "b"), ("a", "b"), ("c", None)),
    ],
)
def test_ranges(check, good, bad):
    for value in good:
        check("knob", value)
    for value in bad:
        with pytest.raises(ValueError, match=r"^knob must be .*got"):
            check("knob", value)


def test_a_range_asks_for_one_number():
    with pytest.raises(ValueError, match="temperature must be one number"):
        _check.positive("temperature", jnp.ones(3))


def test_a_traced_knob_passes_but_its_shape_is_seen():
    jax.jit(lambda x: (_check.positive("t", x), x)[1])(-1.0)
    with pytest.raises(ValueError, match="t must be one number"):
        jax.jit(lambda x: (_check.positive("t", x), x)[1])(jnp.ones(2))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: _check.same_shape(a=np.ones((4, 5)), b=np.ones((1, 5))),
            r"no broadcasting\), got a \(4, 5\), b \(1, 5\)",
        ),
        (
            lambda: _check.rank(2, 2, a=np.ones(3)),
            r"a must have 2 axes, got shape \(3,\)",
        ),
        (lambda: _check.rank(2, 4, a=np.ones(3)), r"a must have 2 to 4 axes"),
        (lambda: _check.rank(2, a=np.ones(3)), r"a must have at least 2 axes"),
        (lambda: _check.not_empty(a=np.ones((0, 3))), r"a must not be empty"),
        (lambda: _check.real(a=np.ones(3, int)), r"a must be real .*got int"),
        (
            lambda: _check.batch((4,), a=np.ones(3)),
            r"a must have batch \(4,\), got \(3,\)",
        ),
        (lambda: _check.labels(np.ones(3), (3,)), r"labels must be integers"),
        (
            lambda: _check.labels(np.ones(3, int), (4,)),
            r"labels must have shape \(4,\), got \(3,\)",
        ),
        (
            lambda: _check.labels(np.array([0, 2**32 + 2]), (2,)),
            r"column labels holds integers beyond 32 bits, 0 to 4294967298",
        ),
        (lambda: _check.mask("where", np.ones(3), (3,)), r"where must be boolean"),
        (
            lambda: _check.mask("where", np.ones(3, bool), (4,)),
            r"where must have shape \(4,\), got \(3,\)",
        ),
        (lambda: _check.class_mask(np.ones(3), (3,)), r"class_mask must be boolean"),
        (
            lambda: _check.class_mask(np.ones((2, 3), bool), (3,)),
            r"class_mask \(2, 3\) does not broadcast to logits \(3,\)",
        ),
        (
            lambda: _check.logits(None, None, student_logits=np.ones(())),
            "student_logits must have at least 1 axes",
        ),
    ],
)
def test_messages(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_masks_that_fit():
    _check.mask("where", None, (3,))
    _check.mask("where", np.ones(3, bool), (3,))
    for shape in [(), (5,), (1,), (4, 5), (4, 1), (1, 5)]:
        _check.class_mask(np.ones(shape, bool), (4, 5))
