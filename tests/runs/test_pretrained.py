"""Published generators come in, trained worlds go out and come back."""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import colaworld
from colaworld.config import ConfigError, to_dict
from colaworld.files import FileError, seal
from colaworld.models.backbones.stdit3 import STDiT3, STDiT3Config
from colaworld.models.backbones.wan import Wan, WanConfig
from colaworld.models.backbones.wan.keys import to_original
from colaworld.models.backbones.weights import WeightsError
from colaworld.models.latent_action.quantizers import (
    FSQConfig,
    NoneConfig,
    ResidualConfig,
    VQConfig,
)
from colaworld.models.tokenizers.config import OpenSoraVAEConfig
from colaworld.models.tokenizers.opensora_vae import OpenSoraVAE
from colaworld.runs import pretrained
from colaworld.runs.build import build_model, build_trainer
from colaworld.runs.config import read_config
from colaworld.runs.load import load_world
from colaworld.runs.model_card import model_card
from colaworld.runs.weights import load_backbone
from colaworld.training.checkpoint import CheckpointError
from colaworld.training.weights import init_parts

# What the published repository says of itself, at a size that fits a test.
PUBLISHED = {
    "_name_or_path": "hpcai-tech/OpenSora-STDiT-v3",
    "architectures": ["STDiT3"],
    "model_type": "STDiT3",
    "depth": 2,
    "hidden_size": 24,
    "num_heads": 2,
    "mlp_ratio": 4.0,
    "patch_size": [1, 2, 2],
    "in_channels": 4,
    "pred_sigma": True,
    "qk_norm": True,
    "input_sq_size": 512,
    "caption_channels": 10,
    "model_max_length": 5,
}


@pytest.fixture
def run(tiny, tmp_path):
    trainer = build_trainer(tiny(), out=tmp_path / "run")
    assert trainer.run().status == "finished"
    return tmp_path / "run"


@pytest.fixture
def generator(tmp_path):
    """A folder as the published video model is: config.json beside one file of weights."""
    folder = tmp_path / "published"
    folder.mkdir()
    config = replace(
        STDiT3Config(depth=2, width=24, heads=2, in_channels=4, predict_sigma=True),
        text="full",
        caption_width=10,
        caption_length=5,
    )
    with torch.random.fork_rng():
        torch.manual_seed(3)
        stored = dict(STDiT3(config).state_dict())
    stored["rope.freqs"] = 10_000.0 ** (-torch.arange(0, 12, 2) / 12)
    save_file(stored, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(PUBLISHED))
    return folder, stored


def test_a_published_generator(generator) -> None:
    folder, stored = generator
    model = colaworld.from_pretrained(folder)
    assert isinstance(model, STDiT3) and not model.training
    assert model.config.causal and model.config.text == "removed" and model.config.fps == 24.0
    for key, value in model.state_dict().items():
        assert torch.equal(value, stored[key]), key
    assert set(stored) - set(model.state_dict()) == {
        key for key in stored if "cross_attn" in key or key.startswith(("y_embedder", "rope"))
    }
    whole = colaworld.from_pretrained(str(folder), text="full", causal=False, dtype=torch.bfloat16)
    assert not whole.config.causal and whole.y_embedder.y_embedding.shape == (5, 10)
    assert {p.dtype for p in whole.parameters()} == {torch.bfloat16}


def test_a_file_needs_a_config(generator) -> None:
    folder, stored = generator
    with pytest.raises(WeightsError, match=r"no config\.json says what this is; pass config="):
        colaworld.from_pretrained(folder / "model.safetensors")
    config = replace(STDiT3Config.xl2(), depth=2, width=24, heads=2)
    model = colaworld.from_pretrained(folder / "model.safetensors", config=config)
    assert torch.equal(model.t_block[1].bias, stored["t_block.1.bias"])


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"qk_norm": False}, WeightsError, r"qk_norm is False; only True is supported"),
        ({"patch_size": [2, 2, 2]}, WeightsError, r"patch_size is \(2, 2, 2\)"),
        (
            {"architectures": ["Other"], "model_type": "o"},
            WeightsError,
            r"describes o Other; known",
        ),
        (
            {"hidden_size": 48},
            WeightsError,
            r"x_embedder.proj.weight: expected \[48, 4, 1, 2, 2\], got \[24, 4,",
        ),
    ],
)
def test_a_config_that_is_not_ours(change, error, message, generator) -> None:
    folder, _ = generator
    (folder / "config.json").write_text(json.dumps(PUBLISHED | change))
    with pytest.raises(error, match=message):
        colaworld.from_pretrained(folder)


