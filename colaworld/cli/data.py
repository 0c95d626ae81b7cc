"""`colaworld data inspect PATH`: what a data set holds, what is wrong with it, and, if asked, a contact
sheet.

Not here: looking (data/inspection.py), `colaworld data encode` (encode.py), `data stats` (data_stats.py);
this file only prints.
"""

from __future__ import annotations

import logging
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from colaworld.cli.command_line import from_command_line
from colaworld.cli.errors import FORESEEN, report_error
from colaworld.config import Checked, ConfigError, Count, Positive, Weight
from colaworld.data.config import DataConfig, check_there
from colaworld.data.mixture import named_data, shares_told
from colaworld.files import printable

if TYPE_CHECKING:
    from colaworld.data.inspection import Inspection


@dataclass(frozen=True)
class InspectConfig(Checked, at="--"):
    """What to look at."""

    path: Annotated[Path, tyro.conf.Positional]
    """A LeRobot folder, any folder of video files, tars of them or HDF5 files, or one file; or a YAML file
    that names several with their weights."""
    sheet: Path | None = None
    """Write a contact sheet into this PNG file: a row of frames per episode."""
    source: str = "auto"
    """How to read it: lerobot, hdf5, webdataset, video_folder, or a source of your own."""
    camera: str | None = None
    """Which camera, where there are several."""
    recorded_fps: Positive | None = None
    """HDF5: frames per second, where the files do not say."""
    action_column: str | None = "action"
    """Which column the actions are in; others named action... are shown too."""
    episodes: Count = 200
    """At most so many episodes are decoded, spread evenly over the set."""
    rows: Count = 8
    """Episodes on the contact sheet."""
    scene_cut_threshold: Weight = 3.0
    """As in training: how many times the usual frame difference a cut is."""


def _listed(counts: dict, show) -> str:
    shown = [f"{show(k)} ({n})" if len(counts) > 1 else show(k) for k, n in counts.items()]
    return ", ".join(shown[:8]) + (f" and {len(shown) - 8} more" if len(shown) > 8 else "")


