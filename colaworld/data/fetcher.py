"""Threads that build batches ahead of the training step, in order."""

from __future__ import annotations

import logging
import queue
import threading
from typing import Any

from colaworld.data.batches import BatchBuilder
from colaworld.data.clips import ClipSet
from colaworld.data.config import DataConfig
from colaworld.data.errors import DataError
from colaworld.data.windows import Segment

log = logging.getLogger(__name__)
_BATCHES_AHEAD = 3  # finished batches that wait for the training step


class Fetcher:
    """One thread that builds batches in order, and some that decode what they will need.

    They are daemons: a read that never returns keeps neither the caller nor the process waiting.
    """

    def __init__(self, builder: BatchBuilder, config: DataConfig) -> None:
        self._builder, self._timeout = builder, config.timeout
        self._stop = threading.Event()
        self._ready: queue.Queue[Any] = queue.Queue(_BATCHES_AHEAD)
        self._wanted: queue.SimpleQueue[tuple[ClipSet, Segment] | None] = queue.SimpleQueue()
        builder.fetch = self._fetch
        self._threads = [
            threading.Thread(target=self._decode, name=f"decode-{n}", daemon=True)
            for n in range(config.workers)
        ]
        self._threads.append(threading.Thread(target=self._run, name="clips", daemon=True))
        for thread in self._threads:
            thread.start()

    def _run(self) -> None:
        try:
            while not self._stop.is_set():
                self._put(self._builder.build())
        except BaseException as error:  # handed to whoever asks for the next batch
            self._put(error)

    def _fetch(self, clips: ClipSet, segment: Segment) -> None:
        if not clips.is_decoded(segment):
            self._wanted.put((clips, segment))

    def _decode(self) -> None:
        while (job := self._wanted.get()) is not None and not self._stop.is_set():
            clips, segment = job
            try:
                clips.decoded(segment)
            except Exception as error:  # left for the batch that needs it: that decodes it again
                log.debug("while decoding ahead: %s", error)

    def _put(self, item: Any) -> None:
        while not self._stop.is_set():
            try:
                self._ready.put(item, timeout=0.1)
                return
            except queue.Full:
                continue

    def next(self) -> Any:
        """The next batch and what is behind it. DataError that names a read that hangs."""
        while True:
            try:
                item = self._ready.get(timeout=min(1.0, self._timeout))
                break
            except queue.Empty:
                sets = self._builder.loader.sets.values()
                seconds, what = max(clips.longest_read() for clips in sets)
                if seconds > self._timeout:
                    raise DataError(
                        f"{what}: still not read after {seconds:.0f} s (data.timeout "
                        f"{self._timeout:g}); does the disk or network it lies on hang? Take it away, "
                        "or raise data.timeout, and resume"
                    ) from None
        if isinstance(item, BaseException):
            self._ready.put(item)  # and again for whoever asks once more
            raise item
        return item

    def stop(self) -> None:
        self._stop.set()
        for _ in self._threads:
            self._wanted.put(None)
        for thread in self._threads:
            thread.join(timeout=1.0)  # a read under way ends by itself, or never
