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

    def __init__(self, workdir: Path, *, restored_step: int, write: bool = True):
        """On resume, lines after `restored_step` are removed: those steps are about to happen again.

        `write`: False in all but one of a run's processes; nothing is written then.
        """
        self.path, self._tensorboard = workdir / "metrics.jsonl" if write else Path(os.devnull), None
        if not write:
            self._file = self.path.open("a")
            return
        if self.path.exists():
            lines = [line for line in self.path.read_text().splitlines() if _step_of(line) <= restored_step]
            replacement = self.path.with_suffix(".tmp")
            replacement.write_text("".join(f"{line}\n" for line in lines))
            replacement.replace(self.path)
        self._file = self.path.open("a")
        try:
            from tensorboardX import SummaryWriter
        except ImportError:
            pass  # an optional dependency; metrics.jsonl has everything
        else:
            self._tensorboard = SummaryWriter(str(workdir / "tensorboard"), purge_step=restored_step + 1)

    def write(self, step: int, split: str, values: dict[str, Any]) -> None:
        """One record: {"step", "split", …values}; numbers also go to TensorBoard. NaN and infinity become null.

        A full disk is a warning, not the end of the run.
        """
        finite = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in values.items()}
        try:
            self._file.write(json.dumps({"step": step, "split": split, **finite}) + "\n")
            self._file.flush()
            if self._tensorboard is not None:
                for name, value in finite.items():
                    if isinstance(value, int | float):
                        self._tensorboard.add_scalar(f"{split}/{name}", value, step)
        except OSError as error:
            print(f"warning: metrics of step {step} were not written: {error}", file=sys.stderr)

    def close(self) -> None:
        """Flush and close both files."""
        self._file.close()
        if self._tensorboard is not None:
            self._tensorboard.close()


def _step_of(line: str) -> float:
    try:
        return json.loads(line)["step"]
    except (json.JSONDecodeError, KeyError):
        return float("inf")  # a line cut off by a killed process


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
        }
        words = [form.format(values[name]) for name, form in names.items() if name in values]
        self.line(f"{split:<10} step {step:>7,}/{self._steps:,}  " + "  ".join(words))

    def close(self) -> None:
        """Stop the bar."""
        if self._bar is not None:
            self._bar.stop()
