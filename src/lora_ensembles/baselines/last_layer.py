"""Last-layer ensemble: the base is frozen, and each member has label-token rows of the output head of its
own.

Shapes: M members, B rows of a member, K answer tokens of a row, n answer tokens in all, L label tokens, H
hidden size, V vocabulary, N examples, C options.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from ..data import Example
from ..errors import AdapterError
from ..heads.lm.scores import PlainPasses, score_examples
from ..heads.lm.table import TokenTable
from ..heads.losses import RowLosses
from ..passes.answer_positions import Places, head_logits, hidden_at, places_at_once
from ..passes.branches import Branches, can_branch
from ..passes.hooks import changed
from ..passes.memory import SCORING_ROWS
from ..passes.probe import ensure_probed
from ..stack.head_config import LabelScore
from ..stack.seeds import member_seeds, whole_count
from ..training.config import TrainConfig
from ..training.loop import run
from ..training.trainee import TrainResult
from .trainee import BaselineTrainee, answer_states, check_settings, check_validation, training_rows

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class LastLayerEnsemble:
    """A `Predictor` of M members that differ in the rows of the output head that spell labels, and share
    everything else.

    Each member's rows start from the pre-trained ones and see the training data in an order of their own.
    Nothing below the head changes, so the base runs once over the training data, and a step is one batched
    product. The loss is Eq. 3 of arXiv:2310.00035, over the full vocabulary, and exact: the logits of all
    other tokens are frozen too, so that of them only their logsumexp is kept, one number an answer token.
    What a model does behind its head (soft caps, scales) is done by its own `forward`. Arithmetic is in the
    head's dtype, on fp32 masters. A bias of the head stays as it is. Before `fit` every member is the base.

    Settings are those of `TrainConfig`; `weight_decay_b` is the decay of the rows, towards 0, and
    `weight_decay_a` has nothing to act on. Source: Sec. 5.1 of arXiv:2310.00035, read as in the first
    sentence.

    Args:
        base: any Hugging Face causal language model; it is never changed. If it carries a `LoraEnsemble`, use
            this inside `base_only()`.
        tokenizer: its tokenizer.
        num_members: number of members.
        seed: member m sees its data in the order that member m of `LoraEnsemble(seed=seed)` does.

    Raises:
        ConfigError: `num_members` is not a positive number.
        AdapterError: the base has no output head with a plain weight matrix.

    Example:
        >>> from lora_ensembles.embedded import load_base
        >>> from lora_ensembles.data import load_task
        >>> task = load_task("world-cqa")
        >>> ensemble = LastLayerEnsemble(*load_base(), num_members=3)
        >>> trained = ensemble.fit(task.train[:64], TrainConfig(epochs=2, learning_rate=1e-3))
        >>> losses = [row["train_loss"][0] for row in trained.history]
        >>> losses[1] < losses[0]
        True
        >>> ensemble.member_log_probs(task.validation[:4]).shape
        torch.Size([3, 4, 5])
    """

    def __init__(
        self,
        base: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        num_members: int = 5,
        seed: int = 0,
    ):
        members = whole_count(num_members)
        self.base, self.tokenizer = base.eval(), tokenizer
        self.seeds = [member_seeds(seed, index) for index in range(members)]
        self.overlong: Literal["error", "left"] = "error"
        self.label_score: LabelScore = "sum"
        self.label_ids = torch.zeros(0, dtype=torch.int64, device=base.device)
        self.rows = torch.zeros(
            members, 0, head_weight(base).shape[1], device=base.device
        )  # (M, L, H) fp32 masters
        ensure_probed(base)
        self._plain = True

    @property
    def num_members(self) -> int:
        return len(self.seeds)

    @property
    def num_trained_parameters(self) -> int:
        """Parameters of a member, L * H; 0 before `fit`, which finds the label tokens."""
        return self.rows[0].numel()

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
        """Train every member's rows for the label tokens of `examples`, from the pre-trained ones on,
        whatever was fitted before.

        `validation`, `out`, `resume` and `overwrite` are those of `train`; with `out`, the last checkpoint is
        the result, and `resume` brings a finished run back.

        Args:
            examples: labelled ones to train on.
            config, validation, out, resume, overwrite, progress: as for `train`.

        Returns:
            The losses, and the members after the epochs of `config.snapshot_epochs`.

        Raises:
            ConfigError: a setting is not supported here (dropout), or not one for each member.
            DataError: an example cannot be encoded or has no answer.
            AdapterError: what the model does behind its head is not the same for every token.
            TrainingError: a loss is not finite.
        """
        config = config or TrainConfig()
        check_settings(config, "a last-layer ensemble")
        check_validation(validation)
        kl_weight = config.per_member("kl_weight", self.num_members).to(self.base.device)
        encoded, table = training_rows(examples, self.base, self.tokenizer, config)
        tokens = sorted({token for example in encoded for label in example.label_ids for token in label})
        labels = torch.tensor(tokens, device=self.base.device)
        states = answer_states(self.base, table, rows=config.max_rows)
        self._plain = nothing_behind_head(self.base, len(tokens))
        frozen = _Frozen.of(self.base, labels, states)
        self._check_columns(labels, states, frozen)
        self.overlong, self.label_score, self.label_ids = config.overlong, config.label_score, labels
        self.rows = head_weight(self.base)[labels].detach().float().expand(self.num_members, -1, -1).clone()
        rows = _Rows(self, table, states, frozen, bool((kl_weight > 0).any()))
        return run(
            _HeadRowsTrainee(self, rows),
            config,
            validation=validation,
            out=out,
            resume=resume,
            overwrite=overwrite,
            progress=progress,
        )

    def set_members(self, members: Sequence[dict[str, Tensor]]) -> None:
        """Replace the members' rows by those of a snapshot; see `TrainResult.restore`."""
        for own, saved in zip(self.rows, members, strict=True):
            own.view(-1).copy_(saved["rows"])

    @torch.no_grad()
    def member_log_probs(self, examples: Sequence[Example], *, max_rows: int | None = None) -> Tensor:
        """log p of each label for each member (M, N, C), float32. Labels that were not in the training data
        keep the base's rows.

        Args:
            examples: N labelled or unlabelled examples.
            max_rows: the most rows (member and example pairs) in one forward pass; None: a number that suits
                most machines.

        Raises:
            DataError: a prompt or a label cannot be used.
            ConfigError: memory ran out.
        """
        return score_examples(
            examples,
            lambda rows: PlainPasses(self._score_batch, rows, self._score_branches),
            base=self.base,
            tokenizer=self.tokenizer,
            copies=1,
            max_rows=min(max_rows or SCORING_ROWS, places_at_once(self.base, copies=self.num_members)),
            overlong=self.overlong,
            label_score=self.label_score,
        )

    def label_logits(self, states: Tensor, rows: Tensor, label_ids: Tensor) -> Tensor:
        """Logits (M, n, L) of the label tokens from last hidden states (M, n, H) and head rows (M, L, H),
        both in the head's dtype.
        """
        bias = getattr(self.base.get_output_embeddings(), "bias", None)
        raw = torch.bmm(states, rows.transpose(1, 2))
        if bias is not None:
            raw = raw + bias[label_ids]
        return raw if self._plain else _behind_head(self.base, raw)

    def _score_batch(self, ids: Tensor, positions: Tensor) -> Tensor:
        rows = torch.arange(ids.shape[0], device=ids.device)[:, None].expand_as(positions)
        places = Places(rows.flatten(), positions.flatten())
        return self._logits(hidden_at(self.base, ids, places)).unflatten(1, positions.shape)

    def _score_branches(self, ids: Tensor, places: Places, branches: Branches) -> Tensor | None:
        if not can_branch(self.base, ids.shape[1]):
            return None
        return self._logits(hidden_at(self.base, ids, places, branches=branches))

    def _logits(self, hidden: Tensor) -> Tensor:
        """Logits (M, n, V) of last hidden states (n, H) of the frozen base."""
        logits = head_logits(self.base, hidden).expand(self.num_members, -1, -1)
        if len(self.label_ids):
            weight = head_weight(self.base)
            states = hidden.to(weight.dtype).expand(self.num_members, -1, -1)
            own = self.label_logits(states, self.rows.to(weight.dtype), self.label_ids)
            logits = logits.index_copy(-1, self.label_ids, own.to(logits.dtype))
        return logits

    @torch.no_grad()
    def _check_columns(self, labels: Tensor, states: Tensor, frozen: _Frozen) -> None:
        # Only columns of the labels are computed from here on, so they must not depend on the others, nor on
        # where they stand.
        weight = head_weight(self.base)
        few = states[:16].to(weight.dtype)
        logits = self.label_logits(few[None], weight[labels][None], labels)[0].float()
        tolerance = (
            1e-3 if weight.dtype == torch.float32 else 5e-2
        )  # rounding of one product in fp32, in bf16; anything else is far off
        if not torch.allclose(logits, frozen.label_logits[:16], atol=tolerance, rtol=tolerance):
            raise AdapterError(
                f"{type(self.base).__name__} does something behind its head that differs from token "
                "to token, so rows of the head cannot be trained alone; use another baseline"
            )


