"""transformers' engine of continuous batching with an ensemble in it: members lie in the head axis of its
paged cache, and each request's next token is chosen by `write_next`.

Imported once `has_engine` has said that there is such an engine.

Shapes: M members, R requests, T tokens of all requests, S tokens with those that are kept, V vocabulary, H
heads of keys and values of width d.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers import ContinuousBatchingConfig, GenerationConfig, LogitsProcessorList
from transformers.generation.continuous_batching.cb_logits_processors import ContinuousBatchingLogitsProcessor
from transformers.generation.continuous_batching.continuous_api import ContinuousBatchingManager, OutputRouter
from transformers.modeling_outputs import CausalLMOutput

from ...heads.whole_model import view_as_model
from ...stack.capacity import heads_of
from ..catalogue import ServedModel
from .job import CompletionJob
from .sampling import write_next

PAGE = 32  # tokens of a page of the cache
PASS_TOKENS = {"cpu": 256}  # of one pass, where a prompt that is longer is read in parts; on others:
PASS_TOKENS_ELSEWHERE = 2048


class PagedManager(ContinuousBatchingManager):
    """transformers' manager of an ensemble's requests.

    Args:
        model: the ensemble.
        cached_tokens: tokens that the cache holds.
        delivered: called in the engine's thread with the output of each request that has ended.
    """

    def __init__(self, model: ServedModel, *, cached_tokens: int, delivered: Callable[[Any], None]):
        view = _paged_view(model)
        super().__init__(
            view,
            GenerationConfig(do_sample=False, eos_token_id=-1),
            ContinuousBatchingConfig(
                page_size=PAGE,
                num_blocks=math.ceil(cached_tokens / PAGE),
                max_batch_tokens=PASS_TOKENS.get(view.device.type, PASS_TOKENS_ELSEWHERE),
                use_cuda_graph=False,
                use_async_batching=False,
                auto_switch_to_flash=False,
            ),
        )
        self.output_router = _Router(delivered)
        self.logit_processor.tensors_required = 1  # what `_Selection.prepare_tensor_args` gives
        self._members = model.ensemble.num_members

    def _create_batch_processor(self) -> Any:
        made = super()._create_batch_processor()
        made.cache.update = partial(_update, made.cache.update, self._members)
        return made


class _Selection(ContinuousBatchingLogitsProcessor):
    """Leaves each request one token, that which was chosen for its job; the scores are not used."""

    supported_kwargs = {"job": CompletionJob}  # noqa: RUF012 - as in the base class
    ignored_kwargs = ()

    def __init__(self, view: Any):
        self._view = view
        self._jobs: list[CompletionJob] = []

    def fill_defaults(self, int32_tensor: Tensor) -> None:
        int32_tensor.zero_()

    def prepare_tensor_args(self, requests_with_new_token: Sequence[Any]) -> Tensor:
        self._jobs = [one.state.logit_processor_kwargs["job"] for one in requests_with_new_token]
        return torch.zeros(len(self._jobs), dtype=torch.int32)

    def __call__(self, scores: Tensor, tensor_arg: Tensor) -> Tensor:
        rows = len(self._jobs)
        if not rows:  # of a pass that reads parts of prompts only
            return scores
        chosen = torch.zeros(len(scores), dtype=torch.int64)  # rows behind those of the jobs are not read
        chosen[:rows] = torch.tensor(write_next(self._jobs, self._view.last_log_probs[:, :rows]))
        return torch.full_like(scores, -math.inf).scatter(1, chosen.to(scores.device)[:, None], 0.0)


class _Router(OutputRouter):
    """Hands on what has ended at once."""

    def __init__(self, delivered: Callable[[Any], None]):
        super().__init__()
        self._delivered = delivered

    def deliver(self, output: Any) -> None:
        self._delivered(output)

    def deliver_batch(self, outputs: Sequence[Any]) -> None:
        for output in outputs:
            self._delivered(output)


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
    processors = LogitsProcessorList([_Selection(view)])
    view.__dict__.update(
        config=config, lock=model.lock, last_log_probs=None, _get_logits_processor=lambda _: processors
    )
    return view


def _forward(view: Any, base_forward: Any, arguments: dict[str, Any]) -> CausalLMOutput:
    """One pass over the tokens of several requests in one row; keeps the members' log-probabilities (M, R, V)
    of the places behind which a token is wanted, and returns logits of the shape that the engine expects.
    """
    ensemble = view.ensemble
    for name in ("input_ids", "position_ids"):
        arguments[name] = arguments[name].expand(ensemble.num_members, -1)
    count = arguments["input_ids"].numel()
    with view.lock, ensemble.stack.running(rows=ensemble.num_members, tokens=count, members=slice(None)):
        logits = base_forward(**arguments).logits
    wanted = logits if "logits_to_keep" in arguments else logits[:, arguments["logits_indices"]]
    view.last_log_probs = wanted.float().log_softmax(dim=-1)
    return CausalLMOutput(logits=logits[:1])


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
