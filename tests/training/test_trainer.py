"""The loop itself: what moves, what is written, when it stops, and that it resumes exactly."""

from __future__ import annotations

import dataclasses
import errno
import json
import logging
import math
import os
import shutil
import signal

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from colaworld.files import seal
from colaworld.training.checkpoint import latest_checkpoint, write_checkpoint
from colaworld.training.config import AlarmConfig, GateConfig
from colaworld.training.phases import Phase
from colaworld.training.protocols import (
    CheckpointError,
    Objective,
    ResumeError,
    RunFolderError,
    UnstableTrainingError,
)
from colaworld.training.run_folder import ENDED


def test_rows_of_a_whole_run(reference):
    steps = [(row["phase"], row["step"]) for row in reference.rows]
    assert steps == [("warmup", n) for n in range(1, 11)] + [("joint", n) for n in range(1, 11)]
    assert [row["global_step"] for row in reference.rows] == list(range(1, 21))
    assert all(math.isfinite(row["loss"]) for row in reference.rows)
    assert [row["lr"] for row in reference.rows[:5]] == [0.0025, 0.005, 0.0075, 0.01, 0.01]
    for row in reference.rows:
        assert {"utilisation", "max_usage", "entropy_normalised", "perplexity"} <= set(
            row["codebook"]
        )
        assert "reseeded" in row["metrics"] and "vq" in row["metrics"]
        assert "indices" not in row["metrics"] and "loss" not in row["metrics"]
    norms = reference.rows[1]["grad_norm"]
    parts = [norms[part] for part in ("idm", "quantizer", "conditioner")]
    assert norms["total"] == pytest.approx(math.hypot(*parts), rel=1e-5)
    assert "backbone" not in norms and "backbone" in reference.rows[11]["grad_norm"]
    assert set(reference.rows[2]["grad_norm"]) == {"total"}  # parts are measured when health is
    assert reference.rows[2]["codebook"] == reference.rows[1]["codebook"]  # carried in between


def test_gate_ended_warmup_and_the_folder_is_complete(toy, tmp_path):
    result = toy.trainer(tmp_path / "run").run()
    assert [(e["phase"], e["steps"], e["reason"]) for e in result.phases] == [
        ("warmup", 10, "gate"),
        ("joint", 10, "steps"),
    ]
    assert (result.status, result.phase, result.step, result.global_step) == (
        "finished",
        "joint",
        10,
        20,
    )
    folder = tmp_path / "run"
    assert sorted(p.name for p in folder.iterdir()) == [
        "checkpoints",
        "config.yaml",
        "metrics.jsonl",
        "weights",
    ]
    assert [p.name for p in sorted((folder / "checkpoints").iterdir())] == [
        "step_1_0000008",
        "step_1_0000010",
    ]
    assert "recipe: toy" in (folder / "config.yaml").read_text()
    about = json.loads((folder / "weights" / "config.json").read_text())
    assert about["averaged"] is True and about["config"]["recipe"] == "toy"
    averaged = load_file(folder / "weights" / "model.safetensors")
    last = load_file(result.checkpoint / "model.safetensors")
    assert set(averaged) == set(last)
    assert not torch.equal(averaged["idm.weight"], last["idm.weight"])
    assert torch.equal(averaged["backbone.1.running_mean"], last["backbone.1.running_mean"])


def test_only_what_a_phase_trains_moves(toy, tmp_path):
    model = toy.ToyModel()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    toy.trainer(tmp_path, model=model, phases=toy.PHASES[:1]).run()
    for name, value in model.state_dict().items():
        moved = not torch.equal(value, before[name])
        assert moved == (not name.startswith("backbone")), name


def test_the_toy_is_an_objective(toy):
    assert isinstance(toy.ToyObjective(toy.ToyModel()), Objective)


def test_accumulation_equals_one_larger_batch(toy, tmp_path):
    """Two half batches give the gradient of the whole one (no noise, no dropout, no codebook)."""

    class Plain(toy.ToyObjective):
        codebook_size = tokens = None

        def loss(self, batch, *, generator):
            x = batch.frames.float().flatten(2).mean(1) / 255
            return self.model.idm(x).square().mean(), {}

        def before_phase(self, batches, *, generator):
            pass

        def after_step(self, *, generator):
            return {}, []

    class Halves(toy.ToyLoader):
        def __next__(self):
            position, half = divmod(self.position, 2)
            whole = toy.ToyLoader(6)
            whole.position = position
            batch = next(whole)
            self.position += 1
            part = slice(3 * half, 3 * half + 3)
            return dataclasses.replace(
                batch,
                frames=batch.frames[part],
                episode=batch.episode[part],
                start=batch.start[part],
            )

    weights = []
    for name, loader, accumulate in (("one", toy.ToyLoader(6), 1), ("two", Halves(), 2)):
        model = toy.ToyModel()
        training = dataclasses.replace(toy.TRAINING, accumulate=accumulate)
        trainer = toy.trainer(
            tmp_path / name,
            model=model,
            loader=loader,
            phases=[Phase("p", "cola", ("idm",), 5, 1e-2, 0)],
            training=training,
        )
        trainer.objectives = {"cola": Plain(model)}
        trainer.run()
        weights.append(model.idm.weight.detach())
        row = json.loads((tmp_path / name / "metrics.jsonl").read_text().splitlines()[0])
        assert "codebook" not in row
    torch.testing.assert_close(weights[0], weights[1], rtol=1e-5, atol=1e-6)


