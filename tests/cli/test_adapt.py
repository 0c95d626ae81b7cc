"""colaworld adapt: from a run and a robot's data to a world that obeys its actions."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from colaworld.cli.actions_file import read_actions
from colaworld.contracts import ActionSpec
from colaworld.runs.adaptation_table import told
from colaworld.runs.config import read_config
from colaworld.runs.load import load_world
from colaworld.runs.pretrained import from_pretrained

SHORT = ["--steps", "2", "--adapter-steps", "2", "--evaluation.clips", "4"]
SHORT += [
    "--evaluation.horizon",
    "2",
    "--evaluation.bootstrap-samples",
    "20",
    "--sampler.steps",
    "1",
]


@pytest.fixture(scope="module")
def adapted(tmp_path_factory, trained, scene) -> Path:
    """A tiny run adapted to the scene's moves. Do not write into it."""
    from colaworld.cli.main import main

    out = tmp_path_factory.mktemp("adapted") / "run"
    call = ["adapt", trained, "--data", scene, "--labels", 100, "--out", out, *SHORT]
    assert main([str(a) for a in call]) == 0
    return out


def test_it_ends_with_the_table_and_its_numbers(adapted, trained) -> None:
    result = json.loads((adapted / "adaptation.json").read_text())
    # Nine episodes of 11 transitions; the one that is left holds no clip.
    assert result["counts"]["labels"] == 99 and result["counts"]["clips"] == 4
    for state in ("before", "after"):
        for way in ("real", "inferred"):
            of = result[state][way]
            assert of["psnr"]["mean"] == pytest.approx(np.mean(of["per_clip"]["psnr"]))
            assert of["lpips"] is None and of["fvd"] is None
    gain = result["after"]["real"]["psnr"]["mean"] - result["before"]["real"]["psnr"]["mean"]
    assert result["gain"]["psnr"]["mean"] == pytest.approx(gain)
    assert result["codebook"].keys() == {"adapter", "adapted"}
    config = read_config(adapted)
    assert config.recipe == "adapt" and config.schedule == ("adapter", "adapted")
    assert config.data.labels == 100 and config.action_contract.names[1] == "left"
    assert config.action_contract.normaliser.count == 480  # of the whole set, 40 episodes of 12
    assert config.phases["adapter"].init_from == str(trained.resolve())
    assert config.model.parts["adapter"].kind == "table"


def test_the_adapter_alone_leaves_the_world_as_it_was(trained, scene, colaworld, tmp_path) -> None:
    out = tmp_path / "run"
    call = ["adapt", trained, "--data", scene, "--labels", 100, "--out", out, *SHORT]
    done = colaworld(*call, "--steps", 0)
    assert done.status == 0 and "fine-tuning" not in done.out and "fine-tuned" not in done.out
    result = json.loads((out / "adaptation.json").read_text())
    assert "after" not in result and "gain" not in result
    assert result["codebook"].keys() == {"adapter"}
    (before, _), (after, config) = load_world(trained), load_world(out)
    assert config.schedule == ("adapter",) and after.obeys
    for part in ("idm", "conditioner", "backbone"):
        pairs = zip(
            getattr(before.model, part).parameters(),
            getattr(after.model, part).parameters(),
            strict=True,
        )
        assert all(torch.equal(a, b) for a, b in pairs), part


def test_how_few_labels_it_learned_from_limits_no_other_verb(
    adapted, scene, colaworld, tmp_path
) -> None:
    # The run's data.labels are 100: nine episodes of the scene, and more than three others hold.
    other, out = tmp_path / "other", tmp_path / "out"
    assert colaworld("record", "scene", "--out", other, "--episodes", 3, "--steps", 12).status == 0
    said = colaworld("label", adapted, "--data", scene, "--episodes", 12, "--out", out)
    assert said.status == 0 and "12 episodes" in said.out and "132 of them" in said.out
    said = colaworld("label", adapted, "--data", other, "--out", tmp_path / "others", "--real")
    assert said.status == 0 and "3 episodes" in said.out, said
    page = ("--out", tmp_path / "atlas.html", "--steps", 0)
    said = colaworld("atlas", adapted, "--data", other, *page)
    assert said.status == 0 and "of 3 episodes" in said.out, said
    few = ("--evaluation.probe-clips", 9, "--evaluation.bootstrap-samples", 20)
    said = colaworld("probe", adapted, "--data", other, "--data.split", "all", *few)
    assert said.status == 0 and "clips of 3 episodes" in said.out, said
    many = tmp_path / "many"
    assert colaworld("record", "scene", "--out", many, "--episodes", 8, "--steps", 12).status == 0
    short = ("--episodes", 1, "--mpc.steps", 1, "--cloning.steps", 1, "--out", tmp_path / "plan")
    call = ("plan", "scene", "--run", adapted, "--data", many, "--rows", "cloning", *short)
    said = colaworld(*call, "--space", "real")
    assert said.status == 0 and "cloning" in said.out, said


