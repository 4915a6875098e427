"""Which head a config describes.

Shapes: M members, N examples, C options.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from ..data import Example
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