def test_max_steps_caps_each_phase_and_may_grow(toy, tmp_path, read_run):
    short = dataclasses.replace(toy.TRAINING, max_steps=3)
    result = toy.trainer(tmp_path, training=short).run()
    assert [(e["phase"], e["steps"]) for e in result.phases] == [("warmup", 3), ("joint", 3)]
    yaml = "recipe: toy\ntraining: {seed: 3, max_steps: 5}\n"
    longer = dataclasses.replace(toy.TRAINING, max_steps=5)
    result = toy.trainer(tmp_path, training=longer, resume=True, config_yaml=yaml).run()
    assert [(e["phase"], e["steps"]) for e in result.phases] == [("warmup", 3), ("joint", 5)]
    assert [r["step"] for r in read_run(tmp_path).rows] == [1, 2, 3, 1, 2, 3, 4, 5]


def test_a_finished_run_goes_on_with_more_steps(toy, tmp_path, read_run, caplog):
    """Its last phase as if it had been as long all along; old weights are not taken for new ones."""
    short = [dataclasses.replace(phase, steps=3, gate=None) for phase in toy.PHASES]
    longer = [dataclasses.replace(phase, steps=6) for phase in short]
    toy.trainer(tmp_path, phases=short).run()
    there = []

    def hook(batch, loss):
        there.append((tmp_path / "weights").exists())
        return loss

    toy.trainer(tmp_path, phases=longer, resume=True, hook=hook).run()
    assert [r["step"] for r in read_run(tmp_path).rows] == [1, 2, 3, 1, 2, 3, 4, 5, 6]
    assert "phase warmup is over after 3 steps and stays so" in caplog.text
    assert there and not any(there)
    about = json.loads((tmp_path / "weights" / "config.json").read_text())
    assert about["global_step"] == 9
    whole = toy.trainer(tmp_path / "whole", phases=[short[0], longer[1]]).run()
    assert whole.status == "finished"
    assert read_run(tmp_path / "whole").weights == read_run(tmp_path).weights
    assert not [path for path in (tmp_path / "checkpoints").iterdir() if path.name[0] == "."]


def test_a_finished_run_says_so(toy, tmp_path, read_run):
    toy.trainer(tmp_path).run()
    before = read_run(tmp_path)
    result = toy.trainer(tmp_path, resume=True).run()
    assert result.status == "finished" and "nothing to resume" in result.message
    assert read_run(tmp_path) == before


def test_a_folder_with_a_run_is_not_overwritten(toy, tmp_path):
    toy.trainer(tmp_path).run()
    with pytest.raises(ResumeError, match=r"already holds a run.*resume it"):
        toy.trainer(tmp_path).run()
    with pytest.raises(ResumeError, match="recipe: saved 'toy', given 'other'"):
        toy.trainer(tmp_path, resume=True, config_yaml="recipe: other\n").run()


@pytest.mark.usefixtures("heard_hangup")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
@pytest.mark.parametrize("at", [5, 20, 23])  # in warm-up, at its last step, in the joint phase
def test_a_signal_saves_and_the_run_resumes_exactly(
    number, at, toy, tmp_path, reference, read_run, capsys
):
    passes = []

    def hook(batch, loss):
        passes.append(1)
        if len(passes) == at:
            os.kill(os.getpid(), number)
        return loss

    result = toy.trainer(tmp_path, hook=hook, resume_command="colaworld train it --resume").run()
    assert result.status == "interrupted"
    assert result.global_step == (at + 1) // 2  # the step is finished first
    assert result.checkpoint.is_dir()
    assert "colaworld train it --resume" in capsys.readouterr().out
    ended = json.loads((tmp_path / ENDED).read_text())
    assert ended == {
        "status": "interrupted",
        "why": signal.Signals(number).name,
        "global_step": result.global_step,
    }
    result = toy.trainer(tmp_path, resume=True).run()
    assert result.status == "finished" and not (tmp_path / ENDED).exists()
    run = read_run(tmp_path)
    assert run.rows == reference.rows
    assert (run.files, run.weights) == (reference.files, reference.weights)


def test_before_phase_is_not_called_again_on_resume(toy, tmp_path):
    class Dies(Exception):
        pass

    def die_at(passes):
        left = [passes]

        def hook(batch, loss):
            left[0] -= 1
            if left[0] == 0:
                raise Dies
            return loss

        return hook

    first = toy.trainer(tmp_path, hook=die_at(11))  # after the checkpoint of step 4
    with pytest.raises(Dies):
        first.run()
    assert len(first.objectives["cola"].before) == 1
    second = toy.trainer(tmp_path, resume=True)
    second.run()
    assert len(second.objectives["cola"].before) == 1  # the joint phase only


# -- updates that are skipped --------------------------------------------------------------


def poison(values):
    """Hook that multiplies the loss of the n-th forward pass (from 0) by values[n]."""
    count = iter(range(10**6))

    def hook(batch, loss):
        return loss * values.get(next(count), 1.0)

    return hook


def test_a_bad_update_is_skipped_and_named(toy, tmp_path, caplog, read_run):
    model = toy.ToyModel()
    seen = {}

    inner = poison({5: math.nan})

    def hook(batch, loss):
        episode = int(batch.episode[0])
        if episode == 7:  # the next step: what were the weights?
            seen["idm"] = model.idm.weight.detach().clone()
        if episode == 5:
            seen["before"] = model.idm.weight.detach().clone()
        return inner(batch, loss)

    result = toy.trainer(tmp_path, model=model, hook=hook).run()
    assert result.status == "finished"
    rows = read_run(tmp_path).rows
    assert [r["step"] for r in rows if "skipped" in r] == [3]
    assert rows[2]["loss"] is None and "nan" in rows[2]["skipped"]
    clips = rows[2]["skipped_clips"]  # batch 0 went to before_phase: passes 4, 5 are batches 5, 6
    assert clips == [f"{episode}@{start}" for episode in (5, 6) for start in range(6)]
    assert "6@5" in caplog.text and "warmup step 3" in caplog.text
    assert torch.equal(seen["idm"], seen["before"])
    assert all(torch.isfinite(p).all() for p in model.parameters())