def test_a_fine_tuning_that_loses_says_what_to_do_instead() -> None:
    result = {"codebook": {}, "head": {"accuracy": 0.5, "chance": 0.2, "recall": [0.5, 0.5]}}
    for high, says in ((-0.1, True), (0.1, False)):
        lines = told(result | {"gain": {"psnr": {"mean": -1.0, "low": -2.0, "high": high}}})
        assert any("--steps 0" in line for line in lines) is says


def test_errors_of_the_way_back_are_told_by_channel() -> None:
    result = {"codebook": {}, "head": {"mae": [1.0, 2.0], "std": [3.0, 4.0]}}
    (line,) = told(result, names=("x", "grip"))
    assert line.endswith("latent to real: mean error (standard deviation) x 1 (3), grip 2 (4)")


def test_the_latent_action_model_stays_and_the_rest_moves(adapted, trained) -> None:
    before, after = (load_world(folder)[0].model for folder in (trained, adapted))
    for part, stays in (("idm", True), ("quantizer", True), ("backbone", False)):
        pairs = zip(
            getattr(before, part).parameters(), getattr(after, part).parameters(), strict=True
        )
        assert all(torch.equal(a, b) for a, b in pairs) is stays, part


def test_the_world_follows_real_actions_also_from_an_export(adapted, colaworld, tmp_path) -> None:
    out = tmp_path / "exported"
    assert colaworld("export", adapted, "--out", out).status == 0
    frames = torch.rand(1, 1, 3, 32, 32)
    videos = []
    for world in (load_world(adapted)[0], from_pretrained(out)):
        generator = torch.Generator().manual_seed(0)
        made = world.follow(frames, torch.tensor([[1, 3]]), generator=generator)
        codes = world.encode_actions(torch.tensor([[1, 3]])).codes
        generator = torch.Generator().manual_seed(0)
        assert torch.equal(world.rollout(frames, codes, generator=generator).frames, made.frames)
        assert world.decode_actions(codes).shape == (1, 2)
        assert world.actions.names == ("noop", "left", "right", "up", "down")
        videos.append(made.frames)
    assert torch.equal(*videos)
    for wrong, message in (
        (torch.tensor([[5]]), r"classes 0 \.\. 4 \(noop, left, .*got 5"),
        (torch.rand(1, 2), r"expected classes 0 \.\. 4"),
        (torch.tensor([1]), r"integers \[B, T - 1\], got int64 \[1\]"),
    ):
        with pytest.raises(ValueError, match=message):
            world.encode_actions(wrong)


def test_evaluate_rolls_out_under_real_actions_too(adapted, quick, colaworld, tmp_path) -> None:
    run = shutil.copytree(adapted, tmp_path / "run")
    said = colaworld("evaluate", run, *quick)
    assert said.status == 0 and "PSNR under real actions" in said.out
    found = json.loads((run / "evaluation.json").read_text())["real_actions"]
    assert set(found["over"]) == {"inferred", "none"}


def test_sample_takes_names_and_files(adapted, colaworld, tmp_path) -> None:
    file = tmp_path / "moves.csv"
    file.write_text("action\nleft\n3\n")
    pictures = []
    for given in ("left,up", file):
        out = tmp_path / f"{len(pictures)}.png"
        said = colaworld("sample", adapted, "--actions", given, "--out", out, "--scale", 1)
        assert said.status == 0 and "3 frames under 2 real actions of noop, left" in said.out
        pictures.append(out.read_bytes())
    assert pictures[0] == pictures[1]
    said = colaworld("sample", adapted, "--actions", "jump", "--out", tmp_path / "x.png")
    assert said.status == 2 and "expected one of 5 classes: noop, left, right, up, down" in said.err


def test_an_unadapted_run_knows_no_real_actions(trained, colaworld, tmp_path) -> None:
    said = colaworld("sample", trained, "--actions", "left", "--out", tmp_path / "x.png")
    assert said.status == 2 and "this run knows no real actions: colaworld adapt" in said.err
    world = load_world(trained)[0]
    with pytest.raises(ValueError, match=r"encode_actions: this world knows no real actions"):
        world.encode_actions(torch.tensor([[1]]))


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--labels", "10000"], "expected at most the 396 recorded transitions"),
        (["--labels", "few"], "--labels: expected a number of recorded transitions or all"),
        (["--kind", "tabel"], "no adapter 'tabel' is registered"),
    ],
)
def test_what_cannot_be_is_refused(trained, scene, colaworld, tmp_path, more, message) -> None:
    out = tmp_path / "new"
    said = colaworld("adapt", trained, "--data", scene, "--out", out, *SHORT, *more)
    assert said.status == 2 and message in said.plain and not out.exists()


