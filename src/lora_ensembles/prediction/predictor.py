"""The protocol of everything that predicts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

from torch import Tensor

if TYPE_CHECKING:
    from ..data import Example


class Predictor(Protocol):
    """Anything that predicts: an ensemble, a baseline, or a wrapper around either."""

    def member_log_probs(self, examples: Sequence[Example], *, max_rows: int | None = None) -> Tensor:
        """(M, N, C) log-probabilities over each example's options, -inf at absent options; at most `max_rows`
        rows in one forward.

        Args:
            examples: N labelled or unlabelled examples.
            max_rows: the most rows (member and example pairs) in one forward pass; None: a number that suits
                most machines.
        """
        ...
