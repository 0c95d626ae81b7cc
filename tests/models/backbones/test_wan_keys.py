"""The names of Wan's weights: original to ours and back, every one of them."""

from __future__ import annotations

from dataclasses import replace
from fnmatch import fnmatchcase

import pytest
import torch

from colaworld.models.backbones.wan import Wan, WanConfig
from colaworld.models.backbones.wan.keys import (
    FLOAT32_KEYS,
    TEXT_KEYS,
    from_original,
    to_original,
)


def original_names(layers: int) -> set[str]:
    """The names in the original files, written out."""
    outside = ("patch_embedding", "time_embedding.0", "time_embedding.2", "time_projection.1")
    outside += ("text_embedding.0", "text_embedding.2", "head.head")
    names = {f"{m}.{p}" for m in outside for p in ("weight", "bias")} | {"head.modulation"}
    for i in range(layers):
        block = f"blocks.{i}"
        linears = [f"{a}.{p}" for a in ("self_attn", "cross_attn") for p in "qkvo"]
        for module in (*linears, "ffn.0", "ffn.2", "norm3"):
            names |= {f"{block}.{module}.weight", f"{block}.{module}.bias"}
        for attention in ("self_attn", "cross_attn"):
            names |= {f"{block}.{attention}.norm_{x}.weight" for x in "qk"}
        names.add(f"{block}.modulation")
    return names


@pytest.fixture(scope="module")
def ours() -> set[str]:
    with torch.device("meta"):
        return set(Wan(replace(WanConfig.wan_1_3b(), text="full")).state_dict())


def test_every_name_has_its_counterpart(ours):
    theirs = original_names(30)
    assert {from_original(name) for name in theirs} == ours
    assert {to_original(name) for name in ours} == theirs
    assert all(to_original(from_original(name)) == name for name in theirs)


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ("blocks.7.norm3.weight", "blocks.7.norm2.weight"),
        ("blocks.12.modulation", "blocks.12.scale_shift_table"),
        ("head.modulation", "scale_shift_table"),
        ("head.head.bias", "proj_out.bias"),
        ("blocks.0.self_attn.o.bias", "blocks.0.attn1.to_out.0.bias"),
        ("blocks.0.cross_attn.norm_k.weight", "blocks.0.attn2.norm_k.weight"),
        ("blocks.0.ffn.0.weight", "blocks.0.ffn.net.0.proj.weight"),
        ("time_projection.1.weight", "condition_embedder.time_proj.weight"),
    ],
)
def test_names_one_by_one(theirs, ours):
    assert from_original(theirs) == ours and to_original(ours) == theirs


def test_unknown_names_stay_for_the_loader_to_report():
    for name in ("img_emb.proj.0.weight", "blocks.0.cross_attn.k_img.weight", "blocks.0", "blocks"):
        assert from_original(name) == name == to_original(name)


def test_text_keys_are_what_a_model_without_text_leaves(ours):
    with torch.device("meta"):
        without = set(Wan(WanConfig.wan_1_3b()).state_dict())
    dropped = {k for k in ours if any(fnmatchcase(k, pattern) for pattern in TEXT_KEYS)}
    assert ours - dropped == without and len(dropped) == 364


def test_what_stays_in_float32(ours):
    kept = {k for k in ours if any(fnmatchcase(k, pattern) for pattern in FLOAT32_KEYS)}
    assert len(kept) == 4 + 31 + 60
    assert "scale_shift_table" in kept and "blocks.29.norm2.bias" in kept
    assert not any("time_proj" in k or "attn" in k for k in kept)
