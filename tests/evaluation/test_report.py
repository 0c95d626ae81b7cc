"""The page: complete, self-contained, the right words for good and bad runs, safe inputs."""

from __future__ import annotations

import base64
import copy
import dataclasses
import html.parser
import io
import json
import os
import re

import numpy as np
import pytest
from PIL import Image

from colaworld.evaluation.artefacts import Artefacts
from colaworld.evaluation.report.charts import (
    Series,
    confusion,
    line_chart,
    scatter,
    short,
    smooth,
    ticks,
    whisker,
)
from colaworld.evaluation.report.page import duration, write_report
from colaworld.evaluation.report.tiles import fit, png
from colaworld.evaluation.report.training_curves import read_history
from colaworld.evaluation.tables import headlines, verdict
from colaworld.files import FileError

FOUR = {"utilisation": 1.0, "max_usage": 0.2, "entropy_normalised": 0.9, "perplexity": 6.5}
PSNR = [25.0, 23.0, 22.0]
RESULT = {
    "delta_psnr": {
        "random": {"mean": 2.1, "low": 1.8, "high": 2.5},
        "shuffled": {"mean": 1.4, "low": 1.0, "high": 1.9},
        "constant": {"mean": 1.9, "low": 1.5, "high": 2.2},
    },
    "codebook": {**FOUR, "positions": [FOUR], "joint": FOUR},
    "probe": {
        "kind": "accuracy",
        "score": {"mean": 0.61, "low": 0.55, "high": 0.66},
        "baseline": 0.4,
        "chance": 0.2,
        "pixel_difference": 0.4,
        "margin": {"mean": 0.21, "low": 0.15, "high": 0.26},
        "macro_f1": {"mean": 0.5, "low": 0.4, "high": 0.6},
        "macro_f1_chance": 0.1,
        "macro_f1_pixel_difference": 0.3,
        "l1": None,
        "l1_chance": None,
        "l1_pixel_difference": None,
        "train_rows": 100,
        "test_rows": 120,
        "test_episodes": 9,
    },
    "probe_skipped": None,
    "rollout": {
        "psnr_by_horizon": PSNR,
        "ssim_by_horizon": [0.9, 0.8, 0.7],
        "psnr": {"mean": 23.3, "low": 22.0, "high": 24.0},
        "variants": {
            name: {"psnr_by_horizon": [v - d for v in PSNR]}
            for d, name in enumerate(("inferred", "random", "shuffled", "constant", "copy"))
        },
        "error_against_copy": 0.5,
        "copy_ssim_by_horizon": [0.8, 0.7, 0.6],
    },
    "counts": {
        "clips": 20,
        "episodes": 10,
        "history": 1,
        "horizon": 3,
        "width": 12,
        "height": 10,
    },
    "world": {"codebook_size": 8, "tokens": 1},
}


def pictures(kind="accuracy"):
    rng = np.random.default_rng(0)

    def video(*lead):
        return rng.integers(0, 256, size=(*lead, 10, 12, 3), dtype=np.uint8)

    probed = rng.integers(0, 3, size=40) if kind == "accuracy" else rng.normal(size=(40, 2))
    return Artefacts(
        history=1,
        truth=video(2, 4),
        inferred=video(2, 4),
        random=video(2, 4),
        every_code=video(2, 3, 4),
        code_names=("code 0", "code 1", "code 2"),
        code_notes=("move_left 90%", "", "unused"),
        probe_kind=kind,
        probe_predicted=probed,
        probe_target=probed[::-1].copy(),
        action_names=("noop", "move_left", "do"),
    )


def rows():
    for step in range(1, 81):
        phase = "warmup" if step <= 30 else "joint"
        within = step if step <= 30 else step - 30
        row = {"phase": phase, "step": within, "global_step": step, "loss": 1.0 / within}
        row["grad_norm"] = {"idm": 0.1}
        if step % 10 == 0:
            row["codebook"] = dict(FOUR)
        yield row


