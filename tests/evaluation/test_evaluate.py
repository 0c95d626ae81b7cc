"""The whole evaluation on a scrolling scene: a move rolls the picture by one known step."""

from __future__ import annotations

import dataclasses
import json
import math
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from evaluation.scrolling import (
    SIGMA,
    SMALL,
    SPEC,
    VECTORS,
    ContinuousWorld,
    ScrollWorld,
    batches,
    moved_batches,
)

from colaworld.config import from_dict, to_dict
from colaworld.contracts import ActionSpec, LatentActions
from colaworld.evaluation import evaluate as module
from colaworld.evaluation.artefacts import Artefacts, EveryCode
from colaworld.evaluation.comparison import comparison
from colaworld.evaluation.evaluate import collect, run_evaluation
from colaworld.evaluation.layout import FORMAT_VERSION, check
from colaworld.evaluation.report.page import write_report
from colaworld.evaluation.settings import EvaluationConfig
from colaworld.evaluation.tables import headlines, table, verdict

GOLDEN = json.loads(Path(__file__).with_name("golden.json").read_text())


@pytest.fixture(scope="module")
def good():
    return run_evaluation(ScrollWorld(), batches(), SPEC, SMALL)


def evaluate(*arguments):
    return run_evaluation(*arguments).result


def close(found, wanted, where="result"):
    """Every key and number of `wanted` is in `found`; a later measure may add keys beside them."""
    if isinstance(wanted, dict):
        assert isinstance(found, dict), where
        assert set(wanted) <= set(found), where
        for key, value in wanted.items():
            close(found[key], value, f"{where}.{key}")
    elif isinstance(wanted, list):
        assert len(found) == len(wanted), where
        for i, (a, b) in enumerate(zip(found, wanted, strict=True)):
            close(a, b, f"{where}[{i}]")
    else:
        near = pytest.approx(wanted, rel=1e-5) if isinstance(wanted, float) else wanted
        assert found == near, where


@pytest.mark.parametrize(
    ("case", "world", "clips", "spec"),
    [
        ("moves", ScrollWorld, batches, SPEC),
        ("real vectors", ScrollWorld, moved_batches, VECTORS),
        ("continuous latents", ContinuousWorld, batches, SPEC),
    ],
)
def test_the_numbers_of_version_1_of_the_layout(case, world, clips, spec):
    result = evaluate(world(), clips(), spec, SMALL)
    check(result, source="result")
    wanted = {**GOLDEN[case]["result"], "format_version": FORMAT_VERSION}
    wanted["action"] = {k: v for k, v in wanted["action"].items() if k != "unit"}  # `units` since
    close(json.loads(json.dumps(result)), wanted)
    lines = [line.split() for line in table(result).splitlines()]
    for wanted in GOLDEN[case]["table"]:
        assert wanted.startswith("---") or wanted.split() in lines


def test_the_fixed_layout(good):
    result = json.loads(json.dumps(good.result, allow_nan=False))
    for variant in ("random", "shuffled", "constant"):
        assert {"mean", "low", "high"} <= set(result["delta_psnr"][variant])
    four = {"utilisation", "max_usage", "entropy_normalised", "perplexity"}
    assert set(result["codebook"]) == four | {"positions", "joint"}
    assert result["probe"]["kind"] == "accuracy"
    assert set(result["probe"]["score"]) == {"mean", "low", "high"}
    assert isinstance(result["probe"]["baseline"], float)
    assert result["probe_skipped"] is None
    assert len(result["rollout"]["psnr_by_horizon"]) == 4
    assert len(result["rollout"]["ssim_by_horizon"]) == 4
    assert result["counts"]["episodes"] == 8
    assert from_dict(EvaluationConfig, result["config"]) == SMALL


def test_a_world_that_obeys_is_seen_to_obey(good):
    result = good.result
    noise_floor = -20 * math.log10(SIGMA)  # the only error under the true codes, 34 dB
    assert result["rollout"]["psnr_by_horizon"] == pytest.approx([noise_floor] * 4, abs=0.3)
    # uniform values of spread s, independent after a wrong shift: error 2 s^2
    s = np.std(np.arange(40, 215) / 255)
    wrong = -10 * math.log10(2 * s**2 + SIGMA**2)
    first = result["delta_psnr"]["random"]["by_horizon"][0]  # one wrong code in 3 of 4 cases
    assert first == pytest.approx(0.75 * (noise_floor - wrong), abs=5.0)
    for variant in ("random", "shuffled", "constant"):
        delta = result["delta_psnr"][variant]
        assert 10 < delta["low"] <= delta["mean"] <= delta["high"] < noise_floor - wrong + 1

    assert 0 < result["rollout"]["error_against_copy"] < 0.02  # noise 0.02^2, motion about 0.08
    assert result["codebook"]["utilisation"] == 1.0
    assert result["codebook"]["entropy_normalised"] > 0.95
    assert result["probe"]["score"]["mean"] == 1.0
    assert result["probe"]["macro_f1"]["mean"] == 1.0
    assert result["probe"]["baseline"] < 0.7
    assert result["probe"]["baseline"] == max(
        result["probe"]["chance"], result["probe"]["pixel_difference"]
    )
    assert result["probe"]["margin"]["low"] > 0


