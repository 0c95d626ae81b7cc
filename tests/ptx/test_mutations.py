"""Kernels that were broken on purpose: each must stop, be reported, or give a wrong number.

The PTX of a shipped kernel is changed in one place, as an author or a compiler might have got it wrong.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable

import pytest

from ptx import cases, native_cases, native_driver
from ptx.faults import Fault
from ptx.native_driver import Missing, Native, NotWritten


def replaced(pattern: str, new: str, number: int = 0, kernel: str = "") -> Callable[[str], str]:
    """A change of the `number`-th place where the pattern stands, in the PTX of that kernel; -1: of all."""

    def change(text: str) -> str:
        if f".entry {kernel}" not in text and not re.search(rf"\.entry \S*{kernel}", text):
            return text
        places = list(re.finditer(pattern, text))
        assert places, f"{pattern} is not in the kernel"
        for place in reversed(places if number == -1 else [places[number]]):
            text = text[: place.start()] + place.expand(new) + text[place.end() :]
        return text

    return change


def verdict(run: Callable[[], list[cases.Found]], reports: Callable[[], object], dtype: str) -> str:
    """What became of it: "fault ...", "report ...", "wrong ...", or "nothing"."""
    try:
        _, wrong = cases.worst(run(), cases.DTYPES[dtype])
    except (Fault, NotWritten, AssertionError) as error:
        return f"fault {error}"
    if found := reports():
        return f"report {found}"
    return f"wrong {wrong}" if wrong else "nothing"


def of_triton(op: str, label: str, dtype: str, change, arch: int = 90) -> str:
    pytest.importorskip("triton", reason="triton comes with a CUDA build of torch")
    from ptx.triton_driver import on_ptx

    case = next(c for c in cases.cases(op, arch) if c.label == label and c.dtype == dtype)
    with on_ptx(arch, transform=change) as session:
        return verdict(case.run, lambda: session.reports, dtype)


@functools.cache
def built() -> Native:
    try:
        return Native.built()
    except Missing as reason:
        pytest.skip(str(reason))


def of_nvcc(case, dtype, change: Callable[[str], str] | None) -> str:
    native = built() if change is None else built().changed(change)
    native.reports.found.clear()
    made = native_cases.attention(native, case, dtype)
    return verdict(made.run, lambda: native.reports, made.dtype)


LOAD = r"@%p\d+ (ld\.global)"
ATTENTION = ("st_attention", "D=72 T=11", "bf16")
FEW = ("vector_quantize", "K=32 d=32 fp32 few rows", "fp32")
MANY = ("vector_quantize", "K=32 d=32 bf16 many rows", "bf16")
FORWARD = "forward_kernel"


def test_nothing_is_found_in_what_was_not_changed() -> None:
    for op, label, dtype in (ATTENTION, FEW, MANY):
        assert of_triton(op, label, dtype, lambda text: text) == "nothing"


@pytest.mark.parametrize("number", range(3))
@pytest.mark.parametrize("pattern", [r"bar\.sync[^;]*;", r"bar\.warp\.sync[^;]*;"])
def test_a_barrier_that_is_missing(pattern, number) -> None:
    found = of_triton(*ATTENTION, replaced(pattern, "", number, FORWARD))
    assert "RACE" in found, found


def test_a_mask_that_is_missing() -> None:
    """The rows of padding are beyond the end of the tensor."""
    assert "fault read of" in of_triton(*ATTENTION, replaced(LOAD, r"\1", -1, FORWARD))
    write = replaced(r"@%p\d+ (st\.global)", r"\1", -1, FORWARD)
    assert "fault write of" in of_triton(*ATTENTION, write)


def test_a_comparison_that_is_off_by_one() -> None:
    """A row more than there are: beyond the end, or into a neighbour's."""
    found = of_triton(*ATTENTION, replaced(r"setp\.lt\.s32", "setp.le.s32", -1, FORWARD))
    assert found != "nothing"
    assert of_triton(*ATTENTION, replaced(r"setp\.lt\.s32", "setp.ge.s32", 0, FORWARD)) != "nothing"


@pytest.mark.parametrize("number", range(3))
def test_an_address_that_is_shifted(number) -> None:
    """A store to shared memory without its offset overwrites, or leaves a place unwritten."""
    change = replaced(r"(st\.shared\S*\s+\[%r\d+)\+\d+\]", r"\1]", number, FORWARD)
    assert of_triton(*ATTENTION, change).split()[0] in ("report", "wrong")


def test_an_address_that_is_not_aligned() -> None:
    change = replaced(r"(ld\.global\.v4\.b32 [^\[]*\[ %rd\d+) \+ 0", r"\1 + 8", 0, FORWARD)
    assert "misaligned access of 16 bytes" in of_triton(*ATTENTION, change)


