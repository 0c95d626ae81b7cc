"""Dataclass <-> dict <-> YAML <-> command line, strict in every direction.

A configuration is a nested dataclass that lives beside the thing it configures; where one of several
may stand, a field `kind` in each tells them apart: a union of dataclasses, or an open family, which is
a class with `kinds()` that returns those known by now. This file only moves it between forms. Every mistake names the key, what was expected and what came.
"""

from __future__ import annotations

import dataclasses
import difflib
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, cast

import yaml

RENAMED_KEYS = {  # what fields of early configurations are called now
    "generator": "backbone_weights",
    "ramp_steps": "lr_warmup_steps",
    "group_rates": "lr_multipliers",
    "continuous_steps": "unquantized_steps",
    "continuous_noise": "unquantized_noise",
    "history_noise": "context_noise",
    "slide": "on_slide",
}
VERSION = 1  # written into every saved config; raised when a field changes its meaning
T = TypeVar("T")


class ConfigError(ValueError):
    """A configuration that cannot be used: names the key, what was expected and what came."""


def to_dict(config: Any) -> Any:
    """Nested dataclass -> plain dicts, lists and scalars."""
    if dataclasses.is_dataclass(config):
        return {f.name: to_dict(getattr(config, f.name)) for f in dataclasses.fields(config)}
    if isinstance(config, (tuple, list)):
        return [to_dict(value) for value in config]
    if isinstance(config, Mapping):
        return {key: to_dict(value) for key, value in config.items()}
    if isinstance(config, Path):
        return str(config)
    return config


def from_dict(
    cls: type[T], values: Mapping[str, Any], *, where: str = "", base: T | None = None
) -> T:
    """Plain values -> `cls`. Keys that are absent keep the value of `base` (or the default); a value
    of another `kind` keeps what both have in common.

    Raises ConfigError on an unknown key (with the nearest known one), a value of a wrong type, or
    a value that the dataclass itself refuses.
    """
    if not isinstance(values, Mapping):
        raise ConfigError(f"{where or cls.__name__}: expected a mapping, got {values!r}")
    hints = typing.get_type_hints(cls)
    known = [f.name for f in dataclasses.fields(cast(Any, cls)) if f.init]
    former = getattr(cls, "FORMER_KEYS", {})
    given = {}
    for key, value in values.items():
        now = RENAMED_KEYS.get(key, key)
        if key not in known and now in known:
            key = now
        path = f"{where}.{key}" if where else str(key)
        if key not in known and now in former and value == former[now]:
            continue
        if key not in known:
            near = difflib.get_close_matches(str(key), known, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else f"; known keys: {', '.join(known)}"
            raise ConfigError(f"unknown key {path!r}{hint}")
        if key in given:
            raise ConfigError(f"{path}: given twice, once by its earlier name")
        before = None if base is None else getattr(base, key)
        given[key] = _convert(hints[key], value, path, before)
    try:
        return cls(**given) if base is None else dataclasses.replace(cast(Any, base), **given)
    except ConfigError:
        raise
    except (TypeError, ValueError) as error:
        text, name = str(error), where or cls.__name__
        raise ConfigError(text if text.startswith(name) else f"{name}: {text}") from None


def _convert(hint: Any, value: Any, path: str, before: Any) -> Any:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        base = before if isinstance(before, hint) else None
        return from_dict(hint, value, where=path, base=base)
    kinds = _kinds(hint)
    if kinds and not (value is None and type(None) in args):
        chosen = _of_kind(kinds, value, path, before)
        if before is not None and not isinstance(before, chosen) and isinstance(value, Mapping):
            value = {**to_dict(_in_common(before, chosen)), **value}
        return _convert(chosen, value, path, before)
    if origin in (Union, types.UnionType):
        if value is None and type(None) in args:
            return None
        errors = []
        for option in (a for a in args if a is not type(None)):
            try:
                return _convert(option, value, path, before)
            except ConfigError as error:
                errors.append(str(error))
        raise ConfigError(" or ".join(errors))
    if origin is Literal:
        if value not in args:
            raise ConfigError(
                f"{path}: expected one of {', '.join(map(repr, args))}, got {value!r}"
            )
        return value
    if origin is tuple:
        if not isinstance(value, Sequence) or isinstance(value, str):
            raise ConfigError(f"{path}: expected a list, got {value!r}")
        inner = [args[0]] * len(value) if args[-1] is Ellipsis else list(args)
        if len(inner) != len(value):
            raise ConfigError(f"{path}: expected {len(inner)} values, got {len(value)}: {value!r}")
        return tuple(
            _convert(h, v, f"{path}[{i}]", None)
            for i, (h, v) in enumerate(zip(inner, value, strict=True))
        )
    if origin is dict:
        if not isinstance(value, Mapping):
            raise ConfigError(f"{path}: expected a mapping, got {value!r}")
        held = before if isinstance(before, Mapping) else {}
        made = {k: _entry(args[1], k, v, f"{path}.{k}", held) for k, v in value.items()}
        return {**held, **made}
    if hint is float and isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value)
    if hint is float and isinstance(value, str):  # YAML 1.1 reads 1e-3 as text
        try:
            return float(value)
        except ValueError:
            pass
    if hint is Path and isinstance(value, str):
        return Path(value)
    if hint is Any and dataclasses.is_dataclass(before) and isinstance(value, Mapping):
        return from_dict(type(before), value, where=path, base=before)
    if hint is Any or (isinstance(value, hint) and not (hint is int and isinstance(value, bool))):
        return value
    raise ConfigError(f"{path}: expected {getattr(hint, '__name__', hint)}, got {value!r}")


