"""An evaluation as text: its numbers, the verdict over them, the same by horizon and as the paper's row.

Plain text of fixed width, so that it reads the same in a terminal, a log and a commit message.
Not here: the numbers and what each means (`measures`), several runs (`comparison.py`), the page.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from colaworld.evaluation.measures import MEASURES
from colaworld.evaluation.measures.measure import FEW_EPISODES, Headline, Measure, number


def headlines(
    result: Mapping[str, Any], measures: Iterable[type[Measure]] | None = None
) -> list[Headline]:
    """The numbers that a run is judged by, in the order of `measures`; None: of MEASURES."""
    found = (measure.headline(result) for measure in measures or MEASURES.values())
    return [_hedged(headline) for headline in found if headline is not None]


def _hedged(headline: Headline) -> Headline:
    """Without the word of its judgement where too few episodes stand behind it."""
    said = headline.judgement
    if said is None or not headline.few:
        return headline
    text = f"It rests on {headline.episodes}; under {FEW_EPISODES} an interval is too narrow."
    said = replace(said, tone="open", word="too few episodes", text=text)
    return replace(headline, judgement=said)


def verdict(result: Mapping[str, Any]) -> str:
    """Two or three plain sentences that a person can repeat."""
    judged = [(h, h.judgement) for h in headlines(result) if h.judgement and h.judgement.clause]
    (steering, said), (_, last), *others = judged
    text = said.clause
    if steering.few:
        text = (
            f"{steering.episodes} episode{'s are' if steering.episodes != 1 else ' is'} too few to "
            f"say: under {FEW_EPISODES} an interval is too narrow. What is seen so far: "
            f"{text[0].lower()}{text[1:]}"
        )
    text += f" {last.clause}"
    for headline, said in others:
        clause, name = said.clause, headline.name.split(",")[0]
        if headline.few:
            clause = f"the {name} rests on {headline.episodes} episodes, too few to say."
        joint = ", and " if (last.tone == "good") == (said.tone == "good") else ", but "
        text += ("; " if said.tone == "open" else joint) + clause
        last = said
    return text


def columns(rows: list[list[str]]) -> str:
    """Rows as text of fixed width, the first above a rule."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["  ".join(c.ljust(w) for c, w in zip(r, widths, strict=True)).rstrip() for r in rows]
    lines.insert(1, "  ".join("-" * w for w in widths))
    return "\n".join(lines)


def beside(results: Mapping[str, Mapping[str, Any]]) -> str:
    """One run on several data sets: see `beside_rows`."""
    return columns(beside_rows(results))


def beside_rows(results: Mapping[str, Mapping[str, Any]]) -> list[list[str]]:
    """A header, then a row for each headline number with a cell for each data set."""
    found = {name: {h.name: h for h in headlines(result)} for name, result in results.items()}
    named = list(dict.fromkeys(name for cells in found.values() for name in cells))
    rows = [["", *results]]
    for name in named:
        cells = [cells[name].text() if name in cells else "-" for cells in found.values()]
        rows.append([name, *cells])
    counts = [result["counts"]["episodes"] for result in results.values()]
    episodes = [f"{n}{' (too few)' if n < FEW_EPISODES else ''}" for n in counts]
    return [*rows, ["episodes", *episodes]]


def table(result: Mapping[str, Any]) -> str:
    """One run: its numbers with 95 % intervals and what to compare them with."""
    rows = [["", "held-out", "compare with"]]
    rows += [[h.name, h.text(), h.note] for h in headlines(result)]
    counts = result["counts"]
    return (
        columns(rows)
        + f"\n{counts['clips']} clips of {counts['episodes']} episodes, {counts['horizon']} steps; "
        "95 % intervals over episodes"
    )


SHOWN_STEPS = (1, 4, 8)  # and the last


def horizon_rows(result: Mapping[str, Any]) -> list[list[str]]:
    """A header, then fidelity under inferred actions at some predicted steps, with 95 % intervals.

    PSNR and SSIM; LPIPS where it was measured; the Frechet distance over the frames up to a step.
    """
    inferred = result["rollout"]["variants"]["inferred"]
    lines = {
        "PSNR, dB": ("psnr", 2, inferred),
        "SSIM": ("ssim", 3, inferred | {"ssim_by_horizon": result["rollout"]["ssim_by_horizon"]}),
    }
    if lpips := result.get("lpips"):
        lines[lpips["name"]] = ("lpips", 3, lpips["variants"]["inferred"])
    frechet = result.get("frechet") or {"by_horizon": {}}
    last = result["counts"]["horizon"]
    steps = {*SHOWN_STEPS, last, *map(int, frechet["by_horizon"])}
    rows = [["step", *lines]]
    for step in sorted(step for step in steps if step <= last):
        row = [str(step)]
        for what, digits, line in lines.values():
            at = [
                (line.get(f"{what}{end}_by_horizon") or [None] * last)[step - 1]
                for end in ("", "_low", "_high")
            ]
            mean, low, high = (number(value, digits=digits) for value in at)
            row.append(mean if None in at else f"{mean} [{low}, {high}]")
        rows.append(row)
    if frechet["by_horizon"]:
        values = [number(frechet["by_horizon"].get(row[0])) for row in rows[1:]]
        rows = [[*row, cell] for row, cell in zip(rows, [frechet["name"], *values], strict=True)]
    return rows


def paper_row(result: Mapping[str, Any]) -> dict[str, float | None]:
    """The columns of the paper's table of video quality, under inferred actions; None: not measured.

    PSNR (dB), SSIM x 100, LPIPS x 100 and FVD (arXiv 2510.26433), averaged over the horizon. LPIPS and
    FVD only by the published weights.
    """
    lpips, frechet = result.get("lpips"), result.get("frechet")
    ssim = result["rollout"].get("ssim") or {"mean": None}
    distance = lpips["mean"] if lpips and lpips["published"] else None
    return {
        "psnr": result["rollout"]["psnr"]["mean"],
        "ssim_x100": None if ssim["mean"] is None else 100 * ssim["mean"],
        "lpips_x100": None if distance is None else 100 * distance,
        "fvd": frechet["value"] if frechet and frechet["name"] == "FVD" else None,
    }


def paper_rows(results: Mapping[str, Mapping[str, Any]]) -> list[list[str]]:
    """A header, then the paper's columns for evaluations by name."""
    rows = [["as the paper's table", "PSNR", "SSIM x100", "LPIPS x100", "FVD"]]
    return rows + [[name, *map(number, paper_row(r).values())] for name, r in results.items()]
