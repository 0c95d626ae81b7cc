"""What has to hold of every kernel on a GPU, as a list of small checks that need no pytest.

`checks(device)` names each check; `run` raises AssertionError where it does not hold and `Missing` where
this machine lacks what it is about. They run under pytest (test_on_gpu.py) and, shared out among
processes, as the first stage of `python -m benchmarks.gpu A`. On the CPU they check the
implementations that are there, which is how the checks themselves are tried without a GPU.
Not here: what can be proved without one (tests/ops, tests/kernels, tests/csrc).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from colaworld import ops

# Relative error of outputs and gradients that plain torch is allowed anyhow, by dtype: sums of a
# few thousand products in float32, one rounding of each stored number in the narrower types.
FLOORS = {torch.float32: 2e-5, torch.bfloat16: 1.6e-2, torch.float16: 2e-3}
DTYPES = tuple(FLOORS)
# (op, implementation), most preferred first.
WRITTEN = {
    "st_attention": ("cuda", "triton"),
    "qkv_norm_rope": ("triton",),
    "qk_norm_rope": ("triton",),
    "adaln": ("triton",),
    "vector_quantize": ("cuda", "triton"),
    "code_statistics": ("cuda", "triton"),
}


class Missing(Exception):
    """What a check is about cannot run on this machine; the message says why."""


@dataclass(frozen=True)
class Check:
    """One thing that has to hold. `group`: quick; compile (by the compiler); large (over 20 GB).

    `small`: Triton's interpreter needs seconds for it, not minutes.
    """

    label: str
    run: Callable[[torch.device], None]
    group: str = "quick"
    small: bool = False


def checks(device: str = "cuda") -> list[Check]:
    """Every check, those of the same kernel together. On a "cpu", cpu stands in for cuda."""
    written = {
        op: tuple("cpu" if name == "cuda" and device == "cpu" else name for name in names)
        for op, names in WRITTEN.items()
    }
    return [*_values(written), *_running(written), *_compiled(), *_large(written)]


def need(op: str, implementation: str, lead: Tensor, axis: str | None = None) -> None:
    """Raises Missing where the implementation refuses such a tensor here."""
    with ops.force(implementation):
        verdicts = ops.explain(op, lead, axis=axis)
    (verdict,) = [v for v in verdicts if v.name == implementation]
    if not verdict.would_run:
        raise Missing(f"{implementation} refuses {op}: {verdict.reason}")


# --- values and gradients against float64 ---------------------------------------------------------


def run_once(call: Callable, tensors: dict[str, Tensor], implementation: str):
    """(outputs, gradients by name) of a call with leaves of the same strides."""
    leaves = {name: like(x, x.dtype).requires_grad_() for name, x in tensors.items()}
    with ops.force(implementation):
        outputs = call(**leaves)
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        generator = torch.Generator(outputs[0].device).manual_seed(0)
        total = 0.0
        for out in outputs:
            weight = torch.randn(out.shape, generator=generator, device=out.device)
            total = total + (out.double() * weight.to(out.dtype).double()).sum()
        total.backward()
    return outputs, {name: x.grad for name, x in leaves.items()}


def like(x: Tensor, dtype: torch.dtype) -> Tensor:
    """The numbers and strides of x in another dtype."""
    made = torch.empty_strided(x.shape, x.stride(), dtype=dtype, device=x.device)
    return made.copy_(x.detach())


def relative(found: Tensor, exact: Tensor) -> float:
    exact = exact.double()
    return ((found.double() - exact).norm() / exact.norm().clamp_min(1e-30)).item()


def compare(call: Callable, tensors: dict[str, Tensor], implementation: str) -> None:
    """Outputs and gradients by name against float64, and equal bits over two runs."""
    floor = max(FLOORS[x.dtype] for x in tensors.values())
    wide = {name: like(x, torch.float64) for name, x in tensors.items()}
    exact = run_once(call, wide, "reference")
    plain = run_once(call, tensors, "reference")
    ours, again = (run_once(call, tensors, implementation) for _ in range(2))
    for index, (wanted, theirs, found) in enumerate(zip(exact[0], plain[0], ours[0], strict=True)):
        error, bound = relative(found, wanted), max(2 * relative(theirs, wanted), floor)
        assert error <= bound, f"output {index} is off by {error:.2e}, expected at most {bound:.2e}"
        assert torch.equal(found, again[0][index]), f"output {index} differs between two runs"
    for name, wanted in exact[1].items():
        error = relative(ours[1][name], wanted)
        bound = max(2 * relative(plain[1][name], wanted), 4 * floor)
        assert error <= bound, f"d {name} is off by {error:.2e}, expected at most {bound:.2e}"
        assert torch.equal(ours[1][name], again[1][name]), f"d {name} differs between two runs"


def draw(device: torch.device, dtype: torch.dtype, *shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator(device=device).manual_seed(seed + sum(shape))
    return torch.randn(*shape, generator=generator, device=device).to(dtype)


def attention(
    device: torch.device, name: str, dtype: torch.dtype, axis: str, causal: bool, shape, view=None
) -> None:
    """`view`: how qkv stands in a tensor with twice the locations and heads of 80 channels."""
    B, T, S, H, D = shape
    angles = draw(device, torch.float32, T if axis == "temporal" else S, D // 2)

    def call(qkv, q_weight, k_weight):
        rope = (angles.cos().to(qkv.dtype), angles.sin().to(qkv.dtype))
        return ops.st_attention(
            qkv, axis=axis, causal=causal, q_weight=q_weight, k_weight=k_weight, rope=rope
        )

    qkv = draw(device, dtype, B, T, S, 3, H, D)
    if view is not None:
        qkv = view(draw(device, dtype, B, T, 2 * S, 3, H, D + 8))[..., :D]
    need("st_attention", name, qkv, axis)
    weights = {n: draw(device, dtype, D, seed=s) for s, n in enumerate(("q_weight", "k_weight"), 1)}
    compare(call, {"qkv": qkv, **weights}, name)


def a_nan_stays_in_its_location(device: torch.device, name: str) -> None:
    qkv = draw(device, torch.float16, 1, 7, 40, 3, 2, 64)
    qkv[0, 3, 11] = torch.nan
    need("st_attention", name, qkv, "temporal")
    qkv.requires_grad_()
    with ops.force(name):
        out = ops.st_attention(qkv, axis="temporal")
        out.float().square().sum().backward()
    rest = torch.arange(40, device=device) != 11
    assert out[:, :, rest].isfinite().all() and out[:, :, 11].isnan().all()
    assert qkv.grad[:, :, rest].isfinite().all()


def prologue(device: torch.device, name: str, dtype: torch.dtype, norm: str) -> None:
    B, L, H, D = 2, 130, 4, 72
    angles = draw(device, torch.float32, L, D // 2)

    def call(q, k, q_weight, k_weight):
        rope = (angles.cos().to(q.dtype), angles.sin().to(q.dtype))
        return ops.qk_norm_rope(q, k, q_weight=q_weight, k_weight=k_weight, norm=norm, rope=rope)

    q, k, _ = draw(device, dtype, B, L, 3, H, D).unbind(2)  # as a projection leaves them
    need("qk_norm_rope", name, q)
    width = D if norm == "head" else H * D
    weights = {
        n: draw(device, dtype, width, seed=s) for s, n in enumerate(("q_weight", "k_weight"), 2)
    }
    compare(call, {"q": q, "k": k, **weights}, name)


def packed_prologue(device: torch.device, name: str, dtype: torch.dtype) -> None:
    B, L, H, D = 2, 130, 4, 72
    angles = draw(device, torch.float32, L, D // 2)

    def call(qkv, q_weight, k_weight):
        rope = (angles.cos().to(qkv.dtype), angles.sin().to(qkv.dtype))
        return ops.qkv_norm_rope(qkv, q_weight=q_weight, k_weight=k_weight, rope=rope)

    qkv = draw(device, dtype, B, L, 3, H, D)
    need("qkv_norm_rope", name, qkv)
    weights = {n: draw(device, dtype, D, seed=s) for s, n in enumerate(("q_weight", "k_weight"), 2)}
    compare(call, {"qkv": qkv, **weights}, name)


def modulation(device: torch.device, name: str, x_dtype, y_dtype, shape) -> None:
    """With x in float32 and y narrower, as training under autocast calls it."""
    B, T, _, C = shape

    def call(x, y, gate, shift, scale):
        return ops.adaln(x, y, gate=gate, shift=shift, scale=scale, out_dtype=y.dtype)

    # Six tables stand side by side, as the modulation of a block does.
    six = draw(device, x_dtype, B, T, 6, C, seed=2).unbind(2)
    x, y = draw(device, x_dtype, *shape), draw(device, y_dtype, *shape, seed=1)
    need("adaln", name, x)
    tables = dict(zip(("gate", "shift", "scale"), six, strict=False))
    compare(call, {"x": x, "y": y, **tables}, name)


def quantisation(device: torch.device, name: str, dtype: torch.dtype, sizes) -> None:
    """Codes are nearest within rounding, statistics and the codebook's gradient are the exact sums."""
    N, K, d = sizes
    z, codebook = draw(device, dtype, N, d), draw(device, dtype, K, d, seed=1).requires_grad_()
    need("vector_quantize", name, z)
    need("code_statistics", name, z)
    weight = draw(device, dtype, N, d, seed=2)
    with ops.force(name):
        codes, indices = ops.vector_quantize(z, codebook)
        packed, again = (ops.code_statistics(z, indices, K) for _ in range(2))
        (gradient,) = torch.autograd.grad(codes, codebook, weight)
    assert torch.equal(codes, codebook[indices]), "codes are not the entries that indices name"
    distance = torch.cdist(z.double(), codebook.double()).square()
    excess = distance.gather(1, indices[:, None])[:, 0] - distance.min(1).values
    size = z.double().square().sum(1) + codebook.double().square().sum(1).max()
    wrong = int((excess > (d + 1) * 2.0**-23 * size).sum())
    assert wrong == 0, f"{wrong} of {N} codes are not the nearest"
    assert torch.equal(packed, again), "statistics differ between two runs"
    with ops.force("reference"):
        exact = ops.code_statistics(z.double(), indices, K)
    assert relative(packed, exact) < 1e-6, "statistics"
    summed = torch.zeros(K, d, device=device, dtype=torch.float64)
    summed.index_add_(0, indices, weight.double())
    assert relative(gradient, summed) < FLOORS[dtype], "d codebook"


