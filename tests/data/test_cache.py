"""The cache: bounded in bytes, least recently used first, each value made once."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from colaworld.data.cache import ByteCache


def test_the_least_recently_used_goes_first() -> None:
    cache: ByteCache[bytes] = ByteCache(10, len)
    for key in "abc":
        cache.get(key, lambda: b"xxx")
    cache.get("a", lambda: b"never")
    cache.get("d", lambda: b"xxx")
    assert "b" not in cache and all(k in cache for k in "acd") and cache.bytes == 9
    assert cache.get("e", lambda: b"x" * 50) == b"x" * 50  # too large to keep
    assert cache.bytes <= 10


def test_a_value_is_made_once_for_all_threads() -> None:
    cache: ByteCache[bytes] = ByteCache(100, len)
    made, gate = [], threading.Event()

    def make() -> bytes:
        made.append(1)
        gate.wait(5)
        return b"value"

    with ThreadPoolExecutor(4) as pool:
        asked = [pool.submit(cache.get, "key", make) for _ in range(4)]
        gate.set()
        assert [a.result() for a in asked] == [b"value"] * 4
    assert made == [1]


def test_an_error_is_raised_and_not_kept() -> None:
    cache: ByteCache[bytes] = ByteCache(100, len)

    def fail() -> bytes:
        raise OSError("disk")

    with pytest.raises(OSError, match="disk"):
        cache.get("key", fail)
    assert cache.get("key", lambda: b"fine") == b"fine"
