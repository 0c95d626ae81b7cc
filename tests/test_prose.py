"""What the documents name exists: verbs and flags in --help, targets in the Makefile.

Checked are code spans and fenced blocks of every README, of CONTRIBUTING and docs/. Not here: sentences.
"""

from __future__ import annotations

import contextlib
import io
import re
from functools import cache
from pathlib import Path

import pytest

from colaworld.cli.main import VERBS, main
from colaworld.recipes import RECIPES

ROOT = Path(__file__).resolve().parents[1]
TARGETS = set(re.findall(r"^([a-z][a-z-]*):", (ROOT / "Makefile").read_text(), flags=re.M))
DOCUMENTS = sorted(
    {
        *ROOT.glob("*.md"),
        *(
            path
            for top in ("docs", "colaworld", "benchmarks")
            for path in (ROOT / top).rglob("*.md")
        ),
    }
)
RECIPES_OF = ("train", "plan-memory", "plan-scale")
_ALL = dict.fromkeys(("adapt", "evaluate", "probe", *RECIPES_OF), "-all")  # have a short help, too
FLAG = r"(?<![\w-])--([a-z][\w.-]*)"


@cache
def flags_of(verb: str) -> frozenset[str]:
    """Every flag that `colaworld VERB --help` shows, or what it shows for a sub-verb or a recipe; all of them."""
    inner = {"data": ["inspect", "encode"]}.get(verb, ())
    if verb in RECIPES_OF:
        inner = RECIPES
    printed = io.StringIO()
    calls = [[verb], *([verb, word] for word in inner)]
    for call in (
        [*words, flag] for words in calls for flag in {"--help", f"--help{_ALL.get(verb, '')}"}
    ):
        with contextlib.redirect_stdout(printed), contextlib.suppress(SystemExit):
            main(call)
    found = {flag.rstrip(".").replace("_", "-") for flag in re.findall(FLAG, printed.getvalue())}
    # `data encode` hands on to the fields of a recipe.
    return frozenset(found | {"help"} | (flags_of("train") if verb == "data" else set()))


@cache
def script_flags() -> frozenset[str]:
    """Those of the scripts under benchmarks/, which are no verbs."""
    texts = (path.read_text() for path in (ROOT / "benchmarks").rglob("*.py"))
    return frozenset(flag for text in texts for flag in re.findall(rf'"{FLAG}"', text))


def commands(text: str) -> list[str]:
    """Of a document: lines of fenced blocks, continued ones joined, and code spans."""
    fenced = r"^```[^\n]*\n(.*?)^```"
    blocks = "\n".join(re.findall(fenced, text, flags=re.S | re.M)).replace("\\\n", " ")
    spans = re.findall(r"`([^`]+)`", re.sub(fenced, "", text, flags=re.S | re.M))
    lines = blocks.splitlines() + [" ".join(span.split()) for span in spans]
    return [line.split(" #")[0].strip() for line in lines]


def wrong(command: str) -> str | None:
    """What of a command does not exist; None where all does, or where it is not one of ours."""
    if called := re.search(r"(?:^|\s)make ((?:[a-z][a-z-]*\s?)+)", command):
        missing = set(called[1].split()) - TARGETS
        if command.startswith("make ") and missing:
            return f"the Makefile has no target {sorted(missing)}"
    verb = re.match(r"(?:[A-Z_]+=\S+ )*(?:python -m )?colaworld ([a-z][\w-]*)(.*)", command)
    verb = verb or re.match(rf"({'|'.join(VERBS)})( [A-Z[-].*)$", command)
    if verb is not None:
        if verb[1] not in VERBS:
            return f"no verb {verb[1]!r}"
        known = flags_of(verb[1])
        rest = verb[2]
    elif command.startswith("--"):
        known, rest = script_flags().union(*map(flags_of, VERBS)), command
    else:
        return None
    missing = {flag.rstrip(".") for flag in re.findall(FLAG, rest)} - known
    return f"{verb[1] if verb else 'no verb'} has no {sorted(missing)}" if missing else None


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_verbs_flags_and_targets_exist(path: Path) -> None:
    faults = {command: fault for command in commands(path.read_text()) if (fault := wrong(command))}
    assert not faults


@pytest.mark.parametrize(
    ("command", "fault"),
    [
        ("colaworld trian nano.cola", "no verb 'trian'"),
        ("COLAWORLD_OPS=reference colaworld train nano.cola --data x --max-step 2", "max-step"),
        ("python -m colaworld sample runs/x --colour red", "sample has no ['colour']"),
        ("plan-memory RECIPE --gpus 80", "plan-memory has no ['gpus']"),
        ("--training.batchsize 8", "no verb has no ['training.batchsize']"),
        ("make everything", "the Makefile has no target ['everything']"),
    ],
)
def test_a_word_that_does_not_exist_is_found(command: str, fault: str) -> None:
    assert fault in str(wrong(command))
    (found,) = commands(f"Type `{command}`.")
    assert found == command == commands(f"```sh\n{command}   # why\n```\n")[0]