def test_a_skipped_update_is_forgotten_before_the_next(toy, tmp_path):
    calls = []

    class Told(toy.ToyObjective):
        def begin_step(self):
            calls.append("begin")

        def loss(self, batch, *, generator):
            calls.append("loss")
            return super().loss(batch, generator=generator)

        def after_step(self, *, generator):
            calls.append("after")
            return super().after_step(generator=generator)

    phase = dataclasses.replace(toy.PHASES[0], steps=3, gate=None)
    trainer = toy.trainer(tmp_path, phases=[phase])
    trainer.objectives = {"cola": Told(trainer.model, hook=poison({3: math.nan}))}
    trainer.run()
    once = ["begin", "loss", "loss"]
    assert calls == [*once, "after", *once, *once, "after"]


def test_moments_of_rows_that_moved_are_zero_after_the_step(toy, tmp_path):
    class Moves(toy.ToyObjective):
        def after_step(self, *, generator):
            return {}, [(self.model.quantizer.codebook, torch.tensor([2, 5]))]

    phase = dataclasses.replace(toy.PHASES[0], steps=2, gate=None)
    trainer = toy.trainer(tmp_path, phases=[phase])
    trainer.objectives = {"cola": Moves(trainer.model)}
    trainer.run()
    moments = latest_checkpoint(tmp_path / "checkpoints").tensors("optimizer")
    for kind in ("exp_avg", "exp_avg_sq"):
        rows = moments[f"quantizer.codebook/{kind}"].abs().sum(1)
        assert not rows[[2, 5]].any() and rows.any()


def test_a_spike_is_skipped(toy, tmp_path, read_run):
    values = {26: 1e4}  # step 14 of the joint-only run
    phases = [dataclasses.replace(toy.PHASES[0], steps=16, gate=None)]
    toy.trainer(tmp_path, hook=poison(values), phases=phases).run()
    skipped = [r for r in read_run(tmp_path).rows if "skipped" in r]
    assert [r["step"] for r in skipped] == [14]
    assert "times its median" in skipped[0]["skipped"] and skipped[0]["loss"] > 100


def test_too_many_skips_stop_with_the_batch_named(toy, tmp_path):
    training = dataclasses.replace(toy.TRAINING, max_consecutive_skips=3)
    values = {n: math.inf for n in range(10, 100)}
    with pytest.raises(UnstableTrainingError, match=r"warmup step 8: .*15@0.*3 updates were"):
        toy.trainer(tmp_path, hook=poison(values), training=training).run()
    # the checkpoint of step 4 is the last; a resumed run meets the same end
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["step_0_0000004"]
    ended = json.loads((tmp_path / ENDED).read_text())
    assert ended["status"] == "failed" and "UnstableTrainingError: " in ended["why"]
    with pytest.raises(UnstableTrainingError, match="warmup step 8"):
        toy.trainer(
            tmp_path,
            hook=poison({n: math.inf for n in range(2, 99)}),
            training=training,
            resume=True,
        ).run()


def test_a_run_whose_last_loss_was_no_number_is_not_finished(toy, tmp_path, read_run):
    phases = [dataclasses.replace(toy.PHASES[0], steps=4, gate=None)]
    result = toy.trainer(tmp_path, hook=poison({7: math.nan}), phases=phases).run()
    assert result.status == "stopped"
    assert "phase warmup diverged: loss or gradient of its last update were not" in result.message
    assert read_run(tmp_path).state["healthy"] is False
    again = toy.trainer(tmp_path, phases=phases, resume=True).run()
    assert (again.status, again.message) == (result.status, result.message)
    assert not (tmp_path / "weights").exists()
    longer = [dataclasses.replace(phases[0], steps=5)]
    assert toy.trainer(tmp_path, phases=longer, resume=True).run().status == "finished"
    assert read_run(tmp_path).state["healthy"] and (tmp_path / "weights").exists()


@pytest.mark.parametrize("spikes", [1, 2])
def test_one_spike_at_the_end_does_not_take_a_run_its_weights(spikes, toy, tmp_path):
    phases = [dataclasses.replace(toy.PHASES[0], steps=15, gate=None)]
    hook = poison({n: 1e6 for n in range(30 - 2 * spikes, 30)})  # two passes a step
    result = toy.trainer(tmp_path, hook=hook, phases=phases).run()
    assert result.status == ("finished" if spikes == 1 else "stopped"), result.message
    assert (tmp_path / "weights").is_dir() == (spikes == 1)
    again = toy.trainer(tmp_path, phases=phases, resume=True).run()
    assert again.status == result.status
    if spikes == 2:
        assert "its last 2 updates were skipped (2 of 15 were)" in result.message


def test_a_phase_that_skipped_half_of_its_updates_ends_the_run(toy, tmp_path):
    warm, joint = (dataclasses.replace(phase, steps=4, gate=None) for phase in toy.PHASES)
    hook = poison({2: math.inf, 4: math.inf})  # steps 2 and 3
    result = toy.trainer(tmp_path, hook=hook, phases=[warm, joint]).run()
    assert (result.status, result.phase) == ("stopped", "warmup")
    assert "2 of its 4 updates were skipped" in result.message


