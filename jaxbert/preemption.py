"""A machine that is taken back: SIGTERM, which is also how a TPU VM's notice arrives.

Before the first step there is nothing to save, and the process ends at once. Afterwards all processes agree on the end
of one step, save it, and end with StartAgain. A second SIGTERM changes nothing.
"""

import contextlib
import ctypes
import os
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

import jax
from jax.experimental import multihost_utils


class Notice:
    """Whether this machine, or with several processes any of theirs, is taken back."""

    def __init__(self) -> None:
        """Nothing has come, and no step has begun."""
        self.come = self._stepping = False
        self._lock = threading.Lock()  # what came before `begin` ends the process, what comes after does not

    def begin(self) -> None:
        """Steps begin: from now on a notice waits for the end of one."""
        with self._lock:
            self._stepping = True

    def reached(self, step: int) -> bool:
        """Whether to save now and end; all processes get the same answer, so each asks after every step."""
        if jax.process_count() == 1:
            return self.come
        return multihost_utils.reached_preemption_sync_point(step)

    def _watch(self, pipe: int, end: Callable[[str], Any], tell_jax: Callable[[int], None] | None) -> None:
        """Reads the numbers of signals until the pipe is closed. In a thread, because a compiler holds the main one."""
        while number := os.read(pipe, 1):
            if number[0] != signal.SIGTERM:
                continue
            with self._lock:
                if not self._stepping:
                    end("preempted before the first step")
                self.come = True
            if tell_jax is not None:
                tell_jax(signal.SIGTERM)
        os.close(pipe)


@contextlib.contextmanager
def listen(end: Callable[[str], Any]) -> Iterator[Notice]:
    """A notice that hears of SIGTERM while the block runs; in another thread than the main one it never does.

    `end`, from any thread: end this process with code 75 and say why.
    """
    notice = Notice()
    if threading.current_thread() is not threading.main_thread():
        yield notice
        return
    # jax.distributed has a handler in C, which starts the agreement of all processes; Python's would replace it.
    tell_jax = _handler_in_c() if jax.distributed.is_initialized() else None
    heard, said = os.pipe()
    os.set_blocking(said, False)
    before = signal.signal(signal.SIGTERM, lambda number, frame: None)
    pipe_before = signal.set_wakeup_fd(said, warn_on_full_buffer=False)
    threading.Thread(target=notice._watch, args=(heard, end, tell_jax), daemon=True).start()
    try:
        yield notice
    finally:
        signal.set_wakeup_fd(pipe_before)
        # One more must not change how a process ends that is on its way out.
        after = signal.SIG_IGN if notice.come else signal.SIG_DFL if before is None else before
        signal.signal(signal.SIGTERM, after)
        os.close(said)


def _handler_in_c() -> Callable[[int], None] | None:
    """The process's present handler of SIGTERM, if it is a function in C."""
    libc = ctypes.CDLL(None)
    libc.signal.restype, libc.signal.argtypes = ctypes.c_void_p, [ctypes.c_int, ctypes.c_void_p]
    address = libc.signal(signal.SIGTERM, None)  # SIG_DFL for a moment
    libc.signal(signal.SIGTERM, address)
    return ctypes.CFUNCTYPE(None, ctypes.c_int)(address) if address not in (None, 1) else None
