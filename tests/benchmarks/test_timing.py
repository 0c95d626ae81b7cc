"""Timing: turns, percentiles, copies past the cache. No test asserts how long anything takes."""

from __future__ import annotations

import pytest
import torch

from colaworld.cli.bench import suite

timing = suite("timing")


def test_percentiles_by_hand() -> None:
    assert timing.percentiles([5.0]) == (5.0, 5.0, 5.0)
    assert timing.percentiles([6, 1, 2, 3, 4, 5]) == (2, 3.5, 5)


def test_providers_and_inputs_take_turns(monkeypatch) -> None:
    monkeypatch.setattr(timing, "SAMPLE_SECONDS", 0.0)  # one call a sample
    said = []
    calls = {n: [lambda n=n, i=i: said.append(f"{n}{i}") for i in range(3)] for n in "ab"}
    found = timing.interleaved(calls, samples=4)
    assert said[:4] == ["a0", "a1", "b0", "b1"]  # warm-up, then how long one takes
    assert said[4:] == ["a2", "b2", "a0", "b0", "a1", "b1", "a2", "b2"]
    assert set(found) == {"a", "b"} and all(p20 <= p50 <= p80 for p20, p50, p80 in found.values())


def test_a_provider_that_raises_loses_its_own_times_alone() -> None:
    def raises() -> None:
        raise RuntimeError("broken")

    calls = {"good": [lambda: None], "bad": [raises]}
    errors = {}
    assert list(timing.interleaved(calls, samples=2, failed=errors.__setitem__)) == ["good"]
    assert str(errors["bad"]) == "broken"
    with pytest.raises(RuntimeError, match="broken"):
        timing.interleaved(calls, samples=2)


def test_a_call_that_stands_for_many_is_divided(monkeypatch) -> None:
    monkeypatch.setattr(timing, "_seconds", lambda turns, repeats, device: 0.001 * repeats)
    found = timing.interleaved({"a": [None], "b": [None]}, samples=3, batch={"b": 10})
    assert found == {"a": (1.0, 1.0, 1.0), "b": (0.1, 0.1, 0.1)}


def test_launches_are_kernels_and_not_copies() -> None:
    events = [("kernel", "CUDA"), ("Memset (Device)", "CUDA"), ("Memcpy HtoD", "CUDA")]
    found = timing.kernel_names([*events, ("aten::add", "CPU")])
    assert found == ["kernel", "Memset (Device)"]
    assert timing.kernels(lambda: None, "cpu") is None


def test_copies_exceed_the_cache(monkeypatch) -> None:
    monkeypatch.setattr(timing, "last_level_cache", lambda device: 1000)
    assert [timing.copies(size, "cpu") for size in (5000, 2000, 1999, 100, 0)] == [1, 1, 2, 20, 128]


def test_the_cache_is_some_megabytes() -> None:
    assert timing.last_level_cache("cpu") >= 1 << 20


def test_peak_counts_what_a_call_takes() -> None:
    found = timing.peak_mb(lambda: torch.ones(16 << 20))  # 64 MB
    assert found is None or 60 < found < 90
