"""A call for every configuration that is shipped: small tensors, the launch function, float64.

Each op turns one row of its `configurations(arch)` into the arguments of its launch functions, by the
names of the row's constants, so a new row of a known kernel costs nothing here. Whether the call took
the kernel that the row means is asked of the launches afterwards (`missed`).
Not here: running them (`coverage.py`), the kernels of nvcc (`native_cases.py`).
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from importlib import import_module
from unittest import mock

import torch
from torch import Tensor

from colaworld.ops import reference

FILES = ("st_attention", "adaln", "qk_norm_rope", "vector_quantize")
DTYPES = {
    "bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32, "i64": torch.int64,
}  # fmt: skip
# Rounding that is nobody's fault: a few units in the last place of the dtype; float32 on tensor cores
# is three tf32 products.
FLOORS = {torch.float64: 0.0, torch.float32: 4e-6, torch.bfloat16: 1e-2, torch.float16: 2e-3}


@dataclass(frozen=True)
class Found:
    name: str
    got: Tensor
    plain: Tensor  # the reference in the same dtype
    exact: Tensor  # the reference in float64


@dataclass(frozen=True)
class Case:
    op: str
    label: str
    dtype: str
    run: Callable[[], list[Found]]


def error(got: Tensor, exact: Tensor) -> float:
    """Relative, over the whole tensor; infinite where one is not a number and the other is."""
    if got.shape != exact.shape:
        raise ValueError(f"shapes: got {tuple(got.shape)}, expected {tuple(exact.shape)}")
    off = (got.double() - exact.double()).norm().item()
    size = exact.double().norm().item()
    found = off / size if size else off
    return found if found == found else float("inf")


def worst(found: Iterable[Found], dtype: torch.dtype) -> tuple[float, list[str]]:
    """The largest error, and what is further off than twice the reference's own rounding."""
    most, wrong = 0.0, []
    for f in found:
        off = error(f.got, f.exact)
        floor = max(FLOORS[dtype], FLOORS[f.got.dtype])
        allowed = max(2 * error(f.plain, f.exact), floor)
        most = max(most, off)
        if not off <= allowed:
            wrong.append(f"{f.name}: error {off:.2e}, allowed {allowed:.2e}")
    return most, wrong


def cases(op: str, arch: int, *, one: bool = False) -> Iterator[Case]:
    """One for each configuration of a file of kernels, those of one call once.

    `one`: the first for each kernel and dtype alone.
    """
    kernels = import_module(f"colaworld.kernels.{op}")
    made: set[tuple[str, str]] = set()
    seen: set[tuple[str, str]] = set()
    for row in kernels.configurations(arch):
        case = _CASES[op](kernels, row)
        kind = (row.kernel.__name__, case.dtype)
        if one and kind in seen:
            continue
        seen.add(kind)
        if (case.label, case.dtype) not in made:
            made.add((case.label, case.dtype))
            yield case


def missed(op: str, arch: int, launches: Iterable[object]) -> list[str]:
    """Labels of the configurations that none of the launches (`triton_driver.Ran`) was of."""
    kernels = import_module(f"colaworld.kernels.{op}")
    ran = list(launches)

    def is_of(row, launch) -> bool:
        pointers = [(n, t) for n, t in row.signature.items() if t.startswith("*")]
        # Where there is no weight or table, a clip stands in for it.
        told = [p for p in pointers if p[1] not in ("*fp32", "*i64")] or pointers[:1]
        return (
            launch.kernel == row.kernel.__name__
            and launch.shape.block[0] == 32 * row.num_warps
            and all(launch.constants.get(n, v) == v for n, v in row.constants.items())
            and all(launch.dtypes[n] == t for n, t in told)
        )

    return [
        row.label
        for row in kernels.configurations(arch)
        if not any(is_of(row, launch) for launch in ran)
    ]


# --- what the ops share --------------------------------------------------------------------------


def call(function: Callable, *tensors: object, **options: object):
    """Options that say no (None, False, ()) are left out where the function does not know them."""
    known = knows(function)
    for name, value in options.items():
        if name not in known and value is not None and value is not False and value != ():
            raise TypeError(f"{function.__name__} has no {name}, asked to be {value!r}")
    return function(*tensors, **{n: v for n, v in options.items() if n in known})


