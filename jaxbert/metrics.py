"""What a run tells: metrics.jsonl and TensorBoard, a progress bar or plain lines, utilisation of the devices."""

import json
import math
import os
import sys
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

# Dense bfloat16 FLOP/s of one device, by the start of jax's device_kind; the vendors' datasheets.
PEAK_FLOPS = {
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5e": 197e12,
    "TPU v5p": 459e12,
    "TPU v5": 459e12,
    "TPU v6 lite": 918e12,
    "TPU v6e": 918e12,
    "NVIDIA A100": 312e12,
    "NVIDIA H100": 989e12,
    "NVIDIA H200": 989e12,
}


def peak_flops() -> tuple[float, str]:
    """FLOP/s of all devices together, and where the number comes from: the table above, or a product measured here."""
    device = jax.devices()[0]
    for kind, peak in PEAK_FLOPS.items():
        if device.device_kind.startswith(kind):
            return peak * jax.device_count(), f"{device.device_kind}, tabulated"
    size = 2048
    x = jnp.ones((size, size), jnp.float32)
    product = jax.jit(lambda x: x @ x)
    product(x).block_until_ready()
    best = float("inf")
    for _ in range(3):
        start = time.perf_counter()
        product(x).block_until_ready()
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best, "a float32 product measured at the start"


def device_memory() -> int | None:
    """Bytes of one device's memory (a CPU: of the machine), None if it does not say."""
    device = jax.local_devices()[0]
    if device.platform == "cpu":
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return (device.memory_stats() or {}).get("bytes_limit")


class MetricWriter:
    """metrics.jsonl, one object a line, and the same numbers in TensorBoard."""

    def __init__(self, workdir: Path, *, restored_step: int, owed: bool = False, write: bool = True):
        """On resume, lines after `restored_step` are removed: those steps are about to happen again.

        `owed`: the held-out score of that step is, too. `write`: False in all but one of a run's processes; nothing is
        read or written then.
        """
        self.path = workdir / "metrics.jsonl"
        self.last: dict[str, dict[str, Any]] = {}  # newest record of the splits "train" and "validation"
        self.redone = 0  # steps after `restored_step` that are known to have happened
        self._unwritten, self._tensorboard = b"", None  # what the disk did not take
        if not write:
            self._file = Path(os.devnull).open("ab", buffering=0)
            return
        if self.path.exists():
            kept = []
            for line in self.path.read_text().splitlines():
                record = _record(line)
                again = owed and record.get("step") == restored_step and record["split"] == "validation"
                if record.get("step", math.inf) <= restored_step and not again:
                    kept.append(line)
                    if record["split"] in ("train", "validation"):
                        self.last[record["split"]] = {k: v for k, v in record.items() if k != "split"}
                self.redone = max(self.redone, record.get("step", 0) - restored_step)
            replacement = self.path.with_suffix(".tmp")
            replacement.write_text("".join(f"{line}\n" for line in kept))
            replacement.replace(self.path)
        self._file = self.path.open("ab", buffering=0)
        try:
            from tensorboardX import SummaryWriter
        except ImportError:
            pass  # an optional dependency; metrics.jsonl has everything
        else:
            self._tensorboard = SummaryWriter(str(workdir / "tensorboard"), purge_step=restored_step + 1)

    def write(self, step: int, split: str, values: dict[str, Any]) -> None:
        """One record: {"step", "split", …values}; numbers also go to TensorBoard. NaN and infinity become null.

        A full disk is a warning, not the end of the run: the line is written with the next one that fits.
        """
        finite = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in values.items()}
        if split in ("train", "validation"):
            self.last[split] = {"step": step, **values}
        self._unwritten += (json.dumps({"step": step, "split": split, **finite}) + "\n").encode()
        try:
            self._flush()
            if self._tensorboard is not None:
                for name, value in finite.items():
                    if isinstance(value, int | float):
                        self._tensorboard.add_scalar(f"{split}/{name}", value, step)
        except OSError as error:
            print(f"warning: metrics of step {step} are not written yet: {error}", file=sys.stderr)

    def _flush(self) -> None:
        while self._unwritten:  # a disk that fills takes a part
            self._unwritten = self._unwritten[self._file.write(self._unwritten) :]

    def close(self) -> None:
        """Flush and close both files."""
        try:
            self._flush()
            if self._tensorboard is not None:
                self._tensorboard.close()
        except OSError as error:
            print(f"warning: the last metrics were not written: {error}", file=sys.stderr)
        self._file.close()


def _record(line: str) -> dict[str, Any]:
    try:
        record = json.loads(line)
    except json.JSONDecodeError:
        return {}  # a line cut off by a killed process
    return record if {"step", "split"} <= set(record) else {}


class Display:
    """A progress bar on a terminal, plain lines otherwise."""

    def __init__(self, steps: int, start: int, *, quiet: bool = False):
        """`steps` of the run, of which `start` are done; `quiet`: nothing is shown."""
        self.console = Console(stderr=False, highlight=False, soft_wrap=True, quiet=quiet)
        self._bar = None
        self._steps = steps
        if self.console.is_terminal and not quiet:
            columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
            self._bar = Progress(*columns, console=self.console)
            self._task = self._bar.add_task("training", total=steps, completed=start)
            self._bar.start()

    def advance(self, step: int) -> None:
        """Move the bar to `step`; nothing on plain output."""
        if self._bar is not None:
            self._bar.update(self._task, completed=step)

    def line(self, text: str) -> None:
        """A line of text, above the bar if there is one."""
        self.console.print(text, markup=False)

    def log(self, step: int, split: str, values: dict[str, Any]) -> None:
        """One record in words."""
        names = {
            "loss": "loss {:.4f}",
            "accuracy": "accuracy {:.3f}",
            "gradient_norm": "gradient {:.2f}",
            "learning_rate": "rate {:.2e}",
            "tokens_per_second": "{:,.0f} tokens/s",
            "flops_utilization": "flops {:.0%}",
            "data_wait_fraction": "waiting {:.1%}",
            "goodput": "goodput {:.1%}",
        }
        words = [form.format(values[name]) for name, form in names.items() if name in values]
        self.line(f"{split:<10} step {step:>7,}/{self._steps:,}  " + "  ".join(words))

    def close(self) -> None:
        """Stop the bar."""
        if self._bar is not None:
            self._bar.stop()
