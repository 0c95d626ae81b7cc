"""One HTML file that says in a minute what a run did and how good it is.

Self-contained: styles, charts and pictures are inside, there is no script and no request (the page
forbids them to itself). Not here: the numbers (`evaluate.py`), the markup (`page.html`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from colaworld.evaluation.artefacts import Artefacts
from colaworld.evaluation.measures.measure import number
from colaworld.evaluation.report.charts import (
    Series,
    confusion,
    line_chart,
    scatter,
    smooth,
    whisker,
)
from colaworld.evaluation.report.tiles import code_blocks, shown_frames, strips
from colaworld.evaluation.report.training_curves import History, read_history
from colaworld.evaluation.rollouts import VARIANTS
from colaworld.evaluation.tables import comparison_rows, headlines, verdict
from colaworld.files import write_atomically

_HERE = Path(__file__).parent


def _minus(text: str) -> str:
    return text.replace("-", "−")


_templates = Environment(
    loader=FileSystemLoader(_HERE),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
_templates.filters["minus"] = _minus
_templates.filters["number"] = lambda value, digits=2: _minus(number(value, digits=digits))


def write_report(
    path: str | Path,
    *,
    title: str,
    evaluation: Mapping[str, Any],
    artefacts: Artefacts | str | Path | None,
    metrics_jsonl: str | Path | Iterable[Mapping[str, Any]],
    config_yaml: str,
    environment: Mapping[str, Any],
    compare: Mapping[str, Mapping[str, Any]] | None = None,
    summary: str | None = None,
) -> Path:
    """Write the page, atomically.

    Args:
        evaluation: the result of `evaluate`, or evaluation.json read back.
        artefacts: the pictures, or the path of evaluation.npz, or None to leave them out.
        metrics_jsonl: the run's metrics.jsonl or its rows.
        config_yaml: the resolved configuration, shown as it is.
        environment: "commit", "date" and "wall_seconds" appear under the title, "versions" (a
            dict) and whatever else there is in a table.
        compare: evaluations of several runs by name, shown side by side.
        summary: one paragraph on what ran; by default made from the numbers.

    Returns:
        The path.
    """
    if isinstance(artefacts, (str, Path)):
        artefacts = Artefacts.load(artefacts)
    history = read_history(metrics_jsonl)
    pictures = {}
    if artefacts is not None:
        pictures = {
            "columns": _columns(artefacts),
            "code_blocks": code_blocks(artefacts),
            "frames": shown_frames(artefacts),
            "strips": strips(artefacts),
        }
    page = _templates.get_template("page.html").render(
        title=title,
        css=Markup((_HERE / "report.css").read_text()),
        meta=_meta(environment),
        summary=summary or what_ran(evaluation, history, environment),
        verdict=verdict(evaluation),
        headlines=[h for h in headlines(evaluation) if h.judgement is not None],
        whisker=whisker,
        compared=comparison_rows(compare) if compare else None,
        artefacts=artefacts,
        horizon=_horizon(evaluation["rollout"]),
        training=_training(history),
        evaluation={"probe": None, "probe_skipped": None, **evaluation},
        probed=_probed(artefacts),
        details=_details(environment),
        config_yaml=config_yaml,
        **pictures,
    )
    write_atomically(path, page + "\n")
    return Path(path)


def duration(seconds: float) -> str:
    """48 s, 11 min 20 s, 2 h 05 min."""
    whole = round(seconds)
    if whole < 90:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def what_ran(
    evaluation: Mapping[str, Any], history: History, environment: Mapping[str, Any]
) -> str:
    """The opening paragraph, from the numbers alone."""
    steps = [(b.name, round(b.stop - b.start)) for b in history.phases]
    trained = "A world model with latent actions"
    if steps:
        trained += f", trained for {sum(n for _, n in steps):,} steps"
        trained += f" ({', '.join(f'{n:,} {name}' for name, n in steps)})"
    if environment.get("wall_seconds") is not None:
        trained += f" in {duration(float(environment['wall_seconds']))}"
    counts, world = evaluation["counts"], evaluation["world"]
    if world["codebook_size"] is None:
        action = f"continuous, {world['tokens']} token{'s' * (world['tokens'] > 1)} a step"
    else:
        action = (
            f"{world['tokens']} token{'s' * (world['tokens'] > 1)} a step from "
            f"{world['codebook_size']} codes"
        )
    given = counts["history"]
    return (
        f"{trained}. Its latent actions are {action}, learnt from video without action labels. "
        f"It is judged on {counts['clips']} clips of {counts['episodes']} held-out episodes "
        f"({counts['width']} × {counts['height']} pixels): from {given} given "
        f"frame{'s' * (given > 1)} it predicts the next {counts['horizon']}."
    )


def _meta(environment: Mapping[str, Any]) -> list[str]:
    date, commit = environment.get("date"), environment.get("commit")
    parts = [str(date)] if date else []
    if commit:
        parts.append(Markup("commit <code>{}</code>").format(str(commit)[:12]))
    if environment.get("wall_seconds") is not None:
        parts.append(duration(float(environment["wall_seconds"])))
    return parts


def _columns(artefacts: Artefacts) -> str:
    """What the columns of "same start, every code" are."""
    names, notes = artefacts.code_names, artefacts.code_notes
    if not (names and names[0].startswith("code")):
        return "continuous latents far from each other"
    codes = "the most used combinations of codes" if "·" in names[0] else "the codes"
    if any(note.endswith("of steps") for note in notes):
        codes += " (below each: how often it occurs)"
    elif any(note.startswith("mean") for note in notes):
        codes += " (below each: the mean real action under it)"
    elif any(notes):
        codes += " (below each: the real action seen most under it)"
    return codes


def _horizon(rollout: Mapping[str, Any]) -> list[tuple[str, Markup]]:
    steps = list(range(1, len(rollout["psnr_by_horizon"]) + 1))
    psnr = [
        Series(name, steps, rollout["variants"][name]["psnr_by_horizon"], f"c-{name}")
        for name in sorted(VARIANTS, key=("inferred", "shuffled", "random", "constant").index)
    ]
    ssim = [
        Series("inferred", steps, rollout["ssim_by_horizon"], "c-inferred"),
        Series("last frame", steps, rollout["copy_ssim_by_horizon"], "c-copy"),
    ]
    return [
        (
            name,
            line_chart(
                series,
                title=f"{name} by horizon",
                x_label="predicted step",
                y_label=label,
                x_ticks=steps if len(steps) <= 12 else None,
                points=True,
                width=520,
                margin=86,
            ),
        )
        for name, label, series in (("PSNR", "PSNR, dB", psnr), ("SSIM", "SSIM", ssim))
    ]


def _training(history: History) -> list[tuple[str, Markup]]:
    """Titles and charts of the training curves that are recorded."""
    if not history.rows:
        return []
    x, y = history.curve("loss")
    robust = sorted(y)
    loss_range = None
    if len(robust) >= 20:  # a spike or a first step must not flatten the rest
        low, high = robust[0], robust[int(0.98 * (len(robust) - 1))]
        air = (high - low) * 0.08 or 0.05 * max(abs(high), 1e-6)
        loss_range = (low - air, high + air)
    health = {
        "entropy / log K": "entropy_normalised",
        "utilisation": "utilisation",
        "max usage": "max_usage",
    }
    norms = [(key, *history.curve("grad_norm", key)) for key in history.keys("grad_norm")[:5]]
    charts = {
        "Loss": (
            "loss",
            loss_range,
            [Series("each step", x, y, "raw c-1", label=False), Series("loss", x, _median(y))],
        ),
        "Codebook health": (
            "share",
            (-0.03, 1.05),
            [
                Series(words, *history.curve("codebook", key), f"c-{i}")
                for i, (words, key) in enumerate(health.items(), start=1)
            ],
        ),
        "Gradient norms": (
            "norm",
            None,
            [Series(key, x, _median(y), f"c-{i}") for i, (key, x, y) in enumerate(norms, start=1)],
        ),
    }
    return [
        (
            title,
            line_chart(
                series,
                title=title,
                x_label="step",
                y_label=label,
                bands=history.phases,
                y_range=y_range,
                width=1020,
            ),
        )
        for title, (label, y_range, series) in charts.items()
        if title == "Loss" or any(s.x for s in series)
    ]


def _median(values: list[float]) -> Any:
    return smooth(values, width=max(1, len(values) // 60))


def _probed(artefacts: Artefacts | None) -> list[Markup]:
    """The probe's answers: a confusion matrix, or a scatter plot of each dimension."""
    if artefacts is None or not artefacts.probe_kind:
        return []
    predicted, target = artefacts.probe_predicted, artefacts.probe_target
    if artefacts.probe_kind == "accuracy":
        return [confusion(predicted, target, names=artefacts.action_names)]
    names = artefacts.action_names or tuple(f"action {i}" for i in range(target.shape[1]))
    shown = range(min(8, target.shape[1]))
    return [scatter(predicted[:, i], target[:, i], title=names[i]) for i in shown]


def _details(environment: Mapping[str, Any]) -> dict[str, str]:
    """Rows of the table "To run it again"."""
    rows: dict[str, str] = {}
    for key, value in environment.items():
        if isinstance(value, Mapping):
            rows.update({str(k): str(v) for k, v in value.items()})
        elif key == "wall_seconds":
            rows["wall time"] = duration(float(value))
        else:
            rows[str(key).replace("_", " ")] = str(value)
    return rows