def knows(function: Callable) -> set[str]:
    """The names of its parameters."""
    return set(inspect.signature(function).parameters)


def draw(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def dtype_of(row, *names: str) -> torch.dtype:
    """Of the first of these arguments that the kernel has."""
    return DTYPES[next(row.signature[n] for n in names if n in row.signature).removeprefix("*")]


def short_name(dtype: torch.dtype) -> str:
    return next(name for name, of in DTYPES.items() if of == dtype)


def gradients(function: Callable, leaves: list[Tensor | None], grads: list[Tensor]):
    """Outputs of function(*leaves) and the gradients of the leaves that there are."""
    leaves = [x if x is None else x.detach().requires_grad_() for x in leaves]
    outs = function(*leaves)
    outs = [outs] if isinstance(outs, Tensor) else list(outs)
    asked = [x for x in leaves if x is not None]
    grads = [g.to(o.dtype) for g, o in zip(grads, outs, strict=True)]
    return [o.detach() for o in outs], torch.autograd.grad(outs, asked, grads)


def widened(x):
    return x.double() if isinstance(x, Tensor) and x.is_floating_point() else x


# --- the ops -------------------------------------------------------------------------------------


def _st_attention(kernels, row) -> Case:
    c = row.constants
    dtype = dtype_of(row, "QKV")
    norm, rope, causal, D = c["Q_NORM"], c["ROPE"], c["CAUSAL"], c["D"]
    B, T, S, H = 1, (11 if c["TP"] == 16 else 21), 3, 2

    def run() -> list[Found]:
        qkv, grad = draw(B, T, S, 3, H, D, dtype=dtype), draw(B, T, S, H, D, dtype=dtype, seed=1)
        weights = [1 + 0.3 * draw(D, seed=s) if norm else None for s in (2, 3)]
        angles = draw(T, D // 2, seed=4)
        tables = [angles.cos(), angles.sin()] if rope else [None, None]
        options = {"causal": causal, "eps": 1e-5, "scale": D**-0.5}
        got = [kernels.temporal_attention(qkv, *weights, *tables, **options)]
        back = kernels.temporal_attention_backward(grad, qkv, *weights, *tables, **options)
        got += [x for x in back if x is not None]

        def of(wide):
            to = (lambda x: widened(x)) if wide else (lambda x: x)
            tables_ = [to(t) for t in tables]
            function = lambda q, a, b: reference.st_attention(  # noqa: E731
                q, a, b, *tables_, temporal=True, **options
            )
            outs, grads = gradients(function, [to(qkv), *map(to, weights)], [to(grad)])
            return [*outs, *grads]

        names = ("out", "qkv", "q_weight", "k_weight")
        return [Found(*f) for f in zip(names, got, of(False), of(True), strict=False)]

    how = f"D={D} T={T}{' causal' if causal else ''}{'' if norm else ' no norm'}"
    return Case("st_attention", how + ("" if rope else " no rotation"), short_name(dtype), run)


def _adaln(kernels, row) -> Case:
    c = row.constants
    if "C" not in c:  # the sum of partial sums, which every backward pass launches
        C, gated, branch = 1152, True, True
        x_dtype = y_dtype = out_dtype = torch.bfloat16
    else:
        C, gated = c["C"], c["GATED"]
        branch = c.get("BRANCH", gated)
        x_dtype, y_dtype = dtype_of(row, "X"), dtype_of(row, "Y", "X")
        out_dtype = dtype_of(row, "OUT", "GRAD", "X")
    B, T, S = 1, 2, 9

    def run() -> list[Found]:
        x, y = draw(B, T, S, C, dtype=x_dtype), draw(B, T, S, C, dtype=y_dtype, seed=1)
        gate, shift, scale = (draw(B, T, C, seed=s) for s in (2, 3, 4))
        grad_x, grad = (
            draw(B, T, S, C, dtype=x_dtype, seed=5),
            draw(B, T, S, C, dtype=out_dtype, seed=6),
        )
        y, gate = (y if branch else None), (gate if gated else None)
        eps = c.get("EPS", 1e-6)
        x_out, out, mean, rstd = kernels.modulate(
            x, y, gate, shift, scale, eps=eps, out_dtype=out_dtype
        )
        held = x_out if branch else x
        dx, dy, dgate, dshift, dscale = kernels.modulate_backward(
            grad_x, grad, held, y if gated else None, gate, scale, mean, rstd
        )
        got = {"out": out, "x": dx, "shift": dshift, "scale": dscale}
        if branch:
            got["x_out"] = x_out
        if gated:
            got |= {"y": dy, "gate": dgate}

        def of(wide):
            to = widened if wide else (lambda x: x)
            of_out = torch.float64 if wide else out_dtype
            function = lambda *leaves: reference.adaln(*leaves, eps=eps, out_dtype=of_out)  # noqa: E731
            leaves = [to(t) for t in (x, y, gate, shift, scale)]
            outs, grads = gradients(function, leaves, [to(grad_x), to(grad)])
            names = [
                n
                for n, t in zip(("x", "y", "gate", "shift", "scale"), leaves, strict=True)
                if t is not None
            ]
            return {"x_out": outs[0], "out": outs[1], **dict(zip(names, grads, strict=True))}

        plain, exact = of(False), of(True)
        return [Found(name, value, plain[name], exact[name]) for name, value in got.items()]

    how = "gated" if gated else "added" if branch else "alone"
    mixed = "" if x_dtype == out_dtype else f" to {short_name(out_dtype)}"
    return Case("adaln", f"C={C} {how}{mixed}", short_name(x_dtype), run)


def _qk_norm_rope(kernels, row) -> Case:
    c = row.constants
    dtype = dtype_of(row, "Q", "X", "QKV")
    D, norm, across, rope = c["D"], c["NORM"], c["ACROSS"], c["ROPE"]
    sections = tuple(c["SECTIONS"])
    H = int(re.search(r"(\d+)x\d+", row.label)[1])
    B, L, P = 1, 5, 7

    def run() -> list[Found]:
        q, k, grad_q, grad_k = (draw(B, L, H, D, dtype=dtype, seed=s) for s in range(4))
        width = H * D if across else D
        weights = [1 + 0.3 * draw(width, seed=s) if norm else None for s in (5, 6)]
        angles = draw(P if sections else L, D // 2, seed=7)
        tables = [angles.cos(), angles.sin()] if rope else [None, None]
        position = None
        if sections:
            position = torch.randint(
                P, (L, len(sections)), generator=torch.Generator().manual_seed(1)
            )
        options = {"eps": 1e-5, "across": across}
        rest = (*weights, *tables, position, sections)
        got = list(call(kernels.qk_norm_rope, q, k, *rest, **options))
        back = call(kernels.qk_norm_rope_backward, grad_q, grad_k, q, k, *rest, **options)
        got += [x for x in back if x is not None]

        def of(wide):
            to = widened if wide else (lambda x: x)
            tables_ = [to(t) for t in tables]
            function = lambda *leaves: call(  # noqa: E731
                reference.qk_norm_rope, *leaves, *tables_, position, sections, **options
            )
            leaves = [to(t) for t in (q, k, *weights)]
            outs, grads = gradients(function, leaves, [to(grad_q), to(grad_k)])
            return [*outs, *grads]

        plain, exact = of(False), of(True)
        names = ("q_out", "k_out", "q", "k", "q_weight", "k_weight")
        found = [Found(*f) for f in zip(names, got, plain, exact, strict=False)]
        if not across and not sections:
            v, grad_v = (draw(B, L, H, D, dtype=dtype, seed=s) for s in (8, 9))
            qkv = torch.stack((q, k, v), 2) if norm else None
            dqkv = kernels.qkv_norm_rope_backward(
                grad_q, grad_k, grad_v, qkv, *weights, *tables, eps=1e-5
            )[0]
            whole = [torch.stack((*x[2:4], grad_v.to(x[2].dtype)), 2) for x in (plain, exact)]
            found.append(Found("qkv", dqkv, *whole))
        return found

    how = f"{H}x{D} {'across' if across else 'head' if norm else 'no norm'}"
    how += " pairs" if rope else ""
    return Case("qk_norm_rope", how + (" three axes" if sections else ""), short_name(dtype), run)


def _vector_quantize(kernels, row) -> Case:
    c, name = row.constants, row.kernel.__name__
    sizes = re.search(r"K=(\d+) d=(\d+)", row.label)
    K, D = (int(sizes[1]), int(sizes[2])) if sizes else (20, 8)
    dtype = dtype_of(row, "Z") if "Z" in row.signature else torch.float32
    run = {
        "assign_kernel": lambda: _nearest(kernels, c, min(K, 150), D, dtype),
        "select_kernel": lambda: _sums(kernels, K, D, dtype),
        "parts_kernel": lambda: _sums(kernels, K, D, dtype, SELECT_ROWS=64),
        "pieces_kernel": lambda: _sums(kernels, K, D, dtype, SELECT_TABLE=0),
        "entries_kernel": lambda: _sums(kernels, K, D, dtype, SELECT_TABLE=0),
        "update_kernel": lambda: _update(kernels, K, D),
    }[name]
    what = row.label.removeprefix("vector_quantize ").removeprefix("code_statistics ")
    what = re.sub(r"^(pieces|entries)", "sort", what).removesuffix(short_name(dtype))
    return Case("vector_quantize", what.strip(), short_name(dtype), run)


def thresholds(kernels, **numbers: int) -> ExitStack:
    """Thresholds of a file, so that few rows already take the way of many."""
    stack = ExitStack()
    for name, value in numbers.items():
        stack.enter_context(mock.patch.object(kernels, name, value))
    return stack


def _nearest(kernels, c, K: int, D: int, dtype: torch.dtype) -> list[Found]:
    z, codebook = draw(150, D, dtype=dtype), draw(K, D, dtype=dtype, seed=1)
    with thresholds(kernels, FEW_ROWS=0 if c["BN"] > 32 else 1 << 14):
        codes, indices = kernels.nearest(z, codebook)
    assert torch.equal(codes, codebook[indices]), "codes are not the entries of the indices"
    distance = torch.cdist(z.double(), codebook.double())
    chosen, least = distance.gather(1, indices[:, None])[:, 0], distance.min(1).values
    plain = distance.gather(1, reference.nearest_code(z, codebook)[:, None])[:, 0]
    return [Found("distance", chosen, plain, least)]


def _sums(kernels, K: int, D: int, dtype: torch.dtype, **numbers: int) -> list[Found]:
    z = draw(300, D, dtype=dtype)
    indices = torch.randint(K, (300,), generator=torch.Generator().manual_seed(1))
    indices[:150] = K - 1  # one heavy entry, of several pieces
    with thresholds(kernels, **numbers):
        got = kernels.sums(z, indices, K, counts=True)
    exact = reference.code_statistics(z.double(), indices, K, True)
    return [Found("sums", got, reference.code_statistics(z, indices, K, True), exact)]


def _update(kernels, K: int, D: int) -> list[Found]:
    codebook, count = draw(K, D), draw(K, seed=1).abs()
    state = [codebook, count, codebook * count[:, None]]
    packed = torch.cat([draw(K, D, seed=2), draw(K, 1, seed=3).abs()], 1)
    ours = [t.clone() for t in state]
    kernels.update(*ours, packed, decay=0.9, eps=1e-5)

    def of(dtype: torch.dtype) -> list[Tensor]:
        _, n, total = (t.to(dtype) for t in state)
        n = n.lerp(packed[:, D].to(dtype), 0.1)
        total = total.lerp(packed[:, :D].to(dtype), 0.1)
        smooth = (n + 1e-5) / (n.sum() + K * 1e-5) * n.sum()
        return [total / smooth[:, None], n, total]

    names = ("codebook", "count", "total")
    plain, exact = of(torch.float32), of(torch.float64)
    return [Found(*f) for f in zip(names, ours, plain, exact, strict=True)]


_CASES = {
    "st_attention": _st_attention,
    "adaln": _adaln,
    "qk_norm_rope": _qk_norm_rope,
    "vector_quantize": _vector_quantize,
}
