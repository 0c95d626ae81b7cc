"""Names of Wan's weights: the original ones and those used here (and by diffusers), both ways.

Plain functions over one table, for a loader. Not here: reading files (`weights.py`). Only names
differ: no tensor is reshaped, cut or transposed. Beware of one trap: the affine norm in front of
cross-attention is `norm3` in the original and `norm2` here.
"""

from __future__ import annotations

# original -> ours, outside of the blocks; each name is a whole module or parameter
_OUTSIDE = {
    "patch_embedding": "patch_embedding",
    "time_embedding.0": "condition_embedder.time_embedder.linear_1",
    "time_embedding.2": "condition_embedder.time_embedder.linear_2",
    "time_projection.1": "condition_embedder.time_proj",
    "text_embedding.0": "condition_embedder.text_embedder.linear_1",
    "text_embedding.2": "condition_embedder.text_embedder.linear_2",
    "head.head": "proj_out",
    "head.modulation": "scale_shift_table",
}
# original -> ours, behind "blocks.<i>."
_INSIDE = {
    "modulation": "scale_shift_table",
    "norm3": "norm2",
    "ffn.0": "ffn.net.0.proj",
    "ffn.2": "ffn.net.2",
} | {
    f"{theirs}.{part}": f"{ours}.{name}"
    for theirs, ours in (("self_attn", "attn1"), ("cross_attn", "attn2"))
    for part, name in (
        ("q", "to_q"),
        ("k", "to_k"),
        ("v", "to_v"),
        ("o", "to_out.0"),
        ("norm_q", "norm_q"),
        ("norm_k", "norm_k"),
    )
}

# Names (ours, fnmatch patterns) that a model without text leaves in the file.
TEXT_KEYS = ("condition_embedder.text_embedder.*", "blocks.*.attn2.*", "blocks.*.norm2.*")
# Names (ours) that stay float32 when the rest is loaded in half precision, as published: the time
# embedding reads numbers up to 1000, and modulation is added up in float32.
FLOAT32_KEYS = ("condition_embedder.time_embedder.*", "*scale_shift_table", "blocks.*.norm2.*")


def _renamed(key: str, outside: dict[str, str], inside: dict[str, str]) -> str:
    """The known name in front is replaced; a key that has none comes back as it is."""
    front, rest, table = "", key, outside
    if key.startswith("blocks.") and key.count(".") > 1:
        _, number, rest = key.split(".", 2)
        front, table = f"blocks.{number}.", inside
    for end in (rest, rest.rpartition(".")[0]):  # a parameter by itself, or one of a module
        if end in table:
            return front + table[end] + rest[len(end) :]
    return key


def from_original(key: str) -> str:
    """The name here of an original Wan 2.1 name; an unknown one unchanged, for the loader to name.

    >>> from_original("blocks.3.self_attn.o.weight")
    'blocks.3.attn1.to_out.0.weight'
    """
    return _renamed(key, _OUTSIDE, _INSIDE)


def to_original(key: str) -> str:
    """The inverse of `from_original`.

    >>> to_original("blocks.3.norm2.bias")
    'blocks.3.norm3.bias'
    """
    outside, inside = ({ours: theirs for theirs, ours in t.items()} for t in (_OUTSIDE, _INSIDE))
    return _renamed(key, outside, inside)
