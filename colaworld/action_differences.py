"""Is the data set's action the one that the model was trained on? Two contracts, compared.

    check_contract(model, data, where="runs/arm", data_where="data/arm2")    # ActionMismatch, or warnings

A fact that is stated on both sides must agree. What is not stated, statistics may still tell: a scale, a
place, an order of channels. They cannot tell a sign, nor exchange two channels that look alike. What
cannot be told is warned of. Not here: where contracts come from (data/action_statistics.py).
"""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

from colaworld.action_contract import ActionContract
from colaworld.contracts import ActionSpec

log = logging.getLogger(__name__)

SCALE = 3.0
"""How many times larger or smaller a channel may be, in its deviation and in its range. Units that are taken
for one another differ by more: feet and metres 3.3, turns and radians 6.3, cm and mm 10, inches and mm 25,
degrees and radians 57, m and mm 1000. Two recordings of one robot seldom differ threefold in both."""
LEAST = 100
"""Rows below which statistics judge nothing: a short episode says little about a channel."""
FAR, NEAR = 1.0, 0.5
"""How unlike its own channel, and how like another, a channel must be to count as that other one; see
`_unlikeness`. Channels that are told apart by less are not."""
RATE = 0.01
"""Share by which rates may differ: clocks of cameras."""
_REMINDS = math.log(1.2)
_FACTORS = (  # of which a scale that is near by 1.2 reminds: the finer unit, the coarser
    (180 / math.pi, "degrees", "radians"),
    (1000.0, "mm", "m"),
    (100.0, "cm", "m, or per cent and parts of 1"),
    (25.4, "mm", "inches"),
    (10.0, "mm", "cm"),
    (2 * math.pi, "radians", "turns"),
    (1 / 0.3048, "feet", "m"),
    (2048 / math.pi, "steps of a servo", "radians"),
)


class ActionMismatch(ValueError):
    """The actions of a data set are not those that the model was trained on; both are printed."""


@dataclass(frozen=True)
class Difference:
    """One thing in which two contracts differ, or cannot be compared."""

    what: str
    """A field, or a channel and what of it."""
    model: str
    """The model's side, in words."""
    data: str
    """The data's side, in words."""
    kind: Literal["wrong", "unlike", "unknown"] = field(kw_only=True)
    """wrong: stated facts contradict. unlike: the statistics do. unknown: it could not be checked."""
    note: str = field(default="", kw_only=True)
    """What it means, and what to do."""

    def __str__(self) -> str:
        return f"{self.what}: model {self.model}; data {self.data}" + (
            f" ({self.note})" if self.note else ""
        )


def check_contract(
    model: ActionContract,
    data: ActionContract,
    *,
    where: str,
    data_where: str,
    unlike: Literal["refuse", "warn"] = "refuse",
) -> None:
    """Raise `ActionMismatch` where the actions of `data` are not those of `model`; warn of the rest.

    Args:
        where: what the model is called in messages: its run folder.
        data_where: what the data set is called.
        unlike: what is done where nothing but the statistics speak against it.
    """
    found = differences(model, data)
    wrong = [
        one for one in found if one.kind == "wrong" or (one.kind, unlike) == ("unlike", "refuse")
    ]
    if wrong:
        lines = "".join(f"\n  {one}" for one in wrong)
        way_out = ""
        if all(one.kind == "unlike" for one in wrong):
            way_out = (
                "\nIf these are the same actions, --data.unlike-actions warn takes them as they are"
            )
        elif (model.mode, data.mode) == ("relative", "absolute"):
            way_out = "\n--data.actions relative tells places as the way from the place before"
        raise ActionMismatch(
            f"{data_where}: its actions (column {data.column!r}, contract {data.hash}) are not those "
            f"of {where} (column {model.column!r}, contract {model.hash}):"
            f"{lines}{way_out}"
        )
    for one in found:
        log.warning("%s: actions, against those of %s: %s", data_where, where, one)


def differences(model: ActionContract, data: ActionContract) -> list[Difference]:
    """Everything in which the two differ or cannot be compared, in the order of the fields; none
    where they agree in all."""
    if model.kind != data.kind:
        sizes = (f"{one.kind}, {one.size}" for one in (model, data))
        return [Difference("kind", *sizes, kind="wrong")]
    rate = list(_rate(model, data))
    named = list(_names(model, data))
    if any(one.kind == "wrong" for one in named):  # channels are not those of the same place
        return [*rate, *named, *stated(model, data, units=False)]
    if model.kind == "discrete":
        return [*rate, *named, *_unseen(model, data)]
    return [*rate, *named, *stated(model, data, units=True), *_statistics(model, data)]


