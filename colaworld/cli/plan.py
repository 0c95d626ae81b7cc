"""colaworld plan: reach goal images by planning in a world; prints success with its whole protocol."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from colaworld.cli.command_line import from_command_line
from colaworld.cli.plan_options import check_env, named_planner, preset_of, trained_size
from colaworld.cli.progress import bar
from colaworld.cli.train import choose_device
from colaworld.config import ConfigError
from colaworld.files import makeable, write_json
from colaworld.flow.config import SamplerConfig
from colaworld.planning.config import (
    CategoricalConfig,
    CloningConfig,
    EpisodesConfig,
    MPCConfig,
    PlannerConfig,
)
from colaworld.planning.protocols import frame_size
from colaworld.runs.worlds import WorldFolder

if TYPE_CHECKING:
    from colaworld.data.config import DataConfig
    from colaworld.models.world import World
    from colaworld.planning.cloning import Cloned
    from colaworld.planning.goals_file import GoalsFile
    from colaworld.runs.steering import Steering


@dataclass(frozen=True)
class PlanOptions:
    """Options of `colaworld plan`."""

    env: Annotated[str, tyro.conf.Positional]
    """The environment: crafter, point-mass, pusht, robodesk, scene, or one of your own (COLAWORLD_IMPORT)."""
    run: Path | None = None
    """The run folder, or a world written by `colaworld export`. None: the bounds alone are played."""
    out: Path = Path("plan")
    """Folder of plan.json and plan.html; an earlier plan there is replaced."""
    space: Literal["latent", "real"] = "latent"
    """What is planned: codes, which a table turns into actions (--data), or real actions, which a run knows
    after `colaworld adapt`."""
    data: Path | None = None
    """A set of this environment with recorded actions, to count what codes stand for and to clone its actions; by
    default the run's own."""
    goals: Path | None = None
    """A file of `colaworld goals`, whose episodes are played. None: they are made from the seed."""
    prior: Literal["none", "data"] = "none"
    """data: draw codes as they follow each other in that set (shooting, categorical, beam)."""
    codes: Literal["all", "seen"] = "all"
    """seen: plan only combinations of codes that were seen in that set, whose actions are known."""
    device: str = "auto"
    """cpu, cuda, or auto."""
    how: Annotated[EpisodesConfig, tyro.conf.arg(name="")] = field(default_factory=EpisodesConfig)
    """The episodes."""
    protocol: str | None = None
    """Take the planner, too, from the protocol whose loop and episodes an environment is played by: pusht
    stable-worldmodel, robodesk vp2. What departs from it is printed."""
    planner: PlannerConfig = field(default_factory=CategoricalConfig)
    """Who searches: --planner shooting, cem, icem, mppi, categorical or beam; each has options of its own."""
    mpc: MPCConfig = field(default_factory=MPCConfig)
    """The loop."""
    cloning: CloningConfig = field(default_factory=CloningConfig)
    """The policy of the row cloning."""
    sampler: SamplerConfig = field(default_factory=SamplerConfig.planning)
    """How the world is rolled; by default as the paper plans, in 3 steps without guidance."""