@pytest.mark.parametrize("resumed", [False, True])
def test_skips_in_a_row_are_counted_over_the_end_of_a_phase(resumed, toy, tmp_path):
    training = dataclasses.replace(toy.TRAINING, max_consecutive_skips=3)
    phases = [dataclasses.replace(phase, steps=6, gate=None) for phase in toy.PHASES]
    bad = {n: math.inf for n in range(8, 14)}  # the last two steps, and the first of the next phase

    def trainer(hook, **more):
        return toy.trainer(tmp_path, hook=hook, phases=phases, training=training, **more)

    if resumed:  # between the two phases
        hook = poison(bad)

        def stop(batch, loss):
            if int(batch.episode[0]) == 12:
                os.kill(os.getpid(), signal.SIGTERM)
            return hook(batch, loss)

        assert trainer(stop).run().step == 6
        bad = {0: math.inf}
    with pytest.raises(UnstableTrainingError, match=r"joint step 1: .*3 updates were"):
        trainer(poison(bad), resume=resumed).run()


# -- the collapse alarm --------------------------------------------------------------------


def collapsing(toy, action, **more):
    """Phases whose joint part collapses, by an objective that reports one code only."""
    alarm = AlarmConfig(floor=0.2, checks=2, action=action, **more)
    warm = dataclasses.replace(toy.PHASES[0], steps=8, gate=None)
    return [warm, dataclasses.replace(toy.PHASES[1], steps=20, alarm=alarm)]


def collapse(trainer, phase="joint", rounds=(0,)):
    """Let `trainer`'s objective report code 0 only, in `phase`, in these rounds."""
    objective = trainer.objectives["cola"]
    loss = objective.loss

    def reported(batch, *, generator):
        value, metrics = loss(batch, generator=generator)
        progress = trainer.progress
        if trainer.phases[progress.phase].name == phase and progress.round in rounds:
            metrics["indices"] = torch.zeros_like(metrics["indices"])
        return value, metrics

    objective.loss = reported
    return trainer


def test_alarm_warns(toy, tmp_path, caplog):
    trainer = collapse(toy.trainer(tmp_path, phases=collapsing(toy, "warn")))
    assert trainer.run().status == "finished"
    # the window (36 codes, 12 a step) is full from the check at step 4 on; every second check warns
    warned = [r.getMessage() for r in caplog.records if "collapsing" in r.getMessage()]
    assert [text.split(":")[0] for text in warned] == [f"joint step {n}" for n in (6, 10, 14, 18)]
    # and it does not end as if nothing were wrong
    ends = "phase joint ends with a collapsed codebook: normalised entropy 0.000 is under alarm.floor 0.2"
    assert ends in caplog.text


def test_alarm_stops(toy, tmp_path, read_run):
    result = collapse(toy.trainer(tmp_path, phases=collapsing(toy, "stop"))).run()
    assert (result.status, result.phase, result.step) == ("stopped", "joint", 6)
    assert "collapsed in phase joint" in result.message
    assert result.checkpoint.name == "step_1_0000006"
    assert read_run(tmp_path).state["healthy"] is False
    assert not (tmp_path / "weights").exists()


def test_alarm_rolls_back_and_warms_up_again(toy, tmp_path, read_run, caplog):
    caplog.set_level(logging.WARNING)
    trainer = collapse(toy.trainer(tmp_path, phases=collapsing(toy, "rollback")))
    result = trainer.run()
    assert result.status == "finished"
    assert [(e["phase"], e["steps"]) for e in result.phases] == [
        ("warmup", 8),
        ("warmup", 8),
        ("joint", 20),
    ]
    assert "rolled back to step_0_0000008; warmup begins again" in caplog.text
    rows = read_run(tmp_path).rows
    assert [r["global_step"] for r in rows] == list(range(1, 8 + 6 + 8 + 20 + 1))
    assert [r["round"] for r in rows] == [0] * 14 + [1] * 28
    # warm-up had begun in the healthy checkpoint, the joint phase had not
    assert len(trainer.objectives["cola"].before) == 3
    assert result.checkpoint.name == "step_1_0000020_round1"


def test_rollback_restores_the_healthy_weights(toy, tmp_path):
    trainer = collapse(toy.trainer(tmp_path, phases=collapsing(toy, "rollback")))
    seen = []
    begin = trainer._begin

    def spy(phase, objective):
        seen.append({k: v.clone() for k, v in trainer.model.state_dict().items()})
        return begin(phase, objective)

    trainer._begin = spy
    keep = dataclasses.replace(toy.TRAINING, keep_checkpoints=99)
    trainer.training = keep
    trainer.run()
    healthy = load_file(tmp_path / "checkpoints" / "step_0_0000008" / "model.safetensors")
    for name, value in healthy.items():
        assert torch.equal(seen[2][name], value), name


def test_rollbacks_end(toy, tmp_path):
    trainer = toy.trainer(tmp_path, phases=collapsing(toy, "rollback", max_rollbacks=1))
    result = collapse(trainer, rounds=(0, 1)).run()
    assert (result.status, result.phase, result.step) == ("stopped", "joint", 6)
    assert "after 1 rollback" in result.message


