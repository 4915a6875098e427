"""The work of a rank in a training step, and what it needs: measured on fake tensors at small sizes, from
which large ones follow.

Activations grow linearly with the rows in flight, and with the layers where these are alike; members' state
and operations do so too. A base of 80 layers is planned from one of 4 and one of 2 in seconds.

Shapes: M members, B rows of a member, T tokens, K answer tokens of a row, L layers.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from ..stack.adapters import default_adapter_config
from .frozen import FrozenWeights
from .memory import Plan, plan_training

if TYPE_CHECKING:
    from peft import LoraConfig
    from transformers import PretrainedConfig

FEW, SOME = 2, 4  # layers of the bases that stand for a deep one
DEEP = 8  # from so many layers on


@dataclass(frozen=True)
class Work:
    """A training step, as in `plan_training`.

    Attributes:
        members: M.
        batch_size: B.
        tokens: T.
        answer_tokens: K.
        dtype: of the base.
        adapter: of each member; the paper's by default.
    """

    members: int = 5
    batch_size: int = 16
    tokens: int = 128
    answer_tokens: int = 1
    dtype: torch.dtype = torch.bfloat16
    adapter: LoraConfig = field(default_factory=default_adapter_config)

    @property
    def rows(self) -> int:
        """Rows of a step, M * B."""
        return self.members * self.batch_size


@dataclass(frozen=True)
class Needs:
    """Memory and operations of the members that one rank has.

    Attributes:
        base: bytes of the whole base, as it is loaded: quantised where its config says so.
        members: bytes that belong to them all the time: weights, gradients, moments, working copies.
        fixed: bytes of activations that do not depend on the rows in flight.
        a_row: bytes of activations for each row in flight.
        flops: operations of a step.
        adapter_parameters: of one member.
    """

    base: int
    members: int
    fixed: float
    a_row: float
    flops: float
    adapter_parameters: int

    def activations(self, rows: int) -> int:
        """Bytes beside base and members at the worst moment of a pass over `rows` rows."""
        return int(self.fixed + self.a_row * rows)

    def rows_in(self, room: float, *, most: int) -> int:
        """Rows in flight whose activations fit into `room` bytes; 1 at least, and `most` at most.

        Example:
            >>> Needs(0, 0, 100.0, 10.0, 0.0, 0).rows_in(170.0, most=16)
            7
        """
        return max(1, min(most, int((room - self.fixed) // max(1.0, self.a_row))))


def needs(config: PretrainedConfig, work: Work, frozen: FrozenWeights) -> Needs:
    """The needs of the members of `work` on a base.

    Raises:
        ConfigError, AdapterError: as `plan_training`.
    """
    depth = len(frozen.layers)
    if not (frozen.uniform and depth >= DEEP and _can_be_shallow(config, work.adapter)):
        return _by_rows(config, work)
    few, some = _by_rows(_shallow(config, FEW), work), _by_rows(_shallow(config, SOME), work)

    def at_depth(name: str) -> float:
        low, high = getattr(few, name), getattr(some, name)
        return float(low + (high - low) * (depth - FEW) / (SOME - FEW))

    return Needs(
        round(at_depth("base")),
        round(at_depth("members")),
        at_depth("fixed"),
        at_depth("a_row"),
        at_depth("flops"),
        round(at_depth("adapter_parameters")),
    )


def _by_rows(config: PretrainedConfig, work: Work) -> Needs:
    """The needs on a base of any depth, by a step with one row of each member and one with all."""
    one, whole = _plan(config, work, 1), _plan(config, work, work.batch_size)
    more = whole.rows - one.rows
    a_row = (whole.activations - one.activations) / more if more else whole.activations / whole.rows
    fixed = max(0.0, whole.activations - a_row * whole.rows)
    return Needs(whole.base, whole.members, fixed, a_row, whole.flops, whole.adapter_parameters)


def _plan(config: PretrainedConfig, work: Work, batch_size: int) -> Plan:
    return plan_training(
        config,
        adapter=work.adapter,
        members=work.members,
        batch_size=batch_size,
        tokens=work.tokens,
        answer_tokens=work.answer_tokens,
        dtype=work.dtype,
    )


def _can_be_shallow(config: PretrainedConfig, adapter: LoraConfig) -> bool:
    types = getattr(config.get_text_config(), "layer_types", None)
    return adapter.layers_to_transform is None and (types is None or len(set(types)) == 1)


def _shallow(config: PretrainedConfig, layers: int) -> PretrainedConfig:
    changed: Any = copy.deepcopy(config)
    own = changed.get_text_config()
    own.num_hidden_layers = layers
    if getattr(own, "layer_types", None):
        own.layer_types = own.layer_types[:layers]
    return changed