@dataclass(frozen=True)
class _Frozen:
    """Frozen quantities at each answer token: logsumexp (n,) and maximum (n,) over other tokens, the labels'
    base logits (n, L).
    """

    others: Tensor
    largest_other: Tensor
    label_logits: Tensor

    @classmethod
    @torch.no_grad()
    def of(cls, base: PreTrainedModel, labels: Tensor, states: Tensor) -> _Frozen:
        parts = []
        for chunk in states.split(places_at_once(base)):
            logits = head_logits(base, chunk).float()
            own = logits[:, labels]
            rest = logits.index_fill(1, labels, -torch.inf)
            parts.append((rest.logsumexp(dim=1), rest.amax(dim=1), own))
        return cls(*(torch.cat(column) for column in zip(*parts, strict=True)))


@dataclass
class _Rows:
    """Labelled questions, as the rows of a last-layer ensemble learn from them; a `TrainingRows`."""

    ensemble: LastLayerEnsemble
    table: TokenTable
    states: Tensor
    frozen: _Frozen
    with_kl: bool
    passes: int = 1
    loss: Literal["labels", "vocabulary"] = "vocabulary"

    def __post_init__(self) -> None:
        self.leaf = self.ensemble.rows  # of autograd, in the head's dtype; made anew for every pass

    @property
    def lengths(self) -> Tensor:
        return self.table.lengths

    @property
    def accuracy_name(self) -> str:
        return self.table.accuracy_name

    def fingerprint(self) -> str:
        return self.table.fingerprint()

    def losses(self, indices: Tensor, *, members: slice, row_numbers: Tensor | None = None) -> RowLosses:
        ensemble, frozen = self.ensemble, self.frozen
        batch = self.table.gather(indices)
        count, rows, steps = batch.numbers.shape
        numbers = batch.numbers.clamp(max=len(self.states) - 1).view(
            count, -1
        )  # past the end: places that do not count
        columns = (
            torch.searchsorted(ensemble.label_ids, batch.answers)
            .clamp(max=len(ensemble.label_ids) - 1)
            .view(count, -1, 1)
        )
        dtype = head_weight(ensemble.base).dtype
        self.leaf = ensemble.rows.to(dtype, copy=True).requires_grad_()
        logits = ensemble.label_logits(
            self.states[numbers].to(dtype), self.leaf[members], ensemble.label_ids
        ).float()
        total = torch.logaddexp(logits.logsumexp(dim=-1), frozen.others[numbers])  # over the full vocabulary
        answer = logits.gather(-1, columns)[..., 0]
        right = (answer >= logits.amax(dim=-1)) & (answer >= frozen.largest_other[numbers])
        counted = batch.counted

        def per_row(values: Tensor) -> Tensor:
            return (values.view(count, rows, steps) * counted).sum(dim=-1)

        divergence = (
            per_row(_divergence(logits, total, frozen.label_logits[numbers], frozen.others[numbers]))
            if self.with_kl
            else None
        )
        return RowLosses(
            per_row(total - answer), divergence, (right.view(count, rows, steps) | ~counted).all(dim=-1)
        )


