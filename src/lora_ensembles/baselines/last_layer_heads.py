"""Last-layer ensemble of classifiers, choices and rewards: the base is frozen, and each member has a head of
its own.

Shapes: M members, B rows of a member, W texts of a table, N examples, C classes or options, H features, K
scores of a text.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, nn

from ..data import Example
from ..errors import AdapterError, ConfigError
from ..heads import HeadConfig, HeadKind, head_of, resolve_head
from ..heads.losses import RowLosses
from ..heads.resolve import member_modules
from ..heads.task.encoding import encode_texts, log_probs, with_classes
from ..heads.task.losses import check_labelled, choice_losses, refuse_divergence
from ..heads.task.scores import text_passes, texts_log_probs
from ..heads.task.table import TextTable
from ..passes.hooks import changed, read_at
from ..passes.texts import Texts, last_tokens, text_scores
from ..passes.token_probe import padding_is_read
from ..stack.adapters import initial_head
from ..stack.context import ForwardContext
from ..stack.head_layers import HeadStack
from ..stack.lora import unfold_members
from ..stack.seeds import member_seeds, whole_count
from ..stack.sites import MemberWeights
from ..training.config import TrainConfig
from ..training.loop import run
from ..training.trainee import TrainResult
from .trainee import BaselineTrainee, check_settings, check_validation

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class LastLayerHeads:
    """A `Predictor` of M members that differ in the head behind a frozen base: `LastLayerEnsemble` for what
    is no causal language model.

    The base runs once over the training texts; what enters the head is kept, one vector a text, and a step is
    the head alone. Heads begin as those of `LoraEnsemble(seed=seed)` do, and see the data in the same orders.
    Settings are those of `TrainConfig`; `weight_decay_head` is the only decay that has something to act on.

    Args:
        base: a sequence classifier or multiple-choice model; it is never changed.
        tokenizer: its tokenizer.
        num_members: number of members.
        seed: of the ensemble.
        head: a `HeadConfig` or the kind of one; by default what the base's class says.

    Raises:
        ConfigError: `num_members` is not a positive number; or the base is a causal language model, or not
            made for the head.
        AdapterError: a head of other layers than linear ones.

    Example:
        >>> from lora_ensembles import load_base
        >>> base, tokenizer = load_base("embedded", head="sequence-classification", num_labels=2)
        >>> told = ["It is a lark", "It is a carp"]
        >>> texts = [Example(str(n), text, ("bird", "fish"), n) for n, text in enumerate(told)]
        >>> ensemble = LastLayerHeads(base, tokenizer, num_members=3)
        >>> trained = ensemble.fit(texts, TrainConfig(epochs=20, learning_rate=1e-2))
        >>> losses = [row["train_loss"][0] for row in trained.history]
        >>> losses[-1] < losses[0]
        True
        >>> ensemble.member_log_probs(texts).shape
        torch.Size([3, 2, 2])
    """

    def __init__(
        self,
        base: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        num_members: int = 5,
        seed: int = 0,
        head: HeadConfig | HeadKind | None = None,
    ):
        count = whole_count(num_members)
        self.head = resolve_head(base, head)
        if not head_of(self.head).trained:
            raise ConfigError(
                "LastLayerHeads needs a classifier or a multiple-choice model; "
                "LastLayerEnsemble is for causal language models"
            )
        self.base, self.tokenizer = base.eval().requires_grad_(False), tokenizer
        self.seeds = [member_seeds(seed, index) for index in range(count)]
        self.overlong: Literal["error", "left"] = "error"
        owned = set(member_modules(base))
        modules = {
            name: module for name, module in base.named_modules() if name in owned
        }  # drawn in the order of an adapter's
        fresh = self.head.init == "fresh"
        drawn = [initial_head(base, modules, seed=seeds.init if fresh else None) for seeds in self.seeds]
        self._context = ForwardContext()
        self.heads = HeadStack(
            base, [MemberWeights({}, {}, {}, head) for head in drawn], context=self._context, dtype=base.dtype
        )
        self.heads.set_members([MemberWeights({}, {}, {}, head) for head in drawn])
        self.heads.detach(base)

    @property
    def num_members(self) -> int:
        return len(self.seeds)

    @property
    def num_trained_parameters(self) -> int:
        """Parameters of a member's head."""
        return self.heads.flat.shape[1]

    @functools.cached_property
    def padding_is_read(self) -> bool:
        """Whether the base reads the padding behind a text, so that texts of one length only are read
        together.
        """
        return padding_is_read(self.base)

    def fit(
        self,
        examples: Sequence[Example],
        config: TrainConfig | None = None,
        *,
        validation: Sequence[Example] = (),
        out: str | Path | None = None,
        resume: bool = False,
        overwrite: bool = False,
        progress: bool = False,
    ) -> TrainResult:
        """Train every member's head, from where it is.

        `validation`, `out`, `resume` and `overwrite` are those of `train`; with `out`, the last checkpoint is
        the result, and `resume` brings a finished run back.

        Args:
            examples: labelled ones to train on.
            config, validation, out, resume, overwrite, progress: as for `train`.

        Returns:
            The losses, and the members after the epochs of `config.snapshot_epochs`.

        Raises:
            ConfigError: a setting is not supported here (dropout), or not one for each member; or a KL
                weight, and heads that were newly initialised.
            DataError: an example cannot be encoded or has no answer.
            AdapterError: the model's head cannot be run apart from its body.
            TrainingError: a loss is not finite.
        """
        config = config or TrainConfig()
        check_settings(config, "a last-layer ensemble")
        check_validation(validation)
        config.check_decay("weight_decay_head")
        kl_weight = config.per_member("kl_weight", self.num_members).to(self.base.device)
        with_kl = bool((kl_weight > 0).any())
        if with_kl:
            refuse_divergence(self.head)
        self.head = with_classes(self.head, examples)
        table = self._table(examples, config.overlong)
        check_labelled(table)
        self.overlong = config.overlong
        features = self._features_of(table, rows=table.rows_in_flight(1, max_rows=config.max_rows))
        own = log_probs(table.per_example(self._own_scores(features)[None]))[0] if with_kl else None
        return run(
            _HeadsTrainee(self, _Rows(self, table, features, own)),
            config,
            validation=validation,
            out=out,
            resume=resume,
            overwrite=overwrite,
            progress=progress,
        )

    def set_members(self, members: Sequence[dict[str, Tensor]]) -> None:
        """Replace the members' heads by those of a snapshot; see `TrainResult.restore`."""
        for own, saved in zip(self.heads.flat, members, strict=True):
            own.copy_(saved["head"])
        self.heads.refresh()

    @torch.no_grad()
    def member_log_probs(self, examples: Sequence[Example], *, max_rows: int | None = None) -> Tensor:
        """log p of each class or option for each member (M, N, C), float32.

        Args:
            examples: N labelled or unlabelled examples.
            max_rows: the most rows (member and example pairs) in one forward pass; None: a number that suits
                most machines.

        Raises:
            DataError: a text cannot be used.
            ConfigError: memory does not hold a single row.
        """
        table = self._table(examples, self.overlong)
        self.heads.refresh()

        def read(texts: Texts) -> Tensor:
            return self.scores(self._features(texts).expand(self.num_members, -1, -1))

        return texts_log_probs(table, read, max_rows=max_rows, padded=not self.padding_is_read)

    def scores(self, features: Tensor, *, members: slice = slice(None)) -> Tensor:
        """Scores (M, B, K) by the heads of these members of what enters them (M, B, H)."""
        count, rows = features.shape[:2]
        self.heads.attach(self.base)
        try:
            with self._context.running(rows=count * rows, tokens=count * rows, groups=count, members=members):
                return unfold_members(self._head_alone(features.flatten(0, 1)), count)
        finally:
            self.heads.detach(self.base)

    def _table(self, examples: Sequence[Example], overlong: Literal["error", "left"]) -> TextTable:
        return encode_texts(examples, self.base, self.tokenizer, head=self.head, overlong=overlong)

    @torch.no_grad()
    def _features_of(self, table: TextTable, *, rows: int) -> Tensor:
        """Features that enter the head, one for each text (W, H), after a trial that the head gives the
        model's own scores of it.
        """
        few = table.texts(torch.arange(min(4, len(table.text_lengths))))
        expected, scores = text_scores(self.base, few), self._own_scores(self._features(few))
        share = (
            1e-4 if expected.dtype == torch.float32 else 1e-2
        )  # another product for the same numbers, and no more
        if not torch.allclose(scores, expected, rtol=0, atol=share * float(expected.abs().max())):
            raise AdapterError(
                f"the head of a {type(self.base).__name__} cannot be run apart from its body; "
                "train adapters with it instead"
            )
        passes = text_passes(table, rows=rows, padded=not self.padding_is_read)
        features = torch.cat([self._features(table.texts(numbers)) for numbers in passes])
        return features[torch.cat(passes).argsort().to(features.device)]

    @torch.no_grad()
    def _own_scores(self, features: Tensor) -> Tensor:
        return self._head_alone(features)

    @torch.no_grad()
    def _features(self, texts: Texts) -> Tensor:
        """Features that enter the first layer of the head: (B, H); of a decoder, which scores every token, at
        the last one.
        """
        states = read_at(self._layer(0), lambda: text_scores(self.base, texts), side="before")
        rows = torch.arange(len(states), device=states.device)
        return states if states.dim() == 2 else states[rows, last_tokens(self.base, texts.ids)]

    def _head_alone(self, features: Tensor) -> Tensor:
        """The scores (n, K) of what enters the head (n, H): the model runs on one token, and the features
        take its place.
        """
        token = torch.zeros(1, 1, dtype=torch.int64, device=features.device)
        text = Texts(token, torch.ones_like(token), None, torch.zeros(1, dtype=torch.int64))
        with changed(self._layer(0), before=lambda _: features):
            return read_at(self._layer(-1), lambda: text_scores(self.base, text), side="after")

    def _layer(self, number: int) -> nn.Module:
        return self.base.get_submodule(self.heads.layers[number].name)


