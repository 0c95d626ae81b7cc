"""`colaworld train`: every recipe end to end, where settings come from, resuming, clear errors."""

from __future__ import annotations

import errno
import json
import logging
import os
import shlex
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from safetensors.torch import load_file

from colaworld.cli import train
from colaworld.cli.train_summary import ending, same_frames
from colaworld.config import ConfigError
from colaworld.data.config import MixtureSource
from colaworld.recipes import recipe
from colaworld.runs.config import read_config
from colaworld.runs.weights import find_backbone_weights
from colaworld.training import checkpoint

WEIGHTS = Path("weights") / "model.safetensors"
TIMES = ("seconds", "save_stall", "speed")  # what differs between equal runs


def rows(run: Path) -> list[dict]:
    lines = (run / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k not in TIMES} for line in lines]


def config(run: Path) -> dict:
    return yaml.safe_load((run / "config.yaml").read_text())


def same_weights(one: Path, other: Path) -> bool:
    return (one / WEIGHTS).read_bytes() == (other / WEIGHTS).read_bytes()


# -- recipes -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def generator(tmp_path_factory, scene, tiny) -> Path:
    """A finished tiny nano.pretrain."""
    out = tmp_path_factory.mktemp("generator") / "run"
    assert train.run(["nano.pretrain", "--data", str(scene), "--out", str(out), *tiny]) == 0
    return out


def test_pretrain_trains_the_generator_alone(generator, colaworld) -> None:
    assert [(r["phase"], r["step"]) for r in rows(generator)] == [("pretrain", 1), ("pretrain", 2)]
    assert all("codebook" not in row and row["loss"] > 0 for row in rows(generator))
    assert {key.split(".")[0] for key in load_file(generator / WEIGHTS)} == {"backbone"}
    for verb in ("evaluate", "sample"):
        said = colaworld(verb, generator)
        assert said.status == 2 and "no latent actions" in said.err


@pytest.mark.parametrize(
    ("recipe", "phases"),
    [
        ("nano.cola", ["warmup", "joint"]),
        ("nano.two_stage", ["lam", "world"]),
        ("nano.naive_joint", ["joint"]),
        ("nano.frozen_world", ["warmup"]),
    ],
)
def test_every_recipe_trains_evaluates_and_samples(
    recipe, phases, generator, scene, tiny, quick, tmp_path, colaworld
) -> None:
    out = tmp_path / "run"
    said = colaworld(
        "train", recipe, f"--data={scene}", "--out", out, *tiny, "--backbone-weights", generator
    )
    assert said.status == 0, said.err
    # max-steps caps each phase, and each step is a row with what others read
    steps = [(row["phase"], row["step"]) for row in rows(out)]
    assert steps == [(phase, step) for phase in phases for step in (1, 2)]
    for row in rows(out):
        assert row["loss"] > 0
        health = row["codebook"]
        assert 0 <= health["entropy_normalised"] <= 1 and 0 < health["utilisation"] <= 1
        assert 1 <= health["perplexity"] <= 8 and 0 < health["max_usage"] <= 1
    assert {p.name for p in out.iterdir()} == {
        "config.yaml",
        "metrics.jsonl",
        "checkpoints",
        "weights",
    }
    # the video model begins as pre-trained, and moves in the phases that train it
    begun, now = load_file(generator / WEIGHTS), load_file(out / WEIGHTS)
    moved = any((now[key] != value).any() for key, value in begun.items())
    assert moved == (phases[-1] != "warmup")
    assert said.out.startswith(f"{recipe}: ") and f"evaluate {out}" in said.out

    assert colaworld("evaluate", out, *quick).status == 0
    result = json.loads((out / "evaluation.json").read_text())
    assert result["probe"]["kind"] == "accuracy" and len(result["rollout"]["psnr_by_horizon"]) == 2
    assert (out / "report.html").read_text().startswith("<!doctype html>")
    assert colaworld("sample", out, "--out", tmp_path / "a.gif", "--steps", 1).status == 0
    assert (tmp_path / "a.gif").read_bytes()[:4] == b"GIF8"


def test_the_shipped_generator_is_the_default(scene, tmp_path, colaworld) -> None:
    """The recipe as it stands but for its length: sizes, weights and defaults fit each other."""
    out = tmp_path / "run"
    short = ["--training.max-steps", 1, "--training.batch-size", 2, "--objective.start-clips", 8]
    said = colaworld("train", "nano.frozen_world", "--data", scene, "--out", out, *short)
    assert said.status == 0 and "nano, as shipped" in said.out
    shipped = load_file(find_backbone_weights("nano"))
    now = load_file(out / WEIGHTS)
    assert all((now[f"backbone.{k}"] == v.float()).all() for k, v in shipped.items())


