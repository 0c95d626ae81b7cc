"""Whatever changes in an export: the same world, or an error that is ours."""

from __future__ import annotations

import json
import random

import pytest
import torch

import colaworld
from colaworld.config import to_dict
from colaworld.files import FileError, seal
from colaworld.models.backbones.weights import WeightsError
from colaworld.runs import pretrained
from colaworld.runs.build import build_trainer


@pytest.fixture
def export(tiny, tmp_path):
    assert build_trainer(tiny(), out=tmp_path / "run").run().status == "finished"
    return pretrained.export_run(tmp_path / "run", tmp_path / "out")


def content(folder):
    world = colaworld.from_pretrained(folder)
    return world.model.state_dict(), to_dict(world.sampler)


def test_sums_that_were_compared_are_not_said_to_be_left_out(export, caplog) -> None:
    colaworld.from_pretrained(export)
    assert "without comparing" not in caplog.text
    colaworld.from_pretrained(export, verify=False)
    assert caplog.text.count("without comparing sums, as asked") == 1


def test_flips_and_cuts_are_noticed(export, damaged) -> None:
    draw, told = random.Random(0), 0
    state, sampler = content(export)
    whole = {p.name: p.read_bytes() for p in export.iterdir() if p.name != "README.md"}
    begin = 8 + int.from_bytes(whole["model.safetensors"][:8], "little")
    for number in range(60):
        name = draw.choice(sorted(whole))
        header = name == "model.safetensors" and number % 2
        data = damaged(whole[name], draw, below=begin if header else None)
        (export / name).write_bytes(data)
        try:
            found, also = content(export)
            assert also == sampler and all(torch.equal(found[k], v) for k, v in state.items())
        except ValueError:
            told += 1
        (export / name).write_bytes(whole[name])
    assert told > 50


@pytest.mark.parametrize(
    "change",
    [
        {"model": None},
        {"model": []},
        {"model": {"tokenizer": None}},
        {"model": {"backbone": {"kind": "none"}}},
        {"model": {"backbone": 3}},
        {"sampler": {"steps": "many"}},
        {"recipe": 7},
        {"schedule": "joint"},
        {"schedule": []},
        {"phases": {"joint": 1}},
        {"files": None},
        {"files": {"model.safetensors": None}},
        {"files": {"model.safetensors": "0"}},
        {"files": {"model.safetensors": {"sha256": 0}}},
        {"sha256": None},
        {"config_version": [1]},
    ],
)
def test_values_that_a_stranger_wrote_are_refused(export, change) -> None:
    """Without the hash, with whatever hash, and with the right one."""
    described = json.loads((export / "config.json").read_text())
    bare = {k: v for k, v in described.items() if k != "sha256"}
    for values in (bare | change, described | change, seal(bare | change) | change):
        (export / "config.json").write_text(json.dumps(values))
        with pytest.raises(ValueError):
            colaworld.from_pretrained(export)


def test_sums_lead_to_no_file_outside(export) -> None:
    described = json.loads((export / "config.json").read_text())
    files = {f"../{export.name}/{name}": sums for name, sums in described.pop("files").items()}
    del described["sha256"]
    (export / "config.json").write_text(json.dumps(seal({**described, "files": files})))
    with pytest.raises(FileError, match="expected files of its folder"):
        colaworld.from_pretrained(export)


@pytest.mark.parametrize("content", [b"", b"\xff" * 100, (2).to_bytes(8, "little") + b"{]"])
def test_a_tensor_file_that_is_none_is_named_also_without_sums(export, content) -> None:
    described = json.loads((export / "config.json").read_text())
    bare = {k: v for k, v in described.items() if k not in ("sha256", "files")}
    (export / "config.json").write_text(json.dumps(bare))
    (export / "model.safetensors").write_bytes(content)
    with pytest.raises(WeightsError, match=r"model\.safetensors"):
        colaworld.from_pretrained(export)
