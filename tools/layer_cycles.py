"""Static cycles of an encoder's layers in a training step, on a TPU that is not attached: what their time goes into.

    python tools/layer_cycles.py [--model=bert_large] [--topology=v5e:2x2] [--rows=8] [--length=512] [--layers=4]
        [--hidden_dropout=0] [--attention_dropout=0] [--attention=IMPLEMENTATION] [--rematerialize=none]

Forward and backward pass of a few layers of a published size on one device, in bfloat16, packed where the encoder
packs: no head, no optimizer and no exchange, so that it compiles in a minute or two and what a layer costs stands out.
The sums are `jaxbert.plan --cycles`'s (jaxbert/cycles.py): they rank, and are no speed. Nothing runs.

Measured with libtpu 0.0.52 on 2026-11-28: docs/plans.md.
"""

import argparse
import dataclasses
import functools
import os
import tempfile
from typing import Any

from jaxbert import cycles, sharding
from jaxbert.chips import open_topology
from jaxbert.config import Config, Sharding, Train, family, named_model, resolve
from jaxbert.ops.attention.tiles import of_chip
from jaxbert.plan import kernel_trips

VOCABULARY = 128  # next to nothing: the table and its gradient are not what is asked


def compiled(model: Any, devices: list[Any], rows: int, length: int, packs: bool) -> str:
    """HLO of the gradient of a sum over final states, by the encoder's parameters, for the first of the devices."""
    import jax
    import jax.numpy as jnp
    from flax import nnx
    from jax.sharding import NamedSharding, PartitionSpec

    encoder = family(model.name).Encoder
    key = jax.random.key(0) if max(model.hidden_dropout, getattr(model, "attention_dropout", 0)) else None

    def loss(parameters: Any, batch: dict[str, jax.Array], weight_BTD: jax.Array) -> jax.Array:
        states_BTD, _ = parameters(batch, key=key, dtype=jnp.bfloat16)
        return jnp.sum(states_BTD.astype(jnp.float32) * weight_BTD)

    mesh = sharding.make_mesh(Sharding(), rows, devices=devices[:1])
    whole = NamedSharding(mesh, PartitionSpec())
    names = ["input_ids_BT", "segment_ids_BT", "position_ids_BT"]
    batch = {name: jax.ShapeDtypeStruct((rows, length), jnp.int32) for name in names}
    if not packs:
        batch["length_B"] = jax.ShapeDtypeStruct((rows,), jnp.int32)
    weight_BTD = jax.ShapeDtypeStruct((rows, length, model.hidden_size), jnp.float32)
    with jax.set_mesh(mesh):
        parameters = jax.eval_shape(lambda: encoder(model, VOCABULARY, rngs=nnx.Rngs(0)))
        gradient = jax.jit(jax.grad(loss), in_shardings=whole, out_shardings=whole)
        return gradient.lower(parameters, batch, weight_BTD).compile().as_text()


def main() -> None:
    """The command; see the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="bert_large")
    parser.add_argument("--topology", default="v5e:2x2")
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--hidden_dropout", type=float, default=0.0)
    parser.add_argument("--attention_dropout", type=float, default=0.0)
    parser.add_argument("--attention", help="reference, xla_chunked or pallas_tpu; left out: what `choose` chooses")
    parser.add_argument("--rematerialize", choices=("none", "dots", "full"), default="none")
    flags = parser.parse_args()
    model: Any = named_model(
        flags.model,
        num_layers=flags.layers,
        hidden_dropout=flags.hidden_dropout,
        rematerialize=flags.rematerialize,
        max_positions=flags.length,
    )
    if any(field.name == "attention_dropout" for field in dataclasses.fields(model)):
        model = dataclasses.replace(model, attention_dropout=flags.attention_dropout)
    settings = resolve(Config(model=model, train=Train(steps=1)))
    with tempfile.TemporaryDirectory() as folder:
        os.environ.update(cycles.environment(folder))  # before libtpu is loaded
        chip, devices = open_topology(flags.topology)
        if flags.attention:
            from jaxbert.ops.attention import api

            api.choose = lambda call: flags.attention
        text = compiled(settings.model, devices, flags.rows, flags.length, bool(settings.data.pack))
        trips = functools.partial(kernel_trips, of_chip(chip.name, 2), flags.length)
        ranked = cycles.of_compiled(folder, text, chip, trips=trips)
    flops = 3 * flags.rows * family(model.name).forward_flops(settings.model, flags.length, flags.length)
    print(f"{flags.model}, {flags.layers} layers, {flags.rows} × {flags.length} tokens, {flags.topology}")
    print(cycles.table(ranked, flops=flops))


if __name__ == "__main__":
    main()
