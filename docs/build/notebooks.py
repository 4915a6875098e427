"""Writes every tutorial's notebook from its text source: `python docs/build/notebooks.py`.

A source is `docs/tutorials/NN_name.py` in jupytext's percent format: `# %% [markdown]` opens a cell of text,
`# %%` one of code, and `tags=["parameters"]` behind either gives it tags. The notebook beside it holds the same
cells without outputs. A commented magic, `# !pip install`, is a magic in the notebook.

`--check` writes nothing, and ends with code 1 if a notebook is missing or is not that of its source. Nothing
but the standard library is needed, so that every checkout can do it.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

TUTORIALS = Path(__file__).resolve().parents[1] / "tutorials"
MARKER = re.compile(r"# %%(?: (?P<kind>\[markdown\]))?(?: tags=(?P<tags>\[.*\]))?")
MAGIC = re.compile(r"# (?=[!%]\w)")
METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}


@dataclass(frozen=True)
class Cell:
    """One cell of a source: its text without the comment signs of Markdown, and the line where it begins."""

    kind: str  # "code" or "markdown"
    text: str
    tags: tuple[str, ...]
    line: int


def read_cells(source: str) -> list[Cell]:
    """The cells of a source in the percent format.

    Raises:
        ValueError: a line that opens no cell although it begins like one, text before the first cell, or a
            line of Markdown that is no comment.
    """
    cells: list[Cell] = []
    lines: list[str] = []
    opened: re.Match[str] | None = None
    begin = 0
    for number, line in enumerate([*source.splitlines(), "# %%"], start=1):
        if not line.startswith("# %%"):
            lines.append(line)
            continue
        marker = MARKER.fullmatch(line)
        if marker is None:
            raise ValueError(
                f"line {number}: {line!r} opens no cell; write # %% [markdown] or # %% tags=[...]"
            )
        if opened is not None:
            cells.append(_cell(opened, lines, begin))
        elif any(map(str.strip, lines)):
            raise ValueError("text before the first cell; begin with # %% [markdown]")
        opened, lines, begin = marker, [], number
    return cells


def _cell(marker: re.Match[str], lines: list[str], begin: int) -> Cell:
    kind = "markdown" if marker["kind"] else "code"
    if kind == "markdown":
        for number, line in enumerate(lines, start=begin + 1):
            if line.strip() and line != "#" and not line.startswith("# "):
                raise ValueError(f"line {number}: {line!r} is in a cell of Markdown; begin it with '# '")
        lines = [line[2:] for line in lines]
    return Cell(kind, "\n".join(lines).strip("\n"), tuple(json.loads(marker["tags"] or "[]")), begin)


def notebook_of(source: str) -> str:
    """The notebook of a source, as the text of its file."""
    cells = [_as_json(number, cell) for number, cell in enumerate(read_cells(source), start=1)]
    notebook = {"cells": cells, "metadata": METADATA, "nbformat": 4, "nbformat_minor": 5}
    return json.dumps(notebook, indent=1, sort_keys=True, ensure_ascii=False) + "\n"


def _as_json(number: int, cell: Cell) -> dict[str, Any]:
    text = cell.text
    if cell.kind == "code":
        text = "\n".join(MAGIC.sub("", line) if MAGIC.match(line) else line for line in text.split("\n"))
    made: dict[str, Any] = {
        "cell_type": cell.kind,
        "id": f"cell-{number:02d}",  # counted, so that the same source gives the same file
        "metadata": {"tags": list(cell.tags)} if cell.tags else {},
        "source": text.splitlines(keepends=True),
    }
    return made | {"execution_count": None, "outputs": []} if cell.kind == "code" else made


def sources(folder: Path = TUTORIALS) -> list[Path]:
    """The tutorials' sources, in their order."""
    return sorted(folder.glob("[0-9][0-9]_*.py"))


def out_of_date(folder: Path = TUTORIALS) -> list[Path]:
    """The notebooks that are not those of their sources, and those without a source."""
    wanted = {
        path.with_suffix(".ipynb"): notebook_of(path.read_text(encoding="utf-8")) for path in sources(folder)
    }
    there = {path: path.read_text(encoding="utf-8") for path in folder.glob("*.ipynb")}
    return sorted(path for path in wanted | there if wanted.get(path) != there.get(path))


def main(argv: Sequence[str] | None = None, *, folder: Path = TUTORIALS) -> int:
    """Write the notebooks of a folder, or check them; returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true", help="write nothing; 1 if a notebook is out of date")
    if parser.parse_args(argv).check:
        stale = out_of_date(folder)
        for path in stale:
            print(f"{path.name} is not that of its source; run docs/build/notebooks.py", file=sys.stderr)
        return 1 if stale else 0
    for path in sources(folder):
        notebook = notebook_of(path.read_text(encoding="utf-8"))
        path.with_suffix(".ipynb").write_text(notebook, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
