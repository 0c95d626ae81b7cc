"""What is said of a call that the parser cannot read: one line that names the option, and the one meant.

Not here: what a value may be (config.py), how the line is printed (errors.py).
"""

from __future__ import annotations

import dataclasses
import difflib
import re
from collections.abc import Iterator, Sequence
from typing import Any

_NEAR = 0.7  # of difflib: "--dat" and "--data" are alike by 0.91


def unknown(default: Any, left: Sequence[str], *, also: Sequence[str] = ()) -> str:
    """Of arguments that no option takes. `default`: the dataclass of the options, or its class; `also`:
    flags that the verb takes itself."""
    flags = [*also, *flags_of(default)]
    asked = _flags(left)
    if not asked:
        return f"expected no more arguments, got {' '.join(map(repr, left))}"
    return "; ".join(
        f"no option {flag}" + (f", did you mean {' or '.join(near)}?" if near else "")
        for flag in asked
        for near in [_near(flag, flags)]
    )


def unreadable(
    default: Any, arguments: Sequence[str], said: str, *, also: Sequence[str] = ()
) -> str:
    """What tyro says of `arguments`, `said`, without title, rules and help of the option; before it what
    `unknown` says, since a flag that no option has may have taken a value."""
    parts: list[list[str]] = [[]]
    for text in said.splitlines():  # a rule stands under the title and between parts
        parts.append([]) if set(text.strip()) == {"-"} else parts[-1].append(text[2:].rstrip())
    told = _told(default, parts[1] if len(parts) > 1 else parts[0])
    flags = [*also, *flags_of(default)]
    asked = [flag for flag in _flags(arguments) if flag.replace("_", "-") not in flags]
    return f"{unknown(default, asked, also=also)}; {told}" if asked else told


def _told(default: Any, lines: Sequence[str]) -> str:
    """One line of what tyro says in several."""
    if lines and lines[0].startswith("Missing from "):
        return f"missing: {_missing(default, [one.strip() for one in lines if re.match(' {4}[^ ]', one)])}"
    text = " ".join(" ".join(lines).split())
    if found := re.match(
        r"Error parsing (\S+): no type matching (.*) could be instantiated from \[(.*?)\]", text
    ):
        return f"{found[1]}: expected {found[2]}, got {found[3]}"
    if found := re.fullmatch(r"Error parsing (\S+): (.*)", text):
        return f"{found[1]}: {found[2]}" if found[1].startswith("-") else found[2]
    if found := re.fullmatch(
        r"invalid choice '(.*)' for argument '(\S+)'. Expected one of \((.*?),?\).", text
    ):
        return f"{_shown(found[2])}: expected one of {found[3]}, got {found[1]!r}"
    if found := re.fullmatch(r"Missing value for argument '(\S+)'. Expected (\d+) values.", text):
        count = "a value, got none" if found[2] == "1" else f"{found[2]} values, got fewer"
        return f"{_shown(found[1])}: expected {count}"
    return text


def _shown(name: str) -> str:
    """As help shows it: an argument without a flag in capitals."""
    return name if name.startswith("-") else name.upper()


def _flags(tokens: Sequence[str]) -> list[str]:
    """Those of the tokens that are meant as options, without values."""
    flags = [token.partition("=")[0] for token in tokens if re.match(r"--?[^\W\d]", token)]
    return list(dict.fromkeys(flags))


def _missing(default: Any, shown: Sequence[str]) -> str:
    """Names of arguments; tyro calls one without a flag by its type."""
    fields = dataclasses.fields(default)
    names = iter(f.name.upper() for f in fields if "Positional" in str(f.type))
    return ", ".join(one if one.startswith("-") else next(names, one) for one in shown)


def flags_of(config: Any) -> Iterator[str]:
    """Every option of a dataclass, or of its class, as `--a.b-c`."""
    for name in _names(config):
        yield "--" + name.replace("_", "-")


def _names(config: Any) -> Iterator[str]:
    for f in dataclasses.fields(config):
        value = _value(config, f)
        if "Positional" in str(f.type):
            continue
        if dataclasses.is_dataclass(value):
            lends = re.search(r"name=(''|\"\")", str(f.type))
            yield from (name if lends else f"{f.name}.{name}" for name in _names(value))
        elif isinstance(value, dict) and any(map(dataclasses.is_dataclass, value.values())):
            for key, one in value.items():
                yield from (f"{f.name}.{key}.{name}" for name in _names(one))
        else:
            yield f.name
            if isinstance(value, bool):
                yield f"no-{f.name}"


def _value(config: Any, f: dataclasses.Field[Any]) -> Any:
    """A field's value; of a class its default."""
    if not isinstance(config, type):
        return getattr(config, f.name)
    if f.default_factory is not dataclasses.MISSING:
        return f.default_factory()
    return f.default


def _near(flag: str, flags: Sequence[str]) -> list[str]:
    """At most three options that may have been meant: of the same last name, else spelled like it."""

    def last(name: str) -> str:
        return name.lstrip("-").rpartition(".")[2]

    flag = flag.replace("_", "-")
    if same := [one for one in flags if last(one) == last(flag)]:
        return same[:3]
    if close := difflib.get_close_matches(flag, flags, n=1, cutoff=_NEAR):
        return close
    names = difflib.get_close_matches(last(flag), list(map(last, flags)), n=1, cutoff=_NEAR)
    return [one for one in flags if last(one) in names][:3]