def run(argv: list[str]) -> int:
    """Play, print the table, write plan.json and plan.html."""
    options: PlanOptions = from_command_line(
        replace(PlanOptions(env=tyro.MISSING), **preset_of(argv)),
        named_planner(argv),
        program="colaworld plan",
        description="Reach goal images by planning: with a run's world, and beside it in the true simulator, by a "
        "cloned policy, at random, and where nothing ever changes. --planner NAME is short for --planner.kind NAME.",
    )
    check_env(argv, options.env, "plan")
    folder = None if options.run is None else WorldFolder.of(options.run)
    if folder is None and options.prior == "data":
        raise ConfigError("--prior: it belongs to a world; name it with --run")
    if options.space == "real" and options.prior == "data":
        raise ConfigError("--prior: it is of codes; leave it out, or plan them (--space latent)")
    if options.codes == "seen" and (folder is None or options.space == "real"):
        raise ConfigError(
            "--codes seen: codes are those of a world (--run) that plans them (--space latent)"
        )
    if options.out.exists() and not options.out.is_dir():
        raise ConfigError(f"--out {options.out}: expected a folder, found a file")
    if not makeable(options.out):
        raise ConfigError(f"--out: expected a folder, there or to be made, got {options.out}")
    for flag, path in (("--head", options.how.head), ("--encoder", options.how.encoder)):
        if path is not None and not path.exists():
            raise ConfigError(f"{flag} {path}: there is nothing of this name")
    device = choose_device(options.device)
    kept = None if options.goals is None else _goals(options, options.goals)

    # Not above: torch takes seconds, and help and wrong calls need none of it.
    from colaworld.runs.planning import plan_run
    from colaworld.runs.planning_costs import check_costs
    from colaworld.runs.planning_limits import lines as limit_lines
    from colaworld.runs.planning_page import write_plan
    from colaworld.runs.planning_rows import check_rows
    from colaworld.runs.planning_videos import write_videos

    check_costs(options.how, with_world=folder is not None)
    rows = options.how.rows
    check_rows(rows, None if folder is None else options.space)
    world, steering, size = None, None, frame_size(options.env, options.how.size)
    if kept is not None:
        size = kept[1].frame_size
        options = replace(options, how=replace(options.how, **kept[1].said))
    with bar("planning", stages=True) as progress:
        if folder is not None:
            world, steering, size = _loaded(options, folder, kept, device, progress)
        else:
            options = replace(
                options, how=replace(options.how, rows=tuple(r for r in rows if r != "world"))
            )
        cloned = _cloned(options, folder, size, device, progress)
        result, shown = plan_run(
            options.env,
            world,
            size=size,
            planner=options.planner,
            mpc=options.mpc,
            config=options.how,
            protocol=options.protocol,
            kept=kept,
            steering=steering,
            cloned=cloned,
            device=device,
            watch=progress,
        )
    result["run"] = None if folder is None else _of_run(folder)
    used = cloned is not None or (folder is not None and options.space == "latent")
    own = None if folder is None else folder.data.path
    result["data"] = str(options.data or own) if used else None
    print(table(result))  # first: a full disk may keep the rest from being written
    print("\n".join([*limit_lines(result["limits"]), *told(result)]))
    (options.out / "plan.html").unlink(missing_ok=True)  # never a page of other numbers
    write_json(options.out / "plan.json", result)
    films = write_videos(options.out / "videos", shown, options.how.videos)
    write_plan(options.out / "plan.html", result, shown)
    print(f"{options.out}/plan.json has every number, {options.out}/plan.html shows it")
    if films:
        print(f"{options.out}/videos: {len(films)} films, real, imagined and goal side by side")
    return 0


def _goals(options: PlanOptions, path: Path) -> tuple[Path, GoalsFile]:
    """The file, held against what is to be played; frames of a run later, when their size is known."""
    from colaworld.planning.goals_file import GoalsFile

    file = GoalsFile.load(path)
    free = options.run is None and options.how.size is not None
    size = frame_size(options.env, options.how.size) if free else None
    file.check(path, options.env, options.how, size)
    return path, file


def _cloned(
    options: PlanOptions,
    folder: WorldFolder | None,
    size: tuple[int, int],
    device: str,
    progress: Any,
) -> Cloned | None:
    """A policy of recorded actions; None where it does not play, or there are none."""
    from colaworld.data.config import DataConfig
    from colaworld.planning.tasks import make_task
    from colaworld.runs.cloning import cloned_from

    if "cloning" not in options.how.rows:
        return None
    if options.data is None and (
        folder is None or folder.data.path is None or not folder.data.path.exists()
    ):
        return None
    task = make_task(options.env, height=size[0], width=size[1], **options.how.of_task())
    if folder is None:
        data = DataConfig(path=options.data, stride=task.block)
    else:
        data = _recorded(folder, options.data)
    return cloned_from(
        data, task, options.cloning, seed=options.how.seed, device=device, watch=progress
    )


