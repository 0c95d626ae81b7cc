"""Linear probes: how much of the real action can be read off a feature by a linear map.

Ridge regression for continuous actions, multinomial logistic regression for discrete ones, both in
float64 and with one optimum, so a probe needs no seed beyond the split. The split is by episode:
neighbouring clips never sit on both sides. Two baselines put the score in place: chance (majority
class, or the mean) and the raw difference of the two frames, from which much can be read already.

Not here: where the features come from, and intervals (`bootstrap.py`).
Shape legend: M rows (one per transition), D feature values, A action dimensions, C classes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from colaworld.contracts import ActionSpec
from colaworld.metrics.config import ProbeConfig

Kind = Literal["continuous", "discrete"]


@dataclass(frozen=True)
class ProbePrediction:
    """A probe's answers on its test rows; continuous ones in units of the training set's spread."""

    kind: Kind
    predicted: np.ndarray  # [M] int64 classes | [M, A] float64 standardised
    target: np.ndarray  # same shape
    spread: np.ndarray | None = None  # [A] standard deviations of the training set, in its units

    def score(self, rows: np.ndarray | None = None) -> float:
        """Accuracy (discrete) or R^2 (continuous), of all rows or of `rows` [R]."""
        measure = accuracy if self.kind == "discrete" else r_squared
        return measure(*self._pick(rows))

    def macro_f1(self, rows: np.ndarray | None = None) -> float:
        return macro_f1(*self._pick(rows))

    def l1(self, rows: np.ndarray | None = None) -> float:
        predicted, target = self._pick(rows)
        return float(np.abs(predicted - target).mean())

    def recall(self, of: int, rows: np.ndarray | None = None) -> float:
        """Share of the rows of class `of` that are read as it; NaN without such rows."""
        predicted, target = self._pick(rows)
        hit = predicted[target == of] == of
        return float(hit.mean()) if hit.size else float("nan")

    def of_dimension(self, of: int) -> ProbePrediction:
        """The answers in one action dimension."""
        picked = slice(of, of + 1)
        spread = None if self.spread is None else self.spread[picked]
        return ProbePrediction(self.kind, self.predicted[:, picked], self.target[:, picked], spread)

    def _pick(self, rows: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
        if rows is None:
            return self.predicted, self.target
        return self.predicted[rows], self.target[rows]


def accuracy(predicted: np.ndarray, target: np.ndarray) -> float:
    """Share of equal classes. predicted, target: [M] ints."""
    return float((predicted == target).mean())


def macro_f1(predicted: np.ndarray, target: np.ndarray) -> float:
    """F1 averaged over the classes that occur among predictions or targets. [M] ints each."""
    scores = []
    for c in np.union1d(predicted, target):
        hit = np.sum((predicted == c) & (target == c))
        scores.append(2 * hit / (np.sum(predicted == c) + np.sum(target == c)))
    return float(np.mean(scores))


def r_squared(predicted: np.ndarray, target: np.ndarray) -> float:
    """1 - SSE / SST per dimension, averaged over the dimensions that vary. [M, A] floats each.

    SST is about the mean of `target` itself, so predicting a mean learnt elsewhere gives <= 0.
    NaN where no dimension varies.
    """
    error = np.square(predicted - target).sum(axis=0)
    spread = np.square(target - target.mean(axis=0)).sum(axis=0)
    varies = spread > 1e-12 * max(1, target.shape[0])
    if not varies.any():
        return float("nan")
    return float(np.mean(1 - error[varies] / spread[varies]))


def split_by_episode(
    episodes: np.ndarray, *, test_share: float, generator: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Row numbers (train, test) so that no episode has rows in both.

    episodes: [M] the episode of each row; at least two different ones, else ValueError.
    """
    ids = np.unique(episodes)
    if ids.size < 2:
        raise ValueError(
            f"a probe needs rows of at least 2 episodes to split by episode, got {ids.size}; "
            "evaluate on more held-out episodes"
        )
    tests = min(max(1, round(test_share * ids.size)), ids.size - 1)
    held = np.isin(episodes, generator.permutation(ids)[:tests])
    return np.flatnonzero(~held), np.flatnonzero(held)


