"""How the command line tells a person what went wrong: one line on standard error, an exit status.

Not here: which errors there are. Every room raises ValueError (or a subclass) for its caller.
"""

from __future__ import annotations

import logging
import os
import sys

from colaworld.files import printable

FAILED, WRONG = 1, 2  # exit statuses: the work failed; it was asked for in a way that cannot work
# What a caller may have caused. Anything else is a fault of ours and shows its traceback.
FORESEEN = (ValueError, ImportError, OSError)
LINES = "\n\t"


class Tidy(logging.Filter):
    """Log lines as a terminal should get them: file names cannot send it commands, and a warning about
    data that was given is not given again, when the held-out share of the same set is opened."""

    def __init__(self) -> None:
        super().__init__()
        self._given: set[str] = set()

    def filter(self, record: logging.LogRecord) -> bool:
        """False for a repeated warning."""
        record.msg, record.args = printable(record.getMessage(), keep=LINES), ()
        if record.levelno != logging.WARNING or not record.name.startswith("colaworld.data"):
            return True
        new = record.msg not in self._given
        self._given.add(record.msg)
        return new


def report_error(program: str, error: BaseException) -> int:
    """Print `error`, return the exit status. With COLAWORLD_DEBUG set, raise it instead.

    Call it while the error is being handled.
    """
    if os.environ.get("COLAWORLD_DEBUG", "0") not in ("", "0"):
        raise error
    print(f"{program}: {printable(error, keep=LINES)}", file=sys.stderr)
    return status(error)


def status(error: BaseException) -> int:
    """1 where work broke off (a full disk, numbers that diverge), else 2."""
    from colaworld.training.protocols import UnstableTrainingError

    cause = error.__cause__
    broke_off = (OSError, UnstableTrainingError)
    return FAILED if isinstance(error, broke_off) or isinstance(cause, OSError) else WRONG
