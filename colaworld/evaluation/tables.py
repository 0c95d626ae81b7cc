"""Evaluations as text: one run as a short list, several runs side by side.

Plain text of fixed width, so that it reads the same in a terminal, a log and a commit message.
Also the five headline numbers, in one place for the table and the page. Not here: the page.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Headline:
    """One number a run is judged by."""

    name: str
    value: float | None
    low: float | None = None
    high: float | None = None
    unit: str = ""
    note: str = ""  # what to compare it with, in a few words

    def text(self, *, interval: bool = True) -> str:
        if self.value is None:
            return "-"
        shown = number(self.value, self.unit)
        if interval and self.low is not None and self.high is not None:
            shown += f" [{number(self.low)}, {number(self.high)}]"
        return shown


def number(value: float | None, unit: str = "") -> str:
    """Two decimals, with a true minus sign left to the page; "-" for a missing value."""
    if value is None:
        return "-"
    return f"{value:.2f}{' ' + unit if unit else ''}"


def headlines(result: Mapping[str, Any]) -> list[Headline]:
    """The five numbers: steering, code entropy, probe, picture quality, code utilisation."""
    delta = result["delta_psnr"]["random"]
    rows = [
        Headline(
            "delta-PSNR over random codes",
            delta["mean"],
            delta["low"],
            delta["high"],
            "dB",
            f"shuffled {number(result['delta_psnr']['shuffled']['mean'])}, "
            f"constant {number(result['delta_psnr']['constant']['mean'])}",
        )
    ]
    health = result.get("codebook")
    if health is None:
        rows.append(Headline("normalised code entropy", None, note="continuous latents"))
    else:
        rows.append(
            Headline(
                "normalised code entropy",
                health["entropy_normalised"],
                note=f"perplexity {number(health['perplexity'])} of "
                f"{result['world']['codebook_size']}, joint "
                f"{number(health['joint']['entropy_normalised'])}",
            )
        )
    probe = result.get("probe")
    if probe is None:
        rows.append(Headline("linear probe", None, note=result.get("probe_skipped") or ""))
    else:
        score = probe["score"]
        rows.append(
            Headline(
                "linear probe, " + ("R²" if probe["kind"] == "r2" else "accuracy"),
                score["mean"],
                score["low"],
                score["high"],
                note=f"chance {number(probe['chance'])}, "
                f"pixel difference {number(probe['pixel_difference'])}",
            )
        )
    rollout = result["rollout"]
    first, last = rollout["psnr_by_horizon"][0], rollout["psnr_by_horizon"][-1]
    mean = rollout["psnr"]
    rows.append(
        Headline(
            "PSNR of rollouts",
            mean["mean"],
            mean["low"],
            mean["high"],
            "dB",
            f"{number(first)} at step 1, {number(last)} at step {len(rollout['psnr_by_horizon'])}",
        )
    )
    if health is None:
        rows.append(Headline("codebook utilisation", None, note="continuous latents"))
    else:
        rows.append(
            Headline(
                "codebook utilisation",
                health["utilisation"],
                note=f"most used code {number(health['max_usage'])}",
            )
        )
    return rows


def _columns(rows: list[list[str]]) -> str:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["  ".join(c.ljust(w) for c, w in zip(r, widths, strict=True)).rstrip() for r in rows]
    lines.insert(1, "  ".join("-" * w for w in widths))
    return "\n".join(lines)


def table(result: Mapping[str, Any]) -> str:
    """One run: the five numbers with 95 % intervals and what to compare them with."""
    rows = [["", "held-out", "compare with"]]
    rows += [[h.name, h.text(), h.note] for h in headlines(result)]
    text = result.get("text")
    if text is not None:
        null, removed = text["loss_null_caption"], text["loss_removed"]
        share = f"{100 * (removed / null - 1):+.1f} %" if null else "-"
        note = (
            f"null caption {null:.4f} ({share}), velocity changed by {100 * text['change']:.1f} %"
        )
        rows.append(["flow loss without cross-attention", f"{removed:.4f}", note])
    counts = result["counts"]
    return (
        _columns(rows)
        + f"\n{counts['clips']} clips of {counts['episodes']} episodes, {counts['horizon']} steps; "
        "95 % intervals over episodes"
    )


def comparison_rows(results: Mapping[str, Mapping[str, Any]]) -> list[list[str]]:
    """A header and one row per run; for the text table and for the page."""
    if not results:
        raise ValueError("compare: expected at least one run")
    rows: list[list[str]] = []
    for name, result in results.items():
        found = headlines(result)
        if not rows:
            rows.append(["run", *(h.name.split(",")[0] for h in found)])
        rows.append([name, *(h.text() for h in found)])
    return rows


def compare(results: Mapping[str, Mapping[str, Any]]) -> str:
    """Several runs side by side, one line each."""
    return _columns(comparison_rows(results))
