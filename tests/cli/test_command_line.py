"""Every field is an option: the command line of a configuration, and one of several kinds on it."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import pytest

from colaworld.cli.command_line import from_command_line
from colaworld.config import ConfigError
from colaworld.runs.config import RunConfig


@dataclass(frozen=True)
class Optimizer:
    rate: float = 1.0
    """Learning rate."""
    betas: tuple[float, float] = (0.9, 0.99)
    """Moments."""


@dataclass(frozen=True)
class Config:
    steps: int = 3
    """How many."""
    method: Literal["euler", "heun"] = "euler"
    """Which."""
    path: Path | None = None
    """Where."""
    pairs: tuple[tuple[str, float], ...] = ()
    """Factors."""
    optimizer: Optimizer = field(default_factory=Optimizer)
    """How to step."""


@dataclass(frozen=True)
class Round:
    radius: float = 1.0
    colour: str = "red"
    kind: Literal["round"] = "round"


@dataclass(frozen=True)
class Square:
    side: float = 2.0
    colour: str = "blue"
    kind: Literal["square"] = "square"


@dataclass(frozen=True)
class Drawing:
    shape: Round | Square = field(default_factory=Round)


@dataclass(frozen=True)
class Page:
    drawing: Drawing = field(default_factory=Drawing)
    pages: int = 1


def line(arguments: list[str], default: Config | None = None) -> Config:
    return from_command_line(default or Config(), arguments, program="p", description="d")


def test_command_line_reaches_every_depth_and_keeps_the_default():
    base = Config(steps=9, pairs=(("idm", 2.0),), optimizer=Optimizer(rate=5.0))
    made = line(["--optimizer.betas", "0.1", "0.2", "--method", "heun", "--path", "a"], base)
    want = replace(base, method="heun", path=Path("a"), optimizer=Optimizer(5.0, (0.1, 0.2)))
    assert made == want
    assert line([], base) == base


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["--optimizer.rtae", "1"], "--optimizer.rate"), (["--steps", "x"], "x")],
)
def test_command_line_refuses_with_a_hint(arguments, message, capsys):
    with pytest.raises(SystemExit) as stop:
        line(arguments)
    assert stop.value.code == 2
    captured = capsys.readouterr()
    assert message in captured.out + captured.err


def test_help_shows_the_documentation_of_fields(capsys):
    with pytest.raises(SystemExit):
        line(["--help"])
    shown = capsys.readouterr().out
    assert "Learning rate." in shown and "--optimizer.rate" in shown


def test_a_kind_on_the_command_line_takes_that_dataclass():
    given = Page(Drawing(Round(colour="green")))

    def parse(*arguments):
        return from_command_line(given, arguments, program="draw", description="")

    assert parse("--drawing.shape.kind", "square") == Page(Drawing(Square(colour="green")))
    both = parse("--pages", "2", "--drawing.shape.kind=square", "--drawing.shape.side", "3")
    assert both == Page(Drawing(Square(3.0, "green")), 2)
    assert parse("--drawing.shape.kind", "round") == given
    with pytest.raises(ConfigError, match=r"drawing.shape.kind: expected one of 'round', 'square'"):
        parse("--drawing.shape.kind", "oval")


def test_an_earlier_name_of_a_flag_says_what_it_is_called_now():
    for earlier, now in (("generator", "backbone-weights"), ("sampler.slide", "sampler.on-slide")):
        with pytest.raises(ConfigError, match=rf"--{earlier} is called --{now} now"):
            from_command_line(RunConfig(), [f"--{earlier}=none"], program="train", description="")
