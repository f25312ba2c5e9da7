"""The encoders side by side: speed, memory and operations of a training step by length, and compile time by depth.

    python tools/bench_encoders.py [--encoders bert convbert gmlp m2 hypermixer] [--lengths 128 512 2048 8192]
        [--width=256] [--layers=6] [--tokens=8192] [--rounds=5] [--json=FILE]

Every encoder has as many parameters in its blocks as the BERT of `--width` and `--layers`: at the width, depth and
feed-forward that its authors chose relative to BERT, and then the feed-forward width that makes the numbers meet.
A step is `jaxbert.step.make_update` with the masked-LM objective on a made-up batch: full rows of one document, the
same number of tokens at every length, no dropout. All contestants run in one process, a step each in turn; tokens a
second are medians, ratios are taken round by round. BERT runs once with each attention; encoders are compared with the
faster one at that length.

Memory is what the compiled program needs: arguments, results and what lies between. Operations are those of the
products and Fourier transforms in the compiled program's text, times the trips of the loops around them, against
`objective.step_flops`; scores that attention computes again in the backward pass count as the model's, and so does what
M2 spends on its filters, which is a batch's and no row's.
"""

import argparse
import contextlib
import dataclasses
import functools
import gc
import importlib
import json
import math
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from bench_train import machine, measure, show

from jaxbert import config, objectives, optim
from jaxbert.allocator import computes_on_cpu, keep_freed_memory
from jaxbert.data.masking import predictions
from jaxbert.step import count_parameters, initial_state, make_update, memory_needed

ENCODERS = ("bert", "convbert", "gmlp", "m2", "hypermixer")
SPECIAL, MASK = frozenset(range(5)), 4
DEPTHS = (12, 48)


# Sizes