def _of_run(folder: WorldFolder) -> dict[str, Any]:
    """Where the world is, and of a run which weights of which source."""
    from colaworld.runs.config import read_config
    from colaworld.runs.provenance import provenance

    said = {"path": str(folder.path)}
    return said if folder.exported else said | provenance(folder.path, read_config(folder.path))


def _loaded(
    options: PlanOptions,
    folder: WorldFolder,
    kept: tuple[Path, GoalsFile] | None,
    device: str,
    progress: Any,
) -> tuple[World, Steering, tuple[int, int]]:
    """The world, how it steers, and the size of its frames."""
    from colaworld.planning.tasks import make_task
    from colaworld.runs.planning_costs import Pricing
    from colaworld.runs.steering import steer, steer_real

    world = replace(folder.load(device=device), sampler=options.sampler)
    size = trained_size(folder, world, options.env, options.how.size)
    world = replace(world, frame_size=size)
    if kept is not None:
        kept[1].check(kept[0], options.env, options.how, size)
    task = make_task(options.env, height=size[0], width=size[1], **options.how.of_task())
    if options.how.head is not None:  # of these goals and frames, before codes are read
        Pricing(task, world, options.how, size=size, device=device)
    if options.space == "real":
        return world, steer_real(world, task), size
    if folder.exported and options.data is None:
        raise ConfigError(
            f"{folder.path} is an exported world, which has no data: pass --data with a set of "
            f"{options.env} that has actions"
        )
    steering = steer(
        world,
        task,
        _recorded(folder, options.data),
        clips=options.how.clips,
        with_prior=options.prior == "data",
        seen_alone=options.codes == "seen",
        device=device,
        watch=progress,
    )
    return world, steering, size


def _recorded(folder: WorldFolder, named: Path | None) -> DataConfig:
    """The set whose recorded actions are read: the run's own, or all of the one that is named."""
    if named is None:
        return folder.data.one_set()
    return replace(folder.data.one_set(named), labels=None)


def table(result: Mapping[str, Any]) -> str:
    """A row for each that played."""
    widest = max(8, *map(len, result["rows"]))
    lines = [
        f"{'':{widest}} {'success':>9} {'95 % interval':>16} {'steps above fewest':>19} {'calls/decision':>15} "
        f"{'s/decision':>11}"
    ]
    for name, row in result["rows"].items():
        share = row["success"]
        more = "-" if row["more_than_fewest"] is None else f"{row['more_than_fewest']:.1f}"
        lines.append(
            f"{name:{widest}} {100 * share['mean']:>7.0f} % "
            f"{100 * share['low']:>7.0f} .. {100 * share['high']:>3.0f} % {more:>19} "
            f"{row['calls_per_decision']:>15.0f} {row['seconds_per_decision']:>11.3f}"
        )
    return "\n".join(lines)


