"""The loader per format and the decoders: each in runs of its own, and none with other frames."""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch

from colaworld.cli.bench import suite
from colaworld.data import video_reader

decode, runs, sources = suite("decode"), suite("run"), suite("sources")
SIZES = {"B": 2, "T": 3, "height": 16, "width": 16, "episodes": 4, "frames": 12}
HELD = 4 * 12 * 3 * 16 * 16  # bytes of all frames
linux = pytest.mark.skipif(sys.platform != "linux", reason="processes are forked and counted")


@pytest.fixture(scope="module")
def made() -> object:
    return sources.Runs(SIZES, samples=2, workers=1)


def asked(made, name: str, **changed) -> object:
    given = {"path": str(made.sets()[name]), "sizes": SIZES, "samples": 2, "workers": 1}
    return sources.Asked(**{**given, **changed})


@linux
def test_memory_is_the_most_that_was_held() -> None:
    """40 MB for a while, 10 MB at the end."""

    def work() -> int:
        large = np.ones(40 << 20, np.uint8)
        for _ in range(20):
            large += 1  # the watcher looks on
        small = np.ones(10 << 20, np.uint8)
        del large
        return int(small[0])

    assert 38 < sources.forked(lambda: sources.memory_of(work)) < 60


@linux
def test_a_run_leaves_nothing_and_its_error_is_ours(capfd) -> None:
    seen: list[int] = []
    assert sources.forked(lambda: seen.append(1) or os.getpid()) != os.getpid()
    assert not seen
    with pytest.raises(RuntimeError, match="a run failed"):
        sources.forked(lambda: 1 // 0)
    assert "ZeroDivisionError" in capfd.readouterr().err


def test_an_epoch_is_one_sample_and_other_files_are_other_clips(made) -> None:
    one = asked(made, "video_folder", workers=0)
    assert len(sources.timed(one, "open")) == len(sources.timed(one, "first")) == 1
    assert len(sources.timed(one, "cold")) == len(sources.timed(one, "cached")) == 2
    whole = sources.digest(one)
    assert whole == sources.digest(asked(made, "webdataset", workers=0))
    first, second = sorted(made.sets()["video_folder"].iterdir())[:2]
    kept = first.read_bytes()
    first.write_bytes(second.read_bytes())
    assert sources.digest(one) != whole
    first.write_bytes(kept)


def test_a_cache_of_a_quarter_holds_a_quarter(made) -> None:
    loader = asked(made, "video_folder").loader(share=0.25, workers=0)
    assert loader.config.cache_mb * 1e6 == HELD / 4 and loader.frame_shape == (3, 16, 16)


def test_opening_again_probes_nothing_and_touched_files_are_probed(made, monkeypatch) -> None:
    probed = []
    real = video_reader.probe
    monkeypatch.setattr(video_reader, "probe", lambda video: probed.append(video) or real(video))
    one = asked(made, "video_folder", workers=0)
    one.touch()
    sources.timed(one, "open")
    assert len(probed) == 4
    sources.timed(one, "reopen")
    assert len(probed) == 4
    one.touch()
    sources.timed(one, "reopen")
    assert len(probed) == 8


@linux
@pytest.mark.slow
def test_rows_of_a_format(made, tiny_request) -> None:
    """One child that forks; frames that stay in memory are in its memory."""
    large = sources.Runs({**SIZES, "height": 128, "width": 128, "frames": 40}, 2, workers=1)
    rows = {}
    for stage in ("first", "cached"):
        case = large.case(f"nano.{stage}", stage)
        (rows[stage],) = runs.measure(case, tiny_request, impls=["webdataset"]).rows
    row = rows["cached"]
    assert (row["op"], row["impl"], row["threads"], row["samples"]) == (
        "source",
        "webdataset",
        1,
        2,
    )
    assert row["rates"]["clips_s"] == pytest.approx(2 / row["p50_ms"] * 1e3, rel=1e-2)
    assert row["peak_mb"] * 2**20 > 4 * 40 * 3 * 128 * 128


def test_other_clips_are_a_failure(made, tiny_request) -> None:
    found = {name: {"digest": name} for name in ("lerobot-v3", "webdataset")}
    made = sources.Runs(SIZES, samples=1, workers=1)
    made.found = found.__getitem__
    case = made.case("nano.open", "open")
    (failed,) = runs.measure(case, tiny_request, impls=["webdataset"]).failed
    assert failed.reason == "its results are wrong: its clips are not those of lerobot-v3"


# -- decoders ------------------------------------------------------------------------------------


@pytest.fixture
def torchcodec(monkeypatch):
    """torchcodec(change): one whose frames are ours, changed."""

    def use(change) -> None:
        class VideoDecoder:
            def __init__(self, path, *, dimension_order, num_ffmpeg_threads) -> None:
                assert (dimension_order, num_ffmpeg_threads) == ("NHWC", 1)
                self.path = path

            def get_frames_in_range(self, start, stop):
                frames = np.stack(list(video_reader.stream_frames(Path(self.path), start, stop)))
                return SimpleNamespace(data=torch.from_numpy(change(frames)))

        module = ModuleType("torchcodec.decoders")
        module.VideoDecoder = VideoDecoder
        monkeypatch.setitem(sys.modules, "torchcodec", ModuleType("torchcodec"))
        monkeypatch.setitem(sys.modules, "torchcodec.decoders", module)

    return use


def measured(tiny_request, part: str):
    cases = {case.shape: case for case in decode.cases(tiny_request)}
    return runs.measure(cases[f"given.{part}"], replace(tiny_request, samples=1))


def test_decoders(tiny_request, torchcodec) -> None:
    torchcodec(lambda frames: frames)
    ours, theirs = measured(tiny_request, "piece").rows
    assert [ours["impl"], theirs["impl"]] == ["pyav", "torchcodec"]
    assert ours["sizes"] == {"frames": 16, "height": 16, "width": 16}
    assert ours["rates"]["frames_s"] == pytest.approx(16 / ours["p50_ms"] * 1e3, rel=1e-2)


def test_a_decoder_with_other_frames_or_none_is_left_out(tiny_request, torchcodec) -> None:
    torchcodec(lambda frames: frames ^ 1)
    found = measured(tiny_request, "piece")
    assert [row["impl"] for row in found.rows] == ["pyav"] and not found.failed
    assert found.skipped[0].reason.endswith("its frames are not those of our reader")
    sys.modules["torchcodec.decoders"] = None  # as if it were not installed
    found = measured(tiny_request, "piece")
    assert [row["impl"] for row in found.rows] == ["pyav"] and not found.failed
    assert found.skipped[0].reason.startswith("torchcodec: ")