def test_a_world_that_ignores_actions_gets_delta_zero():
    result = evaluate(ScrollWorld(deaf=True), batches(), SPEC, SMALL)
    for variant in ("random", "shuffled", "constant"):
        delta = result["delta_psnr"][variant]
        assert delta["mean"] == 0.0
        assert delta["low"] <= 0.0 <= delta["high"]
    copy = result["rollout"]["variants"]["copy"]["psnr_by_horizon"]
    deaf = result["rollout"]["psnr_by_horizon"]
    assert deaf[0::2] == pytest.approx(copy[0::2], abs=0.2)  # odd moves never lead back


class Unsure(ScrollWorld):
    """Stands still under an action that it is not told."""

    null_action = torch.zeros(1, 4)

    def rollout(self, history, codes, *, generator):
        still = codes.abs().sum((-1, -2)) == 0
        assert bool(still[:, 1:].all()) or not bool(
            still.any()
        )  # two given frames, one real action
        told = ScrollWorld(deaf=bool(still[:, -1].all()))
        return told.rollout(history, codes, generator=generator)


def test_no_action_is_a_comparison_of_its_own_and_moves_no_other_number(good):
    result = evaluate(Unsure(), batches(), SPEC, SMALL)
    delta = result["delta_psnr"].pop("none")
    still, copy = (result["rollout"]["variants"][v]["psnr_by_horizon"] for v in ("none", "copy"))
    assert still[0::2] == pytest.approx(copy[0::2], abs=0.2)  # noise of 34 dB on errors of 10 dB
    true = result["rollout"]["psnr_by_horizon"]
    assert delta["by_horizon"] == pytest.approx([a - b for a, b in zip(true, still, strict=True)])
    assert 10 < delta["low"] <= delta["mean"] <= delta["high"]
    assert "no action" in table(evaluate(Unsure(), batches(), SPEC, SMALL))
    assert "none" not in good.result["delta_psnr"]
    close(result["delta_psnr"], good.result["delta_psnr"])
    del result["rollout"]["variants"]["none"]
    close(result["rollout"], good.result["rollout"])


def test_a_collapsed_codebook_is_seen(good):
    result = evaluate(ScrollWorld(blind=True), batches(), SPEC, SMALL)
    assert result["codebook"]["perplexity"] == 1.0
    assert result["codebook"]["entropy_normalised"] == 0.0
    assert result["codebook"]["utilisation"] == 0.25
    assert result["probe"]["score"]["mean"] == pytest.approx(result["probe"]["chance"])
    assert result["probe"]["margin"]["mean"] <= 0


def test_the_same_seed_gives_the_same_numbers(good):
    assert evaluate(ScrollWorld(), batches(), SPEC, SMALL) == good.result


def test_without_actions_the_probe_is_null_and_says_why():
    for spec, with_actions in ((SPEC, False), (None, True)):
        result = evaluate(ScrollWorld(), batches(actions=with_actions), spec, SMALL)
        assert result["probe"] is None
        assert result["probe_skipped"] == "the data set has no real actions"
        assert "no real actions" in table(result)
    one = evaluate(ScrollWorld(), batches(episodes=1), SPEC, SMALL)
    assert "at least 2 episodes" in one["probe_skipped"]
    assert one["delta_psnr"]["random"]["low"] is None  # one episode has no interval


def test_continuous_actions_are_probed_by_r2():
    run = run_evaluation(ScrollWorld(), moved_batches(), VECTORS, SMALL)
    probe = run.result["probe"]
    assert probe["kind"] == "r2"
    assert probe["score"]["mean"] > 0.99
    assert probe["l1"]["mean"] < 0.05
    assert probe["macro_f1"] is None
    assert probe["baseline"] < 0.9
    assert run.artefacts.probe_predicted.shape == run.artefacts.probe_target.shape
    assert run.artefacts.code_notes[0] == "mean +0.00 +2.00"


