"""Shuffled epochs and gathered batches."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd import data


def test_an_epoch_visits_nothing_twice_and_leaves_out_the_incomplete_batch():
    order = data.epoch(jax.random.key(0), 103, 10)
    assert order.shape == (10, 10) and order.dtype == jnp.int32
    visited = np.sort(order.ravel())
    assert len(np.unique(visited)) == 100 and visited[0] >= 0 and visited[-1] < 103


def test_each_example_is_left_out_equally_often():
    keys = jax.random.split(jax.random.key(0), 3000)
    orders = jax.jit(jax.vmap(lambda key: data.epoch(key, 5, 2)))(keys)
    visits = np.bincount(orders.ravel(), minlength=5)
    # Binomial(3000, 4/5): mean 2400, standard deviation 22.
    assert np.abs(visits - 2400).max() < 100


def test_the_key_decides_the_order():
    first, again, other = (data.epoch(jax.random.key(k), 64, 8) for k in (1, 1, 2))
    assert (first == again).all() and (first != other).any()
    assert (jnp.sort(first.ravel()) == jnp.arange(64)).all()


def test_indices_stay_int32_in_double_precision(x64):
    assert data.epoch(jax.random.key(0), 10, 5).dtype == jnp.int32


@pytest.mark.bad_input
@pytest.mark.parametrize("size", [0, -1, 11, 2.5])
def test_a_batch_size_that_cannot_be_is_refused(size):
    with pytest.raises(ValueError, match="batch_size must be"):
        data.epoch(jax.random.key(0), 10, size)


def test_a_scanned_epoch_over_the_device_sees_every_example():
    digits = data.load("digits", "test")
    resident = data.on_device(digits)
    assert resident["image"].dtype == jnp.uint8

    @jax.jit
    def run(resident, key):
        def step(_, positions):
            return None, data.gather(resident, positions)

        return jax.lax.scan(step, None, data.epoch(key, 500, 50))[1]

    seen = run(resident, jax.random.key(3))
    assert seen["image"].shape == (10, 50, 8, 8, 1)
    place = np.asarray(seen["index"]).ravel()
    assert sorted(place) == list(range(500))
    np.testing.assert_array_equal(
        np.asarray(seen["image"]).reshape(500, 8, 8, 1), digits.images[place]
    )
    np.testing.assert_array_equal(
        np.asarray(seen["label"]).ravel(), digits.labels[place]
    )


def test_gather_takes_along_whatever_belongs_to_an_example():
    resident = {
        "index": jnp.arange(5),
        "teacher": {"logits": jnp.arange(10.0).reshape(5, 2)},
    }
    batch = data.gather(resident, jnp.array([4, 0]))
    assert batch["teacher"]["logits"].tolist() == [[8, 9], [0, 1]]