def print_inspection(found: Inspection) -> None:
    """Tables on standard output."""
    from rich import box
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console()
    table = Table(box=box.SIMPLE, show_header=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    shortest, median, longest = found.lengths
    partly = "" if found.looked_at == found.episodes else f" (in {found.looked_at} episodes)"
    table.add_row("data set", escape(f"{printable(found.path)} ({found.kind})"))
    table.add_row("episodes", str(found.episodes))
    table.add_row("frames", f"{found.frames} ({found.seconds / 60:.1f} min)")
    table.add_row("per episode", f"{shortest} to {longest} frames, median {median}")
    table.add_row("frames/s", _listed(found.fps, lambda v: f"{v:g}"))
    table.add_row("size", _listed(found.sizes, lambda v: f"{v[0]}x{v[1]} px (height x width)"))
    if found.cameras:
        table.add_row("cameras", ", ".join(found.cameras))
    cuts = escape(", ".join(f"{printable(name)} at {frame}" for name, frame in found.cuts[:8]))
    more = f", and {len(found.cuts) - 8} more" if len(found.cuts) > 8 else ""
    table.add_row(f"scene cuts{partly}", f"{len(found.cuts)}" + (f": {cuts}{more}" if cuts else ""))
    table.add_row(f"broken{partly}", str(len(found.broken)))
    if found.constant:
        table.add_row(f"one colour{partly}", str(len(found.constant)))
    if found.labels:
        table.add_row("latent actions", escape(printable(found.labels)))
    console.print(table)
    for summary in found.actions:
        spec = summary.spec
        unit = "".join(f", {unit}" for unit in dict.fromkeys(spec.units))
        actions = Table(
            title=f"actions: column {spec.column!r} ({spec.kind}, {spec.size}{unit}){partly}",
            title_justify="left",
            box=box.SIMPLE,
        )
        if spec.kind == "discrete":
            for head in ("class", "name", "times", "share"):
                actions.add_column(head, justify="left" if head == "name" else "right")
            total = max(1, sum(summary.count))
            for i, n in enumerate(summary.count):
                name = spec.names[i] if spec.names else ""
                actions.add_row(str(i), name, str(n), f"{n / total:.1%}")
        else:
            for head in ("dimension", "name", "low", "mean", "high"):
                actions.add_column(head, justify="left" if head == "name" else "right")
            for i in range(spec.size):
                name = spec.names[i] if spec.names else ""
                values = (summary.low[i], summary.mean[i], summary.high[i])
                actions.add_row(str(i), name, *(f"{v:.4g}" for v in values))
        console.print(actions)
    if not found.actions and not found.action_problems:
        console.print("no action column: fine for training, the linear probe will be left out")
    for colour, what, lines in (
        ("red", "actions", found.action_problems),
        ("red", "broken", [b.reason for b in found.broken]),
        ("red", "one colour", found.constant),
        ("yellow", "warning", found.warnings),
    ):
        for line in lines[:20]:
            said = f"{what}: {printable(line)}"
            console.print(said, style=colour, markup=False, highlight=False, soft_wrap=True)
        if len(lines) > 20:
            console.print(f"{what}: and {len(lines) - 20} more", style=colour)


def run(argv: list[str]) -> int:
    """`colaworld data inspect PATH ...`. Returns 0, or 1 where something in the set is wrong."""
    usage = (
        "usage: colaworld data inspect PATH [--sheet FILE]; see colaworld data inspect --help\n"
        "       colaworld data stats PATH [--unit U ...] [--mode M] [--frame F] [--write]; see colaworld "
        "data stats --help\n"
        "       colaworld data encode RECIPE|RUN --data PATH --out DIR; see colaworld data encode "
        "--help"
    )
    if argv[:1] == ["encode"]:
        from colaworld.cli.encode import run as encode  # needs the recipes, which inspect does not

        return encode(argv[1:])
    if argv[:1] == ["stats"]:
        from colaworld.cli.data_stats import run as stats

        return stats(argv[1:])
    if argv[:1] in ([], ["-h"], ["--help"]):
        print(usage, file=sys.stdout if argv else sys.stderr)
        return 0 if argv else 2
    if argv[0] != "inspect":
        if Path(argv[0]).exists():
            usage = f"did you mean: colaworld data inspect {argv[0]}"
        print(f"colaworld data: unknown verb {argv[0]!r}; {usage}", file=sys.stderr)
        return 2
    config = from_command_line(
        InspectConfig,
        argv[1:],
        program="colaworld data inspect",
        description="What a data set holds, what is wrong with it, and, if asked, a contact sheet.",
    )
    rooms_log = logging.getLogger("colaworld.data")
    level = rooms_log.level
    rooms_log.setLevel(logging.ERROR)  # faults are listed below
    try:
        check_there(config.path)
        from colaworld.data.inspection import contact_sheet, inspect  # imports torch

        data = named_data([str(config.path)]) or DataConfig()
        several = len(data.mixture) > 1
        if several and config.sheet is not None:
            raise ConfigError("--sheet: of one data set; inspect the folder of one of the mixture")
        default = DataConfig(
            source=config.source,
            camera=config.camera,
            recorded_fps=config.recorded_fps,
            action_column=config.action_column,
            scene_cut_threshold=config.scene_cut_threshold,
        )
        data = replace(default, path=data.path, mixture=data.mixture)
        if data.mixture:
            from colaworld.data.loader import ClipLoader

            counted = replace(
                data, streams=1, workers=0, height=32, width=32
            )  # sizes may differ yet
            print(f"clips of {data.frames_per_clip} frames, as training takes them by default:")
            print("\n".join(shares_told(ClipLoader(counted, batch_size=16, seed=0), 16)))
        bad = False
        for name, one in data.sets().items():
            if data.mixture:
                print(f"\n{name}")
            found = inspect(one, most_episodes=config.episodes, rows=config.rows)
            print_inspection(found)
            bad = bad or bool(found.broken or found.constant or found.action_problems)
            if config.sheet is None and not data.mixture:
                print("to see frames of it: --sheet FILE.png")
            elif config.sheet is not None and found.thumbnails:
                print(f"contact sheet: {contact_sheet(found, config.sheet)}")
    except FORESEEN as error:
        return report_error("colaworld data inspect", error)
    finally:
        rooms_log.setLevel(level)
    return int(bad)


if __name__ == "__main__":
    raise SystemExit(run(sys.argv[1:]))