def test_a_continuous_world_has_no_codebook_numbers():
    run = run_evaluation(ContinuousWorld(), batches(), SPEC, SMALL)
    assert run.result["codebook"] is None
    assert run.result["delta_psnr"]["random"]["low"] > 5
    shown = run.artefacts.every_code
    assert len(run.artefacts.code_names) == shown.shape[1] == SMALL.shown_codes
    assert "continuous latents" in table(run.result)


def test_misfit_actions_are_errors_not_skips():
    with pytest.raises(ValueError, match="'action' has 2 classes"):
        evaluate(ScrollWorld(), batches(), ActionSpec("action", "discrete", 2), SMALL)
    with pytest.raises(ValueError, match="'action' has 2 dimensions"):
        evaluate(ScrollWorld(), batches(), ActionSpec("action", "continuous", 2), SMALL)


def test_artefacts_show_what_happened(good, tmp_path):
    shown = good.artefacts
    assert shown.truth.shape == shown.inferred.shape == shown.random.shape == (4, 6, 12, 14, 3)
    assert np.array_equal(shown.truth[:, :2], shown.inferred[:, :2])  # the history
    error = shown.truth.astype(float) - shown.inferred
    assert np.abs(error).mean() < 255 * SIGMA
    assert np.abs(shown.truth.astype(float) - shown.random).mean() > 20
    assert shown.every_code.shape == (3, 4, 5, 12, 14, 3)
    assert (shown.every_code[:, :1, 0] == shown.every_code[:, :, 0]).all()  # one start
    moved = np.roll(shown.every_code[1, 2, 0], 2, axis=0).astype(float)
    assert np.abs(moved - shown.every_code[1, 2, 1]).mean() < 255 * SIGMA
    assert shown.code_names == ("code 0", "code 1", "code 2", "code 3")
    assert shown.code_notes == ("right 100%", "left 100%", "down 100%", "up 100%")
    good.save(tmp_path)
    loaded = Artefacts.load(tmp_path / "evaluation.npz")
    assert np.array_equal(loaded.every_code, shown.every_code)
    assert loaded.code_notes == shown.code_notes
    assert loaded.history == 2 and loaded.probe_kind == "accuracy"
    assert json.loads((tmp_path / "evaluation.json").read_text()) == good.result


def test_progress_counts_to_the_end():
    seen = []
    evaluate(ScrollWorld(), batches(), SPEC, SMALL, lambda *a: seen.append(a))
    done = [d for d, _, _ in seen]
    assert done == list(range(1, len(seen) + 1))
    assert {t for _, t, _ in seen} == {len(seen)}


def test_only_as_many_clips_as_needed_are_drawn():
    drawn = []

    def endless():
        while True:
            for batch in batches():
                drawn.append(len(batch))
                yield batch

    assert len(collect(endless(), clips=12)) == 12
    assert sum(drawn) == 16


def test_clips_that_cannot_be_used_are_named():
    with pytest.raises(ValueError, match="at least 2 held-out clips"):
        evaluate(ScrollWorld(), iter(()), SPEC, SMALL)
    with pytest.raises(ValueError, match="do not fit into clips of 6 frames"):
        evaluate(ScrollWorld(), batches(), SPEC, EvaluationConfig(history=2, horizon=5))
    with pytest.raises(ValueError, match=r"evaluation\.clips"):
        EvaluationConfig(clips=1)


def test_the_headlines_and_both_tables(good):
    found = {headline.name: headline for headline in headlines(good.result)}
    gain = found["delta-PSNR over random codes"]
    assert gain.value == good.result["delta_psnr"]["random"]["mean"]
    text = table(good.result)
    assert f"{gain.value:.2f} dB [{gain.low:.2f}, {gain.high:.2f}]" in text
    assert "linear probe, accuracy" in text and "24 clips of 8 episodes" in text
    for headline in found.values():
        assert f"{headline.name}  " in text and headline.text() in text
    side = comparison({"cola": good.result, "naive_joint": good.result}).text().splitlines()
    assert side[0].startswith("run")
    assert side[2].split("  ")[0] == "cola"
    assert len(side) == 5 and side[4].startswith("  difference to cola")
    assert side[4].count("+0.00 [+0.00, +0.00]") == 3  # delta-PSNR, PSNR, NMSE
    with pytest.raises(ValueError, match="at least one run"):
        comparison({})


def test_an_evaluation_of_before_a_measure_is_compared(good):
    found = comparison({"now": good.result, "before": GOLDEN["moves"]["result"]})
    header, now, before = found.rows
    assert len(header) == len(now) == len(before)
    for name, new, old in zip(header[1:], now[1:], before[1:], strict=True):
        assert old in (new, "-"), name
    assert "of an earlier version" in found.notes["before"]
    assert table(GOLDEN["moves"]["result"]).splitlines() == GOLDEN["moves"]["table"]


