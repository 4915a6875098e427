"""From encoded examples to the log-probabilities of their labels, for any number of members.

Shapes: M members, N examples, B rows of a batch, T tokens, K answer tokens, C options, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from .tasks import EncodedExample

AnswerLogits = Callable[[Tensor, Tensor], Tensor]  # ids (B, T), positions (B, K) -> logits (M, B, K, V)


def pad_rows(rows: Sequence[Sequence[int]], pad_id: int, *, device: torch.device | str = "cpu") -> Tensor:
    """Right-padded token ids (B, T)."""
    length = max(map(len, rows))
    return torch.tensor([[*row, *[pad_id] * (length - len(row))] for row in rows], device=device)


def score_labels(
    encoded: Sequence[EncodedExample],
    answer_logits: AnswerLogits,
    *,
    pad_id: int,
    rows_per_batch: int,
    device: torch.device | str = "cpu",
) -> Tensor:
    """log p(label | prompt) normalised over each example's labels (M, N, C), float32; -inf where an example has fewer than C labels.

    A label of several tokens counts with the sum of their log-probabilities. Rows are sorted by length, so that batches hold little
    padding; the result is in the order given. Source: Eq. 1 of arXiv:2310.00035.
    """
    single = all(len(label) == 1 for example in encoded for label in example.label_ids)
    score = _score_single if single else _score_sequences
    flat = score(encoded, answer_logits, pad_id=pad_id, rows_per_batch=rows_per_batch, device=device)
    return flat.log_softmax(dim=-1)


def _score_single(
    encoded: Sequence[EncodedExample], answer_logits: AnswerLogits, *, pad_id: int, rows_per_batch: int, device: torch.device | str
) -> Tensor:
    options = max(len(example.label_ids) for example in encoded)
    order = sorted(range(len(encoded)), key=lambda n: len(encoded[n].prompt_ids))
    parts = []
    for start in range(0, len(order), rows_per_batch):
        batch = [encoded[n] for n in order[start : start + rows_per_batch]]
        ids = pad_rows([example.prompt_ids for example in batch], pad_id, device=device)
        last = torch.tensor([[len(example.prompt_ids) - 1] for example in batch], device=device)
        logits = answer_logits(ids, last)[:, :, 0].float()  # (M, B, V); float32 before any probability
        labels = pad_rows([[label[0] for label in example.label_ids] + [-1] * (options - len(example.label_ids)) for example in batch], -1)
        labels = labels.to(device).expand(logits.shape[0], -1, -1)
        parts.append(logits.gather(2, labels.clamp(min=0)).masked_fill(labels < 0, -math.inf).cpu())
    return torch.cat(parts, dim=1)[:, _inverse(order)]


def _score_sequences(
    encoded: Sequence[EncodedExample], answer_logits: AnswerLogits, *, pad_id: int, rows_per_batch: int, device: torch.device | str
) -> Tensor:
    pairs = [(n, c) for n, example in enumerate(encoded) for c in range(len(example.label_ids))]
    pairs.sort(key=lambda pair: len(encoded[pair[0]].prompt_ids) + len(encoded[pair[0]].label_ids[pair[1]]))
    options = max(len(example.label_ids) for example in encoded)
    scores: Tensor | None = None
    for start in range(0, len(pairs), rows_per_batch):
        batch = pairs[start : start + rows_per_batch]
        sums = _sequence_log_probs([(encoded[n].prompt_ids, encoded[n].label_ids[c]) for n, c in batch], answer_logits, pad_id, device)
        if scores is None:
            scores = torch.full((sums.shape[0], len(encoded), options), -math.inf)
        rows, columns = zip(*batch, strict=True)
        scores[:, rows, columns] = sums
    assert scores is not None
    return scores


def _sequence_log_probs(
    rows: list[tuple[Sequence[int], Sequence[int]]], answer_logits: AnswerLogits, pad_id: int, device: torch.device | str
) -> Tensor:
    """Summed log-probability of each row's label: (M, B)."""
    ids = pad_rows([[*prompt, *label][:-1] for prompt, label in rows], pad_id, device=device)
    answers = pad_rows([label for _, label in rows], -1, device=device)
    first = torch.tensor([[len(prompt) - 1] for prompt, _ in rows], device=device)
    steps = torch.arange(answers.shape[1], device=device)
    positions = (first + steps).clamp(max=ids.shape[1] - 1)
    log_probs = answer_logits(ids, positions).float().log_softmax(dim=-1)
    wanted = answers.clamp(min=0).expand(log_probs.shape[0], -1, -1)[..., None]
    return log_probs.gather(3, wanted)[..., 0].masked_fill(answers < 0, 0.0).sum(dim=-1).cpu()


def _inverse(order: Sequence[int]) -> Tensor:
    return torch.tensor(order).argsort()
