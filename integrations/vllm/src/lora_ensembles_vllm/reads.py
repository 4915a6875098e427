"""The members' log-probabilities of the options, by vLLM's engine: one token for each member and question.

Shapes: M members, N examples, C options.
"""

from __future__ import annotations

import asyncio
import math
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lora_ensembles.calibration.calibrated import HeldOut
from lora_ensembles.data import EncodedExample, Example
from lora_ensembles.serve.http.failures import ApiError
from lora_ensembles.stack.info import EnsembleInfo

from .engine import Engine, one_token, prompt_of

Asked = tuple[str, tuple[str, ...]]  # a prompt and its labels: what the engine is asked


def asked_by(example: Example) -> Asked:
    """The prompt and the labels of an example."""
    return example.prompt, example.labels


@dataclass(frozen=True)
class Reads:
    """The answers of an ensemble's members to questions that were asked, as a predictor of these questions.

    Attributes:
        info: of the ensemble.
        calibrated: its calibration.
        log_probs: (M, C) of each question.
    """

    info: EnsembleInfo
    calibrated: HeldOut | None
    log_probs: Mapping[Asked, Tensor]

    def member_log_probs(self, examples: Sequence[Example], *, max_rows: int | None = None) -> Tensor:
        """(M, N, C) log-probabilities over each example's options, -inf at absent options."""
        rows = [self.log_probs[asked_by(example)] for example in examples]
        width = max(row.shape[1] for row in rows)
        padded = [torch.nn.functional.pad(row, (0, width - row.shape[1]), value=-math.inf) for row in rows]
        return torch.stack(padded, dim=1)


async def read_members(
    engine: Engine, members: Sequence[Any], questions: Sequence[EncodedExample]
) -> list[Tensor]:
    """(M, C) log-probabilities of each question's labels, float32: Eq. 1 of arXiv:2310.00035, the softmax of
    the first token's logits over the labels alone.

    vLLM gives log-probabilities over the whole vocabulary, which differ from the logits by one number in each
    read; the softmax takes it out, so that any `--logprobs-mode` gives the same.

    Args:
        engine: vLLM's client.
        members: the `LoRARequest` of each.
        questions: with labels of one token.

    Raises:
        ApiError: a read without the log-probabilities of all labels.
    """
    engine.check_admission(len(members) * len(questions))
    request = f"decision-{uuid.uuid4().hex}"
    reads = [
        asyncio.ensure_future(_read(engine, question, member, f"{request}-{number}-{index}"))
        for number, question in enumerate(questions)
        for index, member in enumerate(members)
    ]
    try:
        values = await asyncio.gather(*reads)
    finally:
        for read in reads:  # where one failed, or the client has gone, the others are of no use
            read.cancel()
    count = len(members)
    return [
        torch.tensor(values[start : start + count]).log_softmax(dim=-1)
        for start in range(0, len(values), count)
    ]


async def _read(engine: Engine, question: EncodedExample, member: Any, request_id: str) -> list[float]:
    """The log-probabilities of the labels, as one member gives them."""
    labels = [first for (first,) in question.label_ids]
    reading = engine.generate(
        prompt_of(question.prompt_ids), one_token(labels), request_id, lora_request=member
    )
    given: Mapping[int, Any] = {}
    async for output in reading:
        found = output.outputs[0].logprobs if output.outputs else None
        given = found[0] if found else {}
    values = [given[label].logprob if label in given else math.nan for label in labels]
    if not all(map(math.isfinite, values)):
        raise ApiError(500, "the engine gave no log-probabilities of the options", code="read_failed")
    return values
