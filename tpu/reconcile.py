"""What is wanted, what is seen, and what to do next: data, and one function without side effects.

The launcher looks, asks `next_action`, does that one thing, and looks again. It remembers nothing that decides: killed
and started again, it sees the same and does the same.

States of a queued resource: https://cloud.google.com/tpu/docs/queued-resources, of a node:
https://cloud.google.com/tpu/docs/reference/rest/v2/projects.locations.nodes#State.
"""

import dataclasses
import json
import re

from jaxbert.errors import BAD_INPUT, DIVERGED, START_AGAIN
from tpu.worker import SHORT

FAULT, ABORTED, KILLED = 1, 134, range(129, 166)  # KILLED: 128 + a signal, as worker.py writes it
ABSENT = "ABSENT"  # ours: there is no queued resource of that name
QUEUED = {"STATE_UNSPECIFIED", "CREATING", "ACCEPTED", "WAITING_FOR_RESOURCES", "PROVISIONING"}
ENDING = {"SUSPENDING", "DELETING"}
LOST_NODE = {"", "PREEMPTED", "TERMINATED", "STOPPED", "STOPPING", "DELETING", "HIDING", "HIDDEN", "UNKNOWN"}


@dataclasses.dataclass(frozen=True)
class Wanted:
    """One run on one slice."""

    run: str  # worker.run_id of the bundle and the command
    bundle: str  # id of the code and files that the workers should have; "" where nothing is copied
    accelerator: str = ""  # of the slice; "" where there is none
    delete_when_done: bool = False
    again: bool = True  # the user has just asked: what ended or was stopped before is started again
    patience: int = 5  # attempts in a row that end within worker.SHORT seconds before it is given up
    grace: float = 120.0  # seconds that a worker may outlive the first one that ended


@dataclasses.dataclass(frozen=True)
class Node:
    """The TPU VM of a slice, as `tpu-vm describe` has it; state "" if there is none."""

    state: str = ""
    workers: int = 0
    created: str = ""  # RFC 3339; tells a node from the one before it
    accelerator: str = ""


@dataclasses.dataclass(frozen=True)
class Slice:
    """A queued resource."""

    state: str = ABSENT
    node: Node = Node()
    error: str = ""  # why it is FAILED


@dataclasses.dataclass(frozen=True)
class Worker:
    """What worker.py reports; the defaults are a worker that nothing was copied to."""

    number: int = -1
    bundle: str | None = None  # id of the bundle it has, "" where none is needed, None: none, or torn
    installed: str = ""  # id of the bundle whose packages are installed
    run: str = ""
    attempt: int = 0
    alive: bool = False
    code: int | None = None  # exit code once the attempt has ended
    seconds: float = 0.0  # that it lasted
    ended_ago: float = 0.0
    short: int = 0  # attempts before this one, in a row, that lasted less than worker.SHORT seconds
    stopped: bool = False  # by the subcommand
    tail: str = ""  # end of the log where the code is not 0

    @classmethod
    def read(cls, line: str) -> "Worker | None":
        """From a line of worker.py report, perhaps of another version; None for any other line."""
        try:
            report = json.loads(line)
        except ValueError:
            return None
        if not isinstance(report, dict):
            return None
        known = {field.name for field in dataclasses.fields(cls)}
        return cls(**{name: value for name, value in report.items() if name in known})


@dataclasses.dataclass(frozen=True)
class Seen:
    """The slice, and the workers that answered."""

    slice: Slice
    workers: tuple[Worker, ...] = ()
    done: bool = False  # this run ended with 0 and its slice was deleted, or is about to be


@dataclasses.dataclass(frozen=True)
class Action:
    """One of create, delete, wait, copy, install, start, halt (end the processes), finish, clear (done, so delete)."""

    do: str
    why: str
    attempt: int = 0  # of start
    code: int = 0  # of finish: the launcher's exit code


def next_action(wanted: Wanted, seen: Seen) -> Action:
    """The one thing to do about what is seen."""
    state, node = seen.slice.state, seen.slice.node
    if seen.done and wanted.delete_when_done:
        if state == ABSENT or state in ENDING:
            return Action("finish", "done, and the slice is deleted; `delete` forgets that it was done", code=0)
        return Action("clear", "done before")
    if state == ABSENT:
        return Action("create", "there is no such slice")
    if state in QUEUED:
        return Action("wait", f"the request is {state}")
    if state in ENDING:
        return Action("wait", f"the slice before is {state}")
    if state == "FAILED" and not wanted.again and (remedy := _needs_the_user(seen.slice.error)):
        return Action("finish", f"the request failed: {seen.slice.error}; {remedy}", code=BAD_INPUT)
    if state == "FAILED":
        return Action("delete", f"the request failed: {seen.slice.error or 'no reason given'}")
    if state == "SUSPENDED":
        return Action("delete", "the slice was taken away")
    if node.state in LOST_NODE:
        return Action("delete", f"its machines are {node.state or 'gone'}")
    if node.state != "READY":
        return Action("wait", f"its machines are {node.state}")
    if node.accelerator and node.accelerator != wanted.accelerator:
        why = (
            f"the slice of this name is {node.accelerator}, not {wanted.accelerator}; take another --name, or `delete`"
        )
        return Action("finish", why, code=BAD_INPUT)
    if len(seen.workers) < node.workers:
        answered = {worker.number for worker in seen.workers}
        silent = [str(i) for i in range(node.workers) if i not in answered]
        return Action("wait", f"no answer from worker {', '.join(silent)}")
    return _about_workers(wanted, seen.workers)


