"""Attention within segments: what a token sees, to the last bit, and what it does not."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxbert.ops.attention.reference import attention

B, N, H = 2, 3, 8
KEY = jax.random.key(0)


def qkv(length: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    return tuple(jax.random.normal(key, (B, length, N, H)) for key in jax.random.split(KEY, 3))


def segments(*lengths: int, padding: int = 0) -> jax.Array:
    ids = [i + 1 for i, n in enumerate(lengths) for _ in range(n)] + [0] * padding
    return jnp.tile(jnp.array(ids, jnp.int32), (B, 1))


def test_it_is_softmax_of_scaled_scores_times_values() -> None:
    q, k, v = (np.asarray(x, np.float64) for x in qkv(5))
    scores = np.einsum("btnh,bsnh->bnts", q, k) / np.sqrt(H)
    weights = np.exp(scores) / np.exp(scores).sum(-1, keepdims=True)
    expected = np.einsum("bnts,bsnh->btnh", weights, v)
    np.testing.assert_allclose(attention(*qkv(5), segments(5), segments(5)), expected, atol=2e-6)


def test_two_segments_in_a_row_give_what_each_gives_alone() -> None:
    q, k, v = qkv(9)
    together = attention(q, k, v, segments(4, 5), segments(4, 5))
    for part, length in ((slice(0, 4), 4), (slice(4, 9), 5)):
        alone = attention(q[:, part], k[:, part], v[:, part], segments(length), segments(length))
        np.testing.assert_allclose(together[:, part], alone, atol=1e-6)


def test_gradients_across_segments_are_exactly_zero() -> None:
    ids = segments(4, 5)
    first = lambda q, k, v: jnp.sum(attention(q, k, v, ids, ids)[:, :4] ** 2)  # noqa: E731
    for gradient in jax.grad(first, argnums=(0, 1, 2))(*qkv(9)):
        assert np.all(np.asarray(gradient[:, 4:]) == 0)
        assert np.all(np.abs(np.asarray(gradient[:, :4])).sum((1, 3)) > 0)


def test_the_first_token_sees_the_last_of_its_own_segment() -> None:
    ids = segments(4, 5)
    gradient = jax.grad(lambda v: jnp.sum(attention(*qkv(9)[:2], v, ids, ids)[:, 4]))(qkv(9)[2])
    assert np.all(np.asarray(gradient[:, 8]) != 0)


def test_what_padding_holds_changes_no_real_output() -> None:
    q, k, v = qkv(9)
    ids = segments(6, padding=3)
    changed = [x.at[:, 6:].set(1e4) for x in (q, k, v)]
    np.testing.assert_array_equal(attention(q, k, v, ids, ids)[:, :6], attention(*changed, ids, ids)[:, :6])


def test_padding_alone_gives_finite_numbers_and_gradients() -> None:
    ids = segments(padding=4)
    output, gradient = jax.value_and_grad(lambda q: jnp.sum(attention(q, *qkv(4)[1:], ids, ids)))(qkv(4)[0])
    assert np.isfinite(output) and np.all(np.isfinite(gradient))


def test_fewer_queries_than_keys_give_the_rows_of_the_whole() -> None:
    q, k, v = qkv(9)
    ids, rows = segments(4, 5), jnp.array([7, 0, 4])
    whole = attention(q, k, v, ids, ids)
    np.testing.assert_allclose(attention(q[:, rows], k, v, ids[:, rows], ids), whole[:, rows], atol=1e-6)


def test_large_scores_do_not_overflow() -> None:
    q, k, v = qkv(5)
    assert np.all(np.isfinite(attention(q * 1e3, k * 1e3, v, segments(5), segments(5))))


def test_dropout_keeps_the_expectation() -> None:
    q, k, v = qkv(6)
    draw = jax.jit(jax.vmap(lambda key: attention(q, k, v, segments(6), segments(6), dropout_rate=0.2, key=key)))
    mean = np.mean(draw(jax.random.split(KEY, 4000)), axis=0)
    np.testing.assert_allclose(mean, attention(q, k, v, segments(6), segments(6)), atol=0.05)


def test_scores_and_softmax_of_bfloat16_run_in_float32() -> None:
    q, k, v = (x.astype(jnp.bfloat16) for x in qkv(6))
    ids = segments(6)
    exact = attention(*(x.astype(jnp.float32) for x in (q, k, v)), ids, ids)
    output = attention(q, k, v, ids, ids)
    assert output.dtype == jnp.bfloat16
    np.testing.assert_allclose(output.astype(jnp.float32), exact, atol=0.03)
