"""Every implementation of every op's benchmark, without a GPU: that it is asked rightly, and made.

CUDA tensors are stood in for by fake ones: what an implementation refuses is told before it is called.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from benchmarks import run, shapes
from benchmarks.case import MODES, Request, Skipped, Unavailable
from benchmarks.gpu import cases, goals
from benchmarks.ops import DEFINITIONS, attention, definition
from colaworld import ops

LARGE = list(dict.fromkeys((*cases.GOALS, *cases.BASELINES)))

_FIRST = {chosen[0]: chosen for chosen in reversed(LARGE)}  # one of each op is quick enough
SAMPLE = [
    pytest.param(chosen, marks=() if chosen in _FIRST.values() else pytest.mark.slow)
    for chosen in LARGE
]


def small_cases(op: str, shape, dtype: str = "float32"):
    request = Request(dtypes=(dtype,), samples=1)
    return list(DEFINITIONS[op].cases([cases.small(shape)], request))


@pytest.mark.parametrize("chosen", SAMPLE, ids=["/".join(chosen) for chosen in LARGE])
def test_every_provider_gives_a_row_or_a_reason(chosen) -> None:
    """At tiny sizes on the CPU, in float32 and in bfloat16; nothing of ours fails."""
    op, name, _ = chosen
    for dtype in ("float32", "bfloat16"):
        for case in small_cases(op, DEFINITIONS[op].shape(name), dtype):
            impls = [
                n for n in case.providers if not n.startswith(("compile", "flex", "flash-attn"))
            ]
            found = run.measure(case, Request(samples=1), impls=impls)
            assert found.failed == [], (case.label, found.failed)
            assert "eager" in {row["impl"] for row in found.rows}, case.label
            assert {row["dtype"] for row in found.rows} == {dtype}
            missing = {one.label.rpartition("/")[2] for one in found.skipped}
            assert missing | {row["impl"] for row in found.rows} == set(impls)


@pytest.mark.parametrize("chosen", LARGE, ids="/".join)
def test_fake_cuda_tensors_find_the_implementations_of_a_gpu(chosen, monkeypatch) -> None:
    op, name, dtype = chosen
    shape = DEFINITIONS[op].shape(name)
    with FakeTensorMode():
        lead = torch.empty(lead_shape(op, shape), device="cuda", dtype=getattr(torch, dtype))
        functions = DEFINITIONS[op].functions(shape, dtype, "fwd", "cuda", lambda: lead)
        for implementation in ("cuda", "triton"):
            if implementation not in functions:
                continue
            try:
                functions[implementation]()
            except Unavailable as reason:
                spatial = shape.options.get("axis") == "spatial" and implementation == "cuda"
                built = ops.build_info() or {"cuda": False}
                assert spatial or "triton is not" in str(reason) or not built["cuda"], reason
                if spatial and built["cuda"]:
                    assert "the axis is spatial" in str(reason)


def lead_shape(op: str, shape) -> tuple[int, ...]:
    s = shape.sizes
    if op == "st_attention":
        return s["B"], s["T"], s["S"], 3, s["H"], s["D"]
    if op == "adaln":
        return s["B"], s["T"], s["S"], s["C"]
    if op == "qkv_norm_rope":
        return s["B"], s["L"], 3, s["H"], s["D"]
    if op == "qk_norm_rope":
        return s["B"], s["L"], s["H"], s["D"]
    return s["N"], s["d"]


def test_the_stream_of_training_stays_wide() -> None:
    """x and the modulation in float32, y and what the next layer reads in bfloat16."""
    adaln = DEFINITIONS["adaln"]
    shape = cases.small(DEFINITIONS["adaln"].shape("stdit3-xl.b8.autocast"))
    g = adaln.inputs(shape, torch.bfloat16, "cpu", True, seed=0)
    assert {n: g[n].dtype for n in ("x", "gate", "shift", "scale")} == dict.fromkeys(
        ("x", "gate", "shift", "scale"), torch.float32
    )
    assert g["y"].dtype == torch.bfloat16
    with ops.force("reference"):
        found = adaln.call(g)
    assert (found["x_out"].dtype, found["out"].dtype) == (torch.float32, torch.bfloat16)
    sizes = {"B": 1, "T": 1, "S": 1, "C": 10}
    forward, _ = adaln.cost(replace(shape, sizes=sizes), "fwd", 2)
    both, _ = adaln.cost(replace(shape, sizes=sizes), "fwd_bwd", 2)
    assert forward == 10 * (4 + 4 + 2 + 2)  # x, x_out; y, out
    assert both - forward == 10 * (3 * 4 + 3 * 2)  # d x_out, x_out, dx; d out, y, dy


def test_inputs_are_drawn_once_for_all_providers(monkeypatch) -> None:
    drawn = []
    d = DEFINITIONS["code_statistics"]
    counted = replace(d, draw=lambda shape, g: drawn.append(1) or d.draw(shape, g))
    monkeypatch.setattr("benchmarks.timing.copies", lambda size, device: 3)
    shape = cases.small(DEFINITIONS["code_statistics"].shape("lam.codes"))
    case, _ = counted.cases([shape], Request(samples=1))
    assert run.measure(case, Request(samples=1)).rows and len(drawn) == 3


def test_a_call_that_changes_its_inputs_is_verified_on_fresh_ones() -> None:
    (case,) = small_cases("codebook_step", DEFINITIONS["codebook_step"].shape("lam.codes"))
    impls = ("eager", "cpu") if "cpu" in case.providers else ("eager",)
    found = run.measure(case, Request(samples=2), impls=impls)
    assert found.failed == []
    again = run.measure(case, Request(samples=1), impls=impls)
    assert again.failed == [] and case.mode == "fwd"


@pytest.mark.slow
def test_a_pinned_backend_is_in_its_own_graph(monkeypatch) -> None:
    """Graphs that differ by the backend alone are not taken for one another."""
    graphs = []

    def keep(graph, _):
        graphs.append(" ".join(str(node.target) for node in graph.graph.nodes))
        return graph

    right = torch.compile
    monkeypatch.setattr(torch, "compile", lambda f, **k: right(f, **k | {"backend": keep}))
    torch._dynamo.reset()
    shape = cases.small(DEFINITIONS["st_attention"].shape("stdit3-xl.b8.spatial"))
    inputs = DEFINITIONS["st_attention"].inputs(shape, torch.float32, "cpu", False, seed=0)
    results = []
    for backend in (None, *(attention.SDPA[name] for name in ("math", "flash"))):
        with ops.force("reference"), torch.no_grad():
            results.append(definition.compiled(attention.call, backend)(inputs)["out"])
    assert len(graphs) == 3
    assert ["_sdpa_kernel" in graph for graph in graphs] == [False, True, True]
    for result in results[1:]:
        torch.testing.assert_close(result, results[0])


def test_what_runs_by_name_is_a_rival_or_says_why_not() -> None:
    assert set(attention.NAMED) < set(goals.table()[1])
    assert set(attention.NAMED.values()) == set(ops.ATTENTION_BACKENDS) - {
        "auto",
        "fused",
        "sdpa",
    }
    shape = cases.small(DEFINITIONS["st_attention"].shape("stdit3-xl.b8.spatial"))
    inputs = DEFINITIONS["st_attention"].inputs(shape, torch.bfloat16, "cpu", False, seed=0)
    for name, backend in attention.NAMED.items():
        if backend != "flex":
            with pytest.raises(Unavailable, match=f"attention '{backend}' (needs|runs on CUDA)"):
                DEFINITIONS["st_attention"].baselines[name](shape, "fwd")(inputs)


def test_torch_s_attention_is_judged_against_float64(monkeypatch) -> None:
    shape = shapes.Shape("tiny", {"N": 3, "n": 5, "H": 2, "D": 8}, "a test")
    assert attention.cost_alone(shape, "fwd_bwd", 4) == (
        12 * 3 * 5 * 2 * 8 * 4,
        7 * 2 * 3 * 2 * 25 * 8,
    )
    liar = {"liar": lambda shape, mode: lambda inputs: {"out": sum(inputs.values())}}
    d = attention.ATTENTION
    d = replace(d, baselines={**d.baselines, **liar})
    for case in d.cases([shape], Request(samples=1)):
        assert case.verify("sdpa:math") is None and "out is off by" in case.verify("liar")
        found = run.measure(case, Request(samples=1), impls=["sdpa:cudnn", "sdpa:math", "eager"])
        assert [row["impl"] for row in found.rows] == ["eager", "sdpa:math"]
        assert isinstance(found.skipped[0], Skipped) and "on a CPU" in found.skipped[0].reason
    assert case.mode == MODES[1]