def test_each_clips_numbers_make_the_whole_again(good):
    clips = good.result["clips"]
    assert len(clips["episode"]) == 24 and clips["rolled"] != clips["probed"]
    values = {name: np.array(v) for name, v in clips["values"].items()}
    over = [h for h in headlines(good.result) if h.over is not None]
    assert [h.name.split()[0] for h in over] == ["delta-PSNR", "PSNR", "NMSE"]
    for headline in over:
        assert headline.over(values) == pytest.approx(headline.value), headline.name


def test_the_fingerprint_tells_other_clips(good):
    again = evaluate(
        ScrollWorld(deaf=True), batches(), SPEC, SMALL
    )  # another world, the same clips
    other = evaluate(ScrollWorld(), batches(seed=1), SPEC, SMALL)
    for name in ("rolled", "probed"):
        assert again["clips"][name] == good.result["clips"][name] != other["clips"][name]
    unlabelled = evaluate(ScrollWorld(), batches(actions=False), SPEC, SMALL)
    assert unlabelled["clips"]["rolled"] == good.result["clips"]["rolled"]
    assert unlabelled["clips"]["probed"] != good.result["clips"]["probed"]


def test_every_line_of_the_charts_has_bounds(good):
    for name, line in good.result["rollout"]["variants"].items():
        for kind in ("psnr", "ssim"):
            steps = [line[f"{kind}{end}_by_horizon"] for end in ("_low", "", "_high")]
            assert len(steps[1]) == 4
            for low, mean, high in zip(*steps, strict=True):
                assert low <= mean <= high, name
    psnr = good.result["rollout"]
    assert psnr["variants"]["inferred"]["ssim_by_horizon"] == psnr["ssim_by_horizon"]
    assert psnr["variants"]["copy"]["ssim_by_horizon"] == psnr["copy_ssim_by_horizon"]
    one = evaluate(ScrollWorld(), batches(episodes=1), SPEC, SMALL)["rollout"]["variants"]
    assert one["random"]["psnr_low_by_horizon"] == [None] * 4


class ManyWays(ScrollWorld):
    """A world that rolls several ways on from one start together, and counts how often it is asked."""

    def __init__(self):
        super().__init__()
        self.begun = []

    def rollout_candidates(self, history, codes, *, context_codes, generator):
        self.begun.append(tuple(codes.shape[:2]))
        ways = []
        for way in codes.unbind(1):
            whole = torch.cat([context_codes, way], dim=1)
            again = generator.clone_state()
            ways.append(self.rollout(history, whole, generator=again).generated)
        return torch.stack(ways, dim=1)


def test_the_grid_is_rolled_out_in_few_calls_and_shows_the_same(good):
    world = ManyWays()
    many = run_evaluation(world, batches(), SPEC, SMALL)
    # of three batches of 8 a step with other noise and three over a cut; then three starts, 8 rows at
    # once: two codes a call
    assert world.begun == [(8, 1), (8, 3)] * 3 + [(3, 2), (3, 2)]
    assert many.result == good.result
    assert np.array_equal(many.artefacts.every_code, good.artefacts.every_code)


class Astray(ScrollWorld):
    """The first clip of each batch is drawn as no numbers."""

    def rollout(self, history, codes, *, generator):
        made = super().rollout(history, codes, generator=generator)
        made.frames[:1, history.shape[1] :] = math.nan
        return made


def test_rollouts_that_are_not_finite_are_shown_as_such(good, tmp_path):
    found = run_evaluation(Astray(), batches(), SPEC, SMALL)
    result = json.loads(json.dumps(found.result, allow_nan=False))
    check(result, source="result")
    said = "not finite: inferred 3, random 3, shuffled 3, constant 3 of 24 clips"  # 3 batches
    assert result["rollout"]["not_finite"] == {
        **dict.fromkeys(("inferred", "random", "shuffled", "constant"), 3),
        "copy": 0,
    }
    assert result["delta_psnr"]["random"]["mean"] is None and table(result).count(said) == 2
    assert "cannot be said whether the latent actions steer" in verdict(result)
    sides = comparison({"good": good.result, "astray": result, "more": good.result})
    assert sides.alike == ["good", "more", "astray"]  # the best first, as far as it is known
    (tmp_path / "metrics.jsonl").touch()
    page = write_report(
        tmp_path / "report.html",
        title="astray",
        evaluation=result,
        artefacts=found.artefacts,
        metrics_jsonl=tmp_path / "metrics.jsonl",
        config_yaml="",
        environment={},
    )
    assert page.read_text().count("not finite") >= 3  # the verdict, and two cards


