"""Continuous batching: transformers' own engine, with the members in the head axis of its paged cache.

The engine puts the tokens of all requests into one row, and a request joins or leaves between two passes. The
ensemble's row is repeated for its M members, whose keys and values (M, H, T, d) are kept as one row of M * H
heads, so that the engine's scheduling, paging and sharing of prompts need to know nothing of members. The
engine is given the log of the mean probability, and takes as next token what `write_next` has chosen for each
request.

Shapes: M members, R requests, T tokens of all requests, V vocabulary, H heads of keys and values of width d.
"""

from __future__ import annotations

import copy
import inspect
import logging
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessorList
from transformers.modeling_outputs import CausalLMOutput

from ...errors import LoraEnsemblesError
from ...heads.whole_model import mean_log_probs, view_as_model
from ...passes.shared_prefix import context_window
from ...stack.capacity import cached_bytes, heads_of, memory_of
from ..catalogue import ServedModel
from ..engine import EngineStopped
from .engine import CompletionEngine
from .job import CompletionJob
from .sampling import write_next

logger = logging.getLogger(__name__)

PAGE = 32  # tokens of a page of the cache
PASS_TOKENS = {"cpu": 256}  # of one pass, where a prompt that is longer is read in parts; on others:
PASS_TOKENS_ELSEWHERE = 2048
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
        view = _paged_view(model)
        window = context_window(model.ensemble.base)
        cached = cached_tokens or _room_for_tokens(view)
        self.longest = cached if window is None else min(window, cached)
        self._manager = _make_manager(view, model.ensemble.num_members, cached, self._delivered)

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


def _paged_view(model: ServedModel) -> Any:
    """The ensemble as a model of the base's class whose passes are those of transformers' engine."""
    base: Any = model.ensemble.base
    view = view_as_model(model.ensemble, _forward)
    members, inner = model.ensemble.num_members, base.config.get_text_config()
    heads, width = heads_of(inner)
    config = copy.deepcopy(base.config)
    text = config.get_text_config()
    # What the cache is sized by; the layers have their own config.
    text.head_dim = width
    text.num_key_value_heads, text.num_attention_heads = members * heads, members * inner.num_attention_heads
    view.__dict__.update(config=config, lock=model.lock, last_log_probs=None)
    return view


def _forward(view: Any, base_forward: Any, arguments: dict[str, Any]) -> CausalLMOutput:
    """One pass over the tokens of several requests in one row; keeps the members' log-probabilities."""
    ensemble = view.ensemble
    members, places = ensemble.num_members, arguments.get("logits_indices")
    for name in ("input_ids", "position_ids"):
        arguments[name] = arguments[name].expand(members, -1)
    ids = arguments["input_ids"]
    with view.lock, ensemble.stack.running(rows=members, tokens=ids.numel(), members=slice(None)):
        logits = base_forward(**arguments).logits
    if places is not None and "logits_to_keep" not in arguments:
        view.last_log_probs = logits[:, places].float().log_softmax(dim=-1)
        return CausalLMOutput(logits=mean_log_probs(logits.float().log_softmax(dim=-1))[None])
    view.last_log_probs = logits.float().log_softmax(dim=-1)
    return CausalLMOutput(logits=mean_log_probs(view.last_log_probs)[None])


def _make_manager(view: Any, members: int, cached: int, delivered: Callable[[Any], None]) -> Any:
    """transformers' manager, with members in the heads of its cache, and `write_next` as its sampling."""
    from transformers import ContinuousBatchingConfig
    from transformers.generation.continuous_batching.cb_logits_processors import (
        ContinuousBatchingLogitsProcessor,
    )
    from transformers.generation.continuous_batching.continuous_api import (
        ContinuousBatchingManager,
        OutputRouter,
    )

    class Selection(ContinuousBatchingLogitsProcessor):
        """Leaves each request one token, that which was chosen for its job."""

        supported_kwargs = {"job": CompletionJob}  # noqa: RUF012 - as in the base class
        ignored_kwargs = ()

        def fill_defaults(self, int32_tensor: Tensor) -> None:
            int32_tensor.zero_()

        def prepare_tensor_args(self, requests_with_new_token: Sequence[Any]) -> Tensor:
            self.jobs = [one.state.logit_processor_kwargs["job"] for one in requests_with_new_token]
            return torch.zeros(len(self.jobs), dtype=torch.int32)

        def __call__(self, scores: Tensor, tensor_arg: Tensor) -> Tensor:
            rows = len(self.jobs)
            if not rows:  # of a pass that reads parts of prompts only
                return scores
            chosen = torch.tensor(write_next(self.jobs, view.last_log_probs[:, :rows]), device=scores.device)
            left = torch.full_like(scores, -math.inf)
            left[torch.arange(rows, device=scores.device), chosen] = 0.0
            left[rows:, 0] = 0.0
            return left

    class Router(OutputRouter):
        """Hands on what has ended at once."""

        def deliver(self, output: Any) -> None:
            delivered(output)

        def deliver_batch(self, outputs: Sequence[Any]) -> None:
            for output in outputs:
                delivered(output)

    class Manager(ContinuousBatchingManager):
        """A manager whose cache keeps members in its heads."""

        def _create_batch_processor(self) -> Any:
            made = super()._create_batch_processor()
            made.cache.update = partial(_update, made.cache.update, members)
            return made

    view.__dict__["_get_logits_processor"] = lambda _: LogitsProcessorList([Selection()])
    device = view.device.type
    config = ContinuousBatchingConfig(
        page_size=PAGE,
        num_blocks=math.ceil(cached / PAGE),
        max_batch_tokens=PASS_TOKENS.get(device, PASS_TOKENS_ELSEWHERE),
        use_cuda_graph=False,
        use_async_batching=False,
        auto_switch_to_flash=False,
    )
    manager = Manager(view, GenerationConfig(do_sample=False, eos_token_id=-1), config)
    manager.output_router = Router()
    manager.logit_processor.tensors_required = 1  # what `prepare_tensor_args` gives
    return manager


def _update(
    update: Callable[..., tuple[Tensor, Tensor]],
    members: int,
    keys: Tensor,
    values: Tensor,
    layer: int,
    kwargs: dict[str, Any],
) -> tuple[Tensor, Tensor]:
    """Add keys and values (M, H, T, d) to a cache of M * H heads; those of all tokens, (M, H, S, d)."""
    keys, values = (one.reshape(1, -1, *one.shape[2:]) for one in (keys, values))
    keys, values = update(keys, values, layer, kwargs)
    return keys.reshape(members, -1, *keys.shape[2:]), values.reshape(members, -1, *values.shape[2:])


def _room_for_tokens(view: Any) -> int:
    """The tokens whose keys and values of all members fit into a share of the device's memory."""
    each = cached_bytes(view.ensemble.base.config, members=view.ensemble.num_members, dtype=view.dtype)
    return max(PAGE, min(MOST_CACHED, int(MEMORY_SHARE * memory_of(view.device) / each)))