@pytest.mark.parametrize("original", [False, True])
def test_wan_by_either_of_its_names(original, tmp_path) -> None:
    config = WanConfig(layers=2, heads=2, head_dim=12, ffn=40, in_channels=4, text_width=10)
    with torch.random.fork_rng():
        torch.manual_seed(3)
        stored = Wan(replace(config, text="full")).state_dict()
    described = {"_class_name": "WanTransformer3DModel", "num_layers": 2, "ffn_dim": 40}
    described |= {"num_attention_heads": 2, "attention_head_dim": 12, "in_channels": 4}
    described |= {"text_dim": 10, "image_dim": None, "qk_norm": "rms_norm_across_heads"}
    if original:
        described = {"_class_name": "WanModel", "model_type": "t2v", "dim": 24, "num_heads": 2}
        described |= {"num_layers": 2, "ffn_dim": 40, "in_dim": 4, "out_dim": 4, "text_len": 512}
    named = {to_original(k) if original else k: v.clone() for k, v in stored.items()}
    save_file(named, tmp_path / "diffusion_pytorch_model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(described))
    model = colaworld.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert isinstance(model, Wan) and model.config.causal and model.config.text == "removed"
    wide = {key for key, value in model.state_dict().items() if value.dtype == torch.float32}
    assert any("time_embedder" in key for key in wide)
    assert all("time_embedder" in key or "scale_shift_table" in key for key in wide)
    for key, value in model.state_dict().items():
        assert torch.equal(value, stored[key].to(value.dtype)), key
    (tmp_path / "config.json").write_text(json.dumps(described | {"image_dim": 1280}))
    if not original:
        with pytest.raises(WeightsError, match=r"image_dim is 1280; only None is supported"):
            colaworld.from_pretrained(tmp_path)


def test_a_config_that_is_no_json(generator) -> None:
    folder, _ = generator
    (folder / "config.json").write_text("{")
    with pytest.raises(ConfigError, match=r"config\.json: not valid JSON"):
        colaworld.from_pretrained(folder)


def test_neither_a_path_nor_a_hub_id(tmp_path) -> None:
    with pytest.raises(WeightsError, match=r"no such file or folder; give the folder"):
        colaworld.from_pretrained(tmp_path / "no" / "such" / "place")


def test_the_hub_is_asked_for_an_id_alone(generator, monkeypatch) -> None:
    folder, _ = generator
    asked = []

    class Hub:
        class errors:
            HfHubHTTPError = RuntimeError

        @staticmethod
        def snapshot_download(name, **options):
            asked.append((name, options))
            if name == "no/model":
                raise OSError("offline")
            return str(folder)

    monkeypatch.setitem(sys.modules, "huggingface_hub", Hub)
    assert isinstance(colaworld.from_pretrained("some/model", revision="v1"), STDiT3)
    (name, options) = asked[0]
    assert name == "some/model" and options["revision"] == "v1"
    assert "*.bin" not in options["allow_patterns"]
    colaworld.from_pretrained(folder)
    assert len(asked) == 1
    with pytest.raises(WeightsError, match=r"no/model is neither .*: offline\. Without a network"):
        colaworld.from_pretrained("no/model")
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ImportError, match=r"colaworld\[hub\]"):
        colaworld.from_pretrained("some/model")


