"""gMLP and aMLP: published sizes, rows longer and shorter than the weights, initial values, counted products."""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxbert.errors import BadInput
from jaxbert.models import gmlp, layers
from jaxbert.models.heads import MaskedLM
from jaxbert.objectives.mlm import cross_entropy
from jaxbert.ops.toeplitz import api
from jaxbert.step import count_parameters
from tests.models.encoders import SMALL, VOCABULARY
from tests.models.test_encoders import padded, random_model, states, texts

KEY = jax.random.key(0)


def parameters(name: str, **fields: Any) -> int:
    config = dataclasses.replace(gmlp.Config(name=name, **gmlp.SIZES[name]), **fields)
    return count_parameters(jax.eval_shape(lambda: MaskedLM(gmlp.Encoder, config, 32_000, KEY)), 32_000)


# Millions, as published, with 32,000 words; the head is the word table.
PUBLISHED = {
    "gmlp_base": 130,
    "amlp_base": 109,
    "gmlp_large": 365,
    "amlp_large": 316,
    "gmlp_xlarge": 941,
    "gmlp_L18": 59,
    "gmlp_L36": 102,
    "gmlp_L72": 187,
    "gmlp_L144": 357,
}


def test_every_published_size_has_its_count_here() -> None:
    assert set(PUBLISHED) == set(gmlp.SIZES)


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameter_counts_round_to_the_published_millions(name: str) -> None:
    assert round(parameters(name) / 1e6) == PUBLISHED[name]


def test_a_dense_spatial_product_has_n_squared_weights_a_layer() -> None:
    n, layers_ = 512, 48
    assert parameters("gmlp_base", spatial="dense") - parameters("gmlp_base") == layers_ * (n * n - (2 * n - 1))


def test_an_untied_head_has_a_table_and_a_bias() -> None:
    assert parameters("gmlp_base", tied_head=False) - parameters("gmlp_base") == 32_000 * (512 + 1)


def test_a_feed_forward_width_without_two_halves_is_refused() -> None:
    with pytest.raises(BadInput, match=r"model\.feed_forward_size: 41 is odd"):
        gmlp.Encoder(dataclasses.replace(SMALL["gmlp"], feed_forward_size=41), 100, rngs=nnx.Rngs(KEY))


def with_spatial(model: MaskedLM, config: gmlp.Config, **weights: jax.Array) -> MaskedLM:
    """The same parameters but for the spatial weights, in a model of `config`."""
    values = iter(jax.tree.leaves(model))
    tree = jax.eval_shape(lambda: MaskedLM(gmlp.Encoder, config, VOCABULARY, KEY))

    def leaf(path: tuple[Any, ...], _: Any) -> jax.Array:
        value = next(values)
        name = jax.tree_util.keystr(path, simple=True, separator="/").removesuffix("/value").rpartition("/")[2]
        return weights[name] if name in weights and "spatial" in jax.tree_util.keystr(path) else value

    return jax.tree_util.tree_map_with_path(leaf, tree)


