"""A frozen base with the members' adapters on it, computed together: what heads, training, generation and
storage work with.

Shapes: M members, B rows of a member, T tokens, K answer positions, V vocabulary.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from peft import LoraConfig
from torch import Tensor

from ..errors import ConfigError
from ..stack.buffers import AdapterStack
from ..stack.info import EnsembleInfo
from ..stack.lora import fold_members, rows_of_members, unfold_members
from .answer_positions import answer_logits
from .decoder import Trunk, trunk_below_adapters
from .hooks import one_pass
from .memory import with_fewer_rows
from .reader import Reader
from .shared_prefix import DroppedRows, SharedRows
from .texts import Token
from .trunk_states import KeptStates, TrunkStates

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class StackedModel:
    """M members on one frozen base, and what is known of their passes.

    Args:
        base: the base, whose target layers are the stacked ones of `stack`.
        tokenizer: its tokenizer.
        adapter: what PEFT calls the members' adapter.
        stack: the members.
        info: how they were made, what their head is and how rows are read.
        reader: what the head asks of the base.
        fingerprint: of the base, by which a saved ensemble knows it again.
        kept_states: where the states of texts below the adapters are kept, by the texts' fingerprint; several
            models may share one. None: they are read in each pass.
    """

    def __init__(
        self,
        base: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        adapter: LoraConfig,
        stack: AdapterStack,
        info: EnsembleInfo,
        reader: Reader,
        fingerprint: str,
        kept_states: KeptStates | None = None,
    ):
        self.base, self.tokenizer, self.adapter = base, tokenizer, adapter
        self.stack, self.info, self.fingerprint, self.reader = stack, info, fingerprint, reader
        self.kept_states = kept_states

    @property
    def num_members(self) -> int:
        """The members that this process computes: all of them, but for a base whose ranks hold some each."""
        return self.stack.num_members

    @property
    def members_in_all(self) -> int:
        """The members, those of other ranks included."""
        return self.stack.sharding.members_in_all(self.num_members)

    @property
    def asked(self) -> slice:
        """The members of the stack that a pass asks."""
        return slice(None)

    @property
    def device(self) -> torch.device:
        return self.base.device

    def check_causal(self, what: str) -> None:
        """Refuse what only a causal language model can do.

        Raises:
            ConfigError: the members have heads of their own.
        """
        if not self.reader.causal:
            raise ConfigError(
                f"{what} needs a causal language model, and these members have {self.info.head.kind} heads; "
                "use predict"
            )

    @property
    def pad_id(self) -> int:
        """Token id that fills rows on the right; any id does, since a causal model never sees it."""
        return self.tokenizer.pad_token_id or 0

    @contextmanager
    def base_only(self) -> Iterator[PreTrainedModel]:
        """Context in which the base computes as if it had no adapters."""
        with self.stack.disabled():
            yield self.base

    def whole_pass(self, ids: Tensor) -> Tensor:
        """The answer of the base, as it stands, to ids (B, T) without padding: logits (B, T, V), or its
        head's scores (B, K).
        """
        return self.reader.whole_pass(self.base, ids)

    def __call__(self, input_ids: Tensor) -> Tensor:
        """Next-token logits (M, B, T, V) of right-padded `input_ids`: (B, T) for all members alike, or (M, B,
        T).

        Raises:
            ConfigError: ids of another shape; or members with heads of their own, which `predict` asks.
        """
        self.check_causal("calling an ensemble")
        rows = rows_of_members(input_ids, self.num_members)
        count = rows.shape[0] * rows.shape[1]
        with self.stack.running(rows=count, tokens=rows.numel(), members=self.asked):
            output = one_pass(self.base, {"input_ids": fold_members(rows), "use_cache": False})
        return unfold_members(output.logits, rows.shape[0])

    def answer_logits(self, input_ids: Tensor, positions: Tensor) -> Tensor:
        """Next-token logits (M, B, K, V) at `positions` (M, B, K) of right-padded `input_ids` (M, B, T)."""
        count, rows = input_ids.shape[:2]
        with self.stack.running(rows=count * rows, tokens=input_ids.numel(), members=self.asked):
            logits = answer_logits(self.base, fold_members(input_ids), fold_members(positions))
        return unfold_members(logits, count)

    def shared_rows(self, max_rows: int) -> SharedRows:
        """Passes that read the same rows with all members, at most `max_rows` rows (members * examples) at a
        time.
        """
        members = range(self.num_members)
        return SharedRows(self.base, self.stack, members, self.trunk, max_rows, self.kept_states)

    def view(self, members: range) -> StackedModel:
        """Some members next to each other as a model of their own, for scoring; nothing is copied.

        Raises:
            ConfigError: each rank of the base holds some of the members.
        """
        self.stack.sharding.check_all_here("a view of some members")
        return _View(self, members)

    def repeated(self, member: int, *, passes: int, dropout: float, seed: int) -> StackedModel:
        """One member as so many, each a pass with other features dropped, for scoring; see `DroppedRows`.

        Raises:
            ConfigError: each rank of the base holds some of the members.
        """
        self.stack.sharding.check_all_here("one member in several passes")
        return _Dropped(self, member, passes=passes, dropout=dropout, seed=seed)

    @functools.cached_property
    def trunk(self) -> Trunk | None:
        """The layers below the first adapted one, where the base has such: they run once for all members that
        read the same rows.
        """
        if self.stack.by_batch or self.padding_is_read:
            return None  # what it makes of a row depends on the rows that are read together
        with self.base_only() as base:
            return trunk_below_adapters(base, self.whole_pass)

    @contextmanager
    def keeping_states(self) -> Iterator[None]:
        """Context in which the trunk reads the same rows once, however often they are asked about."""
        before = self.kept_states
        self.kept_states = {} if before is None else before
        try:
            yield
        finally:
            self.kept_states = before

    def trunk_states(
        self, texts: str, lengths: Tensor, *, rows: int, read: Callable[[Tensor], object]
    ) -> TrunkStates | None:
        """The trunk's states of texts of so many tokens (W,), read at most `rows` at a time; `read` as in
        `TrunkStates.of`.

        Where the model keeps such states, `kept_states`, texts of one fingerprint, `texts`, are read once,
        whichever of the models that share them asks.
        """

        def states() -> TrunkStates | None:
            return with_fewer_rows(
                lambda some: TrunkStates.of(self.trunk, lengths, rows=some, read=read), rows
            )

        kept = self.kept_states
        if self.trunk is None or kept is None:
            return states()
        key = f"{len(self.trunk.layers)} layers, {texts}"
        if key not in kept:
            kept[key] = states()
        found = kept[key]
        return None if found is None else dataclasses.replace(found, trunk=self.trunk)

    @functools.cached_property
    def token_read(self) -> Token | None:
        """The token of a text that members' own heads read, where it is one alone: the last layer computes no
        other.
        """
        with self.base_only() as base:
            return self.reader.token_read(base)

    @functools.cached_property
    def padding_is_read(self) -> bool:
        """Whether the members' own heads read the padding behind a text, so that texts of one length only are
        read together.
        """
        with self.base_only() as base:
            return self.reader.padding_is_read(base)


class _View(StackedModel):
    """Some members of a model; what was found out about the model's passes is shared."""

    def __init__(self, model: StackedModel, members: range):
        super().__init__(
            model.base,
            model.tokenizer,
            adapter=model.adapter,
            stack=model.stack,
            info=model.info,
            reader=model.reader,
            fingerprint=model.fingerprint,
            kept_states=model.kept_states,
        )
        self._model, self._members = model, members

    @property
    def num_members(self) -> int:
        return len(self._members)

    @property
    def asked(self) -> slice:
        return slice(self._members.start, self._members.stop)

    def shared_rows(self, max_rows: int) -> SharedRows:
        return SharedRows(self.base, self.stack, self._members, self.trunk, max_rows, self.kept_states)

    @property
    def trunk(self) -> Trunk | None:
        return self._model.trunk

    @property
    def token_read(self) -> Token | None:
        return self._model.token_read

    @property
    def padding_is_read(self) -> bool:
        return self._model.padding_is_read


