"""Scores of all texts of a table, by whatever reads them.

Shapes: M members, N examples, W texts of all examples, B texts of a pass, C options or classes, K scores of a
text.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ...passes.shared_prefix import scored_in_parts
from ...passes.texts import Texts
from .encoding import log_probs
from .table import TextTable

ReadTexts = Callable[[Texts], Tensor]  # texts of B rows -> scores (M, B, K)


@torch.no_grad()
def score_texts(table: TextTable, read: ReadTexts, *, rows: int, padded: bool) -> Tensor:
    """Scores (M, W, K) of all texts of a table, float32, in the passes that `text_passes` says."""
    passes = text_passes(table, rows=rows, padded=padded)
    parts = [read(table.texts(numbers)).float().cpu() for numbers in passes]
    return torch.cat(parts, dim=1)[:, torch.cat(passes).argsort()]


def text_passes(table: TextTable, *, rows: int, padded: bool) -> list[Tensor]:
    """The numbers of all texts of a table, `rows` of them a pass, the longest first; unless `padded`, those
    of a pass are of one length.
    """
    order = table.text_lengths.argsort(descending=True, stable=True)
    sizes = (
        [len(order)]
        if padded
        else table.text_lengths[order].unique_consecutive(return_counts=True)[1].tolist()
    )
    return [numbers for group in order.split(sizes) for numbers in group.split(rows)]


def texts_log_probs(table: TextTable, read: ReadTexts, *, max_rows: int | None, padded: bool) -> Tensor:
    """log p of each class or option (M, N, C) from `read`, which reads each text once for all members.

    At most `max_rows` texts are in flight, by default what suits the device, and fewer when memory runs out;
    unless `padded`, the texts of a pass are of one length.

    Raises:
        ConfigError: memory does not hold a single row.
    """
    scores = scored_in_parts(
        lambda rows: score_texts(table, read, rows=rows, padded=padded),
        table.rows_in_flight(1, max_rows=max_rows),
    )
    return log_probs(table.per_example(scores))
