"""How every command ends: one message for bad input, and the exit codes people script against."""

import sys
from collections.abc import Callable

BAD_INPUT, DIVERGED, START_AGAIN, INTERRUPTED = 2, 3, 75, 130


class BadInput(Exception):
    """Input or set-up that we cannot work with. The message names the field or file, the value and the remedy."""


class Diverged(Exception):
    """Training produced a NaN, a spike or an impossible first loss, and the recipe says to stop."""


class StartAgain(Exception):
    """The process must end and the same command goes on: preempted, or a peer was lost. The message says which."""


def run(main: Callable[[list[str]], None]) -> None:
    """Run a command's `main(argv)` and exit: 0 done, 2 bad input (one message, no traceback), 3 diverged.

    75 (sysexits.h, EX_TEMPFAIL): start again. 130: interrupted from the keyboard. Anything else that escapes is a fault
    in our code: Python prints its traceback and exits with 1.
    """
    try:
        main(sys.argv[1:])
    except BadInput as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(BAD_INPUT)
    except Diverged as error:
        print(f"diverged: {error}", file=sys.stderr)
        sys.exit(DIVERGED)
    except StartAgain as error:
        print(f"error: {error}; start this process again", file=sys.stderr)
        sys.exit(START_AGAIN)
    except KeyboardInterrupt:
        print("interrupted; the same command goes on where it stopped", file=sys.stderr)
        sys.exit(INTERRUPTED)
