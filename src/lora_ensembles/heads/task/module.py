"""An ensemble with task heads as a Hugging Face model: a classifier, a multiple-choice model or a reward
model with `.logits`.

Shapes: M members, B texts or questions, K classes, options or 1 score.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedModel
from transformers.modeling_outputs import SequenceClassifierOutput

from ...errors import ConfigError
from ...passes.stacked_model import StackedModel
from ...stack.lora import unfold_members
from ..whole_model import for_members, mean_log_probs, rows_of, view_as_model
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

    Its config names the ensemble's classes, where it knows them.

    Args:
        model: an ensemble whose members own heads.
        rewards: whether it should be a reward model, with one score for each text, or a classifier.

    Raises:
        ConfigError: the members have heads of another kind.
    """
    method = "as_reward_model" if rewards else "as_classifier"
    kind = task_head_of(model, method).kind
    if (kind == "reward") != rewards:
        raise ConfigError(
            f"{method} on members with {kind} heads; use {'as_classifier' if rewards else 'as_reward_model'}"
        )
    made: PreTrainedModel = view_as_model(model, _forward)
    classes = model.info.head.classes
    if classes:
        made.config = copy.deepcopy(made.config)  # the base's own stays as it was loaded
        made.config.id2label = dict(enumerate(classes))
        made.config.label2id = {name: number for number, name in enumerate(classes)}
    return made


def _forward(
    view: Any, base_forward: Callable[..., Any], arguments: dict[str, Any]
) -> EnsembleScores | tuple[Any, ...]:
    model: StackedModel = view.ensemble
    rows = rows_of(arguments)
    shape = rows.shape if arguments.get("input_ids") is not None else rows.shape[:-1]  # of tokens
    labels, as_tuple = arguments.pop("labels", None), arguments.pop("return_dict", None) is False
    members = model.num_members
    repeated = {name: for_members(value, rows.shape[0], members) for name, value in arguments.items()}
    # A multiple-choice model folds (B, options, T) into B * options texts.
    with model.stack.running(rows=members * shape[:-1].numel(), tokens=members * shape.numel()):
        member_logits = unfold_members(base_forward(**repeated).logits, members)
    scores = member_logits.float()
    logits = scores.mean(dim=0) if scores.shape[-1] == 1 else mean_log_probs(scores.log_softmax(dim=-1))
    result = EnsembleScores(loss=_loss(logits, labels), logits=logits, member_logits=member_logits)
    return result.to_tuple() if as_tuple else result


def _loss(logits: Tensor, labels: Tensor | None) -> Tensor | None:
    if labels is None:
        return None
    if logits.shape[-1] == 1:
        raise ConfigError(
            "labels= for an ensemble of reward models, whose members learn from pairs; "
            "use lora_ensembles.train"
        )
    return F.nll_loss(logits, labels)