@pytest.mark.parametrize("shard_gb", [5.0, 1e-4])
def test_an_exported_world_is_the_run(run, shard_gb, tmp_path) -> None:
    out = pretrained.export_run(run, tmp_path / "out", shard_gb=shard_gb)
    shards = sorted(out.glob("*.safetensors"))
    assert (len(shards) > 1) == (shard_gb < 1)
    if shard_gb < 1:
        assert all(shard.stat().st_size < 1.2e5 for shard in shards[:-1])
    world, _ = load_world(run)
    back = colaworld.from_pretrained(out)
    ours, theirs = world.model.state_dict(), back.model.state_dict()
    assert set(ours) == set(theirs)
    assert all(torch.equal(value, theirs[key]) for key, value in ours.items())
    assert back.sampler == world.sampler
    frames = torch.rand(1, 4, 3, 24, 32, generator=torch.Generator().manual_seed(0))
    assert torch.equal(back.infer_actions(frames).codes, world.infer_actions(frames).codes)
    assert pretrained.export_run(run, out) == out  # again, over an export


def test_a_world_in_half_precision(run, tmp_path) -> None:
    out = pretrained.export_run(run, tmp_path / "out")
    whole, half = (colaworld.from_pretrained(out, dtype=d) for d in (None, torch.bfloat16))
    assert {p.dtype for p in half.model.backbone.parameters()} == {torch.bfloat16}
    frames = torch.rand(1, 4, 3, 24, 32, generator=torch.Generator().manual_seed(0))
    codes = whole.infer_actions(frames).codes
    assert half.infer_actions(frames).codes.dtype == codes.dtype

    def roll(world) -> torch.Tensor:
        start = torch.Generator().manual_seed(1)
        return world.rollout(frames[:, :1], codes, generator=start).generated

    assert (roll(half) - roll(whole)).abs().max() < 0.05


def test_a_finished_run_loads_as_it_is(run) -> None:
    world = colaworld.from_pretrained(run)
    stored = load_file(run / "weights" / "model.safetensors")
    found = world.model.state_dict()
    assert set(found) == set(stored)
    assert all(torch.equal(found[key], value) for key, value in stored.items())


def flip(file, at=-1) -> None:
    data = bytearray(file.read_bytes())
    data[at] ^= 1
    file.write_bytes(data)


@pytest.mark.parametrize("shard_gb", [5.0, 1e-4])
def test_an_export_that_changed_is_refused(run, shard_gb, tmp_path, caplog) -> None:
    out = pretrained.export_run(run, tmp_path / "out", shard_gb=shard_gb)
    assert all(file.stat().st_mode & 0o044 == 0o044 for file in out.iterdir())
    for file in sorted(out.glob("model*")):
        flip(file, -9 if file.suffix == ".json" else -1)
        if file.suffix == ".safetensors":
            colaworld.from_pretrained(out, verify=False)
            assert "loaded without comparing sums, as asked" in caplog.text
        with pytest.raises(ValueError, match=rf"{file.name}: (its content|not an index)"):
            colaworld.from_pretrained(out)
        flip(file, -9 if file.suffix == ".json" else -1)
    text = (out / "config.json").read_text()
    assert '"guidance": 1.0' in text
    (out / "config.json").write_text(text.replace('"guidance": 1.0', '"guidance": 3.0'))
    with pytest.raises(
        FileError, match=r"config\.json: its values do not match the recorded sha256"
    ):
        colaworld.from_pretrained(out)
    assert colaworld.from_pretrained(out, verify=False).sampler.guidance == 3
    (out / "config.json").write_text(text)
    old(out)
    caplog.clear()
    colaworld.from_pretrained(out)
    assert caplog.text.count("from before sums were recorded") == 1


def test_finished_weights_that_changed_are_neither_read_nor_exported(run, tmp_path) -> None:
    flip(run / "weights" / "model.safetensors")
    for call in (
        lambda: load_world(run),
        lambda: colaworld.from_pretrained(run),
        lambda: pretrained.export_run(run, tmp_path / "out"),
        lambda: load_backbone(build_model(read_config(run)).backbone, str(run)),
    ):
        with pytest.raises(FileError, match=r"weights/model\.safetensors: its content does not"):
            call()


