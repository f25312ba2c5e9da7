"""HyperMixer: what is special to it; the protocol's properties are tested over tests/models/encoders.py."""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxbert.errors import BadInput
from jaxbert.models import bert, hypermixer
from jaxbert.models.heads import MaskedLM
from jaxbert.step import count_parameters
from tests.models.encoders import SMALL, VOCABULARY
from tests.models.test_encoders import packed, padded, random_model, states, texts

KEY = jax.random.key(0)


def sized(name: str, **fields: Any) -> hypermixer.Config:
    return dataclasses.replace(hypermixer.Config(name=name, **hypermixer.SIZES[name]), **fields)


def parameters(config: hypermixer.Config) -> int:
    return count_parameters(jax.eval_shape(lambda: hypermixer.HyperMixing(config, rngs=nnx.Rngs(0))), 0)


def test_the_published_module_has_its_published_number_of_parameters() -> None:
    one_head = sized("hypermixer_small", num_heads=1)  # D = 512, k = 2048
    assert parameters(one_head) == 2_622_464
    assert parameters(dataclasses.replace(one_head, tied=True)) == 1_310_720 + 1024
    assert parameters(dataclasses.replace(one_head, hypernet_bias=True)) == 2_622_464 + 2 * (512 + 2048)
    # 2 h ((D/h)² + (D/h)(k/h)) and a norm
    assert parameters(sized("hypermixer_tiny")) == 2 * 2 * (64 * 64 + 64 * 256) + 2 * 128


@pytest.mark.parametrize("size", ["tiny", "small", "base"])
def test_the_named_sizes_have_berts_depth_and_width_and_about_its_parameters(size: str) -> None:
    ours, theirs = hypermixer.SIZES[f"hypermixer_{size}"], bert.SIZES[f"bert_{size}"]
    assert all(ours[field] == theirs[field] for field in ("num_layers", "hidden_size", "feed_forward_size"))
    counts = []
    for family, name in ((hypermixer, f"hypermixer_{size}"), (bert, f"bert_{size}")):
        config = family.Config(name=name, **family.SIZES[name])
        counts.append(count_parameters(jax.eval_shape(lambda: MaskedLM(family.Encoder, config, 30_522, KEY)), 30_522))  # noqa: B023
    assert 0.95 < counts[0] / counts[1] < 1.08  # a block has 13 D² weights where BERT's has 12 D²


def test_heads_that_do_not_divide_both_widths_are_refused() -> None:
    with pytest.raises(BadInput, match="model.num_heads: 3 does not divide model.hidden_size 128"):
        hypermixer.HyperMixer(sized("hypermixer_tiny", num_heads=3), 100, rngs=nnx.Rngs(0))
    with pytest.raises(BadInput, match="model.num_heads: 4 does not divide model.hypernet_size 510"):
        hypermixer.HyperMixer(sized("hypermixer_tiny", num_heads=4, hypernet_size=510), 100, rngs=nnx.Rngs(0))


# The position tables


def table(name: str, batch: dict[str, Any], width: int = 6) -> np.ndarray:
    config = hypermixer.Config(hidden_size=width, position_table=name)
    return np.asarray(hypermixer.sinusoids(config, batch, jnp.float32))


def test_the_standard_table_is_that_of_the_transformer() -> None:
    found = table("standard", padded(texts(9), 9))[0]
    for place in range(9):
        for pair in range(3):
            angle = place / 10_000 ** (2 * pair / 6)
            np.testing.assert_allclose(found[place, 2 * pair : 2 * pair + 2], [math.sin(angle), math.cos(angle)], 1e-6)


def test_the_idiap_table_counts_from_one_and_every_channel_has_its_own_frequency() -> None:
    found = table("idiap", padded(texts(9), 9))[0]
    for place in range(9):
        for channel in range(6):
            angle = (place + 1) / 10_000 ** (2 * channel / 6)
            wanted = math.cos(angle) if channel % 2 else math.sin(angle)
            assert abs(found[place, channel] - wanted) < 1e-6


@pytest.mark.parametrize("name", ["standard", "idiap"])
def test_positions_restart_in_each_document(name: str) -> None:
    alone, row = table(name, padded(texts(11), 11)), table(name, packed(texts(7, 11), 23))
    np.testing.assert_array_equal(row[0, 7:18], alone[0])


def test_the_two_tables_and_tying_give_different_models() -> None:
    batch = padded(texts(7, 11), 23)
    outputs = [states(random_model("hypermixer", position_table=name), batch) for name in ("idiap", "standard")]
    assert np.abs(outputs[0] - outputs[1]).max() > 0.1
    tied = random_model("hypermixer_tied")
    assert not hasattr(tied.encoder.blocks.mixing, "second") and np.isfinite(states(tied, batch)).all()


def test_both_mask_modes_compute_the_same() -> None:
    for rows in (padded(texts(7, 11), 23), packed(texts(7, 11), 23)):
        exact, reference = (states(random_model("hypermixer", mask_mode=mode), rows) for mode in ("exact", "reference"))
        np.testing.assert_array_equal(exact, reference)


