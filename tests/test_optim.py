"""The optimizer's mask and the shapes of the schedules."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxbert import optim
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
    optimizer = optim.make_optimizer(settings)
    parameters = {"up_DF": jnp.full((1, 1), weight)}
    update, _ = optimizer.update({"up_DF": jnp.full((1, 1), gradient)}, optimizer.init(parameters), parameters)
    return float(update["up_DF"][0, 0])


def test_the_first_step_is_the_sign_of_the_gradient_plus_decay() -> None:
    settings = Optimizer(beta1=0.9, beta2=0.99, epsilon=0.0, weight_decay=0.1)
    assert one_update(settings, -3.0, 2.0) == pytest.approx(-1.0 + 0.1 * 2.0)


def test_without_bias_correction_the_first_step_is_berts() -> None:
    settings = Optimizer(beta1=0.9, beta2=0.999, epsilon=1e-6, weight_decay=0.0, bias_correction=False)
    assert one_update(settings, 2.0, 1.0) == pytest.approx(0.2 / (math.sqrt(0.001 * 4) + 1e-6))


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


def test_a_warm_up_longer_than_the_run_is_refused() -> None:
    with pytest.raises(BadInput, match="schedule.warmup: 11"):
        optim.make_schedule(Schedule(warmup=11), 1.0, 10)
