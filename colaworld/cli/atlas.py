"""colaworld atlas: the actions of a world, or of another latent action model, on one page."""

from __future__ import annotations

import shlex
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Literal

import tyro

from colaworld import __version__
from colaworld.cli.command_line import from_command_line
from colaworld.cli.progress import bar
from colaworld.cli.train import choose_device, data_flag, take
from colaworld.config import Checked, ConfigError, Count, Natural, Seed
from colaworld.data.config import DataConfig, check_there
from colaworld.files import printable
from colaworld.runs.config import read_config


@dataclass(frozen=True)
class AtlasOptions(Checked, at="--"):
    """Options of `colaworld atlas`."""

    latents: Annotated[str, tyro.conf.Positional]
    """A run folder, an exported world, a published model of others, or a hub name."""
    out: Path | None = None
    """The page; atlas.html in the run's folder when none is named."""
    clips: Count = 256
    """Clips looked at: every transition in them is sorted by its action."""
    actions: Count = 32
    """Actions shown, the most frequent ones; of continuous latents, groups."""
    examples: Count = 3
    """Transitions shown of each."""
    steps: Natural = 6
    """Frames of the replays, all from one start; 0: none."""
    batch_size: Count = 16
    """Clips given to the model at once."""
    seed: Seed = 0
    """Of the examples and of the replays' noise."""
    kind: str = "auto"
    """Layout of a published model: adaworld, dreamdojo, villa-x, or one of your own. auto: by its keys."""
    device: str = "auto"
    """cpu, cuda, or auto."""
    data: DataConfig = field(default_factory=DataConfig)
    """The data set, and how frames are cut from it: by default as the run's own."""


def run(argv: list[str]) -> int:
    """Draw; prints the page's path."""
    paths, rest = take(data_flag(argv), "--data.path")
    if {"-h", "--help", "--help-all"} & set(argv):
        _parse(AtlasOptions(latents="RUN"), argv)  # ends here
    named = _parse(AtlasOptions, rest).latents
    options = _parse(AtlasOptions(latents=named, data=_data(Path(named), paths)), rest)
    out = options.out or Path(named) / "atlas.html"
    if options.out is None and not Path(named).is_dir():
        raise ConfigError("--out: expected the page to write, since the model has no folder")
    device = choose_device(options.device)

    # Not above: torch takes seconds, and help and wrong calls need none of it.
    from colaworld.data.clips import ClipSet
    from colaworld.data.once import iterate_once
    from colaworld.evaluation.atlas import draw_atlas
    from colaworld.evaluation.evaluate import collect
    from colaworld.evaluation.report.atlas_page import write_atlas
    from colaworld.runs.latents import load_latents

    with bar("drawing", stages=True) as tell:
        tell(0, 3, "reading the model")
        model = load_latents(named, kind=options.kind, device=device)
        size = model.frame_size or (options.data.height, options.data.width)
        data = replace(options.data, height=size[0], width=size[1])
        tell(1, 3, "reading clips")
        spec = ClipSet(data).matched_actions()
        batches = iterate_once(
            data,
            batch_size=options.batch_size,
            limit=options.clips,
            with_actions=spec is not None,
            split=data.split,
        )
        clips = collect(batches, clips=options.clips)
        tell(2, 3, "sorting transitions")
        atlas = draw_atlas(
            model,
            clips,
            spec,
            limit=options.actions,
            examples=options.examples,
            steps=options.steps,
            batch_size=options.batch_size,
            seed=options.seed,
            device=device,
        )
        page = write_atlas(
            out,
            atlas,
            title=f"The actions of {printable(Path(named).name)}",
            version=__version__,
            made=f"{printable(data.path.name if data.path else '')}, {data.split} episodes",
            again=" ".join(["colaworld atlas", *map(shlex.quote, argv)]),
        )
        tell(3, 3, "written")
    print(
        f"{page}: {len(atlas.entries)} of {atlas.actions} actions, {atlas.transitions} transitions of "
        f"{atlas.episodes} episodes"
    )
    return 0


def _data(model: Path, paths: list[str]) -> DataConfig:
    """How clips are cut: as a run's own, of its held-out episodes where it was trained on the set."""
    split: Literal["heldout", "all"] = "all"
    data = DataConfig()
    if (model / "config.yaml").is_file():
        data = read_config(model).data
        trained = {one.path.resolve() for one in data.sets().values() if one.path is not None}
        data = data.one_set(Path(paths[-1]) if paths else None)
        if data.path is not None and data.path.resolve() in trained:
            split = "heldout"
    elif paths:
        data = replace(data, path=Path(paths[-1]))
    check_there(data.path)
    return replace(data, split=split, labels=None)


def _parse(default: AtlasOptions | type[AtlasOptions], arguments: list[str]) -> AtlasOptions:
    return from_command_line(
        default,
        arguments,
        program="colaworld atlas",
        description="Draw what happens under each latent action, on one page.",
        usual={"--data PATH": "The videos: any data set. [the run's own held-out episodes]"},
    )


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))
