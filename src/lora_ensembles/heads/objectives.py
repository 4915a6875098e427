"""Training objectives of a member: Eq. 3 and Eq. 4 of arXiv:2310.00035, per answer token; a row's loss is the
sum over its tokens.

Shapes: n answer tokens, V vocabulary. Probabilities and losses are computed in float32.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F


def answer_loss(logits: Tensor, answers: Tensor) -> Tensor:
    """-log p of each answer token over the full vocabulary, in nats: (n,).

    `logits` (n, V), `answers` (n,) token ids. -log p of a sequence is the sum over its tokens. Source: Eq. 3
    of arXiv:2310.00035.

    Example:
        >>> import torch
        >>> answer_loss(torch.zeros(1, 4), torch.tensor([2])).exp().round().item()
        4.0
    """
    return F.cross_entropy(logits.float(), answers, reduction="none")


def kl_to_base(logits: Tensor, base_logits: Tensor) -> Tensor:
    """D_KL(fine-tuned || base) over the full vocabulary at each answer token, in nats: (n,).

    Shapes as in `answer_loss`; no gradient flows into `base_logits`. Source: Eq. 4 of arXiv:2310.00035,
    without its factor beta.

    Example:
        >>> import torch
        >>> same = torch.randn(2, 5)
        >>> kl_to_base(same, same).abs().max().item() < 1e-6
        True
    """
    tuned = logits.float().log_softmax(dim=-1)
    base = base_logits.detach().float().log_softmax(dim=-1)
    return (tuned.exp() * (tuned - base)).sum(dim=-1)


def answer_right(logits: Tensor, answers: Tensor) -> Tensor:
    """Whether each answer token is the most probable of the vocabulary: (n,) bool."""
    return logits.argmax(dim=-1) == answers
