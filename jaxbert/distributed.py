"""A run of several processes: they start together or not at all, and end together when one is lost.

A start: flags or jax's own detection say where this process stands (`find_place`), the roll-call compares all of them
(rollcall.py), then `jax.distributed.initialize`. From then on a thread beats and listens on the roll-call's
connections: each process hears process 0, and process 0 hears all. A killed peer's connection closes at once, a frozen
one's beats stop; process 0 tells the others its name, and every survivor ends with code 75.

Why a line of our own: jaxlib's survivors of a dead peer hang until a heartbeat times out, then abort in a C++ thread,
where no Python code runs, and name a number at best. Its own notice stays as the second line, with a C handler of
SIGABRT, so that even then the exit code is 75.
"""

import argparse
import collections
import contextlib
import ctypes
import os
import selectors
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import jax
from jax._src import distributed as _jax_distributed  # its client: the coordination service's barriers

from jaxbert import config, errors, progress, rollcall
from jaxbert.errors import FAULT, BadInput, StartAgain, ending
from jaxbert.rollcall import Place, Wire

BEAT_EVERY = 2.0  # seconds
GRACE = 10.0  # seconds that a process has to end by itself when it hears that another one ended by an error
LINGER = 2.0  # seconds that process 0 stays, so that its last word arrives before its connections close
HEARTBEAT_TIMEOUT = 60  # seconds, of jaxlib: after ours, so that a name is known
SHUTDOWN_TIMEOUT = 300  # seconds that a finished process waits for the others, which may still save
_A_DAY = 86_400_000  # milliseconds


def add_flags(parser: argparse.ArgumentParser) -> None:
    """--coordinator, --processes, --process, --start-timeout."""
    group = parser.add_argument_group("several processes (detected on TPU pods, SLURM, Open MPI, Kubernetes)")
    group.add_argument("--coordinator", metavar="HOST:PORT", help="process 0's host; the roll-call takes a second port")
    group.add_argument("--processes", type=int, metavar="N", help="1: alone, whatever is detected")
    group.add_argument("--process", type=int, metavar="I", help="this one, from 0")
    group.add_argument("--start-timeout", type=float, default=300.0, metavar="SECONDS", help="for all to come: 300")


def find_place(flags: argparse.Namespace) -> Place | None:
    """Where this process stands, from flags and jax's detection of the cluster; None: it is alone.

    Raises BadInput where neither says all that is needed, or what they say cannot be.
    """
    coordinator = flags.coordinator or os.environ.get("JAX_COORDINATOR_ADDRESS")
    found: Any = (coordinator, flags.processes, flags.process, None)
    if found[:3] == (None, 1, None):
        return None
    if None in found[:3]:
        from jax._src.clusters import ClusterEnv  # what jax.distributed.initialize asks

        try:
            found = ClusterEnv.auto_detect_unset_distributed_params(
                coordinator, flags.processes, flags.process, None, None, int(flags.start_timeout)
            )
        except Exception as error:  # of metadata servers, name servers, the Kubernetes API
            raise BadInput(
                f"the cluster does not say where this process stands ({type(error).__name__}: {error}); give "
                "--coordinator, --processes and --process, or --processes=1 to train alone"
            ) from None
    if found[:3] == (None, None, None) or found[1:3] == (1, 0):
        return None
    names = ("--coordinator", "--processes", "--process")
    if missing := [name for name, value in zip(names, found, strict=False) if value is None]:
        raise BadInput(f"{' and '.join(missing)}: not given, and no cluster is detected that says it; give all three")
    address, processes, process, devices = found
    place = Place(address, processes, process, None if devices is None else tuple(devices))
    place.check()
    return place


class Peers:
    """Who of those that this process hears is lost; a pure function of what was heard and the clock (seconds)."""

    def __init__(self, numbers: list[int], silence: float, clock: float):
        """`silence`: seconds without a sign of life after which a peer is lost."""
        self.silence, self._heard = silence, dict.fromkeys(numbers, clock)
        self._doing: dict[int, str] = {}
        self._clock = clock

    def heard(self, number: int, clock: float, doing: str | None = None) -> None:
        """A sign of life; `doing`: where the peer is, as it said."""
        if number in self._heard:
            self._heard[number] = clock
            self._doing[number] = doing or self._doing.get(number, "")

    def finished(self, number: int) -> None:
        """It said goodbye: it will not be missed."""
        self._heard.pop(number, None)

    def expected(self, number: int) -> bool:
        """Whether its silence would be a loss."""
        return number in self._heard

    def beats(self, number: int, clock: float) -> bool:
        """Whether it was heard within the last few beats."""
        return number in self._heard and clock - self._heard[number] < 5 * BEAT_EVERY

    def lost(self, clock: float) -> int | None:
        """The number of a peer that has been silent for too long.

        Called often; if not, this process itself stood still (stopped, or Python's lock was held), and what it did not
        hear says nothing.
        """
        if clock - self._clock > self.silence / 2:
            self._heard = dict.fromkeys(self._heard, clock)
        self._clock = clock
        return next((number for number, at in self._heard.items() if clock - at > self.silence), None)

    def silent_for(self, number: int, clock: float) -> float:
        """Seconds since its last sign of life."""
        return clock - self._heard[number]

    def doing(self, number: int) -> str:
        """ ", was in save at step 500", or "" if it never said."""
        return f", was in {self._doing[number]}" if self._doing.get(number) else ""