def write(path, **changes):
    given = {
        "title": "nano.cola",
        "evaluation": RESULT,
        "artefacts": pictures(),
        "metrics_jsonl": list(rows()),
        "config_yaml": "learning_rate: 1.0e-4\n",
        "environment": {
            "commit": "0123456789abcdef",
            "date": "2026-11-22",
            "wall_seconds": 683,
            "versions": {"torch": "2.13.0"},
        },
    }
    return write_report(path, **{**given, **changes}).read_text()


class Links(html.parser.HTMLParser):
    """Everything a browser could fetch, and every tag that is left open."""

    def __init__(self):
        super().__init__()
        self.links, self.tags, self.open = [], [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        if tag not in {"meta", "link", "img"}:
            self.open.append(tag)
        self.links += [v for k, v in attrs if k in ("src", "href", "srcset", "data", "action")]

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, f"</{tag}> closes something else"


def parse(page):
    links = Links()
    links.feed(page)
    assert links.open == []
    return links


def test_the_page_needs_nothing_but_itself(tmp_path):
    page = write(tmp_path / "report.html")
    found = parse(page)
    assert found.links and all(link.startswith("data:") for link in found.links)
    assert "script" not in found.tags and "iframe" not in found.tags
    assert not re.search(r"https?://|@import|url\((?!#clip)", page)
    assert "default-src 'none'" in page
    assert (
        found.tags.count("img") == 2 + 2 * 3 * 2 + 2 * 3 * 4
    )  # starts, grid (moving and still), strips
    assert [p.name for p in tmp_path.iterdir()] == ["report.html"]


def test_the_page_says_what_ran_and_how_good_it_is(tmp_path):
    page = write(tmp_path / "report.html")
    assert "80 steps (30 warmup, 50 joint) in 11 min 23 s" in page
    assert "20 clips of 10 held-out episodes" in page
    assert "2.10 <small>dB</small>" in page and "1.80 to 2.50" in page
    for number in ("0.90", "0.61", "23.30", "1.00"):
        assert f'<div class="big">{number}' in page
    assert page.count('class="card"') == 5
    assert "commit <code>0123456789ab</code>" in page
    assert "learning_rate: 1.0e-4" in page and "2.13.0" in page
    assert ">warmup</text>" in page and ">joint</text>" in page
    assert "move left 90%" in page
    assert "prefers-color-scheme: dark" in page and "@media print" in page


def test_continuous_probes_are_scattered(tmp_path):
    result = copy.deepcopy(RESULT)
    result["probe"].update(
        kind="r2", l1={"mean": 0.4, "low": 0.3, "high": 0.5}, l1_chance=0.8, macro_f1=None
    )
    result["probe"]["l1_pixel_difference"] = 0.6
    page = write(tmp_path / "r.html", evaluation=result, artefacts=pictures("r2"))
    parse(page)
    assert page.count('class="point"') == 80  # 40 rows, 2 dimensions
    assert "0.40 (0.30 to 0.50)" in page


def test_missing_parts_are_said_and_not_faked(tmp_path):
    result = copy.deepcopy(RESULT)
    result.update(probe=None, probe_skipped="the data set has no real actions", codebook=None)
    result["world"]["codebook_size"] = None
    for name in result["delta_psnr"]:
        result["delta_psnr"][name].update(low=None, high=None)
    page = write(tmp_path / "r.html", evaluation=result, artefacts=None, metrics_jsonl=[])
    parse(page)
    assert "skipped: the data set has no real actions" in page
    assert "No training steps are recorded" in page
    assert "<img" not in page
    assert "None" not in page and "nan" not in page.lower().replace("nano", "")


def test_text_from_outside_is_escaped(tmp_path):
    evil = "<script>alert(1)</script>"
    page = write(
        tmp_path / "r.html",
        title=evil,
        config_yaml=evil,
        environment={"commit": evil, "versions": {evil: evil}},
        compare={evil: RESULT, "naive_joint": RESULT},
    )
    assert "<script" not in page
    assert "naive_joint" in page and "Runs side by side" in page
    parse(page)


def test_artefacts_can_be_a_file_and_metrics_too(tmp_path):
    pictures().save(tmp_path / "evaluation.npz")
    lines = [json.dumps(r) for r in rows()]
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines) + '\n{"phase": "joi')
    page = write(
        tmp_path / "r.html",
        artefacts=tmp_path / "evaluation.npz",
        metrics_jsonl=tmp_path / "metrics.jsonl",
    )
    assert "80 steps" in page and "<img" in page
    (tmp_path / "metrics.jsonl").write_text(lines[0] + "\n{broken\n" + lines[1])
    with pytest.raises(ValueError, match="line 2: not JSON"):
        read_history(tmp_path / "metrics.jsonl")
    np.savez(tmp_path / "other.npz", history=1)
    with pytest.raises(ValueError, match="missing truth"):
        Artefacts.load(tmp_path / "other.npz")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda r: None, ["clear", "healthy", "above both", "2.0× closer", "in use"]),
        (lambda r: r["delta_psnr"]["random"].update(mean=0.4, low=0.1, high=0.8), ["small"]),
        (lambda r: r["delta_psnr"]["random"].update(mean=0.1, low=-0.1, high=0.3), ["not shown"]),
        (lambda r: r["delta_psnr"]["random"].update(mean=-1, low=-2, high=-0.5), ["reversed"]),
        (lambda r: r["delta_psnr"]["random"].update(low=None, high=None), ["open"]),
        (lambda r: r["codebook"].update(entropy_normalised=0.1), [None, "collapsed"]),
        (lambda r: r["codebook"].update(entropy_normalised=0.5), [None, "uneven"]),
        (lambda r: r["codebook"].update(perplexity=5.9), [None, "not even"]),
        (lambda r: r["codebook"].update(max_usage=0.26), [None, "not even"]),
        (
            lambda r: r["codebook"].update(utilisation=0.875),
            [None, "not even", None, None, "in part"],
        ),
        (lambda r: r["probe"]["margin"].update(low=-0.1), [None, None, "not clear"]),
        (lambda r: r["probe"]["margin"].update(low=-0.3, high=-0.1), [None, None, "below"]),
        (lambda r: r["rollout"].update(error_against_copy=2.0), [None] * 3 + ["2.0× further off"]),
        (lambda r: r["rollout"].update(error_against_copy=None), [None] * 3 + ["open"]),
        (
            lambda r: r["rollout"].update(error_against_copy=0.97),
            [None] * 3 + ["not clearly closer"],
        ),
        (lambda r: r.update(nmse=nmse(0.8, 0.6, 1.1)), [None] * 3 + ["not clearly closer"]),
        (lambda r: r["counts"].update(episodes=3), ["too few episodes", "healthy", "above both"]),
        (lambda r: r["probe"].update(test_episodes=4), ["clear", "healthy", "too few episodes"]),
        (lambda r: r["codebook"].update(utilisation=0.3), [None] * 4 + ["mostly idle"]),
    ],
)
def test_the_words_follow_the_numbers(change, words):
    result = copy.deepcopy(RESULT)
    change(result)
    found = [headline.judgement.word for headline in headlines(result)]
    for expected, word in zip(words, found, strict=False):
        assert expected in (None, word)
    said = verdict(result)
    assert said.endswith((".", "differences allow."))
    steers = found[0] == "clear" and found[3].endswith("closer") and found[3][0].isdigit()
    assert ("The latent actions steer this world: with the inferred" in said) == steers
    assert ("evenly used" in said and "not evenly" not in said) == (found[1] == "healthy")


