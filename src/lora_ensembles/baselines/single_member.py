"""One member of anything that predicts, and what a member costs to train.

Shapes: M members, N examples, C options.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..data import Example
from ..errors import ConfigError
from ..heads import member_log_probs
from ..passes.stacked_model import StackedModel, num_trained_parameters
from ..prediction.prediction import Predictor


@dataclass(frozen=True)
class SingleMember:
    """A `Predictor` that is one member of another: the paper's "LoRA (M = 1)", an MC-dropout pass, a few-shot
    draw.

    A member of a `LoraEnsemble` is computed alone, at the cost of one model; of any other predictor all
    members are computed and one is kept. The paper's M = 1 numbers are the mean over members of each one's
    own metrics (`evaluate_members`), not those of one of them.

    Raises:
        ConfigError: a `LoraEnsemble` has no such member; of other predictors this is known only once they
            predict.

    Example:
        >>> from lora_ensembles import LoraEnsemble, load_base
        >>> from lora_ensembles.data import load_task
        >>> one = SingleMember(LoraEnsemble(*load_base(), num_members=3), 2)
        >>> one.member_log_probs(load_task("world-cqa").validation[:4]).shape
        torch.Size([1, 4, 5])
    """

    predictor: Predictor
    index: int = 0

    def __post_init__(self) -> None:
        if isinstance(self.predictor, StackedModel):
            check_member(self.index, self.predictor.num_members)

    @property
    def num_trained_parameters(self) -> int:
        """Parameters trained for this member."""
        return num_trained_parameters(self.predictor, self.index)

    @torch.no_grad()
    def member_log_probs(self, examples: Sequence[Example], *, max_rows: int | None = None) -> Tensor:
        """log p of each label (1, N, C), float32; see `Predictor`.

        Args:
            examples: N labelled or unlabelled examples.
            max_rows: the most rows (member and example pairs) in one forward pass; None: a number that suits
                most machines.

        Raises:
            ConfigError: there is no such member, or memory ran out.
            DataError: a prompt or a label cannot be used.
        """
        if not isinstance(self.predictor, StackedModel):
            log_probs = self.predictor.member_log_probs(examples, max_rows=max_rows)
            check_member(self.index, log_probs.shape[0])
            return log_probs[self.index : self.index + 1]
        check_member(self.index, self.predictor.num_members)  # members may have been dropped since
        alone = self.predictor.view(range(self.index, self.index + 1))
        return member_log_probs(alone, examples, max_rows=max_rows)


def check_member(index: int, members: int) -> None:
    """Refuse a member that is not there.

    Raises:
        ConfigError: as it says.
    """
    if index not in range(members):
        raise ConfigError(f"there is no member {index!r}; name one of 0 to {members - 1}")
