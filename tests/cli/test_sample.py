"""`colaworld sample`: GIF, mp4 and PNG of rollouts from a start frame, and wrong wishes."""

from __future__ import annotations

import os
import types
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image

from colaworld.cli import sample
from colaworld.data.clips import ClipSet
from colaworld.data.config import DataConfig


def test_every_code_as_a_gif(trained, tmp_path, colaworld) -> None:
    out = tmp_path / "new" / "a.gif"
    call = ["sample", trained, "--out", out, "--frames", 3, "--steps", 1, "--scale", 2]
    said = colaworld(*call)
    told = "all 8 actions of one token each, each held for 3 frame(s)\n"
    assert (said.status, said.out) == (0, f"{told}{out}: 8 rollout(s) of 4 frames\n")
    with Image.open(out) as gif:
        assert gif.n_frames == 4
        # eight side by side, a pixel between, a line for the labels above
        assert gif.size == (2 * (8 * 32 + 7), 2 * 32 + sample.LABEL)
        labels = np.asarray(gif.convert("L"))[: sample.LABEL]
    for code in range(8):  # each has a label, and no two are the same
        assert labels[:, 66 * code :][:, :64].min() < 100
    assert len({labels[:, 66 * code :][:, :64].tobytes() for code in range(8)}) == 8
    first = out.read_bytes()
    assert colaworld(*call).status == 0 and out.read_bytes() == first
    assert colaworld(*call, "--seed", 1).status == 0 and out.read_bytes() != first


def test_a_strip_begins_with_the_start_frame(trained, scene, tmp_path, colaworld) -> None:
    out = tmp_path / "a.png"
    wish = ["--codes", 0, 1, "--episode", 1, "--frame", 2, "--scale", 1, "--steps", 1]
    assert colaworld("sample", trained, "--out", out, *wish).status == 0
    strip = np.asarray(Image.open(out))
    assert strip.shape == (3 * 32, 32, 3)
    clips = ClipSet(DataConfig(path=scene, frames_per_clip=1, split="heldout"))
    start = clips.decoded(clips.segments[1]).frames[2]
    np.testing.assert_array_equal(strip[:32], start.transpose(1, 2, 0))


def test_held_actions_side_by_side(trained, tmp_path, colaworld) -> None:
    def strip(*wish: object) -> np.ndarray:
        out = tmp_path / "a.png"
        call = ["sample", trained, "--out", out, "--scale", 1, "--steps", 1, *wish]
        assert colaworld(*call).status == 0
        return np.asarray(Image.open(out))

    pair = strip("--codes", 2, 5, "--hold", "--frames", 3)
    every = strip("--frames", 3)
    assert pair.shape == (4 * 32, 2 * 33 - 1, 3)
    for place, code in enumerate((2, 5)):  # the same noise for each, so only the action differs
        tall = every[:, 33 * code :][:, :32].reshape(4, sample.LABEL + 32, 32, 3)[:, sample.LABEL :]
        np.testing.assert_allclose(
            pair[:, 33 * place :][:, :32], tall.reshape(4 * 32, 32, 3), atol=1, rtol=0
        )


def test_an_mp4_from_an_image(trained, tmp_path, colaworld) -> None:
    image = np.random.default_rng(0).integers(0, 256, (24, 28, 3), dtype=np.uint8)
    Image.fromarray(image).save(tmp_path / "start.png")
    wish = ["--start", tmp_path / "start.png", "--codes", 3, 3, 3, "--steps", 1, "--scale", 3]
    assert colaworld("sample", trained, "--out", tmp_path / "a.mp4", *wish).status == 0
    with av.open(str(tmp_path / "a.mp4")) as video:
        frames = [f.to_ndarray(format="rgb24") for f in video.decode(video=0)]
    assert len(frames) == 4 and frames[0].shape == (72, 84, 3)
    wanted = image.repeat(3, axis=0).repeat(3, axis=1)
    assert np.abs(frames[0].astype(int) - wanted).mean() < 40  # lossy colours of noise


