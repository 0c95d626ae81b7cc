"""colaworld export: write a finished run as a model for others, and upload it if asked."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from colaworld.cli.command_line import from_command_line
from colaworld.config import Checked, Positive
from colaworld.files import SHARD_GB
from colaworld.runs.config import read_config


@dataclass(frozen=True)
class ExportOptions(Checked, at="--"):
    """Options of `colaworld export`."""

    run: Annotated[Path, tyro.conf.Positional]
    """The folder of a finished run; evaluate it first, so that its card has numbers."""
    out: Path = Path("exported")
    """Where config.json, the weights and the model card go."""
    shard_gb: Positive = SHARD_GB
    """Largest size of one weights file, in GB."""
    push: str | None = None
    """OWNER/NAME on the hub to upload to, as a private model."""


def run(argv: list[str]) -> int:
    """Export; prints where."""
    options: ExportOptions = from_command_line(
        ExportOptions,
        argv,
        program="colaworld export",
        description="Write a finished run as a model that colaworld.from_pretrained loads.",
    )
    read_config(options.run)

    # Not above: torch takes seconds, and help and wrong calls need none of it.
    from colaworld.runs.pretrained import export_run, push_to_hub

    out = export_run(options.run, options.out, shard_gb=options.shard_gb)
    print(f"{out}: {', '.join(sorted(p.name for p in out.iterdir()))}")
    if options.push is not None:
        print(push_to_hub(out, options.push))
    return 0


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))