def told(result: Mapping[str, Any]) -> list[str]:
    """The protocol, in lines below the table."""
    said, mpc = result["protocol"], result["protocol"]["mpc"]
    planner = dict(said["planner"])
    kind = planner.pop("kind")
    how = ", ".join(f"{key} {_short(value)}" for key, value in planner.items())
    budget = (
        "no budget" if mpc["calls"] is None else f"at most {mpc['calls']} model calls a decision"
    )
    where = "frames" if said["cost"] == "frames" else f"{said['cost']} (other rows: frames)"
    task = "".join(f", {key} {said[key]}" for key in ("task", "quality") if said.get(key))
    if said["encoder"] is not None:
        where = f"features of {said['encoder']}"
    weight = "" if said["distance_weight"] == 1 else f"{said['distance_weight']:g} "
    logit = "" if said["head"] is None else f" - {said['head_weight']:g} logit of {said['head']}"
    drawn = "" if said["goals_file"] is None else "the file, planned under "
    lines = [
        f"{said['env']}{task}, {said['height']}x{said['width']} px, goal {said['goal_offset']} steps away, "
        f"{said['episodes']} episodes of {drawn}seed {said['seed']}, at most {mpc['steps']} actions of {said['block']} "
        "step(s); intervals are over episodes",
        f"{kind}: {how}; {budget}",
        f"horizon {mpc['horizon']}, re-planned every {mpc['replan']}, action repeat {mpc['action_repeat']}, "
        f"{mpc['context']} context frames, warm start {'on' if mpc['warm_start'] else 'off'}; cost: {weight}squared "
        f"error from the goal image in {where}{logit} over {said['over']} steps, penalty {said['penalty']:g}",
    ]
    if said["space"] is not None:
        planned = "codes" if said["space"] == "latent" else "real actions"
        planned += " that were seen together" if said["codes"] == "seen" else ""
        drawn = ", drawn as they follow each other in the data" if said["prior"] else ""
        lines.append(
            f"the world plans {planned}{drawn}; {said['sampler']['steps']} denoising steps, guidance "
            f"{said['sampler']['guidance']:g}"
        )
    lines.append(
        f"episodes {said['goals']}"
        + ("" if said["goals_file"] is None else f" of {said['goals_file']['path']}")
    )
    if said["protocol"] is not None:
        lines.append(_departures(said["protocol"]))
    found = result["action_map"]
    if found is not None:
        lines.append(
            f"codes become actions by a table of {len(found['codes'])} codes from {found['recorded_steps']} "
            f"recorded steps, right in {found['agreement']:.2f} (one action for all: {found['baseline']:.2f}); "
            f"{found['carried_out_unseen']} of {found['carried_out']} codes carried out were not in it{_hint(said, found)}"
        )
        if found["places"]:
            lines.append(
                "actions are places, planned and carried out as ways from each to the next"
            )
        if found["absent"]:
            lines.append(
                f"no code stands for action {', '.join(map(str, found['absent']))}: no plan can do it"
            )
    cloned = result["cloning"]
    if cloned is not None:
        what = (
            "wrong actions"
            if cloned["classes"]
            else "untold variance of actions, in the mean of their numbers,"
        )
        lines.append(
            f"cloning: share of {what} {cloned['error']:.2f} on {cloned['clips']['test']} clips set aside "
            f"({'the most frequent' if cloned['classes'] else 'their mean'}: {cloned['baseline']:.2f}), trained on "
            f"{cloned['clips']['train']}"
        )
    lines.append(
        f"{said['device']}, {said['threads']} thread(s), {said['batch']} episodes side by side; seconds are of "
        "deciding, for each episode"
    )
    if result["missing"]:
        lines.append(
            f"not played: {', '.join(result['missing'])}; without them this is no result yet"
        )
    return lines


def _hint(said: Mapping[str, Any], found: Mapping[str, Any]) -> str:
    """Where plans left what was recorded, what keeps them there."""
    strays = found["carried_out_unseen"] > 0.2 * found["carried_out"]
    return " (--codes seen plans only those that were seen)" if strays else ""


def _departures(protocol: Mapping[str, Any]) -> str:
    """Which protocol, and what is otherwise here: as it was set, and always."""
    told = [f"{key} {_short(a)} (there {_short(b)})" for key, (a, b) in protocol["departs"].items()]
    departs = f"departs from it: {', '.join(told)}" if told else "nothing that is set departs"
    always = f"; always: {protocol['always']}" if protocol["always"] else ""
    return f"protocol {protocol['name']}, {departs}{always}"


def _short(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, (list, tuple)) else f"{value}"


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))
