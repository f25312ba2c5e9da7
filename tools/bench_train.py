"""Speed of the training loop beside transformers.Trainer on the same CPU, and beside itself without data loading.

    pip install -e ".[prepare,torch,bench]"
    python tools/bench_train.py --peer=hf [--size=mini] [--dropout=0.1] [--measure=rows] [--json=FILE]

`--measure`: `rows` (full rows, one piece a row), `documents` (as they come: ours packs them, the peer cuts them at the
row length and pads each batch to its longest), `data` (our loop beside the same loop on one cached batch). Without the
options: rows at mini, small and base with and without dropout, documents and data at mini.

Every contestant is a process of its own that trains in earnest; it stops after each window until it is told to go on,
so that only one computes at a time, in turn. Ours is `jaxbert.train.train` itself: only `prefetch` is wrapped, by a
gate. A window's clock covers all that its steps need: loading, masking, the step, the log. Ratios are of real tokens a
second, round by round, median of five. Peers run with the number of threads that was fastest for them in a trial.

The text is made up (words of a Zipf distribution, from a fixed seed): a vocabulary of 32,000 needs more text than the
demo has. Lengths of documents are log-normal, with the median and spread of the demo's Galician documents.
"""

import argparse
import importlib.metadata
import itertools
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

ROW, VOCABULARY, MASK_RATE, ROUNDS = 128, 32_000, 0.15, 5
STEPS = {"mini": 6, "small": 3, "base": 1}  # of a window
GOALS = {"mini": 3.2, "small": 2.8, "base": 1.7}  # × the Trainer as shipped, full rows


class Gate:
    """Stops a worker before each window's first step: reports the window behind it and waits for the next command."""

    def __init__(self, drain: Any, command: Any = lambda **_: None):
        """`drain()` returns when no step is under way; `command(**fields)` obeys what else the parent asks for."""
        self.drain, self.command, self.left = drain, command, 0
        self.tokens, self.waited, self.start = 0, 0.0, None
        self.replies = os.fdopen(os.dup(1), "w")  # what libraries print goes to standard error
        os.dup2(2, 1)

    def step(self) -> None:
        """Called before every step."""
        if self.left == 0:
            self.drain()
            seconds = time.perf_counter() - self.start if self.start else 0.0
            time.sleep(0.2 if self.start else 0.0)  # threads that load ahead fill their buffers
            print(json.dumps({"seconds": seconds, "tokens": self.tokens, "waited": self.waited}), file=self.replies)
            self.replies.flush()
            line = sys.stdin.readline()
            if not line:
                os._exit(0)
            fields = json.loads(line)
            self.left = fields.pop("steps")
            self.command(**fields)
            self.tokens, self.waited, self.start = 0, 0.0, time.perf_counter()
        self.left -= 1


# Workers


def ours(corpus: str, size: str, dropout: float, batch_size: int, cached: bool) -> None:
    """Our loop. `cached`: it gets its first batch again and again."""
    import jax

    from jaxbert import train

    gate = Gate(lambda: [array.block_until_ready() for array in jax.live_arrays()])
    prefetch = train.prefetch

    def gated(make_batch: Any, start: int, stop: int) -> Iterator[dict[str, np.ndarray]]:
        batches = itertools.repeat(make_batch(0)) if cached else prefetch(make_batch, start, stop)
        while True:
            gate.step()
            before = time.perf_counter()
            batch = next(batches)
            gate.waited += time.perf_counter() - before
            gate.tokens += int(batch["tokens_B"].sum())
            yield batch

    train.prefetch = gated
    with tempfile.TemporaryDirectory() as workdir:
        train.train(recipe(corpus, size, dropout, batch_size), Path(workdir))


