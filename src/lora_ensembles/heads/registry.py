"""Which head a config describes.

Shapes: M members, N examples, C options.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..data import Example
from ..errors import ConfigError
from ..passes.stacked_model import StackedModel
from ..stack.head_config import HeadConfig
from .base import Head
from .lm.head import LMHead
from .task.head import TaskHead


def head_of(config: HeadConfig) -> Head:
    """The head that a resolved config describes."""
    return TaskHead(config) if config.owned else LMHead(config)


def member_log_probs(
    model: StackedModel, examples: Sequence[Example], *, max_rows: int | None = None
) -> Tensor:
    """log p of each label, class or option for each member (M, N, C), float32, by the head that the members
    have.
    """
    return head_of(model.info.head).member_log_probs(model, examples, max_rows=max_rows)


@torch.no_grad()
def label_mass(model: StackedModel, examples: Sequence[Example], *, max_rows: int | None = None) -> Tensor:
    """The share of the vocabulary's probability that lies on each example's labels, the mean over members.

    Near 1 the model answers by one of the labels; near 0 it would write something else, and the probabilities
    of the labels say little.

    Args:
        model: an ensemble that answers with the language model's own head.
        examples: N examples.
        max_rows: as in `predict`.

    Returns:
        (N,) float32 from 0 to 1.

    Raises:
        ConfigError: members with heads of their own, which give probabilities to nothing but classes or
            options.

    Example:
        >>> from lora_ensembles import LoraEnsemble, load_base, load_task
        >>> ensemble = LoraEnsemble(*load_base(), num_members=2)
        >>> mass = label_mass(ensemble, load_task("world-obqa").validation[:3])
        >>> mass.shape, bool((mass <= 1).all())
        (torch.Size([3]), True)
    """
    head = head_of(model.info.head)
    if not isinstance(head, LMHead):
        raise ConfigError(
            f"label_mass: members with {model.info.head.kind} heads have no vocabulary; every probability is "
            "on their classes or options"
        )
    return head.label_mass(model, examples, max_rows=max_rows).mean(dim=0)