def test_a_rolled_back_run_resumes_exactly(toy, tmp_path, read_run):
    phases = collapsing(toy, "rollback")
    collapse(toy.trainer(tmp_path / "one", phases=phases)).run()

    class Dies(Exception):
        pass

    out = tmp_path / "two"
    for passes in (2 * 11 + 1, 2 * 6 + 1, 2 * 5 + 1, 2 * 12 + 1):
        left = [passes]

        def hook(batch, loss, left=left):
            left[0] -= 1
            if left[0] == 0:
                raise Dies
            return loss

        with pytest.raises(Dies):
            collapse(toy.trainer(out, phases=phases, hook=hook, resume=True)).run()
    collapse(toy.trainer(out, phases=phases, resume=True)).run()
    one, two = read_run(tmp_path / "one"), read_run(out)
    assert one.rows == two.rows
    assert (one.files, one.state, one.weights) == (two.files, two.state, two.weights)


# -- folders that cannot be written ---------------------------------------------------------


def test_full_disk_while_saving(toy, tmp_path, monkeypatch):
    from colaworld.training import checkpoint

    real, calls = checkpoint.save_file, []

    def full(tensors, path, **more):
        calls.append(path)
        if "0000008" in str(path) and path.name == "optimizer.safetensors":
            path.write_bytes(b"half of it")
            raise OSError(errno.ENOSPC, "No space left on device")
        real(tensors, path)

    monkeypatch.setattr(checkpoint, "save_file", full)
    with pytest.raises(CheckpointError, match=r"step_0_0000008: .*needs 0\.0 MB.*No space left"):
        toy.trainer(tmp_path).run()
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["step_0_0000004"]


def test_a_run_after_a_full_disk_resumes_exactly(toy, tmp_path, monkeypatch, reference, read_run):
    from colaworld.training import checkpoint

    def full(tensors, path, **more):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save_file", full)
        with pytest.raises(CheckpointError):
            toy.trainer(tmp_path).run()
    toy.trainer(tmp_path, resume=True).run()
    assert read_run(tmp_path).rows == reference.rows


def test_a_run_folder_that_cannot_be_made(toy, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunFolderError, match="file/run: cannot be used as a run folder"):
        toy.trainer(tmp_path / "file" / "run").run()


def test_a_damaged_last_checkpoint_falls_back(toy, tmp_path, reference, read_run, caplog):
    toy.trainer(tmp_path).run()
    last = sorted((tmp_path / "checkpoints").iterdir())[-1]
    data = bytearray((last / "model.safetensors").read_bytes())
    data[-1] ^= 255
    (last / "model.safetensors").write_bytes(data)
    toy.trainer(tmp_path, resume=True).run()
    assert "sha256" in caplog.text
    assert read_run(tmp_path).rows == reference.rows
    assert read_run(tmp_path).weights == reference.weights


@pytest.mark.parametrize("resume", [True, False])
@pytest.mark.parametrize("harm", ["all damaged", "folder gone", "emptied"])
def test_a_run_without_a_readable_checkpoint_does_not_begin_again(toy, tmp_path, resume, harm):
    run = tmp_path / "run"
    yaml = "training: {checkpoint_every: 4}\n"
    toy.trainer(run, config_yaml=yaml).run()
    rows = (run / "metrics.jsonl").read_bytes()
    for path in (run / "checkpoints").iterdir():
        if harm == "all damaged":
            (path / "model.safetensors").write_bytes(b"")
        else:
            shutil.rmtree(path)
    if harm == "folder gone":
        (run / "checkpoints").rmdir()
    for _ in range(2):  # asked twice, it says the same
        with pytest.raises(
            ResumeError, match=r"20 rows in metrics\.jsonl.*(damaged|gone|read).*out"
        ):
            toy.trainer(run, config_yaml=yaml, resume=resume).run()
    assert (run / "metrics.jsonl").read_bytes() == rows and (run / "weights").is_dir()


@pytest.mark.parametrize(
    ("kept", "background", "lost"),
    [(4, True, False), (5, True, False), (8, True, False), (9, True, True), (5, False, True)],
)
def test_killed_before_its_first_checkpoint_was_whole_a_run_begins_anew(
    toy, tmp_path, kept, background, lost
):
    """The checkpoint of step 4 is whole by the time that the one of step 8 begins; only then."""
    yaml = f"training: {{checkpoint_every: 4, async_checkpoint: {str(background).lower()}}}\n"
    toy.trainer(tmp_path, config_yaml=yaml).run()
    for path in (*(tmp_path / "checkpoints").iterdir(), tmp_path / "weights"):
        shutil.rmtree(path)
    rows = (tmp_path / "metrics.jsonl").read_bytes().splitlines(keepends=True)
    (tmp_path / "metrics.jsonl").write_bytes(b"".join(rows[:kept]))
    again = toy.trainer(tmp_path, config_yaml=yaml, resume=True)
    if lost:
        with pytest.raises(ResumeError, match=f"{kept} rows .* its checkpoints are gone"):
            again.run()
        return
    assert again.run().status == "finished"
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == len(rows)


@pytest.mark.parametrize("resume", [True, False])
def test_weights_of_which_nothing_else_is_left_are_not_trained_over(toy, tmp_path, resume):
    toy.trainer(tmp_path).run()
    shutil.rmtree(tmp_path / "checkpoints")
    (tmp_path / "metrics.jsonl").unlink()
    with pytest.raises(ResumeError, match=r"weights/.*its checkpoints are gone.*choose another"):
        toy.trainer(tmp_path, resume=resume).run()
    assert (tmp_path / "weights" / "model.safetensors").is_file()


