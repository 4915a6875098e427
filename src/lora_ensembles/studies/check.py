"""Recompute records from the predictions that lie beside them: `python -m lora_ensembles.studies.check DIR`.

Every aggregate of a record is computed again from its member log-probabilities, and the file of these is held
to the SHA-256 in the record. A report beside the records is made again from them, and held to it: its claims,
its tables, and the text beside its figures.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from ..errors import CheckpointError, LoraEnsemblesError
from .claims.judge import judge
from .predictions import differences, digest, predictions_file, read_sheet
from .report.comparison_page import is_comparison, write_comparison
from .report.write import MARKDOWN_FILE, write_report
from .store import by_kind, read_record


@dataclass(frozen=True)
class Checked:
    """The outcome for a folder.

    Attributes:
        records: with predictions beside them.
        parts: of these records, computed again.
        wrong: what differs, each in words.
        without: names of records that keep no predictions.
        lines: of the report, made again; 0 where there is none.
    """

    records: int
    parts: int
    wrong: tuple[str, ...]
    without: tuple[str, ...]
    lines: int = 0


def check(folder: Path) -> Checked:
    """Every record of a folder against its predictions, and the report of them against the records.

    Raises:
        CheckpointError: the folder holds no records, or a file is none.
        MissingExtraError: there is a report, and matplotlib is not installed.
    """
    records, parts, wrong, without = 0, 0, [], []
    for path in sorted(folder.glob("*-*.json")):
        record = read_record(path)
        if "predictions" not in record:
            without.append(path.name)
            continue
        records += 1
        file = predictions_file(path)
        if not file.is_file():
            wrong.append(f"{file.name} is missing")
            continue
        if digest(file.read_bytes()) != record["predictions"]:
            wrong.append(f"{file.name} is not the file that {path.name} was made from")
            continue
        sheet = read_sheet(file)
        parts += len(sheet.nodes)
        wrong += [f"{path.name}: {words}" for words in differences(record["result"], sheet)]
    if not records and not without:
        raise CheckpointError(f"{folder} holds no records of a study")
    lines, differ = _report_again(folder)
    return Checked(records, parts, (*wrong, *differ), tuple(without), lines)


def _report_again(folder: Path) -> tuple[int, list[str]]:
    """The number of lines of a folder's report, and the first that its records do not give."""
    file = folder / MARKDOWN_FILE
    if not file.is_file():
        return 0, []
    records = by_kind(folder)
    with tempfile.TemporaryDirectory() as made:
        if is_comparison(records):
            again = write_comparison(records, Path(made)).markdown
        else:
            again = write_report(records, judge(records), Path(made)).markdown
        there, expected = (path.read_text(encoding="utf-8").splitlines() for path in (file, again))
    for number, (line, other) in enumerate(itertools.zip_longest(there, expected, fillvalue=""), start=1):
        if line != other:
            return len(expected), [f"{file.name}, line {number}: {line!r}, where the records give {other!r}"]
    return len(expected), []


def main(arguments: list[str] | None = None) -> int:
    """The exit code: 0 where records are what their predictions give, 1 where not, 2 for a wrong folder."""
    parser = argparse.ArgumentParser(prog="python -m lora_ensembles.studies.check", description=__doc__)
    parser.add_argument("folder", type=Path, help="folder of the records")
    folder = parser.parse_args(arguments).folder
    try:
        checked = check(folder)
    except LoraEnsemblesError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for words in checked.wrong:
        print(words)
    if checked.without:
        print(f"records without predictions, which are not checked: {', '.join(checked.without)}")
    report = f", {checked.lines} lines of the report made again" if checked.lines else ""
    print(
        f"{checked.records} records, {checked.parts} parts computed again{report}, "
        f"{len(checked.wrong)} differ"
    )
    return 1 if checked.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
