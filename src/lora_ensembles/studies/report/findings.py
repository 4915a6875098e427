"""Findings in a sentence: the verdicts that a figure bears on, or which row of its table is best."""

from __future__ import annotations

from collections.abc import Sequence

from ...errors import DataError
from ..claims.judge import Claim
from .claim_tables import FIGURES, finding
from .figures.values import Records
from .open_tables import TABLES
from .page import Table

# What a base is, for a reader who has not read the documentation.
BASES = {
    "embedded": "the embedded base: a transformer of 1.3 million parameters, pre-trained on sentences about "
    "an invented world. It was kept as a test bed because an ensemble was better than its members on it, so "
    "that C1 is not independent evidence there",
    "smollm2": "SmolLM2-135M-Instruct, a public language model of 135 million parameters, de-quantised from "
    "4 bits",
    "sentence-transformers/all-MiniLM-L6-v2": "all-MiniLM-L6-v2, a public text encoder of 22 million "
    "parameters; it has no head for answers, so that every member trains one of its own",
}


def base_words(name: str) -> str:
    """A base in words, or its name.

    Example:
        >>> base_words("meta-llama/Llama-2-7b-hf")
        'the base meta-llama/Llama-2-7b-hf'
    """
    return BASES.get(name, f"the base {name}")


def findings(name: str, records: Records, claims: Sequence[Claim]) -> str:
    """The finding of a figure: the verdicts of its claims, or the best rows of its table; empty where it has
    neither.
    """
    shown = [finding(claim) for claim in claims if FIGURES.get(claim.id) == name]
    if shown:
        return " ".join(shown)
    try:
        return best_rows(TABLES[name](records)) if name in TABLES else ""
    except DataError:
        return ""


def best_rows(table: Table) -> str:
    """The best row in accuracy, NLL and ECE: of the ensemble's column, where single members have one too.

    Example:
        >>> best_rows(Table(("arm", "NLL (nats) \u2193"), (("a", "0.9 \u00b1 0.1"), ("b", "0.8 \u00b1 0.1"))))
        'Lowest NLL: b (0.8).'
    """
    said = []
    for words, start, sign in (
        ("Highest accuracy", "accuracy", -1),
        ("Lowest NLL", "NLL", 1),
        ("Lowest ECE", "ECE", 1),
    ):
        columns = [place for place, title in enumerate(table.header) if title.startswith(start)]
        if not columns:
            continue
        cells = {row[0]: row[columns[-1]].split(" ")[0] for row in table.rows if row[columns[-1]] != "-"}
        best = min(cells, key=lambda name: sign * float(cells[name]))
        said.append(f"{words}: {best} ({cells[best]}).")
    return " ".join(said)
