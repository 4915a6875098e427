"""The harness's own command line with ensembles among its models.

Call it as `python -m lora_ensembles.integrations.lm_eval run --model lora-ensembles ...`.

Every flag is the harness's. One word is ours: `local-tasks` writes the task files for local copies of the
data sets.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from ...errors import LoraEnsemblesError
from . import register, write_local_tasks

MISTAKE = 2
PROGRAM = "python -m lora_ensembles.integrations.lm_eval"
ALSO = f"{PROGRAM} takes the flags of lm_eval, below, and: {PROGRAM} local-tasks --data DIR --out FOLDER\n"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the harness, or write the task files; returns the exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        if words[:1] == ["local-tasks"]:
            _local_tasks(words[1:])
        else:
            _harness(words)
    except LoraEnsemblesError as error:
        print(f"{PROGRAM}: error: {' '.join(str(error).split())}", file=sys.stderr)
        return MISTAKE
    return 0


def _harness(words: list[str]) -> None:
    register()
    from lm_eval.__main__ import cli_evaluate

    if words in ([], ["--help"], ["-h"]):
        print(ALSO)
    sys.argv = [
        "lm_eval",
        *words,
    ]  # where the harness's command line reads its words, and where it inserts a "run" that was left out
    cli_evaluate()


def _local_tasks(words: list[str]) -> None:
    parser = argparse.ArgumentParser(
        f"{PROGRAM} local-tasks", description="Write a folder for --include_path.", allow_abbrev=False
    )
    parser.add_argument(
        "--data",
        required=True,
        metavar="DIR",
        help="folder with the data sets as .jsonl files in the hub's schemas",
    )
    parser.add_argument("--out", required=True, metavar="FOLDER", help="a folder that does not exist yet")
    args = parser.parse_args(words)
    files = write_local_tasks(args.data, args.out)
    print(f"{len(files)} task files in {args.out}; run them with --include_path {args.out}")


if __name__ == "__main__":
    sys.exit(main())
