"""Frozen weights of a base, by the parts in which they are gathered or cut, from its config alone."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from ..errors import ConfigError
from ..passes.decoder import model_layers

if TYPE_CHECKING:
    from transformers import PretrainedConfig

CUT = ("colwise", "rowwise", "embedding_rowwise")  # styles whose weights are cut, also with a suffix
COPIES = 3  # of a part while it is gathered: itself, its buffer, the buffer of the part before
EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts")


@dataclass(frozen=True)
class FrozenWeights:
    """Bytes of a base's weights.

    Attributes:
        layers: of each decoder layer.
        embeddings: of the input embeddings, where the head has weights of its own.
        kept: of the last norm and the head, and of embeddings that are the head's too.
        buffers: of what every rank has whole.
        uniform: whether the layers are all alike.
        plan: of tensor parallelism, the style of each kind of layer; empty where there is none.
        shapes: of every weight once: its name, size of the first axis, bytes.
    """

    layers: tuple[int, ...]
    embeddings: int
    kept: int
    buffers: int
    uniform: bool
    plan: dict[str, str] = field(repr=False)
    shapes: tuple[tuple[str, int, int], ...] = field(repr=False)

    @classmethod
    def of(cls, config: PretrainedConfig, dtype: torch.dtype) -> FrozenWeights:
        """The weights of the causal language model of a config.

        Raises:
            ConfigError: none can be built from it.
        """
        model = skeleton(config, dtype)
        parts = model_layers(model)
        sizes = tuple(sum(map(_size, layer.parameters())) for layer in parts)
        inputs, outputs = model.get_input_embeddings(), model.get_output_embeddings()
        tied = outputs is not None and outputs.weight is inputs.weight
        embeddings = 0 if tied else sum(map(_size, inputs.parameters()))
        whole = sum(map(_size, model.parameters()))
        return cls(
            sizes,
            embeddings,
            whole - sum(sizes) - embeddings,
            sum(map(_size, model.buffers())),
            bool(parts) and len({_kind(part) for part in parts}) == 1,
            dict(getattr(model, "tp_plan", None) or {}),
            tuple((name, one.shape[0], _size(one)) for name, one in model.named_parameters()),
        )

    @property
    def whole(self) -> int:
        """Bytes on a GPU that has the whole base."""
        return sum(self.layers) + self.embeddings + self.kept + self.buffers

    def sharded(self, ranks: int) -> int:
        """Bytes on each of `ranks` ranks with FSDP2, which cuts every weight along its first axis and fills
        the last part up.
        """
        return sum(-(-rows // ranks) * (size // rows) for _, rows, size in self.shapes) + self.buffers

    def gathered(self) -> int:
        """Bytes of whole weights that a rank of FSDP2 holds at the worst moment beside its own part.

        Weights arrive in one buffer and are copied from there to their places; the buffer of the layer before
        is let go after that: three times the largest part. Head and last norm stay from the end of the
        forward pass to the beginning of the backward pass, when no layer is there; embeddings that are the
        head's too stay throughout. Source: `FSDPParamGroup.wait_for_unshard` of torch 2.13.
        """
        tied = self.embeddings == 0
        return COPIES * max(self.layers) + self.kept if tied else COPIES * max(*self.layers, self.kept)

    def tensor_parallel(self, ranks: int) -> int:
        """Bytes on each of `ranks` ranks of a tensor-parallel base: what its plan cuts, in parts."""
        return self.buffers + sum(
            -(-size // ranks) if self._is_cut(name) else size for name, _, size in self.shapes
        )

    def _is_cut(self, name: str) -> bool:
        style = self.plan.get(re.sub(r"\.\d+(?=\.|$)", ".*", name.rpartition(".")[0]), "")
        return style.startswith(CUT)


def skeleton(config: PretrainedConfig, dtype: torch.dtype | None = None) -> Any:
    """The causal language model of a config without data.

    Raises:
        ConfigError: none can be built from it.
    """
    try:
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(config, dtype=dtype)
    except ValueError as error:
        raise ConfigError(
            f"no causal language model can be built from this config: {str(error).splitlines()[0]}"
        ) from error


def no_tensor_parallelism(config: PretrainedConfig, frozen: FrozenWeights, ranks: int) -> str | None:
    """The reason for which `ranks` ranks cannot compute each layer of a base together; None where they
    can.
    """
    own = config.get_text_config()
    if ranks == 1:
        return "there is one GPU in a node"
    if not frozen.plan:
        return f"transformers has no plan of tensor parallelism for {own.model_type!r}"
    if any(getattr(own, name, None) for name in EXPERTS):
        return "routed experts are not planned with tensor parallelism"
    for name in ("num_attention_heads", "num_key_value_heads", "intermediate_size"):
        value = getattr(own, name, None)
        if not isinstance(value, int) or value % ranks:
            return f"{name}={value}, which {ranks} GPUs do not share evenly"
    return None


def _size(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _kind(layer: nn.Module) -> tuple[object, ...]:
    """A layer's class and the shapes of its weights."""
    return (type(layer), *((name, tuple(one.shape)) for name, one in layer.named_parameters()))