class _HeadRowsTrainee(BaselineTrainee):
    """A last-layer ensemble in training."""

    decays = ("weight_decay_b",)
    tokens_a_row = 1.0  # the base ran before
    pass_tokens = None  # and read what padding there was

    def __init__(self, ensemble: LastLayerEnsemble, rows: _Rows):
        self.predictor, self.base, self.rows, self._rows = ensemble, ensemble.base, rows, rows
        self.order_seeds = [seeds.order for seeds in ensemble.seeds]
        self.dtype = ensemble.base.dtype

    @property
    def buffers(self) -> dict[str, Tensor]:
        return {"rows": self._rows.ensemble.rows.flatten(1)}

    def add_gradients(self, loss: Tensor, totals: tuple[Tensor, ...]) -> None:
        (gradient,) = torch.autograd.grad(loss, [self._rows.leaf])
        totals[0].add_(gradient.view(len(gradient), -1))


def _divergence(logits: Tensor, total: Tensor, base_logits: Tensor, others: Tensor) -> Tensor:
    """D_KL(fine-tuned || base) over the full vocabulary (M, n), from label logits (M, n, L) and the logsumexp
    of all logits (M, n).

    With z = base's logits at every other token, log p - log p_base is there the same number, base's logsumexp
    less ours; so sum_v p_v (log p_v - log p_base_v) = sum_labels p_l (z_l - z_base_l) - logsumexp(z) +
    logsumexp(z_base).
    """
    base_total = torch.logaddexp(base_logits.logsumexp(dim=-1), others)
    shares = (logits - total[..., None]).exp()
    return (shares * (logits - base_logits)).sum(dim=-1) - total + base_total


