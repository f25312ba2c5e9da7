"""Optimizers of published encoders (AdamW, LAMB, StableAdamW) and learning-rate schedules."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxbert.config import Optimizer, Schedule
from jaxbert.errors import BadInput
from jaxbert.sharding import elements, is_stacked, parameter_name


def decay_mask(parameters: Any) -> Any:
    """True for leaves that weight decay applies to: all but biases and norm scales, told by name."""
    return jax.tree_util.tree_map_with_path(
        lambda path, _: not {"bias", "scale"} & set(parameter_name(path).split("_")), parameters
    )


class _Moments(NamedTuple):
    mu: Any
    nu: Any


def _adam_without_bias_correction(beta1: float, beta2: float, epsilon: float) -> optax.GradientTransformation:
    # google-research/bert optimization.py: m / (sqrt(v) + ε), never divided by 1 − βᵗ; optax always divides.
    def init(parameters: Any) -> _Moments:
        return _Moments(jax.tree.map(jnp.zeros_like, parameters), jax.tree.map(jnp.zeros_like, parameters))

    def update(gradients: Any, state: _Moments, parameters: Any = None) -> tuple[Any, _Moments]:
        mu = jax.tree.map(lambda m, g: beta1 * m + (1 - beta1) * g, state.mu, gradients)
        nu = jax.tree.map(lambda v, g: beta2 * v + (1 - beta2) * g * g, state.nu, gradients)
        return jax.tree.map(lambda m, v: m / (jnp.sqrt(v) + epsilon), mu, nu), _Moments(mu, nu)

    return optax.GradientTransformation(init, update)


def _by_layer(function: Callable[..., Any], *trees: Any) -> Any:
    """`function(path, *leaves)` on every parameter, layer by layer where layers are stacked on axis 0."""

    def one(path: tuple[Any, ...], *leaves: Any) -> Any:
        of_layer = functools.partial(function, path)
        return jax.vmap(of_layer)(*leaves) if is_stacked(path, leaves[0].shape) else of_layer(*leaves)

    return jax.tree_util.tree_map_with_path(one, *trees)


def _scale_by_trust_ratio(adapted: Any) -> optax.GradientTransformation:
    # φ(x) = x, and a ratio of 1 where either norm is 0, as in the published code. Padded rows are zero in both norms.
    ratio = optax.scale_by_trust_ratio()

    def update(directions: Any, state: Any, parameters: Any) -> tuple[Any, Any]:
        scaled = _by_layer(lambda _, d, p: ratio.update(d, optax.EmptyState(), p)[0], directions, parameters)
        return jax.tree.map(lambda a, s, d: s if a else d, adapted(parameters), scaled, directions), state

    return optax.GradientTransformation(lambda _: optax.EmptyState(), update)


def _clipping_updates(
    inner: optax.GradientTransformation, optimizer: Optimizer, vocab_size: int
) -> optax.GradientTransformation:
    """`inner`, whose first part is Adam, with the direction of each layer's tensor divided by max(1, RMS)."""

    def update(gradients: Any, state: Any, parameters: Any) -> tuple[Any, Any]:
        directions, state = inner.update(gradients, state, parameters)
        adam = state[0]
        nu_hat = optax.tree.bias_correction(adam.nu, optimizer.beta2, adam.count)

        def clip(path: tuple[Any, ...], direction: jax.Array, g: jax.Array, v: jax.Array) -> jax.Array:
            # The mean is over true entries: rows that pad the vocabulary have g = 0 and would thin it out.
            total = jnp.sum(jnp.square(g) / jnp.maximum(v, optimizer.epsilon**2))
            return direction / jnp.maximum(1.0, jnp.sqrt(total / elements(path, g.shape, vocab_size)))

        return _by_layer(clip, directions, gradients, nu_hat), state

    return optax.GradientTransformation(inner.init, update)


