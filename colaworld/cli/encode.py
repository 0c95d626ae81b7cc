"""colaworld data encode: the latents of a data set, once, for training runs to read.

Not here: encoding itself and what is stored (data/latent_writer.py), the tokenizers (models).
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Literal

import tyro

from colaworld.cli.command_line import from_command_line
from colaworld.cli.progress import bar
from colaworld.cli.train import choose_device, take, take_data
from colaworld.config import Checked, Count, Positive, load_yaml
from colaworld.data.config import check_there
from colaworld.models.tokenizers import build_tokenizer
from colaworld.recipes import RECIPES, recipe
from colaworld.runs.config import RunConfig, read_config
from colaworld.runs.presets import with_preset
from colaworld.runs.sizes import check_frames

_USAGE = """usage: colaworld data encode RECIPE|RUN --data PATH --out DIR [--config FILE] [--FIELD VALUE ...]

Takes every option of training, so that data and tokenizer are the same. A call that was broken off
goes on where it stopped. Several processes started by torchrun each take a share.
"""


@dataclass(frozen=True)
class EncodeOptions(Checked, at="--"):
    """Options of `colaworld data encode`."""

    name: Annotated[str, tyro.conf.Positional]
    """A recipe, or the folder of a run."""
    out: Path = Path("latents")
    """The cache: key.json, index.parquet and shards of safetensors."""
    dtype: Literal["float32", "float16", "bfloat16"] = "float32"
    """In which latents are stored. Half precision halves the space and rounds them."""
    every: Count = 1
    """Tokenizers with a temporal stride: only clips that start at multiples of this many frames."""
    batch_size: Count = 8
    """Clips (with a temporal stride) or frames encoded at once."""
    shard_mb: Positive = 256.0
    """Megabytes of a file; held in memory while it is made."""
    device: str = "auto"
    """cpu, cuda, or auto."""
    run: Annotated[RunConfig, tyro.conf.arg(name="")] = field(default_factory=RunConfig)
    """As in training. Of it, `data` (all episodes unless --data.split says otherwise),
    `model.tokenizer` and `training.seed` matter here."""


def run(argv: list[str]) -> int:
    """Encode what is missing; prints what the cache then holds."""
    if not argv or argv[0] in ("-h", "--help", "--help-all"):
        names = "\n".join(f"  {name}" for name in RECIPES)
        print(f"{_USAGE}\nrecipes:\n{names}", file=sys.stdout if argv else sys.stderr)
        return 0 if argv else 2
    name, rest = argv[0], argv[1:]
    files, rest = take(rest, "--config")
    presets, rest = take(rest, "--preset")
    stored = _config(name)
    for preset in presets:
        stored = with_preset(stored, preset)
    for file in files:
        stored = load_yaml(file, RunConfig, base=stored)
    data, rest = take_data(rest, stored.data)
    options = from_command_line(
        EncodeOptions(name=name, run=replace(stored, data=replace(data, split="all", labels=None))),
        [name, *rest],
        program="colaworld data encode",
        description="Encode a data set once, for training runs to read its latents.",
        usual={"--data PATH": "The videos.", "--config FILE": "A YAML file."},
    )
    rank, world_size = (int(os.environ.get(k, d)) for k, d in (("RANK", 0), ("WORLD_SIZE", 1)))
    config = options.run
    check_there(config.data.one_set().path)
    device = own_device(choose_device(options.device))

    # Not above: help and wrong calls need none of it.
    import torch

    from colaworld.data.clips import ClipSet
    from colaworld.data.latent_cache import LatentCache
    from colaworld.data.latent_writer import write_latents

    clips = ClipSet(config.data)
    check_frames(
        config.model,
        config.parts(),
        height=clips.height,
        width=clips.width,
        frames=config.data.frames_per_clip,
    )
    with torch.random.fork_rng(devices=[]):  # as in training, where a tokenizer has random weights
        torch.manual_seed(config.training.seed)
        tokenizer = build_tokenizer(config.model.tokenizer).to(device)
    fingerprint = tokenizer.fingerprint()
    with bar("encoding") as progress:
        done = write_latents(
            options.out,
            clips,
            tokenizer.encode,
            tokenizer=fingerprint,
            temporal_stride=tokenizer.temporal_stride,
            dtype=options.dtype,
            every=options.every,
            batch_size=options.batch_size,
            shard_mb=options.shard_mb,
            rank=rank,
            world_size=world_size,
            device=device,
            progress=lambda made, total: progress(made, total, "latents"),
        )
    left_out = f", {done.left_out} left out (broken, or over a scene cut)" if done.left_out else ""
    print(f"encoded {done.entries} latents into {done.shards} files{left_out}")
    if done.complete:
        print(f"complete: {LatentCache.open(options.out, clips, tokenizer=fingerprint)}")
    else:
        print(f"{options.out}: other processes have shards left to write")
    return 0


def own_device(device: str) -> str:
    """Of several processes on a machine (torchrun), each has its own GPU where none is named."""
    number = os.environ.get("LOCAL_RANK")
    return choose_device(f"cuda:{number}") if device == "cuda" and number else device


def _config(name: str) -> RunConfig:
    if name not in RECIPES and Path(name).is_dir():
        return read_config(Path(name))
    return recipe(name)