def recipe(directory: str, size: str = "mini", dropout: float = 0.1, batch_size: int = 32, **sections: Any) -> Any:
    """Our recipe: it never ends, and neither saves nor scores."""
    from jaxbert import config

    never = 2**30
    model = config.named_model(f"bert_{size}", hidden_dropout=dropout, attention_dropout=dropout)
    fields = {
        "corpus": config.Corpus(directory=directory, language="gl"),
        "tokenizer": tokenizer_of(Path(directory)),
        "data": config.Data(row_length=ROW),
        "model": config.dataclasses.replace(model, unroll=1 if size == "base" else 4),  # 4 slows twelve layers down
        "objective": config.Objective(mask_rate=MASK_RATE),
        "train": config.Train(batch_size=batch_size, steps=never),
        "optimizer": config.Optimizer(learning_rate=1e-4),
        "checkpoint": config.Checkpoint(every=never),
        "evaluation": config.Evaluation(every=never),
    }
    return config.resolve(config.Config(**{**fields, **sections}))


def trainer(corpus: str, size: str, dropout: float, batch_size: int, gather: bool, packed: bool) -> None:
    """transformers.Trainer with its own collator, optimizer (AdamW) and clipping (1.0), as it comes.

    `packed`: it reads our full rows; otherwise documents, cut at the row length.
    """
    import torch
    import transformers

    from jaxbert.data.source import Rows
    from jaxbert.models.bert import SIZES

    tokenizer = transformers.AutoTokenizer.from_pretrained(Path(corpus) / "tokenizer")
    sizes = SIZES[f"bert_{size}"]
    shape = transformers.BertConfig(
        vocab_size=VOCABULARY,
        hidden_size=sizes["hidden_size"],
        num_hidden_layers=sizes["num_layers"],
        num_attention_heads=sizes["num_heads"],
        intermediate_size=sizes["feed_forward_size"],
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout,
    )

    class Gathers(transformers.BertForMaskedLM):
        """The ten lines: the vocabulary product sees the masked positions alone."""

        def forward(self, input_ids: Any, attention_mask: Any, labels: Any, **_: Any) -> dict[str, Any]:
            states = self.bert(input_ids, attention_mask=attention_mask).last_hidden_state
            masked = labels != -100
            return {"loss": torch.nn.functional.cross_entropy(self.cls(states[masked]), labels[masked])}

    class Pieces(torch.utils.data.Dataset):
        """Token ids with [CLS] and [SEP], from our files."""

        def __init__(self) -> None:
            if packed:
                self.rows = Rows(Path(corpus) / f"rows_{ROW}")
            else:
                self.ids, self.offsets = documents(corpus)

        def __len__(self) -> int:
            return len(self.rows) if packed else len(self.offsets) - 1

        def __getitem__(self, index: int) -> dict[str, list[int]]:
            if packed:
                return {"input_ids": self.rows[np.array([index])][0][0].tolist()}
            start, stop = self.offsets[index : index + 2]
            ids = self.ids[start : min(stop, start + ROW - 2)].tolist()
            return {"input_ids": [tokenizer.cls_token_id, *ids, tokenizer.sep_token_id]}

    gate = Gate(lambda: None, lambda threads: torch.set_num_threads(threads))
    model = (Gathers if gather else transformers.BertForMaskedLM)(shape)

    def before_step(_: Any, __: Any, inputs: dict[str, Any]) -> None:
        gate.step()
        gate.tokens += int(inputs["attention_mask"].sum())

    model.register_forward_pre_hook(before_step, with_kwargs=True)
    with tempfile.TemporaryDirectory() as directory:
        transformers.Trainer(
            model=model,
            args=transformers.TrainingArguments(
                output_dir=directory,
                per_device_train_batch_size=batch_size,
                max_steps=2**30,
                learning_rate=1e-4,
                use_cpu=True,
                report_to=[],
                save_strategy="no",
                disable_tqdm=True,
            ),
            train_dataset=Pieces(),
            data_collator=transformers.DataCollatorForLanguageModeling(tokenizer, mlm_probability=MASK_RATE),
        ).train()


