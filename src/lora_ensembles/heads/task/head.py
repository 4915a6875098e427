"""Trainable task heads, which members own: they score texts.

Shapes: M members, N examples, W texts of all examples, B texts of a pass, C options or classes, K scores of a
text.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from torch import Tensor, nn

from ...data import Completion, Example
from ...errors import ConfigError
from ...passes.reader import Reader, TextReader
from ...passes.shared_prefix import scored_in_parts
from ...passes.stacked_model import StackedModel
from ...passes.texts import Texts, text_scores
from ...stack.head_config import HeadConfig, LabelScore
from ...stack.lora import unfold_members
from ..base import Head
from ..resolve import base_kind
from .encoding import encode_texts, log_probs, with_classes
from .losses import TextRows, check_examples
from .scores import score_texts
from .table import TextTable


@dataclass(frozen=True)
class TaskHead(Head):
    """Sequence classification, multiple choice or reward: each member owns a head that scores texts."""

    trained: ClassVar[bool] = True
    reader: ClassVar[Reader] = TextReader()

    def check_base(self, base: nn.Module, targets: Mapping[str, Tensor] | None = None) -> None:
        return None  # `resolve_head` did

    def try_base(self, base: nn.Module) -> None:
        return None  # what it reads is tried where it is scored

    def table(self, model: StackedModel, examples: Sequence[Example]) -> TextTable:
        """The texts of examples."""
        return encode_texts(
            examples, model.base, model.tokenizer, head=self.config, overlong=model.info.overlong
        )

    def member_log_probs(
        self, model: StackedModel, examples: Sequence[Example], *, max_rows: int | None
    ) -> Tensor:
        """log p of each class or option (M, N, C)."""
        table = self.table(model, examples)
        return log_probs(table.per_example(self.scores(model, table, max_rows=max_rows)))

    def scores(self, model: StackedModel, table: TextTable, *, max_rows: int | None) -> Tensor:
        """The scores of every member's head for each text: (M, W, K), float32."""
        members, token = model.num_members, model.token_read
        states = states_above_trunk(model, table)

        def score(rows: int) -> Tensor:
            reader = model.shared_rows(rows)

            def read(texts: Texts) -> Tensor:
                return reader.passes(
                    texts.ids,
                    lambda _, count: unfold_members(
                        text_scores(model.base, texts.repeated(count), token=token), count
                    ),
                    states=states(texts),
                    names=lambda: table.names(texts.numbers),
                )

            return score_texts(table, read, rows=reader.rows, padded=not model.padding_is_read)

        return scored_in_parts(score, table.rows_in_flight(members, max_rows=max_rows))

    def check_rows(
        self,
        model: StackedModel,
        examples: Sequence[Example] | Sequence[Completion],
        validation: Sequence[Example] | Sequence[Completion],
        *,
        overlong: Literal["error", "left"],
    ) -> None:
        head = with_classes(self.config, check_examples(self.kind, examples))
        if questions := check_examples(self.kind, validation):
            encode_texts(questions, model.base, model.tokenizer, head=head, overlong=overlong)

    def named(self, examples: Sequence[Example] | Sequence[Completion]) -> HeadConfig:
        return with_classes(self.config, check_examples(self.kind, examples))

    def training_rows(
        self,
        model: StackedModel,
        examples: Sequence[Example] | Sequence[Completion],
        *,
        loss: Literal["auto", "vocabulary", "labels"],
        label_score: LabelScore,
        overlong: Literal["error", "left"],
        rows: int,
        with_kl: bool,
        with_dropout: bool,
    ) -> TextRows:
        if loss == "vocabulary":
            raise ConfigError(
                f"loss='vocabulary': members with {self.kind} heads give probabilities to classes "
                "or options, not to a vocabulary; leave it at 'auto'"
            )
        return TextRows.of(model, examples, overlong=overlong, rows=rows, with_kl=with_kl)

    def run_settings(self, settings: dict[str, Any], loss: str) -> dict[str, Any]:
        kept = {name: value for name, value in settings.items() if name not in ("loss", "label_score")}
        return {**kept, "head": self.config.to_dict()}

    def description(self, base: nn.Module) -> dict[str, Any]:
        config: Any = base.config
        return {
            "head": self.config.to_dict(),
            "base": {"kind": base_kind(base), "num_labels": config.num_labels},
        }


def states_above_trunk(model: StackedModel, table: TextTable) -> Callable[[Texts], Tensor | None]:
    """A function that gives the hidden states (B, T, H) that enter the lowest adapted layer for texts of a
    table; None where no layer is below it.

    Where the model keeps them, `kept_states`, the trunk reads each text of a table once, however often the
    table is scored.
    """
    trunk, base = model.trunk, model.base
    if trunk is None:
        return lambda _: None
    if model.kept_states is not None:
        states = model.trunk_states(
            table.fingerprint(),
            table.text_lengths,
            rows=table.rows_in_flight(1, max_rows=None),
            read=lambda numbers: text_scores(base, table.texts(numbers)),
        )
        if states is not None:
            return lambda texts: states.of_rows(texts.numbers, texts.ids.shape[1])
    return lambda texts: trunk.states(lambda: text_scores(base, texts))


def task_head_of(model: StackedModel, what: str) -> TaskHead:
    """The members' own heads; `what` names what needs them.

    Raises:
        ConfigError: the members are those of a causal language model.
    """
    if model.reader.causal:
        raise ConfigError(
            f"{what} needs members with heads of their own, and this ensemble is a causal language model"
        )
    return TaskHead(model.info.head)