def test_a_run_does_not_go_into_its_data(trained, scene, colaworld) -> None:
    before = sorted(scene.rglob("*"))
    for verb, run in (("adapt", trained), ("train", "nano.cola")):
        for out, said in ((scene, "is the data set"), (scene / "new", "is within the data set")):
            told = colaworld(verb, run, "--data", scene, "--out", out)
            assert told.status == 2 and said in told.plain, told.plain
    assert sorted(scene.rglob("*")) == before


def test_data_without_actions_and_runs_without_a_world_are_refused(
    trained, film, colaworld, tmp_path
) -> None:
    for number in range(4):
        film(tmp_path / "films" / f"{number}.mp4", seed=number)
    call = ["--out", tmp_path / "new", *SHORT]
    said = colaworld("adapt", trained, "--data", tmp_path / "films", *call)
    assert said.status == 2 and "actions" in said.err
    said = colaworld("adapt", tmp_path, "--data", tmp_path / "films", *call)
    assert said.status == 2 and "is not a run folder" in said.err
    said = colaworld("adapt", trained, *call)
    assert said.status == 2 and "--data: name the robot's data set" in said.err


SPEC = ActionSpec("action", "continuous", 2, ("x", "y"), ("m", "m"))


def test_a_file_of_numbers_is_held_against_the_channels(tmp_path) -> None:
    wanted = np.array([[0.5, 1.0], [2.0, -3.0]], np.float32)
    (tmp_path / "a.csv").write_text("x,y\n0.5,1\n2,-3\n")
    (tmp_path / "a.json").write_text('{"names": ["x", "y"], "actions": [[0.5, 1], [2, -3]]}')
    np.save(tmp_path / "a.npy", wanted)
    for suffix in ("csv", "json", "npy"):
        found = read_actions(str(tmp_path / f"a.{suffix}"), SPEC)
        assert found.dtype == np.float32 and np.array_equal(found, wanted)
    for text, message in (
        ("y,x\n1,2\n", r"expected the channels x, y, in this order, got y, x"),
        ("1,2\n", r"expected a header with the channels x, y"),
        ("x,y\n1,nan\n", r"row 1: expected finite numbers"),
        ("x,y\n1,2\n1,1e300\n", r"row 2: expected finite numbers of float32"),
        ("x,y\n1\n", r"row 1: expected 2 numbers \(x, y\), got 1"),
        ("x,y\n1,a\n", r"expected numbers alone"),
        ("x,y\n", r"it holds no actions"),
    ):
        (tmp_path / "b.csv").write_text(text)
        with pytest.raises(ValueError, match=message):
            read_actions(str(tmp_path / "b.csv"), SPEC)
    for text, message in (
        ("[[1, [2, 3]]]", r"b\.json: row 1: expected 2 numbers"),
        (f"[[{'9' * 400}, 0]]", r"b\.json: expected numbers alone: .* too large"),
        ("[" * 100_000, r"b\.json: cannot be read"),
        ('{"names": "xy", "actions": [[1, 2]]}', r"names: expected a list of channel names"),
    ):
        (tmp_path / "b.json").write_text(text)
        with pytest.raises(ValueError, match=message):
            read_actions(str(tmp_path / "b.json"), SPEC)
    for array in (np.float32(3), wanted[None], wanted > 0, wanted + 1j, wanted.astype("M8[s]")):
        np.save(tmp_path / "b.npy", array)
        with pytest.raises(
            ValueError, match=r"b\.npy: cannot be read: expected an array of actions"
        ):
            read_actions(str(tmp_path / "b.npy"), SPEC)
    with pytest.raises(ValueError, match=r"no such file"):
        read_actions("none.csv", SPEC)
    with pytest.raises(ValueError, match=r"expected a file .* of rows of 2 numbers \(x, y\)"):
        read_actions("left", SPEC)


