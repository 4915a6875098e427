"""Build the report of a folder of records: one HTML page, the same in Markdown, and every figure as PNG and
SVG.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from ..disk.atomic import check_writable
from ..errors import ConfigError
from .common import Arguments, say
from .study import claims_table

SUMMARY = "claims, figures and tables of a study's records on one page"
EXAMPLES = """examples:
  lora-ensembles report runs/study\
                       report.html, report.md and figures/ beside the records
  lora-ensembles report runs/study --out runs/report     in another folder
  lora-ensembles report results/embedded --out runs/report --json"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "records", metavar="DIR", type=Path, help="folder of the records that `lora-ensembles study` made"
    )
    parser.add_argument(
        "--out",
        type=Path,
        metavar="FOLDER",
        help="where the report is written, over an earlier one (default: DIR)",
    )


def run(args: Arguments) -> dict[str, Any]:
    """Write the report; returns the summary."""
    from ..studies.claims.judge import judge
    from ..studies.report.comparison import comparison_table
    from ..studies.report.comparison_page import is_comparison, write_comparison
    from ..studies.report.published import is_protocol, protocol_text
    from ..studies.report.write import write_report
    from ..studies.store import by_kind

    records = by_kind(args.records)
    if is_protocol(records):
        if args.out is not None:
            raise ConfigError(
                "--out: records by the published protocol have tables and no page; leave it out"
            )
        print(protocol_text(records))
        say("these tables are the whole report; docs/methods.md has the published numbers")
        return {"records": {kind: len(rows) for kind, rows in records.items()}}
    check_writable((args.out or args.records) / "report")
    if is_comparison(records):
        compared = write_comparison(records, args.out or args.records)
        print(comparison_table(records))
        say(f"report: {compared.html}")
        return compared.to_dict()
    claims = judge(records)
    written = write_report(records, claims, args.out or args.records)
    print(claims_table(claims))
    for name, reason in written.left_out.items():
        say(f"left out: {name}: {reason}")
    say(f"report: {written.html}")
    return {**written.to_dict(), "claims": {claim.id: claim.verdict for claim in claims}}
