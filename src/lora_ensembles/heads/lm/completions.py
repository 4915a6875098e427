"""Log-probabilities of given answers, token by token.

Shapes: M members, N examples, K answer tokens of a row, n answer tokens of a batch, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ...data import Completion, encode_completions
from ...errors import ConfigError, DataError
from ...passes.answer_positions import head_logits, hidden_at, logits_at, places_at_once
from ...passes.memory import scoring_rows
from ...passes.shared_prefix import context_window, scored_in_parts
from ...passes.stacked_model import StackedModel
from ...prediction.completions import CompletionScores
from ..objectives import answer_loss
from .table import AnswerTokens, TokenTable


@torch.no_grad()
def score_completions(
    ensemble: StackedModel, examples: Sequence[Completion], *, max_rows: int | None = None
) -> CompletionScores:
    """The members' log-probabilities of every token of the given answers.

    At most `max_rows` rows (members * examples) are in flight, fewer where memory runs out, sorted by length,
    so that batches hold little padding; the logits of at most `answer_positions.LOGIT_BUDGET` are made at
    once, however long the answers are. Without adapters' dropout, also in the middle of training.

    Args:
        ensemble: members whose head is the base's own.
        examples: N prompts with the answers that are scored.
        max_rows: the most rows (member and example pairs) in one forward pass; None: a number that suits most
            machines.

    Returns:
        (M, N, T) log-probabilities of the answers' tokens.

    Raises:
        DataError: no examples; one without a completion, or whose prompt or completion cannot be used.
        ConfigError: `max_rows` below 1; or memory does not hold a single row; or the members have heads of
            their own.
    """
    ensemble.check_causal("scoring open answers")
    if not examples:
        raise DataError("no examples to score; give at least one")
    if max_rows is not None and max_rows < 1:
        raise ConfigError(
            f"max_rows is {max_rows}; use at least 1, or None for a number that suits most machines"
        )
    encoded = encode_completions(
        examples,
        ensemble.tokenizer,
        max_length=context_window(ensemble.base),
        overlong=ensemble.info.overlong,
    )
    table = TokenTable.from_encoded(encoded, ensemble.pad_id, device=ensemble.device)
    counted = torch.arange(int(table.answer_lengths.max())) < table.answer_lengths[:, None]
    length = table.lengths.float().mean().item()
    rows = scoring_rows(ensemble.num_members, tokens_a_row=length, device=ensemble.device, max_rows=max_rows)
    scores = scored_in_parts(lambda rows: _score(ensemble, table, rows), rows)
    scores = ensemble.stack.sharding.of_all(scores)
    return CompletionScores(scores, counted, tuple(example.id for example in examples))


def _score(ensemble: StackedModel, table: TokenTable, max_rows: int) -> Tensor:
    """log p of the answer tokens of a table's rows (M, N, K), 0 where a row has none."""
    members, reader = ensemble.num_members, ensemble.shared_rows(max_rows)
    scores = torch.zeros(members, len(table), int(table.answer_lengths.max()))
    for indices in table.lengths.argsort(descending=True).split(reader.rows):

        def score(ids: Tensor, count: int, indices: Tensor = indices) -> Tensor:
            tokens = table.gather(indices.expand(count, -1)).answer_tokens()
            return tokens.unpacked(_token_log_probs(ensemble, ids, tokens)).cpu()

        scores[:, indices] = reader.passes(table.gather(indices[None]).ids[0], score)
    return scores


def _token_log_probs(ensemble: StackedModel, ids: Tensor, tokens: AnswerTokens) -> Tensor:
    """log p of each answer token (n,)."""
    at_once = places_at_once(ensemble.base)
    if len(tokens.answers) <= at_once:
        return -answer_loss(logits_at(ensemble.base, ids, tokens.places), tokens.answers)
    hidden = hidden_at(ensemble.base, ids, tokens.places)
    with ensemble.base_only() as model:
        chunks = zip(hidden.split(at_once), tokens.answers.split(at_once), strict=True)
        return torch.cat([-answer_loss(head_logits(model, states), answers) for states, answers in chunks])
