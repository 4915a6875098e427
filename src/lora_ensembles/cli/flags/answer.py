"""The choice between answering by letter and in words, where --answer auto leaves it to the base."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ...data.prompts import Answer, rendered
from ...data.splits import sample
from ...errors import ConfigError
from ..common import say

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

AUTO = "auto"
ASKED = 100  # training questions, without a demonstration, by which the two are compared


def chosen_answer(
    base: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, examples: Sequence[Any]
) -> Answer:
    """The kind of answer by which the base itself is right more often on training questions; letters, which
    cost less, where both are equal.

    Raises:
        ConfigError: no question has lettered options.
    """
    from ...baselines import FewShot
    from ...data import Example
    from ...prediction.metrics import accuracy
    from ...prediction.orders import is_listed
    from ...prediction.prediction import predict

    listed = [example for example in examples if isinstance(example, Example) and is_listed(example)]
    if not listed:
        raise ConfigError("--answer auto: no question has lettered options to choose a kind of answer for")
    asked = sample(listed, ASKED, seed=0)
    bare = FewShot(base, tokenizer, (), shots=0)
    right = {answer: accuracy(predict(bare, rendered(asked, answer))) for answer in ("letter", "text")}
    chosen: Answer = "text" if right["text"] > right["letter"] else "letter"
    say(
        f"--answer auto: of {len(asked)} training questions the base itself gets {right['letter']:.0%} right "
        f"by letter and {right['text']:.0%} in words; members answer by {chosen}"
    )
    return chosen


def in_answers(task: Any, answer: Answer) -> Any:
    """A task with its questions rendered for this kind of answer."""
    return dataclasses.replace(
        task, train=rendered(task.train, answer), validation=rendered(task.validation, answer)
    )
