"""From files as they are published to a trained world, by the commands a user would call: weights in
shards with text in them, a tokenizer of its own, a latent cache, a death in the middle, an export.

Small in every run; at 200 M (STDiT3) and 100 M parameters (Wan) where slow tests run.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import colaworld
from colaworld.cli.main import main
from colaworld.data.config import EncodingConfig
from colaworld.data.video_writer import VideoWriter
from colaworld.models.backbones import BackboneConfig, build_backbone
from colaworld.models.backbones.stdit3 import STDiT3Config
from colaworld.models.backbones.wan import WanConfig
from colaworld.models.tokenizers import build_tokenizer
from colaworld.models.tokenizers.config import OpenSoraVAEConfig

SCRIPT = Path(__file__).with_name("deaths.py")
SIDE, FRAMES = 32, 5  # pixels and frames of a clip: latents 4 x 4, two of them
VAE = OpenSoraVAEConfig(
    image_widths=(8, 8, 8, 8), image_layers=1, temporal_width=8, temporal_layers=1, groups=4
)


@dataclass(frozen=True)
class World:
    """A recipe and the sizes it is called with."""

    recipe: str
    backbone: BackboneConfig
    flags: tuple[str, ...]
    least: float  # parameters


def stdit3(depth: int, width: int, heads: int, least: float) -> World:
    backbone = replace(STDiT3Config.xl2(), depth=depth, width=width, heads=heads)
    flags = ("--model.backbone.depth", depth, "--model.backbone.width", width)
    flags += ("--model.backbone.heads", heads, "--model.conditioner.heads", heads)
    flags += ("--model.backbone.caption-width", 16, "--model.backbone.caption-length", 3)
    sizes = ("--model.tokenizer.image-widths", 8, 8, 8, 8, "--model.tokenizer.image-layers", 1)
    sizes += ("--model.tokenizer.temporal-width", 8, "--model.tokenizer.temporal-layers", 1)
    sizes += ("--model.tokenizer.groups", 4)
    return World("opensora.cola", backbone, tuple(map(str, flags + sizes)), least)


def wan(layers: int, heads: int, head_dim: int, ffn: int, least: float) -> World:
    backbone = WanConfig(
        layers=layers, heads=heads, head_dim=head_dim, ffn=ffn, in_channels=16, text_width=64
    )
    flags = ("--model.backbone.layers", layers, "--model.backbone.heads", heads)
    flags += ("--model.backbone.head-dim", head_dim, "--model.backbone.ffn", ffn)
    flags += ("--model.conditioner.heads", heads, "--model.backbone.text-width", 64)
    return World("wan.cola", backbone, tuple(map(str, flags)), least)


SMALL = {"stdit3": stdit3(2, 48, 2, 0), "wan": wan(2, 2, 24, 64, 0)}
LARGE = {"stdit3": stdit3(14, 768, 12, 200e6), "wan": wan(14, 6, 128, 3072, 100e6)}


def film(folder: Path) -> Path:
    """Six videos of a square that moves; two are held out."""
    folder.mkdir()
    for number in range(6):
        rng = np.random.default_rng(number)
        with VideoWriter(
            folder / f"{number}.mp4",
            fps=10,
            height=SIDE,
            width=SIDE,
            encoding=EncodingConfig(pixel_format="yuv420p"),
        ) as video:
            place = rng.integers(0, SIDE - 8, size=2)
            for _ in range(14):
                frame = np.full((SIDE, SIDE, 3), 40, np.uint8)
                frame[place[0] : place[0] + 8, place[1] : place[1] + 8] = (200, 120, 30)
                video.write(frame)
                place = (place + rng.integers(-4, 5, size=2)).clip(0, SIDE - 8)
    return folder


def publish_generator(world: World, folder: Path) -> Path:
    """Random weights as published: with text, in shards, beside their index and config.json."""
    folder.mkdir()
    full = replace(world.backbone, text="full", causal=False)
    if isinstance(full, STDiT3Config):
        full = replace(full, caption_width=16, caption_length=3)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        generator = build_backbone(full)
    weights = {key: value.clone() for key, value in generator.state_dict().items()}
    assert sum(value.numel() for value in weights.values()) >= world.least
    if isinstance(full, STDiT3Config):
        head_dim = full.width // full.heads
        weights["rope.freqs"] = 10_000.0 ** (-torch.arange(0, head_dim, 2) / head_dim)
        described = {"architectures": ["STDiT3"], "depth": full.depth, "hidden_size": full.width}
        described |= {"num_heads": full.heads, "caption_channels": 16, "model_max_length": 3}
    else:
        described = {"_class_name": "WanTransformer3DModel", "num_layers": full.layers}
        described |= {"num_attention_heads": full.heads, "attention_head_dim": full.head_dim}
        described |= {"ffn_dim": full.ffn, "text_dim": full.text_width}
    (folder / "config.json").write_text(json.dumps(described))
    keys, where = sorted(weights), {}
    for number, part in enumerate((keys[::2], keys[1::2]), 1):
        name = f"model-{number:05d}-of-00002.safetensors"
        save_file({key: weights[key] for key in part}, folder / name)
        where |= dict.fromkeys(part, name)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))
    return folder


def publish_tokenizer(world: World, folder: Path) -> tuple[str, ...]:
    """A small tokenizer with random weights on disk; the flags that name it, but for a prefix."""
    if world.recipe == "wan.cola":
        diffusers = pytest.importorskip("diffusers", reason="Wan's VAE comes from diffusers")
        with torch.random.fork_rng():
            torch.manual_seed(1)
            vae = diffusers.AutoencoderKLWan(
                base_dim=8, z_dim=16, dim_mult=[1, 1, 1, 1], num_res_blocks=1
            )
        vae.save_pretrained(folder / "vae")
        return ("tokenizer.path", str(folder))
    folder.mkdir()
    with torch.random.fork_rng():
        torch.manual_seed(1)
        save_file(build_tokenizer(VAE).state_dict(), folder / "model.safetensors")
    return ("tokenizer.path", str(folder))


def through_the_command_line(world: World, tmp_path: Path, capsys, steps: int) -> None:
    data = film(tmp_path / "films")
    generator = publish_generator(world, tmp_path / "generator")
    name, where = publish_tokenizer(world, tmp_path / "tokenizer")
    shape = ["--data", str(data), "--data.height", str(SIDE), "--data.width", str(SIDE)]
    shape += ["--data.frames-per-clip", str(FRAMES), "--data.holdout", "0.34"]
    shape += [*world.flags, f"--model.{name}", where]
    encode = ["data", "encode", world.recipe, *shape, "--out", str(tmp_path / "latents")]
    assert main(encode) == 0, capsys.readouterr()

    call = ["train", world.recipe, *shape, "--backbone-weights", str(generator)]
    call += ["--latents", str(tmp_path / "latents")]
    call += ["--objective.no-augment", "--objective.history", "1", "1"]
    call += ["--model.window", str(FRAMES), "--training.batch-size", "2"]
    call += ["--training.accumulate", "1", "--training.max-steps", str(steps)]
    call += ["--training.checkpoint-every", "1", "--training.keep-checkpoints", "1"]
    call += ["--training.health-window", "4", "--objective.start-clips", "4"]
    call += ["--model.idm.depth", "1", "--model.idm.width", "32", "--model.idm.heads", "1"]
    call += ["--model.idm.tokens", "1", "--model.conditioner.depth", "1"]
    call += ["--model.quantizer.unquantized-steps", "0", "--training.no-tensorboard"]
    out = tmp_path / "run"
    home = str(Path(colaworld.__file__).parent.parent)
    done = subprocess.run(
        [sys.executable, str(SCRIPT), str(out), f"row:{steps + 1}", "none", "--", *call],
        env={**os.environ, "PYTHONPATH": home},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    happened = [line for line in done.stdout.splitlines() if line.startswith("DEATH")]
    assert happened == [f"DEATH row:{steps + 1} killed", "DEATH none exit 0"]
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    order = [(phase, step) for phase in ("warmup", "joint") for step in range(1, steps + 1)]
    assert [(row["phase"], row["step"]) for row in rows] == order
    assert all(np.isfinite(row["loss"]) for row in rows)

    trained = load_file(out / "weights" / "model.safetensors")
    before = {}
    for shard in generator.glob("*.safetensors"):
        before |= load_file(shard)
    inside = {k.removeprefix("backbone."): v for k, v in trained.items() if "backbone." in k}
    # named by its path, not copied
    assert [key for key in trained if "tokenizer" in key] == ["tokenizer.fingerprint"]
    assert sum(value.numel() for value in inside.values()) >= 0.8 * world.least
    moved = [key for key, value in inside.items() if not torch.equal(value, before[key])]
    assert len(moved) > len(inside) // 2  # the joint phase went on from the published weights
    change = max(float((inside[k] - before[k]).abs().max()) for k in inside)
    assert change < 0.1

    shown = ["evaluate", str(out), "--sampler.steps", "1", "--evaluation.text-effect"]
    assert main([*shown, "--evaluation.horizon", "None"]) == 0
    said = capsys.readouterr().out
    assert "delta-PSNR" in said and "flow loss without cross-attention" in said
    assert "8 steps" in said  # as many frames as whole latents of it
    assert main([*shown, "--evaluation.horizon", "3"]) == 2
    assert "evaluation.horizon: " in (said := capsys.readouterr().err) and "got 3" in said
    codes = [str(code) for code in (3, 1, 0, 2)]  # one token each: the four into a latent frame
    call = ["sample", str(out), "--out", str(tmp_path / "a.png"), "--steps", "1", "--codes"]
    assert main([*call, *codes]) == 0
    assert "1 rollout(s) of 5 frames" in capsys.readouterr().out
    assert main([*call, *codes[:3]]) != 0
    assert "3 actions after the context are not whole latent frames" in capsys.readouterr().err
    (tmp_path / "tokenizer" / "text_encoder").mkdir()
    (tmp_path / "tokenizer" / "text_encoder" / "model.safetensors").write_text(
        "22 GB of a pipeline"
    )
    for _ in range(2):  # again, over the first
        assert main(["export", str(out), "--out", str(tmp_path / "exported")]) == 0
    inside_it = tmp_path / "exported" / "tokenizer" / "text_encoder"
    assert inside_it.exists() == (world.recipe != "wan.cola")  # where a folder is named, only that
    weights = max(Path(where).rglob("*.safetensors"), key=lambda file: file.stat().st_size)
    before_change = weights.read_bytes()
    save_file({k: 1.5 * v for k, v in load_file(weights).items()}, weights)
    assert main(["evaluate", str(out), "--sampler.steps", "1", "--evaluation.horizon", "4"]) == 2
    said = capsys.readouterr().err
    assert "model.tokenizer.path" in said and "is not the tokenizer that these weights" in said
    weights.write_bytes(before_change)
    shutil.rmtree(where)  # its tokenizer went along
    assert str(tmp_path) not in (tmp_path / "exported" / "config.json").read_text()
    model = colaworld.from_pretrained(tmp_path / "exported").model
    for key, value in model.backbone.state_dict().items():
        assert torch.equal(value, inside[key]), key


@pytest.mark.parametrize("kind", ["stdit3", pytest.param("wan", marks=pytest.mark.slow)])
def test_small(kind, tmp_path, capsys) -> None:
    through_the_command_line(SMALL[kind], tmp_path, capsys, steps=2)


@pytest.mark.slow
@pytest.mark.parametrize("kind", LARGE)
def test_hundreds_of_millions_of_parameters(kind, tmp_path, capsys) -> None:
    through_the_command_line(LARGE[kind], tmp_path, capsys, steps=2)
