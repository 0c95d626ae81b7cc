"""Attention backends by name: the same attention from each, and clear words from those that cannot."""

from __future__ import annotations

import logging
from itertools import product

import pytest
import torch

from colaworld import ops
from colaworld.ops import attention_backends


def arguments(generator, *, causal=True, axis="temporal"):
    qkv = torch.randn(2, 5, 6, 3, 2, 16, generator=generator)
    angles = torch.rand(5 if axis == "temporal" else 6, 8, generator=generator)
    weight = torch.rand(16, generator=generator) + 0.5
    return qkv, {
        "axis": axis,
        "causal": causal,
        "q_weight": weight,
        "k_weight": weight,
        "rope": (angles.cos(), angles.sin()),
    }


def _cases():
    """The compiled backend takes long: one case of it is quick enough."""
    for backend, causal, axis in product(("sdpa", "flex"), (False, True), ("temporal", "spatial")):
        quick = backend == "sdpa" or (causal, axis) == (True, "temporal")
        yield pytest.param(backend, causal, axis, marks=() if quick else pytest.mark.slow)


@pytest.mark.parametrize(("backend", "causal", "axis"), _cases())
def test_every_backend_is_the_same_attention(backend, causal, axis, generator) -> None:
    qkv, options = arguments(generator, causal=causal, axis=axis)
    with ops.force("reference"):
        wanted = ops.st_attention(qkv.double(), **options)
    got = ops.st_attention(qkv, **options, backend=backend)
    assert got.is_contiguous()
    torch.testing.assert_close(got.double(), wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.skipif(ops.build_info() is None, reason=f"no compiled ops: {ops.why_not_compiled()}")
def test_fused_is_the_kernel_and_says_when_there_is_none(generator) -> None:
    qkv, options = arguments(generator)
    with ops.force("cpu"):
        wanted = ops.st_attention(qkv, **options)
    assert torch.equal(ops.st_attention(qkv, **options, backend="fused"), wanted)
    with pytest.raises(
        ops.NoImplementationError, match=r"no fused implementation can run (.|\n)*cpu: "
    ):
        ops.st_attention(qkv.half(), **options, backend="fused")


def test_a_named_backend_wins_over_force(generator, monkeypatch) -> None:
    seen = []
    monkeypatch.setattr(
        attention_backends.reference,
        "sdpa",
        lambda q, k, v, **_: seen.append(q.shape) or torch.zeros_like(q),
    )
    qkv, options = arguments(generator)
    with ops.force("reference"):
        out = ops.st_attention(qkv, **options, backend="sdpa")
    assert seen == [(12, 2, 5, 16)] and not out.any()


def test_what_cannot_run_says_why(generator, monkeypatch) -> None:
    qkv, options = arguments(generator)
    with pytest.raises(
        ValueError, match=r"expected one of auto, fused, sdpa, .*, flash4, got 'fa'"
    ):
        ops.st_attention(qkv, **options, backend="fa")
    monkeypatch.setattr(attention_backends.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ops.BackendUnavailableError, match=r"pip install 'colaworld\[flash\]'"):
        ops.st_attention(qkv, **options, backend="flash")
    monkeypatch.setattr(attention_backends.importlib.util, "find_spec", lambda name: object())
    with pytest.raises(ops.BackendUnavailableError, match=r"runs on CUDA devices, .* on cpu"):
        ops.st_attention(qkv, **options, backend="flash")
    for leaf in (qkv, options["q_weight"]):
        leaf.requires_grad_()
        with pytest.raises(ops.BackendUnavailableError, match="'flex' has no backward on the CPU"):
            ops.st_attention(qkv, **options, backend="flex")
        leaf.requires_grad_(False)
    message = r"while 'reference' is forced; none can run for a (.|\n)*leave the force\(\) block"
    with ops.force("reference"), pytest.raises(ValueError, match=message):
        ops.st_attention(qkv, **options, backend="fused")


def test_auto_says_once_what_it_took(generator, caplog) -> None:
    attention_backends._told.cache_clear()
    with caplog.at_level(logging.INFO), ops.force("reference"):
        for axis in ("spatial", "temporal") * 2:
            qkv, options = arguments(generator, axis=axis)
            ops.st_attention(qkv, **options)
    tell = attention_backends.tell_once
    with caplog.at_level(logging.INFO):
        for axis in ("spatial", "temporal"):
            tell("reference" if axis == "spatial" else "cpu", axis, "cpu", torch.float32)
    assert caplog.messages == [
        "attention 'auto' on cpu, torch.float32: reference",
        "attention 'auto' on cpu, torch.float32, temporal axis: cpu",
    ]
