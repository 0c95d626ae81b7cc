"""What GPUs can do at most, to say which share of it a run reaches.

Dense bf16 products with float32 sums, memory as sold, and the links to the next card, one way. All from
NVIDIA's data sheets (H100, H200, A100, L40S) and the Ada architecture's paper (RTX 4090, appendix A).
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Card:
    """One kind of GPU."""

    name: str
    """What the command line calls it."""
    shown: str
    """What torch calls it begins with this, after "NVIDIA"."""
    tflops: float
    """10^12 operations/s of dense bf16 products."""
    memory: float
    """GB."""
    link: float
    """GB/s to another card of the machine, one way."""


CARDS = (
    Card("h200", "H200", 989.4, 141, 450),
    Card("h100-pcie", "H100 PCIe", 756, 80, 64),
    Card("h100", "H100", 989.4, 80, 450),
    Card("a100-40", "A100-SXM4-40GB", 312, 40, 300),
    Card("a100", "A100", 312, 80, 300),
    Card("l40s", "L40S", 362, 48, 32),
    Card("rtx4090", "GeForce RTX 4090", 165.2, 24, 32),
)


def card_of(device_name: str) -> Card | None:
    """The card that torch calls `device_name`; None where it is not in the table."""
    shown = device_name.removeprefix("NVIDIA ").strip()
    return next((card for card in CARDS if shown.startswith(card.shown)), None)
