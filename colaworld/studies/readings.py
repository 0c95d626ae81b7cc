"""What a row of a study keeps of an evaluation.json that was read. Not here: the row (rows.py)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from colaworld.files import FileError


def number_at(found: Mapping[str, Any], key: str) -> dict[str, float | None] | None:
    """{mean, low, high} of what stands under a key of an evaluation; None where there is no such number.

    Raises FileError where the key leads to something else.
    """
    value: Any = found
    for name in key.split("."):
        if not isinstance(value, Mapping):
            return None  # as `codebook` of continuous latents, or `probe` of data without actions
        value = value.get(name)
    if value is None:
        return None
    if isinstance(value, Mapping) and "mean" in value:
        return {name: value.get(name) for name in ("mean", "low", "high")}
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return {"mean": float(value), "low": None, "high": None}
    raise FileError(
        f"evaluation.json: {key}: expected a number or {{mean, low, high}}, got {value!r:.60}"
    )


def ahead_in(found: Mapping[str, Any]) -> dict[str, list[list[float]]]:
    """PSNR (dB) and SSIM of each predicted frame under inferred actions, and of the last given frame held on."""
    ways = found["rollout"]["variants"]
    lines = {
        f"{prefix}{name}_ahead": ways[way].get(f"{name}_by_horizon") or []
        for prefix, way in (("", "inferred"), ("copy_", "copy"))
        for name in ("psnr", "ssim")
    }
    return {
        name: [[i, round(value, 4)] for i, value in enumerate(line, start=1) if value is not None]
        for name, line in lines.items()
    }


def beside_in(found: Mapping[str, Any]) -> dict[str, float | None]:
    """What numbers are held against: of the probe, chance and pixel differences."""
    probe = found.get("probe") or {}
    return {f"probe.{name}": probe.get(name) for name in ("chance", "pixel_difference")}


def clips_in(found: Mapping[str, Any]) -> dict[str, Any]:
    """Which clips were rolled out and each one's numbers, with five digits; empty where not told."""
    clips = found.get("clips")
    if clips is None:
        return {}
    values = {
        name: [None if v is None else float(f"{v:.5g}") for v in of]
        for name, of in clips["values"].items()
    }
    return {"rolled": clips["rolled"], "episode": clips["episode"], "values": values}
