"""`colaworld atlas`: one page from a run or another set; wrong calls."""

from __future__ import annotations


def test_a_run_on_its_own_held_out_episodes(trained, colaworld, tmp_path) -> None:
    out = tmp_path / "pages" / "atlas.html"
    said = colaworld("atlas", trained, "--out", out, "--clips", 8, "--steps", 2)
    assert said.status == 0 and f"{out}: " in said.out and "24 transitions" in said.out
    page = out.read_text()
    assert "The actions of" in page and "heldout episodes" in page and "replay under" in page
    assert "real action" in page and f"colaworld atlas {trained}" in page


def test_another_set_shows_all_its_episodes(trained, colaworld, tmp_path) -> None:
    other, out = tmp_path / "other", tmp_path / "atlas.html"
    assert colaworld("record", "scene", "--out", other, "--episodes", 3, "--steps", 5).status == 0
    said = colaworld("atlas", trained, "--data", other, "--out", out, "--steps", 0)
    assert said.status == 0 and "of 3 episodes" in said.out
    assert "replay under" not in out.read_text()


def test_wrong_calls(trained, colaworld, tmp_path) -> None:
    for arguments, told in (
        ((tmp_path / "absent", "--data", tmp_path), "--out: expected the page to write"),
        ((trained, "--data", tmp_path / "absent"), "absent: no such folder or file"),
        ((trained, "--clips", 0), "clips"),
    ):
        said = colaworld("atlas", *arguments)
        assert said.status == 2 and told in said.plain
