"""Codebooks that really collapse, at the smallest size: what gate and alarm do, and what follows.

No quantizer is made to look collapsed here: without stabilisers, and without a generator that knows anything, its
codes fall together by themselves within some dozen steps. The study `remedies` asks the same at nano size.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from colaworld.models.latent_action.config import IDMConfig
from colaworld.models.latent_action.quantizers import VQConfig
from colaworld.runs.build import build_trainer
from colaworld.runs.config import RunConfig
from colaworld.training.config import AlarmConfig, GateConfig
from colaworld.training.phase_state import TrainResult

WARMUP = 80


@pytest.fixture(scope="module")
def bare(tiny):
    """bare(missed) -> nano.cola with the paper's quantizer, tiny; its gate never opens."""

    def make(missed: str = "stop") -> RunConfig:
        config = tiny()
        idm = IDMConfig(depth=1, width=32, heads=1, tokens=1, dim=4)
        quantizer = VQConfig(normalise=False, data_start=False, reseed=False, unquantized_steps=0)
        training = replace(
            config.training,
            **{"batch_size": 4, "max_steps": None, "control_every": 0, "sample_every": 0},
            **{"health_every": 5, "health_window": 48, "checkpoint_every": 1000},
        )
        config = replace(
            config,
            model=replace(config.model, idm=idm, quantizer=quantizer),
            objective=replace(config.objective, start_clips=16, quantizer_weight=1.0),
            training=training,
        )
        gate = GateConfig(entropy=1.0, window=40, min_steps=WARMUP, missed=missed)
        fast = {"learning_rate": 3e-3, "lr_warmup_steps": 0, "cooldown_steps": 0}
        config = config.with_phase("warmup", steps=WARMUP, gate=gate, **fast)
        return config.with_phase("joint", steps=20, alarm=AlarmConfig(), **fast)

    return make


def train(config: RunConfig, out: Path) -> TrainResult:
    return build_trainer(config, out=out, resume=True).run()


def entropies(out: Path, phase: str) -> list[float]:
    """Of the codes in use, at each check of a phase."""
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    checks = [row for row in rows if row["phase"] == phase and row["step"] % 5 == 0]
    return [row["codebook"]["entropy_normalised"] for row in checks]


@pytest.fixture(scope="module")
def stopped(bare, tmp_path_factory) -> Path:
    """A run whose warm-up ended with a collapsed codebook."""
    out = tmp_path_factory.mktemp("stopped") / "run"
    result = train(bare(), out)
    assert (result.status, result.phase, result.step) == ("stopped", "warmup", WARMUP)
    assert "ended by its steps with a collapsed codebook: normalised entropy 0." in result.message
    assert "--phases.warmup.gate.missed reseed and --resume" in result.message
    assert max(entropies(out, "warmup")[-3:]) < 0.3
    assert not (out / "weights").exists()
    return out


def test_a_codebook_that_starts_anew_is_used_again_and_one_that_goes_on_is_not(
    stopped, bare, tmp_path, caplog
) -> None:
    joint = {}
    for missed in ("reseed", "go_on"):
        out = shutil.copytree(stopped, tmp_path / missed)
        assert train(bare(missed), out).status == "finished"
        joint[missed] = entropies(out, "joint")
    assert joint["reseed"][0] > 0.4
    assert max(joint["go_on"]) < 0.3
    # Nothing is silent about it: the warm-up's end, and that of the run.
    for phase, rule in (("warmup", "gate"), ("joint", "alarm")):
        said = f"phase {phase} ends with a collapsed codebook: normalised entropy 0."
        assert any(r.startswith(said) and f"{rule}.floor" in r for r in caplog.messages), phase


def test_a_longer_warmup_goes_on_from_where_it_stopped_and_stops_again(stopped, bare, tmp_path):
    out = shutil.copytree(stopped, tmp_path / "run")
    result = train(bare().with_phase("warmup", steps=WARMUP + 20), out)
    assert (result.status, result.phase, result.step) == ("stopped", "warmup", WARMUP + 20)
    assert max(entropies(out, "warmup")[-3:]) < 0.3


def test_an_alarm_rolls_back_once_and_stops_where_the_codes_fall_again(bare, tmp_path, caplog):
    """A warm-up so short and slow that its codes, which start from latents, stay apart; the joint phase does not."""
    config = bare("go_on")
    quantizer = replace(config.model.quantizer, data_start=True)
    config = replace(config, model=replace(config.model, quantizer=quantizer))
    config = config.with_phase("warmup", steps=4, learning_rate=1e-9, gate=None)
    alarm = AlarmConfig(floor=0.3, checks=2, action="rollback")
    result = train(config.with_phase("joint", steps=100, alarm=alarm), tmp_path / "run")
    assert (result.status, result.phase) == ("stopped", "joint")
    assert "the codebook collapsed in phase joint after 1 rollback;" in result.message
    assert "rolled back to step_0_0000004; warmup begins again" in caplog.text
    rows = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert {(row["round"], row["phase"]) for row in rows} == {
        *((0, "warmup"), (0, "joint"), (1, "warmup"), (1, "joint"))
    }
