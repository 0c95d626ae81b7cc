"""The Python of the README runs as it stands there, on a tiny trained run."""

from __future__ import annotations

import re
from pathlib import Path

import torch

README = Path(__file__).resolve().parents[2] / "README.md"


def test_the_method_in_python(trained, tmp_path, monkeypatch) -> None:
    (block,) = re.findall(r"^```python\n(.*?)^```", README.read_text(), flags=re.S | re.M)
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "demo").symlink_to(trained, target_is_directory=True)
    monkeypatch.chdir(tmp_path)
    made: dict = {}
    exec(compile(block, str(README), "exec"), made)
    assert torch.isfinite(made["loss"])
    assert any(p.grad.abs().sum() > 0 for p in made["model"].idm.parameters())
    assert made["video"].shape == made["frames"].shape
    assert torch.equal(made["video"][:, :1], made["frames"][:, :1])
