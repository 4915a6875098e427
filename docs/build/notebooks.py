"""Writes every tutorial's notebook from its text source: `python docs/build/notebooks.py`.

A source is `docs/tutorials/NN_name.py` in jupytext's percent format. The notebook beside it holds the same
cells without outputs. `--check` writes nothing, and ends with code 1 if a notebook is missing or is not that
of its source.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import jupytext
from nbformat import NotebookNode

TUTORIALS = Path(__file__).resolve().parents[1] / "tutorials"
METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}


def cells_of(source: str) -> list[NotebookNode]:
    """The cells of a source in the percent format."""
    cells: list[NotebookNode] = jupytext.reads(source, fmt="py:percent").cells
    return cells


def notebook_of(source: str) -> str:
    """The notebook of a source, as the text of its file; the same source gives the same file."""
    cells = []
    for number, cell in enumerate(cells_of(source), start=1):
        tags = cell.metadata.get("tags", [])
        text = cell.source.splitlines(keepends=True)
        cells.append(
            {**cell, "id": f"cell-{number:02d}", "metadata": {"tags": tags} if tags else {}, "source": text}
        )
    notebook = {"cells": cells, "metadata": METADATA, "nbformat": 4, "nbformat_minor": 5}
    return json.dumps(notebook, indent=1, sort_keys=True, ensure_ascii=False) + "\n"


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
