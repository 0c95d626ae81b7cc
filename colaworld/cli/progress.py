"""Progress of work that reports (done, total, what): a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def bar(title: str, *, stages: bool = False) -> Iterator[Callable[[int, int, str], None]]:
    """Yields the callback. Plain lines come every ten seconds and at the end.

    stages: `what` names parts of the work of which each has its own pace; a line comes with each.
    """
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    if not console.is_terminal:
        began = earlier = printed = time.monotonic()
        before = passed = whole = 0
        stage = ""

        def say(done: int, total: int, what: str) -> None:
            nonlocal began, before, earlier, passed, printed, stage, whole
            now, new = time.monotonic(), stages and what != stage
            if new:
                # Parts of one total count on; one with a total of its own counts from nothing.
                stage, began, before = what, earlier, passed if total == whole else 0
            earlier, passed, whole = now, done, total
            if new or now - printed >= 10 or done == total:
                printed = now
                left = (now - began) / max(done - before, 1) * (total - done)
                print(f"{title}: {what}, {done} of {total}, {left:.0f} s left", flush=True)

        yield say
        return
    columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console) as progress:
        task = progress.add_task(title, total=None)

        def show(done: int, total: int, what: str) -> None:
            progress.update(task, completed=done, total=total, description=f"{title}: {what}")

        yield show