def _entry(hint: Any, key: Any, value: Any, path: str, held: Mapping[str, Any]) -> Any:
    """One value of a mapping whose keys are open; a new key may be a misspelt one."""
    try:
        return _convert(hint, value, path, held.get(key))
    except ConfigError as error:
        near = difflib.get_close_matches(str(key), held, n=1)
        if key in held or not near:
            raise
        raise ConfigError(f"{error}; did you mean {near[0]!r} instead of {key!r}?") from None


def _kinds(hint: Any) -> list[Any]:
    """The dataclasses of which one may stand here; none where there is no choice."""
    if isinstance(hint, type) and not dataclasses.is_dataclass(hint) and hasattr(hint, "kinds"):
        return list(hint.kinds())
    options = [a for a in typing.get_args(hint) if a is not type(None)]
    union = typing.get_origin(hint) in (Union, types.UnionType) and len(options) > 1
    return options if union and all(dataclasses.is_dataclass(a) for a in options) else []


def _of_kind(options: list[Any], value: Any, path: str, before: Any) -> Any:
    """Which of several dataclasses a mapping means: its `kind`, else what stood there before."""
    known = {option.kind: option for option in options}
    default = type(before) if type(before) in options else options[0]
    kind = value.get("kind", default.kind) if isinstance(value, Mapping) else default.kind
    if kind not in known:
        raise ConfigError(
            f"{path}.kind: expected one of {', '.join(map(repr, known))}, got {kind!r}"
        )
    return known[kind]


def load_yaml(path: str | Path, cls: type[T], *, base: T | None = None) -> T:
    """Read a YAML file strictly. Raises ConfigError that names the file and the key."""
    try:
        values = yaml.safe_load(Path(path).read_text())
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not valid YAML: {error}") from None
    values = {} if values is None else values
    if isinstance(values, Mapping):
        values = dict(values)
        version = values.pop("config_version", VERSION)
        if version != VERSION:
            raise ConfigError(
                f"{path}: config_version {version} is not {VERSION}, which this release reads"
            )
    try:
        return from_dict(cls, values, base=base)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None


def to_yaml(config: Any) -> str:
    """The whole configuration as YAML text that `load_yaml` reads back to an equal value."""
    return yaml.safe_dump({"config_version": VERSION, **to_dict(config)}, sort_keys=False)


def from_command_line(default: T, arguments: Sequence[str], *, program: str, description: str) -> T:
    """`default` with every field reachable as --a.b-c VALUE; --help lists all with their docs.

    A member annotated with `tyro.conf.arg(name="")` lends its fields without its own name. Where one of
    several dataclasses may stand, `--a.kind NAME` takes the one of that kind, with its defaults and
    what it has in common with the one that stood there.
    """
    import tyro

    for flag in (argument.partition("=")[0] for argument in arguments):
        where, dot, name = flag.removeprefix("--").replace("-", "_").rpartition(".")
        if flag.startswith("--") and name in RENAMED_KEYS:
            now = (where + dot + RENAMED_KEYS[name]).replace("_", "-")
            raise ConfigError(f"{flag} is called --{now} now")
    default, rest = _choose_kinds(default, arguments)
    return tyro.cli(
        type(default),
        default=default,
        args=rest,
        prog=program,
        description=description,
        config=(tyro.conf.AvoidSubcommands,),
    )


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
    return keys if _kinds(hints[keys[0]]) else None


def _with_kind(config: Any, path: list[str], kind: str, flag: str) -> Any:
    name, *below = path
    before = getattr(config, name)
    if below:
        return dataclasses.replace(config, **{name: _with_kind(before, below, kind, flag)})
    options = _kinds(typing.get_type_hints(type(config))[name])
    chosen = _of_kind(options, {"kind": kind}, flag[2:].removesuffix(".kind"), None)
    return dataclasses.replace(config, **{name: chosen(**_in_common(before, chosen))})


def _in_common(before: Any, chosen: Any) -> dict[str, Any]:
    """The fields of `before` that the dataclass `chosen` has too, but its kind."""
    shared = {f.name for f in dataclasses.fields(chosen)} - {"kind"}
    names = [f.name for f in dataclasses.fields(before) if f.name in shared]
    return {name: getattr(before, name) for name in names}