class Worker:
    """A contestant in a process of its own, stopped at its gate."""

    def __init__(self, kind: str, **arguments: Any):
        """Starts it; it is ready when its first report has come."""
        self.process = subprocess.Popen(
            [sys.executable, __file__, "--worker", json.dumps({"kind": kind, **arguments})],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE if not os.environ.get("BENCH_VERBOSE") else None,
            text=True,
            env={**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": os.pathsep.join(sys.path)},
        )
        self._reply()
        self.options: dict[str, int] = {}

    def _reply(self) -> dict[str, float]:
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"a worker died:\n{self.process.stderr.read() if self.process.stderr else ''}")
        return json.loads(line)

    def window(self, steps: int) -> dict[str, float]:
        """Runs so many steps; {"seconds", "tokens" (real ones), "waited" (seconds for data)}."""
        self.process.stdin.write(json.dumps({"steps": steps, **self.options}) + "\n")
        self.process.stdin.flush()
        return self._reply()

    def choose_threads(self, steps: int) -> int:
        """Sets the number of threads that is fastest in one window each (after one to warm up)."""
        cores, speed = os.cpu_count() or 1, {}
        for threads in sorted({1, max(1, cores // 2), cores}):
            self.options = {"threads": threads}
            self.window(1)
            report = self.window(steps)
            speed[threads] = report["tokens"] / report["seconds"]
        best = max(speed, key=speed.__getitem__)
        self.options = {"threads": best}
        return best

    def stop(self) -> None:
        """Ends it."""
        self.process.stdin.close()
        self.process.wait()


# Text


def make_corpora(directory: Path) -> tuple[str, str]:
    """Prepared corpora (full rows, documents), made once; both have the tokenizer of the first."""
    from jaxbert import config, prepare

    full, mixed = directory / "full", directory / "documents"
    for corpus, words, seed in ((full, itertools.repeat(20_000, 120), 1), (mixed, document_lengths(20_000), 2)):
        text = corpus.with_suffix(".txt")
        if not text.exists():
            directory.mkdir(parents=True, exist_ok=True)
            unfinished = text.with_suffix(".tmp")
            unfinished.write_text("\n\n".join(made_up_documents(words, seed)), encoding="utf-8")
            unfinished.rename(text)
        off = config.Clean(repair=False, min_words=0, min_letters=0, identify_language=False, duplicates="off")
        text_only = config.Corpus(input=(str(text),), language="gl", directory=str(corpus), clean=off)
        prepare.prepare(recipe(str(corpus), corpus=text_only))
    return str(full), str(mixed)


def tokenizer_of(corpus: Path) -> Any:
    """Trained on the full rows' text; the documents take the same one."""
    from jaxbert import config

    if corpus.name == "full":
        return config.Tokenizer(kind="wordpiece", vocab_size=VOCABULARY)
    return config.Tokenizer(kind="folder", folder=str(corpus.parent / "full" / "tokenizer"), vocab_size=VOCABULARY)


def document_lengths(count: int) -> list[int]:
    """Words of documents: log-normal, median 110 tokens, spread 1.2, as the demo's (about 1.2 tokens a word)."""
    return np.maximum(1, np.random.default_rng(0).lognormal(np.log(92), 1.2, count)).astype(int).tolist()


def made_up_documents(words: Any, seed: int) -> Iterator[str]:
    """Documents of so many words each, from a lexicon of 60,000 with Zipf frequencies, sentences of 12 words."""
    chooser, syllables = (
        np.random.default_rng(0),
        [a + b for a in "bcdfglmnprstvx" for b in ("a", "e", "i", "o", "u", "an", "es")],
    )
    lexicon = np.array(["".join(chooser.choice(syllables, size=2 + i % 3)) for i in range(60_000)])
    share = 1.0 / (np.arange(len(lexicon)) + 10.0)
    chooser = np.random.default_rng(seed)
    for count in words:
        chosen = lexicon[chooser.choice(len(lexicon), size=count, p=share / share.sum())]
        yield " ".join(word + "." if i % 12 == 11 else word for i, word in enumerate(chosen))


def documents(corpus: str) -> tuple[np.ndarray, np.ndarray]:
    """(ids of all training documents in a row, where each begins)."""
    tokens = Path(corpus) / "tokens" / "train"
    offsets = np.fromfile(tokens / "offsets.bin", "<i8")
    stored = np.fromfile(tokens / "tokens.bin", "<u2" if VOCABULARY <= 2**15 else "<u4")
    return stored >> 1, offsets


# Measures


def step_flops(size: str, rows: int, head_positions: int, last_positions: int) -> float:
    """Operations of the products that a step computes: 3 × forward. The head and the last layer see so many a row."""
    from jaxbert.models.bert import SIZES

    L, D, _, F = SIZES[f"bert_{size}"].values()
    kv, rest = 2 * 2 * D * D, 2 * (2 * D * D + 2 * ROW * D + 2 * D * F)  # a position: keys and values, all else
    layers = L * ROW * kv + ((L - 1) * ROW + last_positions) * rest
    return 3.0 * rows * (layers + 2 * head_positions * D * (D + VOCABULARY))


def race(workers: dict[str, Worker], steps: int) -> dict[str, list[dict[str, float]]]:
    """ROUNDS windows of each, in turn, after one that nobody counts."""
    reports: dict[str, list[dict[str, float]]] = {name: [] for name in workers}
    for turn in range(ROUNDS + 1):
        for name, worker in workers.items():
            report = worker.window(steps)
            if turn:
                reports[name].append(report)
    for worker in workers.values():
        worker.stop()
    return reports


def measure(name: str, values: list[float], unit: str, goal: float | None = None) -> dict[str, Any]:
    """One line of the result: the median, the extremes, the least value that passes."""
    line = {"name": name, "value": statistics.median(values), "unit": unit, "low": min(values), "high": max(values)}
    return {**line, "goal": goal}


def speeds(reports: list[dict[str, float]]) -> list[float]:
    """Real tokens a second of each window."""
    return [report["tokens"] / report["seconds"] for report in reports]


def ratios(mine: list[dict[str, float]], other: list[dict[str, float]]) -> list[float]:
    """ours / theirs, round by round."""
    return [a / b for a, b in zip(speeds(mine), speeds(other), strict=True)]


def bench_peers(corpus: str, size: str, dropout: float, packed: bool) -> list[dict[str, Any]]:
    """Our loop beside both forms of the Trainer."""
    common = {"corpus": corpus, "size": size, "dropout": dropout, "batch_size": 32}
    workers = {
        "ours": Worker("ours", cached=False, **common),
        "Trainer": Worker("trainer", gather=False, packed=packed, **common),
        "Trainer + gather": Worker("trainer", gather=True, packed=packed, **common),
    }
    threads = {name: worker.choose_threads(STEPS[size]) for name, worker in workers.items() if name != "ours"}
    reports = race(workers, STEPS[size])
    masked = round(MASK_RATE * (ROW - 2))
    flops = {"ours": (masked, masked), "Trainer": (ROW, ROW), "Trainer + gather": (masked, ROW)}
    case, lines = f"{size}, {'full rows' if packed else 'documents'}, dropout {dropout}", []
    for name, windows in reports.items():
        title = f"{case}: {name}" + (f" ({threads[name]} threads)" if name in threads else "")
        lines.append(measure(title, speeds(windows), "real tokens/s"))
        if packed:  # a padded batch computes what its longest row asks for
            work = step_flops(size, 32, *flops[name]) * STEPS[size] / 1e9
            lines.append(measure(title, [work / w["seconds"] for w in windows], "GFLOP/s"))
    shipped = None if dropout == 0 else GOALS[size] if packed else 4.0
    lines.append(measure(f"{case}: ours / Trainer", ratios(reports["ours"], reports["Trainer"]), "ratio", shipped))
    gathered = 1.0 if packed and dropout else None
    gather_ratios = ratios(reports["ours"], reports["Trainer + gather"])
    lines.append(measure(f"{case}: ours / Trainer + gather", gather_ratios, "ratio", gathered))
    if not packed:
        lengths = np.diff(documents(corpus)[1])
        cut = np.maximum(lengths - (ROW - 2), 0).sum() / lengths.sum()
        lines.append(measure(f"{case}: share of tokens that the Trainer cuts off", [float(cut)], "share"))
    return lines


def bench_data(corpus: str) -> list[dict[str, Any]]:
    """Our loop beside itself on a cached batch, mini, 64 rows."""
    common = {"corpus": corpus, "size": "mini", "dropout": 0.1, "batch_size": 64}
    reports = race({name: Worker("ours", cached=name == "cached", **common) for name in ("loop", "cached")}, 8)
    waited = [1.0 - window["waited"] / window["seconds"] for window in reports["loop"]]
    return [
        measure("mini, 64 rows: loop / the same on a cached batch", ratios(*reports.values()), "ratio", 0.95),
        measure("mini, 64 rows: share of time not waiting for data", waited, "share", 0.98),
    ]


def machine() -> dict[str, Any]:
    """What the numbers depend on."""
    model = [
        line.partition(":")[2].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if "model name" in line
    ]
    packages = ("jax", "jaxlib", "flax", "optax", "torch", "transformers", "numpy")
    versions = {"python": platform.python_version(), **{name: importlib.metadata.version(name) for name in packages}}
    return {
        "machine": {"cpu": model[0] if model else platform.processor(), "cores": os.cpu_count()},
        "versions": versions,
    }


def show(lines: list[dict[str, Any]]) -> None:
    """A table of measures."""
    for line in lines:
        digits = 0 if line["value"] >= 100 else 3
        numbers = "  ".join(f"{line[key]:10,.{digits}f}" for key in ("value", "low", "high"))
        goal = (
            ""
            if line["goal"] is None
            else f"  goal {line['goal']:.2f} " + ("met" if line["value"] >= line["goal"] else "MISSED")
        )
        print(f"{line['name']:70s} {numbers}  {line['unit']}{goal}", flush=True)


def main() -> None:
    """The command; see the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peer", choices=["hf"], default="hf")
    parser.add_argument("--size", choices=list(STEPS), help="default: all three")
    parser.add_argument("--dropout", type=float, help="default: 0.1, then 0")
    parser.add_argument("--measure", choices=["rows", "documents", "data"], help="default: all three")
    parser.add_argument("--directory", type=Path, default=Path("data/bench"), help="where the text is prepared, once")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    flags = parser.parse_args()
    if flags.worker:
        arguments = json.loads(flags.worker)
        return {"ours": ours, "trainer": trainer}[arguments.pop("kind")](**arguments)
    full, mixed = make_corpora(flags.directory)
    results: list[dict[str, Any]] = []
    print(f"{'':70s} {'median':>10s}  {'low':>10s}  {'high':>10s}")

    def report(lines: list[dict[str, Any]]) -> None:
        show(lines)
        results.extend(lines)

    dropouts = [0.1, 0.0] if flags.dropout is None else [flags.dropout]
    if flags.measure in (None, "rows"):
        for size in [flags.size] if flags.size else STEPS:
            for dropout in dropouts:
                report(bench_peers(full, size, dropout, packed=True))
    if flags.measure in (None, "documents"):
        report(bench_peers(mixed, flags.size or "mini", dropouts[0], packed=False))
    if flags.measure in (None, "data"):
        report(bench_data(full))
    if flags.json:
        flags.json.write_text(json.dumps({**machine(), "measures": results}, indent=2) + "\n")
    return None


if __name__ == "__main__":
    main()
