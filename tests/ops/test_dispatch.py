"""The choice between implementations: order, refusals, forcing, and what it tells."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

from colaworld import ops
from colaworld.ops import _dispatch


def facts(**changes) -> _dispatch.CallInfo:
    values = {"device": "cpu", "dtype": torch.float32, "shape": (2, 3)}
    return _dispatch.CallInfo(**{**values, **changes})


def implementation(name: str, reason: str | None) -> _dispatch.Implementation:
    return _dispatch.Implementation(name, lambda: name, lambda _: reason)


def test_choose_takes_the_first_that_does_not_refuse() -> None:
    order = [
        implementation("cuda", "no"),
        implementation("cpu", None),
        implementation("reference", None),
    ]
    assert _dispatch.choose(order, facts(), None).name == "cpu"
    assert _dispatch.choose(order, facts(), "reference").name == "reference"
    assert _dispatch.choose(order, facts(), "cuda") is None
    assert _dispatch.choose(order, facts(), "triton") is None


def test_force_is_undone_also_after_an_error() -> None:
    x = torch.zeros(2, 3)
    with pytest.raises(RuntimeError, match="boom"), ops.force("reference"):
        raise RuntimeError("boom")
    assert _dispatch._forced is None
    with ops.force("reference"):
        assert [v.name for v in ops.explain("vector_quantize", x) if v.would_run] == ["reference"]


def test_force_refuses_an_unknown_name() -> None:
    message = "expected one of reference, cpu, triton, cuda, got 'gpu'"
    with pytest.raises(ValueError, match=message), ops.force("gpu"):
        pass


def test_a_forced_choice_that_cannot_run_lists_every_reason() -> None:
    z, codebook = torch.zeros(2, 3, dtype=torch.float16), torch.zeros(1, 3, dtype=torch.float16)
    with ops.force("triton"), pytest.raises(ops.NoImplementationError) as error:
        ops.vector_quantize(z, codebook)
    message = str(error.value)
    assert "'triton' cannot run" in message
    assert "  reference: can run" in message
    assert "  triton: " in message and "triton: can run" not in message  # the CPU, or not installed
    assert "  cpu: " in message and "cpu: can run" not in message  # float16, or not built


def test_explain_says_who_runs_and_why_not_the_others(monkeypatch) -> None:
    order = (implementation("cuda", "no card"), implementation("reference", None))
    monkeypatch.setitem(_dispatch._REGISTRY, "toy", (*order, implementation("cpu", None)))
    verdicts = ops.explain("toy", torch.zeros(2))
    assert [(v.name, v.would_run, v.reason) for v in verdicts] == [
        ("cuda", False, "no card"),
        ("reference", True, ""),
        ("cpu", False, "reference comes first"),
    ]
    with pytest.raises(ValueError, match="got 'fft'"):
        ops.explain("fft", torch.zeros(1))


@pytest.fixture
def toy(monkeypatch):
    """An op whose sizes prefer its second implementation from 100 rows on."""

    def prefers(facts):
        return _dispatch.Preference("triton", "it is large") if facts.shape[0] >= 100 else None

    def register(cuda: str | None, triton: str | None) -> None:
        order = (
            implementation("cuda", cuda),
            implementation("triton", triton),
            implementation("reference", None),
        )
        monkeypatch.setitem(_dispatch._REGISTRY, "toy", order)
        monkeypatch.setitem(_dispatch._PREFERS, "toy", prefers)

    return register


def test_sizes_prefer_one_of_those_that_can_run(toy) -> None:
    toy(None, None)
    small, large = torch.zeros(99), torch.zeros(100)
    assert _dispatch.pick("toy", small).name == "cuda"
    assert _dispatch.pick("toy", large).name == "triton"
    assert [(v.name, v.reason) for v in ops.explain("toy", large)] == [
        ("cuda", "triton comes first: it is large"),
        ("triton", ""),
        ("reference", "triton comes first: it is large"),
    ]
    with ops.force("cuda"):
        assert _dispatch.pick("toy", large).name == "cuda"


def test_a_preference_is_no_refusal(toy) -> None:
    """The only fused implementation runs at any size, ahead of the reference."""
    for cuda, triton, runs in [
        (None, "no", "cuda"),
        ("no", None, "triton"),
        ("no", "no", "reference"),
    ]:
        toy(cuda, triton)
        for rows in (1, 100):
            assert _dispatch.pick("toy", torch.zeros(rows)).name == runs
    toy("no", None)
    with ops.force("cuda"), pytest.raises(ops.NoImplementationError, match="cuda: no"):
        _dispatch.pick("toy", torch.zeros(100))


def test_sizes_that_only_the_running_graph_knows_leave_the_order(toy, monkeypatch) -> None:
    torch._dynamo.reset()
    monkeypatch.setattr(torch._dynamo.config, "capture_dynamic_output_shape_ops", True)
    toy(None, None)
    large = _dispatch.Preference("triton", "it is large")
    monkeypatch.setitem(
        _dispatch._PREFERS, "toy", lambda f: large if _dispatch.known(f.shape[0] >= 100) else None
    )
    chosen = []

    def call(x, keep):
        x = x[keep]
        chosen.append(_dispatch.pick("toy", x).name)
        return x

    x = torch.zeros(200)
    torch.compile(call, fullgraph=True, backend="eager")(x, x == 0)
    call(x, x == 0)
    assert chosen == ["cuda", "triton"]


def test_a_compiled_function_follows_force() -> None:
    torch._dynamo.reset()
    seen = []
    real = _dispatch._REGISTRY["adaln"]

    def spy(*args, **kwargs):
        seen.append("spy")
        return real[-1].run(*args, **kwargs)

    _dispatch.register("adaln", (_dispatch.Implementation("cpu", spy, _dispatch.always), *real))
    try:
        call = torch.compile(
            lambda x, m: ops.adaln(x, None, shift=m, scale=m)[1], fullgraph=True, backend="eager"
        )
        x, m = torch.ones(1, 1, 1, 2), torch.zeros(1, 1, 2)
        with ops.force("reference"):
            call(x, m)
        assert seen == []
        call(x, m)
        assert seen == ["spy"]
    finally:
        _dispatch.register("adaln", real)


@pytest.mark.parametrize(
    ("variable", "value", "expected"),
    [
        ("COLAWORLD_OPS", "reference", "reference"),
        (
            "COLAWORLD_OPS",
            "nonsense",
            "COLAWORLD_OPS: expected one of reference, cpu, triton, cuda",
        ),
        ("COLAWORLD_NO_EXTENSION", "1", "the extension is switched off"),
    ],
)
def test_environment(variable: str, value: str, expected: str) -> None:
    program = (
        "import torch; from colaworld import ops; from colaworld.ops import flops\n"
        "vs = ops.explain('vector_quantize', torch.zeros(2, 3))\n"
        "print([v.name for v in vs if v.would_run], [v.reason for v in vs])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, variable: value},
        capture_output=True,
        text=True,
        check=False,
    )
    assert expected in done.stdout + done.stderr
    assert ("['reference']" in done.stdout) == (value != "nonsense")
