"""LoraEnsemble: a frozen base model, its tokenizer, and M adapters that run through it in one pass.

Shapes: M members, B rows of a member, T tokens, K answer positions, V vocabulary, N examples, C options.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from peft import LoraConfig
from torch import Tensor, nn

from . import storage
from .adapters import default_adapter_config, initial_weights, keep_differentiable
from .decoder import Trunk, trunk_below_adapters
from .errors import AdapterError, ConfigError
from .forward import answer_logits
from .lora import AdapterStack, MemberWeights, fold_members, stream_key, unfold_members
from .memory import SCORING_ROWS, rows_in_flight
from .products import frozen_products
from .reading import SharedRows, scored_in_parts
from .scoring import score_labels
from .tasks import Example, encode_examples

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class MemberSeeds:
    """The two sources of randomness of a member: PEFT's initial weights, and the order of its training data."""

    init: int
    order: int


def member_seeds(seed: int, index: int, *, vary: Sequence[str] = ("init", "order")) -> MemberSeeds:
    """The seeds of member `index`, a function of (seed, index) alone, so an ensemble can grow by members later.

    A source that is not in `vary` has member 0's seed in every member (Fig. 7 of arXiv:2310.00035).

    Example:
        >>> member_seeds(0, 3).order == member_seeds(0, 3, vary=["order"]).order
        True
        >>> member_seeds(0, 3, vary=["order"]).init == member_seeds(0, 0).init
        True
    """
    unknown = set(vary) - {"init", "order"}
    if unknown:
        raise ConfigError(f"vary holds {sorted(unknown)}; what can vary between members is 'init' and 'order'")
    return MemberSeeds(*(stream_key(seed, index if source in vary else 0, source) for source in ("init", "order")))


@dataclass
class EnsembleInfo:
    """What an ensemble remembers beside its weights; saved in `ensemble.json`."""

    seed: int = 0
    vary: tuple[str, ...] = ("init", "order")
    next_index: int = 0
    seeds: list[MemberSeeds] = field(default_factory=list)
    overlong: Literal["error", "left"] = "error"  # what is done with a prompt longer than the window; as in training
    task: dict[str, Any] = field(default_factory=dict)  # how prompts and labels were rendered, and what was measured


