"""How kernels are compiled, read and remembered; what is read of machine code is in test_sass.py."""

from __future__ import annotations

import subprocess
from types import SimpleNamespace

import pytest

from cuda_check import compiled


def test_usage_is_read_by_hand() -> None:
    text = (
        "Resource usage:\n Common:\n  GLOBAL:0\n Function _Z3addPf:\n"
        "  REG:12 STACK:8 SHARED:256 LOCAL:0 CONSTANT[0]:900 TEXTURE:0\n"
    )
    assert list(compiled.resource_usage(text)) == [
        {"name": "_Z3addPf", "registers": 12, "stack": 8, "shared": 256}
    ]
    assert compiled.plain_name("_Z3addPf") in ("add", "_Z3addPf")  # without c++filt it stays


def test_a_tool_that_fails_is_an_error(monkeypatch) -> None:
    def run(*_, **__):
        return subprocess.CompletedProcess([], 1, "", "no such file")

    monkeypatch.setattr(compiled.subprocess, "run", run)
    with pytest.raises(RuntimeError, match="no such file"):
        compiled._tool("cuobjdump", "-lelf", "missing.so")


@pytest.mark.parametrize(
    ("kernel", "listed"),
    [
        (
            "colaworld::cuda::st_attention::forward<colaworld::cuda::bf16, 72, 2>",
            "st_attention forward, bfloat16, D 72, T <= 16",
        ),
        (
            "colaworld::cuda::st_attention::backward<colaworld::cuda::fp16, 128, 4>",
            "st_attention backward, float16, D 128, T <= 32",
        ),
        (
            "colaworld::cuda::st_attention_float::backward<32>",
            "st_attention backward, float32, D 128, T <= 32",
        ),
        ("colaworld::cuda::sum", "st_attention, sums of the weights"),
        (
            "colaworld::cuda::vector_quantize_kernels::assign<float, 8>",
            "vector_quantize, 128 rows a block, float32",
        ),
        (
            "colaworld::cuda::code_statistics_kernels::add<colaworld::cuda::bf16, 1>",
            "code_statistics at its largest, bfloat16, d <= 32",
        ),
        (
            "colaworld::cuda::code_statistics_kernels::merge<float>",
            "code_statistics, sums of parts",
        ),
    ],
)
def test_kernels_as_the_library_lists_them(kernel, listed) -> None:
    assert compiled.launch_name(kernel) == listed


def test_a_cuda_kernel_that_nobody_lists_is_an_error() -> None:
    with pytest.raises(ValueError, match="st_attention::sideways: expected a line of _LAUNCHES"):
        compiled.launch_name("colaworld::cuda::st_attention::sideways")


@pytest.fixture
def kept(monkeypatch, tmp_path):
    """The folder that rows are kept in."""
    monkeypatch.setattr(compiled, "KEPT", tmp_path / "kept")
    return tmp_path / "kept"


def test_what_was_read_is_read_once(kept) -> None:
    asked = []

    def make():
        asked.append(1)
        return {"registers": 7}

    assert compiled._remembered("a", make) == compiled._remembered("a", make) == {"registers": 7}
    assert len(asked) == 1 and [file.name for file in kept.iterdir()] == ["a.json"]
    compiled._remembered("b", make)
    assert len(asked) == 2


def test_what_fails_is_not_kept(kept) -> None:
    with pytest.raises(ZeroDivisionError):
        compiled._remembered("a", lambda: 1 // 0)
    assert compiled._remembered("a", lambda: 1) == 1


def jit(src: str, **names):
    """What is used of a Triton function."""
    return SimpleNamespace(
        src=src,
        arg_names=[],
        __globals__=names,
        __module__="kernels",
        __name__=src.split("(")[0][4:],
    )


def test_the_source_of_a_kernel_is_all_that_it_calls() -> None:
    inner = jit("def inner():\n    return 1")
    module = SimpleNamespace(inner=inner)
    kernel = jit("def kernel():\n    inner()", inner=inner)
    other = jit("def inner():\n    return 2")
    assert compiled.kernel_source(kernel) != compiled.kernel_source(jit(kernel.src, inner=other))
    through = jit("def kernel():\n    rows.inner()", rows=module)
    changed = jit(through.src, rows=SimpleNamespace(inner=other))
    assert "return 1" in compiled.kernel_source(through)
    assert compiled.kernel_source(through) != compiled.kernel_source(changed)

    around = jit("def around():\n    around()")
    around.__globals__["around"] = around
    assert "around()" in compiled.kernel_source(around)


def test_constants_that_a_kernel_reads_are_part_of_it() -> None:
    tl = pytest.importorskip("triton.language")
    two, three = (jit("def f():\n    return N", N=tl.constexpr(n)) for n in (2, 3))
    assert compiled.kernel_source(two) != compiled.kernel_source(three)


def test_a_key_changes_with_all_that_a_row_follows_from(monkeypatch) -> None:
    triton = pytest.importorskip("triton")
    of = {
        "kernel": jit("def f():\n    return 1"),
        "signature": {"X": "*fp32", "N": "constexpr"},
        "constants": {"N": 8},
        "divisible": {"X": 16},
        "num_warps": 4,
        "num_stages": 1,
        "label": "f",
    }

    def key(arch: int = 90, **changed) -> str:
        return compiled._key(SimpleNamespace(**{**of, **changed}), arch)

    before = key()
    assert before == key(kernel=jit("def f():\n    return 1"))
    changed = [
        key(kernel=jit("def f():\n    return 2")),
        key(signature={"X": "*bf16", "N": "constexpr"}),
        key(constants={"N": 16}),
        key(divisible={}),
        key(num_warps=8),
        key(num_stages=2),
        key(arch=80),
    ]
    monkeypatch.setattr(triton, "__version__", "0")
    changed.append(key())
    monkeypatch.setattr(compiled, "_reader", lambda: "read in another way")
    changed.append(key())
    assert len({before, *changed}) == 10


def test_kernels_that_did_not_change_are_not_compiled(kept, monkeypatch) -> None:
    tuning = pytest.importorskip("colaworld.kernels.tuning")
    monkeypatch.setattr(tuning, "ARCHITECTURES", (90,))
    monkeypatch.setattr(compiled, "_configurations", lambda op, arch: [f"{op} 0", f"{op} 1"])
    monkeypatch.setattr(compiled, "_key", lambda configuration, arch: configuration)
    kept.mkdir(parents=True)
    for place in (0, 1):
        (kept / f"adaln {place}.json").write_text(f'{{"registers": {place}}}')
    # Another process would not see the stand-ins: a compilation is an error here.
    monkeypatch.setattr(compiled, "_compile", None)
    rows = list(compiled.triton_rows("adaln"))
    assert rows == [
        {"impl": "triton", "op": "adaln", "arch": 90, "registers": 0},
        {"impl": "triton", "op": "adaln", "arch": 90, "registers": 1},
    ]
    (kept / "adaln 1.json").unlink()
    with pytest.raises(TypeError, match="not callable"):
        list(compiled.triton_rows("adaln"))


def test_a_kernel_is_compiled_and_read() -> None:
    pytest.importorskip("triton")
    places = {c.label: place for place, c in enumerate(compiled._configurations("adaln", 90))}
    row = compiled._compile("adaln", 90, places["adaln sum"])
    assert row["kernel"] == "sum_kernel" and row["config"] == "adaln sum" and row["threads"] == 128
    # 16 x 128 float32 in 128 lanes: four loads of 16 bytes a pass, however many are held back.
    assert row["loads"] == {"128": 4} and row["stack"] == 0
    assert 16 <= row["in_flight"] <= 64 and row["shared"] == 2048
