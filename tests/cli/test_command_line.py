"""Every field is an option: the command line of a configuration, and one of several kinds on it."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Literal

import pytest
import tyro

from colaworld.cli.command_line import from_command_line
from colaworld.cli.help import USUAL, usual_help
from colaworld.cli.main import VERBS
from colaworld.config import ConfigError, Range
from colaworld.recipes import recipe
from colaworld.runs.config import RunConfig


@dataclass(frozen=True)
class Round:
    radius: float = 1.0
    """In centimetres."""
    centre: tuple[float, float] = (0.5, 0.5)
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
    dpi: Annotated[int, Range(ge=1)] | None = None
    paper: Literal["a4", "a5"] = "a4"
    path: Path | None = None
    margins: tuple[tuple[str, float], ...] = ()
    crop: Literal["none"] | tuple[int, int, int] = "none"


def line(arguments: list[str], default: Page | None = None, **more) -> Page:
    return from_command_line(default or Page(), arguments, program="p", description="d", **more)


def test_command_line_reaches_every_depth_and_keeps_the_default():
    base = Page(Drawing(Round(5.0)), pages=9, dpi=30, margins=(("top", 2.0),))
    made = line(
        ["--drawing.shape.centre", "0.1", "2", "--paper", "a5", "--path", "a", "--dpi", "None"],
        base,
    )
    shape = Drawing(Round(5.0, (0.1, 2.0)))
    assert made == replace(base, drawing=shape, paper="a5", path=Path("a"), dpi=None)
    assert line(["--dpi", "60"], base) == replace(base, dpi=60)
    assert line([], base) == base


@dataclass(frozen=True)
class Sheet:
    name: Annotated[str, tyro.conf.Positional]
    out: Path
    page: Page = field(default_factory=Page)
    plain: bool = False


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--drawing.shape.raduis", "1"], "no option --drawing.shape.raduis, did you mean --drawing.shape.radius?"),
        (["--radius=1"], "no option --radius, did you mean --drawing.shape.radius?"),
        (["--page", "1"], "no option --page, did you mean --pages?"),
        (["--zoom", "1", "--pges", "2"], "no option --zoom; no option --pges, did you mean --pages?"),
        (["a b", "7"], "expected no more arguments, got 'a b' '7'"),
        (["--pages"], "--pages: expected a value, got none"),
        (["--pages", "x"], "--pages: expected a whole number, got 'x'"),
        (["--pages", "1.5"], "--pages: expected a whole number, got '1.5'"),
        (["--dpi", "many"], "--dpi: expected a whole number or None, got 'many'"),
        (["--paper", "a6 " + 60 * "long"], f"--paper: expected one of 'a4', 'a5', got 'a6 {60 * 'long'}'"),
        (["--drawing.shape.centre", "1"], "--drawing.shape.centre: expected 2 values, got fewer"),
        (["--crop", "1", "2"], "--crop: expected {none}|{INT INT INT}, got '1', '2'"),
    ],
)  # fmt: skip
def test_a_wrong_call_is_told_in_one_line(arguments, message, capsys):
    for more, listed in (({}, "--help"), ({"usual": {"--zom N": ""}}, "--help-all")):
        said = message.replace("--zoom;", "--zoom, did you mean --zom?;") if more else message
        with pytest.raises(ConfigError) as wrong:
            line(arguments, **more)
        assert str(wrong.value) == f"{said} ({listed} lists every option)"
    assert capsys.readouterr() == ("", "")


def test_a_wrong_call_is_told_also_where_an_argument_is_missing():
    def said(*arguments: str) -> str:
        with pytest.raises(ConfigError) as wrong:
            from_command_line(Sheet, arguments, program="p", description="d")
        return str(wrong.value).removesuffix(" (--help lists every option)")

    assert said() == "missing: NAME, --out PATH"
    assert said("a") == "missing: --out PATH"
    assert said("a", "--otu", "b") == "no option --otu, did you mean --out?; missing: --out PATH"
    assert said("--out") == "--out: expected a value, got none"
    assert said("a", "--out", "b", "--no-plan") == "no option --no-plan, did you mean --no-plain?"


def test_every_verb_tells_an_unknown_option_in_one_line(colaworld):
    for verb in VERBS:
        more = (
            ["stats"]
            if verb == "data"
            else ["nano.cola"]
            if "plan-" in verb or verb == "train"
            else []
        )
        said = colaworld(verb, *more, "--evrything")
        assert said.status == 2 and said.out == "" and "--evrything" in said.err
        assert said.err.startswith(f"colaworld {verb}: ") and said.err.count("\n") == 1


def test_help_shows_the_documentation_of_fields(capsys):
    with pytest.raises(SystemExit):
        line(["--help"])
    shown = capsys.readouterr().out
    assert "In centimetres." in shown and "--drawing.shape.radius" in shown
    assert "lists every option" not in shown


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
    square = ("--drawing.shape.kind", "square")  # whose options are known then
    with pytest.raises(ConfigError, match=r"^--drawing.shape.side: expected a number, got 'x' \("):
        parse(*square, "--drawing.shape.side", "x")
    with pytest.raises(ConfigError, match=r"^no option --drawing.shape.sde, did .*shape.side\? \("):
        parse(*square, "--drawing.shape.sde", "3")


def test_an_earlier_name_of_a_flag_says_what_it_is_called_now():
    for earlier, now in (("generator", "backbone-weights"), ("sampler.slide", "sampler.on-slide")):
        with pytest.raises(ConfigError, match=rf"--{earlier} is called --{now} now"):
            from_command_line(RunConfig(), [f"--{earlier}=none"], program="train", description="")


@pytest.mark.parametrize(
    "verb", ["record scene --out o --episodes", "demo --max-steps", "bench --threads"]
)
def test_every_verb_tells_a_wrong_number_in_words(verb, colaworld):
    said = colaworld(*verb.split(), "x")
    assert said.status == 2 and "expected a whole number" in said.plain and "got 'x'" in said.plain


def test_help_of_a_recipe_is_short_and_names_only_what_it_has(colaworld):
    said = colaworld("train", "nano.pretrain", "--help")
    lines = said.out.splitlines()
    assert said.status == 0 and len(lines) < 80 and max(map(len, lines)) <= 100
    first = "  --training.batch-size N             Clips per forward pass, over all processes: each takes its"
    assert first in lines
    assert (
        "  --phases.pretrain.steps N           Optimizer steps; the maximum where there is a gate. [4500]"
        in lines
    )
    assert not any(word in said.out for word in ("idm", "quantizer", "warmup", "--evaluation"))
    assert "nano.cola" in colaworld("train", "--help-all").out  # without a recipe: which there are
    cola = colaworld("train", "nano.cola", "--help").out
    assert "--phases.joint.steps" in cola and "--model.quantizer.kind vq|ema|" in cola


def test_every_usual_option_of_the_short_help_is_one():
    shown = usual_help(recipe("nano.cola"), program="p", description="", also={})
    for name in " ".join(USUAL.values()).split():
        assert name.replace("*", "joint").replace("_", "-") + " " in shown


@pytest.mark.parametrize("verb", ["adapt", "atlas", "evaluate", "label", "probe"])
def test_a_short_help_is_short_and_has_no_option_that_the_verb_lacks(verb, colaworld):
    short, whole = colaworld(verb, "--help").out, colaworld(verb, "--help-all").plain
    listed = set(re.findall(r"^  (--\S+)", short, re.M)) - {"--data", "--split"}
    assert len(short.splitlines()) < 85 and len(listed) > 10
    assert not {flag for flag in listed if flag not in whole}


def test_a_file_in_place_of_a_recipe_is_told_where_files_go(colaworld):
    said = colaworld("train", "g.yaml", "--data", "x")
    assert said.status == 2 and "nano.cola --config g.yaml" in said.err
    assert "nano.two_stage" in colaworld("train", "nano.coal", "--data", "x").err
