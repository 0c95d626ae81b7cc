"""colaworld label: a data set with the latent actions of a model beside each frame.

Not here: the labels and the set (runs/label.py), the processes (launch.py).
"""

from __future__ import annotations

import logging
import shlex
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from colaworld.cli.command_line import from_command_line
from colaworld.cli.launch import Processes, launched
from colaworld.cli.progress import bar
from colaworld.cli.train import choose_device, data_flag, take
from colaworld.config import Checked, ConfigError, Count
from colaworld.data.config import DataConfig, check_there
from colaworld.runs.sizes import check_frames
from colaworld.runs.worlds import WorldFolder, find, world_at

if TYPE_CHECKING:
    from colaworld.data.clips import ClipSet
    from colaworld.runs.estimates import Estimator
    from colaworld.runs.labeller import Labeller

log = logging.getLogger(__name__)
_WEEK = 7 * 86_400.0  # seconds that a process waits for the others' episodes
_STOPPED = 130


@dataclass(frozen=True)
class LabelOptions(Checked, at="--"):
    """Options of `colaworld label`."""

    latents: Annotated[str, tyro.conf.Positional]
    """A run folder, an exported world, a published model of others, or a hub name."""
    out: Path | None = None
    """The new LeRobot v3 set."""
    in_place: bool = False
    """Add the columns to the set itself, a LeRobot v3 one, in place of --out."""
    overwrite: bool = False
    """Replace latent actions that the set has already."""
    real: bool = False
    """Also write real actions, as the world estimates them of the latent ones; it must be an adapted one
    (colaworld adapt)."""
    episodes: Count | None = None
    """Label the first so many episodes alone."""
    batch_size: Count = 32
    """Windows of frames given to the model at once."""
    copy_videos: bool = False
    """Copy films into the new set. Otherwise they are hard links to the old ones, where they can be."""
    kind: str = "auto"
    """Layout of a published model: adaworld, dreamdojo, villa-x, or one of your own. auto: by its keys."""
    tokenizer: str | None = None
    """Where an exported world's tokenizer is (a folder or a hub name), where it did not come along."""
    device: str = "auto"
    """cpu, cuda, or auto."""
    data: DataConfig = field(default_factory=DataConfig)
    """The data set, and how the model's frames are cut from it."""


def run(argv: list[str]) -> int:
    """Label; prints what came of it and where."""
    with launched("colaworld label") as processes:
        return _label(argv, processes)


def _label(argv: list[str], processes: Processes) -> int:
    options, folder = processes.after_main(lambda: _options(argv))
    device = processes.device(choose_device(options.device))

    # Not above: torch takes seconds, and help and wrong calls need none of it.
    from torch import distributed

    from colaworld.runs.estimates import error_told
    from colaworld.runs.label import Interrupted, Together, label_set
    from colaworld.training.interrupts import StopRequest

    if folder is None:
        labeller, clips, estimator = *_of_others(options, device), None
    else:
        labeller, clips, estimator = _of_world(options, folder, device)
    out = (options.data.path if options.in_place else options.out) or Path()
    told = {"data": str(options.data.path), "out": str(out.resolve()), "episodes": options.episodes}
    told |= {"batch size": options.batch_size, "in place": options.in_place, "real": options.real}
    processes.agree(told)
    processes.join(device, timeout=_WEEK)

    def gather(value: Any) -> list[Any]:
        if processes.world_size == 1:
            return [value]
        values: list[Any] = [None] * processes.world_size
        distributed.all_gather_object(values, value)
        return values

    with (
        StopRequest(processes.world_size, says=processes.is_main) as asked,
        bar("labelling") as tell,
    ):

        def step() -> None:
            if asked.requested is not None:
                raise Interrupted

        found = label_set(
            labeller,
            clips,
            out,
            estimator=estimator,
            episodes=options.episodes,
            batch_size=options.batch_size,
            device=device,
            in_place=options.in_place,
            overwrite=options.overwrite,
            link=not options.copy_videos,
            together=Together(processes.rank, processes.world_size, gather),
            progress=tell if processes.is_main else None,
            step=step,
        )
    if not found.finished:
        if processes.is_main:
            again = shlex.join([*processes.command(), "label", *argv])
            print(
                f"stopped: {found.done} of {found.asked} episodes are done and kept; go on: {again}"
            )
        return _STOPPED
    if processes.is_main:
        size = labeller.model.codebook_size
        used = "" if found.used is None else f"; {found.used} of {size} codes in use"
        before = f" ({found.before} of them before)" if found.before else ""
        lost = found.asked - found.done
        left_out = f"; {lost} broken, left out: see meta/latent_actions.json" if lost else ""
        print(
            f"{out}: {found.done} episodes{before}, {found.frames} frames, {found.valid} of them with a "
            f"valid action{used}{left_out}"
        )
        if estimator is not None:
            told_error = error_told(estimator.error, estimator.contract.names)
            print(f"estimated_action: estimates, not recorded actions; {told_error}")
    return 0