def make_optimizer(optimizer: Optimizer, vocab_size: int) -> optax.GradientTransformation:
    """The direction of a step, without learning rate, sign or clipping of the gradient: the caller subtracts
    `learning_rate × direction`.

    With d = m̂ / (√v̂ + ε) and decay λ, which is part of the direction ("decoupled"):
    - adamw: d + λx (Loshchilov & Hutter 2019, arXiv:1711.05101, algorithm 2, with λ multiplied by the rate as in
      PyTorch). Without `bias_correction` m and v stand for m̂ and v̂: google-research/bert, optimization.py.
    - lamb: ‖x‖ / ‖d + λx‖ · (d + λx), a layer's tensor at a time (You et al. 2020, arXiv:1904.00962, algorithm 2).
      What has no decay has no ratio, as in google-research/albert (lamb_optimizer.py, optimization.py), which does not
      correct the bias, and in NVIDIA's apex. Both clip the gradient's norm at 1 before.
    - stable_adamw: (d + λx) / max(1, RMS), RMS² = mean(g² / max(v̂, ε²)) of a layer's tensor (Wortsman et al. 2023,
      arXiv:2304.13013, algorithm 2; ModernBERT's, which replaces clipping of the gradient).

    With `decay_follows` = "schedule" λ is weight_decay / peak rate, so that a step takes weight_decay × rate / peak
    ("fully decoupled": Composer's DecoupledAdamW, of MosaicBERT and M2-BERT, and ModernBERT). `decays` = "all" are
    biases and norms, too: Composer's default and fairseq's, so MosaicBERT's, M2-BERT's and RoBERTa's.

    `vocab_size`: true entries of the vocabulary, without the rows that pad its tables.
    """
    if optimizer.bias_correction:
        adam = optax.scale_by_adam(optimizer.beta1, optimizer.beta2, optimizer.epsilon)
    else:
        adam = _adam_without_bias_correction(optimizer.beta1, optimizer.beta2, optimizer.epsilon)
    decay = optimizer.weight_decay
    if optimizer.decay_follows == "schedule":
        decay /= optimizer.learning_rate or 1.0  # a rate of 0 moves nothing
    decayed = decay_mask if optimizer.decays == "weights" else lambda tree: jax.tree.map(lambda _: True, tree)
    adamw = optax.chain(adam, optax.add_decayed_weights(decay, mask=decayed))
    if optimizer.name == "lamb":
        return optax.chain(adamw, _scale_by_trust_ratio(decayed))
    if optimizer.name == "stable_adamw":
        return _clipping_updates(adamw, optimizer, vocab_size)
    return adamw


def make_schedule(schedule: Schedule, peak: float, steps: int) -> Callable[[Any], jax.Array]:
    """Step (from 0) → learning rate; the first step of a warm-up is peak / warm-up, the last of the run is not 0.

    `warmup` and `decay` below 1 are shares of `steps`, else steps. Raises BadInput if they exceed the run.
    """

    def count(value: float) -> int:
        return round(value * steps) if value < 1 else round(value)

    warmup, decay = count(schedule.warmup), count(schedule.decay) if schedule.name == "wsd" else 0
    if warmup + decay > max(steps, 1):
        raise BadInput(
            f"schedule.warmup: {warmup} steps and schedule.decay {decay} are more than the run's {steps}; shorten them"
        )
    rest, final = max(1, steps - warmup), schedule.final

    def rate(step: Any) -> jax.Array:
        step = jnp.asarray(step, float)  # float32, and float64 where that is enabled
        done = jnp.clip((step - warmup) / rest, 0.0, 1.0)
        if schedule.name == "linear":
            shape = 1.0 - (1.0 - final) * done
        elif schedule.name == "cosine":
            shape = final + (1.0 - final) * 0.5 * (1.0 + jnp.cos(jnp.pi * done))
        elif schedule.name == "wsd":  # warm-up, stable, decay (Hu et al. 2024, §4): the end alone depends on `steps`
            share = jnp.clip((step - (steps - decay)) / max(1, decay), 0.0, 1.0)
            if schedule.decay_shape == "1-sqrt":  # Hägele et al. 2024, arXiv:2405.18392
                share = jnp.sqrt(share)
            shape = 1.0 - (1.0 - final) * share
        else:
            shape = jnp.ones(())
        return peak * shape * jnp.minimum(1.0, (step + 1.0) / max(1, warmup))

    return rate