def nmse(mean, low, high):
    return {"mean": mean, "low": low, "high": high, "by_horizon": [mean] * 3}


def test_the_verdict_names_the_last_frame_as_the_rival():
    result = copy.deepcopy(RESULT)
    assert "and 2.0× closer than repeating the last frame" in verdict(result)
    result["nmse"] = nmse(1.1, 1.01, 1.2)  # clear against random codes; a still picture is better
    assert verdict(result).startswith(
        "It is not shown that the latent actions steer this world: they change what it draws "
        "(2.10\u00a0dB over random ones), but its videos are 1.1× further off than repeating the last"
    )
    assert "The latent actions steer" not in verdict(result)
    result["nmse"] = nmse(0.8, 0.6, 1.1)
    assert "its videos are not clearly closer than repeating the last frame" in verdict(result)


def test_the_verdict_says_when_episodes_are_too_few():
    result = copy.deepcopy(RESULT)
    assert "too few" not in verdict(result)
    result["counts"]["episodes"] = 7
    result["probe"]["test_episodes"] = 2
    assert verdict(result).startswith(
        "7 episodes are too few to say: under 8 an interval is too narrow"
    )
    assert verdict(result).endswith("the linear probe rests on 2 episodes, too few to say.")
    tones = [headline.judgement.tone for headline in headlines(result)]
    assert tones == ["open", "good", "open", "open", "good"]  # of the codebook there is no interval


