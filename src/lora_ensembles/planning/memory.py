"""Plans of a training run: how much memory it needs and how long it takes at best, before anything is
downloaded or allocated.

A step is run on fake tensors, which have a shape, a type and a device but no data: the model's own code, the
stacked layers and the optimiser say what they allocate, and when they let go of it. What an allocator rounds
up and what kernels need for themselves is left out.

Shapes: M members, B rows of a member, T tokens, K answer tokens of a row.
"""

from __future__ import annotations

import copy
import math
import warnings
import weakref
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from peft import get_peft_model
from peft.tuners.lora import LoraLayer
from torch import Tensor
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import AutoModelForCausalLM

from ..checks import number_between, whole_number
from ..embedded.quantised import bytes_saved
from ..errors import AdapterError, ConfigError
from ..heads.objectives import answer_loss
from ..passes.answer_positions import Places, logits_at
from ..passes.shortcuts import ALL, allow
from ..stack.adapters import PREFIX, check_numbers, check_stackable, default_adapter_config
from ..stack.buffers import AdapterStack
from ..stack.sites import MemberWeights
from ..training.optim import StackedAdamW

if TYPE_CHECKING:
    from peft import LoraConfig
    from transformers import PretrainedConfig

MOST_MEMBERS = 1000  # beyond them, making their layers takes minutes
MOST_ELEMENTS = (
    2**55
)  # of a tensor with a place for each pair of tokens: over heads and in bytes still below 2**63
HEADROOM = 0.9  # of a device's memory: what an allocator loses to rounding and fragments


@dataclass(frozen=True)
class Plan:
    """The memory of a training run in bytes, and its time at the limit.

    Attributes:
        base: the frozen weights.
        members: what belongs to the members: fp32 weights, gradients, two moments, and working copies in the
            base's dtype.
        activations: the largest amount beside these at any moment of a step.
        rows: rows (members * batch rows) in flight; fewer than a step has where memory is short.
        parts: passes a step is split into, `max_rows` = `rows`.
        flops: floating-point operations of a step.
        adapter_parameters: of one member.
        fits: whether base, members and activations fit into the memory given; None where none was.
    """

    base: int
    members: int
    activations: int
    rows: int
    parts: int
    flops: float
    adapter_parameters: int
    fits: bool | None = None

    @property
    def total(self) -> int:
        """Bytes in all, at the worst moment."""
        return self.base + self.members + self.activations

    def seconds(self, peak_flops: float) -> float:
        """A step's time on a device that does nothing but these operations at `peak_flops` a second: the
        limit, not a forecast.
        """
        return self.flops / peak_flops

    def to_dict(self) -> dict[str, Any]:
        """The fields and `total`."""
        return {**asdict(self), "total": self.total}


