"""docs/models.md from the records: `make parity-page`, or `python tests/architectures/page.py [RECORD ...]`.

The lines between its two marks are written anew: counts for each version; and of the newest the architectures
that are equal to PEFT in every check, and what is refused of others, with the library's reason.
"""

from __future__ import annotations

import json
import re
import sys
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parent.parent.parent
PAGE, FOLDER = REPOSITORY / "docs" / "models.md", REPOSITORY / "results" / "parity"
MARKS = "<!-- record: written by tests/architectures/page.py -->", "<!-- end of record -->"
TITLES = {
    "causal": "Causal language models",
    "vision-language": "Vision-language models, on text alone",
    "classifier": "Sequence classifiers",
}
LEAVE_OUT = "; leave it out by `exclude_modules`"
# What the library says of a model, shortened to what models have in common.
REASONS = (
    (r"is not causal", "not causal"),
    (r"transformers' own generate fails", "transformers' own `generate` fails"),
    (r"is an encoder-decoder", "an encoder-decoder"),
    (r"of which PEFT adapts the bare parameter",
     f"PEFT adapts bare parameters of routers or fused experts{LEAVE_OUT}"),
    (r"that returns a \w+ in place of a tensor", f"a target is a router that returns more{LEAVE_OUT}"),
    (r"fails with adapters on these", f"a pass fails with adapters on such a target{LEAVE_OUT}"),
    (r"adapters are stacked on nn.Linear", f"a target is no plain linear layer{LEAVE_OUT}"),
    (r"does not see every row of every member", f"a target does not see every row in order{LEAVE_OUT}"),
    (r"PEFT cannot place the adapter", "PEFT does not place such an adapter"),
    (r"the loss depends on no adapter", "a pass over text runs through none of the targets"),
    (r"has no table of token embeddings", "no table of token embeddings"),
    (r"no language-model head", "no language-model head"),
    (r"cannot read rows of token ids alone", "does not read token ids alone"),
    (r"mixes the rows", "mixes the rows of a batch"),
    (r"calls its output head", "does not call its output head exactly once in a forward pass"),
    (r"members' heads are stacked on nn.Linear", "a head that is not a linear layer"),
    (r"is not finite", "a loss or gradient is not finite"),
)  # fmt: skip


def shortened(reason: str) -> str:
    """What a reason has in common with those of other models."""
    return next((words for pattern, words in REASONS if re.search(pattern, reason)), reason)


def counted(record: dict[str, Any], kind: str) -> dict[str, int]:
    """How many architectures of a kind were tried, how their checks ended, and how many could not
    be built.
    """
    outcomes = record["architectures"].get(kind, {}).values()
    missing = sum("not built" in outcome for outcome in outcomes)
    ended = Counter(check["status"] for outcome in outcomes for check in outcome.get("checks", {}).values())
    statuses = {status: ended[status] for status in ("equal", "refused", "failed")}
    return {"architectures": len(outcomes) - missing, **statuses, "not built": missing}


def counts(records: Iterable[dict[str, Any]]) -> list[str]:
    """The lines of the table of counts."""
    lines = [
        "| transformers | PEFT | torch | kind | architectures "
        "| checks equal | refused | failed | not built |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for record in records:
        versions = [record["versions"][name] for name in ("transformers", "peft", "torch")]
        for kind, title in TITLES.items():
            cells = [*versions, title, *counted(record, kind).values()]
            lines.append(f"| {' | '.join(map(str, cells))} |")
    return lines


def section(record: dict[str, Any], kind: str) -> list[str]:
    """Which architectures of a kind are equal throughout, and what is refused of the others."""
    equal, refused, missing = [], {}, []
    for name, outcome in sorted(record["architectures"].get(kind, {}).items()):
        if "not built" in outcome:
            missing.append(f"{name} ({outcome['not built']})")
            continue
        checks = outcome["checks"]
        reasons: dict[str, list[str]] = {}
        for check, ended in checks.items():
            if ended["status"] != "equal":
                reasons.setdefault(f"{ended['status']}: {shortened(ended['reason'])}", []).append(check)
        if not reasons:
            equal.append(name)
        for reason, of in reasons.items():
            which = "everything" if len(of) == len(checks) else "; ".join(of)
            refused.setdefault((reason.removeprefix("refused: "), which), []).append(name)
    lines = [f"### {TITLES[kind]}", f"Equal in every check ({len(equal)}): {', '.join(equal)}."]
    if refused:
        rows = sorted(refused.items(), key=lambda row: (row[0][1] != "everything", -len(row[1])))
        table = ["| reason for the refusal | what | model types |", "|---|---|---|"]
        table += [f"| {reason} | {which} | {', '.join(names)} |" for (reason, which), names in rows]
        lines.append("\n".join(table))
    far = [
        f"{name} ({check}: {ended['difference']:.2g})"
        for name, outcome in sorted(record["architectures"].get(kind, {}).items())
        for check, ended in outcome.get("checks", {}).items()
        if "own" in ended
    ]
    if far:
        lines.append(f"Equal within what PEFT itself differs by, and no closer: {', '.join(far)}.")
    if missing:
        lines.append(f"No tiny model could be built ({len(missing)}): {'; '.join(missing)}.")
    return lines


def page(text: str, records: list[dict[str, Any]]) -> str:
    """The page with what the records say between its marks; the last one is the newest."""
    before, _, rest = text.partition(MARKS[0])
    _, _, after = rest.partition(MARKS[1])
    newest = records[-1]
    parts = ["\n".join(counts(records))]
    for kind in TITLES:
        parts += section(newest, kind)
    return before + "\n\n".join([MARKS[0], *parts, MARKS[1]]) + after


def records_of(paths: Iterable[Path]) -> list[dict[str, Any]]:
    """The records, the oldest version first."""
    found = [json.loads(path.read_text(encoding="utf-8")) for path in paths]
    return sorted(found, key=lambda one: [int(part) for part in one["versions"]["transformers"].split(".")])


def main() -> int:
    paths = [Path(argument) for argument in sys.argv[1:]] or sorted(FOLDER.glob("transformers-*.json"))
    if not paths:
        print(f"error: no record in {FOLDER}; run `make parity` first", file=sys.stderr)
        return 2
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8"), records_of(paths)), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
