"""What a person reads of a training: what is about to run, and what to do with what came of it.

Not here: the call (train.py), its progress (training).
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

from colaworld.cli.launch import program
from colaworld.config import leaves, to_dict
from colaworld.data.config import MixtureSource
from colaworld.data.mixture import shares_told
from colaworld.recipes import RECIPES, recipe
from colaworld.runs.config import RunConfig
from colaworld.runs.lengths import codes_start

if TYPE_CHECKING:
    from colaworld.data.loader import ClipLoader
    from colaworld.models.world_model import WorldModel
    from colaworld.training.checkpoint import Checkpoint
    from colaworld.training.trainer import Trainer


def summary(
    config: RunConfig,
    trainer: Trainer,
    changes: Sequence[str],
    tokens: str,
    duration: str | None,
    started: Sequence[Checkpoint],
) -> str:
    """What is about to run, in a few lines: data, sizes, phases, device.

    `changes`: what was scaled to a shorter run. `tokens`: how many there are, and their memory.
    `duration`: in words. `started`: its checkpoints so far.
    """
    import torch

    data = _data(config, cast("ClipLoader", trainer.loader))
    counts = {
        name: sum(p.numel() for p in part.parameters())
        for name, part in trainer.model.named_children()
    }
    phases = []
    for phase in trainer.phases:
        until = " at most, or until its gate opens" if phase.gate else ""
        phases.append(f"{phase.name}: {phase.steps} steps{until}; trains {', '.join(phase.train)}")
    device = str(trainer.device)
    if trainer.device.type == "cpu":
        device += f", {torch.get_num_threads()} threads"
    else:
        device += f", {torch.cuda.get_device_name(trainer.device)}"
    if trainer.distributed.world_size > 1:
        device += f", {trainer.distributed.world_size} processes"
    lines = [
        *(("data" if i == 0 else "", text) for i, text in enumerate(data)),
        ("video model", _backbone(config)),
        ("parameters", ", ".join(f"{n} {_short(count)}" for n, count in counts.items() if count)),
        *(("phases" if i == 0 else "", text) for i, text in enumerate(phases)),
        *([("codes", codes)] if (codes := codes_start(config)) else []),
        *([("shortened", ", ".join(changes))] if changes else []),
        ("batch", _batch(config)),
        ("tokens", tokens),
        *([("time", duration)] if duration else []),
        ("device", device),
        ("out", f"{trainer.out}" + (f", from {started[-1].path.name}" if started else "")),
    ]
    about = (RECIPES[config.recipe].__doc__ or "").strip() if config.recipe in RECIPES else ""
    return "\n".join([f"{config.recipe}: {about}", *(f"  {k:12}{v}" for k, v in lines)])


def _data(config: RunConfig, loader: ClipLoader) -> list[str]:
    """Each set: where and what it is, how it was recorded, how much of it is used; their shares."""
    lines = []
    for name, clips in loader.sets.items():
        left_out = [
            f"{count} {what}"
            for count, what in (
                (clips.held_out, "held out"),
                (clips.unlabelled, "left out by data.labels"),
                (len(clips.too_short), "too short"),
                (len(clips.broken), "broken"),
            )
            if count
        ]
        described, episodes = clips.source.describe(), clips.source.episodes
        sizes = sorted({(episode.height, episode.width) for episode in episodes})
        rates = [min(e.fps for e in episodes), max(e.fps for e in episodes)]
        recorded = [
            *([f"camera {described.camera}"] if described.camera else []),
            " and ".join(f"{h}x{w}" for h, w in dict.fromkeys((sizes[0], sizes[-1]))) + " px",
            " to ".join(dict.fromkeys(f"{rate:.4g}" for rate in rates)) + " frames/s",
        ]
        called = f"{name}: " if config.data.mixture else ""
        lines += [
            f"{called}{clips.config.path} ({described.format})",
            f"recorded with {', '.join(recorded)}",
            f"{len(clips.episodes)} episodes, {clips.count} clips of "
            f"{config.data.frames_per_clip} frames, {clips.height}x{clips.width} px"
            + (f" ({', '.join(left_out)})" if left_out else ""),
            *(
                [
                    f"{clips.labels} recorded transitions in use of {clips.config.labels} asked for: "
                    "whole episodes, and of the last one what holds a clip"
                ]
                if clips.labels
                else []
            ),
        ]
    if config.data.mixture:
        lines += shares_told(loader, config.training.batch_size * config.training.accumulate)
    return lines


def _backbone(config: RunConfig) -> str:
    if config.backbone_weights is None:
        return "random weights"
    return "nano, as shipped" if config.backbone_weights == "nano" else config.backbone_weights


def _batch(config: RunConfig) -> str:
    training = config.training
    passes = f" in {training.accumulate} passes" if training.accumulate > 1 else ""
    return f"{training.batch_size * training.accumulate} clips a step{passes}"


def _short(count: int) -> str:
    for limit, unit in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if count >= limit:
            return f"{count / limit:.3g} {unit}"
    return str(count)


def ending(config: RunConfig, trainer: Trainer) -> str:
    """Where the weights are, and what to do with them."""
    from colaworld.runs.load import without_world

    out, parts = trainer.out, config.parts()
    lines = [("weights", str(out / "weights" / "model.safetensors"))]
    if not parts:  # a plain video model has no latent actions to evaluate
        cola = [*program(), "train", "nano.cola", "--backbone-weights", str(out)]
        cola += [*same_frames(config, recipe("nano.cola")), "--out", f"{out}-cola"]
        lines.append(("use it", shlex.join(cola)))
    elif (why := without_world(parts)) is not None:
        lines.append(("use it", why))
    elif cast("WorldModel", trainer.model).quantizer.continuous:
        lines.append(("no codes", f"{codes_start(config)}: add --resume --training.max-steps N"))
    else:
        shares = config.data.shares()  # both are of one data set
        one = ["--data", max(shares, key=lambda name: shares[name])] if config.data.mixture else []
        for verb in ("evaluate", "sample"):
            lines.append((verb, shlex.join([*program(), verb, str(out), *one])))
    return "\n".join([f"finished {out}", *(f"  {k:12}{v}" for k, v in lines)])


def same_frames(config: RunConfig, base: RunConfig) -> list[str]:
    """What `base` needs on the command line to show its video model the frames of `config`."""

    def shown(run: RunConfig) -> dict[str, Any]:
        values = to_dict(run)
        model = {name: values["model"][name] for name in ("window", "backbone", "tokenizer")}
        history = {"history": values["objective"]["history"]}
        return dict(leaves({"data": values["data"], "model": model, "objective": history}))

    before, flags = shown(base), []
    for key, value in shown(config).items():
        if value == before.get(key):
            continue
        where, _, name = key.replace("_", "-").rpartition(".")
        no = "no-" if value is False else ""
        if key.startswith("data.mixture"):
            continue
        flags.append("--data" if key == "data.path" else f"--{where}.{no}{name}")
        if not isinstance(value, bool):
            flags += map(str, value if isinstance(value, list) else [value])
    mixture = config.data.mixture
    if any(one != MixtureSource(one.path, one.weight) for one in mixture.values()):
        return [*flags, "--data", "MIXTURE.yaml"]  # the file that they were named by
    for name, one in mixture.items():
        flags += ["--data", f"{name}={one.path}:{one.weight:g}"]
    return flags
