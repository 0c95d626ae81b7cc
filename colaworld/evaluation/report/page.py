"""One HTML file that says in a minute what a run did and how good it is.

Self-contained: styles, charts and pictures are inside, there is no script and no request (the page
forbids them to itself). Not here: the numbers (`evaluate.py`), the markup (`page.html`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from markupsafe import Markup

from colaworld.evaluation.artefacts import Artefacts
from colaworld.evaluation.comparison import Comparison, comparison
from colaworld.evaluation.layout import check
from colaworld.evaluation.report import charts
from colaworld.evaluation.report.charts import Series
from colaworld.evaluation.report.templates import write_page
from colaworld.evaluation.report.tiles import code_blocks, shown_frames, strips
from colaworld.evaluation.report.training_curves import History, read_history
from colaworld.evaluation.tables import beside_rows, headlines, horizon_rows, paper_rows, verdict

_TEMPLATE = Path(__file__).with_name("page.html")


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
    sets: Mapping[str, Mapping[str, Any]] | None = None,
    curves: Mapping[str, Sequence[Mapping[str, Any]]] | None = None,
) -> Path:
    """Write the page, atomically.

    Args:
        evaluation: the result of `run_evaluation`, or evaluation.json read back.
        artefacts: the pictures, or the path of evaluation.npz, or None to leave them out.
        metrics_jsonl: the run's metrics.jsonl or its rows.
        config_yaml: the resolved configuration, shown as it is.
        environment: "commit", "date", "wall_seconds" and colaworld's version appear under the title,
            "versions" (a dict) and whatever else there is in a table.
        compare: evaluations of several runs by name, shown side by side.
        sets: evaluations of this run on several data sets by name, shown side by side.
        curves: of this run and of those compared with it, rows of evaluations.jsonl.

    Returns:
        The path. Raises FileError where `evaluation` lacks a key or holds something else under it.
    """
    check(evaluation, source="evaluation")
    compared = comparison(compare) if compare else None
    alike = {name: compare[name] for name in compared.alike} if compared and compare else {}
    if isinstance(artefacts, (str, Path)):
        artefacts = Artefacts.load(artefacts)
    history, seconds = read_history(metrics_jsonl), environment.get("wall_seconds")
    found = headlines(evaluation)
    pictures: dict[str, Any] = {}
    if artefacts is not None:
        pictures = {
            "columns": _columns(artefacts),
            "code_blocks": code_blocks(artefacts),
            "frames": shown_frames(artefacts),
            "strips": strips(artefacts),
        }
    return write_page(
        path,
        _TEMPLATE,
        title=title,
        environment={"date": "", "commit": "", **environment},
        version=(environment.get("versions") or {}).get("colaworld"),
        took=None if seconds is None else duration(float(seconds)),
        trained={b.name: round(b.stop - b.start) for b in history.phases},
        verdict=verdict(evaluation),
        headlines=[h for h in found if h.judgement is not None and not h.control],
        controls=[h for h in found if h.control],
        whisker=charts.whisker,
        compared=compared,
        compared_charts=_compared(compared, compare) if compared and compare else {},
        artefacts=artefacts,
        horizon=_horizon(evaluation),
        by_step=horizon_rows(evaluation),
        as_paper=paper_rows(alike or {"this run": evaluation}),
        left_out=_left_out(evaluation),
        training=_training(history) | _growth(curves or {}, history),
        sets=beside_rows(sets) if sets else [],
        evaluation={**dict.fromkeys(_MAYBE), **evaluation},
        probed=_probed(artefacts),
        details=_details(environment),
        config_yaml=config_yaml,
        **pictures,
    )


# keys that an older evaluation lacks
_MAYBE = ("probe", "probe_skipped", "mlp_probe", "information", "segments")


def duration(seconds: float) -> str:
    """48 s, 11 min 20 s, 2 h 05 min."""
    whole = round(seconds)
    if whole < 90:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


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


_LINES = {  # variant -> its name in charts
    "inferred": "inferred",
    "shuffled": "shuffled",
    "random": "random",
    "constant": "constant",
    "none": "no action",
    "copy": "last frame",
}

_SHADED = ("inferred", "random", "copy")  # five shades on each other tell nothing


def _left_out(evaluation: Mapping[str, Any]) -> list[str]:
    """Why LPIPS and FVD are not there, where an evaluation says so."""
    why = {name: evaluation.get(f"{name}_skipped") for name in ("lpips", "frechet")}
    named = {"lpips": "LPIPS", "frechet": "FVD"}
    return [f"{named[name]}: {reason}" for name, reason in why.items() if reason]


def _horizon(evaluation: Mapping[str, Any]) -> dict[str, Markup]:
    """PSNR and SSIM by step of every variant there is, and LPIPS where it was measured.

    An older evaluation has SSIM of two, and no bounds.
    """
    found, rollout = {}, evaluation["rollout"]
    kinds = {"psnr": "PSNR, dB", "ssim": "SSIM"}
    variants = {kind: rollout["variants"] for kind in kinds}
    if lpips := evaluation.get("lpips"):
        kinds["lpips"], variants["lpips"] = lpips["name"], lpips["variants"]
    for kind, unit in kinds.items():
        lines = {
            name: variants[kind][name]
            for name in _LINES
            if f"{kind}_by_horizon" in variants[kind].get(name, ())
        } or {
            "inferred": {"ssim_by_horizon": rollout["ssim_by_horizon"]},
            "copy": {"ssim_by_horizon": rollout["copy_ssim_by_horizon"]},
        }
        series = [
            Series(
                _LINES[name],
                range(1, len(line[f"{kind}_by_horizon"]) + 1),
                line[f"{kind}_by_horizon"],
                f"c-{name}",
                low=line.get(f"{kind}_low_by_horizon", ()) if name in _SHADED else (),
                high=line.get(f"{kind}_high_by_horizon", ()),
            )
            for name, line in lines.items()
        ]
        found[kind.upper()] = _by_step(series, title=f"{kind.upper()} by horizon", y_label=unit)
    return found


def _compared(found: Comparison, results: Mapping[str, Mapping[str, Any]]) -> dict[str, Markup]:
    """PSNR by step of all runs that were evaluated alike, and of repeating the last frame."""
    if len(found.alike) < 2:
        return {}
    lines = {name: results[name]["rollout"] for name in found.alike[:6]}
    lines["last frame"] = lines[found.alike[0]]["variants"]["copy"]
    styles = [*(f"c-{i}" for i in (1, 2, 3, 4, 6, 7)[: len(lines) - 1]), "c-copy"]
    series = [
        Series(name, range(1, len(line["psnr_by_horizon"]) + 1), line["psnr_by_horizon"], style)
        for (name, line), style in zip(lines.items(), styles, strict=True)
    ]
    title = "PSNR under inferred actions"
    margin = 30 + 7 * max(len(name) for name in lines)
    return {title: _by_step(series, title=title, y_label="PSNR, dB", margin=margin)}


def _by_step(series: list[Series], *, margin: int = 86, **words: str) -> Markup:
    steps = list(series[0].x)
    shown = steps if len(steps) <= 12 else None
    return _twice(
        series,
        x_label="predicted step",
        x_ticks=shown,
        points=True,
        margin=margin,
        width=520,
        **words,
    )


def _twice(series: list[Series], *, width: int, **options: Any) -> Markup:
    """A chart as wide as the page has room for, and one to be read on a telephone."""
    wide = charts.line_chart(series, width=width, **options)
    narrow = charts.line_chart(series, width=380, about=4, **options)
    return Markup('<div class="wide">{}</div><div class="narrow">{}</div>').format(wide, narrow)


def _training(history: History) -> dict[str, Markup]:
    """Charts of what is recorded, by title; none of a run that has not trained."""
    if not history.rows:
        return {}
    draw = partial(_twice, x_label="step", bands=history.phases, width=1020)
    x, y = history.curve("loss")
    robust, spread = sorted(y), None
    if len(robust) >= 20:  # a spike or a first step must not flatten the rest
        low, high = robust[0], robust[int(0.98 * (len(robust) - 1))]
        air = (high - low) * 0.08 or 0.05 * max(abs(high), 1e-6)
        spread = (low - air, high + air)
    lines = [Series("each step", x, y, "raw c-1", label=False), Series("loss", x, _median(y))]
    shown = {"Loss": draw(lines, title="Loss", y_label="loss", y_range=spread)}
    named = ("entropy / log K", "utilisation", "max usage")
    keys = ("entropy_normalised", "utilisation", "max_usage")
    health = [
        Series(name, *history.curve("codebook", key), f"c-{i}")
        for i, (name, key) in enumerate(zip(named, keys, strict=True), start=1)
    ]
    if any(s.x for s in health):
        title = "Codebook health"
        shown[title] = draw(health, title=title, y_label="share", y_range=(-0.03, 1.05))
    title = "Control on held-out clips"
    control = Series("1 - inferred / shuffled loss", *history.curve("control", "control"), "c-1")
    if len(control.x) > 1:
        shown[title] = draw([control], title=title, y_label="share")
    title = "Probe of held-out codes"
    names = {"score": "accuracy or R²", "chance": "chance"}
    probe = [
        Series(name, *history.curve("probe", key), f"c-{i}")
        for i, (key, name) in enumerate(names.items(), start=1)
    ]
    if len(probe[0].x) > 1:
        shown[title] = draw(probe, title=title, y_label="score")
    norms = []
    for i, key in enumerate(history.keys("grad_norm")[:5], start=1):
        x, y = history.curve("grad_norm", key)
        norms.append(Series(key, x, _median(y), f"c-{i}"))
    if any(s.x for s in norms):
        shown["Gradient norms"] = draw(norms, title="Gradient norms", y_label="norm")
    return shown


_GROWTH = {
    "Control while it trained": ("delta_psnr", "PSNR over random actions, dB"),
    "Meaning while it trained": ("probe", "probe score"),
}


def _growth(
    curves: Mapping[str, Sequence[Mapping[str, Any]]], history: History
) -> dict[str, Markup]:
    """delta-PSNR and probe of the checkpoints that were evaluated, with 95 % intervals."""
    shown = {}
    for title, (key, label) in _GROWTH.items():
        series = []
        for i, (name, rows) in enumerate(curves.items(), start=1):
            told = [row for row in rows if (row.get(key) or {}).get("mean") is not None]
            low, high = ([row[key][side] for row in told] for side in ("low", "high"))
            bounded = None not in low + high
            series.append(
                Series(
                    name,
                    [row["global_step"] for row in told],
                    [row[key]["mean"] for row in told],
                    f"c-{i}",
                    low=low if bounded else (),
                    high=high if bounded else (),
                )
            )
        if any(len(s.x) > 1 for s in series):
            bands = history.phases if len(series) == 1 else ()
            shown[title] = _twice(
                series,
                title=title,
                x_label="step",
                y_label=label,
                bands=bands,
                points=True,
                width=1020,
            )
    return shown


def _median(values: list[float]) -> Any:
    return charts.smooth(values, width=max(1, len(values) // 60))


def _probed(artefacts: Artefacts | None) -> list[Markup]:
    """The probe's answers: a confusion matrix, or a scatter plot of each dimension."""
    if artefacts is None or not artefacts.probe_kind:
        return []
    predicted, target = artefacts.probe_predicted, artefacts.probe_target
    if artefacts.probe_kind == "accuracy":
        return [charts.confusion(predicted, target, names=artefacts.action_names)]
    names = artefacts.action_names or tuple(f"action {i}" for i in range(target.shape[1]))
    shown = range(min(8, target.shape[1]))
    return [charts.scatter(predicted[:, i], target[:, i], title=names[i]) for i in shown]


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
