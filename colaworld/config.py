"""Dataclass <-> dict <-> YAML, strict in every direction.

A configuration is a nested dataclass that lives beside the thing it configures; where one of several
may stand, a field `kind` in each tells them apart: a union of dataclasses, or an open family, which is
a class with `kinds()` that returns those known by now. This file only moves it between forms. Every mistake names the key, what was expected and what came.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import logging
import math
import operator
import reprlib
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, TypeVar, Union, cast

import yaml

log = logging.getLogger(__name__)

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


@dataclasses.dataclass(frozen=True)
class Range:
    """Which numbers a field takes, beside its type: `Annotated[float, Range(ge=0, lt=1)]`.

    No range holds infinities or NaN.
    """

    ge: float | None = None
    gt: float | None = None
    le: float | None = None
    lt: float | None = None
    off: float | None = None
    """A number outside that switches the thing off."""

    def check(self, value: float, path: str) -> None:
        """ConfigError that names `path` unless `value` lies inside."""
        if value == self.off:
            return
        for sign, holds in (
            (">=", operator.ge),
            (">", operator.gt),
            ("<=", operator.le),
            ("<", operator.lt),
        ):
            bound = getattr(self, holds.__name__)
            if bound is not None and not holds(value, bound):
                off = "" if self.off is None else f", or {self.off:g} for off"
                raise ConfigError(f"{path}: expected {sign} {bound:g}{off}, got {shown(value)}")


class Checked:
    """Base of a configuration, a frozen dataclass: what its annotations say (types, `Literal`, `Range`)
    holds however it was made. Its `at` is where it stands, for messages: `class A(Checked, at="a.")`.

    A class with a `__post_init__` of its own, for what several fields have to do with each other, calls
    this one first.
    """

    _at: ClassVar[str] = ""

    def __init_subclass__(cls, *, at: str | None = None, **more: Any) -> None:
        super().__init_subclass__(**more)
        cls._at = cls._at if at is None else at

    def __post_init__(self) -> None:
        for name, hint in _hints(cast(Any, type(self))).items():
            key = self._at + (name.replace("_", "-") if self._at == "--" else name)
            object.__setattr__(self, name, _convert(hint, getattr(self, name), key, None))


Size = Annotated[int, Range(ge=1, le=65_536)]  # widths, sides, channels
Layers = Annotated[int, Range(ge=1, le=1000)]
Count = Annotated[int, Range(ge=1, le=10**9)]  # steps, clips, frames
Natural = Annotated[int, Range(ge=0, le=10**9)]  # the same, or none
Seed = Annotated[int, Range(ge=0, lt=2**63)]
Share = Annotated[float, Range(ge=0, lt=1)]
Weight = Annotated[float, Range(ge=0, le=1e6)]
Positive = Annotated[float, Range(gt=0, le=1e9)]


@functools.cache
def _hints(cls: Any) -> dict[str, Any]:
    """Name and annotation of each field."""
    hints = typing.get_type_hints(cls, include_extras=True)
    return {f.name: hints[f.name] for f in dataclasses.fields(cls)}


class _Short(reprlib.Repr):
    def repr_int(self, x: int, level: int) -> str:
        return repr(x) if abs(x) < 10**30 else f"a number of {x.bit_length()} bits"


_short = _Short()
_short.maxstring = _short.maxother = 80


def shown(value: Any) -> str:
    """`repr` of a value that may be of any size or depth, in one short line."""
    return _short.repr(value)


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
        raise ConfigError(f"{where or cls.__name__}: expected a mapping, got {shown(values)}")
    hints = _hints(cast(Any, cls))
    known = [f.name for f in dataclasses.fields(cast(Any, cls)) if f.init]
    former = getattr(cls, "FORMER_KEYS", {})
    given = {}
    for key, value in values.items():
        now = RENAMED_KEYS.get(key, key)
        if key not in known and now in known:
            key = now
        path = f"{where}.{key}" if where else str(key)
        if key not in known and now in former:
            if now != key and value != former[now]:
                log.warning("%s: passed over, %s never had it", path, cls.__name__)
            if now != key or value == former[now]:
                continue
        if key not in known:
            near = difflib.get_close_matches(str(key)[:80], known, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else f"; known keys: {', '.join(known)}"
            raise ConfigError(f"unknown key {shown(path)}{hint}")
        if key in given:
            raise ConfigError(f"{path}: given twice, once by its earlier name")
        before = None if base is None else getattr(base, key)
        given[key] = _convert(hints[key], value, path, before)
    for one in dataclasses.fields(cast(Any, cls)) if base is None else ():
        bare = one.default is one.default_factory is dataclasses.MISSING
        if bare and one.init and one.name not in given:
            raise ConfigError(f"{where or cls.__name__}: expected a {one.name}, got none")
    try:
        return cls(**given) if base is None else dataclasses.replace(cast(Any, base), **given)
    except ConfigError:
        raise
    except (TypeError, ValueError) as error:
        text, name = str(error), where or cls.__name__
        raise ConfigError(text if text.startswith(name) else f"{name}: {text}") from None


def _convert(hint: Any, value: Any, path: str, before: Any) -> Any:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        value = _convert(args[0], value, path, before)
        for mark in args[1:]:
            if isinstance(mark, Range):
                mark.check(value, path)
        return value
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        if isinstance(value, hint):
            return value
        base = before if isinstance(before, hint) else None
        return from_dict(hint, value, where=path, base=base)
    kinds = kinds_of(hint)
    if kinds and not (value is None and type(None) in args):
        if isinstance(value, hint if isinstance(hint, type) else tuple(kinds)):
            return value
        chosen = of_kind(kinds, value, path, before)
        if before is not None and not isinstance(before, chosen) and isinstance(value, Mapping):
            value = {**to_dict(in_common(before, chosen)), **value}
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
        if not any(type(value) is type(arg) and value == arg for arg in args):
            raise ConfigError(
                f"{path}: expected one of {', '.join(map(repr, args))}, got {shown(value)}"
            )
        return value
    if origin is tuple:
        if not isinstance(value, Sequence) or isinstance(value, str):
            raise ConfigError(f"{path}: expected a list, got {shown(value)}")
        inner = [args[0]] * len(value) if args[-1] is Ellipsis else list(args)
        if len(inner) != len(value):
            raise ConfigError(
                f"{path}: expected {len(inner)} values, got {len(value)}: {shown(value)}"
            )
        return tuple(
            _convert(h, v, f"{path}[{i}]", None)
            for i, (h, v) in enumerate(zip(inner, value, strict=True))
        )
    if origin is dict:
        if not isinstance(value, Mapping):
            raise ConfigError(f"{path}: expected a mapping, got {shown(value)}")
        for key in value:
            if not isinstance(key, args[0]):
                raise ConfigError(f"{path}: expected names that are text, got {key!r}; quote it")
        held = before if isinstance(before, Mapping) else {}
        made = {k: _entry(args[1], k, v, f"{path}.{k}", held) for k, v in value.items()}
        return {**held, **made}
    if hint is float and isinstance(value, (int, float, str)) and not isinstance(value, bool):
        try:
            number = float(value)  # of text, too: YAML 1.1 reads 1e-3 as text
        except (ValueError, OverflowError):
            number = math.nan
        if math.isfinite(number):
            return number
        if not isinstance(value, str):
            raise ConfigError(f"{path}: expected a finite number, got {shown(value)}")
    if hint is Path and isinstance(value, str):
        return Path(value)
    if hint is Any and dataclasses.is_dataclass(before) and isinstance(value, Mapping):
        return from_dict(type(before), value, where=path, base=before)
    if hint is Any or (isinstance(value, hint) and not (hint is int and isinstance(value, bool))):
        return value
    raise ConfigError(f"{path}: expected {getattr(hint, '__name__', hint)}, got {shown(value)}")


def _entry(hint: Any, key: Any, value: Any, path: str, held: Mapping[str, Any]) -> Any:
    """One value of a mapping whose keys are open; a new key may be a misspelt one."""
    try:
        return _convert(hint, value, path, held.get(key))
    except ConfigError as error:
        near = difflib.get_close_matches(str(key)[:80], map(str, held), n=1)
        if key in held or not near:
            raise
        raise ConfigError(f"{error}; did you mean {near[0]!r} instead of {shown(key)}?") from None


def kinds_of(hint: Any) -> list[Any]:
    """The dataclasses of which one may stand here; none where there is no choice."""
    if isinstance(hint, type) and not dataclasses.is_dataclass(hint) and hasattr(hint, "kinds"):
        return list(hint.kinds())
    options = [a for a in typing.get_args(hint) if a is not type(None)]
    union = typing.get_origin(hint) in (Union, types.UnionType) and len(options) > 1
    return options if union and all(dataclasses.is_dataclass(a) for a in options) else []


def of_kind(options: list[Any], value: Any, path: str, before: Any) -> Any:
    """Which of several dataclasses a mapping means: its `kind`, else what stood there before."""
    known = {option.kind: option for option in options}
    default = type(before) if type(before) in options else options[0]
    kind = value.get("kind", default.kind) if isinstance(value, Mapping) else default.kind
    if not isinstance(kind, str) or kind not in known:
        raise ConfigError(
            f"{path}.kind: expected one of {', '.join(map(repr, known))}, got {shown(kind)}"
        )
    return known[kind]


def leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """(flat key, value) of a configuration as plain values."""
    entries: Any = None
    if isinstance(value, dict):
        entries = value.items()
    elif isinstance(value, list) and any(isinstance(v, (dict, list)) for v in value):
        entries = enumerate(value)
    if not entries:
        yield path, value
        return
    for key, inner in entries:
        yield from leaves(inner, f"{path}.{key}" if path else str(key))


def renamed(key: str) -> str:
    """The flat key of an early configuration as it is called now."""
    return ".".join(RENAMED_KEYS.get(part, part) for part in key.split("."))


class _Loader(yaml.SafeLoader):
    """YAML without aliases (which blow up), a key that is given twice, or nesting without end."""

    _depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        event = self.peek_event()
        at: Any = event.start_mark
        if isinstance(event, yaml.AliasEvent):
            raise yaml.MarkedYAMLError(None, None, "aliases are not read here", at)
        if self._depth > 50:
            raise yaml.MarkedYAMLError(None, None, "more than 50 levels deep", at)
        self._depth += 1
        node = super().compose_node(parent, index)
        self._depth -= 1
        return node

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        made = super().construct_mapping(node, deep)
        if len(made) < len(node.value):
            keys = [self.construct_object(key, True) for key, _ in node.value]
            twice = next(key for at, key in enumerate(keys) if key in keys[:at])
            problem = f"the key {shown(twice)} is given twice"
            raise yaml.MarkedYAMLError(None, None, problem, node.start_mark)
        return made


_UNREADABLE = (  # no text; under `!!int`, `!!bool`, `!!timestamp` what is none; 1:1: .. :1 without end
    *(yaml.YAMLError, ValueError),
    *(LookupError, AttributeError, ArithmeticError),
)


def load_yaml(path: str | Path, cls: type[T], *, base: T | None = None) -> T:
    """Read a YAML file strictly. Raises ConfigError that names the file and the key."""
    return load_given(path, cls, base=base)[0]


def load_given(path: str | Path, cls: type[T], *, base: T | None = None) -> tuple[T, set[str]]:
    """The same, and the flat keys that the file names. It is read once: it may be a pipe.

    Warns of what a whole configuration of an earlier version lacks, where `base` and its default differ.
    """
    try:
        if Path(path).stat().st_size > 2**20:
            raise OSError("more than 1 MiB, which no configuration has")
        values = yaml.load(Path(path).read_text(), _Loader)
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f" in line {mark.line + 1}" if mark else ""
        raise ConfigError(f"{path}: not valid YAML{line}: {error.problem}") from None
    except _UNREADABLE as error:
        raise ConfigError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    values = {} if values is None else values
    if isinstance(values, Mapping):
        values = dict(values)
        version = values.pop("config_version", VERSION)
        if version != VERSION:
            raise ConfigError(
                f"{path}: config_version {shown(version)} is not {VERSION}, which this release reads"
            )
    try:
        made = from_dict(cls, values, base=base)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None
    if base is not None:
        _tell_of_missing(path, cls, values, made)
    return made, {renamed(key) for key, _ in leaves(values)}


def _tell_of_missing(path: str | Path, cls: type, values: Mapping[str, Any], made: Any) -> None:
    """A run's config.yaml names every key of its time. What is newer was as its default says then, and is now as `base`
    had it, which nobody asked for. A file that names less than half of the keys is one of changes."""
    given, now = {renamed(key) for key, _ in leaves(values)}, dict(leaves(to_dict(made)))
    if 2 * len(given) <= len(now):
        return
    try:
        then = dict(leaves(to_dict(from_dict(cls, values))))
    except ConfigError:  # it is whole with `base` alone
        return
    for key in now:
        if key not in given and now[key] != then.get(key):
            log.warning(
                "%s: does not name %s, which stays %s; a run of this configuration has %s",
                *(path, key, shown(now[key]), shown(then.get(key))),
            )


def to_yaml(config: Any) -> str:
    """The whole configuration as YAML text that `load_yaml` reads back to an equal value."""
    return yaml.safe_dump({"config_version": VERSION, **to_dict(config)}, sort_keys=False)


def in_common(before: Any, chosen: Any) -> dict[str, Any]:
    """The fields of `before` that the dataclass `chosen` has too, but its kind."""
    shared = {f.name for f in dataclasses.fields(chosen)} - {"kind"}
    names = [f.name for f in dataclasses.fields(before) if f.name in shared]
    return {name: getattr(before, name) for name in names}
