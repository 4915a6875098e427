"""Continuous batching: transformers' own engine, with the members in the head axis of its paged cache.

The engine puts the tokens of all requests into one row, and a request joins or leaves between two passes. The
ensemble's row is repeated for its M members, whose keys and values are kept as one row of M times the heads,
so that the engine's scheduling, paging and sharing of prompts need to know nothing of members. It takes as
next token what `write_next` has chosen for each request. `paged` has the parts of it.
"""

from __future__ import annotations

import inspect
import logging
from typing import Any

import transformers

from ...errors import LoraEnsemblesError
from ...passes.shared_prefix import context_window
from ...stack.capacity import cached_bytes, memory_of
from ..catalogue import ServedModel
from ..engine import EngineStopped
from .engine import CompletionEngine
from .job import CompletionJob

logger = logging.getLogger(__name__)

MEMORY_SHARE = 0.1  # of the device's, for the cache
MOST_CACHED = 16_384  # tokens


class NotContinuous(LoraEnsemblesError):
    """A base, or an environment, that continuous batching cannot be used with; the message is the reason."""


class ContinuousEngine(CompletionEngine):
    """Writes texts by transformers' `ContinuousBatchingManager`; see `CompletionEngine`.

    Raises:
        NotContinuous: the base's attention, or the installed transformers, does not allow it.
    """

    def __init__(self, model: ServedModel, *, most: int, cached_tokens: int | None = None):
        super().__init__(model, most=most)
        check_supported(model.ensemble.base)
        from .paged import PagedManager

        window = context_window(model.ensemble.base)
        cached = cached_tokens or _room_for_tokens(model)
        self.longest = cached if window is None else min(window, cached)
        self._manager: Any = PagedManager(model, cached_tokens=cached, delivered=self._delivered)

    @property
    def batching(self) -> str:
        return "continuous"

    def start(self) -> None:
        self._manager.start()

    def _finish(self) -> None:
        self._manager.stop(block=True)

    def _alive(self) -> bool:
        manager = self._manager
        return manager.is_running() and manager.background_thread_status.can_accept_new_requests() is None

    def _take(self, key: str, job: CompletionJob) -> None:
        # Only the job knows its end-of-sequence tokens and stop texts; when it is done, this is cancelled.
        taken = self._manager.add_request(
            list(job.prompt), key, max_new_tokens=job.params.max_tokens, eos_token_id=-1, job=job
        )
        if taken is None:  # it has failed since it was asked
            job.fail(EngineStopped("the engine has failed"))

    def _drop(self, key: str) -> None:
        self._manager.cancel_request(key)

    def _delivered(self, output: Any) -> None:
        """Hear of a request that has ended; `write_next` has finished its job, unless it failed."""
        if output.error is not None:
            with self._lock:
                job = self._open.get(output.request_id)
            if job is not None:
                logger.error("continuous batching failed: %s", output.error)
                job.fail(RuntimeError(output.error))


def has_engine() -> bool:
    """Whether the installed transformers has an engine with pages; before 5.17 it was built otherwise."""
    made: Any = getattr(transformers, "ContinuousBatchingConfig", None)
    return made is not None and "page_size" in inspect.signature(made).parameters


def check_supported(base: Any) -> None:
    """Refuse what is known not to work; whether the rest works is tried.

    Raises:
        NotContinuous: with the reason.
    """
    if not has_engine():
        raise NotContinuous("it needs transformers 5.17 or newer")
    config = base.config.get_text_config()
    if config._attn_implementation != "sdpa":
        raise NotContinuous(
            f"the base computes its attention by {config._attn_implementation!r}, "
            "and members share a pass by 'sdpa' only"
        )
    sliding = getattr(config, "sliding_window", None) is not None
    layers = getattr(config, "layer_types", None)
    kinds = set(layers or ["sliding_attention" if sliding else "full_attention"])
    if kinds != {"full_attention"}:
        raise NotContinuous(
            f"the base has layers of {', '.join(sorted(kinds - {'full_attention'}))}; "
            "members share full attention only"
        )


def _room_for_tokens(model: ServedModel) -> int:
    """The tokens whose keys and values of all members fit into a share of the device's memory."""
    base, ensemble = model.ensemble.base, model.ensemble
    each = cached_bytes(base.config, members=ensemble.num_members, dtype=base.dtype)
    return max(1, min(MOST_CACHED, int(MEMORY_SHARE * memory_of(ensemble.device) / each)))
