"""Static batches, where continuous batching does not work: requests that wait together are written together
by transformers' `generate`, to the end of the longest.

"""

from __future__ import annotations

import math
import threading
from collections import deque
from typing import Any

import torch
from torch import Tensor
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    StoppingCriteria,
    StoppingCriteriaList,
)

from ...generation.causal_lm import as_causal_lm
from ...generation.decoding import left_padded
from ...passes.shared_prefix import context_window
from ..catalogue import ServedModel
from .engine import CompletionEngine
from .job import CompletionJob
from .sampling import write_next

TOGETHER = 8  # jobs of a batch


class StaticEngine(CompletionEngine):
    """Writes texts in batches, one after another; see `CompletionEngine`.

    Args:
        reason: why not by continuous batching.
    """

    def __init__(self, model: ServedModel, *, most: int, reason: str):
        super().__init__(model, most=most)
        self._reason = reason
        self.longest = context_window(model.ensemble.base)
        self._waiting: deque[CompletionJob] = deque()
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._work, name="lora-ensembles-static", daemon=True)

    @property
    def batching(self) -> str:
        return f"static: {self._reason}"

    def start(self) -> None:
        self._thread.start()

    def _finish(self) -> None:
        with self._changed:
            self._changed.notify_all()
        self._thread.join()

    def _alive(self) -> bool:
        return self._thread.is_alive()

    def _take(self, key: str, job: CompletionJob) -> None:
        with self._changed:
            self._waiting.append(job)
            self._changed.notify_all()

    def _drop(self, key: str) -> None:
        """A job that has ended is left out of the next batch, and its row of this one changes nothing."""

    def _work(self) -> None:
        while True:
            with self._changed:
                while not self._waiting and not self._stopping:
                    self._changed.wait()
                if not self._waiting:
                    return
                taken = [self._waiting.popleft() for _ in range(min(TOGETHER, len(self._waiting)))]
            jobs = [job for job in taken if not job.done]
            if not jobs:
                continue
            try:
                write_batch(self.model, jobs)
            except Exception as error:  # noqa: BLE001 - whatever it is, it is theirs
                for job in jobs:
                    job.fail(error)


@torch.no_grad()
def write_batch(model: ServedModel, jobs: list[CompletionJob]) -> None:
    """Write the texts of some jobs, padded on the left, until all are done."""
    ensemble = model.ensemble
    view: Any = as_causal_lm(ensemble)
    view.generation_config.eos_token_id = None  # each job knows its own
    seen: list[Tensor] = []
    handle = view.register_forward_hook(
        lambda _view, _given, output: seen.__setitem__(slice(None), [output.member_log_probs[:, :, -1]])
    )
    ids, mask = left_padded([job.prompt for job in jobs], ensemble.pad_id, device=ensemble.device)
    try:
        with model.lock:
            view.generate(
                ids,
                attention_mask=mask,
                generation_config=GenerationConfig(
                    max_new_tokens=max(job.params.max_tokens for job in jobs),
                    do_sample=False,
                    pad_token_id=ensemble.pad_id,
                ),
                logits_processor=LogitsProcessorList([_Chosen(jobs, seen)]),
                stopping_criteria=StoppingCriteriaList([_AllDone(jobs)]),
            )
    finally:
        handle.remove()


class _Chosen(LogitsProcessor):
    """Leaves each row one token, that which was chosen for its job."""

    def __init__(self, jobs: list[CompletionJob], seen: list[Tensor]):
        self._jobs, self._seen = jobs, seen

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        left = [row for row, job in enumerate(self._jobs) if not job.done]
        tokens = torch.zeros(len(self._jobs), dtype=torch.int64, device=scores.device)
        if left:
            chosen = write_next([self._jobs[row] for row in left], self._seen[0][:, left])
            tokens[left] = torch.tensor(chosen, device=scores.device)
        return torch.full_like(scores, -math.inf).scatter(1, tokens[:, None], 0.0)


class _AllDone(StoppingCriteria):
    """Ends a row when its job is done."""

    def __init__(self, jobs: list[CompletionJob]):
        self._jobs = jobs

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        return torch.tensor([job.done for job in self._jobs], device=input_ids.device)