class Team:
    """This process among the others: a thread that beats, listens and judges, and the ways out."""

    def __init__(self, place: Place, wires: dict[int, Wire], listener: Any, silence: float):
        """`wires`: number → connection; process 0 has all others and the `listener`, the others have process 0."""
        self.place, self.wires, self.listener = place, wires, listener
        self.peers = Peers(list(wires), silence, time.monotonic())
        self._ended: tuple[float, str] | None = None  # when, and what, a peer said before it ended by an error
        self._leaving = self._done = False  # by an error; all finished
        self._stop = threading.Event()
        self._last = threading.Lock()  # taken by the thread that ends the process, and never given back
        self._thread = threading.Thread(target=self._run, name="jaxbert-peers", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        beat_at = 0.0
        with selectors.DefaultSelector() as selector:
            for number, wire in self.wires.items():
                selector.register(wire, selectors.EVENT_READ, number)
            if self.listener is not None:
                selector.register(self.listener, selectors.EVENT_READ)
            while not self._stop.is_set():  # without peers, too: the last one may have said why it went
                events, now = selector.select(0.5), time.monotonic()
                for key, _ in events:
                    if key.fileobj is self.listener:
                        self._turn_away(now)
                    else:
                        self._listen(key.data, now, selector)
                if now - beat_at >= BEAT_EVERY:
                    beat_at = now
                    self._tell(beat=str(progress.now()))
                if (lost := self.peers.lost(now)) is not None:
                    self._lose(lost, f"no sign of life for {self.peers.silent_for(lost, now):.0f} s")
                if self._ended and now - self._ended[0] > GRACE and not self._leaving:
                    self.end(self._ended[1])

    def _listen(self, number: int, now: float, selector: selectors.BaseSelector) -> None:
        wire = self.wires[number]
        for message in wire.receive():
            self.peers.heard(number, now, message.get("beat"))
            if "lost" in message:
                self._lose(message["lost"], message["why"])
            elif "ended" in message:
                self._hear_end(number, now, message)
        if wire.closed:
            selector.unregister(wire)
            del self.wires[number]
            wire.close()
            if self.peers.expected(number):
                self._lose(number, "its connection closed")

    def _hear_end(self, number: int, now: float, message: dict[str, Any]) -> None:
        """A peer says that it ends: `ended`: its exit code, `of`: its number (process 0 passes on), `text`: why."""
        of, code = message["of"], message["ended"]
        if of == number:
            self.peers.finished(number)
        if code and not self._ended:
            self._ended = now, f"process {of} ended with code {code}: {message['text']}"
            for other, wire in self.wires.items() if self.place.process == 0 else ():
                if other != of:
                    wire.send(**message)

    def _lose(self, number: int, why: str) -> None:
        """A peer is lost, or this process is to the others, who said so."""
        if self._leaving:
            self.peers.finished(number)
            return
        why += self.peers.doing(number)
        text = f"lost process {number}{' (coordinator)' if number == 0 else ''}: {why}"
        if number == self.place.process:  # stopped for long, and now continued
            text = f"the other processes took this one for lost: {why}"
        elif self._ended:  # the peer went because of another's end, as this process is about to
            text = self._ended[1]
        self._end(text, lost=number, why=why)

    def _turn_away(self, now: float) -> None:
        """Process 0: one that comes when all are there. It is a twin, or takes the place of one soon found lost."""
        wire = rollcall.accept(self.listener)
        if wire is None:
            return
        deadline = now + 1
        while time.monotonic() < deadline and not wire.closed:
            for hello in wire.receive():
                number, name = hello.get("process"), hello.get("who")
                if number == 0 or self.peers.beats(number, now):
                    wire.send(refused=rollcall.twins(number, "one that trains already", f"{name}"))
                deadline = now
            time.sleep(0.02)
        wire.close()

    def _tell(self, **message: Any) -> None:
        for wire in list(self.wires.values()):
            wire.send(**message)

    def end(self, why: str) -> NoReturn:
        """End this process with code 75, and with it the run: the others hear why. From any thread."""
        self._end(why, ended=errors.START_AGAIN, of=self.place.process, text=why)

    def _end(self, text: str, /, **word: Any) -> NoReturn:
        self._last.acquire()
        self._leaving = True
        self._tell(**word)
        self._wait_for_others(LINGER)
        errors.end(StartAgain(f"process {self.place.process}: {text}"))

    def _wait_for_others(self, seconds: float) -> None:
        """Process 0 goes last: its end is what jaxlib in the others would notice first."""
        deadline = time.monotonic() + (seconds if self.place.process == 0 else 0.2)
        in_line = threading.current_thread() is self._thread
        while time.monotonic() < deadline and self.wires:
            if in_line:
                for number, wire in list(self.wires.items()):
                    wire.receive()
                    if wire.closed:
                        del self.wires[number]
            time.sleep(0.05)

    def leave_by(self, error: BaseException) -> NoReturn:
        """End by an error, as errors.run would, and tell the others why; not by Python's exit, which waits for them.

        What looks like a fault of ours may be the echo of a lost peer (a closed connection in a collective): then the
        thread that hears of the loss ends this process.
        """
        known = ending(error)
        if known is None and not isinstance(error, SystemExit):
            time.sleep(self.peers.silence + 5 if isinstance(error, jax.errors.JaxRuntimeError) else 3)
        self._last.acquire()
        self._leaving = True
        code = known[0] if known else FAULT
        self._tell(ended=code, of=self.place.process, text=str(error) or type(error).__name__)
        self._wait_for_others(GRACE + LINGER)
        sys.stdout.flush()
        if known:
            errors.end(error)
        traceback.print_exception(error)
        sys.stderr.flush()
        os._exit(FAULT)

    def leave(self) -> None:
        """The end of a finished run: all wait for each other, and none is missed."""
        self._tell(ended=0, of=self.place.process, text="done")
        self._done = True
        jax.distributed.shutdown()
        self._stop.set()
        self._thread.join()
        for wire in list(self.wires.values()):
            wire.close()

    def aborted(self) -> NoReturn:
        """jaxlib has given up in one of its threads: what is known of the reason is known within seconds."""
        if not self._done:
            time.sleep(GRACE + LINGER)
            self.end("process 0 (coordinator) or a peer was lost: jaxlib gave up and said why above")
        os._exit(0)  # the run was finished and saved; only the others' goodbye was not heard


@contextlib.contextmanager
def _on_abort(act: Callable[[], Any]) -> Iterator[None]:
    """While this holds, an abort of this process calls `act`, from C: Python's own handlers would never run."""
    handler = ctypes.CFUNCTYPE(None, ctypes.c_int)(lambda _: act())
    libc = ctypes.CDLL(None)
    libc.signal.argtypes, libc.signal.restype = [ctypes.c_int, ctypes.c_void_p], ctypes.c_void_p
    libc.signal(int(signal.SIGABRT), ctypes.cast(handler, ctypes.c_void_p))
    yield
    libc.signal(int(signal.SIGABRT), int(signal.SIG_DFL))


def _assemble(place: Place, settings: config.Config, workdir: Path, timeout: float) -> Team:
    """The roll-call. Raises BadInput or StartAgain, the same on every process."""

    def say(line: str) -> None:
        print(f"process {place.process}: {line}", file=sys.stderr, flush=True)

    hello: dict[str, Any]
    try:
        hello = {"report": rollcall.report(settings, workdir)}
    except BadInput as error:
        hello = {"refused": str(error)}
    if place.process:
        return Team(place, {0: rollcall.answer(place, hello, timeout, say)}, None, settings.limits.silence)
    listener = rollcall.listen(place)
    return Team(place, rollcall.Call(place, listener, hello, timeout, say).wait(), listener, settings.limits.silence)


def _initialize(place: Place, timeout: float) -> None:
    """jax's own start. Raises BadInput if the processes do not have equally many devices."""
    jax.distributed.initialize(
        place.address,
        place.processes,
        place.process,
        None if place.local_device_ids is None else list(place.local_device_ids),
        cluster_detection_method="deactivate",  # find_place has asked
        initialization_timeout=max(1, int(timeout)),
        heartbeat_timeout_seconds=HEARTBEAT_TIMEOUT,
        shutdown_timeout_seconds=SHUTDOWN_TIMEOUT,
    )
    counts = collections.Counter(device.process_index for device in jax.devices())
    told = rollcall.difference(
        {number: {"devices": counts[number]} for number in range(place.processes)},
        {number: f"process {number}" for number in range(place.processes)},
    )
    if told or len(counts) != place.processes:
        raise BadInput(told or f"--processes: {place.processes}, but jax sees devices of {len(counts)} processes")


def meet(where: str) -> None:
    """Wait until all processes of the run are at this place, by name; alone, nothing happens.

    Before programs that exchange data for the first time: gloo gives up a connection (on CPUs) whose other end does not
    come within 30 s, and processes do not read, compile and start threads equally fast. Lost peers end the wait as they
    end everything, and the watchdog's phase limits it.
    """
    if jax.process_count() > 1:
        _jax_distributed.global_state.client.wait_at_barrier(f"jaxbert/{where}", _A_DAY)


@contextlib.contextmanager
def joined(
    place: Place | None, settings: config.Config, workdir: Path, timeout: float
) -> Iterator[Callable[[str], NoReturn]]:
    """This process as one of a run's, from the roll-call to the common end; gives a function that ends it and says why.

    None as `place`: alone, nothing happens. Raises BadInput and StartAgain before the start; after it, an error that
    leaves this context ends the process here.
    """
    if place is None:
        yield lambda why: errors.end(StartAgain(why))
        return
    team = _assemble(place, settings, workdir, timeout)
    with _on_abort(team.aborted):
        try:
            _initialize(place, timeout)
            yield team.end
            team.leave()
        except BaseException as error:
            team.leave_by(error)
