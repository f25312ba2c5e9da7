"""Optimizers against their papers' equations, written out in numpy; the decay's mask; the shapes of the schedules."""

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxbert import optim, recipe_files
from jaxbert.config import Optimizer, Schedule
from jaxbert.errors import BadInput
from jaxbert.models import bert
from jaxbert.models.heads import MaskedLM
from jaxbert.sharding import parameter_name


def test_decay_spares_biases_and_norms_and_nothing_else() -> None:
    config = bert.Config(name="bert_tiny", **bert.SIZES["bert_tiny"])
    model = jax.eval_shape(lambda key: MaskedLM(bert.Bert, config, 300, key), jax.random.key(0))
    mask, _ = jax.tree_util.tree_flatten_with_path(optim.decay_mask(model))
    decayed = {parameter_name(path) for path, value in mask if value}
    spared = {parameter_name(path) for path, value in mask if not value}
    assert decayed == {
        *("word_VD", "position_TD", "type_GD", "query_DNH", "key_DNH", "value_DNH", "output_NHD"),
        *("up_DF", "down_FD", "transform_DE"),
    }
    assert spared == {
        *("scale_D", "bias_D", "query_bias_NH", "key_bias_NH", "value_bias_NH", "output_bias_D"),
        *("up_bias_F", "down_bias_D", "transform_bias_E", "bias_V"),
    }


def one_update(settings: Optimizer, gradient: float, weight: float) -> float:
    optimizer = optim.make_optimizer(settings, 300)
    parameters = {"up_DF": jnp.full((1, 1), weight)}
    update, _ = optimizer.update({"up_DF": jnp.full((1, 1), gradient)}, optimizer.init(parameters), parameters)
    return float(update["up_DF"][0, 0])


def test_the_first_step_is_the_sign_of_the_gradient_plus_decay() -> None:
    settings = Optimizer(beta1=0.9, beta2=0.99, epsilon=0.0, weight_decay=0.1)
    assert one_update(settings, -3.0, 2.0) == pytest.approx(-1.0 + 0.1 * 2.0)


def test_without_bias_correction_the_first_step_is_berts() -> None:
    settings = Optimizer(beta1=0.9, beta2=0.999, epsilon=1e-6, weight_decay=0.0, bias_correction=False)
    assert one_update(settings, 2.0, 1.0) == pytest.approx(0.2 / (math.sqrt(0.001 * 4) + 1e-6))


# --- the equations of the papers, a layer's tensor x at a time, without padded rows ---

V, PADDED, LAYERS, STEPS = 11, 16, 3, 4
RATES = [0.1, 0.4, 0.3, 0.2]
PUBLISHED = Optimizer(learning_rate=0.4, beta1=0.9, beta2=0.98, epsilon=1e-3, weight_decay=0.3)


def adam(gradients: list[np.ndarray], settings: Optimizer) -> tuple[np.ndarray, np.ndarray]:
    """m̂ / (√v̂ + ε) and v̂ (Kingma & Ba 2015, algorithm 1) after the last of these gradients."""
    m = v = np.zeros_like(gradients[0])
    for g in gradients:
        m = settings.beta1 * m + (1 - settings.beta1) * g
        v = settings.beta2 * v + (1 - settings.beta2) * g**2
    if settings.bias_correction:
        m, v = m / (1 - settings.beta1 ** len(gradients)), v / (1 - settings.beta2 ** len(gradients))
    return m / (np.sqrt(v) + settings.epsilon), v


def adamw(x: np.ndarray, gradients: list[np.ndarray], rate: float, decay: float, settings: Optimizer) -> np.ndarray:
    """arXiv:1711.05101, algorithm 2, lines 7 to 12, as PyTorch has it: the decay times the rate."""
    return x - rate * (adam(gradients, settings)[0] + decay * x)


