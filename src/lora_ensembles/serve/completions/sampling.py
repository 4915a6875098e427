"""The choice of the next token of each request from the members' probabilities.

Shapes: M members, R requests, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import TemperatureLogitsWarper, TopPLogitsWarper

from ...generation.uncertainty import TokenUncertainty, token_uncertainty
from ...heads.whole_model import mean_log_probs
from .job import CompletionJob

LEAST_TEMPERATURE = 1e-3  # below it the most probable token is taken: quotients would be infinite


@dataclass(frozen=True)
class _Judged:
    """The tokens that were chosen for requests of one kind, and what the members say of them."""

    tokens: list[int]
    split: TokenUncertainty
    top: Any  # values and indices (R, K)


def write_next(jobs: Sequence[CompletionJob], member_log_probs: Tensor) -> list[int]:
    """Choose the next token of each job from the members' log-probabilities (M, R, V), and add it to the job.

    Jobs of an ensemble use the mean of the members' probabilities (Eq. 2 of arXiv:2310.00035), jobs of a
    single member that member's own.
    """
    tokens = [0] * len(jobs)
    for member in dict.fromkeys(job.model.member for job in jobs):
        rows = [row for row, job in enumerate(jobs) if job.model.member == member]
        own = member_log_probs[:, rows] if member is None else member_log_probs[member, rows][None]
        judged = _judge([jobs[row] for row in rows], own)
        for place, row in enumerate(rows):
            tokens[row] = judged.tokens[place]
            try:
                jobs[row].add(tokens[row], *_described(judged, place, jobs[row].params.top))
            except Exception as error:  # noqa: BLE001 - it is this job's, and the others go on
                jobs[row].fail(error)
    return tokens


def _judge(jobs: Sequence[CompletionJob], member_log_probs: Tensor) -> _Judged:
    mean = mean_log_probs(member_log_probs)  # (R, V)
    tokens = mean.argmax(dim=-1)
    for row, job in enumerate(jobs):
        if job.params.temperature >= LEAST_TEMPERATURE:
            tokens[row] = _drawn(mean[row], job)
    most = max(job.params.top for job in jobs)
    top = mean.topk(min(most, mean.shape[-1]), dim=-1)
    return _Judged(tokens.tolist(), token_uncertainty(member_log_probs, tokens), top)


def _drawn(log_probs: Tensor, job: CompletionJob) -> Tensor:
    """A token drawn from log-probabilities (V,), by the same steps as transformers' `generate`."""
    params, scores = job.params, log_probs[None]
    ids: Any = None  # neither looks at the tokens before
    if params.temperature != 1:
        scores = TemperatureLogitsWarper(params.temperature)(ids, scores)
    if params.top_p < 1:
        scores = TopPLogitsWarper(params.top_p)(ids, scores)
    return torch.multinomial(scores.softmax(dim=-1).cpu(), 1, generator=job.generator)[0, 0]


def _described(
    judged: _Judged, place: int, top: int
) -> tuple[float, tuple[tuple[int, float], ...], tuple[float, ...], dict[str, float]]:
    split = judged.split
    pairs = zip(
        judged.top.indices[place, :top].tolist(), judged.top.values[place, :top].tolist(), strict=True
    )
    return (
        split.log_probs[place].item(),
        tuple(pairs),
        tuple(split.member_log_probs[:, place].tolist()),
        {
            "total": split.total_entropy[place].item(),
            "aleatoric": split.expected_entropy[place].item(),
            "epistemic": split.mutual_information[place].item(),
            "agreement": split.agreement[place].item(),
        },
    )
