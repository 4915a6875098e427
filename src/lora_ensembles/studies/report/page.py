"""Results for a reader: tables as text, Markdown and HTML, and one HTML page that holds its pictures and
style, so that it opens anywhere.

A `Block` (`Table`, `Text`, `Heading`, `Code`, `Picture`, `Beside`) can be both HTML and Markdown; a `Chapter`
is a heading and its blocks.
"""

from __future__ import annotations

import base64
import html
import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from matplotlib.figure import Figure

STYLE = """
:root { color-scheme: light; }
body { font: 16px/1.55 system-ui, -apple-system, "Segoe UI", sans-serif; color: #1d2430; }
body { max-width: 64rem; margin: 2.5rem auto; padding: 0 1.25rem; }
h1 { font-size: 1.7rem; line-height: 1.25; } h2 { font-size: 1.2rem; margin-top: 2.4rem; } \
h3 { font-size: 1rem; margin: 1.8rem 0 .4rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .85rem; line-height: 1.4; }
th, td { padding: .35rem .55rem; text-align: right; border-bottom: 1px solid #dde2ea; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; padding-left: 0; }
thead th { border-bottom: 2px solid #1d2430; white-space: normal; vertical-align: bottom; }
table.many { font-size: .75rem; } .many th, .many td { padding: .35rem .2rem; } \
.many td.prose { min-width: 9.5rem; }
td.prose { white-space: normal; min-width: 16rem; } th.prose, td.prose { text-align: left; }
td.chosen { font-weight: 700; background: #e6effa; } td.against { font-weight: 700; background: #fbe3d6; }
nav summary { font-weight: 700; } nav ol { columns: 20rem; padding-left: 1.2rem; font-size: .9rem; } \
h3 a, nav a, td a { color: #1b5fa8; }
figure { margin: 0; } figcaption { color: #566072; font-size: .9rem; }
.figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(20rem, 1fr)); gap: 1.5rem; }
img { width: 100%; height: auto; }
.beside { display: grid; grid-template-columns: repeat(auto-fit, minmax(18rem, 1fr)); gap: 0 2rem; \
color: #3a4353; font-size: .9rem; }
.beside h4 { margin: .8rem 0 0; font-size: .9rem; color: #1d2430; } .beside p { margin: .2rem 0 0; }
figure.wide img { max-width: 52rem; }
pre { background: #f5f7fa; padding: .9rem 1rem; overflow-x: auto; font-size: .85rem; }
"""


MANY = 8  # columns, from which on a table is set in smaller type, so that it still fits the page


@dataclass(frozen=True)
class Table:
    """A header and rows of text cells; the first column names the row.

    Attributes:
        chosen, against: the (row, column) of cells to bring out, as good and as bad.
        prose: the columns of sentences, which may break into lines.
        links: the anchor of the page that a cell leads to.

    Example:
        >>> print(Table(("arm", "ECE"), (("single", "0.31"), ("ensemble", "0.12"))))
        arm        ECE
        single    0.31
        ensemble  0.12
    """

    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    chosen: frozenset[tuple[int, int]] = frozenset()
    against: frozenset[tuple[int, int]] = frozenset()
    prose: frozenset[int] = frozenset()
    links: Mapping[tuple[int, int], str] = field(default_factory=dict)

    def __str__(self) -> str:
        lines = (self.header, *self.rows)
        widths = [
            max((len(line[column]) for line in lines if column < len(line)), default=0)
            for column in range(len(self.header))
        ]
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
        return "".join(
            f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |\n" for line in lines
        )

    def to_html(self) -> str:
        """The table as an HTML element; cells are escaped."""
        head = "".join(
            f'<th scope="col"{" class=prose" if column in self.prose else ""}>{html.escape(cell)}</th>'
            for column, cell in enumerate(self.header)
        )
        body = "\n".join(f"<tr>{self._row(index)}</tr>" for index in range(len(self.rows)))
        many = " class=many" if len(self.header) > MANY else ""
        table = f"<table{many}>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody>\n</table>"
        return f'<div class="scroll">{table}</div>'

    def _row(self, index: int) -> str:
        return "".join(
            f"<td{self._style(index, column)}>{self._cell(index, column)}</td>"
            for column in range(len(self.rows[index]))
        )

    def _cell(self, index: int, column: int) -> str:
        text, anchor = html.escape(self.rows[index][column]), self.links.get((index, column))
        return text if anchor is None else f'<a href="#{anchor}">{text}</a>'

    def _style(self, index: int, column: int) -> str:
        if (index, column) in self.chosen:
            return " class=chosen"
        if (index, column) in self.against:
            return " class=against"
        return " class=prose" if column in self.prose else ""


class Block(Protocol):
    """A piece of a page, which can be both HTML and Markdown."""

    def to_html(self) -> str: ...

    def to_markdown(self) -> str: ...


@dataclass(frozen=True)
class Text:
    """A paragraph; what stands between backticks is code.

    Example:
        >>> Text("if `a < b`").to_html()
        '<p>if <code>a &lt; b</code></p>'
    """

    text: str

    def to_html(self) -> str:
        return re.sub(r"`([^`]+)`", r"<code>\1</code>", paragraph(self.text))

    def to_markdown(self) -> str:
        return f"{self.text}\n"


@dataclass(frozen=True)
class Heading:
    """A heading within a chapter, and the anchor that leads to it; none: made of its text.

    Example:
        >>> Heading("Table 1: LoRA").to_html()
        '<h3 id="table-1-lora">Table 1: LoRA</h3>'
    """

    text: str
    anchor: str = ""

    def to_html(self) -> str:
        return f'<h3 id="{self.anchor or slug(self.text)}">{html.escape(self.text)}</h3>'

    def to_markdown(self) -> str:
        return f"### {self.text}\n"


