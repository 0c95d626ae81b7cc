"""Things by name, each registered by the file that holds it: in the package, or one of your own.

    PARTS: Registry[Part] = Registry("part", ConfigError)
    PARTS.add("idm", Part(...))

Not here: any of the registers.
"""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar, NoReturn, TypeVar

T = TypeVar("T")


class Registry(dict[str, T]):
    """Name -> value, in the order they were registered.

    Args:
        what: what one of them is called in messages.
        error: what a wrong name raises.
        reserved: names that nothing may have.
    """

    every: ClassVar[list[Registry[Any]]] = []

    def __init__(
        self, what: str, error: type[ValueError], *, reserved: Collection[str] = ()
    ) -> None:
        super().__init__()
        self.what, self.error, self.reserved = what, error, reserved
        self.every.append(self)

    def add(self, name: str, value: T) -> None:
        """Make it known; the same once more changes nothing. Raises `error` on a name that is taken."""
        self[name] = value

    def __setitem__(self, name: str, value: T) -> None:
        if name in self.reserved or self.get(name, value) != value:
            raise self.error(f"{self.what} {name!r}: there is one of this name already")
        super().__setitem__(name, value)

    def update(self, values: Mapping[str, T]) -> None:  # type: ignore[override]
        """Add each; a dict's own would go around `add`."""
        for name, value in values.items():
            self.add(name, value)

    def __ior__(self, values: Mapping[str, T]) -> Registry[T]:  # type: ignore[override, misc]
        self.update(values)
        return self

    def __missing__(self, name: str) -> NoReturn:
        """Raises `error` with those that are known, and the nearest."""
        near = difflib.get_close_matches(name, self, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else "."
        raise self.error(
            f"no {self.what} {name!r} is registered; known: {', '.join(sorted(self))}{hint} Import the "
            "file that registers it (on the command line: COLAWORLD_IMPORT=file.py)"
        )


@dataclass(frozen=True)
class Later:
    """What "module:name" holds, imported when it is called: to register what needs torch without it."""

    where: str

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        module, _, name = self.where.partition(":")
        return getattr(importlib.import_module(module), name)(*arguments, **named)


def lazy_names(package: str, **modules: str) -> Callable[[str], Any]:
    """A package's `__getattr__`: names that are imported when they are asked for.

    Args:
        package: its `__name__`.
        modules: for each name, the module of the package that holds it.
    """

    def look_up(name: str) -> Any:
        if name not in modules:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(importlib.import_module(f"{package}.{modules[name]}"), name)

    return look_up


@contextmanager
def from_outside() -> Iterator[None]:
    """What is registered meanwhile, in any register imported by now, is forgotten afterwards.

    For tests of a file of your own.
    """
    before = [(register, dict(register)) for register in Registry.every]
    try:
        yield
    finally:
        for register, held in before:
            register.clear()
            register.update(held)
