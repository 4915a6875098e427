"""The claims as tables and sentences: the clause that decides each, and every clause with what was expected
of it.
"""

from __future__ import annotations

from collections.abc import Sequence

from ..claims.judge import Claim, Part
from .page import Table

DECIDING = ("clauses", "deciding clause", "expected", "difference", "95 % interval", "p (Holm)")
# The figure that shows each claim.
FIGURES = {
    "C1": "figure_2",
    "C2": "figure_2",
    "C3": "figure_3",
    "C4": "figure_4",
    "C6": "figure_5",
    "C7": "figure_6",
    "C8": "figure_7",
    "C9": "figure_8",
    "C10": "gain",
    "C11": "figure_1a",
}


def deciding_cells(claim: Claim) -> tuple[str, ...]:
    """The count of clauses that are supported, and the one that decides, for the columns of `DECIDING`."""
    if claim.deciding is None:
        return ("-",) * 6
    return counted(claim), claim.deciding.name, *numbers(claim.deciding)


def counted(claim: Claim) -> str:
    """The number of clauses that are supported, of all that the claim has, and of those not judged.

    Example:
        >>> from ..claims.judge import Part
        >>> verdicts = ("supported", "inconclusive", "not applicable", "shown")
        >>> parts = tuple(Part("", "", None, None, None, one, 0, 0) for one in verdicts)
        >>> counted(Claim("C1", "", 0, 0, "inconclusive", parts[1], "", parts))
        '1 of 3 hold, 1 not judged'
    """
    verdicts = [part.verdict for part in claim.parts if part.verdict != "shown"]
    missing = verdicts.count("not applicable")
    held = f"{verdicts.count('supported')} of {len(verdicts)} hold"
    return f"{held}, {missing} not judged" if missing else held


def numbers(part: Part) -> tuple[str, str, str, str]:
    """A clause's numbers: the expectation, its difference, the interval and p."""
    return part.expected, signed(part.difference), interval(part), "-" if part.p is None else f"{part.p:.2g}"


def claims_with_text(claims: Sequence[Claim]) -> Table:
    """One row per claim: its verdict, and the clause that decides it."""
    rows = tuple(
        (claim.id, claim.text, claim.verdict, *deciding_cells(claim), sizes(claim)) for claim in claims
    )
    links = {(row, 0): claim.id.lower() for row, claim in enumerate(claims)}
    return Table(
        ("no.", "claim", "verdict", *DECIDING, "tasks (seeds)"),
        rows,
        chosen=_cells([claim.verdict for claim in claims], "supported", column=2),
        against=_cells([claim.verdict for claim in claims], "contradicted", column=2),
        prose=frozenset({1, 4}),
        links=links,
    )


def parts_table(claim: Claim) -> Table:
    """A row a clause; below them what is only shown beside them."""
    rows = tuple((part.name, part.verdict, *numbers(part), sizes(part)) for part in claim.parts)
    return Table(
        ("clause", "verdict", *DECIDING[2:], "tasks (seeds)"),
        rows,
        chosen=_cells([part.verdict for part in claim.parts], "supported", column=1),
        against=_cells([part.verdict for part in claim.parts], "contradicted", column=1),
        prose=frozenset({0}),
    )


def finding(claim: Claim) -> str:
    """A claim's verdict in a sentence, with the clause that decides it."""
    words = f"{claim.id} {claim.verdict}"
    part = claim.deciding
    if part is None or part.difference is None:
        return f"{words}: {claim.reason}." if claim.reason else f"{words}."
    held = f"clauses: {counted(claim)}{f': {claim.reason}' if claim.reason else ''}"
    if part.verdict == "supported" and claim.verdict != "supported":  # what is not judged leaves it open
        return f"{words} ({held})."
    if part.interval is None:
        few = "1 task, which is" if part.tasks == 1 else f"{part.tasks} tasks, which are"
        return f"{words} ({held}): {part.name}, {signed(part.difference)} on {few} too few."
    which = "deciding" if claim.verdict == "contradicted" else "least certain"
    return (
        f"{words} ({held}). The {which} clause is \u201c{part.name}\u201d: "
        f"{signed(part.difference)} (95 % interval {interval(part)}), "
        f"where the claim expects a value {part.expected}."
    )


def signed(value: float | None) -> str:
    """A difference to three places, with a true minus sign; none before zero."""
    if value is None:
        return "-"
    return f"{value:+.3f}".replace("-", "\u2212") if round(value, 3) else "0.000"


def interval(part: Part) -> str:
    """The interval of a clause."""
    return "-" if part.interval is None else " to ".join(map(signed, part.interval))


def sizes(shown: Claim | Part) -> str:
    """The tasks and, of each on average, the seeds that it was taken over."""
    return f"{shown.tasks} ({shown.settings / shown.tasks:.3g})" if shown.tasks else "-"


def _cells(verdicts: Sequence[str], wanted: str, *, column: int) -> frozenset[tuple[int, int]]:
    return frozenset((row, column) for row, verdict in enumerate(verdicts) if verdict == wanted)
