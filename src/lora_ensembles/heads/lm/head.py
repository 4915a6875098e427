"""The frozen LM head: an answer is the tokens of its label, or of the completion.

Shapes: M members, N examples, C labels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from torch import Tensor, nn

from ...data import Completion, EncodedExample, Example
from ...errors import ConfigError
from ...passes import probe
from ...passes.reader import LogitReader, Reader
from ...passes.shared_prefix import context_window
from ...passes.stacked_model import StackedModel
from ...stack.head_config import LabelScore
from ..base import Head, TrainingRows
from ..remarks import warn_of_label_lengths
from .label_losses import LabelRows
from .losses import AnswerRows
from .scores import score_examples
from .table import encode_rows


@dataclass(frozen=True)
class LMHead(Head):
    """The causal language model's own head, which no member changes."""

    trained: ClassVar[bool] = False
    reader: ClassVar[Reader] = LogitReader()

    def check_base(self, base: nn.Module, targets: Mapping[str, Tensor] | None = None) -> None:
        probe.check_language_model(base)
        if targets is not None:
            probe.check_targets(base, targets)

    def try_base(self, base: nn.Module) -> None:
        probe.probe_language_model(base)

    def member_log_probs(
        self, model: StackedModel, examples: Sequence[Example], *, max_rows: int | None
    ) -> Tensor:
        """log p of each label (M, N, C); see `heads.lm.scores.score_labels`."""
        return score_examples(
            examples,
            model.shared_rows,
            base=model.base,
            tokenizer=model.tokenizer,
            copies=model.num_members,
            max_rows=max_rows,
            overlong=model.info.overlong,
            label_score=model.info.label_score,
        )

    def label_mass(self, model: StackedModel, examples: Sequence[Example], *, max_rows: int | None) -> Tensor:
        """The share of each member's probability over the vocabulary that lies on an example's labels
        (M, N).
        """
        sums = score_examples(
            examples,
            model.shared_rows,
            base=model.base,
            tokenizer=model.tokenizer,
            copies=model.num_members,
            max_rows=max_rows,
            overlong=model.info.overlong,
            label_score=None,
        )
        return sums.logsumexp(dim=-1).exp().clamp_max(1.0)

    def check_rows(
        self,
        model: StackedModel,
        examples: Sequence[Example] | Sequence[Completion],
        validation: Sequence[Example] | Sequence[Completion],
        *,
        overlong: Literal["error", "left"],
    ) -> None:
        encode_rows(validation, model.tokenizer, max_length=context_window(model.base), overlong=overlong)

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
    ) -> TrainingRows:
        encoded = encode_rows(
            examples, model.tokenizer, max_length=context_window(model.base), overlong=overlong
        )
        questions = [example for example in examples if isinstance(example, Example)]
        if len(questions) < len(encoded):
            _refuse_labels_of_open_answers(loss)
        elif _over_labels(loss, questions, encoded):
            return LabelRows.of(
                model,
                encoded,
                rows=rows,
                with_kl=with_kl,
                with_dropout=with_dropout,
                label_score=label_score,
            )
        elif label_score == "sum":
            warn_of_label_lengths(questions, encoded)
        return AnswerRows.of(model, encoded, rows=rows, with_kl=with_kl)

    def run_settings(self, settings: dict[str, Any], loss: str) -> dict[str, Any]:
        kept = {name: value for name, value in settings.items() if name != "weight_decay_head"}
        kept["loss"] = loss
        if loss == "vocabulary":
            del kept["label_score"]  # which changes no weight there
        return kept

    def description(self, base: nn.Module) -> dict[str, Any]:
        return {}


def _over_labels(
    loss: Literal["auto", "vocabulary", "labels"],
    questions: Sequence[Example],
    encoded: Sequence[EncodedExample],
) -> bool:
    """Whether the loss is over the label set: as asked; by default where questions have soft labels, or share
    one set with a label of several tokens.
    """
    soft = any(question.target_probs is not None for question in questions)
    if loss == "vocabulary" and soft:
        raise ConfigError(
            "loss='vocabulary': it takes one right answer, and these examples have soft labels; leave it at "
            "'auto', or set it to 'labels'"
        )
    if loss != "auto" or soft:
        return loss == "labels" or soft
    one_set = len({question.labels for question in questions}) == 1
    return one_set and any(len(label) > 1 for example in encoded for label in example.label_ids)


def _refuse_labels_of_open_answers(loss: str) -> None:
    if loss == "labels":
        raise ConfigError(
            "loss='labels': open answers (Completion) have no set of labels to choose from; "
            "leave it at 'auto', or train on questions with options or labels (Example)"
        )
