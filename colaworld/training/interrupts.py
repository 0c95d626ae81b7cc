"""SIGTERM, SIGHUP and Ctrl-C as a request to stop after the current step; a second one stops at once.

Not here: what is saved then (trainer.py).
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from types import FrameType, TracebackType
from typing import Any

_GRACE = 5.0  # torchrun and a cluster's scheduler may pass the same signal on, one after the other


class StopRequest:
    """Context that turns the first SIGINT, SIGTERM or SIGHUP into `requested`, a signal name.

    It says so at once on standard error, since a step may take long. A SIGHUP that is ignored (nohup)
    stays ignored. Outside the main thread signals cannot be caught; then nothing is installed.

    Args:
        processes: how many train together. Of several, what comes again within seconds counts as the
            same request.
        says: whether this is the one that speaks.
    """

    def __init__(self, processes: int = 1, *, says: bool = True) -> None:
        self.requested: str | None = None
        self._says, self._grace = says, _GRACE if processes > 1 else 0.0
        self._asked = 0.0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                if number == signal.SIGHUP and signal.getsignal(number) == signal.SIG_IGN:
                    continue
                self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._restore()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.requested is None:
            self.requested = signal.Signals(number).name
            self._asked = time.monotonic()
            if not self._says:
                return
            said = f"\n{self.requested}: stopping after this step; again: at once\n"
            with contextlib.suppress(OSError):  # the terminal may be what has gone
                os.write(2, said.encode())
            return
        if time.monotonic() - self._asked < self._grace:
            return
        self._restore()
        signal.raise_signal(number)

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)
        self._before.clear()