def update(device: torch.device, name: str, d: int) -> None:
    K = 100
    packed = draw(device, torch.float32, K, d + 1).abs()
    state = [draw(device, torch.float32, *shape).abs() for shape in ((K, d), (K,), (K, d))]
    need("update_codebook", name, packed)
    made = {}
    for each in (name, "reference"):
        made[each] = [x.clone() for x in state]
        with ops.force(each):
            ops.update_codebook(*made[each], packed, decay=0.9)
    for what, ours, plain in zip(("codebook", "count", "total"), *made.values(), strict=True):
        assert relative(ours, plain) < 1e-5, what


_VIEWS = {
    "every other location": lambda x: x[:, :, ::2],
    "time innermost": lambda x: x[:, :, 1::2].transpose(1, 2).contiguous().transpose(1, 2),
    "heads of 80": lambda x: x[:, :, : x.shape[2] // 2],
}
_CLIPS = ((1, 16, 33, 16, 72), (2, 5, 17, 12, 64), (1, 31, 9, 2, 128), (3, 1, 4, 3, 96))


def _values(written) -> Iterator[Check]:
    for name in written["st_attention"]:
        for dtype in DTYPES:
            for number, shape in enumerate(_CLIPS):
                label = f"st_attention/{name}/{_short(dtype)}/{'x'.join(map(str, shape))}"
                causal, T = number % 2 == 0, shape[1]
                args = (name, dtype, "temporal", causal, shape)
                yield Check(label, partial(_call, attention, *args), small=T == 31)
        for what, view in _VIEWS.items():
            args = (name, torch.bfloat16, "temporal", True, (1, 8, 9, 2, 72), view)
            yield Check(f"st_attention/{name}/view, {what}", partial(_call, attention, *args))
        label = f"st_attention/{name}/a NaN stays in its location"
        yield Check(label, partial(_call, a_nan_stays_in_its_location, name))
    for dtype in DTYPES:
        args = ("triton", dtype, "spatial", dtype == torch.float32, (1, 3, 130, 4, 72))
        yield Check(
            f"st_attention/triton/{_short(dtype)}/spatial", partial(_call, attention, *args)
        )
        for norm in ("head", "across"):
            label = f"qk_norm_rope/triton/{_short(dtype)}/{norm}"
            yield Check(label, partial(_call, prologue, "triton", dtype, norm))
        label = f"qkv_norm_rope/triton/{_short(dtype)}"
        yield Check(label, partial(_call, packed_prologue, "triton", dtype))
        for shape in ((2, 5, 63, 1152), (1, 3, 17, 96)):
            label = f"adaln/triton/{_short(dtype)}/C={shape[-1]}"
            run = partial(_call, modulation, "triton", dtype, dtype, shape)
            yield Check(label, run, small=shape[-1] == 96)
    for narrow in (torch.bfloat16, torch.float16):
        args = ("triton", torch.float32, narrow, (2, 5, 63, 1152))
        label = f"adaln/triton/float32 and {_short(narrow)}"
        yield Check(label, partial(_call, modulation, *args))
    for name in written["vector_quantize"]:
        for dtype in DTYPES:
            for sizes in ((64, 8, 8), (4096, 32, 32), (1000, 1023, 33), (5000, 8192, 64)):
                label = "vector_quantize/{}/{}/N={} K={} d={}".format(name, _short(dtype), *sizes)
                run = partial(_call, quantisation, name, dtype, sizes)
                yield Check(label, run, small=sizes[0] == 64)
    for d in (32, 64):
        yield Check(
            f"update_codebook/triton/d={d}", partial(_call, update, "triton", d), small=True
        )


def _call(function: Callable, *arguments) -> None:
    *given, device = arguments
    function(device, *given)


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


# --- how kernels run: in graphs, on the current stream, without waiting -----------------------------


def leaves_of(op: str, device: torch.device) -> list[Tensor]:
    """What an op is called with, the leading tensor first; what wants a gradient is a leaf."""
    half = torch.float16
    if op == "st_attention":
        shapes = ((1, 8, 9, 3, 2, 64), (64,))
    elif op == "qkv_norm_rope":
        shapes = ((2, 9, 3, 4, 72), (72,))
    elif op == "qk_norm_rope":
        shapes = ((2, 9, 4, 72), (2, 9, 4, 72), (72,))
    elif op == "adaln":
        shapes = ((2, 3, 9, 1152), (2, 3, 9, 1152), (2, 3, 1152))
    else:
        z = draw(device, torch.float32, 700, 32)
        return [z, draw(device, torch.float32, 40, 32, seed=1).requires_grad_()]
    return [draw(device, half, *s, seed=n).requires_grad_() for n, s in enumerate(shapes)]


def step(op: str, leaves: list[Tensor]) -> list[Tensor]:
    """Outputs and gradients of one call."""
    first = leaves[0]
    if op == "st_attention":
        weight = leaves[1]
        out = ops.st_attention(
            first, axis="temporal", causal=True, q_weight=weight, k_weight=weight
        )
    elif op == "qkv_norm_rope":
        weight = leaves[1]
        out = torch.cat(ops.qkv_norm_rope(first, q_weight=weight, k_weight=weight))
    elif op == "qk_norm_rope":
        weight = leaves[2]
        out = torch.cat(ops.qk_norm_rope(first, leaves[1], q_weight=weight, k_weight=weight))
    elif op == "adaln":
        table = leaves[2]
        out = torch.cat(ops.adaln(first, leaves[1], gate=table, shift=table, scale=table))
    else:
        out, indices = ops.vector_quantize(first, leaves[1])
        if op == "code_statistics":
            return [ops.code_statistics(first.detach(), indices.detach(), 40)]
    wanted = [x for x in leaves if x.requires_grad]
    return [out.detach(), *torch.autograd.grad(out, wanted, torch.ones_like(out))]


def a_graph_is_replayed_on_new_numbers(device: torch.device, op: str, name: str) -> None:
    leaves = leaves_of(op, device)
    need(op, name, leaves[0], "temporal" if op == "st_attention" else None)
    with ops.force(name):
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):  # compiled, and the memory of autograd is there
            step(op, leaves)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            kept = step(op, leaves)
        with torch.no_grad():
            for leaf in leaves:
                leaf.copy_(leaf.flip(0) * 0.5)
            for out in kept:
                out.zero_()
        graph.replay()
        torch.cuda.synchronize()
        for place, (replayed, direct) in enumerate(zip(kept, step(op, leaves), strict=True)):
            assert torch.equal(replayed, direct), f"output {place} of a replay differs"


