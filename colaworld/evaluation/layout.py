"""evaluation.json, read back: a file that is not what `evaluate` writes is refused by file and key.

What tables, comparisons and pages read is checked, no more: measures may add keys, and an earlier
version lacks some. Not here: what the keys mean (README.md of this room).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from colaworld.files import FileError, read_json

# 2 added `clips`, `data`, and SSIM and bounds by horizon of every variant; 3 `delta_psnr.none`, `transfer`,
# `leakage`, `sensitivity`, `segments`, `mlp_probe`, `information`, `probe.parts`, `lpips`, `frechet` and
# `paper_row`; since 4 each clip has noise of its own, whatever `batch_size`, and `leakage` and `sensitivity`
# count the clips asked for, not whole batches; `rollout.psnr_first` and `psnr_last` have the bounds of their
# steps, and `rollout.not_finite` counts rollouts that are no pictures, whose means are null
FORMAT_VERSION = 4
OWN_NOISE = 4  # from this version on


class Maybe:
    """Null, or what `inside` says; `absent`: the key may be missing, too."""

    def __init__(self, inside: Any, *, absent: bool = False) -> None:
        self.inside, self.absent = inside, absent


class Each:
    """An object with any keys, each of which holds what `inside` says."""

    def __init__(self, inside: Any) -> None:
        self.inside = inside


# dict: an object with at least these keys; [x]: a list of x; a type: a value of it (float: a number).
_NUMBER = Maybe(float)
_INTERVAL = dict.fromkeys(("mean", "low", "high"), _NUMBER)
_SHARES = dict.fromkeys(("utilisation", "max_usage", "entropy_normalised", "perplexity"), float)
_TOLD = {
    "name": str,
    **dict.fromkeys(("share", "shuffled"), _INTERVAL),
    **dict.fromkeys(("bits", "action_bits"), _NUMBER),
}
_STEPS: dict[str, Any] = {"psnr_by_horizon": [_NUMBER]}  # null: of rollouts that are not finite
_LAYOUT: dict[str, Any] = {
    "counts": dict.fromkeys(("clips", "episodes", "history", "horizon", "height", "width"), int),
    "world": {"codebook_size": Maybe(int), "tokens": int},
    "delta_psnr": {
        **dict.fromkeys(("random", "shuffled", "constant"), _INTERVAL),
        "none": Maybe(_INTERVAL, absent=True),
    },
    "codebook": Maybe({**_SHARES, "joint": _SHARES}),
    "probe": Maybe(
        {
            "kind": str,
            **dict.fromkeys(("chance", "pixel_difference"), _NUMBER),
            **dict.fromkeys(("score", "margin"), _INTERVAL),
            **dict.fromkeys(("train_rows", "test_rows", "test_episodes"), int),
            **dict.fromkeys(("macro_f1", "l1"), Maybe(_INTERVAL)),
            "parts": Maybe([{"name": str}], absent=True),
        },
        absent=True,
    ),
    "rollout": {
        **_STEPS,
        "ssim_by_horizon": [_NUMBER],
        "psnr": _INTERVAL,
        "not_finite": Maybe(Each(int), absent=True),
        "error_against_copy": _NUMBER,
        "copy_ssim_by_horizon": [float],
        "by_motion": Maybe(
            {part: {"frames_by_horizon": [int]} for part in ("still", "moved")}, absent=True
        ),
        "variants": dict.fromkeys(("inferred", "random", "shuffled", "constant", "copy"), _STEPS),
    },
    "transfer": Maybe(
        {
            "by": str,
            **dict.fromkeys(("donor", "own", "margin", "reference"), _INTERVAL),
            "chance": _NUMBER,
            "episodes": int,
            "probe": Maybe(
                {
                    "kind": str,
                    **dict.fromkeys(("generated", "real", "own"), _INTERVAL),
                    "chance": _NUMBER,
                    "episodes": int,
                }
            ),
        },
        absent=True,
    ),
    "leakage": Maybe(
        {
            **dict.fromkeys(("gain", "gain_over_own"), _INTERVAL),
            "psnr": {"cut": _NUMBER},
            "margin": float,
            "episodes": int,
        },
        absent=True,
    ),
    "sensitivity": Maybe(
        {**dict.fromkeys(("codes", "noise", "ratio"), _INTERVAL), "episodes": int}, absent=True
    ),
    "segments": Maybe(
        {
            "by": str,
            "parts": [
                {
                    "steps": [int],
                    **dict.fromkeys(("psnr", "agreement", "colour", "contrast"), _INTERVAL),
                }
            ],
        },
        absent=True,
    ),
    "mlp_probe": Maybe(
        {
            "kind": str,
            **dict.fromkeys(("chance", "pixel_difference"), _NUMBER),
            "score": _INTERVAL,
            "test_episodes": int,
            "parts": [{"name": str}],
        },
        absent=True,
    ),
    "information": Maybe({"share": _NUMBER, "episodes": int, "parts": [_TOLD]}, absent=True),
    "real_actions": Maybe({"psnr": _INTERVAL, "over": Each(_INTERVAL)}, absent=True),
    "nmse": Maybe({**_INTERVAL, "by_horizon": [_NUMBER]}, absent=True),
    "lpips": Maybe(
        {
            "name": str,
            "published": bool,
            **_INTERVAL,
            "over_copy": _INTERVAL,
            "variants": {v: {"lpips_by_horizon": [_NUMBER]} for v in ("inferred", "copy")},
        },
        absent=True,
    ),
    "lpips_skipped": Maybe(str, absent=True),
    "frechet": Maybe(
        {"name": str, "value": float, "by_horizon": Each(float), "clips": int, "features": int},
        absent=True,
    ),
    "frechet_skipped": Maybe(str, absent=True),
    "text": Maybe(
        {"loss_null_caption": float, "loss_removed": float, "change": _NUMBER}, absent=True
    ),
    "clips": Maybe(
        {"rolled": str, "probed": str, "episode": [int], "values": Each([_NUMBER])}, absent=True
    ),
    "data": Maybe({"name": str}, absent=True),
}

# Of evaluations.jsonl (runs/watch.py), what watching and curves read.
_ROW: dict[str, Any] = {
    "global_step": int,
    "checkpoint": str,
    "delta_psnr": _INTERVAL,
    "probe": Maybe(_INTERVAL),
    "entropy_normalised": _NUMBER,
    "settings": {},
}


def check_row(row: Any, *, source: str) -> None:
    """Raises FileError where `row` is not one of evaluations.jsonl; `source` is its file and line."""
    try:
        _check(row, _ROW, source, "")
    except FileError as error:  # to evaluate again would read it again
        raise FileError(f"{str(error).rpartition(';')[0]}; delete it") from None


def read_evaluation(path: str | Path) -> dict[str, Any]:
    """An evaluation.json. Raises FileError, which names the file and the first key that is wrong."""
    found = read_json(path, made_by="`colaworld evaluate`")
    check(found, source=str(path))
    return found


def check(result: Any, *, source: str) -> None:
    """Raises FileError where `result` is not an evaluation; `source` is its file."""
    version = result.get("format_version", 1) if isinstance(result, Mapping) else 1
    if version not in range(1, FORMAT_VERSION + 1):
        raise FileError(
            f"{source}: format_version: expected 1 .. {FORMAT_VERSION}, which this release reads, got "
            f"{version!r}"
        )
    _check(result, _LAYOUT, source, "")
    clips = result.get("clips") or {"episode": [], "values": {}}
    for name, values in clips["values"].items():
        if len(values) != len(clips["episode"]):
            raise FileError(
                f"{source}: clips.values.{name}: expected {len(clips['episode'])} numbers, as many as "
                f"clips.episode has, got {len(values)}; run `colaworld evaluate` again"
            )


def _check(value: Any, expected: Any, source: str, key: str) -> None:
    if isinstance(expected, Maybe):
        if value is None:
            return
        expected = expected.inside
    if isinstance(expected, Each):
        expected = dict.fromkeys(value if isinstance(value, dict) else (), expected.inside)
    kind = type(expected) if isinstance(expected, (dict, list)) else expected
    wanted: Any = (int, float) if kind is float else kind
    if not isinstance(value, wanted) or (isinstance(value, bool) and kind is not bool):
        name = {
            bool: "true or false",
            dict: "an object",
            list: "a list",
            float: "a number",
            int: "an integer",
            str: "text",
        }
        shown = "null" if value is None else repr(value)[:40]
        raise FileError(
            f"{source}: {key or 'the whole'}: expected {name[kind]}, got {shown}; run `colaworld "
            "evaluate` again"
        )
    if isinstance(expected, dict):
        for name, inside in expected.items():
            if name not in value:
                if isinstance(inside, Maybe) and inside.absent:
                    continue
                raise FileError(
                    f"{source}: {f'{key}.{name}'.lstrip('.')}: missing; run `colaworld evaluate` again"
                )
            _check(value[name], inside, source, f"{key}.{name}".lstrip("."))
    elif isinstance(expected, list):
        for i, entry in enumerate(value):
            _check(entry, expected[0], source, f"{key}[{i}]")
