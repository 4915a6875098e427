"""Splits of a training run over GPUs: the base on each of them, cut over them, or computed by all together.

Shapes: M members, B rows of a member, S ranks, L layers.
"""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from ..checks import number_between, whole_number
from ..distributed.slices import slices
from .communication import Links, fsdp_gathers, gathered_bytes, tensor_parallel_sums
from .frozen import FrozenWeights, no_tensor_parallelism
from .memory import HEADROOM, adapter_shapes
from .work import Needs, Work, needs

if TYPE_CHECKING:
    from transformers import PretrainedConfig

Kind = Literal["replicate", "fsdp", "tp"]


@dataclass(frozen=True)
class Gpus:
    """GPUs to train on.

    Attributes:
        links: the GPUs and what connects them.
        memory: bytes of each.
        workers: slices into which the members are cut; None: one for each GPU.

    Raises:
        ConfigError: a number out of its range.
    """

    links: Links
    memory: float
    workers: int | None = None

    def __post_init__(self) -> None:
        number_between("memory", self.memory, above=0)
        if self.workers is not None:
            whole_number("workers", self.workers)

    @property
    def slices(self) -> int:
        """Slices into which the members are cut, at most."""
        return self.workers or self.links.gpus


@dataclass(frozen=True)
class SplitPlan:
    """A split, by what its busiest GPU holds, computes and receives in a step.

    Attributes:
        kind: "replicate": the base on each GPU, members split over them; "fsdp": the base cut over the GPUs
            and gathered layer by layer, members split; "tp": each layer computed by the GPUs of a node
            together, for all members of that node.
        ranks: S, the GPUs that share one base.
        busy: GPUs that have members to train.
        base: bytes of the base that stay on the GPU.
        gathered: bytes of whole layers beside them at the worst moment.
        members: bytes of their weights, gradients, moments and working copies.
        activations: bytes beside all of these at the worst moment.
        rows: rows in flight of a worker.
        parts: passes into which a step is split, `max_rows` = `rows`.
        flops: operations.
        received: bytes that come from other GPUs.
        exchange: seconds that they take on the links.
        overlaps: whether they come while the GPU computes.
        members_a_gather: members for which a gathered layer is used, over all members and GPUs; training one
            member after another with a base cut like this has 1.
        fits: whether all of it fits into `HEADROOM` of the GPU's memory.
    """

    kind: Kind
    ranks: int
    busy: int
    base: int
    gathered: int
    members: int
    activations: int
    rows: int
    parts: int
    flops: float
    received: float
    exchange: float
    overlaps: bool
    members_a_gather: float
    fits: bool

    @property
    def total(self) -> int:
        """Bytes on the GPU in all, at the worst moment."""
        return self.base + self.gathered + self.members + self.activations

    def seconds(self, peak_flops: float) -> float:
        """The time of a step at best: operations at `peak_flops` a second, with the exchange beside them
        where it overlaps, else after them. A limit, not a forecast.
        """
        compute = self.flops / peak_flops
        return max(compute, self.exchange) if self.overlaps else compute + self.exchange

    def to_dict(self) -> dict[str, Any]:
        """The fields and `total`."""
        return {**asdict(self), "total": self.total}


@dataclass(frozen=True)
class SplitChoice:
    """The splits of a run, and which of them to take.

    Attributes:
        plans: the splits that the base allows, in the order of preference.
        refused: why it does not allow the others.
        frozen: the base's weights.
    """

    plans: tuple[SplitPlan, ...]
    refused: Mapping[Kind, str]
    frozen: FrozenWeights

    @property
    def chosen(self) -> SplitPlan | None:
        """The first that fits; None where none does."""
        return next((plan for plan in self.plans if plan.fits), None)


def plan_split(config: PretrainedConfig, work: Work, gpus: Gpus) -> SplitChoice:
    """The splits of a training run over GPUs, of which the first that fits is chosen.

    The base on each GPU exchanges nothing, so it comes first; then FSDP2, which exchanges weights while it
    computes, once for all members; last tensor parallelism, which exchanges the activations of every token
    and has to wait for them: it pays for the latency of one answer, or where not even gathered layers fit.

    Raises:
        ConfigError, AdapterError: as `plan_training`.

    Example:
        >>> from transformers import LlamaConfig
        >>> sizes = dict(hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4)
        >>> small = LlamaConfig(**sizes, vocab_size=100)
        >>> plan_split(small, Work(4, tokens=16), Gpus(Links(2), memory=1e9)).chosen.kind
        'replicate'
    """
    for name in ("members", "batch_size", "tokens", "answer_tokens"):
        whole_number(name, getattr(work, name))
    frozen, links = FrozenWeights.of(config, work.dtype), gpus.links
    asked = _Asked(config, work, gpus, frozen)
    plans = [_replicate(asked)]
    refused: dict[Kind, str] = {}
    if getattr(config, "quantization_config", None) is not None:
        refused = dict.fromkeys(("fsdp", "tp"), "a quantised base lies whole on each GPU")
    else:
        if links.gpus == 1 or gpus.slices == 1:
            refused["fsdp"] = "one rank has nobody to share the base with"
        else:
            plans.append(_fsdp(asked))
        reason = no_tensor_parallelism(config, frozen, links.gpus_a_node)
        if reason is None:
            plans.append(_tensor_parallel(asked))
        else:
            refused["tp"] = reason
    return SplitChoice(tuple(plans), refused, frozen)


