"""One command from a project with quota to a finished run: create a TPU slice, install, start, watch, resume, delete.

    python tpu/launch.py --name=bert --accelerator=v5litepod-16 --zone=us-west4-a --spot -- python -m jaxbert.train …
    python tpu/launch.py status|logs|ssh|stop|delete|cost --name=bert --accelerator=v5litepod-16 --zone=us-west4-a

docs/tpu.md is the guide. The loop looks (gcloud, and worker.py on each worker), asks reconcile.next_action, does that
one thing, and looks again. Whatever it decides by is asked anew, so it may be killed at any point, and run twice:

- the slice has the name that was given, so a second request for it fails at Google;
- a worker starts an attempt once: run id (of command, code and files) and attempt are in its run.json, and a lock of
  the kernel tells whether a process of it lives;
- a second launcher of the same name on this machine is refused, on another one it sees the same and starts nothing.

.launch/NAME/ holds what is kept for the user: the bundle as it was built, logs, and how long slices were held.
"""

import argparse
import contextlib
import dataclasses
import datetime
import fcntl
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a clone launches without being installed

from jaxbert.errors import BadInput, run
from tpu import bundle, worker
from tpu.gcloud import Passing, Tpu, chips
from tpu.local import Local
from tpu.reconcile import Action, Node, Seen, Wanted, next_action

Machines = Tpu | Local
TRIES = 5  # of one doing in a row before the failure is no longer called passing
VERBS = ("run", "status", "logs", "ssh", "stop", "delete", "cost")


def say(text: str) -> None:
    """A line of the launcher's own, beside worker 0's log on stdout."""
    print(f"[launch] {text}", file=sys.stderr, flush=True)


class Logs:
    """Worker 0's log as it grows, on stdout and in a file; the others' when an attempt has ended, in files.

    A file holds what was fetched so far, so its size says where to go on.
    """

    def __init__(self, machines: Machines, folder: Path):
        self.machines, self.folder, self.thread = machines, folder, threading.Thread()
        self.reader: subprocess.Popen[bytes] | None = None

    def _path(self, node: Node, number: int) -> Path:
        path = self.folder / re.sub(r"\W", "", node.created[:19]) / f"worker-{number}.log"
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def _copy(self, process: subprocess.Popen[bytes], path: Path, show: bool) -> None:
        with open(path, "ab") as file:
            while block := os.read(process.stdout.fileno(), 1 << 16):
                file.write(block)
                file.flush()
                if show:
                    sys.stdout.buffer.write(block)
                    sys.stdout.buffer.flush()
            process.wait()

    def _rest(self, node: Node, number: int) -> None:
        path = self._path(node, number)
        process = self.machines.read_log(number, path.stat().st_size if path.exists() else 0, follow=False)
        self._copy(process, path, show=number == 0)

    def follow(self, node: Node) -> None:
        """Go on printing worker 0's log, unless that is under way."""
        if not self.thread.is_alive():
            path = self._path(node, 0)
            self.reader = self.machines.read_log(0, path.stat().st_size if path.exists() else 0, follow=True)
            self.thread = threading.Thread(target=self._copy, args=(self.reader, path, True), daemon=True)
            self.thread.start()

    def keep(self, node: Node) -> None:
        """An attempt has ended: the rest of worker 0's log, and the others'."""
        self.drop(patience=60)
        with ThreadPoolExecutor(8) as pool:  # each is a gcloud process
            list(pool.map(lambda number: self._rest(node, number), range(node.workers)))

    def drop(self, patience: float = 0) -> None:
        """Stop following, after `patience` seconds if it has not ended: a machine that is gone does not hang up."""
        if self.thread.is_alive():
            self.thread.join(patience)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.reader.pid, signal.SIGKILL)  # gcloud and the ssh below it
            self.thread.join()


class Ledger:
    """Which slices were held, from when until when they were last seen: held.json."""

    def __init__(self, folder: Path):
        self.path = folder / "held.json"

    def read(self) -> dict[str, str]:
        """Time of creation → time when last seen, RFC 3339."""
        return json.loads(self.path.read_text()) if self.path.exists() else {}

    def note(self, node: Node) -> None:
        """`node` is held now."""
        if not node.created or node.created == "local":
            return
        held = self.read() | {node.created: datetime.datetime.now(datetime.UTC).isoformat()}
        temporary = self.path.with_suffix(".tmp")
        temporary.write_text(json.dumps(held))
        temporary.rename(self.path)

    def hours(self) -> list[tuple[str, float]]:
        """Of each slice: when it was created, and for how long it was seen, in hours."""

        def at(text: str) -> datetime.datetime:
            return datetime.datetime.fromisoformat(re.sub(r"\.\d+", "", text).replace("Z", "+00:00"))

        return [(begin, (at(end) - at(begin)).total_seconds() / 3600) for begin, end in sorted(self.read().items())]


