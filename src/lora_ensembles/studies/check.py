"""Recompute records from the predictions that lie beside them: `python -m lora_ensembles.studies.check DIR`.

Every aggregate of a record is computed again from its member log-probabilities, and the file of these is held
to the SHA-256 in the record. Claims, tables and figures are made from records, and say what these say.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path

from ..errors import CheckpointError, LoraEnsemblesError
from .predictions import differences, digest, predictions_file, read_sheet
from .store import read_record


@dataclass(frozen=True)
class Checked:
    """The outcome for a folder.

    Attributes:
        records: with predictions beside them.
        parts: of these records, computed again.
        wrong: what differs, each in words.
        without: names of records that keep no predictions.
    """

    records: int
    parts: int
    wrong: tuple[str, ...]
    without: tuple[str, ...]


def check(folder: Path) -> Checked:
    """Every record of a folder against its predictions.

    Raises:
        CheckpointError: the folder holds no records, or a file is none.
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
    return Checked(records, parts, tuple(wrong), tuple(without))


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
        print(
            f"{len(checked.without)} records keep no predictions, and are not checked: {checked.without[0]}, "
            "..."
        )
    print(f"{checked.records} records, {checked.parts} parts computed again, {len(checked.wrong)} differ")
    return 1 if checked.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
