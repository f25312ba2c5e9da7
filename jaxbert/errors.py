"""How every command ends: one message for bad input, and the exit codes people script against."""

import contextlib
import os
import sys
from collections.abc import Callable
from typing import NoReturn

FAULT = 1
BAD_INPUT, DIVERGED, START_AGAIN, INTERRUPTED = 2, 3, 75, 130


class BadInput(Exception):
    """Input or set-up that we cannot work with. The message names the field or file, the value and the remedy."""


class Diverged(Exception):
    """Training produced a NaN, a spike or an impossible first loss, and the recipe says to stop."""


class StartAgain(Exception):
    """The process must end and the same command goes on: preempted, or a peer was lost. The message says which."""


def ending(error: BaseException) -> tuple[int, str] | None:
    """(exit code, last line) of an error that a command ends with by design; None: a fault of ours, or no error.

    0 done, 2 bad input, 3 diverged, 75 (sysexits.h, EX_TEMPFAIL) start again, 130 interrupted from the keyboard.
    """
    if isinstance(error, BadInput):
        return BAD_INPUT, f"error: {error}"
    if isinstance(error, Diverged):
        return DIVERGED, f"diverged: {error}"
    if isinstance(error, StartAgain):
        return START_AGAIN, f"error: {error}; start this process again"
    if isinstance(error, KeyboardInterrupt):
        return INTERRUPTED, "interrupted; the same command goes on where it stopped"
    return None


def end(error: BaseException) -> NoReturn:
    """End the process from any thread, now, as `run` would for an error of `ending`: the line is the last one."""
    code, line = ending(error)  # type: ignore[misc]
    with contextlib.suppress(OSError):  # the disk of its log may be what is full
        os.write(2, f"{line}\n".encode())
    os._exit(code)


def run(main: Callable[[list[str]], None]) -> None:
    """Run a command's `main(argv)` and exit as `ending` says: one message, no traceback.

    Anything else that escapes is a fault in our code: Python prints its traceback and exits with 1.
    """
    try:
        main(sys.argv[1:])
    except BaseException as error:
        ended = ending(error)
        if ended is None:
            raise
        print(ended[1], file=sys.stderr)
        sys.exit(ended[0])