def test_weights_of_a_run_whose_sums_were_taken_out_are_not_read(run, tmp_path) -> None:
    """An export's config.json does not stand in for a run's own either."""
    file = run / "weights" / "config.json"
    whole = json.loads(file.read_text())
    model = build_model(read_config(run))
    bare = {k: v for k, v in whole.items() if k != "sha256"}
    lost = {key: {k: v for k, v in bare.items() if k != key} for key in bare}
    changes = [{}, [], bare, {"colaworld": "0", "model": {}}]
    changes += [seal(lost[k]) for k in ("files", "format_version", "global_step", "config")]
    for change in changes:
        file.write_text(json.dumps(change))
        for call in (
            lambda: load_world(run),
            lambda: pretrained.export_run(run, tmp_path / "out"),
            lambda: load_backbone(model.backbone, str(run)),
            lambda: init_parts(model, str(run)),
        ):
            with pytest.raises(ValueError, match=r"weights/config\.json: expected what colaworld"):
                call()
        with pytest.raises(ValueError):
            colaworld.from_pretrained(run)


def test_an_export_whose_sums_were_taken_out_is_not_read(run, tmp_path) -> None:
    out = pretrained.export_run(run, tmp_path / "out")
    whole = json.loads((out / "config.json").read_text())
    bare = {k: v for k, v in whole.items() if k != "sha256"}
    for change in (
        bare,
        {k: v for k, v in bare.items() if k not in ("colaworld", "files")},
        seal({k: v for k, v in bare.items() if k != "files"}),
    ):
        (out / "config.json").write_text(json.dumps(change))
        with pytest.raises(FileError, match=r"config\.json: expected what colaworld writes"):
            colaworld.from_pretrained(out)


def old(folder) -> None:
    """config.json as it was before there were sums."""
    described = json.loads((folder / "config.json").read_text())
    del described["sha256"], described["files"]
    (folder / "config.json").write_text(json.dumps(described))


def test_weights_that_are_not_finite_stay_where_they_are(run, tmp_path) -> None:
    out = pretrained.export_run(run, tmp_path / "out")
    for folder in (run / "weights", out):
        stored = load_file(folder / "model.safetensors")
        stored["backbone.x_embedder.proj.bias"][0] = float("inf")
        save_file(stored, folder / "model.safetensors")
        old(folder)  # so that no sum is wrong
    for call in (lambda: load_world(run), lambda: pretrained.export_run(run, tmp_path / "b")):
        with pytest.raises(CheckpointError, match=r"backbone\.x_embedder\.proj\.bias holds values"):
            call()
    assert not (tmp_path / "b").exists()
    with pytest.raises(WeightsError, match=r"backbone\.x_embedder\.proj\.bias holds values"):
        colaworld.from_pretrained(out)


def reseal(folder, change) -> None:
    """What a stranger may write: a config.json of other values, whole in itself."""
    described = json.loads((folder / "config.json").read_text())
    change(described)
    del described["sha256"]
    (folder / "config.json").write_text(json.dumps(seal(described)))


@pytest.mark.parametrize("path", ["attacker/repo", "/etc", "../elsewhere", "./tokenizer", "~"])
def test_an_export_leads_to_nothing_outside_it(run, path, tmp_path, monkeypatch) -> None:
    out = pretrained.export_run(run, tmp_path / "out")
    vae = to_dict(OpenSoraVAEConfig(path=path))
    reseal(out, lambda described: described["model"].update(tokenizer=vae))
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)  # to ask it would be an ImportError
    with pytest.raises(ConfigError, match=r"not in this folder; .*from_pretrained\(.*tokenizer="):
        colaworld.from_pretrained(out)
    with pytest.raises(ConfigError, match=r"has a pixels one, which has no files"):
        colaworld.from_pretrained(run, tokenizer="my/vae")


