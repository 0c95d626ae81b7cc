"""What a pre-trained video model loses without its cross-attention, as a line of the table.

It is measured on the video model, not on the world's rollouts (`evaluation/text_effect.py`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from colaworld.evaluation.measures.measure import Headline, Measure


class TextEffect(Measure):
    """`text` of evaluation.json, where it was asked for."""

    @staticmethod
    def headline(result: Mapping[str, Any]) -> Headline | None:
        text = result.get("text")
        if text is None:
            return None
        null, removed = text["loss_null_caption"], text["loss_removed"]
        share = f"{100 * (removed / null - 1):+.1f} %" if null else "-"
        return Headline(
            "flow loss without cross-attention",
            removed,
            note=f"null caption {null:.4f} ({share}), velocity changed by "
            f"{100 * text['change']:.1f} %",
            better="lower",
            digits=4,
        )