def test_rows_of_one_document_give_the_same_with_and_without_the_promise() -> None:
    with jax.enable_x64(True):
        model, batch = random_model("hypermixer", "float64"), padded(texts(7, 11), 23)
        promised = states(model, batch)
        batch.pop("length_B")
        real = batch["segment_ids_BT"] > 0
        np.testing.assert_allclose(states(model, batch)[real], promised[real], rtol=1e-11, atol=1e-11)


# The initial scale


def published_draw(config: hypermixer.Config, module: hypermixer.HyperMixing) -> hypermixer.HyperMixing:
    """As torch's xavier_uniform_ draws a stack (h, out, in): fans out · in and h · in."""
    kernels = [k for g in (module.first, module.second) for k in (g.hidden_NHH, g.row_NFH)]
    for key, kernel in zip(jax.random.split(KEY, 4), kernels, strict=True):
        heads, outputs, inputs = kernel.shape
        bound = math.sqrt(2) * math.sqrt(6 / (inputs * outputs + inputs * heads))
        kernel[...] = jax.random.uniform(key, kernel.shape, minval=-bound, maxval=bound)
    return module


def module_input(length: int, width: int) -> tuple[jax.Array, dict[str, Any]]:
    """Rows as a norm leaves them: every channel has variance 1."""
    return jax.random.normal(KEY, (2, length, width)), padded(texts(length, length), length)


@pytest.mark.parametrize("name", ["standard", "idiap"])
@pytest.mark.parametrize("length", [1, 128, 512])
def test_what_a_fresh_module_mixes_is_far_above_its_norms_epsilon(name: str, length: int) -> None:
    config = sized("hypermixer_small", position_table=name)
    module = hypermixer.HyperMixing(config, rngs=nnx.Rngs(0))
    x_BTD, batch = module_input(length, 512)
    batch["positions_BTD"] = hypermixer.sinusoids(config, batch, jnp.float32)
    y_BTD = np.asarray(jax.jit(lambda module: module(x_BTD, batch))(module))
    assert abs(y_BTD.std() - 1.0) < 1e-3  # the norm's output: ε takes nothing from it
    assert np.abs(y_BTD).max() < 30


def test_the_published_draw_is_the_one_that_vanishes() -> None:
    config = sized("hypermixer_small", num_heads=1)
    module = published_draw(config, hypermixer.HyperMixing(config, rngs=nnx.Rngs(0)))
    assert abs(float(jnp.std(module.first.hidden_NHH[...])) - 0.0039) < 1e-4  # the sheet's numbers
    assert abs(float(jnp.std(module.first.row_NFH[...])) - 0.0020) < 1e-4
    x_BTD, batch = module_input(128, 512)
    batch["positions_BTD"] = hypermixer.sinusoids(config, batch, jnp.float32)
    assert np.asarray(module(x_BTD, batch)).std() < 0.6  # 0.47, of a norm whose output has 1


@pytest.mark.parametrize("name", ["standard", "idiap"])
def test_activations_neither_vanish_nor_explode_over_twelve_layers(name: str) -> None:
    config = sized("hypermixer_tiny", num_layers=12, position_table=name)
    model = jax.jit(lambda key: MaskedLM(hypermixer.HyperMixer, config, VOCABULARY, key))(KEY)
    run = jax.jit(lambda m, batch: m.encoder(batch, collect=("hidden_states",)))
    for length in (1, 128, 512):
        _, extras = run(model, padded(texts(length), length))
        x_LTD = np.asarray(extras["hidden_states"])[:, 0]
        scale_L = np.sqrt((x_LTD**2).mean((1, 2)))
        assert abs(scale_L[0] - 1.0) < 0.01 and scale_L.min() > 0.3 and scale_L.max() < 6.0, scale_L
        spread_L = np.sqrt(x_LTD.var(1).mean(1)) / scale_L  # between tokens: they must not all become one vector
        assert length == 1 or spread_L.min() > 0.5, spread_L


def test_every_block_of_a_fresh_encoder_gets_a_gradient_of_one_order() -> None:
    config = sized("hypermixer_tiny", num_layers=12)
    model = jax.jit(lambda key: MaskedLM(hypermixer.HyperMixer, config, VOCABULARY, key))(KEY)
    batch = padded(texts(128, 128), 128)
    slope = jax.jit(jax.grad(lambda m: jnp.mean(m(batch, jnp.tile(jnp.arange(0, 128, 7), (2, 1)))[..., 3])))(model)
    for kernel in (slope.encoder.blocks.mixing.first.row_NFH, slope.encoder.blocks.up_DF):
        norms = np.sqrt((np.asarray(kernel[...]) ** 2).sum((-1, -2)).reshape(12, -1).sum(1))
        assert norms.min() > norms.max() / 30, norms


def test_the_small_table_has_both_forms() -> None:
    forms = [SMALL["hypermixer"], SMALL["hypermixer_tied"]]
    assert {f.tied for f in forms} == {f.hypernet_bias for f in forms} == {True, False}
    assert {f.position_table for f in forms} == {"idiap", "standard"}
