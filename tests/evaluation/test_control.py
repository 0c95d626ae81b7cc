"""Does it obey? The controls on worlds whose answer is known: honest, deaf, and one that is told the future."""

from __future__ import annotations

import copy
import dataclasses
import json
import math
import re
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from evaluation.scrolling import (
    MOVES,
    SIGMA,
    SMALL,
    SPEC,
    VECTORS,
    ContinuousWorld,
    ScrollWorld,
    batches,
    moved_batches,
)

from colaworld.contracts import ClipBatch, LatentActions, Rollout
from colaworld.evaluation.evaluate import run_evaluation
from colaworld.evaluation.layout import check
from colaworld.evaluation.measures.agreement import agreement, by_chance
from colaworld.evaluation.measures.leakage import judge
from colaworld.evaluation.report.page import write_report
from colaworld.evaluation.tables import headlines, table, verdict
from colaworld.metrics.config import ProbeConfig
from colaworld.rng import draw


class Smuggler(ScrollWorld):
    """Its action is the next frame itself, which it draws: what leaks, with perfect pictures."""

    codebook_size, tokens = None, 1

    def infer_actions(self, frames):
        return LatentActions(frames[:, 1:].flatten(2)[:, :, None])

    def rollout(self, history, codes, *, generator):
        at = history.shape[1] - 1
        drawn = codes[:, at:, 0].unflatten(2, history.shape[2:])
        noise = SIGMA * draw(torch.randn, drawn.shape, generator, large=True)
        return Rollout(torch.cat([history, drawn + noise], dim=1), at + 1)


class Fading(ScrollWorld):
    """Obeys, and gets darker by a known share with every frame."""

    def rollout(self, history, codes, *, generator):
        made = super().rollout(history, codes, generator=generator).frames
        late = (torch.arange(made.shape[1]) - history.shape[1] + 1).clamp(min=0)
        return Rollout(made * (1 - 0.05 * late)[:, None, None, None], history.shape[1])


@cache
def measured(kind=ScrollWorld, clips=batches, spec=SPEC, **world):
    result = run_evaluation(kind(**world), clips(), spec, SMALL).result
    check(json.loads(json.dumps(result, allow_nan=False)), source="result")
    return result


def holds(interval, value):
    return interval["low"] <= value <= interval["high"]


def test_an_obedient_world_repeats_the_donors_actions_in_another_scene():
    found = measured()["transfer"]
    assert found["by"] == "agreement"
    assert found["donor"]["mean"] == found["reference"]["mean"] == 1.0
    assert found["own"]["mean"] == 0.0  # only steps in which donor and scene differ are counted
    assert found["share"] == pytest.approx(0.75, abs=0.1) and found["steps"] == round(
        found["share"] * 24 * 4
    )
    assert found["chance"] == pytest.approx(0.25, abs=0.03)  # four moves, equally often
    assert found["margin"]["low"] == pytest.approx(1 - found["chance"])
    probe = found["probe"]
    assert probe["kind"] == "accuracy" and probe["episodes"] == 4  # those of the test half
    assert probe["generated"]["mean"] == probe["real"]["mean"] == 1.0
    assert probe["own"]["mean"] < 0.5 and probe["chance"] < 0.5


def test_a_deaf_world_transfers_nothing_and_changes_nothing():
    result = measured(deaf=True)
    found = result["transfer"]
    # still pictures and noise: what is read off them has nothing to do with what was told
    assert abs(found["donor"]["mean"] - found["chance"]) < 0.12
    assert found["margin"]["low"] <= 0
    assert found["probe"]["real"]["mean"] == 1.0
    assert found["probe"]["generated"]["mean"] < 0.5
    for variant in ("random", "shuffled", "constant"):
        assert holds(result["delta_psnr"][variant], 0)
    sensitivity = result["sensitivity"]
    assert sensitivity["codes"]["mean"] == 0.0 == sensitivity["ratio"]["high"]


def test_transfer_of_continuous_latents_and_actions():
    found = measured(ContinuousWorld, moved_batches, VECTORS)["transfer"]
    assert found["by"] == "cosine"
    assert found["donor"]["mean"] == pytest.approx(1) and found["own"]["mean"] < 0
    assert abs(found["chance"]) < 0.1
    assert found["probe"]["kind"] == "r2"
    assert found["probe"]["generated"]["mean"] == pytest.approx(1, abs=1e-3)
    assert found["probe"]["own"]["mean"] < 0


