"""AdamW and learning-rate schedules."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxbert.config import Optimizer, Schedule
from jaxbert.errors import BadInput
from jaxbert.sharding import parameter_name


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


def make_optimizer(optimizer: Optimizer) -> optax.GradientTransformation:
    """AdamW's direction (Loshchilov & Hutter 2019), without learning rate, sign or clipping: the update adds those.

    The caller subtracts `learning_rate × update`; decoupled decay is part of the update, as in PyTorch's AdamW.
    """
    if optimizer.bias_correction:
        adam = optax.scale_by_adam(optimizer.beta1, optimizer.beta2, optimizer.epsilon)
    else:
        adam = _adam_without_bias_correction(optimizer.beta1, optimizer.beta2, optimizer.epsilon)
    return optax.chain(adam, optax.add_decayed_weights(optimizer.weight_decay, mask=decay_mask))


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
            shape = 1.0 - (1.0 - final) * jnp.clip((step - (steps - decay)) / max(1, decay), 0.0, 1.0)
        else:
            shape = jnp.ones(())
        return peak * shape * jnp.minimum(1.0, (step + 1.0) / max(1, warmup))

    return rate
