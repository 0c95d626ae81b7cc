"""The five numbers in plain words: what each says, how good it is, and a verdict over all.

The thresholds are statements of this project, kept in one place. Not here: the numbers' making.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from html import escape
from typing import Any

from colaworld.evaluation.charts import whisker
from colaworld.evaluation.tables import headlines, number

STEERING_DB = 1.5  # published worlds of this kind report about 2 dB; below 1.5 steering is weak
ENTROPY_GOOD, ENTROPY_POOR = 0.7, 0.3


@dataclass(frozen=True)
class Judgement:
    """What a number means, for a reader who does not know the field."""

    tone: str  # "good", "fair", "poor" or "open": a CSS class
    word: str  # one or two words
    text: str  # one sentence


def judge_steering(delta: Mapping[str, Any]) -> Judgement:
    mean, low, high = delta["mean"], delta["low"], delta["high"]
    if low is None or high is None:
        return Judgement("open", "open", "One episode gives no interval; hold out more.")
    if low > 0 and mean >= STEERING_DB:
        return Judgement("good", "clear", "The true actions give clearly better videos.")
    if low > 0:
        return Judgement("fair", "small", "The true actions help, by less than we ask for.")
    if high < 0:
        return Judgement("poor", "reversed", "The true actions make the videos worse.")
    return Judgement("poor", "not shown", "The interval holds 0: no steering is shown.")


def judge_entropy(health: Mapping[str, Any] | None) -> Judgement:
    if health is None:
        return Judgement("open", "no codebook", "Latent actions are continuous.")
    value = health["entropy_normalised"]
    if value >= ENTROPY_GOOD:
        return Judgement("good", "healthy", "The codes are used evenly.")
    if value >= ENTROPY_POOR:
        return Judgement("fair", "uneven", "A few codes carry most of the actions.")
    return Judgement("poor", "collapsed", "Nearly all actions share one code.")


def judge_probe(probe: Mapping[str, Any] | None, reason: str | None) -> Judgement:
    if probe is None:
        return Judgement("open", "skipped", f"Not probed: {reason or 'no reason given'}.")
    margin = probe["margin"]
    if margin["low"] is None or margin["mean"] is None:
        return Judgement("open", "open", "One test episode gives no interval.")
    if margin["low"] > 0:
        return Judgement("good", "above both", "Latent actions tell more than chance and pixels.")
    if margin["high"] < 0:
        return Judgement("poor", "below", "A baseline tells more than the latent actions.")
    return Judgement("fair", "not clear", "Not clearly above the better baseline.")


def judge_rollout(rollout: Mapping[str, Any]) -> Judgement:
    ratio = rollout["error_against_copy"]
    if ratio is None:
        return Judgement("open", "open", "The clips do not move: there is nothing to predict.")
    if ratio < 0.95:
        return Judgement("good", f"{1 / ratio:.1f}× closer", "than repeating the last given frame.")
    if ratio > 1.05:
        return Judgement(
            "poor", f"{ratio:.1f}× further off", "than repeating the last given frame."
        )
    return Judgement("fair", "no closer", "than repeating the last given frame.")


def judge_utilisation(health: Mapping[str, Any] | None) -> Judgement:
    if health is None:
        return Judgement("open", "no codebook", "Latent actions are continuous.")
    value = health["utilisation"]
    if value >= 0.9:
        words = "Every code occurs." if value == 1 else "Nearly every code occurs."
        return Judgement("good", "in use", words)
    if value >= 0.5:
        return Judgement("fair", "in part", "Some codes never occur.")
    return Judgement("poor", "mostly idle", "Most codes never occur.")


def judgements(result: Mapping[str, Any]) -> list[Judgement]:
    """One per headline, in the same order."""
    health = result.get("codebook")
    return [
        judge_steering(result["delta_psnr"]["random"]),
        judge_entropy(health),
        judge_probe(result.get("probe"), result.get("probe_skipped")),
        judge_rollout(result["rollout"]),
        judge_utilisation(health),
    ]


def verdict(result: Mapping[str, Any]) -> str:
    """Two or three plain sentences that a person can repeat."""
    steering, entropy, probe, *_ = judgements(result)
    delta = result["delta_psnr"]["random"]
    amount = f"{number(delta['mean'])}\u00a0dB".replace("-", "−")
    first = {
        "clear": f"The latent actions steer this world: with the true ones its videos are {amount} "
        "closer to what happened than with random ones.",
        "small": f"The latent actions steer this world, but only a little: {amount} over random "
        "ones.",
        "reversed": f"Something is wrong: the true latent actions make its videos worse, {amount}.",
        "not shown": "It is not shown that the latent actions steer this world: with random ones "
        f"its videos are as good ({amount}).",
        "open": f"The latent actions gain {amount} over random ones; one episode says no more.",
    }[steering.word]
    second = {
        "healthy": "The codebook is healthy",
        "uneven": "The codebook is used unevenly",
        "collapsed": "The codebook has collapsed",
        "no codebook": "There is no codebook to collapse",
    }[entropy.word]
    third = {
        "above both": "the real action can be read from the code better than chance or raw pixel "
        "differences allow.",
        "not clear": "the real action cannot be read from it clearly better than from raw pixel "
        "differences or by chance.",
        "below": "the real action is read better from raw pixel differences than from it.",
    }.get(probe.word, "the link to real actions was not tested.")
    joint = ", and " if (entropy.tone == "good") == (probe.tone == "good") else ", but "
    if probe.tone == "open":
        joint = "; "
    return f"{first} {second}{joint}{third}"


def _scale(result: Mapping[str, Any], index: int) -> tuple[tuple[float, float], list]:
    """The short scale under a card: its span and what to compare with."""
    if index == 0:
        delta = result["delta_psnr"]["random"]
        low = min(0.0, delta["mean"], delta["low"] or 0.0)
        high = max(2.0, delta["mean"], delta["high"] or 0.0) * 1.08
        return (low - 0.06 * (high - low), high), [(0.0, "no effect"), (STEERING_DB, "aim")]
    if index == 1:
        return (0.0, 1.0), [(0.0, "one code"), (ENTROPY_GOOD, "aim"), (1.0, "even")]
    if index == 2:
        probe = result["probe"]
        marks = [(probe["chance"] or 0.0, "chance"), (probe["pixel_difference"] or 0.0, "pixels")]
        return (min(0.0, *(m[0] for m in marks), probe["score"]["mean"] or 0.0), 1.0), marks
    if index == 3:
        rollout = result["rollout"]
        steps = rollout["psnr_by_horizon"]
        marks = [(steps[0], "step 1"), (steps[-1], f"step {len(steps)}")][: len(steps)]
        shown = [*steps, *(v for v in rollout["psnr"].values() if v is not None)]
        return (min(shown) - 1, max(shown) + 1), marks
    return (0.0, 1.0), [(0.0, "none"), (1.0, "all codes")]


def cards(result: Mapping[str, Any]) -> str:
    """The five numbers as a list of cards."""
    out = ['<ul class="cards">']
    for index, (line, judged) in enumerate(zip(headlines(result), judgements(result), strict=True)):
        name = escape(line.name[:1].upper() + line.name[1:])
        out.append(f'<li class="card"><h3>{name}</h3>')
        if line.value is None:
            out.append('<div class="big">–</div><div class="interval"></div>')
        else:
            value = number(line.value).replace("-", "−")
            unit = f" <small>{line.unit}</small>" if line.unit else ""
            out.append(f'<div class="big">{value}{unit}</div>')
            interval = ""
            if line.low is not None and line.high is not None:
                interval = f"{number(line.low)} to {number(line.high)}".replace("-", "−")
            out.append(f'<div class="interval">{interval}</div>')
            span, marks = _scale(result, index)
            out.append(whisker(line.value, line.low, line.high, span=span, marks=marks))
        stop = "" if judged.text[0].islower() else "."
        out.append(
            f'<p><span class="tag {judged.tone}">{escape(judged.word.capitalize())}{stop}</span> '
            f"{escape(judged.text)}</p>"
        )
        note = line.note if line.value is not None else ""
        out.append(
            f'<p class="note">{escape(note[:1].upper() + note[1:]).replace("-", "−")}</p></li>'
        )
    return "".join(out) + "</ul>"