def test_sentence_and_cards_use_one_definition_of_an_even_codebook():
    result = copy.deepcopy(RESULT)
    assert "The codebook is healthy and evenly used (worth 6.5 of 8 codes)" in verdict(result)
    # the demo's: its entropy is above the aim, a third of its codes never occur
    sick = {"utilisation": 0.6875, "max_usage": 0.371, "entropy_normalised": 0.712}
    result["codebook"].update(sick, perplexity=4.49)
    facts = "worth 4.5 of 8, the most used takes 37% of the steps, 31% never occur"
    assert f"though it is not used evenly ({facts})" in verdict(result)
    shown = {headline.name: headline.judgement for headline in headlines(result)}
    assert facts in shown["normalised code entropy"].text
    assert shown["codebook utilisation"].text == "31% of the codes never occur."
    assert shown["normalised code entropy"].tone == shown["codebook utilisation"].tone == "fair"
    result["codebook"]["positions"] = [{}, {}]  # two tokens: no single code need be idle
    shown = {headline.name: headline.judgement for headline in headlines(result)}
    assert shown["codebook utilisation"].text.endswith("never occur, in the mean over tokens.")
    assert f"({facts}; in the mean over tokens)" in verdict(result)


def test_steps_count_over_the_run():
    history = read_history(rows())
    assert history.x == tuple(float(i) for i in range(1, 81))
    assert [(b.name, b.start, b.stop) for b in history.phases] == [
        ("warmup", 0.0, 30.0),
        ("joint", 30.0, 80.0),
    ]
    xs, ys = history.curve("codebook", "entropy_normalised")
    assert xs == [10.0, 20.0, 30.0, 40.0, 50.0, 60.0, 70.0, 80.0] and set(ys) == {0.9}
    missing = {"phase": "a", "global_step": 1, "loss": None}
    assert read_history([missing]).curve("loss") == ([], [])
    for row in ({"loss": 1.0}, {"phase": "a", "global_step": "1"}, 3, None):
        with pytest.raises(ValueError, match="'phase' and an integer 'global_step'"):
            read_history([row])


def test_rows_that_are_no_file_are_named(tmp_path):
    path = tmp_path / "metrics.jsonl"
    with pytest.raises(FileError, match=r"metrics\.jsonl: expected a file of rows, found none"):
        read_history(path)
    os.mkfifo(path)  # to open it is to wait for ever
    with pytest.raises(
        FileError, match=r"metrics\.jsonl: expected a file of rows, found something"
    ):
        read_history(path)


def decode(data):
    """What a reader of PNG sees: frames [T, H, W, 3] and how long each is shown, ms."""
    opened = Image.open(io.BytesIO(data))
    frames, times = [], []
    for i in range(getattr(opened, "n_frames", 1)):
        opened.seek(i)
        frames.append(np.asarray(opened.convert("RGB")))
        times.append(opened.info.get("duration"))
    return np.stack(frames), times


def test_pictures_hold_the_exact_pixels():
    frames = np.random.default_rng(0).integers(0, 256, size=(4, 5, 7, 3), dtype=np.uint8)
    frames[2, 1:3, 2:5] = frames[1, 1:3, 2:5]  # what stands still may be left out, not lost
    assert np.array_equal(decode(png(frames[:1]))[0], frames[:1])
    moving, times = decode(png(frames, seconds=[0.1, 0.1, 0.1, 1.5]))
    assert np.array_equal(moving, frames)
    assert times == [100, 100, 100, 1500]
    assert png(frames, seconds=[0.2] * 4) == png(frames, seconds=[0.2] * 4)
    with pytest.raises(ValueError, match="durations"):
        png(frames, seconds=[0.1])
    with pytest.raises(ValueError, match="uint8"):
        png(frames.astype(float))