@pytest.mark.parametrize("what", ["run", "metrics.jsonl", "config.yaml"])
def test_what_is_taken_from_a_running_training_is_missed(toy, tmp_path, what):
    run, calls = tmp_path / "run", []

    def hook(batch, loss):
        calls.append(batch)
        if len(calls) == 10:  # two passes a step: behind the checkpoint of step 4
            (run if what == "run" else run / what).rename(tmp_path / "taken")
        return loss

    said = "is not the folder that" if what == "run" else f"{what}: was taken away from"
    with pytest.raises(RunFolderError, match=said):
        toy.trainer(run, hook=hook).run()
    assert not (run / "weights").exists()
    if what == "run":
        assert not run.exists()
        return
    assert (run / "checkpoints" / "step_0_0000008").is_dir()  # what was trained is not lost with it
    (tmp_path / "taken").rename(run / what)
    assert toy.trainer(run, resume=True).run().status == "finished"
    assert len((run / "metrics.jsonl").read_text().splitlines()) == 20


def test_a_state_that_does_not_fit_is_said_and_not_a_traceback(toy, tmp_path):
    toy.trainer(tmp_path, training=dataclasses.replace(toy.TRAINING, max_steps=6)).run()
    file = sorted((tmp_path / "checkpoints").iterdir())[-1] / "state.json"
    state = json.loads(file.read_text())
    del state["sha256"]  # as an earlier release wrote it
    for change in ({"guard": {}}, {"health": {"a": 1}}, {"loader": {}}):
        file.write_text(json.dumps({**state, **change}))
        with pytest.raises(
            CheckpointError, match=r"state\.json does not fit.*the checkpoint before"
        ):
            toy.trainer(tmp_path, resume=True).run()
    file.write_text(json.dumps({**state, "progress": {**state["progress"], "phase": 7}}))
    with pytest.raises(CheckpointError, match=r"state\.json does not fit"):
        toy.trainer(tmp_path, resume=True).run()
    file.write_text(json.dumps(seal({k: v for k, v in state.items() if k != "config"})))
    with pytest.raises(CheckpointError, match=r"state\.json does not fit.*'config'"):
        toy.trainer(tmp_path, resume=True).run()


@pytest.mark.parametrize(
    ("name", "key", "change"),
    [
        ("optimizer", "idm.weight/exp_avg", lambda value: value[:1]),
        ("optimizer", "idm.weight/exp_avg_sq", lambda value: value.double()),
        ("optimizer", "idm.weight/step", lambda value: value.long()),
        ("optimizer", "idm.weight/step", None),
        ("ema", "idm.weight", lambda value: value[:1]),
        ("ema", "idm.weight", None),
        ("rng", "cpu", lambda value: value[:9]),
        ("rng", "cpu", lambda value: value.long()),
        ("rng", "cpu", None),
    ],
)
def test_tensors_that_do_not_fit_are_said(toy, tmp_path, name, key, change):
    """Also those whose sums are right."""
    toy.trainer(tmp_path, training=dataclasses.replace(toy.TRAINING, max_steps=2)).run()
    last = latest_checkpoint(tmp_path / "checkpoints")
    tensors = {kind: last.tensors(kind) for kind in ("model", "optimizer", "ema", "rng")}
    value = tensors[name].pop(key)
    tensors[name] |= {} if change is None else {key: change(value)}
    state = {k: v for k, v in last.state.items() if k not in ("files", "sha256")}
    write_checkpoint(last.path, tensors, state)
    longer = dataclasses.replace(toy.TRAINING, max_steps=3)
    with pytest.raises(CheckpointError, match=rf"{name}\.safetensors.*{key.partition('/')[0]}"):
        toy.trainer(tmp_path, training=longer, resume=True).run()


# -- mistakes of the caller -------------------------------------------------------------------


def test_a_loss_without_gradient_is_explained(toy, tmp_path):
    with pytest.raises(ValueError, match="does not depend on what trains"):
        toy.trainer(tmp_path, hook=lambda batch, loss: loss.detach()).run()


def test_a_loader_that_ends_is_explained(toy, tmp_path):
    class Short(toy.ToyLoader):
        def __next__(self):
            if self.position == 4:
                raise StopIteration
            return super().__next__()

    with pytest.raises(ValueError, match="no more batches"):
        toy.trainer(tmp_path, loader=Short()).run()


# -- extras -------------------------------------------------------------------------------------


def test_randomness_is_paired_between_runs(toy, tmp_path):
    """Equal seeds draw equal noise at equal steps, whatever was drawn before."""
    drawn = {}

    class Listens(toy.ToyObjective):
        def loss(self, batch, *, generator):
            state = generator.get_state()
            drawn[self.name].append(torch.randn(2, generator=generator).tolist())
            generator.set_state(state)
            return super().loss(batch, generator=generator)

    for name, steps in (("one", 3), ("two", 5)):
        drawn[name] = []
        warm = dataclasses.replace(toy.PHASES[0], steps=steps, gate=None)
        trainer = toy.trainer(tmp_path / name, phases=[warm, toy.PHASES[1]])
        trainer.objectives = {"cola": Listens(trainer.model)}
        trainer.objectives["cola"].name = name
        trainer.run()
    assert drawn["one"][:6] == drawn["two"][:6]  # three steps of two passes of warm-up
    assert drawn["one"][6:] == drawn["two"][10:]  # all of the joint phase
    assert len({tuple(d) for d in drawn["two"]}) == len(drawn["two"])