def test_a_person_reads_what_runs_and_what_comes_next(scene, tiny, tmp_path, colaworld) -> None:
    out = tmp_path / "my run"
    said = colaworld("train", "nano.cola", "--data", scene, "--out", out, *tiny)
    lines = {line[2:14].strip(): line[14:] for line in said.out.splitlines() if line[:2] == "  "}
    assert lines["data"] == f"{scene} (LeRobot v3)"
    assert "36 episodes, 324 clips of 4 frames, 32x32 px (4 held out)" in said.out
    assert lines["video model"] == "random weights"
    assert lines["parameters"].startswith("backbone 53.8 k, idm ")
    assert lines["phases"].startswith(
        "warmup: 2 steps at most, or until its gate opens; trains idm"
    )
    assert "  joint: 2 steps; trains idm, quantizer, conditioner, backbone" in said.out
    assert lines["batch"] == "2 clips a step" and lines["device"].startswith("cpu, 1 thread")
    assert lines["weights"] == str(out / WEIGHTS)
    assert shlex.split(lines["evaluate"]) == ["colaworld", "evaluate", str(out)]
    assert (
        said.out.index("parameters") < said.out.index("warmup step 1") < said.out.index("weights ")
    )


def test_the_header_says_what_was_recorded_and_where_codes_start(
    scene, tiny, tmp_path, colaworld
) -> None:
    late = ["--model.quantizer.unquantized-steps", 3]
    said = colaworld("train", "nano.cola", "--data", scene, "--out", tmp_path / "a", *tiny, *late)
    assert "recorded with camera observation.images.main, 32x32 px, 10 frames/s" in said.out
    assert "codes       start at step 2 of joint: not within warmup, which has none" in said.out
    assert "shortened   warmup.lr_warmup_steps 50 -> 0, " in said.out
    assert "joint.cooldown_steps 300 -> 0" in said.out


def test_behind_a_mixture_the_commands_name_one_set(tmp_path) -> None:
    config = recipe("nano.cola")
    both = {name: MixtureSource(tmp_path / name, weight) for name, weight in (("a", 1), ("b", 2))}
    model = SimpleNamespace(quantizer=SimpleNamespace(continuous=False))
    for mixture, end in (({}, str(tmp_path)), (both, f"{tmp_path} --data b")):
        told = replace(config, data=replace(config.data, mixture=mixture))
        said = ending(told, SimpleNamespace(out=tmp_path, model=model)).splitlines()
        assert [line.split("colaworld ")[-1] for line in said[2:]] == [
            f"evaluate {end}",
            f"sample {end}",
        ]


def test_a_mixture_is_named_again_by_its_sets_or_by_its_file(tmp_path) -> None:
    base = recipe("nano.cola")
    one = {name: MixtureSource(tmp_path / name, weight) for name, weight in (("a", 1), ("b", 2.5))}

    def flags(mixture) -> list[str]:
        return same_frames(replace(base, data=replace(base.data, mixture=mixture)), base)

    assert flags(one) == ["--data", f"a={tmp_path}/a:1", "--data", f"b={tmp_path}/b:2.5"]
    assert flags(one | {"c": MixtureSource(tmp_path / "c", 1, stride=2)}) == [
        "--data",
        "MIXTURE.yaml",
    ]


def test_what_comes_next_fits_the_run(generator, scene, tiny, tmp_path, colaworld) -> None:
    """The command to use a video model trains on the same frames; no codes: nothing to evaluate."""
    config = read_config(generator)
    data = replace(config.data, height=32, width=64, fps=5.0)
    flags = same_frames(replace(config, data=data), recipe("nano.cola"))
    text = " ".join(flags)
    assert text.startswith(f"--data {scene} --data.fps 5.0 --data.height 32 --data.width 64")
    assert "--data.holdout 0.1" in text and "--model.backbone.width 32" in text
    assert "--model.window" not in text  # as in nano.cola anyway
    next_one = train.parse(["nano.cola", *flags, "--backbone-weights", str(generator)]).run
    assert next_one.data == data and next_one.model.backbone == config.model.backbone

    late = ["--model.quantizer.unquantized-steps", 9, "--training.max-steps", 1]
    out = tmp_path / "run"
    said = colaworld("train", "nano.cola", "--data", scene, "--out", out, *tiny, *late)
    assert said.status == 0 and f"evaluate {out}" not in said.out
    assert "no codes    NEVER: this run ends before they start" in said.out