@pytest.mark.parametrize("name", ["../x.safetensors", "/etc/x.safetensors"])
def test_an_index_leads_to_nothing_outside_its_folder(run, name, tmp_path) -> None:
    out = pretrained.export_run(run, tmp_path / "out")
    (out / "model.safetensors").rename(tmp_path / "x.safetensors")
    index = out / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": name}}))
    for verify in (True, False):
        with pytest.raises(ValueError, match=r"names of files in this folder|expected a file"):
            colaworld.from_pretrained(out, verify=verify)


@pytest.mark.parametrize("part", ["model.safetensors", "config.json"])
def test_a_pipe_in_an_export_is_refused(run, part, tmp_path) -> None:
    out = pretrained.export_run(run, tmp_path / "out")
    (out / part).unlink()
    os.mkfifo(out / part)
    for verify in (True, False):
        with pytest.raises(
            ValueError, match=r"expected (a file|one \.safetensors)|no config\.json"
        ):
            colaworld.from_pretrained(out, verify=verify)


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("depth", 10**6, r"config\.json\.model\.backbone\.depth: expected <= 1000, got 1000000"),
        ("depth", 1000, r"config\.json: depth is 1000, but \d+ tensors are stored"),
        ("width", 2**40, r"config\.json\.model\.backbone\.width: expected <= 65536"),
        ("width", 65_536, r"does not fit the WorldModel|no model has these sizes"),
        ("depth", 2, r"missing backbone"),
    ],
)
def test_sizes_that_are_not_stored_are_refused_before_a_model_is_built(
    run, key, value, said, tmp_path
) -> None:
    out = pretrained.export_run(run, tmp_path / "out")
    reseal(out, lambda described: described["model"]["backbone"].update({key: value}))
    with pytest.raises((WeightsError, ConfigError), match=said):
        colaworld.from_pretrained(out)


def test_a_run_without_codes_is_not_exported(tiny, tmp_path) -> None:
    config = tiny()
    late = replace(config.model.quantizer, unquantized_steps=50)
    config = replace(config, model=replace(config.model, quantizer=late))
    build_trainer(config, out=tmp_path / "run").run()
    for call in (
        lambda: pretrained.export_run(tmp_path / "run", tmp_path / "out"),
        lambda: colaworld.from_pretrained(tmp_path / "run"),
    ):
        with pytest.raises(ConfigError, match=r"unquantized_steps 50\): it has no codes yet"):
            call()


def test_nothing_of_the_machine_is_exported(run, tmp_path) -> None:
    out = pretrained.export_run(run, tmp_path / "out")
    for name in ("config.json", "README.md"):
        text = (out / name).read_text()
        assert str(tmp_path) not in text and "films" not in text


