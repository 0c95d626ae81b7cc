"""The contract of a measure: it sees batches of rollouts, gives numbers, and says what they mean.

Not here: any number (the other files of this folder), rolling out (`rollouts.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import numpy as np
from torch import Tensor

from colaworld.contracts import ActionSpec
from colaworld.evaluation.rollouts import Batch
from colaworld.evaluation.settings import EvaluationConfig, RandomStream
from colaworld.metrics.bootstrap import bootstrap_mean, bootstrap_statistic

FEW_EPISODES = 8
"""Below so many episodes no interval is believed. Resampling whole episodes gives intervals that are
too narrow when there are few: for normal values a nominal 95 % holds the truth in 89 % of cases at 8
episodes, in 85 % at 5 and in 75 % at 3."""


@dataclass(frozen=True)
class Judgement:
    """What a number means, for a reader who does not know the field."""

    tone: Literal["good", "fair", "poor", "open"]  # a CSS class
    word: str  # one or two words
    text: str  # one sentence
    clause: str = ""  # this number's part of the verdict over all, if it has one


@dataclass(frozen=True)
class Headline:
    """One number a run is judged by."""

    name: str
    value: float | None  # None: there is no such number here, and the note says why
    low: float | None = None  # bounds of the 95 % interval
    high: float | None = None
    unit: str = ""
    note: str = ""  # what to compare it with, in a few words
    better: Literal["higher", "lower"] = "higher"
    digits: int = 2
    meaning: str = ""  # the question it answers, one line
    episodes: int | None = None  # that its interval is over
    over: Callable[[Mapping[str, np.ndarray]], float] | None = None
    """The value over some clips, from their `per_clip` values; runs are compared by it, in pairs."""
    judgement: Judgement | None = None  # None: shown in tables only
    control: bool = False  # a row of the page's section "Does it obey?" instead of a card
    span: tuple[float, float] = (0.0, 1.0)  # the scale under the number
    marks: tuple[tuple[float, str], ...] = ()  # named places on it

    @property
    def few(self) -> bool:
        """Is its interval over too few episodes to be believed?"""
        return self.episodes is not None and self.episodes < FEW_EPISODES

    def text(self) -> str:
        """ "1.50 dB [1.20, 1.80]"; "-" where there is no value."""
        if self.value is None:
            return "-"
        shown = number(self.value, self.unit, digits=self.digits)
        if self.low is not None and self.high is not None:
            low, high = (number(v, digits=self.digits) for v in (self.low, self.high))
            shown += f" [{low}, {high}]"
        return shown


def number(value: float | None, unit: str = "", *, digits: int = 2) -> str:
    """A value as text, with a true minus sign left to the page; "-" for a missing one."""
    if value is None:
        return "-"
    return f"{value:.{digits}f}{' ' + unit if unit else ''}"


def astray(result: Mapping[str, Any]) -> str | None:
    """How many rollouts hold numbers that are not finite, by variant, in words; None: none does. Then what
    is measured on them is missing, and no mean is taken without them."""
    found = ((result.get("rollout") or {}).get("not_finite") or {}).items()
    told = [f"{variant} {count}" for variant, count in found if count]
    if not told:
        return None
    return f"not finite: {', '.join(told)} of {result['counts']['clips']} clips"


@dataclass(frozen=True)
class Setting:
    """What a measure knows before the first batch."""

    codebook_size: int | None  # K, or None when latent actions are continuous
    action_spec: ActionSpec | None  # of the real actions, or None when there are none
    config: EvaluationConfig
    rng: np.random.Generator
    """Shared by the intervals of `Controllability` and `Fidelity`, which draw from it in the order
    of MEASURES: published bounds rest on that. Every other measure uses a generator of its own,
    np.random.default_rng([config.seed, RandomStream.<ITS_NAME>]) (`settings.py`)."""

    shared: dict[str, dict[int, np.ndarray]] = field(default_factory=dict)
    """Name -> rows by the batch's first clip: what several measures keep, held once (`share`)."""

    def in_batches(self, wanted: int, clips: int) -> int:
        """How many of `clips` are in the batches that hold the first `wanted`."""
        size = self.config.batch_size
        return min(clips, -(-wanted // size) * size)

    def interval(
        self,
        of: np.ndarray | Callable[[np.ndarray], float],
        episodes: np.ndarray,
        *,
        rng: np.random.Generator | None = None,
    ) -> dict[str, float]:
        """{mean, low, high} of values [M], or of a statistic of row numbers; episodes [M]."""
        bootstrap: Callable[..., Any] = bootstrap_statistic if callable(of) else bootstrap_mean
        rng = self.rng if rng is None else rng
        samples = self.config.bootstrap_samples
        return bootstrap(of, episodes, samples=samples, generator=rng).as_dict()


def bounds(values: np.ndarray, episodes: np.ndarray, config: EvaluationConfig) -> np.ndarray:
    """95 % bounds of the mean over clips at each step: values [M, n], episodes [M] -> [2, n].

    Pointwise, with one set of resampled episodes for all steps; NaN where there is one episode.
    """
    ids, group = np.unique(episodes, return_inverse=True)
    if len(ids) < 2:
        return np.full((2, values.shape[1]), np.nan)
    member = np.eye(len(ids))[group]  # [M, episodes]
    rng = np.random.default_rng([config.seed, RandomStream.BOUNDS])
    drawn = rng.multinomial(len(ids), np.full(len(ids), 1 / len(ids)), config.bootstrap_samples)
    means = drawn @ (member.T @ values) / (drawn @ member.sum(0))[:, None]
    return np.quantile(means, [0.025, 0.975], axis=0)


class Measure:
    """A base to derive from: keeps rows from batch to batch; every method may be left as it is."""

    variants: ClassVar[tuple[str, ...]] = ()
    """The rollouts it scores, out of VARIANTS and "copy". Without any it sees all clips, rolled
    out or not, and reads their frames and actions alone."""
    every_clip: ClassVar[bool] = False
    """With variants: see those that are not rolled out, too."""

    def __init__(self, setting: Setting) -> None:
        self.setting = setting
        self._rows: dict[str, list[np.ndarray]] = {}

    def steps(self, clips: int) -> int:
        """Single steps that it has rolled out itself (`Batch.roll`) where `clips` are: its own cost."""
        return 0

    def update(self, batch: Batch) -> None:
        """See one batch; each clip comes once."""

    def result(self) -> dict[str, Any]:
        """Its keys of evaluation.json, after the last batch."""
        return {}

    def per_clip(self) -> dict[str, np.ndarray]:
        """Numbers [M] of each rolled-out clip, from which `Headline.over` makes the value again."""
        return {}

    def shown(self) -> dict[str, Any]:
        """Its fields of `Artefacts`, asked after `result`."""
        return {}

    @staticmethod
    def headline(result: Mapping[str, Any]) -> Headline | None:
        """The number that tables and pages show, from a whole evaluation.json, which may be old.

        None where `result` was made without this measure.
        """
        return None

    def keep(self, **rows: Tensor | np.ndarray) -> None:
        """Add rows [b, ...] to what `kept` gives."""
        for name, values in rows.items():
            values = values.cpu().numpy() if isinstance(values, Tensor) else values
            self._rows.setdefault(name, []).append(values)

    def share(self, first: int, **rows: Callable[[], Tensor]) -> None:
        """`keep` of what other measures keep, too, under the same names: made and held once for all.

        `first` is the batch's; rows are asked for where no measure has given them.
        """
        for name, make in rows.items():
            held = self.setting.shared.setdefault(name, {})
            if first not in held:
                held[first] = make().cpu().numpy()

    def kept(self, name: str) -> np.ndarray:
        """All rows kept or shared under `name`, [M, ...]."""
        own = self._rows.get(name)
        return np.concatenate(list(self.setting.shared[name].values()) if own is None else own)
