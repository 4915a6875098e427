"""A plan to read the labels of a question: each beginning once, and where the tokens that follow it are
scored.

Shapes: S label tokens.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class LabelPlan:
    """A plan to read a set of labels: the beginnings of labels that stand behind a prompt, and the fields (5,
    S) of `label_losses.ScoredTokens` for one example, rows counted from its first and positions from the
    prompt's last token."""

    beginnings: tuple[tuple[int, ...], ...]
    tokens: Tensor

    def in_one_row(self) -> Tensor:
        """The fields where the beginnings stand behind each other in one row."""
        lengths = torch.tensor([len(beginning) for beginning in self.beginnings])
        rows, positions, *others = self.tokens
        begins = (lengths.cumsum(0) - lengths)[rows]
        at_prompt = positions == 0  # its last token, which stands where it stood
        moved = torch.where(at_prompt, positions, positions + begins)
        fields = torch.stack([torch.zeros_like(rows), moved, *others])
        return fields[:, moved.argsort(stable=True)]


@functools.lru_cache(maxsize=1024)
def label_plan(label_ids: tuple[tuple[int, ...], ...]) -> LabelPlan:
    """The plan of a set of labels, by the tokens of each."""
    read = sorted({label[:-1] for label in label_ids})  # one that another begins with stands right before it
    beginnings = [
        beginning
        for beginning, after in zip(read, [*read[1:], None], strict=True)
        if after is None or after[: len(beginning)] != beginning
    ]
    row_of: dict[tuple[int, ...], int] = {}
    for row, beginning in enumerate(beginnings):
        for end in range(len(beginning) + 1):
            row_of.setdefault(beginning[:end], row)
    fields = sorted(
        (row_of[label[:step]], step, token, number, step)
        for number, label in enumerate(label_ids)
        for step, token in enumerate(label)
    )
    return LabelPlan(tuple(beginnings), torch.tensor(fields).T)