def test_agreement_by_hand():
    a, b = np.array([[0, 1], [2, 2], [0, 1]]), np.array([[0, 1], [2, 3], [1, 0]])
    assert agreement(a, b, about=a).tolist() == [1, 0, 0]
    # (0,1) holds two thirds of a and one of b; (2,2) and (1,0) are in one of them alone
    assert by_chance(a, b, about=a) == pytest.approx(2 / 9)
    x = np.array([[[1.0, 0.0]], [[0.0, 1.0]], [[-1.0, -1.0]]])  # [3, 1, 2], mean 0
    turned = x[..., ::-1] * [1, -1]
    assert agreement(x, 3 * x, about=x) == pytest.approx([1, 1, 1])
    assert agreement(x, turned, about=x) == pytest.approx([0, 0, 0])
    assert agreement(x + 5, x + 5, about=x + 5) == pytest.approx([1, 1, 1])


def test_a_world_that_is_told_the_future_is_caught():
    result = measured(Smuggler)
    found = result["leakage"]
    floor = -20 * math.log10(SIGMA)  # it draws the frame behind the cut up to its noise
    assert found["psnr"]["cut"] == pytest.approx(floor, abs=0.5)
    assert found["gain"]["low"] > 15 and found["gain_over_own"]["low"] > 15
    assert result["delta_psnr"]["random"]["low"] > 10  # delta-PSNR alone is fooled
    shown = {h.name: h for h in headlines(result)}["leakage over a scene cut"]
    assert shown.judgement.word == "leaks"
    assert "carries the next frame (leakage, " in verdict(result)


@pytest.mark.parametrize("kind", [ScrollWorld, ContinuousWorld])
def test_an_honest_world_is_not(kind):
    result = measured(kind)
    found = result["leakage"]
    # a scrolled picture is as far from an unrelated one as any other: uniform values, error 2 s^2
    wrong = -10 * math.log10(2 * np.var(np.arange(40, 215) / 255) + SIGMA**2)
    for psnr in found["psnr"].values():
        assert psnr == pytest.approx(wrong, abs=0.4)
    assert abs(found["gain"]["mean"]) < 0.3 and found["clips"] == 24
    shown = {h.name: h for h in headlines(result)}["leakage over a scene cut"]
    assert shown.judgement.word == "no leakage" and shown.better == "lower"
    assert "leakage" not in verdict(result)


@pytest.mark.parametrize(
    ("low", "high", "word"),
    [(1.1, 3, "leaks"), (-0.2, 0.9, "no leakage"), (0.5, 1.5, "not clear"), (None, None, "open")],
)
def test_leakage_is_called_by_the_whole_interval(low, high, word):
    assert judge({"mean": 1.0, "low": low, "high": high}, 1.0).word == word


def test_the_change_by_a_code_and_by_noise_are_what_they_must_be():
    found = measured()["sensitivity"]
    # two scrolled pictures of independent pixels and both noises against two noises
    spread = 2 * np.var(np.arange(40, 215) / 255)
    assert found["codes"]["mean"] == pytest.approx(255 * math.sqrt(spread), rel=0.05)
    assert found["noise"]["mean"] == pytest.approx(255 * SIGMA * math.sqrt(2), rel=0.05)
    assert found["ratio"]["mean"] == pytest.approx(found["codes"]["mean"] / found["noise"]["mean"])
    assert 24 * 0.5 < found["pairs"] < 24  # one pair in four is of equal codes


def test_drift_is_seen_segment_by_segment():
    steady = measured()["segments"]
    assert [part["steps"] for part in steady["parts"]] == [[1, 2], [3, 3], [4, 4]]
    for part in steady["parts"]:
        assert part["agreement"]["mean"] == 1.0
        assert part["psnr"]["mean"] == pytest.approx(-20 * math.log10(SIGMA), abs=0.3)
        assert part["colour"]["mean"] < 1
    faded = measured(Fading)["segments"]
    mean, spread = (f(np.arange(40, 215)) for f in (np.mean, np.std))
    steps = np.arange(1, 5)
    assert faded["colour_by_horizon"] == pytest.approx(0.05 * steps * mean, rel=0.03)
    left = np.hypot((1 - 0.05 * steps) * spread, 255 * SIGMA)  # of the picture, and of the noise
    assert faded["contrast_by_horizon"] == pytest.approx(spread - left, rel=0.1)
    assert faded["colour_per_step"]["mean"] == pytest.approx(0.05 * mean, rel=0.03)
    last = [part["psnr"]["mean"] for part in faded["parts"]]
    assert last == sorted(last, reverse=True) and last[-1] < 20


def test_a_deaf_world_does_not_draw_what_it_is_told():
    parts = measured(deaf=True)["segments"]["parts"]
    assert all(part["agreement"]["mean"] < 0.5 for part in parts)


