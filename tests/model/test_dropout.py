import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rrope_jax.model import dropout

drop = jax.jit(dropout.drop, static_argnums=1)


@pytest.mark.smoke
@pytest.mark.parametrize("rate", [0.1, 0.5])
@pytest.mark.parametrize("shape", [(), (7,), (3, 5, 8), (2, 3, 4, 5, 2)])
def test_keeps_what_jax_keeps(shape: tuple[int, ...], rate: float) -> None:
    key = jax.random.key(3)
    kept = np.asarray(jax.random.bernoulli(key, 1 - rate, shape))
    np.testing.assert_array_equal(np.asarray(drop(jnp.ones(shape), rate, key)) > 0, kept)


@pytest.mark.parametrize("impl", ["threefry2x32", "rbg"])
def test_statistics(impl: str) -> None:
    """Share of zeroes, mean, and no correlation between neighbours or keys; 200,000 draws."""
    keys = jax.random.split(jax.random.key(0, impl=impl), 2)
    ones = jnp.ones((200, 1000))
    one, other = (np.asarray(drop(ones, 0.1, key)) for key in keys)
    error = 0.3 / 200_000**0.5  # standard deviation of the share of zeroes
    assert abs(np.mean(one == 0) - 0.1) < 4 * error
    np.testing.assert_allclose(one[one != 0], 1 / 0.9, rtol=1e-6)
    for a, b in ((one[:, 1:], one[:, :-1]), (one[1:], one[:-1]), (one, other)):
        assert abs(np.corrcoef(a.ravel(), b.ravel())[0, 1]) < 4 / 200_000**0.5


def test_under_vmap_each_key_has_its_own_mask() -> None:
    keys, x = jax.random.split(jax.random.key(1), 3), jnp.ones((4, 6))
    together = jax.vmap(lambda key: drop(x, 0.5, key))(keys)
    for mapped, key in zip(together, keys, strict=True):
        np.testing.assert_array_equal(mapped, drop(x, 0.5, key))
    assert not np.array_equal(together[0], together[1])


def test_old_style_keys() -> None:
    x = jnp.ones((4, 6))
    expected = drop(x, 0.5, jax.random.key(5))
    np.testing.assert_array_equal(drop(x, 0.5, jax.random.PRNGKey(5)), expected)


def test_nothing_happens_without_key_or_rate() -> None:
    x = jnp.arange(6.0)
    np.testing.assert_array_equal(drop(x, 0.5, None), x)
    np.testing.assert_array_equal(drop(x, 0.0, jax.random.key(0)), x)


def test_dtype_is_kept_and_gradients_are_masked() -> None:
    key, x = jax.random.key(2), jnp.linspace(1, 2, 64, dtype=jnp.bfloat16)
    y, gradient = drop(x, 0.5, key), jax.grad(lambda x: drop(x, 0.5, key).sum())(x)
    assert y.dtype == gradient.dtype == jnp.bfloat16
    np.testing.assert_array_equal(gradient, np.where(np.asarray(y) == 0, 0, 2))


def test_more_elements_than_counters() -> None:
    """Shapes past 2^32 elements trace, as in a large model before it is split over devices."""
    shape = jax.eval_shape(
        lambda key: drop(jnp.zeros((2**17, 2**16), jnp.bfloat16), 0.1, key), jax.random.key(0)
    )
    assert shape.shape == (2**17, 2**16)