def the_current_stream_is_used(device: torch.device, op: str, name: str) -> None:
    """Inputs are written late on a side stream: a kernel on any other stream reads zeros."""
    leaves = leaves_of(op, device)
    need(op, name, leaves[0], "temporal" if op == "st_attention" else None)
    with ops.force(name):
        expected = step(op, leaves)
        written = [leaf.detach().clone() for leaf in leaves]
        with torch.no_grad():
            for leaf in leaves:
                leaf.zero_()
        torch.cuda.synchronize()
        stream = torch.cuda.Stream()
        with torch.cuda.stream(stream):
            torch.cuda._sleep(50_000_000)  # cycles: some 25 ms
            with torch.no_grad():
                for leaf, before in zip(leaves, written, strict=True):
                    leaf.copy_(before)
            found = step(op, leaves)
        torch.cuda.synchronize()
    for place, (late, early) in enumerate(zip(found, expected, strict=True)):
        assert torch.equal(late, early), f"output {place} differs on another stream"


def nothing_waits_for_the_gpu(device: torch.device) -> None:
    """Quantisation and its update, statistics and all, start without a synchronisation."""
    z, codebook = leaves_of("vector_quantize", device)
    state = [codebook.detach().clone(), z.new_ones(40), codebook.detach().clone()]

    def whole() -> None:
        _, indices = ops.vector_quantize(z, codebook)
        ops.update_codebook(*state, ops.code_statistics(z, indices, 40), decay=0.9)

    whole()  # compiled and warm
    torch.cuda.set_sync_debug_mode("error")
    try:
        whole()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def _running(written) -> Iterator[Check]:
    for op, names in written.items():
        for name in names:
            for run in (a_graph_is_replayed_on_new_numbers, the_current_stream_is_used):
                label = f"{op}/{name}/{run.__name__.replace('_', ' ')}"
                yield Check(label, partial(_call, run, op, name))
    run = nothing_waits_for_the_gpu
    yield Check("quantisation/nothing waits for the gpu", run, small=True)


