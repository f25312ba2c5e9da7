"""Training processes for the drills: started on this machine with their output in files, and ended whatever happens."""

import contextlib
import dataclasses
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from jaxbert import config
from jaxbert.rollcall import Place
from tests.conftest import FLAGS

REPOSITORY = Path(__file__).parents[2]


@dataclasses.dataclass
class Process:
    """One `python -m jaxbert.train`, stdout and stderr together in `log`."""

    number: int
    popen: subprocess.Popen
    log: Path

    def output(self) -> str:
        """All that it has said so far."""
        return self.log.read_text(encoding="utf-8", errors="replace")

    def last_line(self) -> str:
        """The last line that is not empty."""
        return next((line for line in reversed(self.output().splitlines()) if line.strip()), "")

    def wait(self, seconds: float = 120) -> int:
        """Its exit code (negative: a signal's). Fails with its output if it is still there after `seconds`."""
        try:
            return self.popen.wait(seconds)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"process {self.number} runs after {seconds} s:\n{self.output()}") from None

    def says(self, text: str, seconds: float = 120) -> None:
        """Wait until `text` is in its output. Fails if it ends before, or after `seconds`."""
        until(lambda: text in self.output() or self.popen.poll() is not None, seconds, f"{text!r} in {self.log}")
        assert text in self.output(), f"process {self.number} ended ({self.popen.poll()}):\n{self.output()}"

    def send(self, number: signal.Signals) -> None:
        """A signal, to it alone."""
        self.popen.send_signal(number)


def until(happened: Callable[[], bool], seconds: float, what: str) -> None:
    """Wait for something; fails after `seconds`."""
    deadline = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        time.sleep(0.02)


def free_address() -> str:
    """127.0.0.1:PORT with a port that is free now, as the one of its roll-call is."""
    while True:
        with socket.socket() as first, socket.socket() as second, contextlib.suppress(OSError):
            first.bind(("127.0.0.1", 0))
            address = f"127.0.0.1:{first.getsockname()[1]}"
            second.bind(("127.0.0.1", Place(address, 1, 0).port))
            return address


class Launcher:
    """Starts processes with their files in `folder`; `end` kills those that are left, stopped ones too."""

    def __init__(self, folder: Path):
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.started = folder, list[Process]()

    def start(
        self,
        settings: config.Config,
        workdir: Path,
        *flags: str,
        number: int = 0,
        devices: int = 2,
        environment: dict[str, str] | None = None,
        before: str = "",
    ) -> Process:
        """One process on a resolved recipe; `flags`: more of them; `devices`: of the CPU that it sees; `before`: Python
        that it runs before the command."""
        recipe = self.folder / f"recipe-{len(self.started)}.py"
        values = json.dumps(config.to_dict(settings))
        recipe.write_text(
            "import json\nfrom jaxbert import config\n\n\n"
            f"def get_config():\n    return config.from_dict(json.loads({values!r}))\n"
        )
        log = self.folder / f"process-{len(self.started)}.log"
        program = ["-c", f"{before}\nfrom jaxbert import errors, train\nerrors.run(train.main)"]
        command = [sys.executable, *(program if before else ["-m", "jaxbert.train"])]
        command += [f"--config={recipe}", f"--workdir={workdir}", *flags]
        variables = {**os.environ, "PYTHONPATH": str(REPOSITORY), "JAX_NUM_CPU_DEVICES": str(devices)}
        variables |= {"JAX_PLATFORMS": "cpu", "PYTHONUNBUFFERED": "1", "XLA_FLAGS": FLAGS}
        variables |= environment or {}
        with log.open("wb") as output:
            popen = subprocess.Popen(command, env=variables, stdout=output, stderr=subprocess.STDOUT, cwd=self.folder)
        self.started.append(Process(number, popen, log))
        return self.started[-1]

    def start_all(
        self,
        settings: config.Config,
        workdir: Path,
        *flags: str,
        processes: int = 2,
        devices: int = 2,
        numbers: Sequence[int] | None = None,
        address: str | None = None,
    ) -> list[Process]:
        """`processes` of one run, or those of them with `numbers`, of `devices` devices each."""
        address = address or free_address()
        common = (f"--coordinator={address}", f"--processes={processes}", *flags)
        return [
            self.start(settings, workdir, *common, f"--process={number}", number=number, devices=devices)
            for number in (range(processes) if numbers is None else numbers)
        ]

    def end(self) -> None:
        """Kill what is left."""
        for process in self.started:
            if process.popen.poll() is None:
                process.send(signal.SIGKILL)
            process.popen.wait()


@contextlib.contextmanager
def launcher(folder: Path) -> Iterator[Launcher]:
    """A `Launcher` whose processes do not outlive the block."""
    found = Launcher(folder)
    try:
        yield found
    finally:
        found.end()
