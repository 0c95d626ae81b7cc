"""How the probes of probe.py are fitted. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from colaworld.config import Checked, Count, Positive, Range, Size


@dataclass(frozen=True)
class ProbeConfig(Checked, at="evaluation.probe."):
    """How the probes are fitted. The same values serve the latent actions and the baseline."""

    test_share: Annotated[float, Range(gt=0, lt=1)] = 0.5
    """Share of the episodes kept for testing; at least one on each side."""
    ridge: Positive = 1e-3
    """L2 penalty on the weights of standardised features, relative to the mean loss per row."""
    iterations: Count = 200
    """At most this many L-BFGS iterations of the logistic regression."""
    pixel_grid: Size = 12
    """Frame differences are averaged down to at most this many cells per side."""
    pixel_components: Size = 64
    """Principal components kept of the frame differences, at most."""
    hidden: Size = 64
    """Units of the MLP probe's one hidden layer."""
    epochs: Count = 200
    """At most this many passes over the training rows of the MLP probe."""
    patience: Count = 20
    """Passes without a better loss on a quarter of the training episodes that end it."""
