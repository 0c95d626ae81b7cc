"""The gate: red tests, or a wrong result of ours, and there is no time."""

from __future__ import annotations

from dataclasses import replace

import pytest

from colaworld.cli.bench import suite

gate, runs, case = suite("gate"), suite("run"), suite("case")


@pytest.fixture
def repository(tmp_path, monkeypatch):
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "test_good.py").write_text("def test_it(): assert 1 + 1 == 2\n")
    (tmp_path / "tests" / "test_bad.py").write_text("def test_it(): assert 1 + 1 == 3\n")
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers = slow\n")
    monkeypatch.setattr(gate, "repository", lambda: tmp_path)
    monkeypatch.setattr(gate, "_passed", {})
    return tmp_path


def one(verify=None, tests=()):
    called = []
    return called, case.Case(
        suite="ops",
        op="toy",
        shape="any",
        sizes={"n": 1},
        dtype="float32",
        mode="fwd",
        providers={n: lambda n=n: [lambda: called.append(n)] for n in ("eager", "cpu", "package")},
        verify=verify,
        tests=tests,
    )


def test_green_and_red(repository) -> None:
    assert "1 passed" in gate.require_passing(("tests/test_good.py",))
    with pytest.raises(gate.GateError, match=r"no times(.|\n)*assert \(1 \+ 1\) == 3"):
        gate.require_passing(("tests/test_bad.py",))
    with pytest.raises(gate.GateError):  # a test that is gone is no proof
        gate.require_passing(("tests/test_gone.py",))


def test_tests_run_once(repository) -> None:
    gate.require_passing(("tests/test_good.py",))
    (repository / "tests" / "test_good.py").unlink()
    gate.require_passing(("tests/test_good.py",))


def test_nothing_is_timed_while_red(repository, monkeypatch) -> None:
    called, toy = one(tests=("tests/test_bad.py",))
    monkeypatch.setattr(runs, "listed", lambda *_, **__: ([toy], []))
    monkeypatch.setattr(runs.machine, "ceilings", lambda *_, **__: pytest.fail("timed"))
    with pytest.raises(gate.GateError):
        runs.run(["ops"], case.Request(samples=1))
    assert called == []


def test_installed_without_tests_the_comparisons_stand(monkeypatch) -> None:
    monkeypatch.setattr(gate, "repository", lambda: None)
    assert "compared with its suite's reference" in gate.require_passing(("tests/ops",))


def test_a_wrong_result_is_a_failure_of_ours_and_leaves_out_others(passing, monkeypatch) -> None:
    called, toy = one(verify=lambda name: "off by one" if name == "package" else None)
    found = runs.measure(toy, case.Request(samples=1))
    assert [r["impl"] for r in found.rows] == ["eager", "cpu"] and "package" not in called
    (skipped,) = found.skipped
    assert skipped.label.endswith("/package") and "off by one" in skipped.reason
    for name in ("cpu", "eager"):
        called, toy = one(verify=lambda impl, name=name: "off by one" if impl == name else None)
        monkeypatch.setattr(runs, "listed", lambda *_, toy=toy, **__: ([toy], []))
        with pytest.raises(
            gate.GateError, match=rf"toy/any/float32/fwd/{name}: .*off by one; so no"
        ):
            runs.run(["ops"], case.Request(samples=1))
        assert name not in called


def test_an_error_of_one_implementation_takes_no_other_s_row() -> None:
    """Wherever it happens: while it is verified, made, called first, or timed."""

    def raises(*_):
        raise ValueError("no such thing\nand more")

    calls = iter([None, None])  # called once, then measured; the third time it is timed

    def breaks_later():
        next(calls, raises)
        if not calls.__length_hint__():
            raises()

    _, toy = one(verify=lambda name: raises() if name == "package" else None)
    others = {"cuda": raises, "triton": lambda: [raises], "flex": lambda: [breaks_later]}
    toy = replace(toy, providers={**toy.providers, **others})
    found = runs.measure(toy, case.Request(samples=1))
    assert [row["impl"] for row in found.rows] == ["eager", "cpu"]
    assert [one.label.rpartition("/")[2] for one in found.failed] == ["cuda", "triton"]
    assert {one.reason for one in found.failed} == {"ValueError: no such thing"}
    assert [one.label.rpartition("/")[2] for one in found.skipped] == ["package", "flex"]


def test_what_is_not_there_is_named() -> None:
    def absent():
        raise case.Unavailable("not installed: pip install 'colaworld[bench]'")

    _, toy = one()
    toy = replace(toy, providers={**toy.providers, "package": absent})
    (skipped,) = runs.measure(toy, case.Request(samples=1)).skipped
    assert skipped.reason == "not installed: pip install 'colaworld[bench]'"
