"""M2-BERT: published sizes, and what is special in its mixer, its filters and its feed-forward."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxbert.errors import BadInput
from jaxbert.models import m2
from jaxbert.models.heads import MaskedLM
from jaxbert.ops.long_conv import api
from jaxbert.step import count_parameters

KEY = jax.random.key(0)
SMALL = m2.Config("m2_80M", 2, 24, 40, feed_forward_size=32, filter_order=11, training_additions=False)


def sized(name: str, **fields) -> m2.Config:
    return dataclasses.replace(m2.Config(name=name, **m2.SIZES[name]), **fields)


def block(**fields) -> m2.Block:
    return m2.Block(dataclasses.replace(SMALL, **fields), rngs=nnx.Rngs(0))


def row(length: int = 9) -> dict[str, jax.Array]:
    return {"segment_ids_BT": jnp.ones((1, length), jnp.int32), "length_B": jnp.array([length])}


def states(length: int = 9) -> jax.Array:
    return jax.random.normal(jax.random.key(3), (1, length, SMALL.hidden_size))


# Sizes

# With 30,528 tokens, the masked-LM head included; the long ones have more positions in the table and in each filter.
PUBLISHED = {
    "m2_80M": 80_285_760,
    "m2_110M": 115_583_616,
    "m2_260M": 259_133_760,
    "m2_341M": 341_038_144,
    "m2_80M_2k": 80_267_328 + (2048 - 128) * (768 + 12 * 2 * 5),
    "m2_80M_8k": 80_267_328 + (8192 - 128) * (768 + 12 * 2 * 5),
    "m2_80M_32k": 80_267_328 + (32768 - 128) * (768 + 12 * 2 * 5),
}


def parameters(config: m2.Config) -> int:
    return count_parameters(jax.eval_shape(lambda: MaskedLM(m2.Encoder, config, 30_528, KEY)), 30_528)


@pytest.mark.parametrize("name", m2.SIZES)
def test_parameter_counts_are_the_published_ones(name: str) -> None:
    assert parameters(sized(name)) == PUBLISHED[name]


def test_without_its_additions_the_smallest_has_what_the_long_context_models_have_at_128_positions() -> None:
    assert parameters(sized("m2_80M", training_additions=False)) == 80_267_328
    assert parameters(sized("m2_80M_8k", max_positions=128)) == 80_267_328


def test_parts_of_a_layer_have_the_published_counts() -> None:
    layer = jax.eval_shape(lambda: m2.Block(sized("m2_80M"), rngs=nnx.Rngs(0)))
    whole = sum(leaf.size for leaf in jax.tree.leaves(layer))
    feed_forward = (layer.gated_GFD, layer.down_GDF, layer.down_bias_D, layer.feed_forward_norm)
    mlp = sum(leaf.size for leaf in jax.tree.leaves(feed_forward))
    assert (whole - mlp, mlp) == (2_904_576, 1_771_776)


# What it refuses


def test_rows_of_several_documents_and_rows_longer_than_the_filters_are_refused() -> None:
    encoder = m2.Encoder(SMALL, 100, rngs=nnx.Rngs(0))
    ids = jnp.ones((1, 41), jnp.int32)
    batch = {"input_ids_BT": ids, "segment_ids_BT": ids, "position_ids_BT": ids}
    with pytest.raises(BadInput, match="data.pack: M2-BERT convolves the whole row"):
        encoder({name: array[:, :9] for name, array in batch.items()})
    with pytest.raises(BadInput, match="model.max_positions: 40, but rows have 41 tokens"):
        encoder(batch | {"length_B": jnp.array([41])})


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"blocks": 3}, "model.blocks: 3 must be even .* and divide model.hidden_size 24"),
        ({"feed_forward_size": 30}, "model.blocks: 4 must be even .* and divide .* model.feed_forward_size 30"),
        ({"filter_features": 4}, "model.filter_features: 4; it must be odd"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(fields: dict, message: str) -> None:
    with pytest.raises(BadInput, match=message):
        m2.Encoder(dataclasses.replace(SMALL, **fields), 100, rngs=nnx.Rngs(0))


# The mixer


def test_the_mixer_has_no_residual() -> None:
    layer = block()
    layer.output_DD = nnx.Param(jnp.zeros((24, 24)))
    one, other = layer(states(), row()), layer(2 * states(), row())
    np.testing.assert_array_equal(one, other)


def test_the_gate_comes_after_the_convolution_and_the_residual_reads_the_unprojected_input() -> None:
    layer, x_BTD = block(), states()
    layer.input_DGD = nnx.Param(jnp.zeros((24, 3, 24)))  # the three projections are now constants: 2, 3 and 5
    layer.input_bias_GD = nnx.Param(jnp.zeros((3, 24)))
    layer.short_bias_GD = nnx.Param(jnp.array([2.0, 3.0, 5.0])[:, None] * jnp.ones(24))
    wanted = 3.0 * layer.mixing(jnp.full_like(x_BTD, 10.0)) + layer.residual(x_BTD)
    np.testing.assert_allclose(layer.mix(x_BTD, row()), wanted, rtol=1e-5, atol=1e-5)


def test_the_short_convolution_sees_the_token_itself_last_and_none_after_it() -> None:
    x = jnp.arange(1.0, 6.0)[None, :, None, None]
    y = m2.short_convolution(x, jnp.array([[[100.0, 10.0, 1.0]]]), jnp.array([[0.5]]))
    np.testing.assert_allclose(y[0, :, 0, 0], [1.5, 12.5, 123.5, 234.5, 345.5])


def test_padding_is_read_in_reference_mode_alone() -> None:
    x_BTD, batch = states(), row()
    batch["segment_ids_BT"] = batch["segment_ids_BT"].at[:, 6:].set(0)
    other_BTD = x_BTD.at[:, 6:].add(1.0)
    exact, reference = block(), block(mask_mode="reference")
    np.testing.assert_array_equal(exact(x_BTD, batch)[:, :6], exact(other_BTD, batch)[:, :6])
    assert (jnp.abs(reference(x_BTD, batch) - reference(other_BTD, batch))[:, :6].max(axis=-1) > 1e-4).all()


def test_training_additions_norm_what_both_convolutions_read() -> None:
    x_BTD = states()
    np.testing.assert_allclose(
        block(training_additions=True).mix(x_BTD, row()),
        block(training_additions=True).mix(7.0 * x_BTD + 1.0, row()),
        atol=1e-4,
    )


# The filters


def test_a_filter_does_not_depend_on_the_rows_length() -> None:
    convolution = m2.LongConvolution(SMALL, rngs=nnx.Rngs(0))
    for short, long in zip(convolution.filters(7, jnp.float32), convolution.filters(40, jnp.float32), strict=True):
        assert short.shape == (7, 24)
        np.testing.assert_allclose(short, long[:7], atol=1e-7)


def test_filters_are_computed_in_float32_for_bfloat16_rows() -> None:
    convolution = m2.LongConvolution(SMALL, rngs=nnx.Rngs(0))
    for half, full in zip(convolution.filters(9, jnp.bfloat16), convolution.filters(9, jnp.float32), strict=True):
        np.testing.assert_array_equal(half, full)


def test_filters_are_computed_once_for_all_rows() -> None:
    convolution = m2.LongConvolution(SMALL, rngs=nnx.Rngs(0))
    program = jax.make_jaxpr(convolution)(jnp.ones((13, 9, 24)))
    sines = [equation for equation in program.eqns if equation.primitive.name == "sin"]
    assert len(sines) == 6 and all(equation.outvars[0].aval.shape == (9, 11) for equation in sines)


def test_filters_fade_to_a_hundredth_within_a_share_of_the_positions() -> None:
    fading = m2.fading(101, 24, 101, jnp.float32)
    np.testing.assert_allclose(fading[0], 1.0)
    np.testing.assert_allclose(fading[30, -1], 0.01, rtol=1e-5)
    np.testing.assert_allclose(fading[100, 0], 0.01 ** (1 / 1.5), rtol=1e-5)


def test_positions_start_as_the_published_features() -> None:
    z = m2.positional_features(16, 5)
    t = np.arange(16)
    np.testing.assert_allclose(z[:, 0], t / 15, atol=1e-6)
    np.testing.assert_allclose(z[:, 2], np.cos(2 * np.pi * t / 16), atol=1e-5)
    np.testing.assert_allclose(z[:, 3], -np.sin(2 * np.pi * t / 16 * 1e-4), atol=1e-6)
    np.testing.assert_allclose(z[:, 4], -np.sin(2 * np.pi * t / 16), atol=1e-5)


# The feed-forward


def test_the_gate_reads_the_first_two_blocks_and_pairs_them_with_the_last_two() -> None:
    layer, a_D = block(), states()[0, 0]
    reached_FD = np.asarray(jax.jacobian(layer.gate)(a_D)).reshape(2, 16, 4, 6)  # halves of F × blocks of D
    reached = np.abs(reached_FD).max(axis=(1, 3)) > 0
    np.testing.assert_array_equal(reached, [[True, False, True, False], [False, True, False, True]])
    products = m2.block_products(a_D, layer.gated_GFD[...])
    for g, product in enumerate(products):
        np.testing.assert_allclose(product, layer.gated_GFD[g] @ a_D[6 * g : 6 * g + 6], atol=1e-6)


# Counts of operations


def test_operations_are_projections_blocks_and_convolutions() -> None:
    config = sized("m2_80M")
    D, F, T, P = 768, 3072, 128, 20
    layer = 2 * 3 * D * D * T + 2 * D * api.flops(T)
    token = 2 * D * D + 2 * (2 * F * D + F * D) // 4
    assert m2.forward_flops(config, T, P) == 12 * layer + (11 * T + P) * token
