"""`--help` of a verb that takes a run's configuration: the usual options in groups, for a person to read.

The other several hundred are listed by `--help-all`, which the parser writes (command_line.py). Texts are
the docstrings under the fields.
"""

from __future__ import annotations

import ast
import dataclasses
import functools
import inspect
import itertools
import re
import textwrap
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, cast

# Group -> fields of a run's configuration; `*` stands for each of its phases. Where the call has no such
# field, or the recipe no such part, there is no line.
USUAL = {
    "data": "data.height data.width data.frames_per_clip data.fps data.camera data.holdout data.workers",
    "length": "training.max_steps phases.*.steps phases.*.learning_rate",
    "training": "training.batch_size training.accumulate training.seed training.autocast "
    "training.compile training.recompute training.checkpoint_every training.sample_every latents",
    "model": "backbone_weights model.idm.tokens model.idm.dim model.quantizer.kind "
    "model.quantizer.codebook_size model.attention",
    "generating and measuring": "sampler.steps sampler.guidance evaluation.clips evaluation.horizon",
}


def usual_help(
    default: Any,
    *,
    program: str,
    description: str,
    also: Mapping[str, str],
    groups: Mapping[str, str] = USUAL,
) -> str:
    """The short help of a verb whose options are `default`.

    `also`: options that the verb takes itself, "--config FILE" -> what it does. `groups`: as USUAL.
    """
    own = dataclasses.fields(default)
    positional = [f.name for f in own if "Positional" in str(f.type)]
    listed = {"this call": [(flag, text) for flag, text in also.items()]}
    for f in own:
        value = getattr(default, f.name, None)
        if not _is_nested(value) and f.name not in positional:
            listed["this call"].append(_option(default, f.name, f.name))
        elif _is_nested(value) and re.search(r"name=(''|\"\")", str(f.type)) and f.name != "run":
            # It lends its fields without its own name.
            listed["this call"] += [_option(value, g.name, g.name) for g in _plain(value)]
    run = default.run if _is_nested(getattr(default, "run", None)) else default
    for group, names in groups.items():
        listed[group] = [
            _option(*found, name)
            for pattern in names.split()
            for name in _each(pattern, run)
            if name not in positional and (found := _find(run, name)) is not None
        ]
    lines = [f"usage: {program} {' '.join([*map(str.upper, positional), '[OPTIONS]'])}", ""]
    lines += textwrap.wrap(description, 100)
    for group, options in listed.items():
        lines += [""] * bool(options) + [f"{group}:"] * bool(options)
        for flag, text in options:
            wrapped = textwrap.wrap(text, 62)
            if len(flag) > 34:
                lines.append(f"  {flag}")
                flag = ""
            lines += [f"  {flag:34}  {wrapped[0]}", *(f"{'':38}{line}" for line in wrapped[1:])]
    return "\n".join([*lines, "", "--help-all lists every option."])


def _plain(holder: Any) -> list[dataclasses.Field[Any]]:
    return [f for f in dataclasses.fields(holder) if not _is_nested(getattr(holder, f.name))]


def _is_nested(value: Any) -> bool:
    return dataclasses.is_dataclass(value)


def _each(pattern: str, run: Any) -> Iterator[str]:
    """Names of fields: one for each phase that runs; none of a part that the run does not have."""
    part = re.match(r"model\.(idm|quantizer)\.|evaluation\.", pattern)
    if part and hasattr(run, "parts") and (part[1] or "conditioner") not in run.parts():
        return
    if "*" not in pattern:
        yield pattern
    else:
        yield from (pattern.replace("*", name) for name in getattr(run, "schedule", ()))


def _find(holder: Any, name: str) -> tuple[Any, str] | None:
    """(the dataclass that holds the field, the field's own name)."""
    *above, last = name.split(".")
    for key in above:
        holder = holder.get(key) if isinstance(holder, dict) else getattr(holder, key, None)
    return (holder, last) if hasattr(holder, last) else None


def _option(holder: Any, field: str, name: str) -> tuple[str, str]:
    """("--a.b-c INT", what its docstring says first and its value now)."""
    flag = "--" + name.replace("_", "-")
    value = getattr(holder, field)
    hint = typing.get_type_hints(type(holder))[field]
    text = " ".join(_docs(cast(Any, type(holder))).get(field, "").split()).partition(". ")[0]
    if hint is bool:
        flag, text = (flag, text) if not value else (_no(flag), f"Not: {text}")
        return flag, f"{text.rstrip('.')}."
    shown = " ".join(map(str, value)) if isinstance(value, tuple) else value
    kinds = holder.kinds() if field == "kind" and hasattr(holder, "kinds") else ()
    metavar = "|".join(kind.kind for kind in kinds) or _metavar(hint)
    return f"{flag} {metavar}", f"{text.rstrip('.')}. [{shown}]"


def _no(flag: str) -> str:
    where, dot, name = flag.rpartition(".")
    return f"{where}.no-{name}" if dot else f"--no-{flag[2:]}"


def _metavar(hint: Any) -> str:
    options = [a for a in typing.get_args(hint) if a is not type(None)]
    if typing.get_origin(hint) is Literal:
        return "|".join(str(a) for a in options if not isinstance(a, bool))
    if options:
        return _metavar(options[0])
    return {int: "N", float: "X", Path: "PATH"}.get(hint, "NAME")


@functools.cache
def _docs(cls: Any) -> dict[str, str]:
    """The docstrings under the fields of a dataclass and those above it."""
    found: dict[str, str] = {}
    for owner in reversed(cls.__mro__[:-1]):
        try:
            source = inspect.getsource(owner)
        except (OSError, TypeError):  # made without a file, as in a notebook
            continue
        body = ast.parse(textwrap.dedent(source)).body[0].body  # type: ignore[attr-defined]
        for line, below in itertools.pairwise(body):
            if isinstance(line, ast.AnnAssign) and isinstance(below, ast.Expr):
                found[line.target.id] = str(below.value.value)  # type: ignore[union-attr,attr-defined]
    return found