@dataclass
class _Rows:
    """Texts, as the heads of a last-layer ensemble learn from them; a `TrainingRows`.

    `base` (N, C) are the base's own log-probabilities, where a member has a KL weight.
    """

    ensemble: LastLayerHeads
    table: TextTable
    features: Tensor
    base: Tensor | None
    loss: Literal["labels", "vocabulary"] = "labels"
    accuracy_name: str = "accuracy"

    @property
    def lengths(self) -> Tensor:
        return self.table.lengths

    @property
    def passes(self) -> int:
        return self.table.width

    def fingerprint(self) -> str:
        return self.table.fingerprint()

    def losses(self, indices: Tensor, *, members: slice, row_numbers: Tensor | None = None) -> RowLosses:
        batch = self.table.gather(indices)
        features = self.features[batch.numbers.to(self.features.device)]
        return choice_losses(
            batch,
            self.ensemble.scores(features, members=members),
            targets=self.table.targets[indices],
            base=None if self.base is None else self.base[indices],
            target_probs=None if self.table.target_probs is None else self.table.target_probs[indices],
        )


class _HeadsTrainee(BaselineTrainee):
    """A last-layer ensemble of task heads in training."""

    decays = ("weight_decay_head",)
    tokens_a_row = 1.0  # the base ran before
    pass_tokens = None  # and read what padding there was

    def __init__(self, ensemble: LastLayerHeads, rows: _Rows):
        self.predictor, self.base, self.rows, self.heads = ensemble, ensemble.base, rows, ensemble.heads
        self.order_seeds = [seeds.order for seeds in ensemble.seeds]
        self.dtype = ensemble.base.dtype
        self.refresh()

    @property
    def buffers(self) -> dict[str, Tensor]:
        return {"head": self.heads.flat}

    def add_gradients(self, loss: Tensor, totals: tuple[Tensor, ...]) -> None:
        gradients = torch.autograd.grad(loss, self.heads.parameters, allow_unused=True)
        for view, gradient in zip(self.heads.views(totals[0]), gradients, strict=True):
            if gradient is not None:
                view.add_(gradient)

    def refresh(self) -> None:
        self.heads.refresh()
