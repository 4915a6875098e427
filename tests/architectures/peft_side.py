"""A member of an ensemble as a PEFT model, asked and trained one unpadded row at a time.

Shapes: T tokens, V vocabulary, C labels or classes.
"""

from __future__ import annotations

import copy
import inspect
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from lora_ensembles.data import EncodedExample
from lora_ensembles.stack.sites import MemberWeights
from lora_ensembles.training.orders import epoch_order

Row = TypeVar("Row")
SAVED = ".modules_to_save.default."  # in the name of a parameter of a head
PREFIX = "base_model.model."


@dataclass(frozen=True)
class Recipe:
    """The settings of a run; decays large enough to show in a few steps: 3 in an epoch of 5 examples."""

    epochs: int = 2
    batch_size: int = 2
    learning_rate: float = 3e-3
    weight_decay_a: float = 1.0
    weight_decay_b: float = 20.0
    weight_decay_head: float = 1.0
    kl_weight: float = 0.0
    loss: str = "auto"


@dataclass(frozen=True)
class Text:
    """A text for a classifier: its token ids, their types where the model has some, and its class."""

    ids: Sequence[int]
    types: Sequence[int] | None
    target: int


def peft_model(base: PreTrainedModel, config: LoraConfig, weights: MemberWeights) -> PeftModel:
    """A member's weights in PEFT, on a copy of the base."""
    model = get_peft_model(copy.deepcopy(base), copy.deepcopy(config)).eval()
    with torch.no_grad():
        for name, parameter in trained_parameters(model):
            parameter.copy_(_named(weights, name))
    return model


def trained_parameters(model: PeftModel) -> Iterator[tuple[str, nn.Parameter]]:
    """The parameters of adapter and head, by their names in PEFT."""
    return (
        (name, parameter) for name, parameter in model.named_parameters() if ".lora_" in name or SAVED in name
    )


def _named(weights: MemberWeights, name: str) -> Tensor:
    plain = name.removeprefix(PREFIX)
    if SAVED in plain:
        return weights.head[plain.replace(SAVED, ".")]
    site, _, matrix = plain.rpartition(".lora_")
    return (weights.a if matrix.startswith("A") else weights.b)[site]


def flat(model: PeftModel, weights: MemberWeights | None = None) -> Tensor:
    """All that is trained in one vector: as PEFT has it, or of other weights in the same order."""
    parts = [
        parameter.detach() if weights is None else _named(weights, name)
        for name, parameter in trained_parameters(model)
    ]
    return torch.cat([part.flatten() for part in parts])


def logits_of(model: nn.Module, ids: Sequence[int], *, copies: int = 1) -> Tensor:
    """Logits (T, V) of one row without padding and cache; several `copies` of it with padding behind change
    rounding alone.
    """
    behind = [0] * min(2, copies - 1)
    rows = torch.tensor([[*ids, *behind]] * copies)
    logits: Tensor = model(input_ids=rows, use_cache=False).logits[0, : len(ids)]
    return logits


def scores_of(model: nn.Module, text: Text, *, copies: int = 1) -> Tensor:
    """A classifier's scores (C,) of one text, as `logits_of`."""
    rows = torch.tensor([list(text.ids)] * copies)
    named: dict[str, Any] = {"input_ids": rows, "attention_mask": torch.ones_like(rows)}
    if text.types is not None:
        named["token_type_ids"] = torch.tensor([list(text.types)] * copies)
    plain = model.get_base_model() if isinstance(model, PeftModel) else model
    if "use_cache" in inspect.signature(plain.forward).parameters:
        named["use_cache"] = False
    scores: Tensor = model(**named).logits[0]
    return scores


def label_log_probs(model: nn.Module, example: EncodedExample, *, copies: int = 1) -> Tensor:
    """log p of each label (C,), the sum over its tokens, normalised over the labels (Eq. 1)."""
    start = len(example.prompt_ids) - 1
    sums = []
    for label in example.label_ids:
        logits = logits_of(model, [*example.prompt_ids, *label], copies=copies)
        log_probs = logits[start : start + len(label)].log_softmax(dim=-1)
        sums.append(log_probs[range(len(label)), list(label)].sum())
    return torch.stack(sums).log_softmax(dim=-1)


def answer_loss(model: PeftModel, example: EncodedExample, *, kl_weight: float, copies: int) -> Tensor:
    """-log p(answer) summed over its tokens (Eq. 3), plus the weighted divergence from the base (Eq. 4)."""
    answer = list(example.label_ids[example.target or 0])
    ids, start = [*example.prompt_ids, *answer], len(example.prompt_ids) - 1

    def log_probs() -> Tensor:
        return logits_of(model, ids, copies=copies)[start : start + len(answer)].log_softmax(dim=-1)

    tuned = log_probs()
    loss = -tuned[range(len(answer)), answer].sum()
    return loss + _divergence(model, tuned, log_probs, kl_weight)


def text_loss(model: PeftModel, text: Text, *, kl_weight: float, copies: int) -> Tensor:
    """-log p of a text's class, plus the weighted divergence from the base over the classes."""

    def log_probs() -> Tensor:
        return scores_of(model, text, copies=copies).log_softmax(dim=-1)

    tuned = log_probs()
    return -tuned[text.target] + _divergence(model, tuned, log_probs, kl_weight)


def _divergence(model: PeftModel, tuned: Tensor, log_probs: Callable[[], Tensor], weight: float) -> Tensor:
    if not weight:
        return torch.zeros(())
    with torch.no_grad(), model.disable_adapter():
        base = log_probs()
    return weight * F.kl_div(base, tuned, reduction="sum", log_target=True)


def train_by_peft(
    model: PeftModel,
    rows: Sequence[Row],
    loss: Callable[..., Tensor],
    *,
    order_seed: int,
    recipe: Recipe,
    copies: int = 1,
) -> None:
    """A member's run by torch.optim.AdamW: batches in its own order, the mean of the losses of rows."""
    decays = {
        ".lora_A.": recipe.weight_decay_a,
        ".lora_B.": recipe.weight_decay_b,
        SAVED: recipe.weight_decay_head,
    }
    named = dict(trained_parameters(model))
    groups = [
        {"params": [parameter for name, parameter in named.items() if part in name], "weight_decay": decay}
        for part, decay in decays.items()
    ]
    optimizer = torch.optim.AdamW(groups, lr=recipe.learning_rate)
    per_epoch = math.ceil(len(rows) / recipe.batch_size)
    for step in range(per_epoch * recipe.epochs):
        epoch, place = divmod(step, per_epoch)
        order = epoch_order(order_seed, epoch, len(rows)).tolist()
        batch = order[place * recipe.batch_size : (place + 1) * recipe.batch_size]
        losses = [loss(model, rows[n], kl_weight=recipe.kl_weight, copies=copies) for n in batch]
        torch.stack(losses).mean().backward()
        optimizer.step()
        optimizer.zero_grad()
