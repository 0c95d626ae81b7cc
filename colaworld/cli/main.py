"""The `colaworld` command: finds the verb, runs it, turns foreseen errors into one clear line."""

from __future__ import annotations

import difflib
import importlib
import logging
import os
import sys

from colaworld.cli.errors import FORESEEN, Tidy, report_error
from colaworld.cli.plugins import import_plugins

VERBS = {
    "record": "record a simulator into a data set",
    "data": "look at a data set, or encode it: colaworld data inspect, data stats, data encode",
    "train": "run a recipe",
    "demo": "the whole method on a small real data set",
    "plan-memory": "does a recipe fit on a GPU, and what to change where it does not",
    "plan-scale": "memory, traffic and time of a recipe on many GPUs",
    "evaluate": "measure a run on held-out episodes and write its report",
    "study": "runs of several recipes and seeds, compared in pairs",
    "atlas": "what happens under each latent action, on one page",
    "probe": "what latent actions tell of the real ones, others' models beside yours",
    "adapt": "teach a trained world the real actions of a robot",
    "goals": "make starts and goals of episodes once, for all who plan",
    "plan": "reach goal images by planning in a world",
    "plan-table": "several plans as one table: tasks, methods, seeds, differences in pairs",
    "goal-head": "learn to tell whether a goal is reached, as a cost for plan",
    "sample": "roll a start frame forward under chosen latent actions",
    "label": "write a data set with latent actions beside each frame",
    "export": "write a finished run as a model for others",
    "bench": "time ops, models, training, data and rollout, with their proof",
    "info": "what is installed, compiled and used",
}


ALONE = (
    "record",
    "demo",
    "evaluate",
    "atlas",
    "probe",
    "sample",
    "export",
    "goals",
    "plan",
    "goal-head",
)
"""Verbs that several processes (torchrun) must not run side by side: each would write the same files."""


def usage() -> str:
    """What `colaworld` without a verb prints."""
    verbs = "\n".join(f"  {verb:12} {what}" for verb, what in VERBS.items())
    return (
        "usage: colaworld VERB [OPTIONS]\n\n"
        "Teach a video model to be controlled, from video alone.\n\n"
        f"verbs:\n{verbs}\n\ncolaworld VERB --help explains a verb.\n"
    )


def main(argv: list[str] | None = None) -> int:
    """Run one verb. Returns the exit status.

    0 done, or interrupted while training with everything saved; 1 the work failed; 2 a wrong call
    (argument, configuration, data set, folder); 130 Ctrl-C elsewhere; 141 nobody reads the output.
    """
    arguments = sys.argv[1:] if argv is None else argv
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(usage(), end="")
        return 0 if arguments else 2
    verb, *rest = arguments
    if verb == "--version":
        from colaworld import __version__

        print(__version__)
        return 0
    if verb not in VERBS:
        near = difflib.get_close_matches(verb, VERBS, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        print(f"colaworld: no verb {verb!r}.{hint}\n\n{usage()}", end="", file=sys.stderr)
        return 2
    if verb in ALONE and os.environ.get("WORLD_SIZE", "1") != "1" and "RANK" in os.environ:
        print(
            f"colaworld {verb}: runs in one process, got WORLD_SIZE {os.environ['WORLD_SIZE']}: start it "
            "without torchrun",
            file=sys.stderr,
        )
        return 2
    handler = logging.StreamHandler()
    handler.addFilter(Tidy())
    logging.basicConfig(level=logging.INFO, format="%(message)s", handlers=[handler])
    try:
        import_plugins()
        module = importlib.import_module(f"colaworld.cli.{verb.replace('-', '_')}")
        return int(module.run(rest) or 0)
    except KeyboardInterrupt:
        print("colaworld: stopped", file=sys.stderr)
        return 130
    except BrokenPipeError:  # whoever read the output has gone (`colaworld info | head`)
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except FORESEEN as error:
        return report_error(f"colaworld {verb}", error)


if __name__ == "__main__":
    sys.exit(main())
