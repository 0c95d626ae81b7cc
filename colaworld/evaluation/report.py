"""One HTML file that says in a minute what a run did and how good it is.

Self-contained: styles, charts and pictures are inside, there is no script and no request (the page
forbids them to itself). Not here: the numbers (`evaluate.py`), charts, cards and galleries.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from html import escape
from pathlib import Path
from typing import Any

from colaworld.evaluation.artefacts import Artefacts
from colaworld.evaluation.cards import cards, verdict
from colaworld.evaluation.charts import Series, confusion, line_chart, scatter, smooth
from colaworld.evaluation.files import write_atomically
from colaworld.evaluation.galleries import every_code, strips
from colaworld.evaluation.history import History, read_history
from colaworld.evaluation.style import CSS
from colaworld.evaluation.tables import comparison_rows, number

_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


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
    body = [
        f"<h1>{escape(title)}</h1>",
        f'<p class="meta">{_meta(environment)}</p>',
        f'<p class="lead">{escape(summary or what_ran(evaluation, history, environment))}</p>',
        f'<p class="verdict">{escape(verdict(evaluation))}</p>',
        cards(evaluation),
        _numbers_note(evaluation),
    ]
    if compare:
        body.append(_comparison(compare))
    if artefacts is not None:
        body.append(_grid(artefacts))
        body.append(_strips(artefacts))
    body.append(_horizon(evaluation))
    body.append(_training(history))
    body.append(_probe(evaluation, artefacts))
    body.append(_reproduce(config_yaml, environment))
    page = (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<link rel="icon" href="data:,">'
        f"<title>{escape(title)}</title><style>{CSS}</style></head>"
        f"<body><main>{''.join(body)}</main></body></html>\n"
    )
    write_atomically(path, page)
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


def _meta(environment: Mapping[str, Any]) -> str:
    parts = []
    if environment.get("date"):
        parts.append(escape(str(environment["date"])))
    if environment.get("commit"):
        parts.append(f"commit <code>{escape(str(environment['commit'])[:12])}</code>")
    if environment.get("wall_seconds") is not None:
        parts.append(escape(duration(float(environment["wall_seconds"]))))
    return " · ".join(parts)


def _numbers_note(evaluation: Mapping[str, Any]) -> str:
    return (
        '<p class="sub" style="margin-top:.9rem">Ranges are 95 % intervals over episodes. '
        "delta-PSNR compares rollouts from one start with one noise: the actions read off the true "
        "future against others. Shuffled actions are another clip’s; a constant action is one code "
        "held throughout.</p>"
    )


def _comparison(results: Mapping[str, Mapping[str, Any]]) -> str:
    header, *rows = comparison_rows(results)
    head = "".join(f'<th scope="col">{escape(c)}</th>' for c in header)
    lines = []
    for name, *values in rows:
        cells = "".join(f"<td>{escape(v.replace('-', '−'))}</td>" for v in values)
        lines.append(f'<tr><th scope="row">{escape(name)}</th>{cells}</tr>')
    return (
        "<section><h2>Runs side by side</h2>"
        '<p class="sub">Other ways to train, evaluated alike.</p>'
        f'<div class="scroll"><table class="plain"><thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(lines)}</tbody></table></div></section>"
    )


def _grid(artefacts: Artefacts) -> str:
    steps = artefacts.every_code.shape[2] - 1
    names, notes = artefacts.code_names, artefacts.code_notes
    codes = "continuous latents far from each other"
    if names and names[0].startswith("code"):
        codes = "the most used combinations of codes" if "·" in names[0] else "the codes"
        if any(note.endswith("of steps") for note in notes):
            codes += " (below each: how often it occurs)"
        elif any(note.startswith("mean") for note in notes):
            codes += " (below each: the mean real action under it)"
        elif any(notes):
            codes += " (below each: the real action seen most under it)"
    return (
        "<section><h2>Same start, every code</h2>"
        f'<p class="sub">Each row starts from one frame; each column holds one action for {steps} '
        f"steps: {codes}. A world that is steered shows a different, consistent motion in each "
        f"column.</p>{every_code(artefacts)}</section>"
    )


def _strips(artefacts: Artefacts) -> str:
    return (
        "<section><h2>Inferred actions against the truth</h2>"
        '<p class="sub">What happened, what the world draws when it is told the inferred actions, '
        "and what it draws under random ones, from the same frames and the same noise.</p>"
        f"{strips(artefacts)}</section>"
    )


def _horizon(evaluation: Mapping[str, Any]) -> str:
    rollout = evaluation["rollout"]
    steps = list(range(1, len(rollout["psnr_by_horizon"]) + 1))
    names = {
        "inferred": "inferred",
        "shuffled": "shuffled",
        "random": "random",
        "constant": "constant",
    }
    shown = steps if len(steps) <= 12 else None
    psnr = line_chart(
        [
            Series(words, steps, rollout["variants"][key]["psnr_by_horizon"], f"c-{key}")
            for key, words in names.items()
        ],
        title="PSNR by horizon",
        x_label="predicted step",
        y_label="PSNR, dB",
        x_ticks=shown,
        points=True,
        width=520,
        height=250,
        margin=86,
    )
    ssim = line_chart(
        [
            Series("inferred", steps, rollout["ssim_by_horizon"], "c-inferred"),
            Series("last frame", steps, rollout["copy_ssim_by_horizon"], "c-copy"),
        ],
        title="SSIM by horizon",
        x_label="predicted step",
        y_label="SSIM",
        x_ticks=shown,
        points=True,
        width=520,
        height=250,
        margin=86,
    )
    return (
        "<section><h2>How far ahead</h2>"
        '<p class="sub">The gap between “inferred” and the other actions is the steering. “Last '
        "frame” repeats the last given frame: what a world without motion would score.</p>"
        f'<div class="two"><div><h3>PSNR</h3><figure>{psnr}</figure></div>'
        f"<div><h3>SSIM</h3><figure>{ssim}</figure></div></div></section>"
    )


def _training(history: History) -> str:
    if not history.rows:
        return "<section><h2>Training</h2><p>No training steps are recorded.</p></section>"
    bands = history.phases
    x, y = history.curve("loss")
    width = max(1, len(y) // 60)
    robust = sorted(y)
    loss_range = None
    if len(robust) >= 20:  # a spike or a first step must not flatten the rest
        low, high = robust[0], robust[int(0.98 * (len(robust) - 1))]
        air = (high - low) * 0.08 or 0.05 * max(abs(high), 1e-6)
        loss_range = (low - air, high + air)
    loss = line_chart(
        [
            Series("each step", x, y, "raw c-1", label=False),
            Series("loss", x, smooth(y, width=width), "c-1"),
        ],
        title="Loss",
        x_label="step",
        y_label="loss",
        bands=bands,
        y_range=loss_range,
        width=1020,
    )
    figures = [f"<h3>Loss</h3><figure>{loss}</figure>"]
    health = [
        Series(words, *history.curve("codebook", key), style)
        for key, words, style in (
            ("entropy_normalised", "entropy / log K", "c-1"),
            ("utilisation", "utilisation", "c-2"),
            ("max_usage", "max usage", "c-3"),
        )
    ]
    if any(s.x for s in health):
        chart = line_chart(
            health,
            title="Codebook health",
            x_label="step",
            y_label="share",
            bands=bands,
            y_range=(-0.03, 1.05),
            width=1020,
        )
        figures.append(f"<h3>Codebook health</h3><figure>{chart}</figure>")
    norms = [
        Series(key, *history.curve("grad_norm", key), f"c-{i % 5 + 1}")
        for i, key in enumerate(history.keys("grad_norm")[:5])
    ]
    folded = ""
    if any(s.x for s in norms):
        smoothed = [
            Series(s.name, s.x, smooth(s.y, width=max(1, len(s.y) // 60)), s.style) for s in norms
        ]
        chart = line_chart(
            smoothed,
            title="Gradient norms",
            x_label="step",
            y_label="norm",
            bands=bands,
            width=1020,
        )
        folded = (
            f"<details><summary>Gradient norms by part</summary><figure>{chart}</figure></details>"
        )
    return (
        "<section><h2>Training</h2>"
        '<p class="sub">Shaded stretches are the phases. The loss is a running median over single '
        f"steps.</p>{''.join(figures)}{folded}</section>"
    )


def _probe(evaluation: Mapping[str, Any], artefacts: Artefacts | None) -> str:
    probe = evaluation.get("probe")
    if probe is None:
        reason = escape(str(evaluation.get("probe_skipped") or "not run"))
        return (
            "<section><h2>Do codes mean actions?</h2>"
            f"<p>The linear probe was skipped: {reason}.</p></section>"
        )
    discrete = probe["kind"] == "accuracy"
    rows = [
        (
            "accuracy" if discrete else "R²",
            *_scores(probe["score"], probe["chance"], probe["pixel_difference"]),
        )
    ]
    extra = "macro_f1" if discrete else "l1"
    rows.append(
        (
            "macro F1" if discrete else "L1, in standard deviations",
            *_scores(probe[extra], probe[f"{extra}_chance"], probe[f"{extra}_pixel_difference"]),
        )
    )
    lines = "".join(
        f'<tr><th scope="row">{n}</th><td>{a}</td><td>{c}</td><td>{p}</td></tr>'
        for n, a, c, p in rows
    )
    picture = ""
    if artefacts is not None and artefacts.probe_kind:
        predicted, target = artefacts.probe_predicted, artefacts.probe_target
        if discrete:
            chart = confusion(predicted, target, names=artefacts.action_names)
            picture = f'<div class="scroll">{chart}</div>'
        else:
            names = artefacts.action_names or tuple(f"action {i}" for i in range(target.shape[1]))
            panels = [
                scatter(predicted[:, i], target[:, i], title=names[i])
                for i in range(min(8, target.shape[1]))
            ]
            picture = f'<div class="scatter">{"".join(panels)}</div>'
    return (
        "<section><h2>Do codes mean actions?</h2>"
        '<p class="sub">A linear map from the latent to the real action, fitted on '
        f"{probe['train_rows']:,} steps and tested on {probe['test_rows']:,} of "
        f"{probe['test_episodes']} other episodes. Training never saw a real action.</p>"
        '<table class="plain"><thead><tr><th></th><th scope="col">latent actions</th>'
        '<th scope="col">chance</th><th scope="col">raw pixel difference</th></tr></thead>'
        f"<tbody>{lines}</tbody></table>{picture}</section>"
    )


def _scores(score: Mapping[str, Any], chance: float | None, pixels: float | None) -> list[str]:
    shown = number(score["mean"])
    if score["low"] is not None and score["high"] is not None:
        shown += f" ({number(score['low'])} to {number(score['high'])})"
    return [v.replace("-", "−") for v in (shown, number(chance), number(pixels))]


def _reproduce(config_yaml: str, environment: Mapping[str, Any]) -> str:
    flat: dict[str, Any] = {}
    for key, value in environment.items():
        if isinstance(value, Mapping):
            flat.update({str(k): v for k, v in value.items()})
        elif key == "wall_seconds":
            flat["wall time"] = duration(float(value))
        else:
            flat[str(key).replace("_", " ")] = value
    rows = "".join(
        f'<tr><th scope="row">{escape(k)}</th><td>{escape(str(v))}</td></tr>'
        for k, v in flat.items()
    )
    return (
        "<section><h2>To run it again</h2>"
        f'<div class="scroll"><table class="plain"><tbody>{rows}</tbody></table></div>'
        "<details><summary>Configuration</summary>"
        f"<pre>{escape(config_yaml)}</pre></details></section>"
        "<footer>Written by colaworld. This file needs nothing but itself.</footer>"
    )
