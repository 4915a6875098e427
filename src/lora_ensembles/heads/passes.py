"""What members say about examples, by whichever head they have.

Shapes: M members, N examples, W texts of all examples, B texts of a pass, C options or classes, K scores of a text.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from ..data import Example, encode_examples
from ..errors import ConfigError
from ..passes.memory import scoring_rows, with_fewer_rows
from ..passes.shared_prefix import context_window, scored_in_parts
from ..passes.stacked_model import StackedModel
from ..passes.texts import Texts, text_scores
from ..passes.trunk_states import TrunkStates
from ..stack.lora import unfold_members
from .lm.scores import score_labels
from .resolve import HeadConfig, HeadKind
from .task.encoding import encode_texts, log_probs
from .task.table import TextTable

ReadTexts = Callable[[Texts], Tensor]  # texts of B rows -> scores (M, B, K)


class Head(Protocol):
    """What members say about examples."""

    @property
    def kind(self) -> HeadKind:
        """Its name."""
        ...

    def member_log_probs(
        self, ensemble: StackedModel, examples: Sequence[Example], *, max_rows: int | None
    ) -> Tensor:
        """(M, N, C) log-probabilities of labels, classes or options, with at most `max_rows` rows (members * texts) in flight."""
        ...


def head_of(config: HeadConfig) -> Head:
    """The head that a config describes."""
    return TextHead(config) if config.owned else LabelTokens()


def member_log_probs(
    model: StackedModel, examples: Sequence[Example], *, max_rows: int | None = None
) -> Tensor:
    """log p of each label, class or option for each member (M, N, C), float32, by the head that the members have."""
    return head_of(model.info.head).member_log_probs(model, examples, max_rows=max_rows)


@dataclass(frozen=True)
class LabelTokens:
    """The causal language model's own head, frozen: an answer is the tokens of its label."""

    kind: HeadKind = "causal-lm"

    def member_log_probs(
        self, ensemble: StackedModel, examples: Sequence[Example], *, max_rows: int | None
    ) -> Tensor:
        """log p of each label (M, N, C); see `heads.lm.scores.score_labels`."""
        window = context_window(ensemble.base)
        encoded = encode_examples(
            examples, ensemble.tokenizer, max_length=window, overlong=ensemble.info.overlong
        )

        def score(rows: int) -> Tensor:
            reader = ensemble.shared_rows(rows)
            return score_labels(
                encoded,
                reader.answer_logits,
                pad_id=ensemble.pad_id,
                rows_per_batch=reader.rows,
                device=ensemble.device,
                read_prefix=reader.read_prefix,
                label_score=ensemble.info.label_score,
            )

        length = sum(len(example.prompt_ids) for example in encoded) / max(1, len(encoded))
        rows = scoring_rows(
            ensemble.num_members, tokens_a_row=length, device=ensemble.device, max_rows=max_rows
        )
        return scored_in_parts(score, rows)


@dataclass(frozen=True)
class TextHead:
    """Heads that the members own: they score texts."""

    config: HeadConfig

    @property
    def kind(self) -> HeadKind:
        assert self.config.kind is not None  # a resolved config says it
        return self.config.kind

    def table(self, ensemble: StackedModel, examples: Sequence[Example]) -> TextTable:
        """The texts of examples."""
        return encode_texts(
            examples, ensemble.base, ensemble.tokenizer, head=self.config, overlong=ensemble.info.overlong
        )

    def member_log_probs(
        self, ensemble: StackedModel, examples: Sequence[Example], *, max_rows: int | None
    ) -> Tensor:
        """log p of each class or option (M, N, C)."""
        table = self.table(ensemble, examples)
        return log_probs(table.per_example(self.scores(ensemble, table, max_rows=max_rows)))

    def scores(self, ensemble: StackedModel, table: TextTable, *, max_rows: int | None) -> Tensor:
        """What every member's head says of each text: (M, W, K), float32."""
        members, token = ensemble.num_members, ensemble.token_read
        states = states_above_trunk(ensemble, table)

        def score(rows: int) -> Tensor:
            reader = ensemble.shared_rows(rows)

            def read(texts: Texts) -> Tensor:
                return reader.passes(
                    texts.ids,
                    lambda _, count: unfold_members(
                        text_scores(ensemble.base, texts.repeated(count), token=token), count
                    ),
                    states=states(texts),
                    names=lambda: table.names(texts.numbers),
                )

            return score_texts(table, read, rows=reader.rows, padded=not ensemble.padding_is_read)

        return scored_in_parts(score, table.rows_in_flight(members, max_rows=max_rows))