def head_weight(base: PreTrainedModel) -> Tensor:
    """The weight matrix (V, H) of a causal language model's output head.

    Raises:
        AdapterError: there is none, or it is no plain matrix.
    """
    head: Any = base.get_output_embeddings()
    weight = getattr(head, "weight", None)
    if not isinstance(weight, Tensor) or weight.dim() != 2 or not weight.is_floating_point():
        raise AdapterError(
            f"{type(base).__name__} has no output head with a plain weight matrix (it has a "
            f"{type(head).__name__}), whose rows could be trained; load the base without quantising its head"
        )
    return weight


def _behind_head(base: PreTrainedModel, raw: Tensor) -> Tensor:
    """Logits that the model makes of outputs (..., n, L) of its head: its `forward` runs on one token, and
    they take the place of the head's.
    """

    head: Any = base.get_output_embeddings()
    token = torch.zeros(1, 1, dtype=torch.int64, device=raw.device)
    with changed(head, after=lambda _: raw.reshape(1, -1, raw.shape[-1])):
        logits: Tensor = base(input_ids=token, use_cache=False).logits
    return logits.view(raw.shape)


@torch.no_grad()
def nothing_behind_head(base: PreTrainedModel, labels: int) -> bool:
    """Whether the model passes its head's outputs on as they are, which spares the pass of `_behind_head`."""
    weight = head_weight(base)
    probe = torch.linspace(-100, 100, 40 * labels, device=weight.device).to(weight.dtype).view(1, 40, labels)
    return torch.equal(_behind_head(base, probe).float(), probe.float())