class _Dropped(_View):
    """One member in several passes with dropout."""

    def __init__(self, model: StackedModel, member: int, *, passes: int, dropout: float, seed: int):
        super().__init__(model, range(passes))
        self._member, self._dropout, self._seed = member, dropout, seed

    @property
    def asked(self) -> slice:
        raise ConfigError(
            "one member in several passes with dropout is asked by member_log_probs alone, "
            "which names its rows"
        )

    def shared_rows(self, max_rows: int) -> SharedRows:
        return DroppedRows(
            self.base,
            self.stack,
            self._members,
            self.trunk,
            max_rows,
            self.kept_states,
            member=self._member,
            dropout=self._dropout,
            seed=self._seed,
        )


def num_trained_parameters(predictor: object, member: int = 0) -> int:
    """Parameters that were trained for one member of a predictor; for a LoRA, the sum over its layers of rank
    * (D_in + D_out), and those of its head.

    Raises:
        ConfigError: the predictor does not say.

    Example:
        >>> from lora_ensembles import LoraEnsemble, load_base
        >>> ensemble = LoraEnsemble(*load_base(), num_members=2)
        >>> num_trained_parameters(ensemble) == ensemble.stack.a.shape[1] + ensemble.stack.b.shape[1]
        True
    """
    if isinstance(predictor, StackedModel):
        stack = predictor.stack
        own = sum(site.shape.numel() for site in stack.heads.sites)
        return own + sum(stack.ranks[member][site.name] * sum(site.whole_features) for site in stack.sites)
    count = getattr(predictor, "num_trained_parameters", None)
    if count is None:
        raise ConfigError(
            f"{type(predictor).__name__} does not say how many parameters were trained; "
            "give it `num_trained_parameters`"
        )
    return int(count)