@pytest.mark.parametrize("name", ["gmlp", "amlp"])
def test_past_n_a_toeplitz_product_has_weights_of_zero_and_repeats_its_last_bias(name: str) -> None:
    with jax.enable_x64(True):
        short = random_model(name, "float64", max_positions=9)
        spatial = short.encoder.blocks.spatial
        wide_LO = jnp.pad(spatial.weights_O[...], ((0, 0), (14, 14)))
        wide_LT = jnp.pad(spatial.bias_T[...], ((0, 0), (0, 14)), mode="edge")
        config = dataclasses.replace(SMALL[name], max_positions=23)
        long = with_spatial(short, config, weights_O=wide_LO, bias_T=wide_LT)
        batch = padded(texts(23, 17), 23)
        np.testing.assert_allclose(states(short, batch), states(long, batch), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype, tolerance", [("float64", 1e-11), ("float32", 2e-5)])
def test_long_documents_give_padded_what_they_give_alone(
    dtype: str, tolerance: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As long documents: Fourier transforms compute the spatial product, of another size for each length."""
    monkeypatch.setattr(api, "FFT_FROM", {jax.default_backend(): 64})
    documents = texts(131, 117)
    assert {api.choose(length, one_document=True) for length in (200, 131, 117)} == {"fft"}
    with jax.enable_x64(dtype == "float64"):
        model = random_model("amlp", dtype)
        alone = [states(model, padded([document], len(document)))[0] for document in documents]
        rows, others = (states(model, padded(documents, 200, padding_id)) for padding_id in (0, VOCABULARY - 1))
    scale = max(np.abs(x).max() for x in alone)
    for row, other, x in zip(rows, others, alone, strict=True):
        assert np.abs(row[: len(x)] - x).max() <= tolerance * scale
        np.testing.assert_array_equal(row[: len(x)], other[: len(x)])


def test_rows_past_n_are_refused_where_the_product_is_dense() -> None:
    model = random_model("gmlp_dense", max_positions=16)
    assert np.isfinite(states(model, padded(texts(16), 16))).all()
    with pytest.raises(BadInput, match=r"data\.row_length: 17 is over model\.max_positions 16.*spatial=toeplitz"):
        states(model, padded(texts(12), 17))


def test_a_dense_product_of_shorter_rows_uses_the_first_weights_and_biases() -> None:
    model = random_model("gmlp_dense")
    spatial = model.encoder.blocks.spatial
    config = dataclasses.replace(SMALL["gmlp_dense"], max_positions=12)
    cut = with_spatial(model, config, weights_TS=spatial.weights_TS[:, :12, :12], bias_T=spatial.bias_T[:, :12])
    batch = padded(texts(12, 5), 12)
    np.testing.assert_array_equal(states(model, batch), states(cut, batch))


def test_reference_mode_reads_padding_and_exact_mode_does_not() -> None:
    for name in ("gmlp", "gmlp_dense", "amlp"):
        one, other = (padded(texts(11, 7), 23, padding_id) for padding_id in (0, VOCABULARY - 1))
        real_BT = one["segment_ids_BT"] > 0
        for mode, reads in (("reference", True), ("exact", False)):
            model = random_model(name, mask_mode=mode)
            changed = (states(model, one) != states(model, other))[real_BT].any()
            assert changed == reads, (name, mode)


@pytest.mark.parametrize("spatial", ["toeplitz", "dense"])
def test_a_block_starts_as_a_plain_feed_forward(spatial: str) -> None:
    config = dataclasses.replace(SMALL["gmlp"], spatial=spatial)
    block = gmlp.Block(config, rngs=nnx.Rngs(KEY))
    x_BTD = jax.random.normal(KEY, (2, 23, config.hidden_size))
    hidden = layers.gelu(layers.project(block.norm(x_BTD), block.value_DF, block.value_bias_F))
    plain = layers.project(hidden, block.output_FD, block.output_bias_D)
    added = block(x_BTD, padded(texts(23, 23), 23)) - x_BTD
    assert 0 < np.abs(added - plain).max() < 1e-3 * np.abs(plain).max()


def test_a_fresh_model_of_the_published_depth_knows_nothing() -> None:
    config = gmlp.Config("gmlp_xlarge", 144, 48, feed_forward_size=96, attention_size=0, max_positions=32)
    documents = texts(23, 23)
    logits = MaskedLM(gmlp.Encoder, config, VOCABULARY, KEY)(
        padded(documents, 23), jnp.tile(jnp.arange(23), (2, 1)), dtype=jnp.float32
    )
    loss = float(cross_entropy(logits, jnp.asarray(np.stack(documents)))[0].mean())
    assert abs(loss - math.log(VOCABULARY)) < 0.25


def products(jaxpr: Any) -> float:
    """Floating-point operations of every product in a program, bodies of loops times their trips."""
    total = 0.0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            shape = equation.invars[0].aval.shape
            total += 2.0 * equation.outvars[0].aval.size * math.prod(shape[axis] for axis in contracted)
        trips = equation.params.get("length", 1) if equation.primitive.name == "scan" else 1
        for value in equation.params.values():
            for inner in value if isinstance(value, (list, tuple)) else (value,):
                inner = getattr(inner, "jaxpr", inner)
                if hasattr(inner, "eqns"):
                    total += trips * products(inner)
    return total


@pytest.mark.parametrize("name", ["gmlp", "gmlp_dense", "amlp"])
def test_counted_products_are_those_of_the_program(name: str) -> None:
    config, batch, positions = SMALL[name], padded(texts(23, 23), 23), jnp.tile(jnp.arange(5), (2, 1))
    encoder = jax.eval_shape(lambda: gmlp.Encoder(config, VOCABULARY, rngs=nnx.Rngs(KEY)))
    program = jax.make_jaxpr(lambda encoder: encoder(batch, positions_BP=positions)[0])(encoder)
    assert products(program.jaxpr) == 2 * gmlp.forward_flops(config, 23, 5)
