"""The smallest run that is still whole, for the benchmarks' own tests."""

from __future__ import annotations

import pytest
import torch

from colaworld.cli.bench import suite


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def tiny() -> dict:
    """Values over nano.cola's: one block of each kind, 16x16 px, two clips."""
    narrow = {"depth": 1, "width": 32, "heads": 1}
    return {
        "backbone_weights": None,
        "data": {"height": 16, "width": 16, "workers": 1},
        "model": {
            "backbone": narrow,
            "idm": narrow,
            "conditioner": {"depth": 1, "heads": 1},
            "quantizer": {"unquantized_steps": 0},
        },
        "objective": {"start_clips": 2},
        "training": {"batch_size": 2, "tensorboard": False},
        "sampler": {"steps": 3},
        "evaluation": {"horizon": 1},
    }


@pytest.fixture
def tiny_request(tiny):
    return suite("case").Request(samples=1, overrides=tiny)


@pytest.fixture
def passing(monkeypatch):
    """The gate without its minutes: what it was asked to run, and always yes."""
    asked = []
    monkeypatch.setattr(suite("gate"), "_passed", {})
    monkeypatch.setattr(suite("gate"), "_run", lambda root, tests: asked.append(tests) or "passed")
    return asked


@pytest.fixture
def row():
    """Makes a row whose times can be chosen: row(p50=2.0, impl="cpu")."""

    def make(*, p50=1.0, p20=None, p80=None, **fields):
        base = dict.fromkeys(suite("rows").FIELDS)
        base |= {"suite": "ops", "op": "adaln", "impl": "cpu", "shape": "nano.block"}
        base |= {"sizes": {"B": 1, "C": 8}, "dtype": "float32", "mode": "fwd", "threads": 1}
        base |= {"device": "here", "versions": {"torch": "2"}, "commit": "abc", "date": "today"}
        base |= {"p20_ms": p20 or p50 * 0.9, "p50_ms": p50, "p80_ms": p80 or p50 * 1.1}
        return base | {"gb_s": 1.0, "peak_mb": 0.0} | fields

    return make
