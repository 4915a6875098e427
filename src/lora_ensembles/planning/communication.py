"""Bytes that GPUs exchange when a frozen base lies over several of them, and the time that takes at best.

The collectives are rings: each of S ranks passes its part on S - 1 times, so a rank receives (S - 1) / S of a
tensor that is gathered, and twice that of one that is summed. Source: NCCL tests, `doc/PERFORMANCE.md`, "bus
bandwidth"; Rabenseifner 2004 for the sum as a reduce-scatter and an all-gather.

Shapes: S ranks on K nodes, M members, B rows of a member, T tokens, R rank of an adapter, D features.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..checks import number_between, whole_number
from ..errors import ConfigError

GB = 1e9
WITHIN = 450 * GB  # bytes a second and direction: NVLink of an H100 or H200, 900 GB/s in both (data sheets)
BETWEEN = 50 * GB  # of one GPU's network card: 400 Gbit/s, one for each GPU as in a DGX H100
SUMS_A_LAYER = 4  # of all tokens: after attention and MLP, forward and backward; Sec. 3 of arXiv:1909.08053


@dataclass(frozen=True)
class Links:
    """The links between GPUs.

    Attributes:
        gpus: S, over all nodes.
        nodes: K, with as many GPUs each.
        within: bytes a second that a GPU receives from those of its node.
        between: bytes a second that a GPU receives from other nodes; those of a node add up.

    Raises:
        ConfigError: a number out of its range, or GPUs that the nodes do not share evenly.
    """

    gpus: int
    nodes: int = 1
    within: float = WITHIN
    between: float = BETWEEN

    def __post_init__(self) -> None:
        for name in ("gpus", "nodes"):
            whole_number(name, getattr(self, name))
        for name in ("within", "between"):
            number_between(name, getattr(self, name), above=0)
        if self.gpus % self.nodes:
            raise ConfigError(
                f"gpus={self.gpus} on nodes={self.nodes}; each node has as many, so take a multiple of "
                f"{self.nodes}, {-(-self.gpus // self.nodes) * self.nodes} for example"
            )

    @property
    def gpus_a_node(self) -> int:
        """GPUs of one node."""
        return self.gpus // self.nodes

    def seconds(self, size: float, ranks: int) -> float:
        """The time in which `ranks` GPUs gather a tensor of `size` bytes, of which each has a part.

        Within a node a GPU receives size (S - 1) / S. A node receives size (K - 1) / K from the others,
        through the network cards of all its GPUs. Both go on at once, so the longer counts.

        Example:
            >>> 1e3 * Links(8).seconds(450e9 / 1000, 8)  # ms: 450 MB at 450 GB/s, of which 7/8 travel
            0.875
        """
        nodes = min(self.nodes, -(-ranks // self.gpus_a_node))
        inside = gathered_bytes(size, ranks) / self.within
        outside = gathered_bytes(size, nodes) / (self.between * min(ranks, self.gpus_a_node))
        return max(inside, outside)


def gathered_bytes(size: float, ranks: int) -> float:
    """Bytes that a rank receives to have a whole tensor of `size` bytes: size (S - 1) / S.

    Example:
        >>> gathered_bytes(800, 8), gathered_bytes(800, 1)
        (700.0, 0.0)
    """
    return size * (ranks - 1) / ranks


def fsdp_gathers(*, layers: int, kept: int, others: int, passes: int) -> int:
    """Bytes of the weights that a rank gathers in a step of FSDP2: each layer's once in the forward and once
    in the backward pass, what is kept between the two or is not needed in the second, once.

    The frozen base has no gradients, so nothing is scattered back. The gathers serve all members of a rank.

    Args:
        layers: bytes of all decoder layers.
        kept: bytes of what stays gathered until the backward pass: the last norm and the head.
        others: bytes of what only the forward pass reads: the embeddings.
        passes: passes into which a step is split.

    Example:
        >>> fsdp_gathers(layers=100, kept=10, others=10, passes=2)
        440
    """
    return passes * (2 * layers + kept + others)


def tensor_parallel_sums(
    *, layers: int, tokens: int, features: int, low_rank: int, width: int, embeddings: bool = False
) -> int:
    """Bytes of the activations that are summed over ranks in a step of tensor parallelism.

    Of each layer, the output of attention and of the MLP in the forward pass, and the gradient of their input
    in the backward pass: 4 tokens * D * width. An adapter of a layer that is cut by its outputs sums the
    gradient of its R features between A and B, one that is cut by its inputs these features themselves.

    Args:
        layers: decoder layers.
        tokens: of all members' rows in a step, M * B * T.
        features: D, of the hidden states.
        low_rank: R, summed over all adapted layers.
        width: bytes of a number.
        embeddings: whether the vocabulary is cut, so that a token's embedding is summed as well.

    Example:
        >>> tensor_parallel_sums(layers=2, tokens=10, features=64, low_rank=32, width=2)
        10880
    """
    return tokens * width * ((SUMS_A_LAYER * layers + embeddings) * features + low_rank)
