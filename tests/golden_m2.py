"""M2-BERT as a golden file describes it: sizes from the file's config, weights under the published names."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from jaxbert.convert import m2 as convert
from jaxbert.convert.key_map import from_torch
from jaxbert.models import m2
from jaxbert.models.heads import MaskedLM
from tests import published

PREFIXES = ("m2_bert_",)


def outputs(data: Mapping[str, np.ndarray], given: dict[str, Any], dtype: str, mask_mode: str) -> dict[str, jax.Array]:
    """Every output of the file, under its names."""
    full = given["full_config"]
    config, vocab_size = dataclasses.replace(convert.from_hf_config(full), mask_mode=mask_mode), full["vocab_size"]
    abstract = jax.eval_shape(lambda: MaskedLM(m2.Encoder, config, vocab_size, jax.random.key(0)))
    state = published.parameters(data, dtype)
    shapes = convert.torch_shapes(config)
    model = from_torch(state, convert.masked_lm(config), abstract, shapes, vocab_size=vocab_size)
    return published.outputs_of(model, data, vocab_size)