def _rate(model: ActionContract, data: ActionContract) -> Iterator[Difference]:
    shown = [_known(None if one.rate is None else f"{one.rate:g} Hz") for one in (model, data)]
    if model.rate is None or data.rate is None:
        if model.rate != data.rate:
            yield Difference("rate", *shown, kind="unknown")
        return
    ratio = data.rate / model.rate
    if abs(ratio - 1) <= RATE:
        return
    whole = round(ratio)
    flag = f"--data.fps {model.rate:g}"
    if ratio < 1:
        note = "slower than the model's steps: frames and actions in between were not recorded"
    elif abs(ratio - whole) > RATE * whole:
        note = f"no multiple of the model's: record or resample the set at {model.rate:g} Hz"
    elif model.size == data.size * whole:
        note = f"{flag} takes every {_nth(whole)} frame and all actions in between, as the model's run did"
    else:
        note = (
            f"{flag} takes every {_nth(whole)} frame, but then {whole} actions lie in a step where this "
            f"model takes one: resample the set to {model.rate:g} Hz"
        )
    yield Difference("rate", *shown, kind="wrong", note=note)


def _names(model: ActionContract, data: ActionContract) -> Iterator[Difference]:
    """Size and names: what is missing, too many, or in another order."""
    what = "classes" if model.kind == "discrete" else "channels"
    shown = [_known(", ".join(one.names)) for one in (model, data)]
    ours, theirs = telling(model.names), telling(data.names)
    if model.size != data.size:
        sizes = (f"{one.size} ({text})" for one, text in zip((model, data), shown, strict=True))
        yield Difference(what, *sizes, kind="wrong", note=_missing(ours, theirs))
    elif not ours or not theirs:
        if model.size > 1:
            note = "their order cannot be checked by name"
            yield Difference(f"names of {what}", *shown, kind="unknown", note=note)
    elif ours != theirs:
        note = _missing(ours, theirs)
        if not note and len(set(theirs)) == data.size:
            one = "class" if model.kind == "discrete" else "column"
            moved = [
                f"{one} {theirs.index(name)} of the data is {one} {at} of the model ({name})"
                for at, name in enumerate(ours)
                if theirs[at] != name
            ]
            note = f"another order: {'; '.join(moved)}"
        yield Difference(f"names of {what}", *shown, kind="wrong", note=note)


def telling(names: Sequence[str]) -> tuple[str, ...]:
    """The names; none where they say nothing but the place, one word and a number that counts up: those
    of motor_0, motor_1 are the same in any order."""
    once = list(dict.fromkeys(re.sub(r"\+\d+$", "", name) for name in names))  # of a stride
    parts = [re.fullmatch(r"(.*?)(\d+)", name) for name in once]
    found = [(part[1], int(part[2])) for part in parts if part]
    counted = [number - found[0][1] for _, number in found] == list(range(len(once)))
    same = len(found) == len(once) and len({word for word, _ in found}) == 1
    return () if same and counted else tuple(names)


def _missing(model: Sequence[str], data: Sequence[str]) -> str:
    if not model or not data:
        return ""
    parts = (
        ("missing in the data", [name for name in model if name not in data]),
        ("unknown to the model", [name for name in data if name not in model]),
    )
    return "; ".join(f"{what}: {', '.join(names)}" for what, names in parts if names)


def stated(model: ActionSpec, data: ActionSpec, *, units: bool = True) -> Iterator[Difference]:
    """Units of each channel (where the channels are the same, and as many), mode and frame: "wrong" where both sides state
    one and contradict each other, else "unknown"."""
    if model.kind == "discrete":
        return
    if units:
        pairs = zip(*(one.units or ("",) * one.size for one in (model, data)), strict=True)
        by_kind: dict[tuple[str, str], list[str]] = {}
        for at, (ours, theirs) in enumerate(pairs):
            by_kind.setdefault((ours, theirs), []).append(channel(model, data, at))
        for (ours, theirs), names in by_kind.items():
            whom = "of all channels" if len(names) == model.size else f"of {', '.join(names)}"
            yield from _fact(f"unit {whom}", ours, theirs)
    yield from _fact("mode", model.mode, data.mode)
    yield from _fact("frame of reference", model.frame, data.frame)


def _fact(what: str, model: str, data: str) -> Iterator[Difference]:
    """A text that both sides state, or do not."""
    if not model or not data:
        yield Difference(what, _known(model), _known(data), kind="unknown")
    elif model.strip().casefold() != data.strip().casefold():
        yield Difference(what, model, data, kind="wrong")


def _unseen(model: ActionContract, data: ActionContract) -> Iterator[Difference]:
    """Classes that the data hold and the model never met."""
    counts = zip(model.normaliser.counts, data.normaliser.counts, strict=False)
    for at, (ours, theirs) in enumerate(counts):
        if theirs and not ours:
            note = "the model never met it"
            shown = ("0 rows", f"{theirs} rows")
            yield Difference(f"class {channel(model, data, at)}", *shown, kind="unknown", note=note)


def channel(model: ActionSpec, data: ActionSpec, at: int) -> str:
    """What a channel is called by the side that has names."""
    names = telling(model.names) or telling(data.names)
    return names[at] if names else str(at)