@pytest.mark.parametrize("number", [0, 7])
def test_operands_of_a_product_that_are_exchanged(number) -> None:
    change = replaced(
        r"(mma\.sync\S+ \{[^}]*\}, \{) (%r\d+), (%r\d+),", r"\1 \3, \2,", number, FORWARD
    )
    assert of_triton(*ATTENTION, change).startswith("wrong")


def test_a_tile_that_is_not_turned() -> None:
    change = replaced(r"(ldmatrix\S+)\.trans\.shared", r"\1.shared", 0, FORWARD)
    assert of_triton(*ATTENTION, change).startswith("wrong")


def test_a_sum_over_the_wrong_lanes() -> None:
    change = replaced(r"(shfl\.sync\.bfly\.b32 \s*%r\d+, %r\d+, )1,", r"\g<1>4,", 0, FORWARD)
    assert of_triton(*ATTENTION, change).split()[0] in ("report", "wrong")


def test_a_store_that_is_missing() -> None:
    """What was not written is NaN: whole outputs are compared."""
    change = replaced(r"@%p\d+ st\.global[^;]*;", "", 0, FORWARD)
    assert of_triton(*ATTENTION, change).startswith("wrong")


@pytest.mark.parametrize("which", [FEW, MANY])
def test_an_asynchronous_copy_without_its_wait(which) -> None:
    assert "ASYNC" in of_triton(*which, replaced(r"cp\.async\.wait_group[^;]*;", ""))
    assert "ASYNC" in of_triton(*which, replaced(r"cp\.async\.commit_group[^;]*;", ""))


def test_an_asynchronous_copy_on_the_older_architecture() -> None:
    change = replaced(r"cp\.async\.wait_group[^;]*;", "")
    assert "ASYNC" in of_triton(*FEW, change, arch=80)


@pytest.mark.parametrize(
    ("pattern", "says"),
    [(r"fence\.proxy\.async[^;]*;", "no fence.proxy.async"),
     (r"wgmma\.fence[^;]*;", "before the first wgmma.fence"),
     (r"bar\.sync[^;]*;", "RACE")],
)  # fmt: skip
def test_what_wgmma_needs_before_it(pattern, says) -> None:
    assert says in of_triton(*MANY, replaced(pattern, ""))


def test_a_wait_for_wgmma_that_is_missing() -> None:
    assert of_triton(*MANY, replaced(r"wgmma\.wait_group[^;]*;", "")) != "nothing"


def test_a_matrix_descriptor_with_another_swizzle() -> None:
    change = replaced(r"-9223371899415822336", str(-9223371899415822336 + (1 << 62)), -1)
    assert of_triton(*MANY, change) != "nothing"


# --- nvcc ----------------------------------------------------------------------------------------

HALF, FLOAT = native_cases.HALF[0], native_cases.torch.float32
CASE = native_cases.Attention(72, 11, causal=True)


def test_nothing_is_found_in_the_kernels_of_nvcc() -> None:
    assert of_nvcc(CASE, HALF, None) == "nothing"
    assert of_nvcc(CASE, FLOAT, None) == "nothing"


def test_a_base_that_is_aligned_to_less_than_the_kernels_take(monkeypatch) -> None:
    least = native_cases.Attention(72, 5, aligned=False)
    assert of_nvcc(least, HALF, None) == "nothing"
    half = native_driver.attention_alignment(HALF) // 2
    monkeypatch.setattr(native_driver, "attention_alignment", lambda dtype: half)
    assert "misaligned access" in of_nvcc(least, HALF, None)


def test_warps_that_do_not_sync() -> None:
    change = lambda text: re.sub(r"bar\.warp\.sync[^;]*;", "", text)  # noqa: E731
    assert "RACE" in of_nvcc(CASE, FLOAT, change)


def test_blocks_that_do_not_sync() -> None:
    change = lambda text: re.sub(r"bar\.sync[^;]*;", "", text)  # noqa: E731
    assert "RACE" in of_nvcc(CASE, HALF, change)


@pytest.mark.parametrize(
    ("pattern", "new"),
    [(r"(mma\.sync\S+ \{[^}]*\}, \{)(%r\d+), (%r\d+),", r"\1\3, \2,"),
     (r"movmatrix\S+ (%r\d+), (%r\d+)", r"mov.b32 \1, \2"),
     (r"ex2\.approx\.(?:ftz\.)?f32", "lg2.approx.f32")],
)  # fmt: skip
def test_wrong_numbers(pattern, new) -> None:
    change = lambda text: re.sub(pattern, new, text)  # noqa: E731
    if not any(re.search(pattern, text) for _, text in built().kernels.values()):
        pytest.skip(f"no kernel has {pattern}")
    assert of_nvcc(CASE, HALF, change).startswith("wrong")


def test_a_part_that_is_not_written() -> None:
    change = lambda text: re.sub(r"(st\.global\.\S+ \[[^\]]*)\]", r"\1-32]", text)  # noqa: E731
    assert of_nvcc(CASE, HALF, change).startswith("fault")
