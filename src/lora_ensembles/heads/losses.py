"""Losses of a batch's rows, whichever head the members have, and those of distributions over classes, options
or labels.

Shapes: M members, B rows of a member, C classes, options or labels.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..prediction.soft_labels import cross_entropy


@dataclass(frozen=True)
class RowLosses:
    """Of each row (M, B): -log p(answer) in nats, the divergence from the base where asked for, and whether
    every token was right.
    """

    loss: Tensor
    divergence: Tensor | None
    right: Tensor


def distribution_losses(
    predicted: Tensor, *, targets: Tensor, base: Tensor | None, target_probs: Tensor | None = None
) -> RowLosses:
    """Losses (M, B) of distributions over classes, options or labels, as log-probabilities (M, B, C), -inf
    where there is none: -log p of `targets` (M, B), or with soft labels `target_probs` q (M, B, C) the
    cross-entropy -sum_c q_c log p_c.

    With the base's log-probabilities (M, B, C), the divergence from them as well.
    """
    targets = targets.to(predicted.device)
    divergence = None if base is None else _divergence(predicted, base.to(predicted.device))
    if target_probs is None:
        loss = -predicted.gather(2, targets[..., None])[..., 0]
    else:
        loss = cross_entropy(predicted, target_probs.to(predicted.device))
    return RowLosses(loss, divergence, predicted.argmax(dim=-1) == targets)


def _divergence(predicted: Tensor, base: Tensor) -> Tensor:
    """D_KL(member || base) over the classes or options (M, B), from log-probabilities (M, B, C); Eq. 4 of
    arXiv:2310.00035.
    """
    absent = base == -torch.inf
    difference = predicted.masked_fill(absent, 0.0) - base.masked_fill(absent, 0.0)
    return (predicted.exp() * difference).sum(dim=-1)