@dataclasses.dataclass
class Launcher:
    """The loop, and what it does."""

    machines: Machines
    folder: Path
    command: list[str]
    copies: list[str]
    poll: float  # seconds between two looks
    unreachable: float  # seconds that a worker may be silent
    wanted: Wanted
    logs: Logs
    ledger: Ledger
    silent_since: float | None = None
    said: str = ""

    def look(self) -> Seen:
        """What is there now. Raises BadInput, or Passing."""
        found = self.machines.look()
        self.ledger.note(found.node)
        workers = self.machines.workers() if found.node.state == "READY" else ()
        done = self.folder / "done"
        return Seen(found, workers, done.exists() and done.read_text() == self.wanted.run)

    def run(self) -> int:
        """Until the run has ended for good; the exit code. Raises BadInput."""
        failures = 0
        while True:
            try:
                seen = self.look()
            except Passing as error:  # for as long as it takes: the run does not need us
                self._tell(f"cannot look: {error}")
                time.sleep(self.poll)
                continue
            action = next_action(self.wanted, seen)
            self._tell(f"{action.do}: {action.why}")
            self._give_up_on_silence(seen)
            try:
                self._do(action, seen)
                failures = 0
            except Passing as error:
                failures += 1
                say(f"{action.do} failed: {error}")
                if failures == TRIES:
                    raise BadInput(
                        f"{action.do} failed {TRIES} times in a row; the same command goes on here"
                    ) from None
            if action.do == "finish":
                return action.code
            if failures or action.do in ("wait", "create", "delete", "clear"):
                time.sleep(self.poll)

    def _tell(self, text: str) -> None:
        if text != self.said:
            say(text)
        self.said = text

    def _give_up_on_silence(self, seen: Seen) -> None:
        node = seen.slice.node
        if node.state != "READY" or len(seen.workers) == node.workers:
            self.silent_since = None
            return
        self.silent_since = self.silent_since or time.monotonic()
        if time.monotonic() - self.silent_since > self.unreachable:
            raise BadInput(
                f"{node.workers - len(seen.workers)} of {node.workers} workers have not answered ssh for "
                f"{self.unreachable:.0f} s though the node is READY; look with the subcommand `ssh --worker=N` (keys, "
                "firewall, --ssh-flag=--internal-ip), or `delete` and launch again"
            )

    def _do(self, action: Action, seen: Seen) -> None:
        machines, node = self.machines, seen.slice.node
        alive = any(worker.alive for worker in seen.workers)
        if alive and action.do != "finish":  # else it is another's run
            self.wanted = dataclasses.replace(self.wanted, again=False)
            self.logs.follow(node)
        if action.do == "create":
            machines.create()
            self.wanted = dataclasses.replace(self.wanted, again=False)
        elif action.do in ("delete", "clear"):
            if action.do == "clear":
                (self.folder / "done").write_text(self.wanted.run)
            if seen.workers:
                self.logs.keep(node)
            self.logs.drop()
            machines.delete()
        elif action.do == "copy":
            machines.copy(bundle.build(self.folder, self.copies))
        elif action.do == "install":
            machines.install()
        elif action.do == "start":
            if action.attempt > 1:
                self.logs.keep(node)
            machines.start(action.attempt, self.command)
            self.wanted = dataclasses.replace(self.wanted, again=False)
        elif action.do == "halt":
            machines.end("halt")
        elif action.do == "finish" and seen.workers and not alive:
            self.logs.keep(node)


def plan(machines: Tpu, folder: Path, known: argparse.Namespace, command: list[str]) -> list[tuple[str, list[str]]]:
    """What a verb runs, `run` without a slice yet, in order: (why, command)."""
    look = [("the request", machines.slice_command()), ("its machines", machines.node_command())]
    report = ("its workers", machines.ssh_command(machines.report_line()))
    others = {
        "status": [*look, report],
        "cost": look,
        "logs": [("", machines.log_command(known.worker, 0, follow=True))],
        "ssh": [("", machines.ssh_command(shlex.join(command), str(known.worker)))],
        "stop": [("", machines.end_command("stop"))],
        "delete": [("", machines.delete_command())],
    }
    if known.verb != "run":
        return others[known.verb]
    made = folder / bundle.FOLDER
    return [
        ("is there a slice of this name?", machines.slice_command()),
        ("no: request one", machines.create_command()),
        ("until it is ACTIVE, and its node READY", machines.slice_command()),
        ("", machines.node_command()),
        (f"make {made}: worker.py, constraints.txt, files/, the wheel (from a copy)", bundle.wheel_command(folder)),
        ("copy it to all workers", machines.copy_command(made)),
        ("install it", machines.ssh_command(machines.install_line())),
        ("start", machines.ssh_command(machines.start_line(1, command))),
        ("worker 0's log", machines.log_command(0, 0, follow=True)),
        ("until all workers have ended", report[1]),
        *([("delete", machines.delete_command())] if known.delete_when_done else []),
    ]


