"""colaworld probe: what latent actions of several models tell of the real ones, side by side."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated

import tyro

from colaworld.cli.command_line import from_command_line
from colaworld.cli.progress import bar
from colaworld.cli.train import choose_device, data_flag, take_data
from colaworld.config import ConfigError
from colaworld.data.config import DataConfig, check_there
from colaworld.evaluation.settings import EvaluationConfig
from colaworld.runs.config import read_config


@dataclass(frozen=True)
class ProbeOptions:
    """Options of `colaworld probe`. Data settings are by default those of the first run that is named."""

    latents: Annotated[tuple[str, ...], tyro.conf.Positional]
    """Run folders, exported worlds, and published models of others (a safetensors file or its folder);
    or hub names."""
    data: DataConfig = field(default_factory=lambda: DataConfig(split="heldout"))
    """The data set, with real actions. Every model sees the same transitions, each at the frame size it was
    trained on, or at data.height x data.width where it takes any (default: as recorded)."""
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    """How it is measured: probe_clips, batch_size, bootstrap_samples, probe and seed; nothing is rolled
    out."""
    kind: str = "auto"
    """Layout of the published models: adaworld, dreamdojo, villa-x, or one of your own. auto: by their
    keys."""
    out: Path | None = None
    """Write all numbers into this JSON file."""
    device: str = "auto"
    """cpu, cuda, or auto."""


def run(argv: list[str]) -> int:
    """Measure; prints one table."""
    named = _parse(ProbeOptions(latents=tyro.MISSING), data_flag(argv)).latents
    if not named:
        raise ConfigError("probe: expected at least one run, exported world or model of others")
    default = ProbeOptions(latents=named)
    runs = [Path(name) for name in named if (Path(name) / "config.yaml").is_file()]
    data, arguments = default.data, argv
    if runs:
        # Of the whole frames: a run knows its own size, and others take them as recorded.
        data = replace(read_config(runs[0]).data, split="heldout", labels=None)
        data = replace(data, height=None, width=None)
    data, arguments = take_data(argv, data)
    default = replace(default, data=data.one_set())
    options = _parse(default, arguments)
    check_there(options.data.path)
    device = choose_device(options.device)

    # Not above: torch takes seconds, and help and wrong calls need none of it.
    from colaworld.evaluation.latents import side_by_side
    from colaworld.files import write_json
    from colaworld.runs.latents import probe_latents

    with bar("probing", stages=True) as progress:
        results = probe_latents(
            options.latents,
            options.data,
            options.evaluation,
            kind=options.kind,
            device=device,
            progress=progress,
        )
    if options.out is not None:
        write_json(options.out, results)
    print(side_by_side(results))
    return 0


def _parse(default: ProbeOptions, arguments: list[str]) -> ProbeOptions:
    return from_command_line(
        default,
        arguments,
        program="colaworld probe",
        description="What the latent actions of one or several models tell of the real ones, side by side. Nothing "
        "is rolled out.",
        usual={"--data PATH": "The data set, with real actions. [the first run's]"},
        groups={
            "data": "data.split data.height data.width data.frames_per_clip data.stride data.fps data.crop "
            "data.camera data.action_column",
            "measuring": "evaluation.probe_clips evaluation.batch_size evaluation.bootstrap_samples "
            "evaluation.probe.test_share evaluation.seed",
        },
    )


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))