def _of_world(
    options: LabelOptions, folder: WorldFolder, device: str
) -> tuple[Labeller, ClipSet, Estimator | None]:
    """A run's or an export's world, the clips as it was trained on them, and its head. ConfigError where
    they are of another size."""
    from colaworld.data.clips import ClipSet
    from colaworld.runs.estimates import Estimator, head_error_at
    from colaworld.runs.labeller import Labeller

    world = folder.load(device=device, tokenizer=options.tokenizer)
    trained, data = folder.trained_size(), options.data
    if trained is not None and data.height is None and not isinstance(data.crop, tuple):
        data = replace(data, height=trained[0], width=trained[1])
    clips = ClipSet(data)
    if trained is None:
        log.warning(
            "%s does not say on frames of which size it was trained: it is shown %dx%d px, as recorded; "
            "--data.height and --data.width choose",
            options.latents,
            clips.height,
            clips.width,
        )
    elif trained != (clips.height, clips.width):
        raise ConfigError(
            f"--data.height, --data.width, --data.crop: {options.latents} was trained on frames of "
            f"{trained[0]}x{trained[1]} px, got {clips.height}x{clips.width}; leave them out"
        )
    _tell_rate(options.latents, folder.trained_rate(), clips)
    world = replace(world, frame_size=(clips.height, clips.width))
    estimator = None
    if options.real:
        estimator = Estimator(world, head_error_at(folder.path), options.latents)
    if estimator is not None and estimator.error is None:
        log.warning(
            "%s: how wrong its estimates of real actions are was not measured", options.latents
        )
    model = world.model
    parts = [name for name, _ in model.named_children()]
    size = {"height": clips.height, "width": clips.width}
    check_frames(model.config, parts, **size, frames=1 + model.tokenizer.temporal_stride)
    return Labeller.of_world(world, recipe=folder.recipe), clips, estimator


def _of_others(options: LabelOptions, device: str) -> tuple[Labeller, ClipSet]:
    """A published model, which prepares frames itself unless it takes one size alone, and the clips."""
    from colaworld.data.clips import ClipSet
    from colaworld.models.latent_action.published import layout_of, load_published
    from colaworld.runs.labeller import Labeller

    path = find(options.latents)
    kind = layout_of(path, kind=options.kind)
    model = load_published(path, kind=kind, device=device)
    height, width = model.frame_size or (options.data.height, options.data.width)
    clips = ClipSet(replace(options.data, height=height, width=width))
    return Labeller.of_others(model, kind=kind), clips


def _tell_rate(named: str, trained: float | None, clips: ClipSet) -> None:
    """Warn where rows lead over another time than the steps of the training: the same movement is then
    another action."""
    from colaworld.action_differences import RATE

    if trained is None:
        return
    recorded = max(episode.fps for episode in clips.episodes)
    way = ""
    if recorded > trained * (1 - RATE):
        way = f"; --data.stride 1 --data.fps {trained:g} takes that rate"
    for fps in sorted({round(clips.fps(episode.index), 3) for episode in clips.episodes}):
        if abs(fps / trained - 1) > RATE:
            log.warning(
                "%s: its rows lead over 1/%g s, and %s was trained on steps of 1/%g s: an action then means "
                "another movement%s",
                *(clips.config.path, fps, named, trained, way),
            )


def _options(argv: list[str]) -> tuple[LabelOptions, WorldFolder | None]:
    """The options, with the run's frames as defaults, and the run; None: a model of others. Raises
    ConfigError, DataError."""
    spelled = data_flag(argv)
    paths, rest = take(spelled, "--data.path")
    splits, rest = take(rest, "--split")
    if {"-h", "--help", "--help-all"} & set(argv):
        _parse(LabelOptions(latents="RUN"), argv)  # ends here
    first = _parse(LabelOptions, rest)
    named = first.latents
    folder = world_at(find(named), kind=first.kind)
    if not paths:
        raise ConfigError("--data: expected the data set to label, got none; pass --data PATH")
    path = check_there(Path(paths[-1]))
    shown = DataConfig() if folder is None else folder.data
    default = replace(_data_at(shown, path), split="all", labels=None)
    if splits:
        rest += ["--data.split", splits[-1]]
    options = _parse(LabelOptions(latents=named, data=default), rest)
    if options.real and (folder is None or not folder.estimates):
        how = "a run that is adapted to a robot (`colaworld adapt`) has one"
        if folder is not None:
            how = f"`colaworld adapt {named} --data ROBOT --out NEW` makes a run that has one"
        raise ConfigError(
            f"--real: {named} has no head that turns latent actions into real ones; {how}"
        )
    if (options.out is None) == (not options.in_place):
        raise ConfigError(
            "--out: expected the new set's folder, or --in-place to label the set itself, got "
            + ("both" if options.in_place else "neither")
        )
    return options, folder


def _data_at(data: DataConfig, path: Path) -> DataConfig:
    """How frames are cut from the set at `path`: as from the run's own, if it is of them."""
    for one in data.sets().values():
        if one.path is not None and one.path.resolve() == path.resolve():
            return replace(one, path=path, frames_per_clip=1)
    other = data.one_set(path)
    return replace(
        other,
        source="auto",
        camera=None,
        recorded_fps=None,
        max_broken_share=DataConfig().max_broken_share,
        frames_per_clip=1,
    )


def _parse(default: LabelOptions | type[LabelOptions], arguments: list[str]) -> LabelOptions:
    return from_command_line(
        default,
        arguments,
        program="colaworld label",
        description="Write a data set with the latent actions of a model beside each frame, or add them to it.",
        usual={
            "--data PATH": "The videos: any data set.",
            "--split all|train|heldout": "Which of its episodes. [all]",
        },
    )


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))