def cross_validated(
    answer: Callable[[np.ndarray, np.ndarray], ProbePrediction], episodes: np.ndarray, *, folds: int
) -> float:
    """The mean score of `answer`(train, test) over folds that share no episode, each row tested once.

    Folds weigh as many rows as they test; those in which the target does not vary have no R^2 and are
    left out. NaN where none has a score.

    Args:
        answer: fits on rows `train` and answers on rows `test`, as `linear_probe` does.
        episodes: [M] the episode of each row; at least two different ones, else ValueError.
        folds: at most; never more than there are episodes.
    """
    ids = np.unique(episodes)
    if ids.size < 2:
        raise ValueError(
            f"a probe needs rows of at least 2 episodes to split by episode, got {ids.size}"
        )
    folds = min(folds, int(ids.size))
    scores, weights = [], []
    for fold in range(folds):
        held = np.isin(episodes, ids[fold::folds])
        score = answer(np.flatnonzero(~held), np.flatnonzero(held)).score()
        if not np.isnan(score):
            scores.append(score)
            weights.append(int(held.sum()))
    return float(np.average(scores, weights=weights)) if scores else float("nan")


def rows_of(codes: Tensor) -> Tensor:
    """Codes [b, n, N, d] as features [b n, N d] of probes."""
    return codes.flatten(0, 1).flatten(1).float()


def flat_actions(actions: Tensor, spec: ActionSpec) -> Tensor:
    """[b, T-1] classes -> [b (T-1)] int64, or [b, T-1, A] -> [b (T-1), A] floats.

    Raises ValueError where they are not what `spec` says.
    """
    flat = actions.flatten(0, 1)
    if spec.kind == "discrete":
        if flat.ndim != 1 or flat.is_floating_point():
            raise ValueError(
                f"actions: column {spec.column!r} is discrete, expected int64 [M, T-1], "
                f"got {actions.dtype} {tuple(actions.shape)}"
            )
        if int(flat.min()) < 0 or int(flat.max()) >= spec.size:
            raise ValueError(
                f"actions: column {spec.column!r} has {spec.size} classes, got "
                f"{int(flat.min())}..{int(flat.max())}"
            )
        return flat
    if flat.ndim != 2 or flat.shape[1] != spec.size:
        raise ValueError(
            f"actions: column {spec.column!r} has {spec.size} dimensions, expected "
            f"[M, T-1, {spec.size}], got {tuple(actions.shape)}"
        )
    return flat.float()


def _standardise(train: Tensor, *others: Tensor) -> list[Tensor]:
    """All by the mean and spread of `train`; a value that never varies in it becomes 0."""
    mean, spread = train.mean(dim=0), train.std(dim=0, unbiased=False)
    scale = torch.where(spread > 1e-8, 1 / spread.clamp_min(1e-8), torch.zeros_like(spread))
    return [(x - mean) * scale for x in (train, *others)]


def ridge_regression(x: Tensor, y: Tensor, *, ridge: float) -> Tensor:
    """Weights [D, A] that minimise |x w - y|^2 / M + ridge |w|^2. x [M, D] and y [M, A] centred."""
    gram = x.T @ x / x.shape[0]
    gram.diagonal().add_(ridge)
    return torch.linalg.solve(gram, x.T @ y / x.shape[0])


