"""The ensemble as a causal language model: B rows outside, M * B rows inside, and the mean of the members'
probabilities at every step.

Hugging Face's own `generate` runs on it unchanged, with any decoding mode, cache or stopping rule: all that
differs from the base is its `forward`, which repeats the rows for the members and averages what comes back,
and how a cache's rows follow the beams.

Shapes: M members, B rows, T tokens, S tokens seen so far, V vocabulary.
"""

from __future__ import annotations

import copy
import functools
import inspect
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

from ..heads.whole_model import for_members, mean_log_probs, rows_of, view_as_model
from ..passes.compat import CACHE
from ..passes.stacked_model import StackedModel
from ..stack.lora import unfold_members

PASSED_ON = (CACHE, "hidden_states", "attentions")


@dataclass
class EnsembleOutput(CausalLMOutputWithPast):
    """The outputs of one pass of the ensemble.

    Attributes:
        loss: cross-entropy of `labels` under the ensemble (nats a token), where they were given.
        logits: (B, T, V) float32 log-probabilities of the ensemble, log mean_m p_m (Eq. 2 of
            arXiv:2310.00035): normalised logits.
        cache: the keys and values, M * B rows, member-major; transformers before 5.24 names it
            `past_key_values`.
        hidden_states, attentions: as the base gives them, M * B rows, member-major, where they were asked
            for.
        member_log_probs: (M, B, T, V) float32 log-probabilities of each member.

    What else the base gives, such as RWKV's `state`, is there under its name.
    """

    member_log_probs: Tensor | None = None


def as_causal_lm(ensemble: StackedModel, members: slice = slice(None)) -> PreTrainedModel:
    """A Hugging Face causal language model that shares the ensemble's base and stack, and predicts with the
    mean of `members`.

    It has the base's class among its own, so `generate` prepares inputs, masks and caches as it does for the
    base. Nothing is copied: what is trained, selected or added later is seen by it. A pass returns an
    `EnsembleOutput`.

    Raises:
        ConfigError: the members have heads of their own, so that there are no tokens to generate.

    Example:
        >>> from lora_ensembles import LoraEnsemble, load_base
        >>> base, tokenizer = load_base()
        >>> model = as_causal_lm(LoraEnsemble(base, tokenizer, num_members=3))
        >>> model.generate(**tokenizer("Q: Who is", return_tensors="pt"), max_new_tokens=4).shape
        torch.Size([1, 9])
    """
    ensemble.check_causal("generation")
    made = view_as_model(ensemble, _forward, members=members, extra=_decoding)
    made.generation_config = copy.deepcopy(ensemble.base.generation_config)
    for name in ("pad_token_id", "eos_token_id"):
        if getattr(made.generation_config, name, None) is None:
            setattr(made.generation_config, name, getattr(ensemble.tokenizer, name))
    result: PreTrainedModel = made
    return result


def _forward(model: Any, base_forward: Any, arguments: dict[str, Any]) -> EnsembleOutput | tuple[Any, ...]:
    ensemble: StackedModel = model.ensemble
    rows = rows_of(arguments)
    labels, as_tuple = arguments.pop("labels", None), arguments.pop("return_dict", None) is False
    members = len(range(ensemble.num_members)[model.ensemble_members])
    repeated = {name: for_members(value, rows.shape[0], members) for name, value in arguments.items()}
    positions = arguments.get("position_ids")
    if positions is not None and positions.dim() == 3:  # (3 or 4, B, T), for time, height and width
        repeated["position_ids"] = positions.repeat(1, members, 1)
    count = members * rows.shape[0]
    with ensemble.stack.running(rows=count, tokens=count * rows.shape[1], members=model.ensemble_members):
        output = base_forward(**repeated)
    member_log_probs = unfold_members(output.logits, members).float().log_softmax(dim=-1)
    logits = mean_log_probs(member_log_probs)
    made = EnsembleOutput(
        loss=None if labels is None else model.loss_function(logits, labels, vocab_size=logits.shape[-1]),
        logits=logits,
        member_log_probs=member_log_probs,
        **{name: output.get(name) for name in PASSED_ON},
    )
    for name, value in output.items():
        if name not in ("loss", "logits", *PASSED_ON):  # RWKV's state, say, which the next pass needs
            made[name] = value
    return made.to_tuple() if as_tuple else made


def _reorder_cache(self: Any, cache: Any, beam_idx: Tensor) -> Any:
    """The cache after its rows followed the beams: row i of each member becomes that member's row
    `beam_idx[i]`.
    """
    members = len(range(self.ensemble.num_members)[self.ensemble_members])
    first = torch.arange(members, device=beam_idx.device)[:, None] * len(beam_idx)
    cache.reorder_cache((first + beam_idx).flatten())
    return cache


def _static_cache_on(base_class: type[Any]) -> Any:
    prepare = base_class._prepare_static_cache

    @functools.wraps(prepare)
    def prepare_for_members(self: Any, *args: Any, **kwargs: Any) -> Any:
        bound = inspect.signature(prepare).bind(self, *args, **kwargs)
        members = len(range(self.ensemble.num_members)[self.ensemble_members])
        bound.arguments["batch_size"] *= (
            members  # what is sized before the first pass must hold the rows of all members
        )
        return prepare(*bound.args, **bound.kwargs)

    return prepare_for_members


def _decoding(base_class: type[Any]) -> dict[str, Any]:
    """Methods by which caches follow the rows of all members."""
    return {"_reorder_cache": _reorder_cache, "_prepare_static_cache": _static_cache_on(base_class)}