@dataclass(frozen=True)
class _Asked:
    """The run to split, and the needs that were measured already, by the number of members."""

    config: PretrainedConfig
    work: Work
    gpus: Gpus
    frozen: FrozenWeights
    measured: dict[int, Needs] = field(default_factory=dict)

    def share(self, cut: list[range]) -> Work:
        """The work of the largest of the slices that the members are cut into."""
        return dataclasses.replace(self.work, members=len(cut[0]))

    def needs(self, share: Work) -> Needs:
        """The needs of a share on a whole base."""
        if share.members not in self.measured:
            self.measured[share.members] = needs(self.config, share, self.frozen)
        return self.measured[share.members]


def _replicate(asked: _Asked) -> SplitPlan:
    """The base on each GPU. Workers beyond the number of GPUs share these, each with a base of its own."""
    gpus = asked.gpus
    cut = slices(asked.work.members, gpus.slices)
    share = asked.share(cut)
    own = asked.needs(share)
    each = -(-len(cut) // gpus.links.gpus)  # workers of the busiest GPU
    rows, parts, fits = _rows(own, share, base=own.base, memory=gpus.memory / each)
    return SplitPlan(
        "replicate",
        ranks=1,
        busy=min(len(cut), gpus.links.gpus),
        base=each * own.base,
        gathered=0,
        members=each * own.members,
        activations=each * own.activations(rows),
        rows=rows,
        parts=parts,
        flops=each * own.flops,
        received=0.0,
        exchange=0.0,
        overlaps=True,
        members_a_gather=1.0,
        fits=fits,
    )


def _fsdp(asked: _Asked) -> SplitPlan:
    """The base cut over one rank for each GPU, or for each worker where these are fewer; members split."""
    gpus, frozen = asked.gpus, asked.frozen
    ranks = min(gpus.links.gpus, gpus.slices)
    cut = slices(asked.work.members, ranks)
    share = asked.share(cut)
    own = asked.needs(share)
    base, gathered = frozen.sharded(ranks), frozen.gathered()
    rows, parts, fits = _rows(own, share, base=base + gathered, memory=gpus.memory)
    size = fsdp_gathers(layers=sum(frozen.layers), kept=frozen.kept, others=frozen.embeddings, passes=parts)
    return SplitPlan(
        "fsdp",
        ranks=ranks,
        busy=len(cut),
        base=base,
        gathered=gathered,
        members=own.members,
        activations=own.activations(rows),
        rows=rows,
        parts=parts,
        flops=own.flops,
        received=gathered_bytes(size, ranks),
        exchange=gpus.links.seconds(size, ranks),
        overlaps=True,
        members_a_gather=asked.work.members / parts,
        fits=fits,
    )


def _tensor_parallel(asked: _Asked) -> SplitPlan:
    """Each layer computed by the GPUs of a node together: a rank needs what a base with its part of the heads
    and of the MLP would, and the whole head, whose logits are gathered.
    """
    work, frozen, links = asked.work, asked.frozen, asked.gpus.links
    ranks = links.gpus_a_node
    cut = slices(work.members, links.nodes)
    share = asked.share(cut)
    part = _part_of_layers(asked.config, ranks)
    own = needs(part, share, FrozenWeights.of(part, work.dtype))
    base = frozen.tensor_parallel(ranks)
    rows, parts, fits = _rows(own, share, base=base, memory=asked.gpus.memory)
    text = asked.config.get_text_config()
    sums = tensor_parallel_sums(
        layers=len(frozen.layers),
        tokens=share.rows * work.tokens,
        features=text.hidden_size,
        low_rank=sum(a[0] for a, _ in adapter_shapes(asked.config, work.adapter).values()),
        width=work.dtype.itemsize,
        embeddings="embedding_rowwise" in frozen.plan.values(),
    )
    logits = share.rows * work.answer_tokens * text.vocab_size * work.dtype.itemsize
    head = 4.0 * share.rows * work.answer_tokens * text.hidden_size * text.vocab_size
    return SplitPlan(
        "tp",
        ranks=ranks,
        busy=len(cut) * ranks,
        base=base,
        gathered=0,
        members=own.members,
        activations=own.activations(rows),
        rows=rows,
        parts=parts,
        flops=own.flops - head * (ranks - 1) / ranks,
        received=gathered_bytes(2 * sums + logits, ranks),
        exchange=links.seconds(2 * sums + logits, ranks),
        overlaps=False,
        members_a_gather=1.0,
        fits=fits,
    )


def _part_of_layers(config: PretrainedConfig, ranks: int) -> PretrainedConfig:
    """The config of a base whose layers are a rank's part of those of another."""
    part: Any = copy.deepcopy(config)
    text = part.get_text_config()
    text.head_dim = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    for name in ("num_attention_heads", "num_key_value_heads", "intermediate_size"):
        setattr(text, name, getattr(text, name) // ranks)
    return part


def _rows(own: Needs, share: Work, *, base: int, memory: float) -> tuple[int, int, bool]:
    """Rows in flight, passes a step, and whether they fit beside `base` bytes."""
    room = HEADROOM * memory - base - own.members
    rows = own.rows_in(room, most=share.rows)
    return rows, math.ceil(share.rows / rows), own.activations(rows) <= room