def print_plan(steps: list[tuple[str, list[str]]]) -> None:
    """Each command as a shell takes it."""
    for why, command in steps:
        if why:
            print(f"# {why}")
        print(" ".join(quoted("python" if word == sys.executable else word) for word in command))


def quoted(word: str) -> str:
    """For a shell: --flag='value' rather than '--flag=value', and double quotes around single ones where it can be."""
    flag, equals, value = word.partition("=")
    if not equals or not re.fullmatch("--[a-z-]+", flag):
        flag, equals, value = "", "", word
    plain = "'" in value and not re.search(r'["$`\\!]', value)
    return flag + equals + (f'"{value}"' if plain else shlex.quote(value))


def show_status(launcher: Launcher) -> None:
    """The slice, each worker, and what a launch would do next."""
    seen = launcher.look()
    node = seen.slice.node
    print(f"slice     {seen.slice.state}" + (f": {seen.slice.error}" if seen.slice.error else ""))
    if node.state:
        print(f"node      {node.state}, {node.workers} workers, created {node.created}")
    for each in seen.workers:
        state = "runs" if each.alive else f"ended with {each.code}" if each.attempt else "has not started"
        print(f"worker {each.number:<2} attempt {each.attempt} {state}" + (f", run {each.run}" if each.run else ""))
    if launcher.command:
        print(f"next      {next_action(launcher.wanted, seen).do}")


def show_cost(launcher: Launcher, accelerator: str, price: float | None) -> None:
    """Hours and chip-hours; money only at a price that the user gives."""
    launcher.ledger.note(launcher.machines.look().node)
    total = 0.0
    for begin, hours in launcher.ledger.hours():
        print(f"{begin}  {hours:9.2f} h × {chips(accelerator)} chips = {hours * chips(accelerator):9.2f} chip-hours")
        total += hours * chips(accelerator)
    print(f"at least {total:.2f} chip-hours: slices count until the launcher, or this command, last saw them")
    if price is not None:
        print(f"at {price:g} a chip-hour, as you said: {total * price:.2f}")
    else:
        print("in money: --price=… of a chip-hour (https://cloud.google.com/tpu/pricing)")


def parser() -> argparse.ArgumentParser:
    """The flags."""
    flags = argparse.ArgumentParser(
        prog="python tpu/launch.py",
        description="Runs a command on a Cloud TPU slice, or as local processes, started again as often as needed.",
        epilog="The command follows after --. docs/tpu.md is the guide.",
        allow_abbrev=False,
    )
    add = flags.add_argument
    add("verb", nargs="?", default="run", choices=VERBS)
    add("--name", required=True, help="of the slice, its node, and .launch/NAME")
    add("--accelerator", required=True, metavar="TYPE", help="v5litepod-16, v6e-8, v4-32, …, or local:N")
    add("--zone", default="", help="where you have quota")
    add("--project", default="", help="default: gcloud's")
    add("--spot", action="store_true", help="cheaper, and may be taken away at any time")
    add("--runtime-version", default="", help="image of the TPU VM; default: by the accelerator")
    add("--create-flag", action="append", default=[], metavar="FLAG", help="of queued-resources create; repeatable")
    add("--ssh-flag", action="append", default=[], metavar="FLAG", help="of tpu-vm ssh and scp; repeatable")
    add("--copy", action="append", metavar="PATH", help="files that the command reads; repeatable; default: configs")
    add("--python", default=f"3.{sys.version_info.minor}", help="of the workers' environment; default: as here")
    add("--package", action="append", default=[], help="to install besides jaxbert; repeatable")
    add("--delete-when-done", action="store_true", help="once the command ended with 0")
    add("--dry-run", action="store_true", help="print the commands, do nothing")
    add("--poll", type=float, default=30.0, metavar="SECONDS", help="between two looks")
    add("--patience", type=int, default=5, metavar="N", help="attempts in a row that end at once")
    add("--grace", type=float, default=120.0, metavar="SECONDS", help="that workers may outlive the first that ended")
    add("--unreachable", type=float, default=900.0, metavar="SECONDS", help="that a worker may be silent")
    add("--worker", type=int, default=0, metavar="N", help="of logs and ssh")
    add("--price", type=float, help="of a chip-hour, for cost")
    return flags