def compiled_is_what_eager_is(device: torch.device, axis: str) -> None:
    """What colaworld chooses, forward and backward, under torch.compile."""
    torch.compiler.reset()
    qkv = draw(device, torch.bfloat16, 2, 8, 32, 3, 4, 72).requires_grad_()
    weight = draw(device, torch.bfloat16, 72).requires_grad_()

    def call(qkv, weight):
        return ops.st_attention(qkv, axis=axis, q_weight=weight, k_weight=weight)

    results = []
    for run in (call, torch.compile(call, fullgraph=True)):
        out = run(qkv, weight)
        gradients = torch.autograd.grad(out, (qkv, weight), torch.ones_like(out))
        results.append([out.detach(), *gradients])
    for name, eager, compiled in zip(("out", "dqkv", "dweight"), *results, strict=True):
        torch.testing.assert_close(compiled, eager, rtol=1.6e-2, atol=1e-2, msg=name)


def _compiled() -> Iterator[Check]:
    for axis in ("temporal", "spatial"):
        run = partial(_call, compiled_is_what_eager_is, axis)
        yield Check(f"st_attention/compiled is what eager is/{axis}", run, "compile")


# --- beyond 2^31 numbers ----------------------------------------------------------------------------


def repeated(device: torch.device, big: tuple[int, ...], small: tuple[int, ...]) -> Tensor:
    """A tensor beyond 2^31 numbers, all of whose parts are one small one."""
    x = torch.empty(big, device=device, dtype=torch.bfloat16)
    return x.copy_(draw(device, torch.bfloat16, *small))


