"""From examples to the texts that a head scores: a text or a pair for a classifier, question and option for a
choice, prompt and answer for a reward.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

import torch

from ...data import Example
from ...data.tokens.questions import check_window
from ...errors import ConfigError, DataError
from ...passes.texts import text_window
from ...prediction.soft_labels import soft_targets
from ..resolve import HeadConfig
from .table import TextTable

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Text = tuple[str, str | None]  # a text, and the second one of a pair
Overlong = Literal["error", "left"]


def encode_texts(
    examples: Sequence[Example],
    base: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    *,
    head: HeadConfig,
    overlong: Overlong = "error",
) -> TextTable:
    """The table of texts that a head scores, in the order of the examples.

    Text of an example is its `question`, or its `prompt` where there is none, with `pair` as the second text.
    A multiple choice scores (question, option) as a pair for each option; a reward the prompt with each
    option behind it, as one text. The tokenizer puts special tokens and token types where the model wants
    them.

    Raises:
        DataError: no examples; one without options, with other classes than the head has, or with a text that
            is too long.
        ConfigError: an unknown `overlong`.
    """
    if not examples:
        raise DataError("no training examples were given; pass at least one")
    for example in examples:
        _check(example, base, head)
    groups = [_texts(example, head) for example in examples]
    ids = [example.id for example, group in zip(examples, groups, strict=True) for _ in group]
    rows, types = _tokenise(
        [text for group in groups for text in group], ids, base, tokenizer, head=head, overlong=overlong
    )
    return TextTable.of(
        rows,
        types,
        pad_id=_pad_id(base),
        counts=[len(group) for group in groups],
        targets=[example.target for example in examples],
        choices=head.kind != "sequence-classification",
        device=base.device,
        target_probs=soft_targets(examples, [len(example.labels) for example in examples]),
    )


def plain_table(
    texts: Sequence[str],
    base: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    *,
    head: HeadConfig,
    overlong: Overlong = "error",
) -> TextTable:
    """A table of texts that belong to no examples, each by itself.

    Raises:
        DataError: a text that is empty or too long.
    """
    names = [str(number) for number in range(1, len(texts) + 1)]
    empty = [name for name, text in zip(names, texts, strict=True) if not text.strip()]
    if empty:
        raise DataError(f"text {empty[0]} is empty; there is nothing to score")
    rows, types = _tokenise(
        [(text, None) for text in texts], names, base, tokenizer, head=head, overlong=overlong
    )
    every: list[int | None] = [None] * len(texts)
    return TextTable.of(
        rows,
        types,
        pad_id=_pad_id(base),
        counts=[1] * len(texts),
        targets=every,
        choices=True,
        device=base.device,
    )


def with_classes(head: HeadConfig, examples: Sequence[Example]) -> HeadConfig:
    """The head with the classes of training examples, where it has such and there are examples."""
    if head.kind != "sequence-classification" or not examples:
        return head
    return dataclasses.replace(head, classes=class_names(examples[0]))


def class_names(example: Example) -> tuple[str, ...]:
    """The classes of a classification example, without the spaces around them."""
    return tuple(label.strip() for label in example.labels)


def _texts(example: Example, head: HeadConfig) -> list[Text]:
    question = example.question or example.prompt
    if head.kind == "sequence-classification":
        return [(question, example.pair)]
    if head.kind == "multiple-choice":
        return [(question, option) for option in example.options]
    return [(example.prompt + option, None) for option in example.options]


def _check(example: Example, base: Any, head: HeadConfig) -> None:
    where = f"example {example.id!r}"
    if head.kind != "sequence-classification":
        if len(example.options) != len(example.labels):
            raise DataError(
                f"{where} has {len(example.options)} options and {len(example.labels)} labels; "
                f"a {head.kind} head scores the text of each option: give one option for each label"
            )
        return
    labels = class_names(example)
    if len(labels) != base.config.num_labels:
        raise DataError(
            f"{where} has {len(labels)} classes ({', '.join(labels)}), and the base's head "
            f"{base.config.num_labels}; load it with num_labels={len(labels)}, or correct the labels"
        )
    if head.classes and labels != head.classes:
        raise DataError(
            f"{where} has the classes {', '.join(labels)}, and the ensemble {', '.join(head.classes)}; "
            "they must be the same"
        )
    base_classes = [str(base.config.id2label[number]).casefold() for number in range(len(labels))]
    classes = [label.casefold() for label in labels]
    if head.init == "base" and base_classes != classes and sorted(base_classes) == sorted(classes):
        raise DataError(
            f"{where} has the classes {', '.join(labels)}, and the base's head {', '.join(base_classes)}; "
            "give them in this order"
        )


def _tokenise(
    texts: Sequence[Text],
    ids: Sequence[str],
    base: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    *,
    head: HeadConfig,
    overlong: Overlong,
) -> tuple[list[list[int]], list[list[int]] | None]:
    """Token ids of texts and pairs, and their token types where the model has such."""
    window = text_window(base)
    if head.max_length is not None and window is not None and head.max_length > window:
        raise ConfigError(
            f"max_length={head.max_length}: the base reads {window} tokens at most; "
            "give that or less, or leave it out"
        )
    limit = head.max_length or window
    check_window(limit, overlong)
    rows: list[list[int]] = [[] for _ in texts]
    types: list[list[int]] = [[] for _ in texts]
    typed = _takes_types(base) and "token_type_ids" in tokenizer.model_input_names
    for paired in (False, True):
        places = [place for place, (_, pair) in enumerate(texts) if (pair is not None) == paired]
        for place, (row, kinds) in zip(
            places, _call(tokenizer, [texts[place] for place in places], limit=None), strict=True
        ):
            if limit is not None and len(row) > limit:
                if overlong == "error":
                    raise DataError(
                        f"example {ids[place]!r}: its text is {len(row)} tokens, and the window is {limit}; "
                        "shorten it, or cut its beginning with overlong='left'"
                    )
                row, kinds = _cut(tokenizer, texts[place], limit, id=ids[place])
            rows[place], types[place] = row, kinds
    return rows, types if typed else None


def _call(tokenizer: Any, texts: Sequence[Text], *, limit: int | None) -> list[tuple[list[int], list[int]]]:
    if not texts:
        return []
    first, second = [text for text, _ in texts], [pair for _, pair in texts]
    cut = {"truncation": False} if limit is None else {"truncation": "only_first", "max_length": limit}
    encoded = tokenizer(
        first, *([] if second[0] is None else [second]), return_token_type_ids=True, verbose=False, **cut
    )
    return list(zip(encoded["input_ids"], encoded["token_type_ids"], strict=True))


def _cut(tokenizer: Any, text: Text, limit: int, *, id: str) -> tuple[list[int], list[int]]:
    """The text without its beginning, or of a pair without that of its first text, with all
    special tokens.
    """
    too_long = DataError(
        f"example {id!r}: its second text alone fills the window of {limit} tokens; "
        "use a longer one, or shorten the text"
    )
    if text[1] is not None and len(_call(tokenizer, [("", text[1])], limit=None)[0][0]) >= limit:
        raise too_long
    with _cut_on_the_left(tokenizer):
        return _call(tokenizer, [text], limit=limit)[0]


@contextmanager
def _cut_on_the_left(tokenizer: Any) -> Iterator[None]:
    before, tokenizer.truncation_side = tokenizer.truncation_side, "left"
    try:
        yield
    finally:
        tokenizer.truncation_side = before


def _takes_types(base: PreTrainedModel) -> bool:
    return (
        "token_type_ids" in inspect.signature(base.forward).parameters
        and getattr(base.config, "type_vocab_size", 0) > 1
    )


def _pad_id(base: Any) -> int:
    pad = base.config.get_text_config().pad_token_id
    if not isinstance(pad, int):
        raise ConfigError("the base has no padding token; set base.config.pad_token_id to the tokenizer's")
    return pad


def no_target(table: TextTable) -> int | None:
    """The number of the first example without a target, counted from 1."""
    missing = (table.targets < 0).nonzero().flatten()
    return int(missing[0]) + 1 if len(missing) else None


def log_probs(scores: torch.Tensor) -> torch.Tensor:
    """Scores (..., C) as log-probabilities, float32; -inf stays -inf."""
    return scores.float().log_softmax(dim=-1)