@dataclass(frozen=True)
class Code:
    """Text that keeps its lines and spaces, such as commands."""

    text: str

    def to_html(self) -> str:
        return preformatted(self.text)

    def to_markdown(self) -> str:
        return f"```\n{self.text}\n```\n"


@dataclass(frozen=True)
class Picture:
    """A PNG: part of the HTML, and a link to `file` in Markdown."""

    image: bytes
    title: str
    file: str

    def to_html(self) -> str:
        data = base64.b64encode(self.image).decode()
        image = f'<img alt="{html.escape(self.title)}" src="data:image/png;base64,{data}">'
        return f'<figure class="wide">{image}</figure>'

    def to_markdown(self) -> str:
        return f"![{self.title}]({self.file})\n"


@dataclass(frozen=True)
class Beside:
    """Texts with a small heading each, side by side where there is room."""

    columns: tuple[tuple[str, str], ...]

    def to_html(self) -> str:
        cells = "\n".join(
            f"<div><h4>{html.escape(head)}</h4>{paragraph(text)}</div>" for head, text in self.columns
        )
        return f'<div class="beside">\n{cells}\n</div>'

    def to_markdown(self) -> str:
        return "\n".join(f"**{head}.** {text}\n" for head, text in self.columns)


@dataclass(frozen=True)
class Chapter:
    """A heading and the blocks below it."""

    heading: str
    blocks: tuple[Block, ...]

    def to_section(self) -> Section:
        """The chapter as a part of `page`."""
        return Section(self.heading, tuple(block.to_html() for block in self.blocks))

    def to_markdown(self) -> str:
        """The chapter in Markdown.

        Example:
            >>> print(Chapter("Result", (Text("good"),)).to_markdown())
            ## Result
            <BLANKLINE>
            good
            <BLANKLINE>
        """
        return "\n".join([f"## {self.heading}\n", *(block.to_markdown() for block in self.blocks)])


@dataclass(frozen=True)
class Link:
    """A sentence that leads to an anchor of the page; nothing in Markdown, which has no such anchors."""

    text: str
    anchor: str

    def to_html(self) -> str:
        return f'<p><a href="#{self.anchor}">{html.escape(self.text)}</a></p>'

    def to_markdown(self) -> str:
        return ""


@dataclass(frozen=True)
class Section:
    """A heading and what stands below it, as HTML; `heading`, `paragraph` and the others make such pieces."""

    heading: str
    body: tuple[str, ...]


def slug(text: str) -> str:
    """The anchor of a heading: its words in lower case, joined by hyphens.

    Example:
        >>> slug("C1. Ensembling raises accuracy")
        'c1-ensembling-raises-accuracy'
    """
    return "-".join(re.findall(r"[a-z0-9]+", text.lower()))


def paragraph(text: str) -> str:
    """A paragraph of plain text."""
    return f"<p>{html.escape(text)}</p>"


def subheading(text: str) -> str:
    """A heading within a section."""
    return f"<h3>{html.escape(text)}</h3>"


def preformatted(text: str) -> str:
    """Text that keeps its lines and spaces."""
    return f"<pre>{html.escape(text)}</pre>"


def folded(summary: str, body: str) -> str:
    """HTML that is shown once a reader asks for it."""
    return f"<details><summary>{html.escape(summary)}</summary>{body}</details>"


def png(figure: Figure) -> bytes:
    """A matplotlib figure as PNG."""
    stream = io.BytesIO()
    figure.savefig(stream, format="png")
    return stream.getvalue()


def _contents(sections: Sequence[Section]) -> str:
    """Links to every section, and to the headings within it."""
    chapters = []
    for section in sections:
        inner = re.findall(r'<h3 id="([^"]+)">(.*?)</h3>', "\n".join(section.body))
        links = "".join(f'<li><a href="#{anchor}">{text}</a></li>' for anchor, text in inner)
        head = f'<a href="#{slug(section.heading)}">{html.escape(section.heading)}</a>'
        chapters.append(f"<p>{head}</p>" + (f"<ol>{links}</ol>" if links else ""))
    return f"<nav><details><summary>Contents</summary>{''.join(chapters)}</details></nav>"


def pictures(images: Sequence[tuple[bytes, str]]) -> str:
    """PNG images and their captions, side by side where there is room; the images are part of the page.

    Example:
        >>> pictures([(b"...", "a figure")]).count("data:image/png;base64,")
        1
    """
    figures = "\n".join(
        f'<figure><img alt="{html.escape(caption)}" '
        f'src="data:image/png;base64,{base64.b64encode(image).decode()}">'
        f"<figcaption>{html.escape(caption)}</figcaption></figure>"
        for image, caption in images
    )
    return f'<div class="figures">\n{figures}\n</div>'


def page(title: str, sections: Sequence[Section], *, intro: str, contents: bool = False) -> str:
    """A whole HTML page that needs no other file and no network; with `contents`, links to its sections and
    their headings come first.

    Example:
        >>> "<script" in page("Demo", [Section("Result", (paragraph("good"),))], intro="What was done.")
        False
    """
    parts = [
        f'<section><h2 id="{slug(section.heading)}">{html.escape(section.heading)}</h2>\n'
        f"{chr(10).join(section.body)}\n</section>"
        for section in sections
    ]
    if contents:
        parts.insert(0, _contents(sections))
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{html.escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n"
        f"<h1>{html.escape(title)}</h1>\n{paragraph(intro)}\n"
        f"{chr(10).join(parts)}\n</body>\n</html>\n"
    )
