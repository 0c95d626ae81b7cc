"""Latent action models from runs, exports and files of others, measured on one data set."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from colaworld.config import ConfigError
from colaworld.contracts import LatentActionModel, WorldProtocol
from colaworld.models.backbones.weights import WeightsError
from colaworld.runs.build import build_trainer
from colaworld.runs.latents import load_latents, probe_latents
from colaworld.runs.load import load_world
from colaworld.runs.pretrained import export_run

PLUGIN = Path(__file__).parents[1] / "models" / "latent_action" / "plugin_latents.py"


@pytest.fixture(scope="module")
def run(tmp_path_factory, tiny) -> Path:
    out = tmp_path_factory.mktemp("runs") / "cola"
    build_trainer(tiny(), out=out).run()
    return out


@pytest.fixture
def theirs(tmp_path, from_outside) -> Path:
    """A file in a layout from outside."""
    from_outside(PLUGIN)
    save_file({"mean.weight": torch.eye(3)}, tmp_path / "theirs.safetensors")
    return tmp_path / "theirs.safetensors"


def test_a_run_its_export_and_a_file_of_others(run, theirs, tmp_path) -> None:
    frames = torch.rand(1, 3, 3, 24, 32)
    world, _ = load_world(run)
    expected = world.infer_actions(frames)
    for source in (run, export_run(run, tmp_path / "exported"), run / "weights"):
        found = load_latents(source)
        assert isinstance(found, WorldProtocol) and found.dim == found.model.config.idm.dim
        made = found.infer_actions(frames)
        assert torch.equal(made.indices, expected.indices)
        assert made.codes.shape[-1] == found.dim
    other = load_latents(str(theirs))
    assert isinstance(other, LatentActionModel) and not isinstance(other, WorldProtocol)
    assert other.infer_actions(frames).codes.shape == (1, 2, 1, 3)


def test_what_is_no_model_is_refused(run, theirs, tmp_path) -> None:
    with pytest.raises(ConfigError, match=r"nowhere: no such file or folder"):
        load_latents(tmp_path / "nowhere")
    with pytest.raises(WeightsError, match=r"does not fit|expected one key action_prompt"):
        load_latents(theirs, kind="adaworld")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match=r"nor a published model \(no .safetensors\)"):
        load_latents(tmp_path / "empty")


def test_all_see_the_same_held_out_transitions(run, theirs, tiny) -> None:
    config = tiny()
    data = replace(config.data, split="heldout", frames_per_clip=3)
    heard: list[tuple[int, int]] = []
    results = probe_latents(
        [run, theirs],
        data,
        replace(config.evaluation, probe_clips=6),
        progress=lambda done, total, what: heard.append((done, total)),
    )
    ours, other = results[str(run)], results[str(theirs)]
    assert ours["clips"] == other["clips"]
    assert ours["counts"]["clips"] == 6 and ours["counts"]["transitions"] == 12
    assert (other["counts"]["height"], other["counts"]["width"]) == (24, 32)
    assert ours["codebook"]["utilisation"] > 0 and other["codebook"] is None
    assert heard[-1] == (12, 12) and ours["probe_skipped"] == "the data set has no real actions"


def test_one_that_takes_any_size_gets_the_size_that_is_asked(theirs, tiny) -> None:
    config = tiny()
    data = replace(config.data, split="all", frames_per_clip=3, height=8, width=8)
    found = probe_latents([theirs], data, replace(config.evaluation, probe_clips=4))
    assert [found[str(theirs)]["counts"][k] for k in ("clips", "height", "width")] == [4, 8, 8]


def test_episodes_that_a_run_was_trained_on_are_refused(run, theirs, tiny, monkeypatch) -> None:
    config = tiny()
    data = replace(config.data, split="all")
    with pytest.raises(ConfigError, match=r"was trained on .*: expected data.split heldout"):
        probe_latents([theirs, run], data, config.evaluation)
    monkeypatch.chdir(config.data.path.parent)  # by whatever path they are named
    data = replace(data, path=Path(config.data.path.name), split="heldout", holdout=0.5)
    with pytest.raises(ConfigError, match=r"data.holdout 0.2, its own, got heldout and 0.5"):
        probe_latents([run], data, config.evaluation)
    with pytest.raises(ConfigError, match=r"latents: expected each once"):
        probe_latents([run, run], config.data, config.evaluation)