# -- statistics ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Channel:
    """The statistics of one channel."""

    mean: float
    std: float
    low: float
    high: float
    q01: float
    q99: float

    @property
    def still(self) -> bool:
        """Whether it never changes, as far as float32 can tell."""
        return self.std <= 1e-6 * max(1e-6, abs(self.mean))

    def spread(self, *, quantiles: bool) -> float:
        return self.q99 - self.q01 if quantiles else self.high - self.low

    def __str__(self) -> str:
        if self.still:
            return f"always {self.mean:.4g}"
        return f"{self.low:.4g} to {self.high:.4g}, mean {self.mean:.4g}, std {self.std:.4g}"


def _channels(contract: ActionContract) -> list[_Channel]:
    n = contract.normaliser
    columns = (n.mean, n.std, n.low, n.high, n.q01, n.q99)
    return [_Channel(*row) for row in zip(*columns, strict=True)] if all(columns) else []


def _statistics(model: ActionContract, data: ActionContract) -> Iterator[Difference]:
    """What the numbers say: columns in another order, other scales, other places."""
    ours, theirs = _channels(model), _channels(data)
    counts = [one.normaliser.count for one in (model, data)]
    if not ours or not theirs or min(counts) < LEAST:
        shown = (f"{n} rows" for n in counts)
        note = f"too few to judge scales by; at least {LEAST} on both sides are needed"
        yield Difference("statistics", *shown, kind="unknown", note=note)
        return
    moved = _moved(ours, theirs)
    for at, place in moved.items():
        name = channel(model, data, at)
        note = (
            f"column {place} of the data ({theirs[place]}) looks like it: columns in another order?"
        )
        yield Difference(name, str(ours[at]), str(theirs[at]), kind="unlike", note=note)
    for at in sorted(set(range(model.size)) - moved.keys()):
        name = channel(model, data, at)
        yield from _compared(name, ours[at], theirs[at])


def _unlikeness(a: _Channel, b: _Channel) -> float:
    """Distance of the means in pooled deviations, and the logarithm of the deviations' ratio: 0 for
    equals. A deviation of a half further off is as much as a spread e^0.5 times as wide."""
    if a.still or b.still:
        alike = a.still and b.still and math.isclose(a.mean, b.mean, rel_tol=1e-4, abs_tol=1e-6)
        return 0.0 if alike else math.inf
    pooled = math.sqrt((a.std**2 + b.std**2) / 2)
    return abs(a.mean - b.mean) / pooled + abs(math.log(a.std / b.std))


def _moved(model: Sequence[_Channel], data: Sequence[_Channel]) -> dict[int, int]:
    """Model's channel -> the data's column that holds it, of those that another order explains: each is
    far from the column of its place and near to one of the others', and no column is taken twice."""
    far = [i for i, (a, b) in enumerate(zip(model, data, strict=True)) if _unlikeness(a, b) > FAR]
    best = {}
    for i in far:
        unlike = [_unlikeness(model[i], data[j]) for j in far]
        if min(unlike) < NEAR:
            best[i] = far[unlike.index(min(unlike))]
    while any(j not in best for j in best.values()):  # until they exchange places among themselves
        best = {i: j for i, j in best.items() if j in best}
    return best if set(best.values()) == set(best) else {}


def _compared(name: str, model: _Channel, data: _Channel) -> Iterator[Difference]:
    """One channel that stands in its place: its scale, then its place."""
    shown = str(model), str(data)
    if data.still and not model.still and model.low <= data.mean <= model.high:
        note = "it does not change in the data: its scale cannot be checked"
        yield Difference(name, *shown, kind="unknown", note=note)
    elif model.still and not data.still:
        yield Difference(name, *shown, kind="unlike", note="the model never saw it change")
    elif (factor := _factor(model, data)) is not None:
        yield Difference(name, *shown, kind="unlike", note=factor)
    elif (data.q01 > model.high or data.q99 < model.low) and _unlikeness(model, data):
        note = "outside of all that the model has seen: another origin, frame or mode?"
        yield Difference(name, *shown, kind="unlike", note=note)


def _factor(model: _Channel, data: _Channel) -> str | None:
    """By how much the scale is off, in words; None: within `SCALE`, by deviation or by range."""
    if model.still or data.still:
        return None
    quantiles = model.q99 > model.q01 and data.q99 > data.q01
    ratios = (
        data.std / model.std,
        data.spread(quantiles=quantiles) / model.spread(quantiles=quantiles),
    )
    if not (min(ratios) > SCALE or max(ratios) < 1 / SCALE):
        return None
    larger = ratios[0] > 1
    ratio = ratios[0] if larger else 1 / ratios[0]
    text = f"{ratio:.3g} times {'larger' if larger else 'smaller'}, more than {SCALE:g}"
    factor, *units = min(_FACTORS, key=lambda known: abs(math.log(ratio / known[0])))
    if abs(math.log(ratio / factor)) > _REMINDS:
        return text
    theirs, ours = units if larger else reversed(units)
    return f"{text}: {theirs} where the model has {ours}?"


def _known(value: str | None) -> str:
    return value or "not known"


def _nth(number: int) -> str:
    return {2: "second", 3: "third"}.get(number, f"{number}th")
