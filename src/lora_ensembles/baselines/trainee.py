"""The training of members that are no adapters, by the one loop.

Shapes: M members, B rows of a member, N examples, P parameters of a member, n answer tokens in all, H hidden
size.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..data import Completion, EncodedExample, Example
from ..errors import ConfigError, DataError
from ..heads.lm.table import TokenTable, encode_rows
from ..passes.answer_positions import hidden_at
from ..passes.memory import SCORING_ROWS
from ..passes.shared_prefix import context_window
from ..prediction.prediction import Predictor
from ..stack.lora import fold_members
from ..storage.folder import fingerprint, precision
from ..training.config import TrainConfig
from ..training.trainee import Trainee
from ..training.validation import answers, check_answers, measured

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class BaselineTrainee(Trainee):
    """Members of a baseline in training: flat buffers on one frozen base.

    Attributes:
        predictor: the baseline itself.
        base: the frozen base.
    """

    predictor: Predictor
    base: PreTrainedModel

    def settings(self, config: TrainConfig) -> dict[str, Any]:
        settings = config.to_dict()
        for name in ("log_every", "checkpoint_every", "max_rows"):
            del settings[name]  # they change no result
        return {
            **settings,
            "baseline": type(self.predictor).__name__,
            "order_seeds": self.order_seeds,
            "shapes": {name: list(buffer.shape) for name, buffer in self.buffers.items()},
            "base": fingerprint(self.base),
            "base_precision": precision(self.base),
            "data": self.rows.fingerprint(),
        }

    def validate(
        self,
        examples: Sequence[Example] | Sequence[Completion],
        *,
        epoch: int,
        max_rows: int | None,
        last: bool,
    ) -> dict[str, Any]:
        return measured(answers(self.predictor, examples, max_rows=max_rows), examples, last=last)


def check_validation(examples: Sequence[Example]) -> None:
    """Refuse validation examples that could not be measured after an epoch.

    Raises:
        DataError: one is an open answer, or has no answer.
    """
    for example in examples:
        if not isinstance(example, Example):
            raise DataError(
                f"validation holds a {type(example).__name__}; pass questions with options (Example)"
            )
    check_answers(examples)


def check_settings(config: TrainConfig, what: str) -> None:
    """Refuse settings that this training does not have, rather than ignore them.

    Raises:
        ConfigError: dropout, a loss over labels or orders of options are asked for.
    """
    dropout = config.dropout if isinstance(config.dropout, list | tuple) else [config.dropout or 0.0]
    unsupported = {
        "dropout": any(dropout),
        "loss": config.loss == "labels",
        "option_orders": config.option_orders > 1,
        "anchored": config.anchored,
        "shared_a": config.shared_a,
    }
    for name, asked in unsupported.items():
        if asked:
            raise ConfigError(
                f"{name}={getattr(config, name)!r}: {what} has no such setting; "
                "leave it out (dataclasses.replace)"
            )


def training_rows(
    examples: Sequence[Example],
    base: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    config: TrainConfig,
) -> tuple[list[EncodedExample], TokenTable]:
    """Labelled questions as token ids and as a table.

    Raises:
        DataError: there is none, one cannot be encoded, or one has no answer.
    """
    encoded = encode_rows(examples, tokenizer, max_length=context_window(base), overlong=config.overlong)
    return encoded, TokenTable.from_encoded(encoded, tokenizer.pad_token_id or 0, device=base.device)


@torch.no_grad()
def answer_states(base: PreTrainedModel, table: TokenTable, *, rows: int | None) -> Tensor:
    """The base's last hidden states (n, H) at every answer token of a table, in the base's dtype; `rows` rows
    are in flight.
    """
    kept: Tensor | None = None
    by_length = (table.prompt_lengths + table.answer_lengths).argsort()
    for indices in by_length.split(rows or SCORING_ROWS):
        batch = table.gather(indices[None])
        tokens = batch.answer_tokens()
        states = hidden_at(base, fold_members(batch.ids), tokens.places)
        if kept is None:
            kept = states.new_empty(int(table.answer_lengths.sum()), states.shape[1])
        kept[tokens.numbers] = states
    assert kept is not None  # a table has at least one row
    return kept
