"""Attention within segments: what a token sees, to the last bit, and what it does not; every implementation."""

import functools
import math
from collections.abc import Callable
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import jaxprs_in_params
from jax.sharding import AbstractDevice, AbstractMesh, AxisType
from jax.test_util import check_grads

from jaxbert.models.stack import REMATERIALIZE
from jaxbert.ops.attention import api, gpu, reference, xla_chunked

B, N, H = 2, 3, 8
SCALE = 1 / math.sqrt(H)
KEY = jax.random.key(0)
Attention = Callable[..., jax.Array]


@pytest.fixture(params=["reference", "xla_chunked"])
def attention(request: pytest.FixtureRequest) -> Attention:
    """An implementation; the blocks are smaller than the rows, whose lengths they do not divide."""
    compute = api.IMPLEMENTATIONS[request.param].compute
    if request.param == "xla_chunked":
        compute = functools.partial(compute, block=4)
    return jax.jit(functools.partial(compute, scale=SCALE), static_argnames=("scale", "window", "dropout_rate"))


def qkv(length: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    return tuple(jax.random.normal(key, (B, length, N, H)) for key in jax.random.split(KEY, 3))


def segments(*lengths: int, padding: int = 0) -> jax.Array:
    ids = [i + 1 for i, n in enumerate(lengths) for _ in range(n)] + [0] * padding
    return jnp.tile(jnp.array(ids, jnp.int32), (B, 1))


def test_it_is_softmax_of_scaled_scores_times_values(attention: Attention) -> None:
    q, k, v = (np.asarray(x, np.float64) for x in qkv(5))
    scores = np.einsum("btnh,bsnh->bnts", q, k) / np.sqrt(H)
    weights = np.exp(scores) / np.exp(scores).sum(-1, keepdims=True)
    expected = np.einsum("bnts,bsnh->btnh", weights, v)
    np.testing.assert_allclose(attention(*qkv(5), segments(5), segments(5)), expected, atol=2e-6)


def test_two_segments_in_a_row_give_what_each_gives_alone(attention: Attention) -> None:
    q, k, v = qkv(9)
    together = attention(q, k, v, segments(4, 5), segments(4, 5))
    for part, length in ((slice(0, 4), 4), (slice(4, 9), 5)):
        alone = attention(q[:, part], k[:, part], v[:, part], segments(length), segments(length))
        np.testing.assert_allclose(together[:, part], alone, atol=1e-6)


def test_gradients_across_segments_are_exactly_zero(attention: Attention) -> None:
    ids = segments(4, 5)
    first = lambda q, k, v: jnp.sum(attention(q, k, v, ids, ids)[:, :4] ** 2)  # noqa: E731
    for gradient in jax.grad(first, argnums=(0, 1, 2))(*qkv(9)):
        assert np.all(np.asarray(gradient[:, 4:]) == 0)
        assert np.all(np.abs(np.asarray(gradient[:, :4])).sum((1, 3)) > 0)


def test_the_first_token_sees_the_last_of_its_own_segment(attention: Attention) -> None:
    ids = segments(4, 5)
    gradient = jax.grad(lambda v: jnp.sum(attention(*qkv(9)[:2], v, ids, ids)[:, 4]))(qkv(9)[2])
    assert np.all(np.asarray(gradient[:, 8]) != 0)


def test_what_padding_holds_changes_no_real_output(attention: Attention) -> None:
    q, k, v = qkv(9)
    ids = segments(6, padding=3)
    changed = [x.at[:, 6:].set(1e4) for x in (q, k, v)]
    np.testing.assert_array_equal(attention(q, k, v, ids, ids)[:, :6], attention(*changed, ids, ids)[:, :6])


def test_queries_that_see_no_key_get_zeros_and_every_gradient_of_theirs_is_zero(attention: Attention) -> None:
    """Padding, which sees no padding either; and a document of which there is no key."""
    for q_ids, k_ids, blind in (
        (segments(6, padding=3), segments(6, padding=3), slice(6, 9)),
        (segments(padding=9), segments(padding=9), slice(0, 9)),
        (segments(4, 5), segments(4, padding=5), slice(4, 9)),
        (segments(4, 5), segments(padding=9), slice(0, 9)),
    ):
        output, pull = jax.vjp(lambda *x, ids=(q_ids, k_ids): attention(*x, *ids), *qkv(9))
        assert (np.asarray(output[:, blind]) == 0).all()
        gradients = pull(jnp.zeros_like(output).at[:, blind].set(1e4))
        assert all((np.asarray(gradient) == 0).all() for gradient in gradients)


@pytest.mark.parametrize("window", [1, 2, 3, 6, 17, 40])
def test_a_window_is_a_band_of_half_its_size_on_either_side(attention: Attention, window: int) -> None:
    q, k = jax.random.normal(KEY, (2, B, 17, N, 17))
    v = jnp.broadcast_to(jnp.eye(17)[:, None], k.shape)  # the result is then the probabilities
    ids = segments(9, 6, padding=2)
    row, places = np.asarray(ids[0]), np.arange(17)
    expected = (row[:, None] == row) & (row > 0) & (np.abs(places[:, None] - places) <= window // 2)
    seen = np.asarray(attention(q, k, v, ids, ids, window=window)) > 0
    np.testing.assert_array_equal(seen, np.broadcast_to(expected[:, None], seen.shape))


def test_a_window_over_the_row_changes_nothing(attention: Attention) -> None:
    ids = segments(9, 6, padding=2)
    np.testing.assert_allclose(attention(*qkv(17), ids, ids, window=34), attention(*qkv(17), ids, ids), atol=1e-6)


def test_the_scale_multiplies_scores(attention: Attention) -> None:
    (q, k, v), ids = qkv(9), segments(4, 5)
    np.testing.assert_allclose(
        attention(q, k, v, ids, ids, scale=0.5), attention(q * 0.5 / SCALE, k, v, ids, ids), atol=1e-6
    )


def test_fewer_queries_than_keys_give_the_rows_of_the_whole(attention: Attention) -> None:
    q, k, v = qkv(9)
    ids, rows = segments(4, 5), jnp.array([7, 0, 4])
    whole = attention(q, k, v, ids, ids)
    np.testing.assert_allclose(attention(q[:, rows], k, v, ids[:, rows], ids), whole[:, rows], atol=1e-6)


def test_large_scores_do_not_overflow(attention: Attention) -> None:
    q, k, v = qkv(5)
    value = lambda q: jnp.sum(attention(q * 1e3, k * 1e3, v, segments(5), segments(5)))  # noqa: E731
    output, gradient = jax.value_and_grad(value)(q)
    assert np.isfinite(output) and np.all(np.isfinite(gradient))


def test_dropout_keeps_the_expectation(attention: Attention) -> None:
    q, k, v = qkv(6)
    draw = jax.jit(jax.vmap(lambda key: attention(q, k, v, segments(6), segments(6), dropout_rate=0.2, key=key)))
    mean = np.mean(draw(jax.random.split(KEY, 4000)), axis=0)
    np.testing.assert_allclose(mean, attention(q, k, v, segments(6), segments(6)), atol=0.05)


def test_dropout_of_0_and_no_key_change_no_bit(attention: Attention) -> None:
    plain = attention(*qkv(6), segments(6), segments(6))
    for arguments in ({"dropout_rate": 0.0, "key": KEY}, {"dropout_rate": 0.5, "key": None}):
        np.testing.assert_array_equal(attention(*qkv(6), segments(6), segments(6), **arguments), plain)


def test_gradients_with_dropout_are_the_derivative_of_what_was_drawn(attention: Attention) -> None:
    with jax.enable_x64(True):
        given = [jnp.asarray(np.asarray(x), jnp.float64) for x in qkv(9)]
        ids = segments(5, 3, padding=1)
        check_grads(
            lambda q, k, v: attention(q, k, v, ids, ids, dropout_rate=0.3, key=KEY),
            given,
            order=1,
            modes=["rev"],
            atol=1e-6,
            rtol=1e-6,
        )


def test_scores_and_softmax_of_bfloat16_run_in_float32(attention: Attention) -> None:
    q, k, v = (x.astype(jnp.bfloat16) for x in qkv(6))
    ids = segments(6)
    exact = attention(*(x.astype(jnp.float32) for x in (q, k, v)), ids, ids)
    output = attention(q, k, v, ids, ids)
    assert output.dtype == jnp.bfloat16
    np.testing.assert_allclose(output.astype(jnp.float32), exact, atol=0.03)


# Blocks against the reference


def value_and_gradients(
    attention: Attention, dtype: str, queries: int, keys: int, window: int | None = None
) -> list[np.ndarray]:
    random = np.random.default_rng(0)
    q, k, v, g = (
        jnp.asarray(random.normal(size=(B, length, N, H)), dtype) for length in (queries, keys, keys, queries)
    )
    k_ids = np.sort(random.integers(1, 5, (B, keys)), axis=1)  # segments of uneven lengths, padding behind the second
    k_ids[1, -keys // 3 :] = 0
    q_ids = np.take_along_axis(k_ids, random.integers(0, keys, (B, queries)), axis=1)
    if window is not None:
        q_ids = k_ids
    call = functools.partial(attention, scale=SCALE, window=window)

    @jax.jit
    def both(q: jax.Array, k: jax.Array, v: jax.Array, g: jax.Array) -> tuple[jax.Array, ...]:
        output, pull = jax.vjp(lambda q, k, v: call(q, k, v, jnp.asarray(q_ids), jnp.asarray(k_ids)), q, k, v)
        return output, *pull(g)

    return [np.asarray(x) for x in both(q, k, v, g)]


@pytest.mark.parametrize("dtype, tolerance", [("float64", 1e-13), ("float32", 5e-6)])
@pytest.mark.parametrize(
    "queries, keys, window", [(1, 1, None), (9, 9, None), (32, 32, None), (3, 33, None), (61, 61, None), (61, 61, 20)]
)
@pytest.mark.parametrize("block", [16, 512, pytest.param(4, marks=pytest.mark.slow)])
def test_values_and_gradients_in_blocks_are_the_references(
    block: int, queries: int, keys: int, window: int | None, dtype: str, tolerance: float
) -> None:
    with jax.enable_x64(dtype == "float64"):
        chunked = functools.partial(xla_chunked.attention, block=block)
        for ours, expected in zip(
            value_and_gradients(chunked, dtype, queries, keys, window),
            value_and_gradients(reference.attention, dtype, queries, keys, window),
            strict=True,
        ):
            assert ours.dtype == dtype and ours.shape == expected.shape
            assert np.abs(ours - expected).max() <= tolerance * max(1.0, np.abs(expected).max())


def needed(q_ids: jax.Array, window: int | None = None) -> list[range]:
    """Of each block of 16 queries, the blocks of keys to visit."""
    ids = xla_chunked._segment_blocks(q_ids, 16)
    first, stop = xla_chunked._needed(ids, ids, window)
    return [range(*pair) for pair in zip(first.tolist(), stop.tolist(), strict=True)]


def test_blocks_are_needed_within_the_band_and_between_the_first_and_last_that_shares_a_segment() -> None:
    whole, packed, padded = segments(96), segments(32, 20, 12, 32), segments(20, padding=76)
    assert needed(whole) == [range(6)] * 6
    assert needed(packed) == [range(0, 2)] * 2 + [range(2, 4)] * 2 + [range(4, 6)] * 2
    assert [len(blocks) for blocks in needed(padded)] == [2, 2, 0, 0, 0, 0]
    assert needed(whole, 32) == [range(max(0, i - 1), min(6, i + 2)) for i in range(6)]
    assert needed(whole, 34) == [range(max(0, i - 2), min(6, i + 3)) for i in range(6)]
    assert needed(packed, 2) == needed(packed)


def test_a_block_that_any_row_of_the_batch_needs_is_needed() -> None:
    rows = jnp.concatenate([segments(32, 64)[:1], segments(16, 80)[:1]])
    assert needed(rows)[:3] == [range(0, 2), range(0, 6), range(1, 6)]


def test_blocks_that_are_not_needed_are_not_computed() -> None:
    visits, scores = [], xla_chunked._scores

    def counted(*given: Any) -> jax.Array:
        jax.debug.callback(visits.append, given[4])
        return scores(*given)

    ids = segments(32, 16)
    with mock.patch.object(xla_chunked, "_scores", counted):
        jax.block_until_ready(
            jax.jit(functools.partial(xla_chunked.attention, block=16, scale=1.0))(*qkv(48), ids, ids)
        )
        jax.effects_barrier()
    assert len(visits) == 2 * 2 + 1


def temporary_bytes(attention: Attention, length: int, policy: str) -> int:
    """Of forward and backward, with what the policy keeps."""
    shape, ids = jax.ShapeDtypeStruct((1, length, 1, 16), "float32"), jax.ShapeDtypeStruct((1, length), "int32")
    dropping = functools.partial(attention, scale=SCALE, dropout_rate=0.1, key=KEY)
    kept = jax.checkpoint(dropping, policy=REMATERIALIZE[policy])
    gradient = jax.grad(lambda q, k, v, ids: jnp.sum(kept(q, k, v, ids, ids) ** 2), argnums=(0, 1, 2))
    return jax.jit(gradient).lower(shape, shape, shape, ids).compile().memory_analysis().temp_size_in_bytes


@pytest.mark.parametrize("policy", REMATERIALIZE)
def test_memory_in_blocks_grows_with_the_length_and_not_with_its_square(policy: str) -> None:
    half, whole = (temporary_bytes(xla_chunked.attention, length, policy) for length in (2048, 4096))
    assert whole < 2.2 * half
    assert whole < temporary_bytes(reference.attention, 4096, policy) / 8


def products(program: Any) -> int:
    """Matrix products in the text of a program, in that of its loops' bodies too."""
    inside = sum(products(part) for equation in program.eqns for part in jaxprs_in_params(equation.params))
    return inside + sum(equation.primitive.name == "dot_general" for equation in program.eqns)


@pytest.mark.parametrize("policy, count", [("none", 2 + 5), ("dots", 2 + 5), ("full", 2 + 2 + 5)])
def test_the_backward_pass_repeats_the_forward_pass_only_where_nothing_may_be_kept(policy: str, count: int) -> None:
    attention = jax.checkpoint(
        functools.partial(xla_chunked.attention, block=4, scale=SCALE), policy=REMATERIALIZE[policy]
    )
    q, *others = *qkv(9), segments(4, 5), segments(4, 5)
    program = jax.make_jaxpr(jax.grad(lambda q: jnp.sum(attention(q, *others))))(q)
    assert products(program.jaxpr) == count


# The call


def test_segment_ids_are_one_array_a_pair_or_none() -> None:
    q, k, v = qkv(9)
    ids, rows = segments(4, 5), jnp.array([7, 0, 4])
    whole = api.dot_product_attention(q, k, v, segment_ids=ids)
    np.testing.assert_array_equal(whole, reference.attention(q, k, v, ids, ids, scale=SCALE))
    some = api.dot_product_attention(q[:, rows], k, v, segment_ids=(ids[:, rows], ids))
    np.testing.assert_allclose(some, whole[:, rows], atol=1e-6)
    one = segments(9)
    np.testing.assert_array_equal(
        api.dot_product_attention(q, k, v), reference.attention(q, k, v, one, one, scale=SCALE)
    )


@pytest.mark.parametrize(
    "changed, message",
    [
        ({"segment_ids": segments(4)}, r"segment_ids of the queries are int32\[2, 4\]; they are integers \(2, 9\)"),
        ({"segment_ids": (segments(9), segments(4))}, r"segment_ids of the keys are int32\[2, 4\]; .* \(2, 9\)"),
        ({"segment_ids": segments(9).astype("float32")}, r"segment_ids of the queries are float32"),
        ({"segment_ids": segments(9) > 0}, r"segment_ids of the queries are bool"),
        ({"window": 0}, r"window is 0; it counts tokens, 1 or more"),
        ({"window": -128}, r"window is -128"),
        ({"window": 4, "q_BTNH": qkv(5)[0]}, r"window is 4 with 5 queries and 9 keys; distances need T = S"),
        ({"q_BTNH": qkv(9)[0][:, :, :2]}, r"q, k and v have 2, 3 and 3 heads"),
        ({"v_BSNH": qkv(9)[2][:, :, :1]}, r"q, k and v have 3, 3 and 1 heads"),
        ({"v_BSNH": qkv(8)[2]}, r"k_BSNH is \(2, 9, 3, 8\) and v_BSNH \(2, 8, 3, 8\)"),
        ({"k_BSNH": qkv(9)[1].astype("bfloat16")}, r"k_BSNH is bfloat16.* one floating-point dtype"),
        ({"q_BTNH": qkv(9)[0][0]}, r"q_BTNH is float32\[9, 3, 8\]; all three have four axes"),
        ({"dropout_rate": 0.1}, r"dropout_rate is 0.1 without a key"),
        ({"dropout_rate": 1.0, "key": KEY}, r"dropout_rate is 1.0; it lies in \[0, 1\)"),
        ({"implementation": "flash"}, r"no implementation 'flash' of attention; there are reference, xla_chunked"),
    ],
    ids=str,
)
def test_a_call_whose_arguments_do_not_fit_together_is_refused(changed: dict, message: str) -> None:
    arguments = dict(zip(("q_BTNH", "k_BSNH", "v_BSNH"), qkv(9), strict=True)) | changed
    with pytest.raises(ValueError, match=message):
        api.dot_product_attention(**arguments)


# The choice


def test_none_takes_what_choose_says(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in api.IMPLEMENTATIONS:
        called = []
        monkeypatch.setattr(api, "choose", lambda call, name=name: name)
        spy = api.Implementation(lambda q, *_, called=called, **__: called.append(q) or q)
        monkeypatch.setitem(api.IMPLEMENTATIONS, name, spy)
        api.dot_product_attention(*qkv(5))
        assert len(called) == 1


def test_an_implementation_that_lacks_what_a_call_asks_for_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    small = api.Implementation(reference.attention, lambda call: "T: at most 4" if call.T > 4 else None)
    monkeypatch.setitem(api.IMPLEMENTATIONS, "small", small)
    api.dot_product_attention(*qkv(4), implementation="small")
    with pytest.raises(ValueError, match="'small' cannot serve this call: T: at most 4"):
        api.dot_product_attention(*qkv(5), implementation="small")


def test_short_rows_take_the_reference_and_long_ones_blocks() -> None:
    chosen = [api.choose(api.Call(T, T)) for T in (8, 128, 8192, 32768)]
    assert chosen == ["reference"] * 2 + ["xla_chunked"] * 2
    chosen = [api.choose(api.Call(T, T, **TPU)) for T in (256, 512, 8192)]
    assert chosen == ["reference"] + ["pallas_tpu"] * 2


@pytest.mark.parametrize("name", ["reference", "xla_chunked"])
def test_what_a_cpu_computes_can_be_named(name: str) -> None:
    ids = segments(4, 5)
    named = api.dot_product_attention(*qkv(9), segment_ids=ids, implementation=name)
    np.testing.assert_allclose(named, reference.attention(*qkv(9), ids, ids, scale=SCALE), atol=1e-6)


TPU = {"platform": "tpu", "kind": "TPU v5 lite", "dtype": "bfloat16"}
GPU = {"platform": "gpu", "kind": "NVIDIA H100 80GB HBM3", "dtype": "bfloat16"}


@pytest.fixture
def cudnn(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if JAX found cuDNN."""
    monkeypatch.setattr(gpu, "without_cudnn", lambda: None)


@pytest.mark.parametrize(
    "name, given, argument",
    [
        ("pallas_tpu", {**TPU, "platform": "cpu"}, "implementation: it needs a TPU"),
        ("pallas_tpu", {**TPU, "dropout": True}, "dropout_rate: "),
        ("pallas_tpu", {**TPU, "H": 32}, "q_BTNH: heads of 32"),
        ("pallas_tpu", {**TPU, "dtype": "float64"}, "q_BTNH: float64"),
        (
            "pallas_tpu",
            {**TPU, "N": 12, "heads_split": 8},
            "q_BTNH: 12 heads do not divide among the mesh's tensor = 8",
        ),
        (
            "pallas_tpu",
            {**TPU, "B": 6, "rows_split": 4},
            "q_BTNH: 6 rows do not divide among the mesh's data × fsdp = 4",
        ),
        ("cudnn", {**GPU, "platform": "tpu"}, "implementation: it needs a GPU"),
        ("cudnn", {**GPU, "dropout": True}, "dropout_rate: "),
        ("cudnn", {**GPU, "dtype": "float32"}, "q_BTNH: float32"),
        ("cudnn", {**GPU, "H": 20}, "q_BTNH: heads of 20"),
    ],
)
def test_a_kernel_says_which_argument_of_a_call_it_lacks_and_is_not_chosen_then(
    cudnn: None, name: str, given: dict, argument: str
) -> None:
    lacking, served = api.Call(8192, 8192, **given), api.Call(8192, 8192, **(TPU if name == "pallas_tpu" else GPU))
    assert api.IMPLEMENTATIONS[name].lacks(lacking).startswith(argument)
    assert api.choose(lacking) != name
    assert api.IMPLEMENTATIONS[name].lacks(served) is None and api.choose(served) == name


def test_a_host_without_cudnn_compiles_for_gpus_through_xla(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "without_cudnn", lambda: "implementation: JAX says cuDNN is not detected")
    assert api.choose(api.Call(512, 512, **GPU)) == "reference"


def test_heads_that_do_not_divide_tensor_are_refused_with_the_kernel_by_its_name() -> None:
    device = AbstractDevice(device_kind="TPU v5 lite", num_cores=1, platform="tpu")
    mesh = AbstractMesh((2, 1, 2), ("data", "fsdp", "tensor"), axis_types=(AxisType.Auto,) * 3, abstract_device=device)
    x = jax.ShapeDtypeStruct((4, 512, 3, 64), jnp.bfloat16)
    named, chosen = (functools.partial(api.dot_product_attention, implementation=name) for name in ("pallas_tpu", None))
    with jax.sharding.use_abstract_mesh(mesh):
        assert jax.eval_shape(chosen, x, x, x).shape == x.shape
        with pytest.raises(ValueError, match="'pallas_tpu' cannot serve this call: q_BTNH: 3 heads .* tensor = 2"):
            jax.eval_shape(named, x, x, x)
