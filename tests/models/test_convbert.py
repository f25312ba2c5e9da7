"""ConvBERT: published sizes, what it refuses, and convolutions that stop where a document ends."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxbert.errors import BadInput
from jaxbert.models import convbert
from jaxbert.models.heads import MaskedLM
from jaxbert.step import count_parameters
from tests.models.encoders import SMALL
from tests.models.test_encoders import padded, random_model, states, texts

KEY = jax.random.key(0)

# Parameters of transformers' ConvBertForMaskedLM with 30,522 tokens and 512 positions; of ConvBertModel, in millions.
PUBLISHED = {
    "convbert_small": (13_207_442, "13.14"),
    "convbert_medium_small": (17_555_946, "17.48"),
    "convbert_base": (106_303_170, "105.68"),
}


def sized(name: str, **fields) -> convbert.Config:
    return dataclasses.replace(convbert.Config(name=name, **convbert.SIZES[name]), **fields)


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameter_counts_are_the_published_ones(name: str) -> None:
    model = jax.eval_shape(lambda: MaskedLM(convbert.ConvBert, sized(name), 30_522, KEY))
    masked_lm, encoder = (count_parameters(part, 30_522) for part in (model, model.encoder))
    assert (masked_lm, f"{encoder / 1e6:.2f}") == PUBLISHED[name]


def test_every_published_size_has_a_name() -> None:
    assert set(convbert.SIZES) == set(PUBLISHED)


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"head_ratio": 3}, r"model\.head_ratio: 3; only 2 is supported"),
        ({"num_heads": 1}, r"model\.num_heads: 1 must be even and divide model\.hidden_size 256"),
        ({"num_heads": 6}, r"model\.num_heads: 6 must be even and divide model\.hidden_size 256"),
        ({"kernel_size": 8}, r"model\.kernel_size: 8 must be odd"),
        ({"groups": 3}, r"model\.groups: 3 must divide"),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_what_is_not_supported_is_refused_by_name(fields: dict, message: str) -> None:
    with pytest.raises(BadInput, match=message):
        jax.eval_shape(lambda: convbert.ConvBert(sized("convbert_small", **fields), 100, rngs=nnx.Rngs(KEY)))


def test_the_depthwise_kernel_starts_with_a_deviation_of_one_over_its_taps() -> None:
    block = convbert.Block(sized("convbert_small"), rngs=nnx.Rngs(KEY))
    truncated = 0.8796  # of a normal distribution cut at two deviations
    assert abs(float(jnp.std(block.depthwise_KD[...])) * 9 / truncated - 1) < 0.05
    assert abs(float(jnp.std(block.span_DNH[...])) / 0.02 / truncated - 1) < 0.05


# Convolutions


SEGMENTS = {"one": [1] * 7, "two": [1] * 4 + [2] * 9, "padded": [1] * 2 + [0] * 3, "single": [1, 2, 2, 3, 0]}
ROWS = pytest.mark.parametrize("ids", SEGMENTS.values(), ids=SEGMENTS)


def arrays(ids: list[int], kernel_size: int = 9) -> tuple[np.ndarray, ...]:
    """x (B, T, N, H), taps (B, T, N, K), a depthwise kernel (K, N·H), the cotangent of the result, segment ids."""
    random, (B, T, N, H) = np.random.default_rng(0), (2, len(ids), 3, 4)
    shapes = (B, T, N, H), (B, T, N, kernel_size), (kernel_size, N * H), (B, T, N, H)
    return *(random.normal(size=shape) for shape in shapes), np.tile(np.array(ids, np.int32), (B, 1))


def plainly(x: np.ndarray, kernel: np.ndarray, segment_ids: np.ndarray) -> np.ndarray:
    """Σ_j kernel[b, t, j] x[b, t + j − K//2], tap by tap, over the tokens of the same segment."""
    y, K = np.zeros_like(x), kernel.shape[2]
    for b, t, j in np.ndindex(*x.shape[:2], K):
        s = t + j - K // 2
        if 0 <= s < x.shape[1] and segment_ids[b, s] == segment_ids[b, t]:
            y[b, t] += kernel[b, t, j] * x[b, s]
    return y


@ROWS
@pytest.mark.parametrize("kernel_size", [1, 3, 9])
def test_a_depthwise_convolution_sums_the_taps_of_its_own_segment(ids: list[int], kernel_size: int) -> None:
    x, _, kernel, _, segment_ids = arrays(ids, kernel_size)
    x = x.reshape(*x.shape[:2], -1)
    with jax.enable_x64(True):
        visible = convbert.visible_taps(jnp.asarray(segment_ids), kernel_size, reads_padding=False)
        y = convbert.depthwise(jnp.asarray(x), jnp.asarray(kernel), visible)
    everywhere = np.broadcast_to(kernel, (*x.shape[:2], *kernel.shape))
    np.testing.assert_allclose(y, plainly(x, everywhere, segment_ids), atol=1e-12)


@ROWS
@pytest.mark.parametrize("kernel_size", [1, 3, 9])
def test_a_dynamic_convolution_sums_the_taps_of_its_own_segment(ids: list[int], kernel_size: int) -> None:
    x, taps, _, _, segment_ids = arrays(ids, kernel_size)
    with jax.enable_x64(True):
        visible = convbert.visible_taps(jnp.asarray(segment_ids), kernel_size, reads_padding=False)
        y = convbert.dynamic_convolution(jnp.asarray(x), jnp.asarray(taps), visible)
    np.testing.assert_allclose(y, plainly(x, np.swapaxes(taps, 2, 3)[..., None], segment_ids), atol=1e-12)


BOTH = pytest.mark.parametrize("name", ["depthwise", "dynamic_convolution"])


@BOTH
@ROWS
def test_the_gradients_of_a_convolution_are_its_derivatives(ids: list[int], name: str) -> None:
    x, taps, kernel, g, segment_ids = arrays(ids, 5)
    step, random = 1e-3, np.random.default_rng(1)  # bilinear: differences are exact
    if name == "depthwise":
        x, taps, g = x.reshape(*x.shape[:2], -1), kernel, g.reshape(*x.shape[:2], -1)
    with jax.enable_x64(True):
        visible = convbert.visible_taps(jnp.asarray(segment_ids), 5, reads_padding=False)

        def value(x: jax.Array, kernel: jax.Array) -> jax.Array:
            return jnp.sum(getattr(convbert, name)(x, kernel, visible) * g)

        of_x, of_kernel = jax.grad(value, argnums=(0, 1))(jnp.asarray(x), jnp.asarray(taps))
        dx, dkernel = step * random.normal(size=x.shape), step * random.normal(size=taps.shape)
        np.testing.assert_allclose(np.vdot(of_x, dx), value(x + dx, taps) - value(x, taps), rtol=1e-8)
        np.testing.assert_allclose(np.vdot(of_kernel, dkernel), value(x, taps + dkernel) - value(x, taps), rtol=1e-8)


@BOTH
def test_sums_of_bfloat16_run_in_float32(name: str) -> None:
    x, taps, kernel, _, segment_ids = arrays([1] * 13)
    visible = convbert.visible_taps(jnp.asarray(segment_ids), 9, reads_padding=False)
    if name == "depthwise":
        x, taps = x.reshape(*x.shape[:2], -1), kernel
    half, taps = jnp.asarray(x, jnp.bfloat16), jnp.asarray(taps, jnp.float32)
    y, full = (getattr(convbert, name)(x, taps, visible) for x in (half, half.astype(jnp.float32)))
    assert y.dtype == jnp.bfloat16
    np.testing.assert_array_equal(np.asarray(y, np.float32), np.asarray(full.astype(jnp.bfloat16), np.float32))


# mask_mode


def test_reference_mode_reads_padding_as_the_published_code_does() -> None:
    model, documents = random_model("convbert", mask_mode="reference"), texts(7)
    one, other = (states(model, padded(documents, 23, padding_id))[0, :7] for padding_id in (0, 149))
    assert np.abs(one - other).max() > 1e-3


def test_without_padding_both_modes_are_equal() -> None:
    batch = padded(texts(23, 23), 23)
    exact, reference = (states(random_model("convbert", mask_mode=mode), batch) for mode in ("exact", "reference"))
    np.testing.assert_array_equal(exact, reference)


def test_the_small_forms_cover_groups_and_a_narrower_table() -> None:
    forms = [config for config in SMALL.values() if isinstance(config, convbert.Config)]
    assert {config.groups for config in forms} == {1, 2}
    assert {config.embedding_size == config.hidden_size for config in forms} == {True, False}