def test_the_first_and_the_last_step_have_one_interval(good):
    rollout = good.result["rollout"]
    for name, step in (("psnr_first", 0), ("psnr_last", -1)):
        lines = rollout["variants"]["inferred"]
        at = {
            end: lines[f"psnr{tail}_by_horizon"][step]
            for end, tail in (("mean", ""), ("low", "_low"), ("high", "_high"))
        }
        assert rollout[name] == at and at["low"] < at["mean"] < at["high"]


def test_no_number_depends_on_the_size_of_a_batch():
    """Neither on how many clips go together, nor where the controls' clips end within a batch."""
    few = dataclasses.replace(SMALL, leakage_clips=10, sensitivity_clips=11)
    found = [
        evaluate(ScrollWorld(), batches(), SPEC, dataclasses.replace(few, batch_size=size))
        for size in (24, 7)
    ]
    assert found[0]["leakage"]["clips"] <= 10 and found[0]["sensitivity"]["pairs"] <= 11
    for result in found:
        assert result.pop("config")["batch_size"] in (24, 7)
    close(*found)


def test_what_is_shown_costs_at_most_half_of_what_is_measured(caplog):
    caplog.set_level("INFO", logger=module.__name__)
    few = dataclasses.replace(SMALL, clips=4)
    shown = run_evaluation(ScrollWorld(), batches(), SPEC, few).artefacts.every_code
    assert shown.shape[:2] == (2, 4)  # 4 clips x 4 ways, so 8 videos and not 3 x 4
    assert (
        "112 frames to generate: 4 clips x 4 ways x 4 steps, 16 single steps, and 2 starts x 4 codes"
        in caplog.text
    )


def test_the_grid_is_bounded_in_pixels(monkeypatch):
    monkeypatch.setattr(module, "GRID_PIXELS", 5 * 4 * 12 * 14)
    shown = run_evaluation(ContinuousWorld(), batches(), SPEC, SMALL).artefacts.every_code
    assert shown.shape[:2] == (1, 5)


def test_a_combination_that_hardly_occurs_is_not_among_the_most_used():
    indices = torch.zeros(1000, 1, 2, dtype=torch.int64)
    indices[:400, 0, 1], indices[0, 0, 0] = 1, 3  # (3, 1) once, 0.1 % of the steps
    latent = LatentActions(torch.zeros(1000, 1, 2, 4), indices)
    world = types.SimpleNamespace(codebook_size=8, tokens=2)
    grid = EveryCode(world, latent, limit=16)
    assert grid.names == ("code 0·0", "code 0·1")
    assert grid.notes(latent, None, None) == ("60% of steps", "40% of steps")


def test_a_kill_leaves_files_of_one_evaluation(good, tmp_path, monkeypatch):
    names = ("evaluation.json", "evaluation.npz", "report.html")
    for dies_at in range(3):
        for name in names:
            (tmp_path / name).write_text("old")
        written = []

        def write(path, content, dies_at=dies_at, written=written):
            if len(written) == dies_at:
                raise KeyboardInterrupt
            written.append(path)
            Path(path).write_bytes(content if isinstance(content, bytes) else content.encode())

        for place in ("colaworld.files", "colaworld.evaluation.artefacts"):
            monkeypatch.setattr(f"{place}.write_atomically", write)
        if dies_at < 2:
            with pytest.raises(KeyboardInterrupt):
                good.save(tmp_path)
        else:
            good.save(tmp_path)
        old = [
            n for n in names if (tmp_path / n).is_file() and (tmp_path / n).read_bytes() == b"old"
        ]
        there = [name for name in names if (tmp_path / name).is_file()]
        assert (old, there) == (
            [(["evaluation.json"], ["evaluation.json"]), ([], ["evaluation.json"])][dies_at]
            if dies_at < 2
            else ([], ["evaluation.json", "evaluation.npz"])
        )


def test_the_configuration_survives_a_round_trip():
    assert from_dict(EvaluationConfig, to_dict(EvaluationConfig(horizon=3))).horizon == 3


def test_a_measure_from_outside_joins_the_table_and_moves_no_other_number(good, from_outside):
    from_outside(Path(__file__).with_name("plugin_measure.py"))
    found = run_evaluation(ScrollWorld(), batches(), SPEC, SMALL).result
    assert abs(found.pop("drift")["mean"]) < SIGMA
    assert found == good.result
    shown = [headline.name for headline in headlines({**found, "drift": {**found["nmse"]}})]
    assert shown == [*(headline.name for headline in headlines(found)), "drift"]