def _machines(known: argparse.Namespace, folder: Path) -> Machines:
    """Raises BadInput for a name, accelerator or zone that cannot be."""
    if not re.fullmatch("[a-z]([a-z0-9-]{0,61}[a-z0-9])?", known.name):
        raise BadInput(f"--name={known.name}: lower-case letters, digits and hyphens, a letter first, 63 at most")
    if known.accelerator.startswith("local:"):
        count = known.accelerator.removeprefix("local:")
        if not count.isdigit() or int(count) < 1:
            raise BadInput(f"--accelerator={known.accelerator}: local:N starts N processes, N at least 1")
        if known.dry_run or known.delete_when_done:
            raise BadInput(f"--accelerator={known.accelerator}: has nothing to dry-run or to delete")
        return Local(folder, int(count))
    chips(known.accelerator)
    if not known.zone:
        raise BadInput("--zone: give the zone of your quota (gcloud compute tpus locations list)")
    return Tpu(
        known.name,
        known.accelerator,
        known.zone,
        known.project,
        known.spot,
        known.runtime_version,
        tuple(known.create_flag),
        tuple(known.ssh_flag),
        known.python,
        tuple(known.package),
    )


def _only_launcher(folder: Path) -> Any:
    """An open file whose lock says that this name is launched from here. Raises BadInput if another has it."""
    file = open(folder / "lock", "w")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise BadInput(f"another launcher of {folder.name} is at work here; it shows the log: `logs`") from None
    return file


def _warn(command: list[str], machines: Machines) -> None:
    if isinstance(machines, Tpu) and machines.spot and "gs://" not in " ".join(command):
        say("warning: --spot, and no gs:// in the command: what it writes is lost when the slice is taken away")
    if isinstance(machines, Tpu) and not bundle.pins():
        say("warning: jaxbert is not installed here, so workers take the newest versions, which may change on the way")


def _subcommand(verb: str, launcher: Launcher, known: argparse.Namespace) -> int:
    machines = launcher.machines
    if verb == "status":
        show_status(launcher)
    elif verb == "cost":
        if isinstance(machines, Local):
            raise BadInput("cost: local processes cost nothing that is known here")
        show_cost(launcher, known.accelerator, known.price)
    elif verb == "ssh":
        return machines.shell(known.worker, launcher.command)
    elif verb == "logs":
        process = machines.read_log(known.worker, 0, follow=True)
        while block := os.read(process.stdout.fileno(), 1 << 16):  # as it comes
            sys.stdout.buffer.write(block)
            sys.stdout.buffer.flush()
        return process.wait()
    elif verb == "stop":
        machines.end("stop")
    elif verb == "delete":
        machines.delete()
        (launcher.folder / "done").unlink(missing_ok=True)
    return 0


def main(argv: list[str]) -> None:
    """The command; see the module's docstring. Ends with the run's exit code. Raises BadInput."""
    flags, command = (argv[: argv.index("--")], argv[argv.index("--") + 1 :]) if "--" in argv else (argv, [])
    known = parser().parse_args(flags)
    folder = Path(".launch") / known.name
    machines = _machines(known, folder)
    copies = known.copy if known.copy is not None else ["configs"] if Path("configs").is_dir() else []
    if known.verb == "run" and not command:
        raise BadInput("no command: python tpu/launch.py … -- python -m jaxbert.train …")
    if known.dry_run and isinstance(machines, Tpu):
        bundle.identity(copies)  # raises BadInput for files that are not there
        print_plan(plan(machines, folder, known, command))
        return
    folder.mkdir(parents=True, exist_ok=True)
    identity = "" if isinstance(machines, Local) else bundle.identity(copies)
    wanted = Wanted(
        run=worker.run_id(identity, command),
        bundle=identity,
        accelerator=known.accelerator,
        delete_when_done=known.delete_when_done,
        patience=known.patience,
        grace=known.grace,
    )
    logs = Logs(machines, folder / "logs")
    launcher = Launcher(machines, folder, command, copies, known.poll, known.unreachable, wanted, logs, Ledger(folder))
    try:
        if known.verb != "run":
            sys.exit(_subcommand(known.verb, launcher, known))
        with _only_launcher(folder):
            _warn(command, machines)
            try:
                code = launcher.run()
            finally:
                logs.drop()
    except Passing as error:
        raise BadInput(f"{error}; try again") from None
    except KeyboardInterrupt:
        say("the run goes on without the launcher; the same command follows it again, `stop` ends it")
        raise
    sys.exit(code)


if __name__ == "__main__":
    run(main)
