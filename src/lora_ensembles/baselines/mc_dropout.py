"""MC dropout: one adapter, asked several times, each time with other features of its input dropped.

Shapes: P passes, B rows, T tokens, K answer positions, V vocabulary, N examples, C options, R rank, D features.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from ..data import Example
from ..ensemble import LoraEnsemble
from ..errors import ConfigError
from ..heads import TextHead, Texts, TextTable, states_above_trunk, texts_log_probs
from ..heads.lm.scored import score_members
from ..passes.answer_positions import answer_logits
from ..passes.decoder import in_place_of_trunk
from ..passes.texts import text_scores
from ..stack.dropout import stream_key
from ..stack.lora import fold_members, unfold_members
from .single_member import check_member, num_trained_parameters


class MCDropout:
    """A `Predictor` whose M members are M passes of one trained member with dropout on the adapter's input left on at test time.

    All passes run in one stacked forward: each layer sees the member's A and B as if there were one for every pass and row, through views
    of stride 0, and drops features by the stack's own hash. A pass's mask is a function of (seed, pass, prompt, layer, token, feature):
    what a question gets depends neither on its neighbours nor on their number, order or padding, and the options of one question are
    compared under the same mask. Train the member with the same dropout (`TrainConfig.dropout`). Source: Gal & Ghahramani 2016
    (arXiv:1506.02142), for LoRA as in Sec. 5.3 of arXiv:2310.00035. `Differs:` from dropout by a shared generator only in where the
    random bits come from.

    Args:
        ensemble: holds the member; it may have others, which are not asked.
        member: which one.
        passes: number of passes; the paper takes as many as the ensemble has members.
        dropout: probability of dropping a feature; None takes the adapter config's `lora_dropout`.
        seed: names the masks.

    Raises:
        ConfigError: no such member, no passes, or a probability outside (0, 1).

    Example:
        >>> from lora_ensembles.embedded import load_base
        >>> from lora_ensembles.data import load_task
        >>> passes = MCDropout(LoraEnsemble(*load_base(), members=1), passes=3, dropout=0.1)
        >>> passes.member_log_probs(load_task("world-cqa").validation[:4]).shape
        torch.Size([3, 4, 5])
    """

    def __init__(
        self,
        ensemble: LoraEnsemble,
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
                f"dropout={probability}; pass the probability that the member was trained with, above 0 and below 1"
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
        """log p of each label in each pass (P, N, C), float32; at most `max_rows` rows (passes * examples) are in flight.

        Raises:
            ConfigError: the member was dropped since, or memory ran out.
            DataError: a prompt or a label cannot be used.
        """
        check_member(self.member, self.ensemble.num_members)
        if isinstance(self.ensemble.head, TextHead):
            table = self.ensemble.head.table(self.ensemble, examples)
            read = functools.partial(self._score_texts, table, states_above_trunk(self.ensemble, table))
            padded = not self.ensemble.padding_is_read
            return texts_log_probs(table, read, copies=self.passes, max_rows=max_rows, padded=padded)
        return score_members(
            examples,
            self._score_batch,
            base=self.ensemble.base,
            tokenizer=self.ensemble.tokenizer,
            copies=self.passes,
            max_rows=max_rows,
            overlong=self.ensemble.info.overlong,
            label_score=self.ensemble.info.label_score,
        )

    def _score_batch(self, ids: Tensor, positions: Tensor) -> Tensor:
        prompts = [
            row[: first + 1] for row, first in zip(ids.tolist(), positions[:, 0].tolist(), strict=True)
        ]
        rows, places = (tensor.expand(self.passes, *tensor.shape) for tensor in (ids, positions))
        with self._dropping(prompts, tokens=rows.numel(), device=ids.device):
            logits = answer_logits(self.ensemble.base, fold_members(rows), fold_members(places))
        return unfold_members(logits, self.passes)

    def _score_texts(
        self, table: TextTable, states: Callable[[Texts], Tensor | None], texts: Texts
    ) -> Tensor:
        ensemble, token, passes = self.ensemble, self.ensemble.token_read, self.passes
        firsts = table.first[
            table.owner[texts.numbers]
        ]  # options of one question have the mask that its first one names
        named = [table.ids[number, : table.text_lengths[number]].tolist() for number in firsts.tolist()]
        dropping = self._dropping(named, tokens=passes * texts.ids.numel(), device=texts.ids.device)
        with in_place_of_trunk(ensemble.trunk, states(texts), passes), dropping:
            return unfold_members(text_scores(ensemble.base, texts.repeated(passes), token=token), passes)

    @contextmanager
    def _dropping(
        self, names: Sequence[Sequence[int]], *, tokens: int, device: torch.device
    ) -> Iterator[None]:
        """While a pass runs over the rows of these names, once for each of the passes, each row with a mask of its own."""
        stack = self.ensemble.stack
        keys = [stream_key(self.seed, "pass", index, *name) for index in range(self.passes) for name in names]
        probability = torch.full((len(keys),), self.dropout, device=device)
        with (
            self._one_member_in(len(keys)),
            stack.running(rows=len(keys), tokens=tokens),
            stack.dropout(probability, keys),
        ):
            yield

    @contextmanager
    def _one_member_in(self, copies: int) -> Iterator[None]:
        """While every layer computes with the one member in the place of `copies` members, without a copy of its weights."""
        stack, m = self.ensemble.stack, self.member
        before = [(layer.lora_a.data, layer.lora_b.data) for layer in stack.layers]
        heads = [
            (layer.head_weight.data, None if layer.head_bias is None else layer.head_bias.data)
            for layer in stack.heads.layers
        ]
        try:
            for head, (weight, bias) in zip(stack.heads.layers, heads, strict=True):
                head.bind(
                    weight[m].expand(copies, -1, -1), None if bias is None else bias[m].expand(copies, -1)
                )
            for layer, (a, b), scaling in zip(stack.layers, before, stack.scaling, strict=True):
                layer.bind(a[m].expand(copies, -1, -1), b[m].expand(copies, -1, -1), [scaling[m]] * copies)
            yield
        finally:
            for head, (weight, bias) in zip(stack.heads.layers, heads, strict=True):
                head.bind(weight, bias)
            for layer, (a, b), scaling in zip(stack.layers, before, stack.scaling, strict=True):
                layer.bind(a, b, scaling)
