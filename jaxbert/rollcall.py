"""The roll-call before `jax.distributed.initialize`: every process says what it is, and process 0 compares.

jaxlib waits for a missing process for minutes and then dies without naming it, and processes of different code or data
hang in their first exchange. So each process first connects to process 0, over TCP, and reports; process 0 answers all
of them at once: go, a difference (with the odd process's name), or the names of those who never came. The connections
stay open: they are the line over which processes know of each other in training (distributed.py).
"""

import collections
import contextlib
import dataclasses
import hashlib
import importlib.metadata
import json
import select
import selectors
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

from jaxbert import __version__, config
from jaxbert.data import stages
from jaxbert.data.tokenizer import TextTokenizer
from jaxbert.errors import BadInput, StartAgain
from jaxbert.prepare import load_corpus
from jaxbert.progress import who

SAY_EVERY = 15.0  # seconds between two lines that name the missing
SETTLE = 10.0  # seconds that processes have to come and hear why there will be no start
PACKAGES = ("jax", "jaxlib", "libtpu", "flax", "optax", "orbax-checkpoint", "numpy")  # whose versions must be the same
MAY_DIFFER = ("corpus.directory", "corpus.input", "corpus.workers")  # of a recipe: they change no batch and no step
_LONGEST = 1 << 20  # bytes of a message: more is a stranger's
_PORT_SHIFT = 1 << 15

Say = Callable[[str], None]


@dataclasses.dataclass(frozen=True)
class Place:
    """Where this process stands in the run."""

    address: str  # HOST:PORT of jax's coordinator, which process 0 runs
    processes: int
    process: int
    local_device_ids: tuple[int, ...] | None = None  # None: all devices of this machine

    @property
    def host(self) -> str:
        """Of process 0, without the brackets of an IPv6 address."""
        return self.address.rpartition(":")[0].strip("[]")

    @property
    def port(self) -> int:
        """Of the roll-call.

        The coordinator's + 1, or, where that one is above Linux's ephemeral ports as in jax's choice for SLURM and
        Open MPI, 32,768 below it: there job N + 1 has its coordinator at job N's port + 1.
        """
        port = int(self.address.rpartition(":")[2])
        return port + 1 if port < _PORT_SHIFT + 1024 else port - _PORT_SHIFT

    def check(self) -> None:
        """Raises BadInput for an address without a port or that does not resolve, or a process out of range."""
        host, colon, port = self.address.rpartition(":")
        if not (colon and host and port.isdecimal() and 0 < int(port) < 2**16):
            raise BadInput(f"--coordinator: {self.address!r} is not HOST:PORT; give process 0's host and a free port")
        if not 0 <= self.process < self.processes:
            raise BadInput(
                f"--process: {self.process} of --processes={self.processes}; they count from 0 to {self.processes - 1}"
            )
        try:
            socket.getaddrinfo(self.host, self.port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError) as error:
            raise BadInput(
                f"--coordinator: {self.host!r} does not resolve ({error}); give the name or address of process 0's host"
            ) from None


def report(settings: config.Config, workdir: Path) -> dict[str, Any]:
    """What must be the same on every process, item → value; rows are known by their tokens and are not read.

    Raises BadInput for a corpus that is not prepared.
    """
    versions: dict[str, Any] = {"jaxbert": f"{__version__} (source {_source()})"}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = "absent"
    directory = Path(settings.corpus.directory)
    corpus = load_corpus(directory)
    # Rows are a pure function of the tokens, the weights and the recipe; they may not have been made yet.
    made_from = {
        "tokens": stages.read_record(directory, "tokens")["report"]["fingerprint"],
        "weights": corpus.get("weights", {}),
        "validation": stages.read_record(directory, "validation"),
    }
    return {
        **versions,
        "tokenizer": TextTokenizer.load(directory / "tokenizer").fingerprint[:12],
        "rows": hashlib.sha256(json.dumps(made_from, sort_keys=True).encode()).hexdigest()[:12],
        "--workdir": str(workdir),
        **{f"recipe {n}": value for n, value in _leaves(config.to_dict(settings)) if n not in MAY_DIFFER},
    }


def _leaves(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted name, value) of everything in a recipe's plain values."""
    for name, value in sorted(values.items()):
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _source() -> str:
    """Eight digits that two checkouts of this package share only if their code is the same."""
    digest, package = hashlib.sha256(), Path(__file__).parent
    for path in sorted(package.rglob("*.py")):
        digest.update(f"{path.relative_to(package)}\0".encode() + path.read_bytes())
    return digest.hexdigest()[:8]