def test_what_does_not_fit_is_refused_unless_told(
    scene, tiny, tmp_path, monkeypatch, colaworld
) -> None:
    monkeypatch.setattr(
        "colaworld.runs.fits.check_memory",
        lambda *_, **__: (_ for _ in ()).throw(ConfigError("no")),
    )
    call = ["train", "nano.frozen_world", "--data", scene, "--out", tmp_path / "run", *tiny]
    said = colaworld(*call)
    assert said.status == 2 and not (tmp_path / "run").exists()
    said = colaworld(*call, "--anyway")
    assert said.status == 0 and "tokens      no" in said.out


# -- where settings come from ----------------------------------------------------------------


def test_command_line_wins_over_file_over_recipe(scene, tiny, tmp_path, colaworld) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("training: {seed: 5, clip_norm: 0.5}\nsampler: {steps: 3}\n")
    second = tmp_path / "second.yaml"
    second.write_text("sampler: {steps: 4}\n")
    out = tmp_path / "run"
    more = ["--config", file, f"--config={second}", "--training.seed", 6]
    assert (
        colaworld("train", "nano.frozen_world", "--data", scene, "--out", out, *tiny, *more).status
        == 0
    )
    saved = config(out)
    assert (saved["training"]["seed"], saved["training"]["clip_norm"]) == (6, 0.5)
    assert saved["sampler"]["steps"] == 4
    assert saved["phases"]["warmup"]["learning_rate"] == 1e-3  # the recipe's


def test_several_sets_are_named_by_a_file_or_one_by_one(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mix.yaml").write_text(
        "mixture: {a: {path: x, weight: 3}, b: {path: y, stride: 2}}"
    )
    of_file = train.parse(
        ["nano.cola", "--data", "mix.yaml", "--data.frames-per-clip", "5"]
    ).run.data
    assert of_file.frames_per_clip == 5 and of_file.path is None
    assert of_file.mixture["a"].path == tmp_path / "x" and of_file.mixture["b"].stride == 2
    each = train.parse(["nano.cola", "--data", "a=x:3", "--data=b=y"]).run.data.mixture
    assert {n: (s.path, s.weight) for n, s in each.items()} == {
        "a": (tmp_path / "x", 3.0),
        "b": (tmp_path / "y", 1.0),
    }
    (tmp_path / "run.yaml").write_text("data: {mixture: {a: {path: x}}}")
    assert (
        train.parse(["nano.cola", "--config", "run.yaml"]).run.data.mixture["a"].path
        == tmp_path / "x"
    )
    one = train.parse(["nano.cola", "--config", "run.yaml", "--data", "z"]).run.data
    assert one.path == tmp_path / "z" and one.mixture == {}


def test_a_shorter_phase_takes_what_is_timed_in_it_along(tmp_path) -> None:
    def parsed(*more: object):
        return train.parse(["nano.cola", "--out", str(tmp_path), *map(str, more)]).run

    assert parsed("--phases.joint.steps", 3).phases["joint"].cooldown_steps == 0
    short = parsed("--training.max-steps", 100, "--phases.joint.cooldown-steps=9")
    assert short.phases["joint"].cooldown_steps == 9
    assert short.model.quantizer.unquantized_steps == 62
    file = tmp_path / "mine.yaml"
    file.write_text("phases: {joint: {steps: 130, cooldown_steps: 100}, warmup: {steps: 200}}\n")
    with_file = parsed("--config", file)
    assert with_file.phases["joint"].cooldown_steps == 100  # the file says so
    assert with_file.model.quantizer.unquantized_steps == 125
    assert parsed("--config", file, "--phases.joint.steps=13").phases["joint"].cooldown_steps == 10
    file.write_text("model: {quantizer: {continuous_steps: 250}}\ntraining: {max_steps: 40}\n")
    assert parsed("--config", file).model.quantizer.unquantized_steps == 250  # by its former name
    reading, writing = os.pipe()  # what `--config <(command)` gives: it can be read once
    os.write(writing, file.read_bytes())
    os.close(writing)
    piped = parsed("--config", f"/dev/fd/{reading}")
    os.close(reading)
    assert piped.model.quantizer.unquantized_steps == 250