def test_both_probes_and_the_counts_see_codes_that_are_moves():
    result = measured()
    assert result["mlp_probe"]["score"]["mean"] == 1.0
    assert result["mlp_probe"]["chance"] == result["probe"]["chance"]
    assert result["mlp_probe"]["test_rows"] == result["probe"]["test_rows"]
    for probe in (result["probe"], result["mlp_probe"]):
        assert [part["name"] for part in probe["parts"]] == list(SPEC.names)
        assert all(part["recall"]["mean"] == 1.0 for part in probe["parts"])
        assert sum(part["rows"] for part in probe["parts"]) == probe["test_rows"]
    (part,) = result["information"]["parts"]
    assert part["share"]["mean"] == pytest.approx(1) and part["action_bits"] == pytest.approx(
        2, abs=0.05
    )
    assert part["tokens"] == pytest.approx([1])
    assert holds(part["shuffled"], 0)


def test_dimensions_are_scored_apart_and_in_units():
    result = measured(clips=moved_batches, spec=VECTORS)
    for i, part in enumerate(result["probe"]["parts"]):
        assert part["unit"] == "px" and part["r2"]["mean"] > 0.99
        moves = np.array(MOVES)[:, i]  # 0, 0, 2, -2: spread sqrt 2 where they are as frequent
        assert part["l1_units"]["mean"] == pytest.approx(part["l1"]["mean"] * moves.std(), rel=0.15)
    parts = result["information"]["parts"]
    assert len(parts) == 2 and all(holds(part["shuffled"], 0) for part in parts)
    # a dimension is 2, -2 or (half of the time) 0: 1.5 bits, all told by the code
    for part in parts:
        assert part["action_bits"] == pytest.approx(1.5, abs=0.05)
        assert part["share"]["mean"] == pytest.approx(1)


def shuffled_batches():
    """The same clips with the moves of others beside them."""
    kept = list(batches())
    moves = torch.cat([b.actions for b in kept])
    order = torch.randperm(moves.numel(), generator=torch.Generator().manual_seed(5))
    moves = moves.flatten()[order].view_as(moves)
    for batch, part in zip(kept, moves.split(8), strict=True):
        yield ClipBatch(batch.frames, batch.episode, batch.start, part)


def test_actions_that_were_shuffled_score_chance_everywhere():
    result = measured(clips=shuffled_batches)
    for name in ("probe", "mlp_probe"):
        probe = result[name]
        assert probe["score"]["mean"] == pytest.approx(probe["chance"], abs=0.12), name
        assert probe["margin"]["low"] <= 0, name
    (part,) = result["information"]["parts"]
    assert holds(part["share"], 0) and holds(part["shuffled"], 0)
    assert result["transfer"]["donor"]["mean"] == 1.0  # the world obeys, whatever the labels
    transferred = result["transfer"]["probe"]
    assert abs(transferred["generated"]["mean"] - transferred["chance"]) < 0.15


def test_what_cannot_be_measured_says_why(caplog):
    bare = run_evaluation(ScrollWorld(), batches(actions=False), SPEC, SMALL).result
    for name in ("mlp_probe", "information"):
        assert bare[name] is None and bare[f"{name}_skipped"] == "the data set has no real actions"
    assert bare["transfer"]["probe"] is None and "no real" in bare["transfer"]["probe_skipped"]
    wide = measured(ContinuousWorld)
    assert wide["information"] is None and "continuous" in wide["information_skipped"]
    off = dataclasses.replace(SMALL, leakage_clips=0, sensitivity_clips=0)
    less = run_evaluation(ScrollWorld(), batches(), SPEC, off).result
    assert less["leakage"] is less["sensitivity"] is None
    assert "leakage over a scene cut" not in caplog.text  # nobody asked
    whole = copy.deepcopy(measured())
    for name in ("leakage", "sensitivity", "config"):
        whole.pop(name), less.pop(name)
    assert less["clips"]["values"] == whole["clips"]["values"] and less == whole
    for few in (1, 2):  # no cut, or none that leads to a third episode
        two = run_evaluation(ScrollWorld(), batches(episodes=few), SPEC, SMALL).result
        assert two["leakage"] is None
        assert "leakage over a scene cut skipped: it needs clips of 3 episodes" in caplog.text
        caplog.clear()
        check(two, source="result")
    three = run_evaluation(ScrollWorld(), batches(episodes=3), SPEC, SMALL).result
    shown = {h.name: h for h in headlines(three)}["leakage over a scene cut"]
    assert shown.judgement.word == "too few episodes"