def fields_of(encoder: str, width: int, layers: int, length: int) -> dict[str, Any]:
    """The shape that this encoder has beside a BERT of that width and depth; the feed-forward is fitted afterwards."""
    common = {"num_layers": layers, "hidden_size": width, "feed_forward_size": 4 * width, "max_positions": length}
    if encoder == "bert":
        return {"name": "bert_mini", "num_heads": width // 64, "attention_dropout": 0.0, **common}
    if encoder == "convbert":
        own = {"num_heads": width // 64, "groups": 1, "embedding_size": width, "attention_dropout": 0.0}
        return {"name": "convbert_small", **own, **common}
    if encoder == "gmlp":  # 36 layers of F = 6 D beside 12 of BERT's; at equal widths 4/3 as many have its parameters
        deeper = {"num_layers": round(layers * 4 / 3), "feed_forward_size": 6 * width}
        return {"name": "gmlp_base", "attention_size": 0, **common, **deeper}
    if encoder == "m2":  # 110M, published beside BERT-base, is 960 wide, its filters' networks 128
        wider = {"hidden_size": round(width * 1.25 / 64) * 64, "filter_order": round(width / 6 / 8) * 8}
        return {"name": "m2_110M", **common, **wider}
    return {"name": "hypermixer_small", "num_heads": 2, "hypernet_size": 4 * width, **common}


def recipe(encoder: str, width: int, layers: int, length: int, flags: argparse.Namespace, **fields: Any) -> Any:
    """A resolved recipe of a step on rows of `length`; `fields` of the model replace others."""
    fields = {**fields_of(encoder, width, layers, length), "hidden_dropout": 0.0, **fields}
    return config.resolve(
        config.Config(
            tokenizer=config.Tokenizer(vocab_size=flags.vocabulary),
            data=config.Data(row_length=length, pack=False),
            model=config.named_model(fields.pop("name"), **fields),
            train=config.Train(batch_size=max(1, flags.tokens // length), steps=1000, dtype=flags.dtype),
        )
    )


def objective_of(settings: Any) -> Any:
    """Masked language modelling with a vocabulary of the recipe's size."""
    return objectives.make(settings, vocab_size=settings.tokenizer.vocab_size, mask_id=MASK, special_ids=SPECIAL)


def block_parameters(settings: Any) -> int:
    """Elements of the blocks alone: tables and heads are as large as the vocabulary makes them."""
    return count_parameters(model_shapes(settings).encoder.blocks, settings.tokenizer.vocab_size)


def model_shapes(settings: Any) -> Any:
    """The model, without its memory."""
    return jax.eval_shape(objective_of(settings).init, jax.random.key(0))


def matched(encoder: str, width: int, layers: int, length: int, flags: argparse.Namespace) -> Any:
    """The recipe whose feed-forward gives the blocks as many parameters as BERT's, to the next multiple of 16."""
    make = functools.partial(recipe, encoder, width, layers, length, flags)
    if encoder == "bert":
        return make()
    wanted = block_parameters(recipe("bert", width, layers, length, flags))
    start = make().model.feed_forward_size
    first, second = (block_parameters(make(feed_forward_size=start + more)) for more in (0, 16))
    fitted = start + 16 * round((wanted - first) / (second - first))  # the number is linear in it
    return make(feed_forward_size=max(16, fitted))


# A step


def made_up_batch(settings: Any) -> dict[str, jax.Array]:
    """Full rows of one document each, (1, B, …) as the loop gives them; each predicts as many tokens as it may."""
    B, T, V = settings.train.batch_size, settings.data.row_length, settings.tokenizer.vocab_size
    random, P = np.random.default_rng(0), predictions(settings.objective.mask_rate, T)
    arrays = {
        "input_ids_BT": random.integers(len(SPECIAL), V, (B, T)),
        "segment_ids_BT": np.ones((B, T)),
        "position_ids_BT": np.tile(np.arange(T), (B, 1)),
        "length_B": np.full(B, T),
        "tokens_B": np.full(B, T),
        "positions_BP": np.sort(np.argsort(random.random((B, T)))[:, :P]),
        "labels_BP": random.integers(len(SPECIAL), V, (B, P)),
    }
    batch = {name: jnp.asarray(array[None], jnp.int32) for name, array in arrays.items()}
    return {**batch, "weights_BP": jnp.ones((1, B, P), jnp.float32)}


@dataclasses.dataclass
class Step:
    """A compiled training step with what it needs to run."""

    settings: Any
    attention: str | None  # whose implementation was forced
    compiled: Any
    make_state: Callable[[], Any]
    batch: dict[str, jax.Array]
    state: Any = None

    def run(self) -> float:
        """Seconds of one step."""
        self.state = self.state or self.make_state()
        start = time.perf_counter()
        self.state, told = self.compiled(self.state, self.batch)
        jax.block_until_ready((self.state, told))
        return time.perf_counter() - start

    @property
    def memory(self) -> float:
        """MiB."""
        return memory_needed(self.compiled) / 2**20

    @property
    def model_flops(self) -> float:
        """Of a step: the objective's, scores that are computed again from what was kept, and M2's filters."""
        train_, T = self.settings.train, self.settings.data.row_length
        flops = objective_of(self.settings).step_flops(train_.batch_size, T)
        again = self.attention == "xla_chunked" or (self.attention is None and chosen_attention(T) == "xla_chunked")
        return flops + again * train_.batch_size * score_flops(self.settings) + filter_flops(self.settings)


def score_flops(settings: Any) -> float:
    """Operations of q kᵀ in one row's forward pass; of the last layer at the predicted positions."""
    model, T = settings.model, settings.data.row_length
    width = {"bert": model.hidden_size, "convbert": model.hidden_size // 2}.get(model.name.split("_")[0], 0)
    return 2.0 * width * T * ((model.num_layers - 1) * T + predictions(settings.objective.mask_rate, T))


def filter_flops(settings: Any) -> float:
    """Operations on M2's filters in a training step: a batch's and no row's, and much where a batch is a few rows."""
    if not settings.model.name.startswith("m2"):
        return 0.0
    from jaxbert.ops.long_conv.fft import size_for

    model, T = settings.model, settings.data.row_length
    E, D, points = model.filter_order, model.hidden_size, size_for(T)
    networks = 4 * 2.0 * T * (model.filter_features * E + 2 * E * E + E * D)
    transforms = 2 * D * 2.5 * points * math.log2(points)
    return 3.0 * model.num_layers * (networks + transforms)


def compile_step(settings: Any, attention: str | None = None, batch: dict[str, jax.Array] | None = None) -> Step:
    """`make_update` compiled for a batch (None: the made-up one), with the attention of that name."""
    objective = objective_of(settings)
    optimizer = optim.make_optimizer(settings.optimizer, objective.vocab_size)
    schedule = optim.make_schedule(settings.schedule, settings.optimizer.learning_rate, 1000)
    init, batch = functools.partial(initial_state, objective, optimizer), batch or made_up_batch(settings)
    abstract = jax.eval_shape(init, jax.random.key(0))
    update = jax.jit(make_update(objective, optimizer, schedule, settings), donate_argnums=0)
    with forced(attention):
        compiled = update.lower(abstract, batch).compile()
    return Step(settings, attention, compiled, lambda: jax.jit(init)(jax.random.key(0)), batch)


# Attention


def _attention() -> Any:
    return importlib.import_module("jaxbert.ops.attention.api")


def chosen_attention(length: int) -> str:
    """What the encoders take by themselves."""
    api = _attention()
    return api.choose(api.Call(T=length, S=length, platform=jax.default_backend()))


def attentions() -> list[str]:
    """Every implementation of ours, and XLA's as jax.nn calls it."""
    return [*_attention().IMPLEMENTATIONS, "jax.nn"]


@contextlib.contextmanager
def forced(attention: str | None) -> Iterator[None]:
    """Encoders traced within take this implementation; None: what they choose."""
    if attention is None:
        yield
        return
    api = _attention()

    def of_jax(q: Any, k: Any, v: Any, q_ids: Any, k_ids: Any, **_: Any) -> jax.Array:
        same = (q_ids[:, :, None] == k_ids[:, None, :])[:, None]
        return jax.nn.dot_product_attention(q, k, v, mask=same, implementation="xla")

    with (
        mock.patch.dict(api.IMPLEMENTATIONS, {"jax.nn": api.Implementation(of_jax)}),
        mock.patch.object(api, "choose", lambda *_: attention),
    ):
        yield


# Operations of a compiled program


_COMPUTATION = re.compile(r"^(ENTRY )?%([\w.\-]+) \(.*\) -> .* \{$")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%([\w.\-]+) = (\(.*?\)|\S+) ([\w\-]+)\((.*)$")
_CALLED = re.compile(r"(calls|to_apply|body|condition|branch_computations|called_computations)=(\{[^}]*\}|%[\w.\-]+)")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')


def program_flops(text: str) -> float:
    """Operations of all products (2 a multiplication) and Fourier transforms (5/2 n log2 n a real one) that a program
    executes, from its text: those in a loop's body as often as the loop turns.

    Raises ValueError for a loop whose trips are not in the text.
    """
    here: dict[str, float] = {}  # operations of a computation's own instructions
    calls: dict[str, Counter[str]] = {}  # how often it runs others
    shapes: dict[str, tuple[int, ...]] = {}
    entry = name = ""
    for line in text.splitlines():
        if found := _COMPUTATION.match(line):
            name, shapes = found[2], {}
            here[name], calls[name] = 0.0, Counter()
            entry = name if found[1] else entry
        elif name and (found := _INSTRUCTION.match(line)):
            result, kind, rest = found[2], found[3], found[4]
            shapes[found[1]] = _shape(result)
            here[name] += _flops(kind, shapes[found[1]], rest, shapes)
            for role, callees in _CALLED.findall(rest):
                trips = 1
                if role == "body":
                    if not (known := _TRIPS.search(rest)):
                        raise ValueError(f"the trips of the loop {found[1]} are not known")
                    trips = int(known[1])
                for callee in re.findall(r"%([\w.\-]+)", callees):
                    calls[name][callee] += trips

    @functools.cache
    def total(name: str) -> float:
        return here[name] + sum(times * total(callee) for callee, times in calls[name].items())

    return total(entry)


def _shape(result: str) -> tuple[int, ...]:
    found = re.match(r"\w+\[([\d,]*)\]", result)
    return tuple(int(size) for size in found[1].split(",") if size) if found else ()


def _flops(kind: str, result: tuple[int, ...], rest: str, shapes: dict[str, tuple[int, ...]]) -> float:
    if kind == "dot":
        left = shapes[re.match(r"[^%]*%([\w.\-]+)", rest)[1]]
        contracted = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", rest)[1]
        return 2.0 * math.prod(result) * math.prod(left[int(axis)] for axis in contracted.split(",") if axis)
    if kind == "fft":
        size = int(re.search(r"fft_length=\{(\d+)\}", rest)[1])
        real = re.search(r"fft_type=(\w+)", rest)[1] in ("RFFT", "IRFFT")
        return math.prod(result[:-1]) * (2.5 if real else 5.0) * size * math.log2(size)
    if kind in ("convolution", "custom-call") and "dot" in rest.partition("metadata=")[0]:
        raise ValueError(f"a product that is not counted: {kind}({rest[:200]}")
    return 0.0


# Measures


def bench_length(length: int, flags: argparse.Namespace) -> tuple[list[dict[str, Any]], dict[str, list[float]]]:
    """All contestants at one length: the lines of the table, and ratios to the faster BERT by encoder."""
    steps = {}
    for encoder in flags.encoders:
        settings = matched(encoder, flags.width, flags.layers, length, flags)
        for attention in attentions() if encoder == "bert" else [None]:
            steps[f"{encoder}, {attention}" if attention else encoder] = compile_step(settings, attention)
    lines = []
    for name, step in steps.items():
        lines.append(measure(f"T={length}: {name}, memory of a step", [step.memory], "MiB"))
        ratio = step.model_flops / program_flops(step.compiled.as_text())
        lines.append(measure(f"T={length}: {name}, model's / program's operations", [ratio], "ratio", 1 / 1.05))
    running = {name: step for name, step in steps.items() if step.memory < flags.memory * 1024}
    for name in steps.keys() - running.keys():
        print(f"T={length}: {name} is not run: it needs over {flags.memory} GiB (--memory)")
    seconds: dict[str, list[float]] = {name: [] for name in running}
    for turn in range(flags.rounds + 1):
        for name, step in running.items():
            spent = step.run()
            if turn:  # the first warms up
                seconds[name].append(spent)
    tokens = max(1, flags.tokens // length) * length
    lines += [
        measure(f"T={length}: {name}", [tokens / s for s in spent], "tokens/s") for name, spent in seconds.items()
    ]
    berts = [name for name in seconds if name.startswith("bert,")]
    ratios = {}
    if berts:
        best = min(berts, key=lambda name: sorted(seconds[name])[flags.rounds // 2])
        for encoder in [e for e in flags.encoders if e in seconds]:
            ratios[encoder] = [a / b for a, b in zip(seconds[best], seconds[encoder], strict=True)]
            lines.append(measure(f"T={length}: {encoder} / {best}", ratios[encoder], "ratio"))
    return lines, ratios


def bench_compile(encoder: str, flags: argparse.Namespace) -> list[dict[str, Any]]:
    """Seconds to trace, lower and compile a step of 12 and of 48 layers, in turn."""
    seconds: dict[int, list[float]] = {depth: [] for depth in DEPTHS}
    small = argparse.Namespace(**{**vars(flags), "tokens": 1024})
    for turn in range(flags.compile_rounds + 1):
        for depth in DEPTHS:
            settings = recipe(encoder, 128, depth, 128, small, num_layers=depth)
            jax.clear_caches()
            gc.collect()
            start = time.perf_counter()
            compile_step(settings)
            if turn:  # the first also imports
                seconds[depth].append(time.perf_counter() - start)
    lines = [measure(f"compile: {encoder}, {depth} layers", spent, "s") for depth, spent in seconds.items()]
    ratios = [a / b for a, b in zip(*seconds.values(), strict=True)]
    return [*lines, measure(f"compile: {encoder}, 12 layers / 48 layers", ratios, "ratio", 1 / 1.3)]


def show_sizes(flags: argparse.Namespace) -> None:
    """What is compared."""
    print(f"{'':12s} {'blocks':>12s} {'all':>12s}   parameters, and the shape (at T={flags.lengths[0]})")
    for encoder in flags.encoders:
        settings = matched(encoder, flags.width, flags.layers, flags.lengths[0], flags)
        total, model = count_parameters(model_shapes(settings), flags.vocabulary), settings.model
        shape = f"{model.num_layers} layers, width {model.hidden_size}, feed-forward {model.feed_forward_size}"
        print(f"{encoder:12s} {block_parameters(settings):12,d} {total:12,d}   {shape}")


def conclude(ratios: dict[int, dict[str, list[float]]]) -> list[dict[str, Any]]:
    """Where an encoder whose cost is not quadratic passes BERT, and a line of the table for it."""
    lines = []
    for encoder in ("m2", "hypermixer"):
        by_length = {length: sorted(found[encoder]) for length, found in ratios.items() if encoder in found}
        if not by_length:
            continue
        medians = {length: values[len(values) // 2] for length, values in by_length.items()}
        passing = [length for length, ratio in medians.items() if ratio > 1]
        print(f"{encoder} passes BERT at T = {', '.join(map(str, passing)) or '(no length measured)'}")
        best = max(medians, key=medians.__getitem__)
        lines.append(measure(f"{encoder} / the faster BERT, at its best length {best}", by_length[best], "ratio", 1.0))
    if any("gmlp" in found for found in ratios.values()):
        print(
            "gmlp's spatial product is a T × T matrix, the same for all rows, times T × F/2 values: quadratic as\n"
            "attention is, in one product and without softmax. From the length on where ops/toeplitz/api.py takes\n"
            "Fourier transforms it is T log T."
        )
    return lines


def main() -> None:
    """The command; see the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--encoders", nargs="+", choices=ENCODERS, default=list(ENCODERS))
    parser.add_argument("--lengths", type=int, nargs="*", default=[128, 512, 2048, 8192])
    parser.add_argument("--width", type=int, default=256, help="of BERT, a multiple of 128")
    parser.add_argument("--layers", type=int, default=6, help="of BERT")
    parser.add_argument("--tokens", type=int, default=8192, help="of a batch; at least one row")
    parser.add_argument("--vocabulary", type=int, default=8192)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--compile_rounds", type=int, default=3, help="0: no compile times")
    parser.add_argument("--memory", type=float, default=12.0, help="GiB; a step that needs more is not run")
    parser.add_argument("--json", type=Path)
    flags = parser.parse_args()
    if computes_on_cpu():  # as the loop does
        keep_freed_memory()
    results: list[dict[str, Any]] = []
    ratios = {}

    def report(lines: list[dict[str, Any]]) -> None:
        show(lines)
        results.extend(lines)

    print(f"{jax.devices()[0].device_kind}, {flags.tokens} tokens a batch, {flags.dtype}")
    if flags.lengths:
        show_sizes(flags)
    print(f"{'':70s} {'median':>10s}  {'low':>10s}  {'high':>10s}")
    for length in flags.lengths:
        lines, ratios[length] = bench_length(length, flags)
        report(lines)
    report(conclude(ratios))
    if flags.compile_rounds:
        for encoder in flags.encoders:
            report(bench_compile(encoder, flags))
    if flags.json:
        flags.json.write_text(json.dumps({**machine(), "measures": results}, indent=2) + "\n")


if __name__ == "__main__":
    main()
