"""Processes of this machine in the place of a slice: --accelerator=local:2. For trials, and to drill the launcher.

Each worker is a folder of state and worker.py, as on a TPU VM; nothing is copied or installed, and the command runs in
the folder that the launcher was started in. `python -m jaxbert.train` gets --coordinator, --processes and --process,
which TPU VMs need not; any other command runs as it is, with its number in $JAXBERT_WORKER.
"""

import contextlib
import dataclasses
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from jaxbert.errors import BadInput
from tpu import worker
from tpu.gcloud import Passing
from tpu.reconcile import Node, Slice, Worker


@dataclasses.dataclass(frozen=True)
class Local:
    """`count` workers, whose state is below `folder`. It has the methods of gcloud.Tpu."""

    folder: Path
    count: int

    def _run(self, number: int, *arguments: str) -> subprocess.Popen[bytes]:
        root = self.folder.resolve() / f"worker-{number}"
        environment = {**os.environ, "JAXBERT_ROOT": str(root), "JAXBERT_WORKER": str(number)}
        command = [sys.executable, worker.__file__, *arguments]
        return subprocess.Popen(
            command, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, start_new_session=True
        )

    def _all(self, *arguments: str, last: Sequence[str] = ()) -> list[bytes]:
        """The same on all workers at once; what they print. Raises Passing if one fails."""
        running = [self._run(i, *arguments, *last) for i in range(self.count)]
        printed = [process.communicate()[0] for process in running]
        if failed := [str(i) for i, process in enumerate(running) if process.returncode]:
            raise Passing(f"worker {', '.join(failed)}: {arguments[0]} failed")
        return printed

    def look(self) -> Slice:
        """This machine is always there."""
        return Slice("ACTIVE", Node("READY", self.count, "local"))

    def workers(self) -> tuple[Worker, ...]:
        """All of them."""
        return tuple(each for line in self._all("report") if (each := Worker.read(line.decode())))

    def create(self) -> None:
        """Nothing to create."""

    def copy(self, folder: Path) -> None:
        """Nothing to copy."""

    def install(self) -> None:
        """Nothing to install."""

    def start(self, attempt: int, command: list[str]) -> None:
        """An attempt of all processes; those of jaxbert.train find each other by a port of this machine."""
        peers = []
        if "jaxbert.train" in command and self.count > 1:
            peers = [f"--peers=127.0.0.1:{self._port(worker.run_id('', command), attempt)}/{self.count}"]
        self._all("start", f"--attempt={attempt}", *peers, last=["--", *command])

    def _port(self, run: str, attempt: int) -> int:
        """A port that was free, with the one after it, when this attempt was first started: kept in a file, so that
        a launcher that was killed between two workers tells the others the same."""
        path = self.folder / "ports" / f"{run}-{attempt}"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary = path.with_suffix(".tmp")
            temporary.write_text(str(_free_port()))
            temporary.rename(path)
        return int(path.read_text())

    def end(self, verb: str) -> None:
        """The attempt of all processes; `verb`: stop (for good) or halt."""
        self._all(verb)

    def delete(self) -> None:
        """End the processes and forget them."""
        self.end("halt")
        for number in range(self.count):
            shutil.rmtree(self.folder / f"worker-{number}", ignore_errors=True)

    def read_log(self, number: int, begin: int, follow: bool) -> subprocess.Popen[bytes]:
        """A process that prints a worker's log, in a group of its own."""
        return self._run(number, "log", f"--from={begin}", *(["--follow"] if follow else []))

    def shell(self, number: int, command: list[str]) -> int:
        """There is none."""
        raise BadInput("ssh: local processes run on this machine; take a shell of it")


def _free_port() -> int:
    """A port such that the next is free as well: the roll-call takes it."""
    while True:
        with socket.socket() as first, socket.socket() as second, contextlib.suppress(OSError, OverflowError):
            first.bind(("127.0.0.1", 0))
            port = first.getsockname()[1]
            second.bind(("127.0.0.1", port + 1))
            return port
