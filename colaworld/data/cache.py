"""A cache of decoded frames, bounded in bytes, safe for threads. Not here: what is in it."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from typing import Generic, TypeVar

V = TypeVar("V")


class ByteCache(Generic[V]):
    """Least recently used values go first. A value asked for by several threads is made once.

    `size` gives a value's bytes. A value larger than the whole cache is returned, not kept.
    """

    def __init__(self, capacity: int, size: Callable[[V], int]) -> None:
        self.capacity, self._size = capacity, size
        self.bytes = 0
        self._values: OrderedDict[Hashable, V] = OrderedDict()
        self._pending: dict[Hashable, Future[V]] = {}
        self._lock = threading.Lock()

    def get(self, key: Hashable, make: Callable[[], V]) -> V:
        """The value of `key`, made by `make()` if it is not here. An error of `make` is raised."""
        with self._lock:
            if key in self._values:
                self._values.move_to_end(key)
                return self._values[key]
            pending = self._pending.get(key)
            if pending is None:
                mine = self._pending[key] = Future()
        if pending is not None:
            return pending.result()
        try:
            value = make()
        except BaseException as error:
            with self._lock:
                del self._pending[key]
            mine.set_exception(error)
            raise
        with self._lock:
            del self._pending[key]
            self._values[key] = value
            self.bytes += self._size(value)
            while self.bytes > self.capacity and self._values:
                _, old = self._values.popitem(last=False)
                self.bytes -= self._size(old)
        mine.set_result(value)
        return value

    def __contains__(self, key: Hashable) -> bool:
        with self._lock:
            return key in self._values

    def __len__(self) -> int:
        with self._lock:
            return len(self._values)