def test_previews_and_tensorboard_do_not_change_the_run(toy, tmp_path, reference, read_run):
    pytest.importorskip("tensorboard", reason="needs the tensorboard package")
    called = []

    def preview(step, phase):
        called.append((phase, step))
        trainer.model.eval()
        torch.rand(3)
        return np.zeros((1, 2, 4, 4, 3), np.uint8)

    training = dataclasses.replace(toy.TRAINING, tensorboard=True, sample_every=5)
    trainer = toy.trainer(tmp_path, training=training, preview=preview)
    trainer.run()
    assert called == [("warmup", 5), ("warmup", 10), ("joint", 5), ("joint", 10)]
    assert read_run(tmp_path).rows == reference.rows
    assert any((tmp_path / "tensorboard").iterdir())


def test_without_tensorboard_a_warning_is_enough(toy, tmp_path, monkeypatch, caplog):
    import sys

    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    training = dataclasses.replace(toy.TRAINING, tensorboard=True, max_steps=1)
    assert toy.trainer(tmp_path, training=training).run().status == "finished"
    assert "colaworld[tensorboard]" in caplog.text


def test_bf16_when_asked(toy, tmp_path):
    seen = []

    class Looks(toy.ToyObjective):
        def loss(self, batch, *, generator):
            seen.append(self.model.idm(torch.rand(1, 12)).dtype)
            return super().loss(batch, generator=generator)

    for choice in ("auto", "bf16"):
        training = dataclasses.replace(toy.TRAINING, autocast=choice, max_steps=1, accumulate=1)
        trainer = toy.trainer(tmp_path / choice, training=training)
        trainer.objectives = {"cola": Looks(trainer.model)}
        trainer.run()
    assert seen == [torch.float32, torch.float32, torch.bfloat16, torch.bfloat16]


def test_compile_reaches_the_parts(toy, tmp_path, monkeypatch):
    compiled = []
    monkeypatch.setattr(
        torch.nn.Module, "compile", lambda self, **options: compiled.append((type(self), options))
    )
    training = dataclasses.replace(toy.TRAINING, compile=True, max_steps=1)
    toy.trainer(tmp_path / "children", training=training).run()
    assert len(compiled) == 4 and all(options == {"fullgraph": True} for _, options in compiled)
    model = toy.ToyModel()
    model.compile_parts = lambda: compiled.append("own")
    toy.trainer(tmp_path / "own", training=training, model=model).run()
    assert compiled[4:] == ["own"]


@pytest.mark.slow
def test_a_compiled_run_learns_the_same(toy, tmp_path, read_run):
    class Part(torch.nn.Linear):  # torch does not compile a bare Linear as a whole graph
        def forward(self, x):
            return torch.tanh(x @ self.weight.t() + self.bias)

    class Called(toy.ToyObjective):
        """Goes through the parts' forward, which is what is compiled; no noise, no dropout."""

        def loss(self, batch, *, generator):
            x = batch.frames.float().flatten(2).mean(1) / 255
            z = self.model.idm(x)
            q, _, vq = self.model.quantizer(z)
            self.z = z.detach()
            return (self.model.backbone[0](q @ torch.ones(4, 8)) - x).square().mean() + vq, {}

    rows = {}
    for choice in (False, True):
        training = dataclasses.replace(toy.TRAINING, compile=choice, max_steps=3)
        model = toy.ToyModel()
        part = Part(12, toy.WIDTH)
        part.load_state_dict(model.idm.state_dict())
        model.idm = part
        trainer = toy.trainer(tmp_path / str(choice), model=model, training=training)
        trainer.objectives = {"cola": Called(trainer.model)}
        trainer.run()
        rows[choice] = [row["loss"] for row in read_run(tmp_path / str(choice)).rows]
    assert rows[True] == pytest.approx(rows[False], rel=1e-4)


def _collapsing(toy, missed):
    """A warm-up whose gate never opens and which counts as collapsed when it ends."""
    gate = GateConfig(entropy=1.0, window=4, min_steps=9, floor=1.0, missed=missed)
    warmup, joint = toy.PHASES
    return dataclasses.replace(warmup, gate=gate), dataclasses.replace(joint, steps=4)


def test_a_collapsed_warmup_stops_the_run_until_it_is_told_to_go_on(toy, tmp_path):
    for _ in range(2):  # resuming changes nothing by itself
        result = toy.trainer(tmp_path, phases=_collapsing(toy, "stop"), resume=True).run()
        assert (result.status, result.phase, result.step) == ("stopped", "warmup", 14)
        assert "is under gate.floor 1" in result.message and "missed reseed" in result.message
        ended = json.loads((tmp_path / ENDED).read_text())
        assert ended["status"] == "stopped" and ended["why"] in result.message
        assert not (tmp_path / "weights").exists()
    result = toy.trainer(tmp_path, phases=_collapsing(toy, "go_on"), resume=True).run()
    assert (result.status, result.phase, result.step) == ("finished", "joint", 4)


def test_a_collapse_within_a_look_at_few_steps_only_warns(toy, tmp_path, caplog):
    training = dataclasses.replace(toy.TRAINING, max_steps=14, health_window=6)
    phases = _collapsing(toy, "stop")
    assert toy.trainer(tmp_path, phases=phases, training=training).run().status == "finished"
    assert "phase warmup ends with a collapsed codebook" in caplog.text


def test_a_collapsed_warmup_can_be_trained_longer(toy, tmp_path):
    toy.trainer(tmp_path, phases=_collapsing(toy, "stop")).run()
    warmup, joint = _collapsing(toy, "stop")
    longer = dataclasses.replace(warmup, steps=18)
    result = toy.trainer(tmp_path, phases=(longer, joint), resume=True).run()
    assert (result.status, result.phase, result.step) == ("stopped", "warmup", 18)