def test_the_controls_stand_in_the_table():
    shown = table(measured())
    for line in (
        "change of the next frame by the code",
        "action transfer, agreement with the donor",
        "action transfer, probe's accuracy",
        "leakage over a scene cut",
        "MLP probe, accuracy",
        "action's entropy told by the code",
        "told and drawn actions, agreement in the last third",
    ):
        assert line in shown


def page_of(path, result, **more):
    return write_report(
        path,
        title="scene",
        evaluation=json.loads(json.dumps(result)),
        artefacts=None,
        metrics_jsonl=[],
        config_yaml="",
        environment={},
        **more,
    ).read_text()


def test_the_page_asks_whether_it_obeys(tmp_path):
    result = measured()
    page = page_of(tmp_path / "r.html", result)
    (section,) = re.findall(r"<h2>Does it obey\?</h2>.*?</section>", page, re.S)
    assert section.count("<tr>") == 1 + 5 + 1 + 3  # five controls, three segments, two headers
    assert ">No leakage.</span>" in section and ">Transfers.</span>" in section
    assert "leakage" not in page.replace(section, "").lower()  # no card
    assert "steps 1–2" in section and "step 4" in section
    meant = page[page.index("Do codes mean actions?") :]
    assert "of a small network" in meant and "Class by class" in meant
    assert "the code tells 1.00 (0.9" in meant and "1.9" in meant
    vectors = page_of(tmp_path / "v.html", measured(clips=moved_batches, spec=VECTORS))
    assert "Dimension by dimension" in vectors and " px</td>" in vectors
    caught = page_of(tmp_path / "s.html", measured(Smuggler))
    assert '<span class="tag poor">Leaks.</span>' in caught


def test_an_older_evaluation_is_shown_without_these_controls(tmp_path):
    old = json.loads(Path(__file__).with_name("golden.json").read_text())["moves"]["result"]
    page = page_of(tmp_path / "r.html", old, compare={"now": measured(), "old": old})
    assert "Does it obey?" not in page and "Class by class" not in page


class Strict(ScrollWorld):
    """Reads pictures alone, as a world of models does; `astray`: draws what is none."""

    def __init__(self, *, astray=False):
        super().__init__()
        self.astray = astray

    def infer_actions(self, frames):
        assert bool(((frames >= 0) & (frames <= 1)).all())
        return super().infer_actions(frames)

    def rollout(self, history, codes, *, generator):
        made = super().rollout(history, codes, generator=generator)
        if self.astray:
            made.frames[:, history.shape[1] :] = float("nan")
        return made


def test_rollouts_without_a_donor_of_a_test_episode_leave_out_the_probe_of_transfer():
    # Under this seed the test episode is number 3; rolled out are clips of episodes 0 and 1.
    probe = ProbeConfig(test_share=0.125)
    few = dataclasses.replace(SMALL, clips=2, probe=probe, seed=1)
    found = run_evaluation(ScrollWorld(), batches(), SPEC, few).result["transfer"]
    assert found["probe"] is None and "roll out more (evaluation.clips)" in found["probe_skipped"]
    assert found["donor"]["mean"] == 1.0


def test_a_sampler_gone_astray_leaves_no_number_and_ends_nothing():
    result = run_evaluation(Strict(astray=True), batches(), SPEC, SMALL).result
    assert result["leakage"]["gain"]["mean"] is None
    assert result["sensitivity"]["codes"]["mean"] is result["sensitivity"]["noise"]["mean"] is None
    assert result["segments"]["parts"][0]["psnr"]["mean"] is None
    assert result["transfer"]["donor"]["mean"] < 0.5  # what is not finite is read as black
    assert result["mlp_probe"]["score"]["mean"] == 1.0


class Pairs(Strict):
    """Makes two frames at once, as a tokenizer with a temporal stride of 2 does."""

    stride = 2

    def rollout(self, history, codes, *, generator):
        new = codes.shape[1] + 1 - history.shape[1]
        assert new and new % 2 == 0, f"{new} actions are not whole latent frames"
        return super().rollout(history, codes, generator=generator)


def test_single_steps_are_as_long_as_the_world_makes_them():
    result, single = measured(Pairs), measured()
    assert result["transfer"] == single["transfer"]
    assert result["leakage"]["psnr"]["cut"] == pytest.approx(
        single["leakage"]["psnr"]["cut"], abs=0.3
    )
    assert result["sensitivity"]["noise"]["mean"] == pytest.approx(
        255 * SIGMA * math.sqrt(2), rel=0.05
    )