class LoraEnsemble:
    """M LoRA adapters on one frozen base, computed together.

    The base's target layers are replaced by stacked ones, in place; its weights are never changed, and `unload` gives it back as it was.
    The base stays in evaluation mode also in training, so its own dropout (GPT-2 has some) is off. `Differs:` from a PEFT training script,
    where `model.train()` turns it on, by one random stream for all members.

    Args:
        base: any Hugging Face causal language model, not wrapped by PEFT.
        tokenizer: its tokenizer.
        members: number of members, at least 1.
        adapter: a `peft.LoraConfig`; the paper's by default (rank 8, alpha 32, query and value projections).
        seed: seed of the ensemble; member m's streams depend on (seed, m) alone.
        vary: what differs between members: initial weights ("init"), order of the data ("order"), both by default.

    Raises:
        ConfigError: `members` is not a positive number, or `vary` names something else.
        AdapterError: the adapter cannot be stacked on this base.

    Example:
        >>> from lora_ensembles.embedded import load_base
        >>> ensemble = LoraEnsemble(*load_base(), members=3, seed=1)
        >>> ensemble(torch.tensor([[1, 5, 7]])).shape[:3]
        torch.Size([3, 1, 3])
    """

    def __init__(
        self,
        base: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        members: int = 5,
        adapter: LoraConfig | None = None,
        seed: int = 0,
        vary: Sequence[str] = ("init", "order"),
    ):
        _check_count(members)
        config = adapter or default_adapter_config()
        seeds = [member_seeds(seed, index, vary=vary) for index in range(members)]
        _check_base(base)
        weights = [initial_weights(base, config, seed=one.init) for one in seeds]
        self._attach(base, tokenizer, config, weights, EnsembleInfo(seed, tuple(vary), members, seeds))

    def _attach(
        self,
        base: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        config: LoraConfig,
        weights: Sequence[MemberWeights],
        info: EnsembleInfo,
    ) -> None:
        head = base.get_output_embeddings()
        if any(base.get_submodule(name) is head for name in weights[0].a if _has_module(base, name)):
            raise AdapterError("the output head cannot carry adapters; take it out of target_modules")
        self.base, self.tokenizer, self.adapter, self.info = base, tokenizer, config, info
        self.fingerprint = storage.fingerprint(base)
        base.requires_grad_(False).eval()
        keep_differentiable(base)
        self.stack = AdapterStack(base, weights, dtype=base.dtype)

    @classmethod
    def from_weights(
        cls,
        base: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        adapter: LoraConfig,
        weights: Sequence[MemberWeights],
        info: EnsembleInfo,
    ) -> LoraEnsemble:
        """An ensemble of given member weights."""
        _check_base(base)
        ensemble = cls.__new__(cls)
        ensemble._attach(base, tokenizer, adapter, weights, info)
        return ensemble

    @classmethod
    def from_adapters(
        cls,
        base: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        paths: Sequence[str | Path],
        *,
        seed: int = 0,
        check_base: bool = True,
    ) -> LoraEnsemble:
        """PEFT adapters trained anywhere as one ensemble: equal target modules; ranks and scalings may differ.

        Raises:
            CheckpointError: a folder holds no readable adapter.
            AdapterError: the adapters do not fit each other or the base, or name another base (`check_base=False` lets the name pass).
        """
        config, weights = storage.read_members([Path(path) for path in paths], base, check_base=check_base)
        seeds = [member_seeds(seed, index) for index in range(len(weights))]
        info = EnsembleInfo(seed=seed, next_index=len(weights), seeds=seeds)
        return cls.from_weights(base, tokenizer, adapter=config, weights=weights, info=info)

    @classmethod
    def from_pretrained(
        cls,
        path: str | Path,
        *,
        base: PreTrainedModel | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
        members: Sequence[int] | None = None,
        check_base: bool = True,
    ) -> LoraEnsemble:
        """The ensemble that `save_pretrained` wrote, or some of its members; the base is loaded by its recorded name unless given.

        Raises:
            CheckpointError: the folder or a member in it is missing, corrupt, or of a newer format.
            AdapterError: the base given is not the one the members were trained on (`check_base=False` lets it pass).
        """
        from .embedded import resolve_base  # the embedded base imports transformers' tokenizers, which a caller with a base need not load

        saved = storage.read_ensemble(Path(path), members=members)
        if base is None or tokenizer is None:
            loaded = resolve_base(saved.base_name, revision=saved.base_revision)
            base, tokenizer = base or loaded[0], tokenizer or loaded[1]
        if check_base:
            storage.check_fingerprint(base, saved)
        seeds = [MemberSeeds(*pair) for pair in saved.seeds]
        info = EnsembleInfo(saved.seed, tuple(saved.vary), saved.next_index, seeds, saved.overlong, saved.task)
        return cls.from_weights(base, tokenizer, adapter=saved.adapter, weights=saved.weights, info=info)

    def save_pretrained(self, path: str | Path, *, dtype: torch.dtype = torch.float32) -> None:
        """Write `ensemble.json`, a model card, and one PEFT adapter folder a member; whole or not at all.

        Raises:
            CheckpointError: `path` already holds an ensemble, or there is no space for it.
        """
        storage.write_ensemble(self, Path(path), dtype=dtype)

    def push_to_hub(self, repo_id: str, *, private: bool = True, token: str | None = None) -> str:
        """Upload the ensemble with its model card to the Hugging Face hub; returns the address of the commit."""
        return storage.push_to_hub(self, repo_id, private=private, token=token)

    @property
    def num_members(self) -> int:
        return self.stack.num_members

    @property
    def device(self) -> torch.device:
        return self.base.device

    @property
    def pad_id(self) -> int:
        """Token id that fills rows on the right; any id does, since a causal model never sees it."""
        return self.tokenizer.pad_token_id or 0

    def add_members(self, count: int) -> None:
        """Grow by `count` untrained members, the ones an ensemble of that size would have had from the start."""
        _check_count(count)
        info = self.info
        fresh = [member_seeds(info.seed, info.next_index + offset, vary=info.vary) for offset in range(count)]
        kept = [self.stack.member(index) for index in range(self.num_members)]
        self.stack.detach(self.base)
        grown = kept
        try:
            grown = kept + [initial_weights(self.base, self.adapter, seed=seeds.init) for seeds in fresh]
        finally:
            self.stack = AdapterStack(self.base, grown, dtype=self.base.dtype)
        info.seeds, info.next_index = info.seeds + fresh, info.next_index + count

    def load_members(self, paths: Sequence[str | Path], *, check_base: bool = True) -> None:
        """Add members from their folders, this library's or PEFT's own, to the ensemble as it runs; ranks and scalings may differ.

        Raises:
            CheckpointError, AdapterError: as `from_adapters`; the ensemble is then as before.
        """
        _, weights = storage.read_members([Path(path) for path in paths], self.base, check_base=check_base)
        self.stack.add_members(weights)
        info = self.info
        info.seeds = info.seeds + [member_seeds(info.seed, info.next_index + n, vary=info.vary) for n in range(len(weights))]
        info.next_index += len(weights)

    def select(self, indices: Sequence[int]) -> None:
        """Keep the members of these indices, in this order, and drop the others.

        Raises:
            ConfigError: no index, one twice, or one that is not there.
        """
        _check_indices(indices, self.num_members)
        if not indices:
            raise ConfigError("no members would be left; an ensemble keeps at least 1")
        self.stack.set_members([self.stack.member(index) for index in indices])
        self.info.seeds = [self.info.seeds[index] for index in indices]

    def drop(self, indices: Sequence[int]) -> None:
        """Drop the members of these indices; at least one member stays.

        Raises:
            ConfigError: as `select`.
        """
        _check_indices(indices, self.num_members)
        self.select([index for index in range(self.num_members) if index not in set(indices)])

    def unload(self) -> PreTrainedModel:
        """The base with its own layers back in place, frozen and in evaluation mode; the ensemble cannot be used afterwards."""
        self.stack.detach(self.base)
        return self.base

    @contextmanager
    def base_only(self) -> Iterator[PreTrainedModel]:
        """While the base computes as if it had no adapters."""
        with self.stack.disabled():
            yield self.base

    def as_causal_lm(self) -> PreTrainedModel:
        """The ensemble as a Hugging Face causal language model, for `generate` and whatever else takes one; see `generation.py`."""
        from .generation import as_causal_lm

        return as_causal_lm(self)

    def member(self, index: int) -> PreTrainedModel:
        """One member alone as a Hugging Face causal language model.

        Raises:
            ConfigError: no such member.
        """
        from .generation import as_causal_lm

        _check_indices([index], self.num_members)
        return as_causal_lm(self, slice(index, index + 1))

    def __call__(self, input_ids: Tensor) -> Tensor:
        """Next-token logits (M, B, T, V) of right-padded `input_ids`: (B, T) for all members alike, or (M, B, T)."""
        rows = self._member_rows(input_ids)
        with self.stack.running(rows=rows.shape[0] * rows.shape[1], tokens=rows.numel()), frozen_products():
            logits = self.base(input_ids=fold_members(rows), use_cache=False).logits
        return unfold_members(logits, rows.shape[0])

    def answer_logits(self, input_ids: Tensor, positions: Tensor, *, members: slice = slice(None)) -> Tensor:
        """Next-token logits (M, B, K, V) at `positions` (M, B, K) of right-padded `input_ids` (M, B, T).

        `members` says which members the leading axis holds.
        """
        count, rows = input_ids.shape[:2]
        with self.stack.running(rows=count * rows, tokens=input_ids.numel(), members=members):
            logits = answer_logits(self.base, fold_members(input_ids), fold_members(positions))
        return unfold_members(logits, count)

    @torch.no_grad()
    def member_log_probs(self, examples: Sequence[Example], *, max_rows: int | None = None) -> Tensor:
        """log p of each label for each member (M, N, C), float32, normalised over an example's labels.

        At most `max_rows` rows (members * examples) are in flight, fewer where memory runs out; without adapters' dropout, also in the
        middle of training.

        Raises:
            DataError: a prompt is longer than the base's window, unless `info.overlong` is "left"; or a label cannot be used.
            ConfigError: memory does not hold a single row.
        """
        encoded = encode_examples(examples, self.tokenizer, max_length=context_window(self.base), overlong=self.info.overlong)

        def score(rows: int) -> Tensor:
            reader = self.shared_rows(rows)
            return score_labels(
                encoded,
                reader.answer_logits,
                pad_id=self.pad_id,
                rows_per_batch=max(1, rows // self.num_members),
                device=self.device,
                read_prefix=reader.read_prefix,
            )

        length = sum(len(example.prompt_ids) for example in encoded) / max(1, len(encoded))
        everything = SCORING_ROWS * self.num_members
        return scored_in_parts(score, max_rows or rows_in_flight(everything, tokens_a_row=length, device=self.device))

    def shared_rows(self, max_rows: int) -> SharedRows:
        """What reads the same rows with all members, at most `max_rows` rows (members * examples) at a time."""
        return SharedRows(self.base, self.stack, self.trunk, max_rows)

    @functools.cached_property
    def trunk(self) -> Trunk | None:
        """The layers below the first adapted one, where the base has such: they run once for all members that read the same rows."""
        with self.base_only() as base:
            return trunk_below_adapters(base)

    def _member_rows(self, input_ids: Tensor) -> Tensor:
        if input_ids.dim() == 2:
            return input_ids.expand(self.num_members, -1, -1)
        if input_ids.dim() != 3 or input_ids.shape[0] != self.num_members:
            raise ConfigError(f"input_ids is {tuple(input_ids.shape)}; pass (B, T) or (M, B, T) with M = {self.num_members} members")
        return input_ids


def context_window(base: nn.Module) -> int | None:
    """The number of tokens that the base can see at once, where its config says it."""
    config: Any = base.config
    for name in ("max_position_embeddings", "n_positions", "max_seq_len"):
        value = getattr(config, name, None)
        if isinstance(value, int) and value > 0:
            return value
    return None


def _has_module(base: nn.Module, name: str) -> bool:
    return any(name == known for known, _ in base.named_modules())


def _check_count(members: int) -> None:
    if not isinstance(members, int) or isinstance(members, bool) or members < 1:
        raise ConfigError(f"members={members!r}; an ensemble has at least 1 member, 5 in the paper")


def _check_indices(indices: Sequence[int], members: int) -> None:
    wrong = [index for index in indices if index not in range(members)]
    if wrong or len(set(indices)) != len(indices):
        raise ConfigError(f"member indices {list(indices)}; pass different numbers from 0 to {members - 1}")


def _check_base(base: nn.Module) -> None:
    if hasattr(base, "peft_config"):
        raise AdapterError("the base is wrapped by PEFT already; pass the plain model (`model.unload()`), or its folders to from_adapters")
    if any(hasattr(module, "lora_a") and hasattr(module, "plan") for module in base.modules()):
        raise AdapterError("the base carries another ensemble; call `unload()` on that one first, or load the base again")
    devices = {parameter.device for parameter in base.parameters()}
    if len(devices) > 1:
        raise AdapterError(f"the base lies on several devices ({', '.join(map(str, devices))}); load it on one")