def test_fit_averages_whole_blocks():
    frames = np.zeros((1, 4, 6, 3), np.uint8)
    frames[0, :2, :2] = [[[0], [100]], [[100], [200]]]
    small = fit(frames, side=3)
    assert small.shape == (1, 2, 3, 3)
    assert small[0, 0, 0, 0] == 100
    assert fit(frames, side=6) is frames


def test_ticks_are_round_and_inside():
    assert ticks(0, 1) == [0, 0.2, 0.4, 0.6, 0.8, 1.0]
    assert ticks(0.13, 0.22) == [0.14, 0.16, 0.18, 0.2, 0.22]
    assert ticks(-3, 12) == [-2.5, 0, 2.5, 5, 7.5, 10] or ticks(-3, 12) == [0, 5, 10]
    assert ticks(2, 2) == [2]
    assert [short(v) for v in (1500.0, -0.5, 250.0, 1250.0)] == ["1.5k", "−0.5", "250", "1.25k"]


def test_a_line_goes_where_its_numbers_say():
    svg = line_chart(
        [Series("a", [0, 10], [0.0, 1.0])],
        title="t",
        x_label="x",
        y_label="y",
        y_range=(0.0, 1.0),
        width=200,
        height=100,
        margin=50,
    )
    (points,) = re.findall(r'<polyline[^>]*points="([^"]*)"', svg)
    assert points == "52.0,60.0 150.0,12.0"  # left 52, right 200 - 50; bottom 100 - 40, top 12
    gap = line_chart(
        [Series("a", [0, 1, 2], [1.0, float("nan"), 2.0])], title="t", x_label="x", y_label="y"
    )
    assert "nan" not in gap
    assert "Nothing recorded" in line_chart([], title="t", x_label="x", y_label="y")


def test_a_long_curve_is_thinned_but_keeps_its_ends():
    svg = line_chart(
        [Series("a", range(10_000), np.linspace(0, 1, 10_000))],
        title="t",
        x_label="x",
        y_label="y",
        y_range=(0, 1),
    )
    (points,) = re.findall(r'<polyline[^>]*points="([^"]*)"', svg)
    pairs = points.split()
    assert len(pairs) == 500
    assert pairs[0].endswith(",210.0") and pairs[-1].endswith(",12.0")


def test_smoothing_removes_a_spike():
    values = np.ones(21)
    values[10] = 50
    assert (smooth(values, width=5) == 1).all()
    assert smooth([1.0, 2.0, 9.0], width=1).tolist() == [1.0, 2.0, 9.0]


def test_the_confusion_matrix_counts_rows():
    target = np.array([0, 0, 0, 0, 2])
    predicted = np.array([0, 0, 0, 2, 2])
    svg = confusion(predicted, target, names=("stay", "jump", "run"))
    shares = re.findall(r"<title>(\w+) read as (\w+): (\d+)%</title>", svg)
    assert shares == [
        ("stay", "stay", "75"),
        ("stay", "run", "25"),
        ("run", "stay", "0"),
        ("run", "run", "100"),
    ]
    pooled = confusion(np.arange(30) % 25, np.arange(30) % 25, limit=5)
    assert "others" in pooled and pooled.count("<rect") == 5 * 6


def test_scatter_and_whisker_stay_inside():
    svg = scatter(np.array([0.0, 10.0]), np.array([0.0, 10.0]), title="x")
    spots = [(float(a), float(b)) for a, b in re.findall(r'cx="([\d.]+)" cy="([\d.]+)"', svg)]
    assert spots[0][0] < spots[1][0] and spots[0][1] > spots[1][1]
    assert all(0 < v < 260 for spot in spots for v in spot)
    marks = [(0.0, "none"), (0.01, "close by"), (1.0, "all")]
    off = whisker(5.0, -9.0, 9.0, span=(0.0, 1.0), marks=marks, unit="dB")
    assert 'cx="170.0"' in off  # clamped to the end of the scale
    rows = re.findall(r'<text class="tick" x="[\d.]+" y="(\d+)"[^>]*>([^<]*)<', off)
    assert rows == [("34", "none 0 dB"), ("46", "close by 0.01 dB"), ("34", "all 1 dB")]
    assert 'viewBox="0 0 176 52"' in off and 'viewBox="0 0 176 40"' in whisker(
        0.5, None, None, span=(0.0, 1.0), marks=marks[::2]
    )