def states_above_trunk(ensemble: StackedModel, table: TextTable) -> Callable[[Texts], Tensor | None]:
    """What gives the hidden states (B, T, H) that enter the lowest adapted layer for texts of a table; None where no layer is below it.

    Where the ensemble keeps them, `kept_states`, the trunk reads each text of a table once, however often the table is scored.
    """
    trunk, base, kept = ensemble.trunk, ensemble.base, ensemble.kept_states
    if trunk is None:
        return lambda _: None
    if kept is not None:
        key = f"{len(trunk.layers)} layers, {table.fingerprint()}"
        if key not in kept:

            def read(rows: int) -> TrunkStates | None:
                return TrunkStates.of(
                    trunk,
                    table.text_lengths,
                    rows=rows,
                    read=lambda numbers: text_scores(base, table.texts(numbers)),
                )

            kept[key] = with_fewer_rows(read, table.rows_in_flight(1, max_rows=None))
        states = kept[key]
        if states is not None:
            return lambda texts: states.of_rows(texts.numbers, texts.ids.shape[1])
    return lambda texts: trunk.states(lambda: text_scores(base, texts))


@torch.no_grad()
def score_texts(table: TextTable, read: ReadTexts, *, rows: int, padded: bool) -> Tensor:
    """Scores (M, W, K) of all texts of a table, float32, in the passes that `text_passes` says."""
    passes = text_passes(table, rows=rows, padded=padded)
    parts = [read(table.texts(numbers)).float().cpu() for numbers in passes]
    return torch.cat(parts, dim=1)[:, torch.cat(passes).argsort()]


def text_passes(table: TextTable, *, rows: int, padded: bool) -> list[Tensor]:
    """The numbers of all texts of a table, `rows` of them a pass, the longest first; unless `padded`, those of a pass are of one length."""
    order = table.text_lengths.argsort(descending=True, stable=True)
    sizes = (
        [len(order)]
        if padded
        else table.text_lengths[order].unique_consecutive(return_counts=True)[1].tolist()
    )
    return [numbers for group in order.split(sizes) for numbers in group.split(rows)]


def texts_log_probs(
    table: TextTable, read: ReadTexts, *, copies: int, max_rows: int | None, padded: bool
) -> Tensor:
    """log p of each class or option (M, N, C) from `read`, which reads each text `copies` times at once.

    At most `max_rows` rows (copies * texts) are in flight, by default what suits the device, and fewer when memory runs out; unless
    `padded`, the texts of a pass are of one length.

    Raises:
        ConfigError: memory does not hold a single row.
    """
    rows_in_flight = table.rows_in_flight(copies, max_rows=max_rows)
    scores = scored_in_parts(
        lambda rows: score_texts(table, read, rows=max(1, rows // copies), padded=padded), rows_in_flight
    )
    return log_probs(table.per_example(scores))


def owned_head(ensemble: StackedModel, what: str) -> TextHead:
    """The members' own heads; `what` names what needs them.

    Raises:
        ConfigError: the ensemble is a causal language model.
    """
    head = head_of(ensemble.info.head)
    if not isinstance(head, TextHead):
        raise ConfigError(
            f"{what} needs members with heads of their own, and this ensemble is a causal language model"
        )
    return head