def lamb(x: np.ndarray, gradients: list[np.ndarray], rate: float, decay: float, settings: Optimizer) -> np.ndarray:
    """arXiv:1904.00962, algorithm 2, φ(z) = z; google-research/albert, lamb_optimizer.py: no ratio without decay."""
    direction = adam(gradients, settings)[0] + decay * x
    ratio = np.linalg.norm(x) / np.linalg.norm(direction) if decay and np.linalg.norm(x) else 1.0
    return x - rate * ratio * direction


def stable(x: np.ndarray, gradients: list[np.ndarray], rate: float, decay: float, settings: Optimizer) -> np.ndarray:
    """arXiv:2304.13013, algorithm 2: η = α / max(1, RMS), x − η λ x − η u / (√v + ε)."""
    u, v = adam(gradients, settings)
    rms = np.sqrt(np.mean(gradients[-1] ** 2 / np.maximum(v, settings.epsilon**2)))
    rate = rate / max(1.0, rms)
    return x - rate * decay * x - rate * u


def decoupled(x: np.ndarray, gradients: list[np.ndarray], rate: float, decay: float, settings: Optimizer) -> np.ndarray:
    """composer/optim/decoupled_weight_decay.py: x ← (1 − λ η / η₀) x, then Adam."""
    return x * (1 - decay * rate / settings.learning_rate) - rate * adam(gradients, settings)[0]


def stable_decoupled(
    x: np.ndarray, gradients: list[np.ndarray], rate: float, decay: float, settings: Optimizer
) -> np.ndarray:
    """optimi/stableadamw.py with decouple_lr, ModernBERT's."""
    return stable(x, gradients, rate, decay / settings.learning_rate, settings)


def tree(random: np.random.Generator, scale: float) -> dict[str, np.ndarray]:
    """A table with padded rows, layers on a leading axis (each of a size of its own), a bias, a zero matrix."""
    word_VD = scale * random.normal(size=(PADDED, 4))
    word_VD[V:] = 0
    sizes = np.array([1.0, 5.0, 0.1])
    return {
        "word_VD": word_VD,
        "up_DF": scale * random.normal(size=(LAYERS, 4, 6)) * sizes[:, None, None],
        "up_bias_F": scale * random.normal(size=(LAYERS, 6)) * sizes[:, None],
        "head_DE": scale * random.normal(size=(4, 5)),
        "start_DE": scale * random.normal(size=(4, 5)),
    }


def ours(settings: Optimizer, start: dict, gradients: list[dict]) -> dict[str, np.ndarray]:
    optimizer = optim.make_optimizer(settings, V)

    def step(carry: tuple, given: tuple) -> tuple:
        (parameters, state), (rate, gradient) = carry, given
        direction, state = optimizer.update(gradient, state, parameters)
        return (jax.tree.map(lambda p, d: p - rate * d, parameters, direction), state), None

    @jax.jit
    def run(parameters: dict, gradients: dict) -> dict:
        return jax.lax.scan(step, (parameters, optimizer.init(parameters)), (jnp.array(RATES), gradients))[0][0]

    with jax.enable_x64(True):
        return jax.tree.map(np.array, run(start, jax.tree.map(lambda *each: np.stack(each), *gradients)))


def theirs(update: Callable, settings: Optimizer, start: dict, gradients: list[dict]) -> dict[str, np.ndarray]:
    """`update` on every tensor by itself: padded rows cut off, layers apart."""
    result = {}
    for name, value in start.items():
        stacked = len(value.shape) > len(name.rpartition("_")[2])
        decay = settings.weight_decay if settings.decays == "all" or "bias" not in name else 0.0
        tensors = []
        for layer in range(LAYERS if stacked else 1):
            cut = [
                a[layer] if stacked else a[: V if "V" in name else None] for a in (value, *(g[name] for g in gradients))
            ]
            x, of_layer = cut[0], cut[1:]
            for step, rate in enumerate(RATES):
                x = update(x, of_layer[: step + 1], rate, decay, settings)
            tensors.append(x)
        result[name] = np.stack(tensors) if stacked else tensors[0]
    return result


