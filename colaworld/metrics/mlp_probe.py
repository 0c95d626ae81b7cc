"""An MLP probe: what a small network reads off a feature, where a linear map may be too weak.

One hidden layer, Adam, early stopping on training episodes set aside. Beside the linear probe it
tells whether the action is there at all or only not laid out in straight lines (Alain and Bengio,
arXiv 1610.01644, warn of probes that are too strong: read it against the same network on pixels).
Not here: scores and splits (`probe.py`).
Shape legend: M rows (one per transition), D feature values, A action dimensions, C classes.
"""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from colaworld.metrics.config import ProbeConfig
from colaworld.metrics.probe import Kind, ProbePrediction, prepared, split_by_episode

RATE, ROWS, ASIDE = 1e-3, 256, 0.25  # Adam's learning rate, rows a step, episodes set aside


def mlp_probe(
    features: Tensor,
    actions: Tensor,
    train: np.ndarray,
    test: np.ndarray,
    *,
    episodes: np.ndarray,
    kind: Kind,
    config: ProbeConfig,
    generator: np.random.Generator,
) -> ProbePrediction:
    """Fit on rows `train`, answer on rows `test`, in float32.

    A quarter of the training episodes is set aside: the weights with the least loss on it are used,
    and `config.patience` passes without a lesser one end the training.

    Args:
        features: [M, D] floats, standardised here by the training rows.
        actions: [M] integer classes (discrete) or [M, A] floats (continuous; standardised here).
        train, test: row numbers, from `split_by_episode`.
        episodes: [M] the episode of each row.
        generator: of the episodes set aside, the first weights and the order of the rows.

    Raises ValueError where the training rows are of a single episode.
    """
    data = prepared(features, actions, train, test, kind=kind)
    fit, aside = split_by_episode(episodes[train], test_share=ASIDE, generator=generator)
    x, y = data.x_train.float(), data.y_train
    y = y if kind == "discrete" else y.float()
    outputs = data.classes if kind == "discrete" else y.shape[1]
    rng = torch.Generator().manual_seed(int(generator.integers(2**63)))
    parameters = [
        (torch.randn(shape, generator=rng) * scale).requires_grad_()
        for shape, scale in (
            ((x.shape[1], config.hidden), math.sqrt(2 / x.shape[1])),
            ((config.hidden,), 0.0),
            ((config.hidden, outputs), math.sqrt(1 / config.hidden)),
            ((outputs,), 0.0),
        )
    ]

    def answer(rows: Tensor, weights: list[Tensor]) -> Tensor:
        w1, b1, w2, b2 = weights
        return F.relu(rows @ w1 + b1) @ w2 + b2

    def loss(rows: np.ndarray | Tensor) -> Tensor:
        said = answer(x[rows], parameters)
        return F.cross_entropy(said, y[rows]) if kind == "discrete" else F.mse_loss(said, y[rows])

    optimizer = torch.optim.Adam(parameters, lr=RATE)
    best, kept, since = math.inf, [p.detach().clone() for p in parameters], 0
    own = torch.from_numpy(fit)
    with torch.enable_grad():
        for _ in range(config.epochs):
            for rows in own[torch.randperm(len(own), generator=rng)].split(ROWS):
                optimizer.zero_grad()
                loss(rows).backward()
                optimizer.step()
            with torch.no_grad():
                now = float(loss(aside))
            since += 1
            if now < best:
                best, kept, since = now, [p.detach().clone() for p in parameters], 0
            if since >= config.patience:
                break
    said = answer(data.x_test.float(), kept)
    return data.answered(said.argmax(dim=-1) if kind == "discrete" else said.double())
