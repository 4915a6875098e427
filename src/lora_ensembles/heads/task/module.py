"""An ensemble with task heads as a Hugging Face model: a classifier, a multiple-choice model or a reward
model with `.logits`.

Shapes: M members, B texts or questions, K classes, options or 1 score.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedModel
from transformers.modeling_outputs import SequenceClassifierOutput

from ...errors import ConfigError
from ...passes.stacked_model import StackedModel
from ...stack.lora import unfold_members
from ..whole_model import for_members, view_as_model
from .head import task_head_of


@dataclass
class EnsembleScores(SequenceClassifierOutput):
    """The outputs of one pass of an ensemble of task heads.

    Attributes:
        loss: -log of the ensemble's probability of `labels`, mean over rows, in nats, where they were given.
        logits: (B, K) log of the members' mean probabilities (Eq. 2 of arXiv:2310.00035), which are
            normalised logits; of a reward model (B, 1) the mean of the members' scores.
        member_logits: (M, B, K) each member's own logits, as its head gives them.
    """

    member_logits: Tensor | None = None


def as_task_model(model: StackedModel, *, rewards: bool) -> PreTrainedModel:
    """A Hugging Face model that shares the ensemble's base and stack, for pipelines and trainers that ask for
    `.logits`.

    Args:
        model: an ensemble whose members own heads.
        rewards: whether it should be a reward model, with one score for each text, or a classifier.

    Raises:
        ConfigError: the members have heads of another kind.
    """
    what = "as_reward_model" if rewards else "as_classifier"
    kind = task_head_of(model, what).kind
    if (kind == "reward") != rewards:
        raise ConfigError(
            f"{what} on members with {kind} heads; use {'as_classifier' if rewards else 'as_reward_model'}"
        )
    made: PreTrainedModel = view_as_model(model, _forward)
    return made


def _forward(
    view: Any, base_forward: Callable[..., Any], given: dict[str, Any]
) -> EnsembleScores | tuple[Any, ...]:
    model: StackedModel = view.ensemble
    rows = given.get("input_ids") if given.get("input_ids") is not None else given.get("inputs_embeds")
    if rows is None:
        raise ConfigError(
            "the ensemble was called without rows; pass input_ids (B, T) or inputs_embeds (B, T, D)"
        )
    labels, as_tuple = given.pop("labels", None), given.pop("return_dict", None) is False
    members, batch = model.num_members, rows.shape[0]
    repeated = {name: for_members(value, batch, members) for name, value in given.items()}
    axes = (
        rows.shape[:-1] if given.get("input_ids") is not None else rows.shape[:-2]
    )  # (B,) or (B, options) texts
    texts = members * axes.numel()
    tokens = members * (rows.numel() if given.get("input_ids") is not None else rows.shape[:-1].numel())
    with model.stack.running(rows=texts, tokens=tokens):
        member_logits = unfold_members(base_forward(**repeated).logits, members)
    if member_logits.shape[-1] == 1:
        logits = member_logits.float().mean(dim=0)
    else:
        logits = (
            member_logits.float().log_softmax(dim=-1).logsumexp(dim=0) - torch.tensor(float(members)).log()
        )
    result = EnsembleScores(loss=_loss(logits, labels), logits=logits, member_logits=member_logits)
    return result.to_tuple() if as_tuple else result


def _loss(logits: Tensor, labels: Tensor | None) -> Tensor | None:
    if labels is None:
        return None
    if logits.shape[-1] == 1:
        raise ConfigError(
            "labels= for an ensemble of reward models, whose members learn from pairs; use lora_ensembles.train"
        )
    return F.nll_loss(logits, labels)
