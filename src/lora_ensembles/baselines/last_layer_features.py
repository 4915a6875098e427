"""The last layer of trained members: its weights, and what enters it in one pass of the body.

Shapes: M members, N examples, C labels, B rows of a member, T tokens, L outputs of the layer, H features; one
more where the layer has a bias, 1 in every row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from ..data import EncodedExample, Example, encode_examples
from ..errors import AdapterError, DataError
from ..heads.lm.table import check_answered
from ..heads.task.head import states_above_trunk, task_head_of
from ..heads.task.losses import check_labelled
from ..heads.task.scores import score_texts
from ..passes.answer_positions import hidden_at
from ..passes.decoder import Places
from ..passes.hooks import read_at
from ..passes.memory import scoring_rows
from ..passes.shared_prefix import context_window, scored_in_parts
from ..passes.stacked_model import StackedModel
from ..passes.texts import Texts, last_tokens, pad_rows, text_scores
from ..stack.lora import unfold_members
from .last_layer import head_weight, nothing_behind_head


class LastLayer(Protocol):
    """The last layer of every member of a model."""

    def weights(self) -> Tensor:
        """The trained weights (M, L, H), float32; the bias is the last column."""
        ...

    def read(self, examples: Sequence[Example], *, max_rows: int | None) -> tuple[Tensor, Tensor]:
        """The features (M, N, H) that enter the layer, float32 on the CPU, and the output that is each
        label's (N, C), -1 where an example has fewer.
        """
        ...


def last_layer_of(model: StackedModel, examples: Sequence[Example]) -> LastLayer:
    """The last layer by the kind of head, with the outputs that the labels of training examples name.

    Raises:
        DataError: no examples, one without an answer, or a label of several tokens.
        AdapterError: a causal language model whose logits are not what leaves its head.
    """
    return HeadRows.of(model, examples) if model.reader.causal else ClassifierLayer.of(model, examples)


@dataclass(frozen=True)
class HeadRows:
    """The rows of a causal language model's head that spell labels, which all members have alike.

    Attributes:
        model: the members.
        label_ids: the tokens of the labels, L in rising order.
    """

    model: StackedModel
    label_ids: tuple[int, ...]

    @classmethod
    def of(cls, model: StackedModel, examples: Sequence[Example]) -> HeadRows:
        encoded = _encoded(model, examples)
        check_answered(encoded)
        label_ids = sorted({label[0] for example in encoded for label in example.label_ids})
        with model.base_only() as base:
            if not nothing_behind_head(base, len(label_ids)):
                raise AdapterError(
                    f"{type(base).__name__} changes the logits behind its head (a cap or a scale), so they "
                    "are not linear in its rows; use a distribution over adapters, such as TFB or SWAG"
                )
        return cls(model, tuple(label_ids))

    def weights(self) -> Tensor:
        head: Any = self.model.base.get_output_embeddings()
        rows = head_weight(self.model.base)[list(self.label_ids)].detach()
        bias = getattr(head, "bias", None)
        rows = rows if bias is None else torch.cat([rows, bias[list(self.label_ids), None].detach()], dim=1)
        return rows.float().expand(self.model.num_members, -1, -1)

    def read(self, examples: Sequence[Example], *, max_rows: int | None) -> tuple[Tensor, Tensor]:
        model, encoded = self.model, _encoded(self.model, examples)
        columns = self._columns(examples, encoded)
        order = sorted(range(len(encoded)), key=lambda n: -len(encoded[n].prompt_ids))
        prompts = [encoded[n].prompt_ids for n in order]
        length = sum(map(len, prompts)) / max(1, len(prompts))

        def features(rows: int) -> Tensor:
            reading = model.shared_rows(rows)
            parts = []
            for start in range(0, len(prompts), reading.rows):
                batch = prompts[start : start + reading.rows]
                ids = pad_rows(batch, model.pad_id, device=model.device)
                last = torch.tensor([len(prompt) - 1 for prompt in batch], device=model.device)
                parts.append(reading.passes(ids, _Answers(model, last)).float().cpu())
            return torch.cat(parts, dim=1)

        rows = scoring_rows(model.num_members, tokens_a_row=length, device=model.device, max_rows=max_rows)
        read = scored_in_parts(features, rows)[:, torch.tensor(order).argsort()]
        bias = getattr(model.base.get_output_embeddings(), "bias", None)
        return _with_constant(read, constant=bias is not None), columns

    def _columns(self, examples: Sequence[Example], encoded: Sequence[EncodedExample]) -> Tensor:
        known = {token: column for column, token in enumerate(self.label_ids)}
        columns = torch.full((len(encoded), max(len(one.label_ids) for one in encoded)), -1)
        for row, (example, one) in enumerate(zip(examples, encoded, strict=True)):
            for place, (token,) in enumerate(one.label_ids):
                if token not in known:
                    spelled = self.model.tokenizer.convert_ids_to_tokens(list(self.label_ids))
                    raise DataError(
                        f"example {example.id!r}: the label {example.labels[place]!r} is none of those that "
                        f"the last layer was fitted on ({', '.join(spelled)}), so nothing is known of its "
                        "row; fit on training examples that have it"
                    )
                columns[row, place] = known[token]
        return columns


@dataclass(frozen=True)
class _Answers:
    """Reads what enters the head at one place of each row (B,), in a pass of several members."""

    model: StackedModel
    last: Tensor

    def __call__(self, ids: Tensor, count: int) -> Tensor:
        places = Places(torch.arange(len(ids), device=ids.device), self.last.repeat(count))
        return unfold_members(hidden_at(self.model.base, ids, places), count)


@dataclass(frozen=True)
class ClassifierLayer:
    """The last linear layer of the members' own heads, whose outputs are the scores of the classes."""

    model: StackedModel

    @classmethod
    def of(cls, model: StackedModel, examples: Sequence[Example]) -> ClassifierLayer:
        check_labelled(task_head_of(model, "ClassifierLayer").table(model, examples))
        return cls(model)

    def weights(self) -> Tensor:
        heads = self.model.stack.heads
        named = dict(zip((site.name for site in heads.sites), heads.views(heads.flat), strict=True))
        name = heads.layers[-1].name
        weight, bias = named[f"{name}.weight"], named.get(f"{name}.bias")
        return (weight if bias is None else torch.cat([weight, bias[..., None]], dim=2)).detach().clone()

    def read(self, examples: Sequence[Example], *, max_rows: int | None) -> tuple[Tensor, Tensor]:
        model = self.model
        table, token, layer = (
            task_head_of(model, "ClassifierLayer").table(model, examples),
            model.token_read,
            model.stack.heads.layers[-1],
        )
        states = states_above_trunk(model, table)

        def entering(texts: Texts, count: int) -> Tensor:
            copies = texts.repeated(count)
            read = read_at(layer, lambda: text_scores(model.base, copies, token=token), side="before")
            if read.dim() == 3:  # a decoder scores every token, and takes the last
                rows = torch.arange(len(read), device=read.device)
                read = read[rows, last_tokens(model.base, copies.ids)]
            return unfold_members(read, count)

        def features(rows: int) -> Tensor:
            reader = model.shared_rows(rows)
            return score_texts(
                table,
                lambda texts: reader.passes(
                    texts.ids, lambda _, count: entering(texts, count), states=states(texts)
                ),
                rows=reader.rows,
                padded=not model.padding_is_read,
            )

        read = scored_in_parts(features, table.rows_in_flight(model.num_members, max_rows=max_rows))
        constant = layer.head_bias is not None
        return _with_constant(read, constant=constant), torch.arange(layer.base_layer.out_features).expand(
            len(table), -1
        )


def _encoded(model: StackedModel, examples: Sequence[Example]) -> list[EncodedExample]:
    encoded = encode_examples(
        examples, model.tokenizer, max_length=context_window(model.base), overlong=model.info.overlong
    )
    for example, one in zip(examples, encoded, strict=True):
        for label, tokens in zip(example.labels, one.label_ids, strict=True):
            if len(tokens) > 1:
                raise DataError(
                    f"example {example.id!r}: the label {label!r} is {len(tokens)} tokens, and the last "
                    "layer is the head's rows of single ones; choose labels of one token, such as letters, "
                    "or a distribution over adapters, such as TFB or SWAG"
                )
    return encoded


def _with_constant(features: Tensor, *, constant: bool) -> Tensor:
    return torch.cat([features, torch.ones_like(features[..., :1])], dim=-1) if constant else features