def test_a_tokenizer_of_this_machine_travels_along(tiny, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    sizes = {"image_widths": (8, 8), "image_layers": 1, "temporal_width": 8, "groups": 4}
    sizes |= {"temporal_multipliers": (1,), "temporal_layers": 1, "temporal_halve": ()}
    vae = OpenSoraVAEConfig(path="./vae", **sizes)
    (tmp_path / "vae").mkdir()
    stored = OpenSoraVAE(replace(vae, path="")).state_dict()
    save_file(stored, tmp_path / "vae" / "model.safetensors")
    config = tiny()
    backbone = replace(config.model.backbone, in_channels=4)
    config = replace(config, model=replace(config.model, tokenizer=vae, backbone=backbone))
    build_trainer(config, out=tmp_path / "run").run()
    assert colaworld.from_pretrained(tmp_path / "run").model.tokenizer.channels == 4
    out = pretrained.export_run(tmp_path / "run", tmp_path / "out")
    assert "./vae" not in (out / "config.json").read_text()
    shutil.rmtree(tmp_path / "vae")
    back = colaworld.from_pretrained(out).model.tokenizer.state_dict()
    assert all(torch.equal(value, back[key]) for key, value in stored.items())


def test_the_card_says_what_was_measured_and_what_was_not(run, tmp_path) -> None:
    card = (pretrained.export_run(run, tmp_path / "a") / "README.md").read_text()
    assert card.count("not evaluated: run `colaworld evaluate`") == 2
    part = {"utilisation": 0.5, "max_usage": 0.25, "entropy_normalised": 0.75, "perplexity": 3.0}
    found = {
        "codebook": {"positions": [part], "joint": part},
        "delta_psnr": {"random": {"mean": 2.5, "low": 1.5, "high": 3.5}},
        "counts": {"clips": 4, "episodes": 2, "horizon": 3, "height": 24, "width": 32},
    }
    (run / "evaluation.json").write_text(json.dumps(found))
    card = (pretrained.export_run(run, tmp_path / "b") / "README.md").read_text()
    assert "| token 0 | 0.50 | 0.25 | 0.75 | 3.00 |" in card
    assert "inferred actions over random ones: 2.50 dB [1.50, 3.50]" in card
    assert "4 clips of 2 episodes, 3 frames ahead" in card and "24x32 pixels" in card
    found["delta_psnr"]["random"] = dict.fromkeys(("mean", "low", "high"))  # not finite
    (run / "evaluation.json").write_text(json.dumps(found))
    card = (pretrained.export_run(run, tmp_path / "c") / "README.md").read_text()
    assert "inferred actions over random ones: - dB [-, -]" in card


def test_the_python_of_the_card_and_of_the_guide_runs_as_it_stands(
    run, tmp_path, monkeypatch
) -> None:
    monkeypatch.chdir(tmp_path)
    out = pretrained.export_run(run, tmp_path / "my-world")
    guide = (Path(__file__).parents[2] / "docs" / "video-models.md").read_text()
    for text in ((out / "README.md").read_text().replace("PATH OR HUB ID", "my-world"), guide):
        code = re.findall(r"^```python\n(.*?)^```", text, flags=re.S | re.M)[-1]
        made: dict = {}
        exec(compile(code, "card", "exec"), made)
        assert made["video"].shape == made["frames"].shape
        assert torch.equal(made["video"][:, 0], made["frames"][:, 0])
        assert made["chosen"].shape == made["actions"].codes.shape


def test_a_world_takes_frames_of_the_size_it_was_trained_on(tiny, tmp_path) -> None:
    config = tiny()
    config = replace(config, data=replace(config.data, height=16, width=24))
    build_trainer(config, out=tmp_path / "run").run()
    out = pretrained.export_run(tmp_path / "run", tmp_path / "out")
    for world in (
        load_world(tmp_path / "run")[0],
        *map(colaworld.from_pretrained, (out, tmp_path / "run")),
    ):
        assert world.frame_size == (16, 24)
        with pytest.raises(ValueError, match=r"16x24 px .*got 24x32"):
            world.infer_actions(torch.rand(1, 2, 3, 24, 32))


@pytest.mark.parametrize(
    "found",
    [
        {"counts": None, "probe": 5, "codebook": None, "delta_psnr": None},
        {"counts": {"height": "x", "clips": "y"}, "probe": {"kind": "accuracy"}, "codebook": [1]},
        {"codebook": {"positions": None}, "delta_psnr": {"random": None}, "counts": 3},
        {"codebook": {"positions": [], "joint": {"utilisation": "all"}}, "delta_psnr": [2]},
    ],
)
def test_the_card_leaves_out_what_makes_no_sense(run, found, tmp_path) -> None:
    (run / "evaluation.json").write_text(json.dumps(found))
    card = (pretrained.export_run(run, tmp_path / "out") / "README.md").read_text()
    assert card.count("not evaluated: run `colaworld evaluate`") == 2 and "as recorded" in card


@pytest.mark.parametrize(
    ("quantizer", "said"),
    [
        (VQConfig(codebook_size=5), "`vq`, 5 codes"),
        (FSQConfig(levels=(4, 3)), "`fsq`, 12 codes"),
        (ResidualConfig(codebook_size=3), "`residual`, 9 codes"),
        (NoneConfig(), "`none`, continuous"),
    ],
)
def test_the_card_counts_codes(tiny, quantizer, said) -> None:
    config = tiny()
    model = replace(config.model, idm=replace(config.model.idm, dim=2), quantizer=quantizer)
    frames = {"height": 24, "width": 32, "frames_per_clip": 4, "stride": 1}
    described = {"colaworld": "0", "backbone_weights": None, "frames": frames}
    assert said in model_card(described, replace(config, model=model), None)


def test_what_cannot_be_exported(run, tiny, tmp_path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("x")
    with pytest.raises(ConfigError, match=r"--out .*full: exists and is no exported model"):
        pretrained.export_run(run, tmp_path / "full")
    (tmp_path / "full" / "config.json").write_text(json.dumps(PUBLISHED))  # another's model
    with pytest.raises(ConfigError, match=r"--out .*full: exists and is no exported model"):
        pretrained.export_run(run, tmp_path / "full")
    assert (tmp_path / "full" / "thesis.tex").read_text() == "x"
    published = tmp_path / "published"  # a video model's: it has a config.json too
    published.mkdir()
    (published / "config.json").write_text('{"_class_name": "WanTransformer3DModel"}')
    (published / "model.safetensors").write_text("x")
    beside = pretrained.export_run(run, tmp_path / "beside")
    (beside / "thesis.tex").write_text("x")
    for taken in (published, beside, run / "weights", run / "config.yaml"):
        with pytest.raises(ConfigError, match=r"exists and is no exported model"):
            pretrained.export_run(run, taken)
    assert (published / "model.safetensors").read_text() == "x"
    assert (beside / "thesis.tex").read_text() == "x"
    for size in (0, float("nan"), float("inf")):
        with pytest.raises(ConfigError, match=r"--shard-gb: expected a size above 0, got"):
            pretrained.export_run(run, tmp_path / "out", shard_gb=size)
    shutil.rmtree(run / "weights")
    with pytest.raises(ConfigError, match=r"is not finished"):
        pretrained.export_run(run, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_full_disk_leaves_the_old_export(run, tmp_path, monkeypatch) -> None:
    out = pretrained.export_run(run, tmp_path / "out")
    before = {p.name: p.read_bytes() for p in out.iterdir()}

    def full(tensors, path):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pretrained, "save_file", full)
    with pytest.raises(CheckpointError, match=r"cannot be written.*No space left"):
        pretrained.export_run(run, out)
    assert {p.name: p.read_bytes() for p in out.iterdir()} == before
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []


def test_upload_needs_a_name_and_a_package(run, tmp_path, monkeypatch) -> None:
    with pytest.raises(ConfigError, match=r"--push: expected OWNER/NAME, got 'mine'"):
        pretrained.push_to_hub(tmp_path, "mine")
    called = []

    class Hub:
        class HfApi:
            def __init__(self, token):
                called.append(token)

            def create_repo(self, name, **options):
                called.append((name, options))

            def upload_folder(self, **options):
                called.append(options)
                return "the address"

    monkeypatch.setitem(sys.modules, "huggingface_hub", Hub)
    assert pretrained.push_to_hub(tmp_path, "me/world") == "the address"
    assert called[1] == ("me/world", {"private": True, "exist_ok": True})
    assert called[2] == {"repo_id": "me/world", "folder_path": str(tmp_path)}


def test_other_values_of_arguments(generator, run, tmp_path) -> None:
    with pytest.raises(ValueError, match=r"text: expected one of removed, null, full, got 'foo'"):
        colaworld.from_pretrained(generator[0], text="foo")
    out = pretrained.export_run(run, tmp_path / "out")
    described = json.loads((out / "config.json").read_text())
    (out / "config.json").write_text(json.dumps(described | {"config_version": 99}))
    with pytest.raises(ConfigError, match=r"config_version 99 is not 1"):
        colaworld.from_pretrained(out)
    shutil.rmtree(run / "weights")
    with pytest.raises(WeightsError, match=r"a run that is not finished"):
        colaworld.from_pretrained(run)
