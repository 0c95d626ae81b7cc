"""colaworld demo: the whole method on real video, by the verbs a user would call.

Records Crafter, takes the shipped video model, warms up, trains jointly, evaluates, writes the
report. A second call goes on where the first one stopped and reuses what is there.
"""

from __future__ import annotations

import shlex
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from colaworld.cli import evaluate, record, train
from colaworld.cli.command_line import from_command_line
from colaworld.config import Checked, ConfigError, Count
from colaworld.runs.config import read_config

# The generator was pre-trained on other episodes of the same world (seed 1000).
_DATA = (
    *("--steps", "100", "--seed", "7", "--behaviour", "sticky-random", "--repeat", "0.3"),
    *("--start", "varied", "--workers", "2"),
)


@dataclass(frozen=True)
class DemoOptions(Checked, at="--"):
    """Options of `colaworld demo`."""

    out: Path = Path("runs/demo")
    """The run folder; the data goes into its `data`."""
    long: bool = False
    """About an hour of training instead of minutes: the recipe nano.cola_long, more episodes."""
    recipe: str | None = None
    """The recipe to run on the demo's data; nano.cola when none is named."""
    episodes: Count | None = None
    """Episodes to record; 80 when none is given, 240 with --long."""
    max_steps: Count | None = None
    """At most so many steps of each phase: a look at the machinery, not at results."""


def run(argv: list[str]) -> int:
    """Run the demo; 0 when the report is written."""
    options = from_command_line(
        DemoOptions, argv, program="colaworld demo", description=__doc__ or ""
    )
    out, data = options.out, options.out / "data"
    recipe = options.recipe or ("nano.cola_long" if options.long else "nano.cola")
    if options.recipe and options.long:
        raise ConfigError("--long is the recipe nano.cola_long: give either --long or --recipe")
    there = read_config(out) if (out / "config.yaml").is_file() else None
    if there is not None and there.recipe != recipe:
        raise ConfigError(
            f"--out {out}: holds a run of {there.recipe}, asked for {recipe}; name another --out, or "
            "delete that folder"
        )
    # A look at two steps is not the run that was asked for later: its schedule is that of two steps.
    if there is not None and there.training.max_steps != options.max_steps:
        raise ConfigError(
            f"--out {out}: holds a run with --max-steps {there.training.max_steps}, asked for "
            f"{options.max_steps}; name another --out, or delete that folder"
        )
    began = time.monotonic()
    if not (data / "meta" / "info.json").is_file():
        episodes = str(options.episodes or (240 if options.long else 80))
        done = _verb(
            "record", record.run, ["crafter", "--out", str(data), "--episodes", episodes, *_DATA]
        )
        if done:
            return done
    else:
        print(f"reusing {data}")
    arguments = [recipe, "--data", str(data), "--out", str(out)]
    if options.max_steps is not None:
        arguments += ["--training.max-steps", str(options.max_steps)]
    finished = out / "weights" / "model.safetensors"
    if not finished.is_file():
        resume = ["--resume"] if (out / "checkpoints").is_dir() else []
        done = _verb("train", train.run, [*arguments, *resume])
        if done or not finished.is_file():  # interrupted: saved, and the command was printed
            if not done:
                print("or run the demo again: it goes on from there")
            return done
    else:
        print(f"reusing the trained world in {out}")
    result, page = out / "evaluation.json", out / "report.html"
    fresh = page.is_file() and result.is_file()
    if fresh and result.stat().st_mtime >= finished.stat().st_mtime:
        from colaworld.evaluation.layout import read_evaluation
        from colaworld.evaluation.tables import table

        print(f"reusing {result}\n{table(read_evaluation(result))}\nreport: {page}")
    else:
        done = _verb("evaluate", evaluate.run, [str(out)])
        if done:
            return done
    print(f"this call took {time.monotonic() - began:.0f} s")
    return 0


def _verb(name: str, verb: object, arguments: list[str]) -> int:
    print(f"\n$ colaworld {name} {shlex.join(arguments)}", flush=True)
    return int(verb(arguments))  # type: ignore[operator]


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))
