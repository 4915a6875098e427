"""LoraEnsemble: a frozen base model, its tokenizer, and M adapters that run through it in one pass.

Shapes: M members, B rows of a member, T tokens, K answer positions, V vocabulary, N examples, C options.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from peft import LoraConfig
from torch import Tensor

from .calibration.calibrated import HeldOut
from .checks import check_parts
from .data import Example
from .data.inputs import read_new
from .errors import ConfigError
from .generation.causal_lm import as_causal_lm
from .heads import Head, HeadConfig, HeadKind, adapter_for, head_of, resolve_head
from .heads.resolve import check_kind, with_named_classes
from .heads.task.module import as_task_model
from .passes import probe
from .passes.shortcuts import forget
from .passes.stacked_model import KeptStates, StackedModel
from .stack.buffers import AdapterStack
from .stack.capacity import fresh_members
from .stack.info import EnsembleInfo
from .stack.quantised import keep_differentiable
from .stack.seeds import check_indices, member_seeds, warn_of_copies, whole_count, whole_seed
from .stack.sharding.layout import sharding_of
from .stack.sites import MemberWeights
from .storage import folder
from .storage.upload import push_to_hub

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class LoraEnsemble(StackedModel):
    """M LoRA adapters on one frozen base, computed together, each with a head of its own where the base is no
    causal language model.

    The base's target layers are replaced by stacked ones, in place; its weights are never changed, and
    `unload` gives it back as it was. The base stays in evaluation mode also in training, so its own dropout
    (GPT-2 has some) is off. `Differs:` from a PEFT training script, where `model.train()` turns it on, by one
    random stream for all members.

    Args:
        base: any Hugging Face causal language model, sequence classifier or multiple-choice model, not
            wrapped by PEFT.
        tokenizer: its tokenizer.
        num_members: number of members, at least 1.
        adapter: a `peft.LoraConfig`; the paper's by default (rank 8, alpha 32, query and value projections).
            `modules_to_save` names the modules of the members' heads, by default the linear layers beside the
            base's body.
        seed: seed of the ensemble; member m's streams depend on (seed, m) alone.
        vary: what differs between members: initial weights ("init"), order of the data ("order"), both by
            default.
        head: a `HeadConfig` or the kind of one; by default what the base's class says.

    Raises:
        ConfigError: `num_members` is not a positive number, or `vary` names something else; or the base is
            not made for the `head`.
        AdapterError: the adapter cannot be stacked on this base.

    Example:
        >>> from lora_ensembles.embedded import load_base
        >>> ensemble = LoraEnsemble(*load_base(), num_members=3, seed=1)
        >>> ensemble(torch.tensor([[1, 5, 7]])).shape[:3]
        torch.Size([3, 1, 3])
    """

    calibrated: HeldOut | None = None  # see `calibrate`

    def __init__(
        self,
        base: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        num_members: int = 5,
        adapter: LoraConfig | None = None,
        seed: int = 0,
        vary: Sequence[str] = ("init", "order"),
        head: HeadConfig | HeadKind | None = None,
    ):
        check_parts(base, tokenizer)
        count = whole_count(num_members)
        probe.check_plain(base)
        resolved = resolve_head(base, head)
        own = head_of(resolved)
        own.check_base(base)
        config = adapter_for(base, resolved, adapter)
        seeds, weights = fresh_members(
            base, config, seed=seed, indices=range(count), vary=vary, head_init=own.init
        )
        info = EnsembleInfo(whole_seed(seed), tuple(vary), count, tuple(seeds), head=resolved)
        self._attach(base, tokenizer, config, weights, info)
        warn_of_copies(vary, count)

    def _attach(
        self,
        base: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        config: LoraConfig,
        weights: Sequence[MemberWeights],
        info: EnsembleInfo,
        kept_states: KeptStates | None = None,
    ) -> None:
        head = head_of(info.head)
        head.check_base(base, weights[0].a)
        fingerprint = folder.fingerprint(base, apart_from=weights[0].head)
        base.requires_grad_(False).eval()
        keep_differentiable(base)
        stack = AdapterStack(base, weights, dtype=base.dtype)
        super().__init__(
            base,
            tokenizer,
            adapter=config,
            stack=stack,
            info=info,
            reader=head.reader,
            fingerprint=fingerprint,
            kept_states=kept_states,
        )
        self._try_base()

    def _try_base(self) -> None:
        """Try a few tokens on the base; it gets its layers back where they show that it cannot be used."""
        try:
            with self.base_only() as base:
                self.head.try_base(base)
            probe.check_members_apart(self.base, self.stack, self.whole_pass)
        except BaseException:
            self.unload()
            raise

    @classmethod
    def from_weights(
        cls,
        base: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        adapter: LoraConfig,
        weights: Sequence[MemberWeights],
        info: EnsembleInfo,
        kept_states: KeptStates | None = None,
    ) -> LoraEnsemble:
        """An ensemble of given member weights."""
        check_parts(base, tokenizer)
        probe.check_plain(base)
        ensemble, weights = cls.__new__(cls), sharding_of(base).own(weights)
        ensemble._attach(base, tokenizer, adapter, weights, info, kept_states)
        return ensemble

    @classmethod
    def from_adapters(
        cls,
        base: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        paths: Sequence[str | Path] | str | Path,
        *,
        seed: int = 0,
        check_base: bool = True,
        head: HeadConfig | HeadKind | None = None,
    ) -> LoraEnsemble:
        """PEFT adapters of equal target modules, trained anywhere, as one ensemble; ranks may differ.

        Args:
            base: the frozen model.
            tokenizer: its tokenizer.
            paths: folders of PEFT adapters, or one; a member each.
            seed: of members that are added later.
            check_base: refuse adapters that name another base.
            head: the members' head; None: by the class of the base.

        Raises:
            CheckpointError: a folder holds no readable adapter.
            AdapterError: the adapters do not fit each other or the base, or name another base
                (`check_base=False` lets the name pass).
        """
        check_parts(base, tokenizer)
        head = with_named_classes(resolve_head(base, head), base)
        config, weights = folder.read_members(paths, base, check_base=check_base, head=head_of(head).trained)
        seeds = [member_seeds(seed, index) for index in range(len(weights))]
        info = EnsembleInfo(seed=seed, next_index=len(weights), seeds=tuple(seeds), head=head)
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
        """The ensemble that `save_pretrained` wrote, or some of its members, from a folder, or from
        "owner/name" of the Hugging Face hub.

        The base is loaded by its recorded name, in the dtype it was saved with and quantised as it was,
        unless given.

        Args:
            path: a folder, or "owner/name" of the hub.
            base: a loaded model instead of the recorded one, and
            tokenizer: its tokenizer.
            members: indices of those to load; None: all. A calibration is that of all.
            check_base: refuse a base that is not the recorded one.

        Raises:
            CheckpointError: the folder or a member in it is missing, corrupt, or of a newer format.
            AdapterError: the base given is not the one the members were trained on (`check_base=False` lets
                it pass).
            DataError: no base is given, and the recorded one cannot be loaded.
        """
        saved = folder.read_ensemble(Path(path), members=members)
        if base is None or tokenizer is None:
            loaded = folder.load_recorded_base(Path(path), saved)
            base, tokenizer = base or loaded[0], tokenizer or loaded[1]
        check_kind(base, saved.base_kind, saved.num_labels)
        if check_base:
            folder.check_fingerprint(base, saved)
        info, weights = folder.info_of(saved), saved.weights
        made = cls.from_weights(base, tokenizer, adapter=saved.adapter, weights=weights, info=info)
        made.calibrated = saved.calibrated
        return made

    def save_pretrained(self, path: str | Path, *, dtype: torch.dtype = torch.float32) -> None:
        """Write `ensemble.json`, a model card, and one PEFT adapter folder a member; whole or not at all.

        Args:
            path: a folder that is not there or is empty.
            dtype: of the adapters' weights on disk.

        Raises:
            CheckpointError: `path` already holds an ensemble, or there is no space for it.
        """
        folder.write_ensemble(self, Path(path), dtype=dtype, kept=self.calibrated)

    def push_to_hub(self, repo_id: str, *, private: bool = True, token: str | None = None) -> str:
        """Upload the ensemble with its model card to the Hugging Face hub; returns the address of the commit.

        Args:
            repo_id: "owner/name".
            private: create the repository as a private one.
            token: of the hub; None: the one that is logged in.
        """
        return push_to_hub(self, repo_id, private=private, token=token, kept=self.calibrated)

    def read(self, source: object) -> list[Any]:
        """New rows as the ensemble was trained to read them, with its own columns and classes; answers may be
        missing.

        `source` is a file, 'hub:owner/name:split', texts, rows as dictionaries, a datasets.Dataset or a
        DataFrame.

        Raises:
            DataError: anything in it that cannot be used.
        """
        return read_new(source, self.info)

    def __repr__(self) -> str:
        stack, head = self.stack, self.info.head
        ranks = sorted({rank for own in stack.ranks for rank in own.values()})
        targets = sorted({site.name.rpartition(".")[2] for site in stack.sites})
        base = folder.base_name(self.base) or type(self.base).__name__
        classes = f" of {len(head.classes)} classes" if head.classes else ""
        return (
            f"LoraEnsemble({self.members_in_all} members on {base!r}, "
            f"rank {' to '.join(map(str, {ranks[0]: 0, ranks[-1]: 0}))} on {', '.join(targets)}, "
            f"head {head.kind}{classes}, {self.device})"
        )

    @property
    def head(self) -> Head:
        """The head of the members."""
        return head_of(self.info.head)

    def add_members(self, count: int) -> None:
        """Grow by `count` untrained members, those that an ensemble of that size would have had."""
        self.stack.sharding.check_all_here("add_members")
        count, info, self.calibrated = whole_count(count), self.info, None
        grown = kept = [self.stack.member(index) for index in range(self.num_members)]
        self.stack.detach(self.base)
        new, init = range(info.next_index, info.next_index + count), self.head.init
        try:
            seeds, weights = fresh_members(
                self.base, self.adapter, seed=info.seed, indices=new, vary=info.vary, head_init=init
            )
            grown = kept + weights
        finally:
            self.stack = AdapterStack(self.base, grown, dtype=self.base.dtype)
        self._try_base()
        self.info = dataclasses.replace(info, seeds=(*info.seeds, *seeds), next_index=new.stop)

    def load_members(self, paths: Sequence[str | Path] | str | Path, *, check_base: bool = True) -> None:
        """Add members from their folders, this library's or PEFT's own, to the ensemble as it runs; ranks and
        scalings may differ.

        Raises:
            CheckpointError, AdapterError: as `from_adapters`; the ensemble is then as before.
        """
        _, weights = folder.read_members(paths, self.base, check_base=check_base, head=self.head.trained)
        self.stack.add_members(weights)
        info, self.calibrated = self.info, None
        new = range(info.next_index, info.next_index + len(weights))
        seeds = [member_seeds(info.seed, index, vary=info.vary) for index in new]
        self.info = dataclasses.replace(info, seeds=(*info.seeds, *seeds), next_index=new.stop)

    def to(self, device: torch.device | str) -> LoraEnsemble:
        """The ensemble itself, with its base, which lies on one device, and members moved to another."""
        self.stack.sharding.check_one_process("moving an ensemble")
        members = list(self.stack.every_member())
        self.base.to(device)  # type: ignore[arg-type]
        self.stack.set_members(members)
        return self

    def set_members(self, members: Sequence[MemberWeights]) -> None:
        """Replace the members' weights by as many others, a snapshot's, say; see `TrainResult.restore`."""
        self.calibrated = None
        self.stack.set_members(self.stack.sharding.own(members, here=self.num_members))

    def keep_members(self, indices: Sequence[int]) -> None:
        """Keep the members of these indices, in this order, and drop the others.

        Raises:
            ConfigError: no index, one twice, or one that is not there.
        """
        self.stack.sharding.check_all_here("keeping some members")
        check_indices(indices, self.num_members)
        if not indices:
            raise ConfigError("no members would be left; an ensemble keeps at least 1")
        self.set_members([self.stack.member(index) for index in indices])
        self.info = dataclasses.replace(self.info, seeds=tuple(self.info.seeds[index] for index in indices))

    def drop_members(self, indices: Sequence[int]) -> None:
        """Drop the members of these indices; at least one member stays.

        Raises:
            ConfigError: as `keep_members`.
        """
        check_indices(indices, self.num_members)
        self.keep_members([index for index in range(self.num_members) if index not in set(indices)])

    def unload(self) -> PreTrainedModel:
        """The base with its own layers back in place, frozen; the ensemble cannot be used afterwards."""
        self.stack.detach(self.base)
        forget(self.base)  # what was tried was the base with its adapted layers left whole
        return self.base

    def as_causal_lm(self) -> PreTrainedModel:
        """The ensemble as a Hugging Face causal language model; see `generation.causal_lm`."""
        return as_causal_lm(self)

    def as_classifier(self) -> PreTrainedModel:
        """A Hugging Face classifier or multiple-choice model whose `.logits` (B, K) are the log of the
        members' mean probabilities, for `pipeline` and others.

        Raises:
            ConfigError: the members own no such heads.
        """
        return as_task_model(self, rewards=False)

    def as_reward_model(self) -> PreTrainedModel:
        """A Hugging Face sequence classifier whose `.logits` (B, 1) are the members' mean score, for TRL.

        Raises:
            ConfigError: the members are no reward models.
        """
        return as_task_model(self, rewards=True)

    def member(self, index: int) -> PreTrainedModel:
        """One member alone as a Hugging Face causal language model.

        Raises:
            ConfigError: no such member.
        """
        check_indices([index], self.num_members)
        return as_causal_lm(self, slice(index, index + 1))

    @torch.no_grad()
    def member_log_probs(self, examples: Sequence[Example], *, max_rows: int | None = None) -> Tensor:
        """log p of each label, class or option for each member (M, N, C), float32, normalised over an
        example's own.

        At most `max_rows` rows (members * texts) are in flight, fewer where memory runs out; without
        adapters' dropout, also in the middle of training.

        Raises:
            DataError: a prompt or text is longer than the base's window, unless `info.overlong` is "left"; or
                a label cannot be used.
            ConfigError: memory does not hold a single row.
        """
        return self.stack.sharding.of_all(self.head.member_log_probs(self, examples, max_rows=max_rows))