def test_a_collapsed_codebook_can_start_anew(toy, tmp_path):
    class Restarts(toy.ToyModel):
        restarts = 0

        def __init__(self):
            super().__init__()
            self.quantizer.restart = self.count

        def count(self):
            self.restarts += 1

    model = Restarts()
    trainer = toy.trainer(tmp_path, model=model, phases=_collapsing(toy, "reseed"))
    assert trainer.run().status == "finished"
    assert model.restarts == 1
    seen = []
    healthy = toy.trainer(tmp_path / "healthy", phases=toy.PHASES, control=lambda: seen.append(1))
    assert healthy.run().status == "finished" and not seen  # control_every is 0


def test_control_is_measured_when_due_and_kept_by_the_gate(toy, tmp_path):
    training = dataclasses.replace(toy.TRAINING, control_every=6)
    gate = dataclasses.replace(toy.GATE, control=0.5)
    phases = (dataclasses.replace(toy.PHASES[0], gate=gate),)
    values = iter((0.1, 0.2, 0.6, 0.7, 0.8))
    run = toy.trainer(
        tmp_path,
        phases=phases,
        training=training,
        control=lambda: {"inferred": 1.0, "control": next(values)},
    )
    result = run.run()
    assert [(e["steps"], e["reason"]) for e in result.phases] == [(12, "gate")]
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    measured = {row["step"]: row["control"]["control"] for row in rows if "control" in row}
    assert measured == {1: pytest.approx(0.1), 6: pytest.approx(0.2), 12: pytest.approx(0.6)}


def test_looks_change_no_loss_and_a_phase_without_a_world_has_the_probe_alone(toy, tmp_path):
    lam = dataclasses.replace(toy.PHASES[0], train=("idm", "quantizer"), gate=None, steps=5)
    frozen = dataclasses.replace(toy.PHASES[1], name="world", train=("backbone",), steps=4)
    phases = (lam, toy.PHASES[1], frozen)
    training = dataclasses.replace(toy.TRAINING, control_every=3)
    looks = {"control": lambda: {"control": 0.5}, "probe": lambda: {"score": 0.25, "chance": 0.0}}

    def rows(name, **more):
        out = tmp_path / name
        trainer = toy.trainer(out, phases=phases, **more)
        assert trainer.run().status == "finished"
        return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]

    plain, looked = rows("plain"), rows("looked", training=training, **looks)
    assert [row["loss"] for row in looked] == [row["loss"] for row in plain]
    at = {name: [(r["phase"], r["step"]) for r in looked if name in r] for name in looks}
    assert at["control"] == [("joint", step) for step in (1, 3, 6, 9, 10)]
    assert at["probe"] == [*(("warmup", step) for step in (1, 3, 5)), *at["control"]]
    assert looked[0]["probe"] == {"score": 0.25, "chance": 0.0}


def test_after_a_rollback_a_collapsed_codebook_starts_anew_in_a_phase_that_had_begun(toy, tmp_path):
    alarm = AlarmConfig(floor=0.2, checks=2, action="rollback")
    gate = GateConfig(entropy=1.0, window=4, min_steps=9, floor=1.0, missed="reseed")
    warmup = dataclasses.replace(toy.PHASES[0], steps=8, gate=gate)
    joint = dataclasses.replace(toy.PHASES[1], steps=20, alarm=alarm)
    trainer = toy.trainer(tmp_path, phases=(warmup, joint))
    trainer.model.quantizer.restart = lambda: restarts.append(trainer.progress.round)
    restarts = []
    objective = trainer.objectives["cola"]
    loss = objective.loss

    def reported(batch, *, generator):  # one code from step 9 on: behind the checkpoint of step 8
        value, metrics = loss(batch, generator=generator)
        progress = trainer.progress
        if progress.phase and not progress.round and progress.step >= 8:
            metrics["indices"] = torch.zeros_like(metrics["indices"])
        return value, metrics

    objective.loss = reported
    assert trainer.run().status == "finished"
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert {row["round"] for row in rows} == {0, 1}
    assert restarts == [0, 1]
    # warm-up once, the joint phase as it began, and again: the healthy checkpoint was within it
    assert len(objective.before) == 3


def test_the_last_phase_keeps_its_codebook(toy, tmp_path):
    trainer = toy.trainer(tmp_path, phases=_collapsing(toy, "reseed")[:1])
    trainer.model.quantizer.restart = None  # not called
    assert trainer.run().status == "finished"


def test_a_rollback_goes_behind_codes_that_mean_nothing(toy, tmp_path, caplog):
    """Entropy is high all along; control is lost at step 5 of the joint phase, and step 8 is saved."""
    caplog.set_level(logging.WARNING)
    alarm = AlarmConfig(floor=0.0, checks=3, control_floor=0.5, action="rollback")
    warmup = dataclasses.replace(toy.PHASES[0], steps=8, gate=None)
    joint = dataclasses.replace(toy.PHASES[1], steps=20, alarm=alarm)
    training = dataclasses.replace(toy.TRAINING, control_every=1, keep_checkpoints=9)

    def control():
        progress = trainer.progress
        lost = progress.phase and not progress.round and progress.step >= 5
        return {"control": 0.1 if lost else 0.9}

    trainer = toy.trainer(tmp_path, phases=(warmup, joint), training=training, control=control)
    assert trainer.run().status == "finished"
    assert "rolled back to step_1_0000004; warmup begins again" in caplog.text
