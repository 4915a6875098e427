"""New members, made only where this machine could hold and train them.

Shapes: M members, R rank, D features.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from ..errors import ConfigError
from .adapters import check_numbers, check_stackable, initial_weights
from .head_config import HeadInit
from .seeds import MemberSeeds, member_seeds
from .sharding.layout import sharding_of
from .sites import MemberWeights

if TYPE_CHECKING:
    from peft import LoraConfig
    from transformers import PretrainedConfig

BYTES_A_PARAMETER = 16  # of training, in fp32: weight, gradient and the two moments of AdamW
USUAL_RANK = 256  # of a rank beyond it, the layers' sides are looked at before a member is made
GB = 1e9
CGROUP_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


def fresh_members(
    base: nn.Module,
    config: LoraConfig,
    *,
    seed: int,
    indices: Sequence[int],
    vary: Sequence[str],
    head_init: HeadInit | None,
) -> tuple[list[MemberSeeds], list[MemberWeights]]:
    """The seeds and the initial weights of untrained members; refused after the first where memory cannot
    hold all. Where each rank of the base holds some of the members, the weights are those of its own.

    Raises:
        ConfigError: a number of the adapter out of its range, a rank beyond every layer's sides, more members
            than fit, or a number that does not split over the ranks.
        AdapterError: the adapter cannot be stacked on this base.
    """
    sharding = sharding_of(base)
    own = sharding.own(indices)
    first = member_seeds(seed, own[0], vary=vary)
    check_stackable(config, head=head_init is not None)
    check_numbers(config)
    if max(config.r, *(config.rank_pattern or {"": 0}).values()) > USUAL_RANK:
        _check_rank(base, config)
    weights = [initial_weights(base, config, seed=first.init, head_init=head_init)]
    _check_memory(base, parameters_of(weights[0]), len(own), rank=config.r)
    seeds = [member_seeds(seed, index, vary=vary) for index in indices]
    others = sharding.own(seeds)[1:]
    weights += [initial_weights(base, config, seed=one.init, head_init=head_init) for one in others]
    return seeds, weights


def parameters_of(member: MemberWeights) -> int:
    """The number of parameters of a member: its adapters and its head."""
    parts = [*member.a.values(), *member.b.values(), *member.head.values()]
    return sum(part.numel() for part in parts)


def heads_of(config: PretrainedConfig) -> tuple[int, int]:
    """The number of heads of a base's keys and values, and their width; zeros of a base without attention.

    Example:
        >>> from transformers import LlamaConfig
        >>> heads_of(LlamaConfig(hidden_size=64, num_attention_heads=8, num_key_value_heads=2))
        (2, 8)
    """
    own = config.get_text_config()
    queries = getattr(own, "num_attention_heads", None)
    if not queries:
        return 0, 0
    heads = getattr(own, "num_key_value_heads", None) or queries
    return heads, getattr(own, "head_dim", None) or own.hidden_size // queries


def cached_bytes(config: PretrainedConfig, *, members: int, dtype: torch.dtype) -> int:
    """Bytes of the keys and values of all members for one token, while text is written.

    Example:
        >>> from transformers import LlamaConfig
        >>> small = LlamaConfig(hidden_size=64, num_attention_heads=8, num_hidden_layers=3)
        >>> cached_bytes(small, members=5, dtype=torch.bfloat16)
        3840
    """
    heads, width = heads_of(config)
    return 2 * members * config.get_text_config().num_hidden_layers * heads * width * dtype.itemsize


def memory_of(device: torch.device) -> int:
    """Bytes of memory that a device has in all; of a CPU, what this computer or its container may use.

    Example:
        >>> memory_of(torch.device("cpu")) > 2**20
        True
    """
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 2**62
    for path in map(Path, CGROUP_LIMITS):
        if path.is_file() and (limit := path.read_text().strip()).isdigit():
            total = min(total, int(limit))
    return total


def _check_rank(base: nn.Module, config: LoraConfig) -> None:
    probe = copy.deepcopy(config)
    probe.r, probe.rank_pattern = 1, {}
    probe.modules_to_save = None
    weights = initial_weights(base, probe, seed=0)
    widest = max(max(weights.a[name].shape[1], weights.b[name].shape[0]) for name in weights.a)
    for field, rank in (
        ("r", config.r),
        *((f"rank_pattern[{key!r}]", own) for key, own in (config.rank_pattern or {}).items()),
    ):
        if rank > widest:
            raise ConfigError(
                f"{field}={rank}; the layers that get adapters have at most {widest} features, "
                "and B A can have no higher rank than that: take a lower one, 8 in the paper"
            )


def _check_memory(base: nn.Module, parameters: int, members: int, *, rank: int) -> None:
    needed, device = BYTES_A_PARAMETER * parameters * members, next(base.parameters()).device
    memory = memory_of(device)
    if needed > memory:
        raise ConfigError(
            f"num_members={members} of rank {rank} do not fit into memory: {parameters:,} parameters each "
            f"at {BYTES_A_PARAMETER} bytes (weight, gradient and two moments) are {needed / GB:,.1f} GB, and "
            f"{device} has {memory / GB:,.1f} GB; take fewer members, a lower rank or fewer target modules. "
            "`lora-ensembles plan` says what fits"
        )
