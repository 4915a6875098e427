"""One clause of a claim as differences over settings, before it is judged."""

from __future__ import annotations

from dataclasses import dataclass

from .views import Differences

NAMES = {"accuracy": "accuracy", "nll": "NLL", "ece": "ECE"}
SIGNS = {"accuracy": 1, "nll": -1, "ece": -1}  # the direction that is better


@dataclass(frozen=True)
class Contrast:
    """One clause of a claim: differences that it expects to be positive (sign 1), negative (-1), or within a
    margin of zero (0).

    Attributes:
        chosen_from: of how many this is the largest or the smallest; its p is multiplied by it (Bonferroni).
        judged: False for what is shown beside the clauses and decides nothing.
    """

    name: str
    differences: Differences
    sign: int
    margin: float = 0.0
    chosen_from: int = 1
    judged: bool = True

    @property
    def expected(self) -> str:
        """The difference that the claim speaks of, in words.

        Example:
            >>> Contrast("AUROC minus 0.5", {}, 0, margin=0.1).expected
            'within 0.1 of 0'
        """
        if not self.judged:
            return "-"
        return f"within {self.margin:g} of 0" if self.sign == 0 else "above 0" if self.sign > 0 else "below 0"
