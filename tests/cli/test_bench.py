"""`colaworld bench`: tables, files and clean errors before anything is timed."""

from __future__ import annotations

import json
import sys

import pytest

from colaworld.cli import bench
from colaworld.cli.bench import suite


@pytest.fixture
def passing(monkeypatch):
    monkeypatch.setattr(suite("gate"), "_passed", {})
    monkeypatch.setattr(suite("gate"), "_run", lambda root, tests: "passed")


@pytest.fixture
def untimed(monkeypatch):
    """Fails when anything is timed."""
    monkeypatch.setattr(suite("run"), "run", lambda *_, **__: pytest.fail("timed"))


def test_times_writes_compares_and_plots(passing, tmp_path, capsys) -> None:
    file, pictures = tmp_path / "rows.json", tmp_path / "plots"
    arguments = ["ops", "--only", "nano.codes", "--impl", "eager", "cdist", "--samples", "1"]
    arguments += ["--threads", "1"]
    assert bench.run([*arguments, "--json", str(file)]) == 0
    said = capsys.readouterr().out
    assert "gate: passed" in said and "vector_quantize" in said and "ceiling: copy float32" in said
    rows = json.loads(file.read_text())
    assert {(r["op"], r["impl"]) for r in rows} == {
        ("copy", "torch"),
        ("matmul", "torch"),
        ("code_statistics", "eager"),
        ("codebook_step", "eager"),
        ("vector_quantize", "eager"),
        ("vector_quantize", "cdist"),
    }
    assert bench.run(["--rows", str(file), "--compare", str(file)]) == 0
    said = capsys.readouterr().out
    assert f"{len(rows)} rows compared, 0 new, 0 not measured now" in said
    assert said.count("within noise") == len(rows)
    pytest.importorskip("matplotlib", reason="pictures need the extra bench")
    assert bench.run(["--rows", str(file), "--plot", str(pictures)]) == 0
    assert (pictures / "roofline-float32.png").is_file()


def test_pictures_without_their_package_are_an_error_before_anything_is_timed(
    colaworld, untimed, monkeypatch, tmp_path
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    said = colaworld("bench", "--plot", tmp_path)
    assert said.status == 2 and "pip install 'colaworld[bench]'" in said.err


def test_red_tests_end_with_1_and_no_time(monkeypatch, capsys, tmp_path) -> None:
    gate = suite("gate")

    def red(root, tests):
        raise gate.GateError("the tests are red, so no times")

    monkeypatch.setattr(gate, "_passed", {})
    monkeypatch.setattr(gate, "_run", red)
    file = tmp_path / "rows.json"
    assert bench.run(["ops", "--only", "nano.codes", "--json", str(file)]) == 1
    said = capsys.readouterr()
    assert "red, so no times" in said.err and " ms" not in said.out and not file.exists()


def test_wrong_calls_cost_nothing(colaworld, untimed, tmp_path) -> None:
    foreign, blocked = tmp_path / "foreign.json", tmp_path / "file"
    foreign.write_text('[{"op": "adaln"}]')
    blocked.write_text("")
    for arguments, message in [
        (["oops"], "SUITES: expected one of 'ops', "),
        (["ops", "--compare", tmp_path / "none.json"], "no such file"),
        (["ops", "--compare", foreign], "row 1 has no impl"),
        (["ops", "--json", blocked / "rows.json"], "cannot be written"),
        (["ops", "--json", "--only", "nano"], "--json: name a file"),
        (["ops", "--samples", "0"], "--samples: expected >= 1, got 0"),
        (["ops", "--device", "tpu"], "--device: expected cpu"),
    ]:
        said = colaworld("bench", *arguments)
        assert said.status == 2, arguments
        assert message in said.plain, (arguments, said.plain)


def test_a_folder_of_pictures_that_cannot_be_made(colaworld, untimed, tmp_path) -> None:
    pytest.importorskip("matplotlib", reason="pictures need the extra bench")
    (tmp_path / "file").write_text("")
    said = colaworld("bench", "ops", "--plot", tmp_path / "file" / "plots")
    assert said.status == 2 and "cannot be written" in said.plain


def test_unknown_names_are_told(colaworld, passing) -> None:
    assert "did you mean 'nano.cola'" in colaworld("bench", "--recipe", "nano.cole").err
    said = colaworld("bench", "ops", "--only", "nano.cods")
    assert said.status == 2 and "vector_quantize/nano.codes/float32/fwd" in said.err


def test_a_bare_json_is_spelled_out() -> None:
    assert bench.named_json(["--json"]) == ["--json", "auto"]
    assert bench.named_json(["--json", "--plot", "x"]) == ["--json", "auto", "--plot", "x"]
    assert bench.named_json(["--json", "models"]) == ["--json", "auto", "models"]
    assert bench.named_json(["--json", "x.json"]) == ["--json", "x.json"]
    options = bench.BenchOptions(suites=("ops", "data"), json=bench.AUTO)
    names = {k: v.relative_to(suite("gate").repository()) for k, v in bench._files(options).items()}
    assert {k: str(v) for k, v in names.items()} == {
        "ops": "benchmarks/results/ops_cpu.json",
        "data": "benchmarks/results/data_cpu.json",
    }


def test_help_names_the_suites(colaworld) -> None:
    said = colaworld("bench", "--help")
    assert said.status == 0
    for name in (*suite("case").SUITES, "--compare", "--json", "--plot", "--only"):
        assert name in said.plain