def enough_memory(gigabytes: int) -> None:
    free = torch.cuda.mem_get_info()[0] / 2**30
    if free < gigabytes:
        raise Missing(f"needs {gigabytes} GB of free GPU memory, {free:.0f} are free")


def attention_beyond_2_31(device: torch.device, name: str) -> None:
    enough_memory(24)
    B, T, S, H, D = 2, 16, 20_000, 16, 72  # 2.2e9 numbers in qkv
    qkv = repeated(device, (B, T, S, 3, H, D), (1, T, 1, 3, H, D))
    need("st_attention", name, qkv, "temporal")
    with ops.force(name):
        few = qkv[:1, :, :1].clone().requires_grad_()
        expected = ops.st_attention(few, axis="temporal")
        (wanted,) = torch.autograd.grad(expected, few, torch.ones_like(expected))
        qkv.requires_grad_()
        out = ops.st_attention(qkv, axis="temporal")
        (found,) = torch.autograd.grad(out, qkv, torch.ones_like(out))
    for b, s in ((0, 0), (0, S // 2), (B - 1, S - 1)):
        assert torch.equal(out[b, :, s], expected[0, :, 0]), f"output at {b}, {s}"
        assert torch.equal(found[b, :, s], wanted[0, :, 0]), f"gradient at {b}, {s}"


def modulation_beyond_2_31(device: torch.device) -> None:
    enough_memory(40)
    shape = (1, 2, 960_000, 1152)  # 2.2e9
    x = repeated(device, shape, (1, 1, 1, 1152))
    need("adaln", "triton", x)
    table = draw(device, torch.bfloat16, 1, 2, 1152)
    with ops.force("triton"), torch.no_grad():
        expected, out = (
            ops.adaln(part, part, gate=table, shift=table, scale=table)[1]
            for part in (x[:, :, :1].contiguous(), x)
        )
    for t, s in ((0, 0), (1, 0), (1, shape[2] - 1)):
        assert torch.equal(out[0, t, s], expected[0, t, 0]), f"output at {t}, {s}"


def prologue_beyond_2_31(device: torch.device) -> None:
    enough_memory(24)
    shape = (2, 940_000, 16, 72)  # 2.2e9
    q = repeated(device, shape, (1, 1, 16, 72))
    need("qk_norm_rope", "triton", q)
    weight = draw(device, torch.bfloat16, 72)
    options = {"q_weight": weight, "k_weight": weight}
    with ops.force("triton"), torch.no_grad():
        expected, _ = ops.qk_norm_rope(q[:1, :1], q[:1, :1], **options)
        out, _ = ops.qk_norm_rope(q, q, **options)
    for b, token in ((0, 0), (1, 0), (1, shape[1] - 1)):
        assert torch.equal(out[b, token], expected[0, 0]), f"output at {b}, {token}"


def _large(written) -> Iterator[Check]:
    for name in written["st_attention"]:
        run = partial(_call, attention_beyond_2_31, name)
        yield Check(f"st_attention/{name}/beyond 2^31", run, "large")
    yield Check("adaln/triton/beyond 2^31", modulation_beyond_2_31, "large")
    yield Check("qk_norm_rope/triton/beyond 2^31", prologue_beyond_2_31, "large")
