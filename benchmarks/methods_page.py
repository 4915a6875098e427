"""Writes what was measured into docs/methods.md: `python benchmarks/methods_page.py`; with --check it fails
where the page is not what the records give.

The records are those of `lora-ensembles study methods --budget P`, in results/methods, a folder for each
base; where there are none, the page says so.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from pages import with_block
from published import published_tables

from lora_ensembles.studies.report.comparison_page import FIGURE, blocks, settings_text, write_comparison
from lora_ensembles.studies.report.page import Picture
from lora_ensembles.studies.store import by_kind

REPOSITORY = Path(__file__).resolve().parent.parent
PAGE, RESULTS = REPOSITORY / "docs" / "methods.md", REPOSITORY / "results" / "methods"
COMMANDS = {
    "embedded": "lora-ensembles study methods --budget 15 --out results/methods/embedded",
    "smollm2": "make smollm2\n"
    "lora-ensembles study methods --budget 5 --trials 3 --seeds 0 --base smollm2 --tasks arce,obqa "
    "--data DATA --out results/methods/smollm2",
}


def block(base: str, folder: Path) -> str:
    """The text of a base: the budget, tables and figure; where there are no records, how to make them."""
    command = f"<!-- not run: it takes hours -->\n```sh\n{COMMANDS[base]}\n```"
    if not any(folder.glob("comparison-*.json")):
        return f"Not measured yet. The command is ready:\n\n{command}"
    records = by_kind(folder)
    picture = Picture(b"", f"NLL against the time to answer, {base}", f"../results/methods/{base}/{FIGURE}")
    shown = [part.to_markdown().strip() for part in blocks(records, picture=picture)]
    return "\n\n".join([settings_text(records), *shown, command])


def page(*, check: bool) -> int:
    """Write the blocks and figures of the records that are there, or compare the blocks."""
    text = PAGE.read_text(encoding="utf-8")
    new = with_block(text, "published", published_tables().strip())
    for base in COMMANDS:
        folder = RESULTS / base
        new = with_block(new, f"methods {base}", block(base, folder))
        if not check and any(folder.glob("comparison-*.json")):
            write_comparison(by_kind(folder), folder)
    if check:
        return 0 if new == text else _said(f"{PAGE} is not what the records give; run this without --check")
    PAGE.write_text(new, encoding="utf-8")
    return 0


def _said(words: str) -> int:
    print(words, file=sys.stderr)
    return 1


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true")
    return page(check=parser.parse_args().check)


if __name__ == "__main__":
    sys.exit(main())
