"""Prints the published numbers of methods for LoRA as Markdown, with rows of our own where there are records:
`python benchmarks/published.py [--from DIR ...]`.

Published numbers are in docs/published.toml; ours are the records that `lora-ensembles study methods
--protocol published` makes.
"""

from __future__ import annotations

import argparse
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lora_ensembles.errors import DataError
from lora_ensembles.studies.grid import BY_PROTOCOL
from lora_ensembles.studies.report.page import Table
from lora_ensembles.studies.report.published import METRICS, header, protocol_rows
from lora_ensembles.studies.store import by_kind

SOURCE = Path(__file__).resolve().parent.parent / "docs" / "published.toml"
OURS = "ours: "


def published_tables(folders: Sequence[Path] = (), *, source: Path = SOURCE) -> str:
    """The published tables, a heading for each base and a table for each metric, with rows of our own below
    those of the same base.

    Args:
        folders: of records; those of a base that nobody published a table of are left out.
        source: the published numbers.

    Returns:
        Markdown, without a title: headings of the third level, and where the numbers come from.

    Raises:
        CheckpointError: a folder holds no records.
        DataError: a published row does not fit the columns.
    """
    published = tomllib.loads(source.read_text(encoding="utf-8"))
    columns = published["columns"]
    if list(header("nll")[1:]) != columns:
        raise DataError(f"{source}: its columns are {columns}, and those of the tables {header('nll')[1:]}")
    records = [record for folder in folders for record in by_kind(folder).get(BY_PROTOCOL, [])]
    parts = []
    for name, base in published["bases"].items():
        own = [record for record in records if _same(record["settings"]["base"], base["model"])]
        parts += [f"### {name}", *(_table(base["rows"], own, metric).to_markdown() for metric in METRICS)]
    parts += [f"Source: {published['source']}", f"Settings: {published['settings']}", published["caveat"]]
    return "\n\n".join(part.strip() for part in parts) + "\n"


def _same(base: str, model: str) -> bool:
    """Whether a base is a model by its name on the hub, or a folder that is named as it is."""
    return Path(base).name == Path(model).name


def _table(rows: Mapping[str, Any], records: Sequence[Mapping[str, Any]], metric: str) -> Table:
    shown = [_published(name, row[metric]) for name, row in rows.items()]
    if records:
        ours = protocol_rows({BY_PROTOCOL: list(records)}, metric)
        shown += [(OURS + name, *cells) for name, *cells in ours]
    return Table(header(metric), tuple(shown))


def _published(name: str, values: Sequence[float]) -> tuple[str, ...]:
    cells = [f"{value:.2f}" for value in values]
    return (name, *cells, *["-"] * (len(header("nll")) - 1 - len(cells)))


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--from", dest="folders", type=Path, nargs="*", default=[], metavar="DIR", help="folders of records"
    )
    print(published_tables(parser.parse_args(arguments).folders), end="")


if __name__ == "__main__":
    main()
