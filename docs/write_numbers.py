"""Numbers in prose, from the files they were measured into.

    python docs/write_numbers.py              write every number in the documents anew
    python docs/write_numbers.py --check      write nothing; exit status 1 where one differs
    python docs/write_numbers.py --record RUN OUT    the figures of an evaluated run, as a small file

A number in a document stands between marks that name its source:

    <!-- n:demo#probe.score.mean -->0.77<!-- /n -->
    <!-- n:training_cpu#step/nano.cola.joint/fwd_bwd/eager -->280<!-- /n -->
    <!-- n:ops_cpu#adaln/nano.block/fwd/eager over .../cpu -->1.5<!-- /n -->

The tables of a study stand between marks that name its rows and one of its data sets, those of
`colaworld plan-table --json` between marks that name the file:

    <!-- table:study_joint_or_two_stage#crafter -->
    ...
    <!-- /table -->
    <!-- table:plans_pusht -->
    ...
    <!-- /table -->

The source is a JSON file of docs/results or benchmarks/results. The key of a file that holds one
object is a path of names; of a file of benchmark rows it is op/shape/mode/impl, which means the
median in ms. `A over B` is a quotient, where `...` stands for what A begins with. The digits behind
the point are those that stand there already.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from functools import cache
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
SOURCES = ("docs/results", "benchmarks/results")
TABLES = re.compile(
    r"<!-- table:(?P<file>\w+)(?:#(?P<data>[\w.+-]+))? -->\n.*?<!-- /table -->", re.DOTALL
)
MARK = re.compile(r"<!-- n:(?P<file>\w+)#(?P<key>.+?) -->(?P<shown>.*?)<!-- /n -->")


def documents() -> list[Path]:
    """Every Markdown file that may hold numbers."""
    folders = (ROOT / name for name in ("docs", "colaworld", "benchmarks", "csrc", "kernels"))
    return [*sorted(ROOT.glob("*.md")), *(p for f in folders for p in sorted(f.rglob("*.md")))]


@cache
def _content(name: str) -> Any:
    (path,) = (p for f in SOURCES if (p := ROOT / f / f"{name}.json").is_file())
    return json.loads(path.read_text())


def _one(content: Any, key: str) -> float:
    if isinstance(content, list):
        op, shape, mode, impl = key.split("/")
        wanted = {"op": op, "shape": shape, "mode": mode, "impl": impl}
        (row,) = (r for r in content if all(r[k] == v for k, v in wanted.items()))
        return float(row["p50_ms"])
    for name in key.split("."):
        content = content[int(name) if isinstance(content, list) else name]
    return float(content)


def value(file: str, key: str) -> float:
    """The number that a mark names. Raises ValueError where the file does not hold exactly one."""
    first, _, second = key.partition(" over ")
    second = second.replace("...", first.rpartition("/")[0])
    try:
        content = _content(file)
        return _one(content, first) / (_one(content, second) if second else 1)
    except (LookupError, TypeError, ValueError) as error:
        raise ValueError(f"{file}#{key}: no such number ({error!r})") from None


def written(text: str) -> str:
    """The text with each number as its file has it."""

    def put(mark: re.Match[str]) -> str:
        digits = len(mark["shown"].partition(".")[2])
        shown = f"{value(mark['file'], mark['key']):.{digits}f}"
        return f"<!-- n:{mark['file']}#{mark['key']} -->{shown}<!-- /n -->"

    def put_tables(mark: re.Match[str]) -> str:
        name = mark["file"] + (f"#{mark['data']}" if mark["data"] else "")
        return f"<!-- table:{name} -->\n{tables(mark['file'], mark['data'])}\n<!-- /table -->"

    return TABLES.sub(put_tables, MARK.sub(put, text))


@cache
def tables(file: str, data: str | None) -> str:
    """The tables of one data set of a study's rows, or the table of plans, as Markdown. Raises ValueError where there
    are none."""
    if data is None:
        from colaworld.cli.plan_table import markdown as of_plans

        return of_plans(_content(file))
    from colaworld.studies.rows import read_rows
    from colaworld.studies.tables import markdown

    (path,) = (p for f in SOURCES if (p := ROOT / f / f"{file}.json").is_file())
    rows = [row for row in read_rows(path) if row["data"] == data]
    if not rows:
        raise ValueError(f"{path.name}: no row of data set {data!r}")
    heading, _, below = markdown(rows).strip().partition("\n\n")
    assert heading == f"### {data}"
    return below


def record(run: Path, out: Path) -> None:
    """The figures of an evaluated run, with what it takes to measure them again.

    Commit, versions and threads are those of this process: record where and when the run ended.
    """
    from colaworld.runs.config import read_config
    from colaworld.runs.provenance import environment

    found = json.loads((run / "evaluation.json").read_text())
    kept = {
        name: found[name]
        for name in ("delta_psnr", "codebook", "probe", "rollout", "nmse", "counts")
    }
    later = ("transfer", "leakage", "sensitivity", "segments", "mlp_probe", "information")
    kept |= {name: found[name] for name in later if name in found}
    config = read_config(run)
    made = {"recipe": config.recipe, "seed": config.training.seed, **environment(run)}
    out.write_text(json.dumps(made | kept, indent=1) + "\n")


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--check", action="store_true", help="write nothing")
    parser.add_argument("--record", nargs=2, type=Path, metavar=("RUN", "OUT"))
    options = parser.parse_args(argv)
    if options.record:
        record(*options.record)
        return 0
    stale = 0
    for path in documents():
        before = path.read_text()
        after = written(before)
        if after != before:
            stale += 1
            print(f"{path.relative_to(ROOT)}: {'differs' if options.check else 'written'}")
            if not options.check:
                path.write_text(after)
    return int(options.check and stale > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
