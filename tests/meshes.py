"""Losses of one recipe on several meshes of eight CPU devices: python -m tests.meshes CASE DTYPE MESHES, MESHES as
[[data, fsdp, tensor], …]. Prints a JSON list a line. A process of its own, because devices are counted when jax starts.
"""

import dataclasses
import json
import sys
from typing import Any

import jax

if __name__ == "__main__":
    jax.config.update("jax_num_cpu_devices", 8)
    jax.config.update("jax_enable_x64", sys.argv[2] == "float64")

import numpy as np

from jaxbert import config, sharding, step
from jaxbert.data.source import position_ids
from jaxbert.objectives.mlm import MaskedLanguageModelling
from tests.models.encoders import POSITIONS, SMALL, VOCABULARY

ROWS, STEPS = 16, 20


def _case(model: Any) -> Any:
    heads = getattr(model, "num_heads", 0)
    even = {"num_heads": heads + heads % 2} if heads else {}
    return dataclasses.replace(model, num_layers=2, hidden_dropout=0.1, **even)


# The sizes of encoders.py with heads that two devices share (ConvBERT's grouped form: three attend, which they cannot)
# and dropout wherever the encoder has any.
CASES = {name: _case(model) for name, model in SMALL.items()}


class AnyPrecision(MaskedLanguageModelling):
    """The objective with parameters in the dtype of the computation."""

    def init(self, key: jax.Array) -> Any:
        """As there, then cast."""
        return jax.tree.map(lambda x: x.astype(self.dtype), super().init(key))


def recipe(case: str, dtype: Any, mesh: tuple[int, int, int]) -> config.Config:
    """A recipe with the default optimizer and learning rate, in two parts."""
    train: Any = config.Train(batch_size=ROWS, steps=STEPS, dtype=dtype, accumulate=2, dropout_seed=7)
    return config.Config(model=CASES[case], train=train, sharding=config.Sharding(*mesh))


def batch(objective: MaskedLanguageModelling, seed: int, *, packed: bool) -> dict[str, np.ndarray]:
    """Rows of random tokens: one document of any length, or several and padding; some tokens are predicted."""
    random, shapes = np.random.default_rng(seed), objective.batch_shapes(ROWS, POSITIONS, one_document=not packed)
    segment_ids_BT = np.zeros((ROWS, POSITIONS), np.int32)
    for row in segment_ids_BT:
        end = 0
        for number in range(1, 4 if packed else 2):
            begin, end = end, end + random.integers(5, POSITIONS // (3 if packed else 1))
            row[begin:end] = number
    predictions = shapes["positions_BP"].shape[1]
    order_BT = np.argsort(random.random(segment_ids_BT.shape) + (segment_ids_BT == 0), axis=1)
    positions_BP = order_BT[:, :predictions].astype(np.int32)
    arrays = {
        "input_ids_BT": random.integers(5, VOCABULARY, segment_ids_BT.shape, np.int32),
        "segment_ids_BT": segment_ids_BT,
        "position_ids_BT": position_ids(segment_ids_BT),
        "positions_BP": positions_BP,
        "labels_BP": random.integers(5, VOCABULARY, positions_BP.shape, np.int32),
        "weights_BP": (random.random(positions_BP.shape) < 0.8).astype(np.float32),
        "tokens_B": (segment_ids_BT > 0).sum(1, dtype=np.int32),
    }
    arrays |= {} if packed else {"length_B": arrays["tokens_B"]}
    assert {n: (a.shape, a.dtype) for n, a in arrays.items()} == {n: (s.shape, s.dtype) for n, s in shapes.items()}
    return arrays


def losses(settings: config.Config) -> list[float]:
    """Of every step, on the first devices that the mesh needs."""
    objective = AnyPrecision(settings, vocab_size=VOCABULARY, mask_id=4, special_ids=frozenset(range(5)))
    parts, axes = settings.train.accumulate, settings.sharding
    devices = jax.devices()[: axes.data * axes.fsdp * axes.tensor]
    mesh = sharding.make_mesh(axes, ROWS // parts, devices=devices)
    packed = config.family(settings.model.name).Encoder.packs
    with jax.set_mesh(mesh):
        made = step.make_step(settings, objective, STEPS, mesh)
        state = jax.jit(made.init, out_shardings=made.shardings)(jax.random.key(1))
        batches = [step.in_parts(batch(objective, number, packed=packed), parts) for number in range(STEPS)]
        compiled, found = made.compile(batches[0]), []
        for rows in batches:
            state, told = compiled(state, sharding.put_batch(rows, made.rows))
            found.append(told["loss"])
    return [float(loss) for loss in found]


if __name__ == "__main__":
    case, dtype, meshes = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
    for mesh in meshes:
        print(json.dumps(losses(recipe(case, dtype, tuple(mesh)))), flush=True)
