"""Results for a reader: tables as text and as HTML, and one HTML page that holds its pictures and style, so that it opens anywhere."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure

STYLE = """
:root { color-scheme: light; }
body { font: 16px/1.55 system-ui, -apple-system, "Segoe UI", sans-serif; color: #1d2430; }
body { max-width: 60rem; margin: 2.5rem auto; padding: 0 1.25rem; }
h1 { font-size: 1.7rem; line-height: 1.25; } h2 { font-size: 1.2rem; margin-top: 2.4rem; } h3 { font-size: 1rem; margin: 1.8rem 0 .4rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .35rem .8rem; text-align: right; border-bottom: 1px solid #dde2ea; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; padding-left: 0; }
thead th { border-bottom: 2px solid #1d2430; }
td.chosen { font-weight: 700; background: #e6effa; }
figure { margin: 0; } figcaption { color: #566072; font-size: .9rem; }
.figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(20rem, 1fr)); gap: 1.5rem; }
img { width: 100%; height: auto; }
pre { background: #f5f7fa; padding: .9rem 1rem; overflow-x: auto; font-size: .85rem; }
"""


@dataclass(frozen=True)
class Table:
    """A header and rows of text cells; the first column names the row. `chosen` holds the (row, column) of cells to bring out.

    Example:
        >>> print(Table(("arm", "ECE"), (("single", "0.31"), ("ensemble", "0.12"))))
        arm        ECE
        single    0.31
        ensemble  0.12
    """

    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    chosen: frozenset[tuple[int, int]] = frozenset()

    def __str__(self) -> str:
        lines = (self.header, *self.rows)
        widths = [max((len(line[column]) for line in lines if column < len(line)), default=0) for column in range(len(self.header))]
        return "\n".join(
            "  ".join(
                cell.ljust(width) if column == 0 else cell.rjust(width)
                for column, (cell, width) in enumerate(zip(line, widths, strict=False))
            ).rstrip()
            for line in lines
        )

    def to_markdown(self) -> str:
        """The table in Markdown, ending with a line break."""
        lines = (self.header, ("---",) * len(self.header), *self.rows)
        return "".join(f"| {' | '.join(line)} |\n" for line in lines)

    def to_html(self) -> str:
        """The table as an HTML element; cells are escaped."""
        head = "".join(f'<th scope="col">{html.escape(cell)}</th>' for cell in self.header)
        body = "\n".join(f"<tr>{self._row(index)}</tr>" for index in range(len(self.rows)))
        return f'<div class="scroll"><table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody>\n</table></div>'

    def _row(self, index: int) -> str:
        return "".join(
            f"<td{' class=chosen' if (index, column) in self.chosen else ''}>{html.escape(cell)}</td>"
            for column, cell in enumerate(self.rows[index])
        )


@dataclass(frozen=True)
class Section:
    """A heading and what stands below it, as HTML; `heading`, `paragraph` and the others make such pieces."""

    heading: str
    body: tuple[str, ...]


def paragraph(text: str) -> str:
    """A paragraph of plain text."""
    return f"<p>{html.escape(text)}</p>"


def subheading(text: str) -> str:
    """A heading within a section."""
    return f"<h3>{html.escape(text)}</h3>"


def preformatted(text: str) -> str:
    """Text that keeps its lines and spaces."""
    return f"<pre>{html.escape(text)}</pre>"


def png(figure: Figure) -> bytes:
    """A matplotlib figure as PNG."""
    stream = io.BytesIO()
    figure.savefig(stream, format="png")
    return stream.getvalue()


def pictures(images: Sequence[tuple[bytes, str]]) -> str:
    """PNG images and their captions, side by side where there is room; the images are part of the page.

    Example:
        >>> pictures([(b"...", "a figure")]).count("data:image/png;base64,")
        1
    """
    figures = "\n".join(
        f'<figure><img alt="{html.escape(caption)}" src="data:image/png;base64,{base64.b64encode(image).decode()}">'
        f"<figcaption>{html.escape(caption)}</figcaption></figure>"
        for image, caption in images
    )
    return f'<div class="figures">\n{figures}\n</div>'


def page(title: str, sections: Sequence[Section], *, intro: str) -> str:
    """A whole HTML page that needs no other file and no network.

    Example:
        >>> "<script" in page("Demo", [Section("Result", (paragraph("good"),))], intro="What was done.")
        False
    """
    parts = [f"<section><h2>{html.escape(section.heading)}</h2>\n{chr(10).join(section.body)}\n</section>" for section in sections]
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{html.escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<h1>{html.escape(title)}</h1>\n{paragraph(intro)}\n"
        f"{chr(10).join(parts)}\n</body>\n</html>\n"
    )
