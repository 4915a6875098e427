"""How probable the members find given answers, token by token, and what that says of the ensemble and of its single members.

Shapes: M members, N examples, K answer tokens of a row, n answer tokens of a batch, V vocabulary.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from .batches import AnswerTokens, TokenTable
from .ensemble import LoraEnsemble
from .errors import ConfigError, DataError
from .forward import head_logits, hidden_at, logits_at, places_at_once
from .memory import scoring_rows
from .metrics import MemberSpread
from .objectives import answer_loss
from .reading import context_window, scored_in_parts
from .tasks import Completion, encode_completions


@dataclass(frozen=True, eq=False)
class CompletionScores:
    """The members' log-probabilities of each token of N given answers, on the CPU in float32.

    Attributes:
        member_log_probs: (M, N, K) log p of each answer token, given the prompt and the answer's earlier tokens; 0 where there is none.
        counted: (N, K) bool, true where an answer has a token; its end-of-sequence token is one of them.
        ids: the N examples' identifiers, in row order.

    Example:
        >>> scores = CompletionScores(torch.tensor([[[0.5, 0.5]], [[0.25, 1.0]]]).log(), torch.tensor([[True, True]]), ("q1",))
        >>> scores.log_probs.exp()  # the mean of the members' probabilities at each step
        tensor([[0.3750, 0.7500]])
    """

    member_log_probs: Tensor
    counted: Tensor
    ids: tuple[str, ...] = field(default=())

    @property
    def num_members(self) -> int:
        """M, the number of members."""
        return self.member_log_probs.shape[0]

    @property
    def num_examples(self) -> int:
        """N, the number of examples."""
        return self.member_log_probs.shape[1]

    @property
    def num_tokens(self) -> int:
        """How many tokens the answers have together."""
        return int(self.counted.sum())

    @cached_property
    def log_probs(self) -> Tensor:
        """(N, K) float32 log of the mean of the members' probabilities of each token (Eq. 2 of arXiv:2310.00035 at each step)."""
        mean = self.member_log_probs.double().logsumexp(dim=0) - math.log(self.num_members)
        return mean.clamp_max(0.0).float().masked_fill(~self.counted, 0.0)

    def member(self, index: int) -> CompletionScores:
        """Those of one member alone (M = 1).

        Raises:
            ConfigError: no such member.
        """
        if index not in range(self.num_members):
            raise ConfigError(f"no member {index}; there are members 0 to {self.num_members - 1}")
        return CompletionScores(self.member_log_probs[index : index + 1], self.counted, self.ids)

    def take(self, rows: Tensor) -> CompletionScores:
        """Those of some of the examples, in the order of `rows`, an int64 tensor of row numbers that may repeat."""
        taken = copy.copy(self)
        vars(
            taken
        ).update(  # past the constructor, with the mean taken along: a bootstrap does this a thousand times
            member_log_probs=self.member_log_probs[:, rows],
            counted=self.counted[rows],
            ids=tuple(self.ids[row] for row in rows.tolist()) if self.ids else (),
            log_probs=self.log_probs[rows],
        )
        return taken


@dataclass(frozen=True)
class CompletionMetrics:
    """How well given answers are foreseen; lower is better.

    Attributes:
        num_members, num_examples, num_tokens: of what was measured; an answer's end-of-sequence token counts.
        nll: -log p(answer | prompt), the sum over its tokens, mean over the answers, in nats.
        nll_per_token: the same sum over all answers, per token, in nats.
        perplexity: exp(nll_per_token).
    """

    num_members: int
    num_examples: int
    num_tokens: int
    nll: float
    nll_per_token: float
    perplexity: float

    def to_dict(self) -> dict[str, int | float]:
        """The fields as a dictionary."""
        return asdict(self)


METRICS = ("nll", "nll_per_token", "perplexity")


@torch.no_grad()
def score_completions(
    ensemble: LoraEnsemble, examples: Sequence[Completion], *, max_rows: int | None = None
) -> CompletionScores:
    """The members' log-probabilities of every token of the given answers.

    At most `max_rows` rows (members * examples) are in flight, fewer where memory runs out, sorted by length, so that batches hold little
    padding; the logits of at most `forward.LOGIT_BUDGET` are made at once, however long the answers are. Without adapters' dropout, also
    in the middle of training.

    Raises:
        DataError: no examples; one without a completion, or whose prompt or completion cannot be used.
        ConfigError: `max_rows` below 1; or memory does not hold a single row; or the members have heads of their own.
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
    return CompletionScores(scores, counted, tuple(example.id for example in examples))


def evaluate_completions(scores: CompletionScores) -> CompletionMetrics:
    """Negative log-likelihood and perplexity of the ensemble: the mean of the members' probabilities at each step.

    Example:
        >>> scores = CompletionScores(torch.tensor([[[0.5, 0.5]], [[0.5, 0.5]]]).log(), torch.tensor([[True, True]]))
        >>> evaluate_completions(scores).nll, evaluate_completions(scores).perplexity
        (1.3862943649291992, 2.0)
    """
    total = -scores.log_probs.double().sum().item() + 0.0  # + 0.0 makes -0.0 a plain zero
    per_token = total / scores.num_tokens
    perplexity = math.exp(per_token) if per_token < 700 else math.inf
    return CompletionMetrics(
        scores.num_members,
        scores.num_examples,
        scores.num_tokens,
        total / scores.num_examples,
        per_token,
        perplexity,
    )


def evaluate_completion_members(scores: CompletionScores) -> dict[str, MemberSpread]:
    """`evaluate_completions` of every member on its own, by metric name.

    Example:
        >>> scores = CompletionScores(torch.tensor([[[0.5]], [[0.25]]]).log(), torch.tensor([[True]]))
        >>> print(evaluate_completion_members(scores)["perplexity"])
        3.0000 ± 1.4142
    """
    single = [evaluate_completions(scores.member(m)) for m in range(scores.num_members)]
    return {name: MemberSpread(tuple(getattr(one, name) for one in single)) for name in METRICS}


def _score(ensemble: LoraEnsemble, table: TokenTable, max_rows: int) -> Tensor:
    """log p of the answer tokens of a table's rows (M, N, K), 0 where a row has none."""
    members, reader = ensemble.num_members, ensemble.shared_rows(max_rows)
    scores = torch.zeros(members, len(table), int(table.answer_lengths.max()))
    for indices in table.lengths.argsort(descending=True).split(reader.rows):

        def score(ids: Tensor, count: int, indices: Tensor = indices) -> Tensor:
            tokens = table.gather(indices.expand(count, -1)).answer_tokens()
            return tokens.unpacked(_token_log_probs(ensemble, ids, tokens)).cpu()

        scores[:, indices] = reader.passes(table.gather(indices[None]).ids[0], score)
    return scores


def _token_log_probs(ensemble: LoraEnsemble, ids: Tensor, tokens: AnswerTokens) -> Tensor:
    """log p of each answer token (n,)."""
    at_once = places_at_once(ensemble.base)
    if len(tokens.answers) <= at_once:
        return -answer_loss(logits_at(ensemble.base, ids, tokens.places), tokens.answers)
    hidden = hidden_at(ensemble.base, ids, tokens.places)
    with ensemble.base_only() as model:
        chunks = zip(hidden.split(at_once), tokens.answers.split(at_once), strict=True)
        return torch.cat([-answer_loss(head_logits(model, states), answers) for states, answers in chunks])
