"""What a member minimises: Eq. 3 and Eq. 4 of arXiv:2310.00035, per row, so that each member's mean is its own.

Shapes: M members, B rows of a member, K answer tokens of a row, V vocabulary. Probabilities and losses are computed in float32.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F


def answer_loss(logits: Tensor, answers: Tensor, counted: Tensor) -> Tensor:
    """-log p(answer | prompt) over the full vocabulary, in nats per row: (M, B).

    `logits` (M, B, K, V), `answers` (M, B, K) token ids, `counted` (M, B, K) true where an answer has a token. The tokens of one answer are
    summed: -log p of a sequence is the sum over its tokens. Source: Eq. 3 of arXiv:2310.00035.

    Example:
        >>> import torch
        >>> answer_loss(torch.zeros(1, 1, 1, 4), torch.tensor([[[2]]]), torch.tensor([[[True]]])).exp().round().item()
        4.0
    """
    losses = F.cross_entropy(logits.float().flatten(0, 2), answers.flatten(), reduction="none")
    return losses.view(answers.shape).masked_fill(~counted, 0.0).sum(dim=-1)


def kl_to_base(logits: Tensor, base_logits: Tensor, counted: Tensor) -> Tensor:
    """D_KL(fine-tuned || base) over the full vocabulary at the answer, in nats per row, summed over its tokens: (M, B).

    Shapes as in `answer_loss`; no gradient flows into `base_logits`. Source: Eq. 4 of arXiv:2310.00035, without its factor beta.

    Example:
        >>> import torch
        >>> same = torch.randn(1, 2, 1, 5)
        >>> kl_to_base(same, same, torch.ones(1, 2, 1, dtype=torch.bool)).abs().max().item() < 1e-6
        True
    """
    tuned = logits.float().log_softmax(dim=-1)
    base = base_logits.detach().float().log_softmax(dim=-1)
    divergence = (tuned.exp() * (tuned - base)).sum(dim=-1)
    return divergence.masked_fill(~counted, 0.0).sum(dim=-1)


def answer_accuracy(logits: Tensor, answers: Tensor, counted: Tensor) -> Tensor:
    """1.0 for each row whose every answer token is the most probable of the vocabulary, else 0.0: (M, B)."""
    right = (logits.argmax(dim=-1) == answers) | ~counted
    return right.all(dim=-1).float()
