"""Progress of work that reports (done, total, what): a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def bar(title: str) -> Iterator[Callable[[int, int, str], None]]:
    """Yields the callback. Plain lines come every ten seconds and at the end."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    if not console.is_terminal:
        began = last = time.monotonic()

        def say(done: int, total: int, what: str) -> None:
            nonlocal last
            now = time.monotonic()
            if now - last >= 10 or done == total:
                last = now
                left = (now - began) / max(done, 1) * (total - done)
                print(f"{title}: {what}, {done} of {total}, {left:.0f} s left", flush=True)

        yield say
        return
    columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console) as progress:
        task = progress.add_task(title, total=None)

        def show(done: int, total: int, what: str) -> None:
            progress.update(task, completed=done, total=total, description=f"{title}: {what}")

        yield show