def logistic_regression(
    x: Tensor, y: Tensor, *, classes: int, ridge: float, iterations: int
) -> tuple[Tensor, Tensor]:
    """Weights [D, C] and bias [C] of least mean cross-entropy + ridge |w|^2, by L-BFGS from zero.

    x: [M, D] floats; y: [M] int64 in [0, classes). The problem is convex: there is one optimum.
    """
    weight = torch.zeros(x.shape[1], classes, dtype=x.dtype, requires_grad=True)
    bias = torch.zeros(classes, dtype=x.dtype, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [weight, bias],
        max_iter=iterations,
        tolerance_grad=1e-7,
        tolerance_change=1e-10,
        line_search_fn="strong_wolfe",
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(x @ weight + bias, y) + ridge * weight.square().sum()
        loss.backward()
        return loss

    with torch.enable_grad():
        optimizer.step(closure)
    return weight.detach(), bias.detach()


def _check(features: Tensor | None, actions: Tensor, kind: Kind) -> None:
    if kind not in ("continuous", "discrete"):
        raise ValueError(f"kind: expected 'continuous' or 'discrete', got {kind!r}")
    if kind == "discrete" and (actions.ndim != 1 or actions.is_floating_point()):
        raise ValueError(
            f"actions: expected integer classes [M], got {actions.dtype} {tuple(actions.shape)}"
        )
    if kind == "continuous" and actions.ndim != 2:
        raise ValueError(f"actions: expected floats [M, A], got {tuple(actions.shape)}")
    if kind == "discrete" and int(actions.min()) < 0:
        raise ValueError(f"actions: expected classes >= 0, got {int(actions.min())}")
    if features is not None and (features.ndim != 2 or features.shape[0] != actions.shape[0]):
        raise ValueError(
            f"features: expected [{actions.shape[0]}, D], one row per action, "
            f"got {tuple(features.shape)}"
        )
    for name, x in (("features", features), ("actions", actions)):
        if x is not None and x.is_floating_point() and not bool(torch.isfinite(x).all()):
            raise ValueError(f"{name}: expected finite values, got NaN or infinity")


@dataclass(frozen=True)
class Prepared:
    """What a probe is fitted on, and how its answers become a prediction."""

    kind: Kind
    x_train: Tensor  # [R, D] float64, standardised; empty without features
    x_test: Tensor
    y_train: Tensor  # [R] int64 classes | [R, A] float64 standardised
    y_test: Tensor
    classes: int  # of all rows
    spread: np.ndarray | None

    def answered(self, predicted: Tensor) -> ProbePrediction:
        """Of answers to the test rows, [M] classes or [M, A] standardised."""
        return ProbePrediction(self.kind, predicted.numpy(), self.y_test.numpy(), self.spread)


def prepared(
    features: Tensor | None, actions: Tensor, train: np.ndarray, test: np.ndarray, *, kind: Kind
) -> Prepared:
    """Checked, on the CPU, in float64, standardised by the rows `train`. Arguments as of `linear_probe`."""
    _check(features, actions, kind)
    x_train = x_test = torch.zeros(0)
    if features is not None:
        x = features.detach().cpu().double()
        x_train, x_test = _standardise(x[train], x[test])
    if kind == "discrete":
        y = actions.detach().cpu().long()
        return Prepared(kind, x_train, x_test, y[train], y[test], int(y.max()) + 1, None)
    y = actions.detach().cpu().double()
    y_train, y_test = _standardise(y[train], y[test])
    spread = y[train].std(dim=0, unbiased=False).numpy()
    return Prepared(kind, x_train, x_test, y_train, y_test, 0, spread)


def linear_probe(
    features: Tensor,
    actions: Tensor,
    train: np.ndarray,
    test: np.ndarray,
    *,
    kind: Kind,
    config: ProbeConfig,
) -> ProbePrediction:
    """Fit on rows `train`, answer on rows `test`.

    Args:
        features: [M, D] floats, standardised here by the training rows.
        actions: [M] integer classes (discrete) or [M, A] floats (continuous; standardised here).
        train, test: row numbers, from `split_by_episode`.
    """
    data = prepared(features, actions, train, test, kind=kind)
    if kind == "discrete":
        weight, bias = logistic_regression(
            data.x_train,
            data.y_train,
            classes=data.classes,
            ridge=config.ridge,
            iterations=config.iterations,
        )
        return data.answered((data.x_test @ weight + bias).argmax(dim=-1))
    return data.answered(
        data.x_test @ ridge_regression(data.x_train, data.y_train, ridge=config.ridge)
    )


def chance_probe(
    actions: Tensor, train: np.ndarray, test: np.ndarray, *, kind: Kind
) -> ProbePrediction:
    """The best answer without a feature: the majority class, or the mean, of the training rows."""
    data = prepared(None, actions, train, test, kind=kind)
    if kind == "discrete":
        return data.answered(
            torch.full_like(data.y_test, int(torch.bincount(data.y_train).argmax()))
        )
    return data.answered(torch.zeros_like(data.y_test))


def pixel_differences(frames: Tensor, *, grid: int) -> Tensor:
    """What changed between neighbouring frames, small: the baseline's feature.

    Args:
        frames: [B, T, 3, H, W] float in [0, 1].
        grid: cells per side, at most (the frame's own size where that is smaller).

    Returns:
        [B, T-1, 2 * 3 * h * w]: the signed and the absolute difference, averaged over cells.
    """
    difference = frames[:, 1:] - frames[:, :-1]
    batch, steps, channels, height, width = difference.shape
    size = (min(grid, height), min(grid, width))
    flat = torch.cat([difference, difference.abs()], dim=2).flatten(0, 1)
    pooled = F.adaptive_avg_pool2d(flat.float(), size)
    return pooled.reshape(batch, steps, 2 * channels * size[0] * size[1])


def principal_components(features: Tensor, train: np.ndarray, *, components: int) -> Tensor:
    """[M, D] -> [M, c]: coordinates along the main directions of the rows `train`, largest first.

    c = min(components, D, number of directions in which the training rows vary at all).
    """
    x = features.detach().cpu().double()
    x = x - x[train].mean(dim=0)
    values, vectors = torch.linalg.eigh(x[train].T @ x[train] / len(train))
    rank = int((values > 1e-10 * values[-1].clamp_min(1e-30)).sum())
    keep = max(1, min(components, rank))
    return x @ vectors.flip(1)[:, :keep]
