"""The house rules that a program can check: imports go down only and never in a circle, no `utils`, a true tree."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FLOORS = (
    ("kernels",),
    ("contracts", "config", "files", "registry", "rng"),
    ("ops", "action_contract"),
    ("flow", "metrics", "action_differences"),
    ("models", "data", "envs"),
    ("training", "evaluation", "planning"),
    ("runs",),
    ("recipes",),
    ("studies",),
    ("cli", "playground"),
)
FLOOR_OF = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}
SOURCES = sorted((ROOT / "colaworld").rglob("*.py")) + sorted((ROOT / "kernels").rglob("*.py"))


def room_of(path: Path) -> str | None:
    """The room a file stands in; None for the package's own two files, which import no room."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    name = parts[0] if parts[0] == "kernels" else parts[1]
    return None if name in ("__init__", "__main__") else name


def imported_rooms(tree: ast.AST) -> set[str]:
    names: list[str] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative import: write the full name"
            names.append(node.module or "")
            names += [f"{node.module}.{alias.name}" for alias in node.names]
    parts = (name.split(".") for name in names)
    return {p[1] for p in parts if p[0] == "colaworld" and len(p) > 1 and p[1] in FLOOR_OF}


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_go_down_only(path: Path) -> None:
    room = room_of(path)
    imported = imported_rooms(ast.parse(path.read_text()))
    if room is None:
        assert path.stem == "__main__" or not imported, "the package itself loads no room"
        return
    assert room in FLOOR_OF, f"{room} stands on no floor; add it to FLOORS with its reason"
    wrong = {r for r in imported if r != room and FLOOR_OF[r] >= FLOOR_OF[room]}
    assert not wrong, f"{room} (floor {FLOOR_OF[room]}) imports {sorted(wrong)}, not below it"


def import_graph(folders: Iterable[Path]) -> dict[str, set[str]]:
    """{module: modules of the same folders that it imports}, anywhere in the file, TYPE_CHECKING too."""
    files: dict[str, Path] = {}
    for folder in folders:
        for path in sorted(folder.rglob("*.py")):
            parts = (folder.name, *path.relative_to(folder).with_suffix("").parts)
            files[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    graph: dict[str, set[str]] = {name: set() for name in files}
    for name, path in files.items():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                wanted = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                base = node.module or ""
                if node.level:  # only benchmarks, which has two names
                    above = name.split(".")[: None if path.stem == "__init__" else -1]
                    base = ".".join([*above[: len(above) - node.level + 1], *base.split()])
                whole = [f"{base}.{alias.name}" for alias in node.names]
                wanted = [full if known(full) in files else base for full in whole]
            else:
                continue
            graph[name] |= {known(one) for one in wanted} & files.keys() - {name}
    return graph


def known(module: str) -> str:
    """Top-level folders are installed inside the package: colaworld.kernels is kernels."""
    inside = module.removeprefix("colaworld.")
    return inside if inside.split(".")[0] in ("kernels", "benchmarks") else module


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """For every knot of modules that import each other, one shortest way around, its start repeated."""

    def way(start: str) -> list[str] | None:
        """Breadth first from `start` back to it."""
        ways, seen = [[start]], {start}
        for steps in ways:
            for after in sorted(graph[steps[-1]]):
                if after == start:
                    return [*steps, start]
                if after not in seen:
                    seen.add(after)
                    ways.append([*steps, after])
        return None

    found: list[list[str]] = []
    for name in sorted(graph):
        if not any(name in circle for circle in found) and (circle := way(name)):
            found.append(circle)
    return found


def test_no_module_imports_in_a_circle() -> None:
    found = circles(import_graph(ROOT / top for top in ("colaworld", "kernels", "benchmarks")))
    ways = "\n".join(" -> ".join(circle) for circle in found)
    assert not found, f"what both need goes into a third file:\n{ways}"


def test_a_circle_is_found_wherever_the_import_stands(tmp_path: Path) -> None:
    package = tmp_path / "toy"
    package.mkdir()
    files = {
        "__init__": "",
        "one": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from toy.two import name",
        "two": "def late():\n    import toy.three",
        "three": "from . import one, four",
        "four": "import toy.one",
        "alone": "import os\nfrom toy import one",
    }
    for name, text in files.items():
        (package / f"{name}.py").write_text(text)
    graph = import_graph([package])
    assert graph["toy.three"] == {"toy.one", "toy.four"} and graph["toy.alone"] == {"toy.one"}
    assert circles(graph)[0] == ["toy.four", "toy.one", "toy.two", "toy.three", "toy.four"]
    (package / "two.py").write_text("import os")
    assert circles(import_graph([package])) == []


def test_nothing_is_called_utils() -> None:
    wrong = [p for p in SOURCES if re.fullmatch(r"utils?|helpers?|misc|common", p.stem)]
    assert not wrong, "what two rooms need goes to the lower room that owns the idea"


def test_only_ops_loads_compiled_code() -> None:
    for path in SOURCES:
        if room_of(path) != "ops":
            text = path.read_text()
            assert not re.search(r"load_library|colaworld\._(C|native)\b", text), path


def test_the_tree_in_contributing_exists() -> None:
    document = ROOT / "CONTRIBUTING.md"
    # Lines of a fenced block like "  models/   layers, latent_action": a folder, by indentation.
    blocks = re.findall(r"^```[^\n]*\n(.*?)^```", document.read_text(), flags=re.S | re.M)
    trees = [b for b in blocks if re.search(r"^colaworld/", b, flags=re.M)]
    assert trees, (
        "CONTRIBUTING.md shows no tree (a fenced block with a line that starts colaworld/)"
    )
    above: dict[int, Path] = {}
    for line in trees[0].splitlines():
        if entry := re.match(r"( *)([\w.-]+)/(?:\s|$)", line):
            depth = len(entry[1])
            above = {d: p for d, p in above.items() if d < depth}
            above[depth] = (above[max(above)] if above else ROOT) / entry[2]
            assert above[depth].is_dir(), f"CONTRIBUTING.md lists {above[depth].relative_to(ROOT)}/"
