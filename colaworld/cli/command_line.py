"""The command line of a configuration: every field is an option, `--a.kind` takes another kind.

Not here: what a value may be (config.py), or the verbs.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import os
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeVar

from colaworld.cli.help import USUAL, usual_help
from colaworld.cli.wrong_call import unknown, unreadable
from colaworld.config import RENAMED_KEYS, ConfigError, in_common, kinds_of, of_kind

T = TypeVar("T")


def from_command_line(
    default: Any,
    arguments: Sequence[str],
    *,
    program: str,
    description: str,
    usual: Mapping[str, str] | None = None,
    groups: Mapping[str, str] = USUAL,
) -> Any:
    """`default` (a dataclass, or its class where a field has none) with every field reachable as
    --a.b-c VALUE; --help lists all with their docs.

    A member annotated with `tyro.conf.arg(name="")` lends its fields without its own name. Where one of
    several dataclasses may stand, `--a.kind NAME` takes the one of that kind, with its defaults and
    what it has in common with the one that stood there. Given `usual` (options that the verb takes
    itself), --help shows the usual options (help.py), in `groups`, and --help-all all.

    Raises ConfigError, one line, where the call cannot be read; SystemExit once help is shown.
    """
    import tyro

    for flag in (argument.partition("=")[0] for argument in arguments):
        where, dot, name = flag.removeprefix("--").replace("-", "_").rpartition(".")
        if flag.startswith("--") and name in RENAMED_KEYS:
            now = (where + dot + RENAMED_KEYS[name]).replace("_", "-")
            raise ConfigError(f"{flag} is called --{now} now")
    if "--help-all" in arguments:
        arguments = ["--help"]
    elif usual is not None and {"-h", "--help"} & set(arguments):
        about: dict[str, Any] = {"program": program, "description": description, "also": usual}
        print(usual_help(default, groups=groups, **about), flush=True)
        raise SystemExit(0)
    given: dict[str, Any] = {}
    if not isinstance(default, type):
        given["default"], arguments = _choose_kinds(default, arguments)
    chosen = given.get("default", default)
    asked_help = bool({"-h", "--help"} & set(arguments))
    flags = [flag.split()[0] for flag in usual or ()]
    listed = f"({'--help' if usual is None else '--help-all'} lists every option)"
    said = io.StringIO()
    try:
        with contextlib.nullcontext() if asked_help else _caught(said):
            made, left = tyro.cli(
                default if isinstance(default, type) else type(default),
                args=arguments,
                prog=program,
                description=description,
                config=(tyro.conf.AvoidSubcommands,),
                registry=_numbers(),
                add_help=asked_help,  # its hint knows no --help-all
                return_unknown_args=True,
                **given,
            )
    except SystemExit as stop:
        if not stop.code:
            raise
        raise ConfigError(
            f"{unreadable(chosen, arguments, said.getvalue(), also=flags)} {listed}"
        ) from None
    if left:
        raise ConfigError(f"{unknown(chosen, left, also=flags)} {listed}")
    return made


@contextlib.contextmanager
def _caught(said: io.StringIO) -> Iterator[None]:
    """What is printed of a wrong call: plain, in lines that are not broken."""
    before = os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = "100000"
    try:
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
            yield
    finally:
        del os.environ["COLUMNS"]
        if before is not None:
            os.environ["COLUMNS"] = before


def _numbers() -> Any:
    """How tyro reads a number, or None where that may stand: a wrong one is told in plain words."""
    from tyro.constructors import ConstructorRegistry, PrimitiveConstructorSpec, PrimitiveTypeInfo

    registry = ConstructorRegistry()

    @registry.primitive_rule
    def number(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec | None:
        union = info.type_origin in (typing.Union, types.UnionType)
        options = typing.get_args(info.type) if union else (info.type,)
        kinds = [
            getattr(a, "__origin__", a) for a in options if a is not type(None)
        ]  # of Annotated
        if kinds not in ([int], [float]):
            return None
        (kind,), none = kinds, len(options) > 1
        wanted = ("a whole number" if kind is int else "a number") + (" or None" if none else "")

        def read(texts: list[str]) -> int | float | None:
            if none and texts[0] == "None":
                return None
            try:
                return kind(texts[0])
            except ValueError:
                raise ValueError(f"expected {wanted}, got {texts[0]!r}") from None

        return PrimitiveConstructorSpec(
            nargs=1,
            metavar=("{None}|" if none else "") + kind.__name__.upper(),
            instance_from_str=read,
            is_instance=lambda value: isinstance(value, kind) or (none and value is None),
            str_from_instance=lambda value: [str(value)],
        )

    return registry


def _choose_kinds(default: T, arguments: Sequence[str]) -> tuple[T, list[str]]:
    """`default` with every `--a.b.kind NAME` done, and the other arguments."""
    rest: list[str] = []
    left = iter(arguments)
    for argument in left:
        flag, equals, kind = argument.partition("=")
        if not (flag.startswith("--") and flag.endswith(".kind")):
            rest.append(argument)
            continue
        keys = flag[2:].replace("-", "_").split(".")[:-1]
        path = _union_at(default, keys)
        if path is None:
            rest.append(argument)
            continue
        kind = kind if equals else next(left, "")
        default = _with_kind(default, path, kind, flag)
    return default, rest


def _union_at(config: Any, keys: list[str]) -> list[str] | None:
    """The field names that lead to where one of several may stand, past members that lend their fields."""
    hints = typing.get_type_hints(type(config), include_extras=True)
    if keys[0] not in hints:
        for name, hint in hints.items():
            if getattr(hint, "__metadata__", ()) and dataclasses.is_dataclass(
                getattr(config, name)
            ):
                below = _union_at(getattr(config, name), keys)
                return None if below is None else [name, *below]
        return None
    if len(keys) > 1:
        inner = getattr(config, keys[0])
        below = _union_at(inner, keys[1:]) if dataclasses.is_dataclass(inner) else None
        return None if below is None else [keys[0], *below]
    return keys if kinds_of(hints[keys[0]]) else None


def _with_kind(config: Any, path: list[str], kind: str, flag: str) -> Any:
    name, *below = path
    before = getattr(config, name)
    if below:
        return dataclasses.replace(config, **{name: _with_kind(before, below, kind, flag)})
    options = kinds_of(typing.get_type_hints(type(config))[name])
    chosen = of_kind(options, {"kind": kind}, flag[2:].removesuffix(".kind"), None)
    return dataclasses.replace(config, **{name: chosen(**in_common(before, chosen))})