def test_a_saved_config_repeats_the_run(trained, tmp_path, colaworld) -> None:
    out = tmp_path / "again"
    assert (
        colaworld("train", "nano.cola", "--config", trained / "config.yaml", "--out", out).status
        == 0
    )
    assert config(out) == config(trained)
    assert rows(out) == rows(trained) and same_weights(out, trained)
    said = colaworld("train", "nano.two_stage", "--config", trained / "config.yaml", "--out", out)
    assert said.status == 2 and "is a configuration of nano.cola, not of nano.two_stage" in said.err


def test_paths_are_saved_whole(scene, tiny, trained, tmp_path, monkeypatch, colaworld) -> None:
    monkeypatch.chdir(scene.parent)
    generator = os.path.relpath(trained)
    arguments = ["--data", scene.name, *tiny, "--backbone-weights", generator]
    assert (
        colaworld("train", "nano.frozen_world", "--out", tmp_path / "run", *arguments).status == 0
    )
    saved = config(tmp_path / "run")
    assert saved["data"]["path"] == str(scene) and saved["backbone_weights"] == str(trained)


def test_generator_none_in_any_case(tmp_path) -> None:
    file = tmp_path / "a.yaml"
    file.write_text("generator: none\n")
    assert train.parse(["nano.cola", "--config", str(file)]).run.backbone_weights is None
    assert train.parse(["nano.cola", "--backbone-weights", "None"]).run.backbone_weights is None
    assert train.parse(["nano.cola"]).run.backbone_weights == "nano"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (
            "training: {bach_size: 3}",
            "unknown key 'training.bach_size'; did you mean 'batch_size'?",
        ),
        ("training: {batch_size: many}", "training.batch_size: expected int, got 'many'"),
        ("training: {batch_size: 0}", "batch_size: expected >= 1, got 0"),
        ("training: [", "not valid YAML"),
        ("[1, 2]", "expected a mapping"),
        ("config_version: 99", "config_version 99"),
        ("schedule: [warmup, jiont]", "jiont"),
    ],
)
def test_a_wrong_file_names_file_and_key(text, says, tmp_path, scene, tiny, colaworld) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(text)
    said = colaworld(
        "train", "nano.cola", "--data", scene, "--out", tmp_path / "run", "--config", file
    )
    assert said.status == 2 and says in said.err and str(file) in said.err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["nano.colaa"], "did you mean 'nano.cola'?"),
        (["nano.cola", "--training.bach-size", "3"], "did you mean --training.batch-size?"),
        (["nano.cola", "--training.batch-size", "0"], "training.batch_size: expected >= 1, got 0"),
        (["nano.cola", "--training.batch-size", "x"], "--training.batch-size"),
        (["nano.cola", "--data"], "--data: expected a value after it"),
        (["nano.cola", "--config"], "--config: expected a value"),
        (["nano.cola", "--config", "absent.yaml"], "absent.yaml: no such file"),
        (["nano.cola", "--out", "x"], "pass its folder as --data PATH"),
        (["nano.cola", "--data", "absent"], "absent: no such folder"),
        (["nano.cola", "--data", "SCENE", "--device", "gpu"], "expected cpu, cuda, cuda:N or auto"),
        (["nano.cola", "--data", "SCENE", "--device", "cuda:99"], "--device cuda:99: this torch"),
        (["nano.cola", "--recipe", "mine"], "--recipe: it says which recipe a run is of"),
        (["nano.cola", "--data", "SCENE", "--backbone-weights", ""], "got '': : no such file"),
        (
            ["nano.cola", "--data", "SCENE", "--backbone-weights", "absent"],
            "got 'absent': absent: no such file or folder",
        ),
        (
            [
                "nano.cola",
                "--data",
                "SCENE",
                "--backbone-weights",
                "None",
                "--model.idm.heads",
                "3",
            ],
            "model.idm.heads: expected a number of heads that leaves each an even share of the "
            "width 64, got 3",
        ),
        (
            ["nano.cola", "--data", "SCENE", "--data.height", "30", "--data.width", "33"],
            "the generator's are 4x4 px (the tokenizer's 2 x model.backbone.patch 2x2), the "
            "IDM's 4x4 px (model.idm.patch); height must be a multiple of 4 and width of 4: set "
            "data.height and data.width, for example --data.height 32 --data.width 32",
        ),
        (["nano.cola", "--data", "SCENE", "--data.frames-per-clip", "1"], "data.frames_per_clip"),
        (["nano.cola", "--data", "SCENE", "--data.frames-per-clip", "13"], "shorter than a clip"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_wrong_calls(arguments, says, scene, tmp_path, monkeypatch, colaworld) -> None:
    monkeypatch.chdir(tmp_path)
    said = colaworld("train", *(str(scene) if a == "SCENE" else a for a in arguments))
    assert said.status == 2
    assert says in said.plain and "Traceback" not in said.plain
    assert list(tmp_path.iterdir()) == []  # nothing was begun


def test_a_generator_that_does_not_fit_names_keys(
    scene, trained, tiny, tmp_path, colaworld
) -> None:
    arguments = ["--data", scene, "--out", tmp_path / "run", *tiny, "--backbone-weights", trained]
    said = colaworld("train", "nano.cola", *arguments, "--model.backbone.depth", 2)
    assert said.status == 2 and "missing spatial_blocks.1." in said.err
    said = colaworld("train", "nano.cola", *arguments, "--model.backbone.width", 64)
    assert "x_embedder.proj.weight: expected [64, 12, 1, 2, 2], got [32, 12, 1, 2, 2]" in said.err
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(b"not weights")
    said = colaworld("train", "nano.cola", *arguments[:-1], broken)
    assert said.status == 2 and "broken.safetensors: not a readable safetensors file" in said.err


# -- resuming ----------------------------------------------------------------------------------


def test_a_used_folder_is_refused_and_names_resume(trained, scene, tiny, colaworld) -> None:
    before = (trained / "metrics.jsonl").read_bytes()
    said = colaworld("train", "nano.cola", "--data", scene, "--out", trained, *tiny)
    assert said.status == 2
    assert f"{trained} already holds a run; add --resume to go on with it" in said.err
    assert (trained / "metrics.jsonl").read_bytes() == before


def test_resume_goes_on_as_if_never_stopped(trained, scene, tiny, tmp_path, colaworld) -> None:
    """One step of each phase, then two; the second call needs nothing but the folder."""
    out, whole = tmp_path / "run", tmp_path / "whole"
    shared = ["--data", scene, *tiny]
    assert colaworld("train", "nano.frozen_world", "--out", whole, *shared).status == 0
    shared += ["--training.max-steps", 1]
    assert colaworld("train", "nano.frozen_world", "--out", out, *shared).status == 0
    assert len(rows(out)) == 1
    said = colaworld(
        "train", "nano.frozen_world", "--resume", f"--out={out}", "--training.max-steps", 2
    )
    assert said.status == 0 and ", from step_0_0000001" in said.out
    assert rows(out) == rows(whole) and same_weights(out, whole)
    said = colaworld(
        "train", "nano.frozen_world", "--resume", "--out", out, "--training.max-steps", 2
    )
    assert said.status == 0 and len(rows(out)) == 2  # finished: nothing more is done


def test_resume_keeps_the_length_the_run_began_with(scene, tiny, tmp_path, colaworld) -> None:
    out = tmp_path / "run"
    call = ["train", "nano.frozen_world", "--out", out]
    assert colaworld(*call, "--data", scene, *tiny).status == 0
    before = config(out)
    said = colaworld(*call, "--resume")
    assert said.status == 0 and len(rows(out)) == 2 and config(out) == before
    said = colaworld(*call, "--resume", "--training.max-steps", 3)
    assert said.status == 0 and len(rows(out)) == 3
    said = colaworld(*call, "--resume", "--training.max-steps=None", "--phases.warmup.steps", 4)
    assert said.status == 0 and len(rows(out)) == 4
    assert config(out)["phases"]["warmup"]["lr_warmup_steps"] == 0  # as scaled when it began


def test_resume_refuses_what_would_be_another_run(trained, colaworld, tmp_path) -> None:
    out = tmp_path / "run"
    shutil.copytree(trained, out)
    said = colaworld("train", "nano.cola", "--out", out, "--resume", "--training.seed", 9)
    assert said.status == 2 and "training.seed: saved 0, given 9" in said.err
    said = colaworld("train", "nano.two_stage", "--out", out, "--resume")
    assert said.status == 2 and "holds a run of nano.cola, not of nano.two_stage" in said.err


def test_resume_needs_no_generator_file(scene, tiny, trained, tmp_path, colaworld) -> None:
    """The checkpoint holds the video model; the file it came from may be gone."""
    weights = tmp_path / "generator.safetensors"
    shutil.copy(trained / WEIGHTS, weights)
    out = tmp_path / "run"
    call = ["train", "nano.frozen_world", "--data", scene, "--out", out, *tiny]
    assert colaworld(*call, "--backbone-weights", weights, "--training.max-steps", 1).status == 0
    weights.unlink()
    said = colaworld(
        "train", "nano.frozen_world", "--out", out, "--resume", "--training.max-steps", 2
    )
    assert said.status == 0 and len(rows(out)) == 2
    begun, now = load_file(trained / WEIGHTS), load_file(out / WEIGHTS)
    assert all((now[k] == v).all() for k, v in begun.items() if k.startswith("backbone."))


def test_resume_of_nothing_begins(scene, tiny, tmp_path, colaworld, caplog) -> None:
    with caplog.at_level(logging.INFO):
        said = colaworld(
            "train",
            "nano.frozen_world",
            "--data",
            scene,
            "--out",
            tmp_path / "a",
            *tiny,
            "--resume",
        )
    assert said.status == 0 and len(rows(tmp_path / "a")) == 2
    assert "starts from the beginning" in caplog.text


# -- a disk that does not take it ---------------------------------------------------------------


def test_a_full_disk_leaves_the_last_checkpoint(
    scene, tiny, tmp_path, monkeypatch, colaworld
) -> None:
    out, whole = tmp_path / "run", tmp_path / "whole"
    call = ["train", "nano.cola", "--data", scene, *tiny, "--training.checkpoint-every", 1]
    assert colaworld(*call, "--out", whole).status == 0
    save, calls = checkpoint.save_file, []

    def full(tensors, path, **more):
        calls.append(path)
        if len(calls) > 7:  # three files a checkpoint: in the middle of the third
            Path(path).write_bytes(b"half")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return save(tensors, path)

    monkeypatch.setattr(checkpoint, "save_file", full)
    said = colaworld(*call, "--out", out)
    assert said.status == 1
    assert "step_1_0000001: cannot be written" in said.err and "No space left on device" in said.err
    assert "make room" in said.err and "Traceback" not in said.err
    last = checkpoint.latest_checkpoint(out / "checkpoints")
    assert last is not None and last.path.name == "step_0_0000002"
    assert not [p for p in (out / "checkpoints").iterdir() if p.name.startswith(".")]
    monkeypatch.undo()
    assert colaworld(*call, "--out", out, "--resume").status == 0
    assert rows(out) == rows(whole) and same_weights(out, whole)


def test_a_folder_that_cannot_be_written(scene, tiny, tmp_path, colaworld) -> None:
    (tmp_path / "file").write_text("")
    for out in (tmp_path / "file", tmp_path / "file" / "run", Path("/proc/colaworld")):
        said = colaworld("train", "nano.cola", "--data", scene, "--out", out, *tiny)
        assert said.status == 1 and "Traceback" not in said.err
        assert f"{out}: cannot be used as a run folder" in said.err and "--out" in said.err


# -- previews -----------------------------------------------------------------------------------


def test_previews_reach_tensorboard_and_change_nothing(
    trained, scene, tiny, tmp_path, colaworld
) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    out = tmp_path / "run"
    shown = ["--training.tensorboard", "--training.sample-every", 1, "--sampler.steps", 2]
    assert colaworld("train", "nano.cola", "--data", scene, "--out", out, *tiny, *shown).status == 0
    assert rows(out) == rows(trained) and same_weights(out, trained)
    events = accumulator.EventAccumulator(str(out / "tensorboard"), {"images": 0})
    events.Reload()
    assert set(events.Tags()["images"]) == {"rollout/warmup", "rollout/joint"}
    image = events.Images("rollout/joint")[0]
    assert (image.height, image.width) == (2 * 32, 4 * 32)  # truth over rollout, four clips
    assert image.encoded_image_string[:4] == b"GIF8"


def test_paths_are_found_again_from_any_folder(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "vae").mkdir()
    given = ["opensora.cola", "--model.tokenizer.path", "vae", "--latents", "latents"]
    config = train.parse(given).run
    assert config.model.tokenizer.path == str(tmp_path / "vae")
    assert config.latents == str(tmp_path / "latents")
    name = train.parse(["opensora.cola"]).run.model.tokenizer.path
    assert name == "hpcai-tech/OpenSora-VAE-v1.2"  # on the hub: nothing of that name is here
