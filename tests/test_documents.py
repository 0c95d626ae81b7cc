"""What the documents say: numbers are those of their files, links lead somewhere."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path

import pytest

from colaworld.cli.main import VERBS
from colaworld.recipes import RECIPES

ROOT = Path(__file__).resolve().parents[1]
_spec = importlib.util.spec_from_file_location(
    "numbers_in_prose", ROOT / "docs" / "write_numbers.py"
)
numbers = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(numbers)
DOCUMENTS = numbers.documents()


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda p: str(p.relative_to(ROOT)))
def test_numbers_are_those_that_were_measured(path: Path) -> None:
    text = path.read_text()
    assert text == numbers.written(text), "run: python docs/write_numbers.py"
    assert text.count("<!-- n:") == text.count("<!-- /n -->") == len(numbers.MARK.findall(text))
    tables = len(numbers.TABLES.findall(text))
    assert text.count("<!-- table:") == text.count("<!-- /table -->") == tables


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda p: str(p.relative_to(ROOT)))
def test_links_lead_somewhere(path: Path) -> None:
    prose = re.sub(r"^```.*?^```", "", path.read_text(), flags=re.S | re.M)
    for link in re.findall(r"\]\(([^)\s]+)\)", prose):
        if "://" in link:
            continue
        file, _, heading = link.partition("#")
        target = path.parent / file if file else path
        assert target.exists(), f"{link}: no such file"
        if heading:
            lines = re.findall(r"^#+ (.+)$", target.read_text(), flags=re.M)
            slugs = [re.sub(r"[^\w\- ]", "", s.lower()).replace(" ", "-") for s in lines]
            assert heading in slugs, f"{link}: no such heading"


def test_a_number_that_differs_is_written_anew() -> None:
    mark = "<!-- n:training_cpu#step/nano.cola.joint/fwd_bwd/eager -->{}<!-- /n -->"
    rows = numbers._content("training_cpu")
    (eager,) = (r["p50_ms"] for r in rows if (r["op"], r["impl"]) == ("step", "eager"))
    (ours,) = (r["p50_ms"] for r in rows if (r["op"], r["impl"]) == ("step", "default"))
    assert numbers.written(mark.format("1")) == mark.format(f"{eager:.0f}")
    assert numbers.written(mark.format("1.00")) == mark.format(f"{eager:.2f}")
    quotient = mark.replace("eager", "eager over .../default")
    assert numbers.written(quotient.format("0.0")) == quotient.format(f"{eager / ours:.1f}")


def test_a_table_that_differs_is_written_anew(tmp_path: Path, monkeypatch) -> None:
    number = {"mean": 1.5, "low": None, "high": None}
    shared = {"study": "s", "arm": "one", "reference": "one", "status": "finished", "why": ""}
    shared |= {"steps": 3, "numbers": {"probe.score": number}, "entropy": [], "collapsed_at": None}
    shared |= {"clips": {}, "beside": {}, "recipe": "r", "clips_trained": 6, "seconds": 60.0}
    rows = [{**shared, "flops": None, "data": "d", "seed": seed} for seed in range(3)]
    (tmp_path / "docs" / "results").mkdir(parents=True)
    (tmp_path / "docs" / "results" / "study_s.json").write_text(json.dumps(rows))
    monkeypatch.setattr(numbers, "ROOT", tmp_path)
    numbers.tables.cache_clear()
    before = "<!-- table:study_s#d -->\n| old |\n<!-- /table -->\nbelow"
    text = numbers.written(before)
    assert "| one | 3 | - | 1.50 [1.50, 1.50] |" in text and "old" not in text
    assert text.endswith("<!-- /table -->\nbelow") and numbers.written(text) == text
    with pytest.raises(ValueError, match=r"study_s.json: no row of data set 'e'"):
        numbers.written(before.replace("#d", "#e"))


def test_a_table_of_plans_that_differs_is_written_anew(tmp_path: Path, monkeypatch) -> None:
    one = {"seeds": 3, "success": {"mean": 0.5, "low": 0.25, "high": 0.75}, "difference": None}
    table = {"tasks": {"pusht": {"joint": one}}, "mean": None, "reference": "joint"}
    table["limits"] = {"pusht": {"joint": []}}
    (tmp_path / "benchmarks" / "results").mkdir(parents=True)
    (tmp_path / "benchmarks" / "results" / "plans_p.json").write_text(json.dumps(table))
    monkeypatch.setattr(numbers, "ROOT", tmp_path)
    text = numbers.written("<!-- table:plans_p -->\n| old |\n<!-- /table -->\nbelow")
    assert "| joint | 3 | 50.0 (25 .. 75) | - |" in text and "old" not in text
    assert text.endswith("<!-- /table -->\nbelow") and numbers.written(text) == text


@pytest.mark.parametrize(
    "key", ["demo#probe.absent", "absent#probe", "ops_cpu#adaln/absent/fwd/cpu"]
)
def test_a_number_without_a_source_is_an_error(key: str) -> None:
    with pytest.raises(ValueError, match=re.escape(f"{key}: no such number")):
        numbers.written(f"<!-- n:{key} -->1<!-- /n -->")


def test_every_recipe_and_every_verb_has_a_row() -> None:
    recipes = (ROOT / "docs" / "recipes.md").read_text()
    assert not [name for name in RECIPES if f"| `{name}` |" not in recipes]
    commands = (ROOT / "docs" / "commands.md").read_text()
    assert not [verb for verb in VERBS if f"`colaworld {verb}" not in commands]