def difference(reports: dict[int, dict[str, Any]], names: dict[int, str]) -> str | None:
    """In what the processes' reports differ and which one is odd, in a sentence with both values; None: in nothing.

    Odd is who is in the minority; of two processes, process 1. `names`: process → how it is called.
    """
    told, numbers = [], sorted(reports)
    for item in dict.fromkeys(item for number in numbers for item in reports[number]):
        values = {number: json.dumps(reports[number].get(item), ensure_ascii=False) for number in numbers}
        usual = collections.Counter(values.values()).most_common(1)[0][0]  # of equals, the first: process 0's
        odd = [number for number in numbers if values[number] != usual]
        if odd:
            others = [number for number in numbers if values[number] == usual]
            rest = f"process {others[0]} has" if len(others) == 1 else f"the other {len(others)} have"
            told.append(f"{names[odd[0]]} has {item} {values[odd[0]]}, {rest} {usual}")
    if not told:
        return None
    more = f"; and {len(told) - 4} more differences" if len(told) > 4 else ""
    return (
        f"the processes differ: {'; '.join(told[:4])}{more}. Install the same versions, give the same recipe and the "
        "same prepared corpus everywhere, and start all processes again"
    )


class Wire:
    """A connection that carries JSON objects, a line each; `receive` never blocks, `send` a second at most."""

    def __init__(self, connection: socket.socket):
        """Takes the connected socket over."""
        connection.setblocking(False)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket, self.closed, self._received = connection, False, b""
        self._sending = threading.Lock()

    def fileno(self) -> int:
        """For `selectors`."""
        return self.socket.fileno()

    def send(self, **message: Any) -> None:
        """Hand a message to the kernel, from any thread; a broken connection is noticed by `receive`."""
        data = json.dumps(message).encode() + b"\n"
        with self._sending, contextlib.suppress(OSError, ValueError):
            writable = select.poll()
            writable.register(self.socket, select.POLLOUT)
            while data:
                if not writable.poll(1000):  # nobody reads the other end: half a message would spoil the next one
                    self.socket.shutdown(socket.SHUT_RDWR)
                    return
                data = data[self.socket.send(data) :]

    def receive(self) -> list[dict[str, Any]]:
        """All messages that are there; `closed` is set when there will be no more, or when a stranger talks."""
        try:
            while chunk := self.socket.recv(1 << 16):
                self._received += chunk
                if len(self._received) > _LONGEST:
                    raise ValueError("too long")
            self.closed = True
        except BlockingIOError:
            pass
        except (OSError, ValueError):
            self.closed = True
        *lines, self._received = self._received.split(b"\n")
        messages = []
        for line in lines:
            try:
                messages.append(dict(json.loads(line)))
            except (ValueError, TypeError):  # not ours: something else found the port
                self.closed = True
        return messages

    def close(self) -> None:
        """Close the socket; what was sent still arrives."""
        self.closed = True
        self.socket.close()


def listen(place: Place) -> socket.socket:
    """Process 0's socket for the roll-call, on all addresses of this machine as jax's coordinator.

    Raises BadInput for a port that is taken for longer than an earlier process 0 needs for its end.
    """
    both = socket.has_dualstack_ipv6()
    family, backlog = socket.AF_INET6 if both else socket.AF_INET, max(128, place.processes)
    deadline = time.monotonic() + SETTLE
    while True:
        try:
            listener = socket.create_server(("", place.port), family=family, dualstack_ipv6=both, backlog=backlog)
        except OSError as error:
            if time.monotonic() > deadline:
                raise BadInput(
                    f"--coordinator: {place.address}: cannot listen on its roll-call port {place.port} "
                    f"({error.strerror}); is another process 0 running here (two with --process=0)? If not, give "
                    "another port"
                ) from None
            time.sleep(0.5)
        else:
            listener.setblocking(False)
            return listener