@pytest.mark.parametrize(
    ("update", "fields"),
    [
        (adamw, {}),
        (adamw, {"bias_correction": False}),
        (adamw, {"decays": "all"}),
        (decoupled, {"decay_follows": "schedule"}),
        (decoupled, {"decay_follows": "schedule", "decays": "all"}),
        (lamb, {"name": "lamb"}),
        (lamb, {"name": "lamb", "bias_correction": False}),
        (stable, {"name": "stable_adamw"}),
        (stable_decoupled, {"name": "stable_adamw", "decay_follows": "schedule"}),
    ],
)
def test_an_optimizer_is_its_papers_equation_for_each_layers_tensor(update: Callable, fields: dict) -> None:
    settings, random = dataclasses.replace(PUBLISHED, **fields), np.random.default_rng(0)
    start = {**tree(random, 1.0), "start_DE": np.zeros((4, 5))}
    gradients = [tree(random, scale) for scale in (1.0, 3.0, 0.1, 8.0)]  # the second and the last are spikes
    found, expected = ours(settings, start, gradients), theirs(update, settings, start, gradients)
    assert np.all(found["word_VD"][V:] == 0)
    found["word_VD"] = found["word_VD"][:V]
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-12, atol=1e-14, err_msg=name)


def test_stable_adamw_without_the_correction_of_its_paper_is_refused(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.py"
    recipe.write_text("from jaxbert.config import *\ndef get_config(): return Config(train=Train(steps=1))")
    with pytest.raises(BadInput, match=r"optimizer\.bias_correction"):
        recipe_files.load(
            str(recipe), ["--config.optimizer.name=stable_adamw", "--config.optimizer.bias_correction=false"]
        )


def rates(schedule: Schedule, steps: int = 100) -> np.ndarray:
    rate = optim.make_schedule(schedule, 2.0, steps)
    return np.array([rate(step) for step in range(steps + 1)])


def test_warm_up_rises_evenly_to_the_peak_and_never_starts_at_zero() -> None:
    found = rates(Schedule(name="constant", warmup=4))
    np.testing.assert_allclose(found[:6], [0.5, 1.0, 1.5, 2.0, 2.0, 2.0])


def test_linear_ends_at_the_final_share_after_the_last_step() -> None:
    found = rates(Schedule(name="linear", warmup=0.1, final=0.25))
    assert found[10] == 2.0
    np.testing.assert_allclose(found[100], 0.5, rtol=1e-6)
    np.testing.assert_allclose(np.diff(found[10:]), -1.5 / 90, rtol=1e-4)


def test_cosine_is_half_way_in_the_middle() -> None:
    found = rates(Schedule(name="cosine", warmup=0.0))
    np.testing.assert_allclose(found[[0, 50, 100]], [2.0, 1.0, 0.0], atol=1e-6)


def test_wsd_before_its_decay_does_not_depend_on_the_length_of_the_run() -> None:
    short, long = (rates(Schedule(name="wsd", warmup=5, decay=20), steps) for steps in (100, 200))
    np.testing.assert_array_equal(short[:81], long[:81])
    np.testing.assert_allclose(short[[80, 90, 100]], [2.0, 1.0, 0.0], atol=1e-6)


def test_one_minus_the_root_falls_fast_first_and_to_the_final_share() -> None:
    found = rates(Schedule(name="wsd", warmup=5, decay=20, decay_shape="1-sqrt", final=0.1))
    np.testing.assert_allclose(found[[80, 85, 100]], [2.0, 2.0 * (1.0 - 0.9 * 0.5), 0.2], rtol=1e-6)


def test_a_warm_up_longer_than_the_run_is_refused() -> None:
    with pytest.raises(BadInput, match="schedule.warmup: 11"):
        optim.make_schedule(Schedule(warmup=11), 1.0, 10)
