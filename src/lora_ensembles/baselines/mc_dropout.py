"""MC dropout: one adapter, asked several times, each time with other features of its input dropped.

Shapes: P passes, B rows, T tokens, K answer positions, V vocabulary, N examples, C options, R rank, D
features.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..data import Example
from ..errors import ConfigError
from ..heads import member_log_probs
from ..passes.stacked_model import StackedModel, num_trained_parameters
from .single_member import check_member


class MCDropout:
    """A `Predictor` whose M members are M passes of one trained member with dropout on the adapter's input
    left on at test time.

    All passes run in one stacked forward: each layer sees the member's A and B as if there were one for every
    pass and row, through views of stride 0, and drops features by the stack's own hash. A pass's mask is a
    function of (seed, pass, prompt, layer, token, feature): what a question gets depends neither on its
    neighbours nor on their number, order or padding, and the options of one question are compared under the
    same mask. Train the member with the same dropout (`TrainConfig.dropout`). Source: Gal & Ghahramani 2016
    (arXiv:1506.02142), for LoRA as in Sec. 5.3 of arXiv:2310.00035. `Differs:` from dropout by a shared
    generator only in where the random bits come from.

    Args:
        ensemble: holds the member; it may have others, which are not asked.
        member: which one.
        passes: number of passes; the paper takes as many as the ensemble has members.
        dropout: probability of dropping a feature; None takes the adapter config's `lora_dropout`.
        seed: names the masks.

    Raises:
        ConfigError: no such member, no passes, or a probability outside (0, 1).

    Example:
        >>> from lora_ensembles import LoraEnsemble, load_base
        >>> from lora_ensembles.data import load_task
        >>> passes = MCDropout(LoraEnsemble(*load_base(), num_members=1), passes=3, dropout=0.1)
        >>> passes.member_log_probs(load_task("world-cqa").validation[:4]).shape
        torch.Size([3, 4, 5])
    """

    def __init__(
        self,
        ensemble: StackedModel,
        *,
        member: int = 0,
        passes: int = 5,
        dropout: float | None = None,
        seed: int = 0,
    ):
        check_member(member, ensemble.num_members)
        if not isinstance(passes, int) or isinstance(passes, bool) or passes < 1:
            raise ConfigError(f"passes={passes!r}; it is a whole number of at least 1")
        probability = ensemble.adapter.lora_dropout if dropout is None else dropout
        if not 0 < probability < 1:
            raise ConfigError(
                f"dropout={probability}; pass the probability that the member was trained with, "
                "above 0 and below 1"
            )
        self.ensemble, self.member, self.passes, self.dropout, self.seed = (
            ensemble,
            member,
            passes,
            probability,
            seed,
        )

    @property
    def num_trained_parameters(self) -> int:
        """Parameters trained for all passes together: those of the one adapter."""
        return num_trained_parameters(self.ensemble, self.member)

    @torch.no_grad()
    def member_log_probs(self, examples: Sequence[Example], *, max_rows: int | None = None) -> Tensor:
        """log p of each label in each pass (P, N, C), float32; at most `max_rows` rows (passes * examples)
        are in flight.

        Args:
            examples: N labelled or unlabelled examples.
            max_rows: the most rows (member and example pairs) in one forward pass; None: a number that suits
                most machines.

        Raises:
            ConfigError: the member was dropped since, or memory ran out.
            DataError: a prompt or a label cannot be used.
        """
        check_member(self.member, self.ensemble.num_members)
        passes = self.ensemble.repeated(self.member, passes=self.passes, dropout=self.dropout, seed=self.seed)
        return member_log_probs(passes, examples, max_rows=max_rows)