class Call:
    """Process 0's side of the roll-call."""

    def __init__(self, place: Place, listener: socket.socket, hello: dict[str, Any], timeout: float, say: Say):
        """`hello`: as of `answer`; `timeout`: seconds until the start is given up."""
        self.place, self.listener, self.timeout, self.say = place, listener, timeout, say
        self.names, self.reports = {0: f"process 0 ({who()})"}, dict[int, dict[str, Any]]()
        self.wires: dict[int, Wire] = {}
        self._unnamed: set[Wire] = set()  # connections of which we do not know, or do not take, the number
        self._problem = ""  # why there will be no start
        self._began = self._problem_at = time.monotonic()
        self._hear(0, hello)

    def wait(self) -> dict[int, Wire]:
        """Process → its connection, when all are there and alike.

        Raises BadInput, on every process, for a difference, two processes with one number, or the BadInput that one of
        them met; StartAgain when some have not come in time.
        """
        said = self._began
        with selectors.DefaultSelector() as selector:
            selector.register(self.listener, selectors.EVENT_READ)
            while missing := self._missing():
                now = time.monotonic()
                if self._problem and now - self._problem_at > SETTLE:
                    break  # whoever comes later finds nobody
                if now - self._began > self.timeout:
                    self._end(StartAgain(f"{missing} did not come within {self.timeout:.0f} s"))
                if now - said >= SAY_EVERY:
                    said, line = now, f"waiting for {missing} ({now - self._began:.0f} s of {self.timeout:.0f} s)"
                    self.say(line)
                    self._tell(waiting=line)
                for key, _ in selector.select(0.5):
                    if key.fileobj is not self.listener:
                        self._read(key.fileobj, selector)  # type: ignore[arg-type]
                    elif (wire := accept(self.listener)) is not None:
                        self._unnamed.add(wire)
                        selector.register(wire, selectors.EVENT_READ)
        problem = self._problem or difference(self.reports, self.names)
        if problem:
            self._end(BadInput(problem))
        for wire in self._unnamed:
            wire.close()
        self._tell(go=True)
        return self.wires

    def _missing(self) -> str:
        """ "processes 1 and 3", "" if all are there; at most ten by number."""
        return numbered([n for n in range(1, self.place.processes) if n not in self.wires])

    def _read(self, wire: Wire, selector: selectors.BaseSelector) -> None:
        for hello in wire.receive():
            try:
                number, processes, name = int(hello["process"]), int(hello["processes"]), str(hello["who"])
            except (KeyError, TypeError, ValueError):  # a stranger
                wire.closed = True
                break
            ours = self.place.processes
            if processes != ours:
                self._fail(f"--processes: {processes} on process {number} ({name}), {ours} on process 0; give the same")
            elif number in self.wires:
                self._fail(twins(number, self.names[number], name))
            else:
                self._unnamed.discard(wire)
                self.wires[number], self.names[number] = wire, f"process {number} ({name})"
                self._hear(number, hello)
        if wire.closed:
            selector.unregister(wire)
            self._unnamed.discard(wire)
            self.wires = {number: w for number, w in self.wires.items() if w is not wire}
            wire.close()

    def _hear(self, number: int, hello: dict[str, Any]) -> None:
        if "refused" in hello:
            self._fail(f"{self.names[number]}: {hello['refused']}")
        else:
            self.reports[number] = hello["report"]

    def _fail(self, problem: str) -> None:
        if not self._problem:
            self._problem, self._problem_at = problem, time.monotonic()

    def _tell(self, **message: Any) -> None:
        for wire in self.wires.values():
            wire.send(**message)

    def _end(self, error: BadInput | StartAgain) -> NoReturn:
        """Say it to all that are there and raise it here."""
        how = "refused" if isinstance(error, BadInput) else "late"
        for wire in (*self.wires.values(), *self._unnamed):
            wire.send(**{how: str(error)})
            wire.close()
        raise error


def twins(number: int, first: str, second: str) -> str:
    """What to say of two processes with one number."""
    return (
        f"--process: two processes say that they are process {number}: {first} and {second}; give each its own number, "
        "and start the ones that ended again"
    )


def numbered(numbers: list[int]) -> str:
    """ "process 1", "processes 1 and 3", "" for none; of more than ten the first ten and how many more."""
    if len(numbers) < 2:
        return "".join(f"process {n}" for n in numbers)
    shown = [str(n) for n in numbers[:10]]
    last = f"{len(numbers) - 10} more" if len(numbers) > 10 else shown.pop()
    return f"processes {', '.join(shown)} and {last}"


def accept(listener: socket.socket) -> Wire | None:
    """The next connection that waits, None if none does."""
    try:
        return Wire(listener.accept()[0])
    except OSError:
        return None


def answer(place: Place, hello: dict[str, Any], timeout: float, say: Say) -> Wire:
    """The other processes' side: the connection to process 0, when it said that all are there and alike.

    `hello`: {"report": …} or {"refused": why this process cannot start}. Raises BadInput and StartAgain as `Call.wait`.
    """
    coordinator = f"process 0 (coordinator, {place.host}:{place.port})"
    began = said = time.monotonic()
    problem = "no answer"
    while (now := time.monotonic()) - began <= timeout:
        try:
            wire = Wire(socket.create_connection((place.host, place.port), 2))
        except OSError as error:
            problem = error.strerror or str(error)
        else:
            wire.send(process=place.process, processes=place.processes, who=who(), **hello)
            # Process 0 decides when it is late: it has heard of all the others, and may have started after this one.
            if _listen_to(wire, now + timeout + 2, say):
                return wire
            problem = "it went away, or trains with others already"
        if now - said >= SAY_EVERY:
            said = now
            say(f"waiting for {coordinator}: {problem} ({now - began:.0f} s of {timeout:.0f} s)")
        time.sleep(0.5)
    raise StartAgain(f"{coordinator} did not answer within {timeout:.0f} s: {problem}")


def _listen_to(wire: Wire, deadline: float, say: Say) -> bool:
    """Whether process 0 said "go" before it closed the connection. Raises what it said instead."""
    with selectors.DefaultSelector() as selector:
        selector.register(wire, selectors.EVENT_READ)
        while not wire.closed and (left := deadline - time.monotonic()) > 0:
            for _ in selector.select(left):
                for message in wire.receive():
                    if "go" in message:
                        return True
                    if "refused" in message:
                        raise BadInput(message["refused"])
                    if "late" in message:
                        raise StartAgain(message["late"])
                    if "waiting" in message:
                        say(message["waiting"])
    wire.close()
    return False
