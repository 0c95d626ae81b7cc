"""What the pages have in common: their frame, style sheet and filters. Not here: what stands on any.

A page is a template that extends frame.html and fills its block `content`; it may lie in a folder of its
own. parts.html has its pictures and tables.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from colaworld.evaluation.measures.measure import number
from colaworld.files import write_atomically

_HERE = Path(__file__).parent
_FOOT = "Written by colaworld. This file needs nothing but itself."


def write_page(
    path: str | Path, template: Path, *, title: str, foot: str = _FOOT, **values: Any
) -> Path:
    """Write the page of a template file and what it says, atomically; its path."""
    environment = Environment(
        loader=FileSystemLoader([template.parent, _HERE]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["minus"] = _minus
    environment.filters["number"] = lambda value, digits=2: _minus(number(value, digits=digits))
    environment.filters["interval"] = _interval
    css = Markup((_HERE / "report.css").read_text())
    page = environment.get_template(template.name).render(title=title, foot=foot, css=css, **values)
    write_atomically(path, page + "\n")
    return Path(path)


def _minus(text: str) -> str:
    return text.replace("-", "−")


def _interval(found: Mapping[str, Any]) -> str:
    """ "0.50 (0.40 to 0.60)" of {mean, low, high}; the mean alone where there are no bounds."""
    mean, low, high = (found[key] for key in ("mean", "low", "high"))
    bounds = f" ({number(low)} to {number(high)})" if None not in (low, high) else ""
    return _minus(number(mean) + bounds)
