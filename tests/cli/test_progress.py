"""The lines of a bar where there is no terminal."""

from __future__ import annotations

from colaworld.cli import progress


def test_time_left_is_of_the_part_under_way(capsys, monkeypatch) -> None:
    clock = iter((0.0, 100.0, 110.0, 130.0))
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    with progress.bar("plan", stages=True) as say:
        say(256, 256, "codes")
        say(1, 6, "world")  # another total: 10 s for this one
        say(3, 6, "world")  # 30 s for three
    assert capsys.readouterr().out.splitlines() == [
        "plan: codes, 256 of 256, 0 s left",
        "plan: world, 1 of 6, 50 s left",
        "plan: world, 3 of 6, 30 s left",
    ]


def test_parts_of_one_total_count_on(capsys, monkeypatch) -> None:
    clock = iter((0.0, 100.0, 110.0))
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    with progress.bar("evaluate", stages=True) as say:
        say(5, 10, "rollouts")
        say(6, 10, "probe")  # the sixth took 10 s
    assert capsys.readouterr().out.splitlines()[-1] == "evaluate: probe, 6 of 10, 40 s left"
