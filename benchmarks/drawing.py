"""A drawing as a list of marks, written as SVG or PNG. No plotting library is needed.

Not here: what is drawn (plots.py). Coordinates are pixels from the top left.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from html import escape
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

_FINE = 2  # the PNG is drawn this many times larger than the SVG: sharp on dense screens
_FONT = "system-ui, -apple-system, Segoe UI, Roboto, Liberation Sans, Arial, sans-serif"


@dataclass
class Drawing:
    """Marks in the order in which they are put down."""

    width: int
    height: int
    title: str
    marks: list[tuple] = field(default_factory=list)

    def rectangle(self, x: float, y: float, w: float, h: float, colour: str) -> None:
        self.marks.append(("rectangle", x, y, max(w, 0.5), h, colour))

    def line(
        self,
        points: list[tuple[float, float]],
        colour: str,
        *,
        thick: float = 1,
        dash: bool = False,
    ) -> None:
        self.marks.append(("line", points, colour, thick, dash))

    def dot(self, x: float, y: float, radius: float, colour: str) -> None:
        self.marks.append(("dot", x, y, radius, colour))

    def text(
        self,
        x: float,
        y: float,
        words: str,
        *,
        size: int = 12,
        colour: str = "#23272d",
        anchor: str = "start",
        bold: bool = False,
    ) -> None:
        """`y` is the base line; `anchor` start, middle or end of the words stands at x."""
        self.marks.append(("text", x, y, words, size, colour, anchor, bold))

    def svg(self) -> str:
        """One <svg> element."""
        out = [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {self.width} {self.height}" '
            f'width="{self.width}" role="img" aria-label="{escape(self.title, quote=True)}" '
            f'font-family="{_FONT}">',
            f'<rect width="{self.width}" height="{self.height}" fill="#ffffff"/>',
        ]
        for kind, *mark in self.marks:
            if kind == "rectangle":
                x, y, w, h, colour = mark
                out.append(
                    f'<rect x="{x:.1f}" y="{y:.1f}" width="{w:.1f}" height="{h:.1f}" '
                    f'fill="{colour}"/>'
                )
            elif kind == "line":
                points, colour, thick, dash = mark
                path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
                dashed = ' stroke-dasharray="5 4"' if dash else ""
                out.append(
                    f'<polyline points="{path}" fill="none" stroke="{colour}" '
                    f'stroke-width="{thick}"{dashed}/>'
                )
            elif kind == "dot":
                x, y, radius, colour = mark
                out.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius}" fill="{colour}"/>')
            else:
                x, y, words, size, colour, anchor, bold = mark
                weight = ' font-weight="600"' if bold else ""
                out.append(
                    f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" fill="{colour}" '
                    f'text-anchor="{anchor}"{weight}>{escape(words)}</text>'
                )
        return "\n".join([*out, "</svg>"])

    def png(self, path: Path) -> Path:
        """The same marks through Pillow. Dashes become thin lines."""
        image = Image.new("RGB", (self.width * _FINE, self.height * _FINE), "#ffffff")
        draw = ImageDraw.Draw(image)
        for kind, *mark in self.marks:
            if kind == "rectangle":
                x, y, w, h, colour = mark
                box = (x * _FINE, y * _FINE, (x + w) * _FINE, (y + h) * _FINE)
                draw.rectangle(box, fill=colour)
            elif kind == "line":
                points, colour, thick, dash = mark
                scaled = [(x * _FINE, y * _FINE) for x, y in points]
                draw.line(scaled, fill=colour, width=1 if dash else max(1, round(thick * _FINE)))
            elif kind == "dot":
                x, y, radius, colour = (mark[0], mark[1], mark[2], mark[3])
                box = [(v + s * radius) * _FINE for s in (-1, 1) for v in (x, y)]
                draw.ellipse(box, fill=colour)
            else:
                x, y, words, size, colour, anchor, bold = mark
                font = ImageFont.load_default(size * _FINE)
                side = {"start": "ls", "middle": "ms", "end": "rs"}[anchor]
                draw.text(
                    (x * _FINE, y * _FINE),
                    words,
                    fill=colour,
                    font=font,
                    anchor=side,
                    stroke_width=1 if bold else 0,
                    stroke_fill=colour,
                )
        image.save(path)
        return path