def plan_training(
    config: PretrainedConfig,
    *,
    adapter: LoraConfig | None = None,
    members: int = 5,
    batch_size: int = 16,
    tokens: int = 128,
    answer_tokens: int = 1,
    dtype: torch.dtype = torch.bfloat16,
    memory: int | None = None,
) -> Plan:
    """The plan of training `members` members with `batch_size` rows of `tokens` tokens each in a step.

    Args:
        config: the base's, from `transformers.AutoConfig`; its weights are not needed. One with a
            `quantization_config` of bitsandbytes is planned in 4 or 8 bits.
        adapter: the paper's by default.
        answer_tokens: tokens of an answer, where the head is computed.
        dtype: of the base; of a quantised one, of what is not quantised.
        memory: bytes of the device; where a step does not fit, it is split until it does.

    Raises:
        ConfigError: a number below 1, a prompt beyond the base's window, or an architecture that cannot be
            built from its config.
        AdapterError: the adapter cannot be stacked on this base.

    Example:
        >>> from transformers import LlamaConfig
        >>> sizes = dict(hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4)
        >>> small = LlamaConfig(**sizes, vocab_size=100)
        >>> plan_training(small, members=4, batch_size=2, tokens=16).adapter_parameters
        4096
    """
    shapes = adapter_shapes(config, adapter or default_adapter_config())
    _check_sizes(config, members, batch_size, tokens, answer_tokens, memory=memory)
    _check_members(shapes, members, dtype=dtype)
    wanted = _Step(
        config,
        shapes,
        members,
        tokens,
        answer_tokens,
        dtype,
    )
    whole = wanted.measure(members * batch_size)
    plan = replace(whole, parts=1)
    if memory is None:
        return plan
    room = HEADROOM * memory - plan.base - plan.members
    rows = members * batch_size
    if plan.activations > room:
        few = wanted.measure(max(1, min(members, rows - 1)))
        each = (
            (plan.activations - few.activations) / (rows - few.rows) if rows > few.rows else plan.activations
        )
        rows = max(1, min(rows, few.rows + int((room - few.activations) // max(1.0, each))))
        plan = wanted.measure(rows)
    parts = math.ceil(members * batch_size / plan.rows)
    return replace(plan, parts=parts, flops=whole.flops, fits=plan.total <= HEADROOM * memory)


def _check_sizes(
    config: PretrainedConfig,
    members: int,
    batch_size: int,
    tokens: int,
    answer_tokens: int,
    *,
    memory: int | None,
) -> None:
    for name, value in (
        ("members", members),
        ("batch_size", batch_size),
        ("tokens", tokens),
        ("answer_tokens", answer_tokens),
    ):
        whole_number(name, value)
    if memory is not None:
        number_between("memory", memory, above=0)
    if answer_tokens > tokens:
        raise ConfigError(
            f"answer_tokens is {answer_tokens} and tokens {tokens}; an answer is part of a row's tokens"
        )
    window = getattr(config.get_text_config(), "max_position_embeddings", None)
    if window is not None and tokens > window:
        raise ConfigError(f"tokens={tokens}; the base's window is {window} tokens")


def _check_members(
    shapes: dict[str, tuple[torch.Size, torch.Size]], members: int, *, dtype: torch.dtype
) -> None:
    if members <= MOST_MEMBERS:
        return
    parameters = sum(a.numel() + b.numel() for a, b in shapes.values())
    working = 0 if dtype == torch.float32 else dtype.itemsize
    raise ConfigError(
        f"members={members}; up to {MOST_MEMBERS} are planned, and {members} of {parameters:,} parameters "
        f"would take {members * parameters * (16 + working) / 1e9:,.0f} GB beside the base"
    )


@dataclass(frozen=True)
class _Step:
    """A training step that can be run on fake tensors, with any number of rows in flight."""

    config: PretrainedConfig
    shapes: dict[str, tuple[torch.Size, torch.Size]]  # of the A and B matrices, by layer
    members: int
    tokens: int
    answer_tokens: int
    dtype: torch.dtype

    def measure(self, rows: int) -> Plan:
        """The memory that a step needs with `rows` rows of all members in flight.

        Raises:
            ConfigError: tensors of more elements than can be addressed, or layers that ask for values.
        """
        widest = max(self.tokens, getattr(self.config.get_text_config(), "vocab_size", 1))
        if rows * self.tokens * widest > MOST_ELEMENTS:
            raise ConfigError(
                f"{rows} rows of tokens={self.tokens} have tensors of more elements than can be addressed; "
                "plan fewer rows or tokens"
            )
        with FakeTensorMode(allow_non_fake_inputs=True):
            base = (
                AutoModelForCausalLM.from_config(self.config, dtype=self.dtype).eval().requires_grad_(False)
            )
            kept = _bytes([*base.parameters(), *base.buffers()])
            weights = MemberWeights(
                {name: torch.zeros(a) for name, (a, _) in self.shapes.items()},
                {name: torch.zeros(b) for name, (_, b) in self.shapes.items()},
                dict.fromkeys(self.shapes, 1.0),
            )
            allow(base, ALL)  # without data nothing can be tried
            group = self._group(rows)
            stack = AdapterStack(base, [weights] * self.members, dtype=self.dtype)
            rate = torch.full((self.members,), 1e-3)
            optimizer = StackedAdamW.over(stack.buffers, learning_rate=rate, decays=(rate, rate))
            totals = stack.zero_gradients()
            own = _bytes([stack.a, stack.b, stack.working_a, stack.working_b, *totals])
            own |= _bytes([moment for state in optimizer.states for moment in (state.first, state.second)])
            with warnings.catch_warnings():
                # Mixtures of experts ask where their weights lie, which without data is nowhere.
                warnings.filterwarnings("ignore", "Accessing the data pointer of FakeTensor")
                try:
                    peak = _peak(
                        lambda: self._run(base, stack, optimizer, totals, rows=rows, group=group),
                        storages={**kept, **own},
                    )
                except DataDependentOutputException as error:
                    raise ConfigError(
                        f"the memory of a {type(base).__name__} cannot be planned with torch "
                        f"{torch.__version__}: its layers ask for values, and planning has none; later "
                        "releases plan mixtures of experts"
                    ) from error
        parameters = (stack.a.shape[1] + stack.b.shape[1]) if self.members else 0
        flops = _step_flops(base, parameters, rows * self.tokens, rows * self.answer_tokens, self.tokens)
        saved, unpacked = bytes_saved(base, getattr(self.config, "quantization_config", None))
        return Plan(_total(kept) - saved, _total(own), peak + unpacked, rows, 1, flops, parameters)

    def _group(self, rows: int) -> int:
        """The members whose rows are in flight together: all where there are rows for all, as `split_step`
        does it.
        """
        return next(count for count in range(min(self.members, rows), 0, -1) if rows % count == 0)

    def _run(
        self,
        base: Any,
        stack: AdapterStack,
        optimizer: StackedAdamW,
        totals: tuple[Tensor, ...],
        *,
        rows: int,
        group: int,
    ) -> None:
        ids = torch.zeros(rows, self.tokens, dtype=torch.int64)
        row = torch.arange(rows).repeat_interleave(self.answer_tokens)
        places = Places(row, torch.arange(self.tokens - self.answer_tokens, self.tokens).repeat(rows))
        with stack.running(
            rows=rows, tokens=ids.numel(), members=slice(None) if group == self.members else slice(0, group)
        ):
            logits = logits_at(base, ids, places)
        loss = answer_loss(logits, torch.zeros(len(row), dtype=torch.int64)).sum()
        del logits
        stack.add_gradients(loss, totals)
        del loss
        optimizer.step(stack.buffers, totals)
        stack.refresh()


def adapter_shapes(config: PretrainedConfig, adapter: LoraConfig) -> dict[str, tuple[torch.Size, torch.Size]]:
    """The sizes of A and B in every layer that PEFT adapts, found on a model without data."""
    check_stackable(adapter)
    check_numbers(adapter)
    try:
        with torch.device("meta"):
            skeleton = AutoModelForCausalLM.from_config(config)
    except ValueError as error:
        raise ConfigError(f"no causal language model can be built from this config: {error}") from error
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="`is_gradient_checkpointing`")
            wrapped = get_peft_model(skeleton, copy.deepcopy(adapter), low_cpu_mem_usage=True)
    except ValueError as error:
        raise AdapterError(f"PEFT cannot place the adapter: {error}") from error
    layers: list[tuple[str, Any]] = [
        (name, module) for name, module in wrapped.named_modules() if isinstance(module, LoraLayer)
    ]
    return {
        name.removeprefix(PREFIX): (
            layer.lora_A["default"].weight.shape,
            layer.lora_B["default"].weight.shape,
        )
        for name, layer in layers
    }


class _Live(TorchDispatchMode):
    """Counts the bytes of the storages that operators make and that are still held, and the most
    there were.
    """

    def __init__(self, storages: dict[int, int]):
        super().__init__()
        self.storages, self.live, self.peak = dict(storages), 0, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                key = storage._cdata
                if key not in self.storages:
                    self.storages[key] = storage.nbytes()
                    self.live += self.storages[key]
                    self.peak = max(self.peak, self.live)
                    weakref.finalize(storage, self._free, key)
        return result

    def _free(self, key: int) -> None:
        self.live -= self.storages.pop(key, 0)


def _peak(run: Callable[[], None], *, storages: dict[int, int]) -> int:
    with _Live(storages) as live:
        run()
    return live.peak


def _bytes(tensors: list[Tensor]) -> dict[int, int]:
    storages = [tensor.untyped_storage() for tensor in tensors]
    return {storage._cdata: storage.nbytes() for storage in storages}


def _total(storages: dict[int, int]) -> int:
    return sum(storages.values())


def _step_flops(base: Any, adapter_parameters: int, tokens: int, answers: int, length: int) -> float:
    """Forward and backward of a step: a frozen weight pays forward and the backward through activations, an
    adapter its gradient too.

    4 (P tokens + Q answers) + 12 L n d s tokens + 6 P_lora tokens, with P the body's weights in linear
    layers, Q the head's, L layers of n heads of size d, and s the mean causal length.
    """
    config = base.config.get_text_config()
    head = base.get_output_embeddings().weight.numel()
    body = (
        sum(
            parameter.numel()
            for name, parameter in base.named_parameters()
            if parameter.dim() == 2 and "embed" not in name
        )
        - head
    )
    body = body if not config.tie_word_embeddings else body + head
    width = config.num_attention_heads * (
        getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    )
    attention = 12 * config.num_hidden_layers * width * (length / 2) * tokens
    return 4.0 * (body * tokens + head * answers) + attention + 6.0 * adapter_parameters * tokens
