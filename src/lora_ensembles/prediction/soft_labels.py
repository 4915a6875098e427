"""Soft labels: a probability for each label of an example in place of one right answer.

Shapes: N examples, C labels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def soft_targets(examples: Sequence[Any], counts: Sequence[int]) -> Tensor | None:
    """The soft labels (N, C) of examples with so many labels each, 0 behind the last; an example with a right
    answer alone has it with probability 1. None where no example has soft labels.

    Example:
        >>> from lora_ensembles.data import Example
        >>> soft = Example("1", "Is it late?", (" yes", " no"), None, target_probs=(0.75, 0.25))
        >>> soft_targets([soft, Example("2", "Is it?", (" yes", " no"), 1)], [2, 2]).tolist()
        [[0.75, 0.25], [0.0, 1.0]]
    """
    given = [getattr(example, "target_probs", None) for example in examples]
    if all(one is None for one in given):
        return None
    probs = torch.zeros(len(examples), max(counts))
    for row, (example, count) in enumerate(zip(examples, counts, strict=True)):
        if given[row] is not None:
            probs[row, :count] = torch.tensor(given[row])
        elif example.target is not None:
            probs[row, example.target] = 1.0
    return probs


def cross_entropy(predicted: Tensor, target_probs: Tensor) -> Tensor:
    """-sum_c q_c log p_c over the last axis, of log-probabilities and soft labels of one shape; absent
    labels, of log-probability -inf, have no part in it.
    """
    return -(target_probs * predicted.masked_fill(predicted == -torch.inf, 0.0)).sum(dim=-1)
