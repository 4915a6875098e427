"""From encoded examples to the log-probabilities of their labels, for any number of members.

Shapes: M members, N examples, B rows of a batch, T tokens, K answer tokens, C options, V vocabulary.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

import torch
from torch import Tensor

from ...data import EncodedExample, Example, encode_examples
from ...passes.branches import Branches
from ...passes.decoder import Places
from ...passes.memory import scoring_rows
from ...passes.shared_prefix import (
    AnswerLogits,
    ReadBranches,
    context_window,
    scored_in_parts,
)
from ...passes.texts import pad_rows
from ...stack.head_config import LabelScore
from .branched import Group, by_beginning, by_prompt, score_groups

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

# Times fewer tokens to read, from which on a shared prefix is read once: its rows need a mask, which costs
# something.
WORTH_SHARING = 1.3


class Passes(Protocol):
    """Passes that read rows with all members, so many rows of a member at a time."""

    @property
    def rows(self) -> int: ...

    def answer_logits(self, ids: Tensor, positions: Tensor) -> Tensor:
        """Next-token logits (M, B, K, V) at `positions` (B, K) of right-padded `ids` (B, T)."""
        ...

    def read_prefix(self, ids: Tensor) -> AnswerLogits | None:
        """The logits of rows that go on from `ids` (B, T); None where they cannot be read in parts."""
        ...

    def read_branches(self, ids: Tensor, places: Places, branches: Branches) -> Tensor | None:
        """The logits (M, n, V) at places of rows (B, T) that hold several continuations; None where they
        cannot.
        """
        ...


@dataclass(frozen=True)
class PlainPasses:
    """Passes of a predictor without shared prefixes; `branches` reads rows that hold several continuations,
    where it can.
    """

    answer_logits: AnswerLogits
    rows: int
    branches: ReadBranches | None = None

    def read_prefix(self, ids: Tensor) -> AnswerLogits | None:
        return None

    def read_branches(self, ids: Tensor, places: Places, branches: Branches) -> Tensor | None:
        return None if self.branches is None else self.branches(ids, places, branches)


def score_examples(
    examples: Sequence[Example],
    passes: Callable[[int], Passes],
    *,
    base: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    copies: int,
    max_rows: int | None,
    overlong: Literal["error", "left"] = "error",
    label_score: LabelScore | None = "sum",
) -> Tensor:
    """(M, N, C) log-probabilities of the labels; `passes` gives what reads them with so many rows (copies *
    prompts) in flight.

    At most `max_rows` are, by default what suits the device, and fewer when memory runs out.

    Raises:
        DataError: a prompt or a label cannot be used.
        ConfigError: memory does not hold a single row.
    """
    encoded = encode_examples(examples, tokenizer, max_length=context_window(base), overlong=overlong)
    length = sum(len(example.prompt_ids) for example in encoded) / max(1, len(encoded))

    def score(rows: int) -> Tensor:
        return score_labels(
            encoded,
            passes(rows),
            pad_id=tokenizer.pad_token_id or 0,
            device=base.device,
            label_score=label_score,
        )

    rows = scoring_rows(copies, tokens_a_row=length, device=base.device, max_rows=max_rows)
    return scored_in_parts(score, rows)


def score_labels(
    encoded: Sequence[EncodedExample],
    passes: Passes,
    *,
    pad_id: int,
    device: torch.device | str = "cpu",
    label_score: LabelScore | None = "sum",
) -> Tensor:
    """log p(label | prompt) normalised over each example's labels (M, N, C), float32; -inf where an example
    has fewer than C labels.

    A label of several tokens counts with the sum of their log-probabilities, or with their mean
    (`label_score`), which does not favour short labels; see `label_log_probs`. None gives the sums as they
    are, over the full vocabulary. Rows are sorted by length, so that batches hold little padding, the longest
    first, so that memory that is too small shows at once; the result is in the order given. What
    rows have in common is read once where that pays and `passes` can: the beginning of all prompts
    (demonstrations, instructions), that of some (questions about one state), or a prompt that several labels
    follow; the latter two in one row with what follows where `read_branches` can. Source: Eq. 1 of
    arXiv:2310.00035.
    """
    batches = _Batches(passes, pad_id, device, whole=label_score is None)
    single = all(len(label) == 1 for example in encoded for label in example.label_ids)
    flat = _score_shared(encoded, batches, single=single)
    if flat is None:
        flat = (_score_single if single else _score_sequences)(encoded, batches)
    lengths = label_lengths(encoded)
    if label_score is None:
        return flat.float().masked_fill(lengths == 0, -math.inf)
    return label_log_probs(flat, lengths, label_score)


def label_lengths(encoded: Sequence[EncodedExample]) -> Tensor:
    """The number of tokens of each label (N, C), 0 where an example has fewer labels."""
    options = max(len(example.label_ids) for example in encoded)
    return torch.tensor(
        [[*map(len, example.label_ids), *[0] * (options - len(example.label_ids))] for example in encoded]
    )


def label_log_probs(sums: Tensor, lengths: Tensor, label_score: LabelScore) -> Tensor:
    """The task distribution over labels, as log-probabilities (..., C), float32; -inf where `lengths` (...,
    C) is 0.

    With s_c the summed log-probability of label c's tokens, `sums` (..., C), and n_c their number: log
    softmax_c(s_c) for "sum", Eq. 1 of arXiv:2310.00035, and log softmax_c(s_c / n_c) for "mean", whose most
    probable label is the one that lm-evaluation-harness counts in acc_norm, there by bytes and here by
    tokens. Labels of one token have the same distribution by both.

    Example:
        >>> sums, lengths = torch.tensor([-1.0, -3.0]), torch.tensor([1, 3])
        >>> label_log_probs(sums, lengths, "mean").exp()
        tensor([0.5000, 0.5000])
    """
    scores = sums.float()
    if label_score == "mean":
        scores = scores / lengths.clamp(min=1)  # a label that is absent has no tokens
    return scores.masked_fill(lengths == 0, -math.inf).log_softmax(dim=-1)


@dataclass(frozen=True)
class _Batches:
    """The way from rows to logits: by which passes, padded with what, and where; and whether labels of one
    token are scored over the whole vocabulary, which changes nothing between them.
    """

    passes: Passes
    pad_id: int
    device: torch.device | str
    whole: bool

    def after(self, answer_logits: AnswerLogits) -> _Batches:
        """The same for rows that go on from what was read."""
        return dataclasses.replace(self, passes=PlainPasses(answer_logits, self.passes.rows))


def _score_shared(encoded: Sequence[EncodedExample], batches: _Batches, *, single: bool) -> Tensor | None:
    """Scores with what rows share read once, or None where that saves little or the model cannot do it."""
    prompts = [len(example.prompt_ids) for example in encoded]
    if min(prompts) < 2:
        return None
    copies = [1 if single else len(example.label_ids) for example in encoded]
    labels = 0 if single else sum(len(label) for example in encoded for label in example.label_ids)
    whole = labels + sum(length * count for length, count in zip(prompts, copies, strict=True))
    common = _common_prefix(encoded)
    costs = {
        "beginning": whole - common * (sum(copies) - 1),
        "prompts": math.inf if single else labels + sum(prompts) + sum(copies),
    }
    groups = by_beginning(encoded)
    grouped = WORTH_SHARING * sum(group.tokens for group in groups)
    if grouped <= min(whole, *costs.values()):
        scores = _score_groups(encoded, batches, groups)
        if scores is not None:
            return scores
    kind = min(costs, key=lambda name: costs[name])
    if whole < WORTH_SHARING * costs[kind]:
        return None
    if kind == "prompts":
        branched = _score_groups(encoded, batches, by_prompt(encoded))
        return branched if branched is not None else _score_by_prompt(encoded, batches)
    after = batches.passes.read_prefix(torch.tensor([encoded[0].prompt_ids[:common]], device=batches.device))
    if after is None:
        return None
    rest = [dataclasses.replace(example, prompt_ids=example.prompt_ids[common:]) for example in encoded]
    return (_score_single if single else _score_sequences)(rest, batches.after(after))


def _common_prefix(encoded: Sequence[EncodedExample]) -> int:
    """The number of tokens that all prompts begin with; at least the last one of each is its own."""
    first, last = (choose(example.prompt_ids for example in encoded) for choose in (min, max))
    same = next(
        (n for n, (left, right) in enumerate(zip(first, last, strict=False)) if left != right), len(first)
    )
    return min(same, min(len(example.prompt_ids) for example in encoded) - 1)


def _score_groups(
    encoded: Sequence[EncodedExample], batches: _Batches, groups: Sequence[Group]
) -> Tensor | None:
    """Scores from one row for each group; None where such rows cannot be read."""
    return score_groups(
        encoded,
        groups,
        batches.passes.read_branches,
        pad_id=batches.pad_id,
        rows=batches.passes.rows,
        device=batches.device,
    )


def _score_by_prompt(encoded: Sequence[EncodedExample], batches: _Batches) -> Tensor | None:
    # Prompts of one length together: nothing is padded before a label, so no model needs to be told where a
    # prompt ended.
    groups: dict[tuple[int, int], list[int]] = {}
    for n, example in enumerate(encoded):
        groups.setdefault((len(example.prompt_ids), len(example.label_ids)), []).append(n)
    scores = _Scores(encoded)
    for (_, labels), members in sorted(groups.items(), reverse=True):
        at_once = max(1, batches.passes.rows // labels)
        for start in range(0, len(members), at_once):
            numbers = members[start : start + at_once]
            after = batches.passes.read_prefix(
                torch.tensor([encoded[n].prompt_ids[:-1] for n in numbers], device=batches.device)
            )
            if after is None:
                return None
            pairs = [(n, c) for n in numbers for c in range(labels)]
            rows = [(encoded[n].prompt_ids[-1:], encoded[n].label_ids[c]) for n, c in pairs]
            scores.put(pairs, _sequence_log_probs(rows, batches.after(after)))
    return scores.all


class _Scores:
    """Scores (M, N, C) that are filled in as they come; -inf where an example has fewer labels."""

    def __init__(self, encoded: Sequence[EncodedExample]):
        self._shape = len(encoded), max(len(example.label_ids) for example in encoded)
        self._values: Tensor | None = None  # the first scores tell the number of members

    def put(self, pairs: Sequence[tuple[int, int]], sums: Tensor) -> None:
        """The sums (M, B) of as many pairs of example and label."""
        if self._values is None:
            self._values = torch.full((sums.shape[0], *self._shape), -math.inf)
        rows, columns = zip(*pairs, strict=True)
        self._values[:, rows, columns] = sums

    @property
    def all(self) -> Tensor:
        assert self._values is not None
        return self._values


def _score_single(encoded: Sequence[EncodedExample], batches: _Batches) -> Tensor:
    device = batches.device
    options = max(len(example.label_ids) for example in encoded)
    order = sorted(range(len(encoded)), key=lambda n: -len(encoded[n].prompt_ids))
    parts = []
    for start in range(0, len(order), batches.passes.rows):
        batch = [encoded[n] for n in order[start : start + batches.passes.rows]]
        ids = pad_rows([example.prompt_ids for example in batch], batches.pad_id, device=device)
        last = torch.tensor([[len(example.prompt_ids) - 1] for example in batch], device=device)
        logits = batches.passes.answer_logits(ids, last)[
            :, :, 0
        ].float()  # (M, B, V); float32 before any probability
        logits = logits.log_softmax(dim=-1) if batches.whole else logits
        labels = pad_rows(
            [
                [label[0] for label in example.label_ids] + [-1] * (options - len(example.label_ids))
                for example in batch
            ],
            -1,
        )
        labels = labels.to(device).expand(logits.shape[0], -1, -1)
        parts.append(logits.gather(2, labels.clamp(min=0)).masked_fill(labels < 0, -math.inf))
    return torch.cat(parts, dim=1).cpu()[:, torch.tensor(order).argsort()]


def _score_sequences(encoded: Sequence[EncodedExample], batches: _Batches) -> Tensor:
    pairs = [(n, c) for n, example in enumerate(encoded) for c in range(len(example.label_ids))]
    pairs.sort(key=lambda pair: -len(encoded[pair[0]].prompt_ids) - len(encoded[pair[0]].label_ids[pair[1]]))
    scores = _Scores(encoded)
    for start in range(0, len(pairs), batches.passes.rows):
        batch = pairs[start : start + batches.passes.rows]
        scores.put(
            batch,
            _sequence_log_probs(
                [(encoded[n].prompt_ids, encoded[n].label_ids[c]) for n, c in batch], batches
            ),
        )
    return scores.all


def _sequence_log_probs(rows: Sequence[tuple[Sequence[int], Sequence[int]]], batches: _Batches) -> Tensor:
    """Summed log-probability of each row's label: (M, B)."""
    device = batches.device
    ids = pad_rows([[*prompt, *label][:-1] for prompt, label in rows], batches.pad_id, device=device)
    answers = pad_rows([label for _, label in rows], -1, device=device)
    first = torch.tensor([[len(prompt) - 1] for prompt, _ in rows], device=device)
    steps = torch.arange(answers.shape[1], device=device)
    positions = (first + steps).clamp(max=ids.shape[1] - 1)
    log_probs = batches.passes.answer_logits(ids, positions).float().log_softmax(dim=-1)
    wanted = answers.clamp(min=0).expand(log_probs.shape[0], -1, -1)[..., None]
    return log_probs.gather(3, wanted)[..., 0].masked_fill(answers < 0, 0.0).sum(dim=-1).cpu()
