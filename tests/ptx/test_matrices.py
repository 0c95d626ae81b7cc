"""Matrix instructions against numpy: fragments as the PTX manual draws them, element by element."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ptx.faults import Reports
from ptx.small import load, on_words, run, store

LANES = np.arange(32)
GROUP, IN_GROUP = LANES // 4, LANES % 4


def numbers(kind: str, *shape: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Values that the type holds, and their bits: uint16, or uint32 for tf32."""
    x = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    if kind == "tf32":
        bits = x.numpy().view(np.uint32) & np.uint32(0xFFFFE000)
        return bits.view(np.float32).astype(np.float64), bits
    dtype = torch.bfloat16 if kind == "bf16" else torch.float16
    x = x.to(dtype)
    return x.double().numpy(), x.view(torch.int16).numpy().view(np.uint16)


def words_of(bits: np.ndarray, place) -> np.ndarray:
    """[32] words: `place(lane, e)` is the index of number e of a lane's word."""
    each = 1 if bits.dtype == np.uint32 else 2
    words = np.zeros(32, np.uint32)
    for lane in range(32):
        for e in range(each):
            words[lane] |= np.uint32(bits[place(lane, e)]) << np.uint32(16 * e)
    return words


def accumulators(matrix: np.ndarray) -> list[np.ndarray]:
    """[16, 8] float32 as the four registers of a lane: rows g and g + 8, columns 2 t and the next."""
    return [
        matrix[GROUP + 8 * (i // 2), 2 * IN_GROUP + i % 2].astype(np.float32).view(np.uint32)
        for i in range(4)
    ]


@pytest.mark.parametrize(("kind", "K"), [("bf16", 16), ("bf16", 8), ("f16", 16), ("f16", 8), ("tf32", 8), ("tf32", 4)])  # fmt: skip
def test_mma(kind, K) -> None:
    a, a_bits = numbers(kind, 16, K)
    b, b_bits = numbers(kind, K, 8, seed=1)
    c = numbers("tf32", 16, 8, seed=2)[0]
    each = 1 if kind == "tf32" else 2
    across = 4 * each  # numbers of a row in the four lanes of a group
    of_a = [
        words_of(a_bits, lambda lane, e, i=i: (lane // 4 + 8 * (i % 2), lane % 4 * each + e + across * (i // 2)))
        for i in range(2 * K // across)
    ]  # fmt: skip
    of_b = [
        words_of(b_bits, lambda lane, e, i=i: (lane % 4 * each + e + across * i, lane // 4))
        for i in range(K // across)
    ]
    words = np.stack([*of_a, *of_b, *accumulators(c)])
    n = len(of_a), len(of_b)
    name = lambda first, count: "{" + ", ".join(f"%r{first + i}" for i in range(count)) + "}"  # noqa: E731
    body = (
        f"mma.sync.aligned.m16n8k{K}.row.col.f32.{kind}.{kind}.f32 {name(200, 4)}, "
        f"{name(10, n[0])}, {name(10 + n[0], n[1])}, {name(10 + sum(n), 4)};\n"
    )
    found = on_words(body, words, 4)
    wanted = np.stack(accumulators(a @ b + c))
    np.testing.assert_allclose(
        found.view(np.float32), wanted.view(np.float32), rtol=1e-6, atol=1e-6
    )


def tile_words(tile: np.ndarray) -> np.ndarray:
    """[8, 8] uint16: row l / 4, columns 2 (l % 4) and the next."""
    return words_of(tile, lambda lane, e: (lane // 4, lane % 4 * 2 + e))


def test_movmatrix() -> None:
    tile = np.arange(64, dtype=np.uint16).reshape(8, 8)
    found = on_words(
        "movmatrix.sync.aligned.m8n8.trans.b16 %r200, %r10;\n", tile_words(tile)[None], 1
    )
    assert (found[0] == tile_words(tile.T)).all()


@pytest.mark.parametrize("trans", [False, True])
@pytest.mark.parametrize("count", [1, 2, 4])
def test_tiles_to_and_from_shared_memory(count, trans) -> None:
    """stmatrix puts tiles where lanes say, ldmatrix takes them from there: rows 32 bytes apart."""
    tiles = np.arange(64 * count, dtype=np.uint16).reshape(count, 8, 8)
    words = np.stack([tile_words(t) for t in tiles])
    names = ", ".join(f"%r{10 + i}" for i in range(count))
    outs = ", ".join(f"%r{200 + i}" for i in range(count))
    how = ".trans" if trans else ""
    body = f"""
    and.b32 %r100, %r0, 31;
    mad.lo.u32 %r101, %r100, 32, %r2;
    stmatrix.sync.aligned.m8n8.x{count}{how}.shared.b16 [%r101], {{{names}}};
    bar.warp.sync -1;
    ldmatrix.sync.aligned.m8n8.x{count}.shared.b16 {{{outs}}}, [%r101];
    """
    found = on_words(body, words, count, shared=1024)
    wanted = [tile_words(t.T if trans else t) for t in tiles]
    assert (found == np.stack(wanted)).all()
    body = body.replace(f"x{count}{how}.shared.b16 [%r101]", f"x{count}.shared.b16 [%r101]")
    body = body.replace(
        f"ldmatrix.sync.aligned.m8n8.x{count}", f"ldmatrix.sync.aligned.m8n8.x{count}{how}"
    )
    assert (on_words(body, words, count, shared=1024) == np.stack(wanted)).all()


# --- wgmma ---------------------------------------------------------------------------------------

SWIZZLES = {16: 0, 32: 3, 64: 2, 128: 1}  # bytes of a row -> mode


def in_shared(bits: np.ndarray, width: int, turned: bool) -> tuple[np.ndarray, int, int]:
    """A matrix [rows, K] as it must lie in shared memory: bytes, leading and stride offsets.

    Piece by piece of 16 bytes: the canonical layouts that CUTLASS lists for wgmma, in units of 16-byte
    pieces, and then the swizzle, which exchanges pieces within 8 rows.
    """
    if turned:
        bits = bits.T
    size = bits.itemsize
    rows, columns = bits.shape  # rows of pieces: neighbours within a row are neighbours in memory
    per = 16 // size
    pieces = columns // per
    wide = width // 16
    memory = np.zeros(bits.nbytes, np.uint8)
    broad = max(1, pieces // wide)  # tiles of 8 rows and `width` bytes
    tile = 8 * width
    for r in range(rows):
        for p in range(pieces):
            inside = p % wide
            if wide > 1:  # 32: bit 7 of the address; 64: two bits; 128: three
                inside ^= (r % 8) * wide // 8 % wide
            at = (r // 8 * broad + p // wide) * tile + (r % 8 * wide + inside) * 16
            memory[at : at + 16] = np.ascontiguousarray(bits[r, p * per : (p + 1) * per]).view(
                np.uint8
            )
    along, down = tile, broad * tile  # to the next tile of the same rows, to the next 8 rows
    if turned and width > 16:
        return memory, along, down  # leading: along the rows; stride: to the next 8 columns of K
    if turned:
        return memory, down, along
    return memory, along, down


def descriptor(start: str, leading: int, stride: int, mode: int, to: str) -> str:
    """`to` (64 bits) from an address in a 32-bit register; uses %d40."""
    rest = leading >> 4 << 16 | stride >> 4 << 32 | mode << 62
    return (
        f"cvt.u64.u32 %d40, {start};\nshr.u64 %d40, %d40, 4;\nand.b64 %d40, %d40, 16383;\n"
        f"or.b64 {to}, %d40, {rest - (1 << 64) if rest >> 63 else rest};\n"
    )


def product(
    kind, N, K, *, width, turned=(False, False), registers=False, change=None, reports=None
):
    """(found, wanted) [64, N]: a product of one instruction for each 32 bytes of K, starting from c."""
    a, a_bits = numbers(kind, 64, K)
    b, b_bits = numbers(kind, N, K, seed=1)
    size = a_bits.itemsize
    of_a, of_b = in_shared(a_bits, width, turned[0]), in_shared(b_bits, width, turned[1])
    whole = np.concatenate([of_a[0], of_b[0]])
    whole = np.pad(whole, (0, -len(whole) % 512)).view(np.uint32)
    copies = len(whole) // 128
    start = len(of_a[0])
    text = "".join(
        f"ld.global.b32 %r300, [%d61+{512 * i}];\nst.shared.b32 [%r301+{512 * i}], %r300;\n"
        for i in range(copies)
    )
    text = "mad.wide.u32 %d61, %r0, 4, %d0;\nmad.lo.u32 %r301, %r0, 4, %r2;\n" + text
    text += "fence.proxy.async.shared::cta;\nbar.sync 0;\n"
    c = numbers("tf32", 64, N, seed=2)[0]
    count = N // 2
    text += "".join(load(f"%r{10 + i}", "%d1", i, count) for i in range(count))
    each = 32 // size
    fragments = []
    if registers:
        per = 1 if size == 4 else 2
        for k in range(K // each):
            for i in range(4):
                word = np.concatenate([
                    words_of(a_bits[16 * w : 16 * w + 16, each * k : each * k + each],
                             lambda lane, e, i=i: (lane // 4 + 8 * (i % 2), lane % 4 * per + e + 4 * per * (i // 2)))
                    for w in range(4)
                ])  # fmt: skip
                fragments.append(word)
        text += "".join(
            load(f"%r{150 + i}", "%d3", i, len(fragments)) for i in range(len(fragments))
        )
    text += "wgmma.fence.sync.aligned;\n"
    names = ", ".join(f"%r{10 + i}" for i in range(count))
    for k in range(K // each):

        def step(of, turned, at, k=k):
            """Where 32 bytes further along K begin."""
            _, leading, stride = of
            if not turned:
                inside = 32 * k
                return at + (
                    inside // width * leading + inside % width if width > 16 else 2 * k * leading
                )
            return at + k * each // 8 * (stride if width > 16 else leading)

        text += f"add.u32 %r302, %r2, {step(of_a, turned[0], 0)};\nadd.u32 %r303, %r2, {step(of_b, turned[1], start)};\n"
        text += descriptor("%r302", of_a[1], of_a[2], SWIZZLES[width], "%d20")
        text += descriptor("%r303", of_b[1], of_b[2], SWIZZLES[width], "%d21")
        left = (
            "%d20"
            if not registers
            else "{" + ", ".join(f"%r{150 + 4 * k + i}" for i in range(4)) + "}"
        )
        turns = (
            ""
            if size == 4
            else f", {int(turned[1])}"
            if registers
            else f", {int(turned[0])}, {int(turned[1])}"
        )
        text += f"wgmma.mma_async.sync.aligned.m64n{N}k{each}.f32.{kind}.{kind} {{{names}}}, {left}, %d21, 1, 1, 1{turns};\n"
    text += "wgmma.commit_group.sync.aligned;\nwgmma.wait_group.sync.aligned 0;\n"
    text += "".join(store(f"%r{10 + i}", "%d2", i, count) for i in range(count))
    if change is not None:
        assert change(text) != text
        text = change(text)
    lanes = np.stack([
        np.concatenate([
            c[16 * w + GROUP + 8 * (i // 2 % 2), 8 * (i // 4) + 2 * IN_GROUP + i % 2] for w in range(4)
        ]).astype(np.float32)
        for i in range(count)
    ], 1)  # fmt: skip
    arrays = [whole, lanes.view(np.uint32).ravel(), (128 * count, np.uint32)]
    if registers:
        arrays.append(np.stack(fragments, 1).ravel())
    made = run(text, arrays, threads=128, shared=whole.nbytes, reports=reports)[2]
    made = made.view(np.float32).reshape(4, 32, count)
    found = np.zeros((64, N))
    for w in range(4):
        for i in range(count):
            found[16 * w + GROUP + 8 * (i // 2 % 2), 8 * (i // 4) + 2 * IN_GROUP + i % 2] = made[
                w, :, i
            ]
    return found, a @ b.T + c


@pytest.mark.parametrize("width", SWIZZLES)
@pytest.mark.parametrize(("kind", "N"), [("bf16", 64), ("f16", 8), ("tf32", 32)])
def test_wgmma_with_each_swizzle(kind, N, width) -> None:
    """Both operands with K side by side: 8 rows of a tile are as wide as the swizzle."""
    K = max(32, width) // (4 if kind == "tf32" else 2)
    found, wanted = product(kind, N, K, width=width)
    np.testing.assert_allclose(found, wanted, rtol=1e-6, atol=2e-5)


@pytest.mark.parametrize("width", SWIZZLES)
@pytest.mark.parametrize("turned", [(True, False), (False, True), (True, True)])
def test_wgmma_with_turned_operands(turned, width) -> None:
    """Rows side by side: the tiles are 8 columns of K."""
    found, wanted = product("bf16", 64, 64, width=width, turned=turned)
    np.testing.assert_allclose(found, wanted, rtol=1e-6, atol=2e-5)


@pytest.mark.parametrize("kind", ["bf16", "f16", "tf32"])
def test_wgmma_with_the_first_operand_in_registers(kind) -> None:
    found, wanted = product(kind, 32, 64 // (4 if kind == "tf32" else 2), width=64, registers=True)
    np.testing.assert_allclose(found, wanted, rtol=1e-6, atol=2e-5)


@pytest.mark.parametrize(
    ("line", "says"),
    [("wgmma.fence.sync.aligned;", "before the first wgmma.fence"),
     ("fence.proxy.async.shared::cta;", "no fence.proxy.async"),
     ("bar.sync 0;", "RACE: a product reads shared memory")],
)  # fmt: skip
def test_what_wgmma_needs_before_it(line, says) -> None:
    reports = Reports()
    product("bf16", 16, 32, width=64, change=lambda t: t.replace(line, ""), reports=reports)
    assert says in str(reports)


def test_a_result_before_its_wait_is_not_a_number() -> None:
    wait = "wgmma.wait_group.sync.aligned 0;"
    found, _ = product(
        "bf16", 16, 32, width=64, change=lambda t: t.replace(wait, ""), reports=Reports()
    )
    assert np.isnan(found).all()


def test_a_register_written_between_fence_and_product() -> None:
    fence = "wgmma.fence.sync.aligned;"
    reports = Reports()
    product(
        "bf16",
        16,
        32,
        width=64,
        change=lambda t: t.replace(fence, fence + "\nadd.u32 %r11, %r11, 1;"),
        reports=reports,
    )
    assert "written since the last wgmma.fence" in str(reports)


def test_shared_memory_written_while_a_product_reads_it() -> None:
    wait = "wgmma.wait_group.sync.aligned 0;"
    reports = Reports()
    product(
        "bf16",
        16,
        32,
        width=64,
        change=lambda t: t.replace(wait, "st.shared.b32 [%r301], %r0;\n" + wait),
        reports=reports,
    )
    assert "a product under way reads" in str(reports)
