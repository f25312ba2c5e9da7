"""What the launcher runs on each worker: python3 worker.py report | start | log | stop | halt | installed.

The standard library of Python 3.10 suffices: it is the image's own Python that runs this file, not the environment that
jaxbert is installed into. All that the launcher knows of a run it reads here, so it may be killed at any point:

    $JAXBERT_ROOT        ~/jaxbert where not set
        run.json         run, attempt, pid, times, exit code of the newest attempt; written whole
        run.lock         locked by the kernel while any process of the attempt lives (no pid is mistaken for another's)
        stopped          the attempt that `stop` ended, which the launcher does not start again
        log              what the attempts printed, one after the other
        installed        id of the bundle whose packages are in venv/

A bundle is the folder of this file, as the launcher copied it: MANIFEST.json (its id, and the sha256 of each file),
the wheel, and files/, where the command runs. Without a manifest (local processes) it runs where it was started.
"""

import argparse
import contextlib
import fcntl
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
SHORT = 60.0  # seconds: an attempt that ends sooner did not get to work; how many did in a row is counted
TAIL = 1500  # bytes of the log in a report, which must fit in one write to a pipe (4,096), or lines would mix


def run_id(bundle: str, command: list[str]) -> str:
    """What makes two runs the same: the code and files that were copied, and the command."""
    return hashlib.sha256(json.dumps([bundle, command]).encode()).hexdigest()[:12]


def root() -> Path:
    """The folder of this worker's state, made if absent."""
    folder = Path(os.environ.get("JAXBERT_ROOT") or Path.home() / "jaxbert")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def number() -> int:
    """This worker's number: $JAXBERT_WORKER, else the TPU VM's metadata, from which jax has it too."""
    if given := os.environ.get("JAXBERT_WORKER"):
        return int(given)
    import urllib.request  # slow to import, and not needed where the number is given

    url = "http://metadata.google.internal/computeMetadata/v1/instance/attributes/agent-worker-number"
    with urllib.request.urlopen(urllib.request.Request(url, headers={"Metadata-Flavor": "Google"}), timeout=10) as page:
        return int(page.read())


def bundle() -> str | None:
    """The id of the bundle that this file came in, "" where it was not copied, None if a file is missing or torn."""
    manifest = HERE / "MANIFEST.json"
    if not manifest.exists():
        return ""
    try:
        listed = json.loads(manifest.read_text())
        whole = all(sha256(HERE / name) == digest for name, digest in listed["files"].items())
    except (OSError, ValueError, KeyError):
        return None
    return listed["id"] if whole else None