@pytest.mark.parametrize(
    ("wish", "says"),
    [
        (["--out", "a.avi"], "--out: expected a .gif, .mp4 or .png file"),
        (["--codes", "0", "8"], "--codes: expected whole actions of 1 entries in 0 .. 7, got 0 8"),
        (["--episode", "99"], "--episode: expected 0 .. 3, got 99"),
        (["--frame", "12"], "--frame: expected 0 .. 11, got 12"),
        (["--scale", "0"], "--scale: expected >= 1, got 0"),
        (
            ["--start", "absent.png"],
            "--start absent.png: cannot be read: No such file or directory",
        ),
        (["--start", "no.png"], "--start no.png: not an image of a known format"),
        (["--start", "pipe.png"], "--start pipe.png: cannot be read: not a file"),
        (["--start", "bad.ppm"], "--start bad.ppm: cannot be read: invalid literal"),
        (["--start", "huge.bmp"], "--start huge.bmp: cannot be read: Image size"),
        (["--start", "page.eps"], "--start page.eps: not an image of a known format"),
        (["--start", "odd.png"], "frames of 30x32 px (height x width) are not whole patches"),
        (["--data", "absent"], "absent: no such folder"),
        (["--cods", "1"], "--codes"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_wrong_wishes(wish, says, trained, tmp_path, monkeypatch, colaworld) -> None:
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (32, 30)).save("odd.png")
    Path("no.png").write_text("text")
    os.mkfifo("pipe.png")
    Path("bad.ppm").write_bytes(b"P6 3\x9a 32 255 ")
    Image.new("L", (1, 1)).save("huge.bmp")
    header = bytearray(Path("huge.bmp").read_bytes())
    header[18:26] = (60000).to_bytes(4, "little") * 2
    Path("huge.bmp").write_bytes(header)
    Image.new("RGB", (32, 32)).save("page.eps")  # to show one, Pillow would run a program
    before = set(tmp_path.iterdir())
    said = colaworld("sample", trained, *wish)
    assert said.status == 2 and says in said.plain and "Traceback" not in said.plain
    assert "'absent.png'" not in said.plain  # the name again
    assert set(tmp_path.iterdir()) == before


def test_a_start_image_is_fitted_to_the_runs_own_size(scene, tiny, tmp_path, colaworld) -> None:
    run, size = tmp_path / "run", ["--data.height", 24, "--data.width", 24]
    call = ["train", "nano.frozen_world", "--data", scene, "--out", run, *tiny, *size]
    assert colaworld(*call).status == 0
    Image.new("RGB", (100, 61), (10, 200, 30)).save(tmp_path / "photo.png")
    out = tmp_path / "a.png"
    wish = ["--start", tmp_path / "photo.png", "--codes", 0, "--steps", 1, "--scale", 1]
    assert colaworld("sample", run, "--out", out, *wish).status == 0
    strip = np.asarray(Image.open(out))
    assert strip.shape == (48, 24, 3) and (strip[:24] == (10, 200, 30)).all()


def test_continuous_actions_have_no_codes(scene, tiny, tmp_path, colaworld) -> None:
    run = tmp_path / "run"
    at = tiny.index("--model.quantizer.unquantized-steps")  # there is no codebook to start later
    call = [
        "train",
        "nano.frozen_world",
        "--data",
        scene,
        "--out",
        run,
        *tiny[:at],
        *tiny[at + 2 :],
    ]
    assert colaworld(*call, "--model.quantizer.kind", "none").status == 0
    said = colaworld("sample", run, "--out", tmp_path / "a.gif")
    assert said.status == 2 and "its latent actions are continuous" in said.err


def test_how_many_actions_result_is_said_first() -> None:
    world = types.SimpleNamespace(codebook_size=8, tokens=2)

    def told(*wish: object, most: int = 64) -> tuple[list[int], str]:
        options = sample.SampleOptions(
            run=Path("run"), frames=5, **dict(zip(wish[::2], wish[1::2], strict=True))
        )
        indices, words = sample._indices(world, options, most=most)
        return list(indices.shape), words

    assert told("codes", (3, 1, 3, 1)) == (
        [1, 2, 2],
        "2 action(s) of 2 tokens each: (3 1), (3 1); one after another, 2 new frame(s)",
    )
    assert told("codes", (3, 1, 0, 7), "hold", True) == (
        [2, 5, 2],
        "2 action(s) of 2 tokens each: (3 1), (0 7); each held for 5 frame(s)",
    )
    assert told() == ([64, 5, 2], "all 64 actions of 2 tokens each, each held for 5 frame(s)")
    shape, words = told(most=9)
    assert shape == [9, 5, 2] and words.startswith(
        "9 of 64 (evenly spaced) actions of 2 tokens each"
    )
    with pytest.raises(ValueError, match=r"whole actions of 2 entries in 0 \.\. 7, got 3 1 3"):
        told("codes", (3, 1, 3))


def test_all_actions_are_in_order_whatever_their_number() -> None:
    options = sample.SampleOptions(run=Path("run"), frames=1)
    world = types.SimpleNamespace(codebook_size=3, tokens=2)
    indices = sample._indices(world, options, most=64)[0][:, 0]
    assert indices.tolist() == [[a, b] for a in range(3) for b in range(3)]
    world = types.SimpleNamespace(codebook_size=64, tokens=8)  # 2 ** 48 actions
    indices = sample._indices(world, options, most=4)[0][:, 0]
    assert indices[0].tolist() == [0] * 8 and indices[-1].tolist() == [63] * 8


def test_a_picture_of_every_action_is_bounded(tmp_path, monkeypatch) -> None:
    noise = torch.rand(16, 3, 3, 40, 40, generator=torch.Generator().manual_seed(0))
    labels = [f"{i} {i}" for i in range(16)]
    shown = sample.write_contact(tmp_path / "a.gif", noise, labels, scale=50, fps=4)
    assert shown == labels
    with Image.open(tmp_path / "a.gif") as gif:
        assert max(gif.size) <= sample.SIDE and gif.n_frames == 3
    monkeypatch.setattr(sample, "BYTES", 30_000)
    shown = sample.write_contact(tmp_path / "b.gif", noise, labels, scale=8, fps=4)
    assert (tmp_path / "b.gif").stat().st_size <= 30_000
    assert 1 <= len(shown) < 16 and shown == labels[:: 16 // len(shown)]
    assert sample._most_tiles(64, 64) == 64 and sample._most_tiles(256, 256) == 30
    assert sample._most_tiles(2000, 3000) == 1


def test_an_exported_world_is_rolled_out(trained, scene, tmp_path, colaworld) -> None:
    world, out = tmp_path / "world", tmp_path / "a.png"
    assert colaworld("export", trained, "--out", world).status == 0
    wish = ["--out", out, "--codes", 2, 5, "--steps", 1, "--scale", 1]
    said = colaworld("sample", world, *wish)
    assert said.status == 2 and "an exported world, which has no data: pass --start" in said.plain
    clips = ClipSet(DataConfig(path=scene, frames_per_clip=1, split="all"))
    start = clips.decoded(clips.segments[3]).frames[0].transpose(1, 2, 0)
    assert colaworld("sample", world, *wish, "--data", scene, "--episode", 3).status == 0
    by_data = np.asarray(Image.open(out))
    np.testing.assert_array_equal(by_data[:32], start)
    Image.fromarray(start).save(tmp_path / "start.png")
    assert colaworld("sample", world, *wish, "--start", tmp_path / "start.png").status == 0
    np.testing.assert_array_equal(np.asarray(Image.open(out)), by_data)
    assert colaworld("sample", trained, *wish, "--start", tmp_path / "start.png").status == 0
    np.testing.assert_array_equal(np.asarray(Image.open(out)), by_data)  # as the run itself does


def test_a_folder_that_is_neither_says_so(tmp_path, colaworld) -> None:
    said = colaworld("sample", tmp_path / "absent")
    assert said.status == 2 and said.err.endswith("absent: no such folder\n")
    said = colaworld("sample", tmp_path)
    assert said.status == 2 and "is neither a run folder (it has no config.yaml) nor" in said.plain
