"""`colaworld data encode`: a cache that training's own clips find, in one process or several."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file

from colaworld.cli import encode, record
from colaworld.cli.main import main
from colaworld.config import to_yaml
from colaworld.data.clips import ClipSet
from colaworld.data.latent_cache import LatentCache
from colaworld.data.loader import ClipLoader
from colaworld.models.tokenizers import build_tokenizer
from colaworld.models.tokenizers.config import OpenSoraVAEConfig
from colaworld.models.tokenizers.opensora_vae import OpenSoraVAE
from colaworld.recipes import recipe

TINY_VAE = OpenSoraVAEConfig(
    image_widths=(4, 8),
    image_layers=1,
    temporal_width=4,
    temporal_multipliers=(1, 1, 2),
    temporal_halve=(True, True),
    temporal_layers=1,
    groups=2,
)


def _recorded(path):
    record.run(["scene", "--out", str(path), "--episodes", "3", "--steps", "14"])
    return path


def test_a_recipes_latents(tmp_path, capsys) -> None:
    data, out = _recorded(tmp_path / "set"), tmp_path / "latents"
    call = ["data", "encode", "nano.cola", "--data", str(data), "--out", str(out)]
    assert main(call) == 0
    assert "42 frames of [12, 16, 16] float32" in capsys.readouterr().out
    config = recipe("nano.cola")
    tokenizer = build_tokenizer(config.model.tokenizer)
    trained = replace(config.data, path=data, workers=0)
    cache = LatentCache.open(out, ClipSet(trained), tokenizer=tokenizer.fingerprint())
    batch = next(ClipLoader(trained, batch_size=2, seed=0, latents=cache))
    assert torch.equal(batch.latents, tokenizer.encode(batch.frames.float().div_(255)))
    assert main(call) == 0 and "encoded 0 latents into 0 files" in capsys.readouterr().out
    assert main([*call, "--model.tokenizer.patch", "4"]) == 2
    assert "tokenizer changed (hash" in capsys.readouterr().err


def test_two_processes_and_a_learned_tokenizer(tmp_path, capsys, monkeypatch) -> None:
    data, out = _recorded(tmp_path / "set"), tmp_path / "latents"
    file = tmp_path / "run" / "config.yaml"
    file.parent.mkdir()
    config = recipe("nano.cola")
    model = replace(config.model, tokenizer=TINY_VAE)
    clips = replace(config.data, path=data, frames_per_clip=5, workers=0)
    config = replace(config, model=model, data=clips)
    file.write_text(to_yaml(config))
    call = ["data", "encode", str(file.parent), "--out", str(out), "--every", "2"]
    call += ["--shard-mb", "0.02", "--dtype", "bfloat16"]
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank, told in (("0", "other processes have shards left"), ("1", "complete: LatentCache")):
        monkeypatch.setenv("RANK", rank)
        assert main(call) == 0
        assert told in capsys.readouterr().out
    torch.manual_seed(config.training.seed)
    tokenizer = OpenSoraVAE(TINY_VAE)
    cache = LatentCache.open(out, ClipSet(clips), tokenizer=tokenizer.fingerprint())
    assert len(cache) == 15 and cache.dtype == torch.bfloat16
    batch = next(ClipLoader(clips, batch_size=3, seed=0, latents=cache))
    wanted = tokenizer.encode(batch.frames.float().div_(255)).to(torch.bfloat16)
    assert torch.equal(batch.latents, wanted)


def test_each_process_has_its_own_gpu(monkeypatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert encode.own_device("cuda") == "cuda"
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert [encode.own_device(name) for name in ("cuda", "cuda:0", "cpu")] == [
        "cuda:1",
        "cuda:0",
        "cpu",
    ]
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(ValueError, match=r"--device cuda:2: this torch .* sees 2 GPUs"):
        encode.own_device("cuda")


def test_wrong_calls(tmp_path, capsys) -> None:
    assert main(["data", "encode"]) == 2 and "recipes:" in capsys.readouterr().err
    assert main(["data", "encode", "--help"]) == 0
    assert main(["data", "encode", "nano.colla", "--data", "x"]) == 2
    assert "nano.cola" in capsys.readouterr().err
    assert main(["data", "encode", "nano.cola", "--data", str(tmp_path / "none")]) == 2
    assert "no such folder" in capsys.readouterr().err


def test_training_from_stored_latents_is_training_on_the_fly(
    tmp_path, colaworld, tiny, monkeypatch
) -> None:
    """The losses of a run that reads the cache are those of one that encodes, digit by digit."""
    data, cache, vae = _recorded(tmp_path / "set"), tmp_path / "latents", tmp_path / "vae"
    vae.mkdir()
    save_file(OpenSoraVAE(TINY_VAE).state_dict(), vae / "model.safetensors")
    file = tmp_path / "run.yaml"
    base = recipe("nano.cola")
    model = replace(
        base.model,
        tokenizer=replace(TINY_VAE, path=str(vae)),
        backbone=replace(base.model.backbone, in_channels=4, patch=(1, 2, 2)),
    )
    clips = replace(base.data, path=data, frames_per_clip=9)
    file.write_text(to_yaml(replace(base, model=model, data=clips)))
    options = ["--config", file, *tiny, "--model.window", "9", "--objective.no-augment"]
    call = ["train", "nano.cola", *options]
    plain, stored = tmp_path / "plain", tmp_path / "stored"
    assert colaworld(*call, "--out", plain).status == 0
    assert colaworld("data", "encode", "nano.cola", "--out", cache, *options).status == 0
    monkeypatch.delattr(OpenSoraVAE, "_encode")  # from here on there is nothing but the cache
    assert colaworld(*call, "--out", stored, "--latents", cache).status == 0
    assert _losses(plain) == _losses(stored) and len(_losses(plain)) == 4


def _losses(run) -> list[float]:
    lines = (run / "metrics.jsonl").read_text().splitlines()
    return [row["loss"] for row in map(json.loads, lines)]