def sha256(path: Path) -> str:
    """Of a file's bytes, in hexadecimal."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _write(name: str, text: str) -> None:
    temporary = root() / f".{name}.{os.getpid()}"
    temporary.write_text(text)
    temporary.rename(root() / name)


def _read(name: str) -> str:
    try:
        return (root() / name).read_text().strip()
    except FileNotFoundError:
        return ""


def _run() -> dict[str, Any]:
    return json.loads(_read("run.json") or "{}")


@contextlib.contextmanager
def _only_one() -> Iterator[None]:
    """Two launchers may start or stop at the same time: one after the other."""
    with open(root() / "start.lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def alive() -> bool:
    """Whether any process of the newest attempt lives. (A shared lock: two who ask do not see each other.)"""
    with open(root() / "run.lock", "a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def report() -> dict[str, Any]:
    """What the launcher decides by; reconcile.Worker has the meaning of each field."""
    living, run, now = alive(), _run(), time.time()  # in this order: a code is written before the lock is released
    code = None if living or not run else run.get("code", 128 + signal.SIGKILL)  # nobody lived to write one
    ended = run.get("ended", now)
    told = {
        "number": number(),
        "bundle": bundle(),
        "installed": _read("installed"),
        "run": run.get("run", ""),
        "attempt": run.get("attempt", 0),
        "alive": living,
        "code": code,
        "seconds": ended - run.get("began", ended),
        "ended_ago": now - ended,
        "short": run.get("short", 0),
        "stopped": bool(run) and _read("stopped") == f"{run['run']} {run['attempt']}",
        "tail": "",
    }
    if code:
        with open(root() / "log", "rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - TAIL))
            told["tail"] = file.read().decode(errors="replace")
    return told


def start(attempt: int, peers: str, command: list[str]) -> int:
    """Start `attempt` of the command, detached; asked twice, it does it once. 2: another run holds this worker.

    `peers`: "HOST:PORT/PROCESSES" adds --coordinator, --processes and --process to the command, which needs them where
    jax detects no cluster.
    """
    with _only_one():
        run, wanted = _run(), run_id(bundle() or "", command)
        if alive():
            if run["run"] == wanted:
                return 0
            print(f"worker {number()} runs {run['run']}, not {wanted}", file=sys.stderr)
            return 2
        if run.get("run") == wanted and run["attempt"] >= attempt:
            return 0
        short = run["short"] + 1 if run.get("run") == wanted and report()["seconds"] < SHORT else 0
        lock = os.open(root() / "run.lock", os.O_RDWR | os.O_CREAT)
        fcntl.flock(lock, fcntl.LOCK_EX)
        _write("run.json", json.dumps({"run": wanted, "attempt": attempt, "began": time.time(), "short": short}))
        if peers:
            address, _, processes = peers.rpartition("/")
            flags = [f"--coordinator={address}", f"--processes={processes}", f"--process={number()}"]
            command = [*command, *flags]
        with open(root() / "log", "ab") as log:
            log.write(f"=== attempt {attempt}, {time.strftime('%Y-%m-%d %H:%M:%S')}\n".encode())
            log.flush()
            subprocess.Popen(
                [sys.executable, __file__, "supervise", f"--lock={lock}", "--", *command],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=[lock],  # held until the last process that inherited it has ended
                start_new_session=True,
            )
        os.close(lock)
    return 0


def supervise(lock: int, command: list[str]) -> None:
    """Run the command, and write its exit code (128 + the signal that killed it) where a report finds it."""
    run, environment, where = _run(), dict(os.environ), None
    if (HERE / "MANIFEST.json").exists():
        where = HERE / "files"
        environment["PATH"] = f"{root() / 'venv' / 'bin'}:{environment['PATH']}"
        environment["PYTHONUNBUFFERED"] = "1"
    try:
        child = subprocess.Popen(command, cwd=where, env=environment, pass_fds=[lock], start_new_session=True)
    except OSError as error:
        print(f"error: {error}", flush=True)
        run |= {"code": 127, "ended": time.time()}
    else:
        _write("run.json", json.dumps({**run, "pid": child.pid}))
        code = child.wait()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)  # processes that it left behind would hold the lock, and the chips
        run |= {"pid": child.pid, "code": 128 - code if code < 0 else code, "ended": time.time()}
    _write("run.json", json.dumps(run))


def stop(grace: float, for_good: bool) -> None:
    """End the attempt: SIGTERM, upon which jaxbert saves; after `grace` seconds SIGKILL to all of its processes.

    `for_good`: a launcher that watches does not start it again.
    """
    with _only_one():
        run = _run()
        if run and for_good:
            _write("stopped", f"{run['run']} {run['attempt']}")
        deadline, asked = time.monotonic() + grace, False
        while alive():
            pid = _run().get("pid")  # none yet where the attempt has only just begun
            with contextlib.suppress(ProcessLookupError):  # it may have ended since
                if pid and not asked:
                    os.kill(pid, signal.SIGTERM)
                    asked = True
                elif pid and time.monotonic() > deadline:
                    os.killpg(pid, signal.SIGKILL)
            time.sleep(0.1)


def log(begin: int, follow: bool) -> None:
    """Print the log from byte `begin` on; with `follow`, until the attempt has ended."""
    path = root() / "log"
    path.touch()
    with open(path, "rb", buffering=0) as file:
        file.seek(begin)
        while True:
            living = alive()  # asked before reading: what it wrote before it ended is printed
            while block := file.read(1 << 16):
                sys.stdout.buffer.write(block)
                sys.stdout.buffer.flush()
            if not (follow and living):
                return
            time.sleep(0.2)


def main(argv: list[str]) -> int:
    """The command; see the module's docstring."""
    command: list[str] = []
    if "--" in argv:
        argv, command = argv[: argv.index("--")], argv[argv.index("--") + 1 :]
    parser = argparse.ArgumentParser(prog="worker.py")
    parser.add_argument("verb", choices=["report", "start", "supervise", "log", "stop", "halt", "installed"])
    parser.add_argument("--attempt", type=int, default=1)
    parser.add_argument("--peers", default="")
    parser.add_argument("--lock", type=int)
    parser.add_argument("--from", type=int, default=0, dest="begin")
    parser.add_argument("--follow", action="store_true")
    parser.add_argument("--grace", type=float, default=60.0)
    known = parser.parse_args(argv)
    if known.verb == "report":
        print(json.dumps(report()), flush=True)
    elif known.verb == "start":
        return start(known.attempt, known.peers, command)
    elif known.verb == "supervise":
        supervise(known.lock, command)
    elif known.verb == "log":
        log(known.begin, known.follow)
    elif known.verb in ("stop", "halt"):
        stop(known.grace, known.verb == "stop")
    else:
        _write("installed", bundle() or "")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