def test_long_histories_show_their_last_frame_only(tmp_path):
    given = dataclasses.replace(pictures(), history=3)
    page = write(tmp_path / "r.html", artefacts=given)
    assert page.count(">given</th>") == 1 and ">step 1</th>" in page and ">step 2</th>" not in page


@pytest.mark.parametrize(
    ("names", "notes", "words"),
    [
        (("code 0", "code 1", "code 2"), ("left 90%", "", ""), "the codes (below each: the real"),
        (("code 0", "code 1", "code 2"), ("2% of steps",) * 3, "the codes (below each: how often"),
        (("code 0·1", "code 2·0", "code 3·3"), ("mean +0.10",) * 3, "combinations of codes (below"),
        (("latent 1", "latent 2", "latent 3"), ("", "", ""), "latents far from each other. A"),
    ],
)
def test_the_grid_says_what_its_columns_are(tmp_path, names, notes, words):
    shown = dataclasses.replace(pictures(), code_names=names, code_notes=notes)
    assert words in write(tmp_path / "r.html", artefacts=shown)


def test_durations_read_well():
    assert [duration(s) for s in (48, 683, 7500)] == ["48 s", "11 min 23 s", "2 h 05 min"]


def test_the_grid_opens_on_the_last_frame(tmp_path):
    shown = pictures()
    page = write(tmp_path / "r.html", artefacts=shown)
    first = re.search(r'class="moving small" src="data:image/png;base64,([^"]*)"', page)
    frames, delays = decode(base64.b64decode(first.group(1)))
    assert np.array_equal(frames, np.roll(shown.every_code[0, 0], 1, axis=0))
    assert delays[0] == 1200


def chart(page, title):
    """The first svg with this title."""
    return re.search(rf'<svg class="chart"[^>]*aria-label="{title}".*?</svg>', page).group()


def test_both_charts_hold_every_line_that_the_text_speaks_of(tmp_path):
    result = copy.deepcopy(RESULT)
    lines = ["inferred", "shuffled", "random", "constant", "last frame"]
    page = write(tmp_path / "old.html", evaluation=result)
    assert re.findall(r'class="name[^>]*>([^<]*)<', chart(page, "PSNR by horizon")) == lines
    assert ">last frame</text>" in chart(page, "SSIM by horizon")  # an older evaluation has two
    for line in result["rollout"]["variants"].values():
        line["ssim_by_horizon"] = [0.8, 0.7, 0.6]
        for kind, step in (("psnr", 1.0), ("ssim", 0.1)):
            mean = line[f"{kind}_by_horizon"]
            line[f"{kind}_low_by_horizon"] = [v - step for v in mean]
            line[f"{kind}_high_by_horizon"] = [v + step for v in mean]
    page = write(tmp_path / "new.html", evaluation=result)
    for kind in ("PSNR", "SSIM"):
        drawn = chart(page, f"{kind} by horizon")
        assert re.findall(r'class="name[^>]*>([^<]*)<', drawn) == lines
        assert drawn.count("<polygon") == 3
    parse(page)


def test_a_shade_goes_where_its_bounds_say():
    svg = line_chart(
        [Series("a", [0, 10], [0.5, 0.5], low=[0.0, 0.25], high=[1.0, 0.75])],
        title="t",
        x_label="x",
        y_label="y",
        y_range=(0.0, 1.0),
        width=200,
        height=100,
        margin=50,
    )
    assert 'class="shade c-1" points="52.0,12.0 150.0,24.0 150.0,48.0 52.0,60.0"' in svg
    none = [Series("a", [0, 1], [1.0, 2.0], low=[None, None], high=[None, None])]
    assert "<polygon" not in line_chart(none, title="t", x_label="x", y_label="y")


def test_each_chart_of_lines_is_drawn_for_a_telephone_too(tmp_path):
    page = write(tmp_path / "r.html")
    assert page.count('<div class="wide"><svg') == page.count('<div class="narrow"><svg') == 5
    for narrow in re.findall(r'<div class="narrow"><svg class="chart" viewBox="0 0 (\d+)', page):
        assert int(narrow) <= 390  # so that its type is not scaled down