def test_lora_leaves_the_video_model_as_it_was_and_is_merged_on_export(
    trained, scene, colaworld, tmp_path
) -> None:
    out, call = tmp_path / "lora", ["--steps", 2, "--adapter-steps", 1, *SHORT[4:]]
    said = colaworld("adapt", trained, "--data", scene, "--out", out, "--lora", 2, *call)
    assert said.status == 0, said.err
    before, world = (load_world(folder)[0] for folder in (trained, out))
    for a, b in zip(
        before.model.backbone.parameters(), world.model.backbone.parameters(), strict=True
    ):
        assert torch.equal(a, b)
    assert any(added.b.abs().max() > 0 for added in world.model.lora.layers.values())
    assert colaworld("export", out, "--out", tmp_path / "exported").status == 0
    exported = from_pretrained(tmp_path / "exported")
    assert not hasattr(exported.model, "lora")
    latents, times = torch.randn(1, 12, 3, 4, 4), torch.full((1, 3), 0.5)
    torch.testing.assert_close(
        exported.model.velocity(latents, times), world.model.velocity(latents, times)
    )
    said = colaworld("adapt", out, "--data", scene, "--out", tmp_path / "again", *call)
    assert said.status == 2 and "holds LoRA beside the video model" in said.plain


def test_a_contract_that_was_changed_after_training_is_refused(
    adapted, colaworld, tmp_path
) -> None:
    """Classes renamed in config.yaml: names in a file of actions would mean others."""
    run = tmp_path / "run"
    shutil.copytree(adapted, run)
    config = run / "config.yaml"
    told = yaml.safe_load(config.read_text())
    told["action_contract"]["names"] = ["noop", "right", "left", "up", "down"]
    config.write_text(yaml.safe_dump(told))
    for call in (["sample", run, "--actions", "left"], ["export", run]):
        said = colaworld(*call, "--out", tmp_path / "x.png")
        assert (
            said.status == 2 and "changed after the training: action_contract.names" in said.plain
        )


@pytest.mark.slow
def test_it_resumes_to_the_same_bytes(trained, scene, colaworld, tmp_path) -> None:
    call = ["adapt", trained, "--data", scene, "--lam", "trained", "--steps", 2, *SHORT[2:]]
    call += ["--training.checkpoint-every", 1]
    assert colaworld(*call, "--out", tmp_path / "whole").status == 0
    assert colaworld(*call, "--out", tmp_path / "part", "--adapter-steps", 1).status == 0
    said = colaworld(*call, "--out", tmp_path / "part", "--resume")
    assert said.status == 2 and "phases.adapter.cooldown_steps" in said.plain
    for last in sorted((tmp_path / "whole/checkpoints").iterdir())[1:]:
        last.rename(tmp_path / last.name)
    weights = (tmp_path / "whole/weights/model.safetensors").read_bytes()
    said = colaworld(*call, "--out", tmp_path / "whole", "--resume")
    assert said.status == 0, said.err
    assert (tmp_path / "whole/weights/model.safetensors").read_bytes() == weights


def test_a_set_with_other_actions_is_refused(adapted, trained, scene, colaworld, tmp_path) -> None:
    """Left and right swapped: for a world that knows real actions, and for a run that goes on."""
    other = tmp_path / "swapped"
    shutil.copytree(scene, other)
    info = other / "meta/info.json"
    text = info.read_text()
    assert '"left"' in text and '"right"' in text
    swapped = text.replace('"left"', '"?"').replace('"right"', '"left"').replace('"?"', '"right"')
    info.write_text(swapped)
    new = tmp_path / "new"
    said = colaworld("adapt", adapted, "--data", other, "--out", new, *SHORT)
    assert said.status == 2 and "another order" in said.plain and not new.exists()
    copy = tmp_path / "copy"
    shutil.copytree(adapted, copy)
    call = ["adapt", trained, "--data", other, "--labels", 100, "--out", copy, *SHORT]
    said = colaworld(*call, "--resume")
    assert said.status == 2 and "action_contract" in said.plain


def test_no_action_of_a_table_of_classes_is_taken_for_its_header(tmp_path) -> None:
    spec, file = ActionSpec("action", "discrete", 3, ("stay", "left", "right")), tmp_path / "a.csv"
    for text in ("action\nleft\n2\n", "left\n2\n", "\ufeffaction\nleft\n2\n", "\ufeffleft\n2\n"):
        file.write_text(text, encoding="utf-8")
        assert read_actions(str(file), spec).tolist() == [1, 2]
    for first in ("lefft", "-1", "1.0", "3", "LEFT"):
        file.write_text(f"{first}\nleft\n")
        with pytest.raises(ValueError, match=rf"action 1: expected one of 3 .* got '{first}'"):
            read_actions(str(file), spec)
    file.write_text("action,then\nleft,1\n")
    with pytest.raises(ValueError, match=r"expected one column of classes, got action, then"):
        read_actions(str(file), spec)