def _needs_the_user(error: str) -> str:
    """The remedy for a request that would fail again; "" for one that may come through (no capacity)."""
    if re.search("quota", error, re.IGNORECASE):
        return "ask for quota in this zone (IAM & Admin → Quotas), or take a smaller --accelerator or another --zone"
    if re.search("INVALID_ARGUMENT|PERMISSION_DENIED|NOT_FOUND|FAILED_PRECONDITION", error):
        return "repair that and launch again"
    return ""


def _about_workers(wanted: Wanted, workers: tuple[Worker, ...]) -> Action:
    """All workers answer."""
    for worker in workers:
        if worker.alive and worker.run != wanted.run:
            other = f"worker {worker.number} runs another command, or other code or files than these"
            return Action("finish", f"{other} (run {worker.run}); `stop` it first", code=BAD_INPUT)
    if any(worker.bundle != wanted.bundle for worker in workers):
        return Action("copy", "workers lack the code")
    if any(worker.installed != wanted.bundle for worker in workers):
        return Action("install", "workers lack the packages")
    ours = [worker for worker in workers if worker.run == wanted.run]
    newest = max((worker.attempt for worker in ours), default=0)
    current = [worker for worker in ours if worker.attempt == newest]
    ended = [worker for worker in current if not worker.alive]
    if any(worker.alive for worker in workers):
        if ended and max(worker.ended_ago for worker in ended) > wanted.grace:
            return Action("halt", f"{_names(ended)} ended, the others go on without")
        if len(current) < len(workers) and not any(worker.alive for worker in ours if worker.attempt < newest):
            return Action("start", "not all workers have started", attempt=newest)
        return Action("wait", f"attempt {newest} runs" + (f", {_names(ended)} ended" if ended else ""))
    if not newest:
        return Action("start", "nothing runs yet", attempt=1)
    if len(current) < len(workers):
        return Action("start", f"attempt {newest} did not start everywhere", attempt=newest + 1)
    return _about_codes(wanted, current)


def _about_codes(wanted: Wanted, ended: list[Worker]) -> Action:
    """All workers ended one attempt. A peer of one that failed for good ends with 75: the worst code decides."""
    attempt = ended[0].attempt
    if all(worker.code == 0 for worker in ended):
        if wanted.delete_when_done:
            return Action("clear", "done")
        return Action("finish", "done", code=0)
    if wanted.again:
        return Action("start", f"attempt {attempt} had ended", attempt=attempt + 1)
    if any(worker.stopped for worker in ended):
        return Action("finish", "stopped; launch again to go on", code=START_AGAIN)
    final = [w for w in ended if w.code not in (0, START_AGAIN, ABORTED) and w.code not in KILLED]
    for code, what in ((BAD_INPUT, "bad input"), (DIVERGED, "diverged")):
        if those := [worker for worker in final if worker.code == code]:
            return Action("finish", f"{what}: {_last_words(those[0])}", code=code)
    if final:
        why = f"a fault, exit code {final[0].code}, not started again: {_last_words(final[0])}"
        return Action("finish", why, code=FAULT)
    if max(w.short for w in ended) + 1 >= wanted.patience and max(w.seconds for w in ended) < SHORT:
        broken = next(worker for worker in ended if worker.code)
        why = f"{wanted.patience} attempts in a row ended at once, the last with {_codes(ended)}"
        return Action("finish", f"{why}: {_last_words(broken)}", code=START_AGAIN)
    return Action("start", f"attempt {attempt} ended with {_codes(ended)}", attempt=attempt + 1)


def _names(workers: list[Worker]) -> str:
    return "worker " + ", ".join(str(worker.number) for worker in workers)


def _codes(workers: list[Worker]) -> str:
    return ", ".join(f"{worker.code} (worker {worker.number})" for worker in workers)


def _last_words(worker: Worker) -> str:
    return f"worker {worker.number} said:\n{worker.tail.strip()}"