def test_no_caption_is_cut(tmp_path):
    page = write(tmp_path / "r.html")
    matrix = re.search(r'<svg class="chart matrix".*?</svg>', page).group()
    assert "%" not in re.sub("<title>.*?</title>", "", matrix)
    assert "Columns: what is read off the latent action, % of the row." in page


def test_the_page_says_what_it_is_how_it_is_made_and_what_the_numbers_mean(tmp_path):
    command = "colaworld evaluate runs/demo --evaluation.clips 20"
    about = {"this page": command, "commit": "abc", "versions": {"colaworld": "0.1.0"}}
    page = write(tmp_path / "r.html", title="nano.cola on crafter", environment=about)
    assert "<title>nano.cola on crafter</title>" in page
    assert '<p class="meta">colaworld 0.1.0 · commit <code>abc</code></p>' in page
    assert f"<code>{command}</code>" in page
    assert page.count('<p class="meaning">') == 5
    for headline in headlines(RESULT):
        assert headline.meaning.endswith((".", "?")) and headline.meaning in page
    assert ">aim 1.5 dB</text>" in page and ">pixels 0.4</text>" in page


def test_a_run_that_was_not_evaluated_alike_is_named_and_not_tabled(tmp_path):
    other = copy.deepcopy(RESULT)
    other["counts"]["horizon"] = 9
    page = write(tmp_path / "r.html", compare={"mine": RESULT, "other": other, "like": RESULT})
    assert "evaluated alike." not in page.replace("not evaluated alike", "")
    assert (
        "<strong>other</strong> is not compared, since it was not evaluated alike: horizon 9"
        in page
    )
    table = re.search(r"Runs side by side.*?</table>", page, re.S).group()
    assert ">mine</th>" in table and ">like</th>" in table and ">other</th>" not in table
    drawn = chart(page, "PSNR under inferred actions")
    assert re.findall(r'class="name[^>]*>([^<]*)<', drawn) == ["mine", "like", "last frame"]
    parse(page)


def test_a_page_of_nonsense_is_refused_by_key(tmp_path):
    with pytest.raises(ValueError, match="evaluation: counts: expected an object, got null"):
        write(tmp_path / "r.html", evaluation={**RESULT, "counts": None})
    assert not (tmp_path / "r.html").exists()


def test_lpips_fvd_and_the_papers_columns_are_on_the_page(tmp_path):
    plain = {**RESULT, "lpips": None, "lpips_skipped": "no weights given (--evaluation.lpips)"}
    page = write(tmp_path / "r.html", evaluation=plain)
    parse(page)
    assert (
        "LPIPS: no weights given (--evaluation.lpips)." in page and "LPIPS by horizon" not in page
    )
    assert (
        '<tr><th scope="row">this run</th><td>23.30</td><td>−</td><td>−</td><td>−</td></tr>' in page
    )
    assert '<tr><th scope="row">3</th><td>22.00</td><td>0.700</td></tr>' in page
    line = {"lpips_by_horizon": [0.1, 0.2, 0.3]}
    lpips = {
        "name": "LPIPS (alex)",
        "published": True,
        "mean": 0.2,
        "low": 0.1,
        "high": 0.3,
        "over_copy": {"mean": -0.1, "low": -0.2, "high": -0.05},
        "variants": {"inferred": line, "copy": line},
    }
    frechet = {
        "name": "FVD",
        "value": 250.0,
        "by_horizon": {"3": 250.0},
        "clips": 20,
        "features": 400,
    }
    full = {**RESULT, "lpips": lpips, "frechet": frechet}
    page = write(tmp_path / "r.html", evaluation=full, compare={"a": full, "b": RESULT})
    parse(page)
    assert "LPIPS by horizon" in page and page.count('class="card"') == 6
    assert (
        '<tr><th scope="row">a</th><td>23.30</td><td>−</td><td>20.00</td><td>250.00</td></tr>'
        in page
    )
    assert "<td>22.00</td><td>0.700</td><td>0.300</td><td>250.00</td></tr>" in page
