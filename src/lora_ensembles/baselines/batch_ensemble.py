"""BatchEnsemble: members that scale the inputs and outputs of shared, frozen layers.

Shapes: M members, B rows of a member, T tokens, K answer positions, D features, N examples, C options, P
parameters of a member.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch
from peft import LoraConfig
from torch import Tensor, nn

from ..checks import number_between
from ..data import Example
from ..errors import AdapterError
from ..heads.lm.scores import PlainPasses, score_examples
from ..heads.lm.table import TokenTable
from ..heads.losses import RowLosses
from ..heads.objectives import answer_loss, answer_right, kl_to_base
from ..passes.answer_positions import answer_logits, logits_at
from ..passes.probe import (
    check_language_model,
    check_plain,
    check_targets,
    probe_language_model,
)
from ..stack.adapters import default_adapter_config, initial_weights
from ..stack.context import ForwardContext
from ..stack.head_config import LabelScore
from ..stack.lora import fold_members, unfold_members
from ..stack.quantised import keep_differentiable
from ..stack.seeds import member_seeds, whole_count
from ..training.config import TrainConfig
from ..training.loop import run
from ..training.trainee import TrainResult
from .trainee import BaselineTrainee, answer_states, check_settings, check_validation, training_rows

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

ALL = slice(None)


class RankOneLinear(nn.Module):
    """A frozen linear layer whose weight each member multiplies by a matrix of rank one: row (m, b) gets (W o
    s_m r_m^T) x + bias.

    Computed as s_m o W (r_m o x), so W is read once for all members. r_m = 1 + `input_offsets[m]` (M, D_in)
    and s_m = 1 + `output_offsets[m]` (M, D_out) are fp32, and only the products are cast to the base's dtype.
    Between 1 and 2 bf16 has steps of 0.8 %: a factor cast to it would lose what a step of training adds,
    where products of many different x keep it on average. Source: Wen et al. 2020 (arXiv:2002.06715), Eq. 1
    and 2.
    """

    def __init__(self, base_layer: nn.Module, *, name: str, context: ForwardContext):
        super().__init__()
        self.base_layer, self.name, self.context = base_layer, name, context
        self.input_offsets: nn.Parameter
        self.output_offsets: nn.Parameter

    def bind(self, input_offsets: Tensor, output_offsets: Tensor) -> None:
        """Take views (M, D_in) and (M, D_out) of the ensemble's buffers as this layer's parameters."""
        self.input_offsets, self.output_offsets = nn.Parameter(input_offsets), nn.Parameter(output_offsets)

    def forward(self, x: Tensor) -> Tensor:
        context = self.context
        if not context.enabled:
            return self.base_layer(x)
        tokens = x.numel() // x.shape[-1]
        if context.tokens != tokens:
            raise AdapterError(
                f"layer {self.name!r} got {tokens} token vectors where the batch has {context.tokens}: "
                "either it does not see every row of every member in order "
                "(a layer inside a routed expert does not), then take it out of target_modules; "
                "or the base was called by itself, then call it inside `with ensemble.base_only():`"
            )
        before, behind = self.input_offsets[context.members], self.output_offsets[context.members]
        members = before.shape[0]
        scaled = x.reshape(members, -1, x.shape[-1]) * (1 + before)[:, None]
        result = self.base_layer(scaled.to(x.dtype).view(x.shape))
        out = result.reshape(members, -1, result.shape[-1]) * (1 + behind)[:, None]
        bias = getattr(self.base_layer, "bias", None)
        if bias is not None:  # it is no part of W: s o (W r o x + b) - s o b + b
            out = out - (behind * bias)[:, None]
        return out.to(result.dtype).view(result.shape)


class BatchEnsemble:
    """A `Predictor` of M members, each a rank-one multiplicative change of the same target layers: W_m = W o
    (s_m r_m^T).

    r_m and s_m alone are trained, D_in + D_out numbers a layer and member (those of a LoRA of rank 1); the
    shared weight stays the base's. `Differs:` from Wen et al. 2020, who train the shared weight too, and from
    Arteaga et al. 2024 (arXiv:2409.02976), who train a LoRA of it that all members share: a part that is
    shared makes each member's result depend on its neighbours, and members here are to differ from those of a
    LoRA ensemble in the form of the change alone.

    Initialisation: r = 1 + u, s = 1 + v with u, v ~ N(0, sigma^2). The random signs of Wen et al., who train
    from scratch, would destroy what the base knows. With sigma an entry of W is off by about sqrt(2) sigma of
    itself; 0.05 is the largest value that cost the embedded base less than 0.01 nats (docs/baselines.md has
    the curve). sigma = 0 starts all members at the base, so that only data order tells them apart. u and v
    are what is trained, so decay pulls towards the base, as it does with LoRA: `weight_decay_a` acts on u
    (the input side, as A), `weight_decay_b` on v (the output side, as B).

    The base's target layers are replaced in place; its weights are never changed, and `unload` gives it back
    as it was.

    Args:
        base: any Hugging Face causal language model, not wrapped by PEFT, carrying no other ensemble.
        tokenizer: its tokenizer.
        num_members: number of members.
        adapter: a `peft.LoraConfig` that says which layers; its rank, alpha and the like mean nothing here.
            The paper's by default.
        sigma: size of the initial offsets.
        seed, vary: as of `LoraEnsemble`: member m sees its data in the order that member m there does.

    Raises:
        ConfigError: `num_members` is not a positive number, or `sigma` negative.
        AdapterError: PEFT finds no target, or one that is no linear layer.

    Example:
        >>> from lora_ensembles.embedded import load_base
        >>> from lora_ensembles.data import load_task
        >>> task = load_task("world-cqa")
        >>> ensemble = BatchEnsemble(*load_base(), num_members=2)
        >>> ensemble.fit(task.train[:32], TrainConfig(epochs=1, learning_rate=1e-2)).history[0]["step"]
        2
        >>> ensemble.member_log_probs(task.validation[:4]).shape
        torch.Size([2, 4, 5])
    """

    def __init__(
        self,
        base: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        num_members: int = 5,
        adapter: LoraConfig | None = None,
        sigma: float = 0.05,
        seed: int = 0,
        vary: Sequence[str] = ("init", "order"),
    ):
        members = whole_count(num_members)
        self.sigma = number_between("sigma", sigma, least=0)
        self.base, self.tokenizer = base, tokenizer
        self.seeds = [member_seeds(seed, index, vary=vary) for index in range(members)]
        self.overlong: Literal["error", "left"] = "error"
        self.label_score: LabelScore = "sum"
        shapes = _target_shapes(base, adapter or default_adapter_config())
        base.requires_grad_(False).eval()
        keep_differentiable(base)
        self.inputs, self.outputs = _initial_offsets(
            shapes, [seeds.init for seeds in self.seeds], sigma, base.device
        )
        self._context = ForwardContext()
        self.layers = [self._place(name) for name in shapes]
        starts = 0, 0
        for layer, (wide, high) in zip(self.layers, shapes.values(), strict=True):
            layer.bind(
                self.inputs[:, starts[0] : starts[0] + wide], self.outputs[:, starts[1] : starts[1] + high]
            )
            starts = starts[0] + wide, starts[1] + high
        with self.base_only():
            probe_language_model(base)

    def _place(self, name: str) -> RankOneLinear:
        layer = RankOneLinear(self.base.get_submodule(name), name=name, context=self._context)
        _set_module(self.base, name, layer)
        return layer

    @property
    def num_members(self) -> int:
        return self.inputs.shape[0]

    @property
    def num_trained_parameters(self) -> int:
        """Parameters of a member: the sum over its layers of D_in + D_out."""
        return self.inputs.shape[1] + self.outputs.shape[1]

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
        """Train every member's r and s on `examples`, each in an order of its own, by Eq. 3 (and 4) of
        arXiv:2310.00035.

        Args:
            examples: labelled ones to train on.
            config, validation, out, resume, overwrite, progress: as for `train`; with `out`, the last
                checkpoint is the result, and `resume` brings a finished run back.

        Returns:
            The losses, and the members after the epochs of `config.snapshot_epochs`.

        Raises:
            ConfigError: a setting is not supported here (dropout), or not one for each member.
            DataError: an example cannot be encoded or has no answer.
            TrainingError: a loss or gradient is not finite, or memory ran out.
        """
        config = config or TrainConfig()
        check_settings(config, "BatchEnsemble")
        check_validation(validation)
        kl_weight = config.per_member("kl_weight", self.num_members).to(self.base.device)
        _, table = training_rows(examples, self.base, self.tokenizer, config)
        states = None
        if bool((kl_weight > 0).any()):
            with self.base_only() as base:
                states = answer_states(base, table, rows=config.max_rows)
        self.overlong, self.label_score = config.overlong, config.label_score
        return run(
            _OffsetsTrainee(self, _Rows(self, table, states)),
            config,
            validation=validation,
            out=out,
            resume=resume,
            overwrite=overwrite,
            progress=progress,
            own={"sigma": self.sigma, "targets": [layer.name for layer in self.layers]},
        )

    def set_members(self, members: Sequence[dict[str, Tensor]]) -> None:
        """Replace the members' factors by those of a snapshot; see `TrainResult.restore`."""
        for index, saved in enumerate(members):
            self.inputs[index].copy_(saved["inputs"])
            self.outputs[index].copy_(saved["outputs"])

    @torch.no_grad()
    def member_log_probs(self, examples: Sequence[Example], *, max_rows: int | None = None) -> Tensor:
        """log p of each label for each member (M, N, C), float32; at most `max_rows` rows (members *
        examples) are in flight.

        Raises:
            DataError: a prompt or a label cannot be used.
            ConfigError: memory ran out.
        """
        return score_examples(
            examples,
            lambda rows: PlainPasses(self._score_batch, max(1, rows // self.num_members)),
            base=self.base,
            tokenizer=self.tokenizer,
            copies=self.num_members,
            max_rows=max_rows,
            overlong=self.overlong,
            label_score=self.label_score,
        )

    def _score_batch(self, ids: Tensor, positions: Tensor) -> Tensor:
        rows, places = (tensor.expand(self.num_members, *tensor.shape) for tensor in (ids, positions))
        with self.running(rows):
            logits = answer_logits(self.base, fold_members(rows), fold_members(places))
        return unfold_members(logits, self.num_members)

    def running(self, ids: Tensor, members: slice = ALL) -> AbstractContextManager[None]:
        """Context in which a forward pass over `ids` (m, B, T), the rows of `members`, runs."""
        if any(self.base.get_submodule(layer.name) is not layer for layer in self.layers[:1]):
            raise AdapterError("this ensemble was unloaded: the base has its own layers back; make it again")
        count, rows = ids.shape[:2]
        return self._context.running(rows=count * rows, tokens=ids.numel(), groups=count, members=members)

    @contextmanager
    def base_only(self) -> Iterator[PreTrainedModel]:
        """Context in which the base computes as if it had no members."""
        with self._context.disabled():
            yield self.base

    def unload(self) -> PreTrainedModel:
        """The base with its own layers back in place; the ensemble cannot be used afterwards."""
        for layer in self.layers:
            _set_module(self.base, layer.name, layer.base_layer)
        return self.base


@dataclass
class _Rows:
    """Labelled questions; a `TrainingRows`. `states` (n, H) are the base's, if a member has a KL weight."""

    ensemble: BatchEnsemble
    table: TokenTable
    states: Tensor | None
    passes: int = 1
    loss: Literal["labels", "vocabulary"] = "vocabulary"

    @property
    def lengths(self) -> Tensor:
        return self.table.lengths

    @property
    def accuracy_name(self) -> str:
        return self.table.accuracy_name

    def fingerprint(self) -> str:
        return self.table.fingerprint()

    def losses(self, indices: Tensor, *, members: slice, row_numbers: Tensor | None = None) -> RowLosses:
        batch = self.table.gather(indices)
        tokens = batch.answer_tokens()
        base_states = None if self.states is None else self.states[tokens.numbers]
        with self.ensemble.running(batch.ids, members):
            logits = logits_at(
                self.ensemble.base, fold_members(batch.ids), tokens.places, extra_hidden=base_states
            )
        tuned = logits if base_states is None else logits[0]
        return RowLosses(
            tokens.per_row(answer_loss(tuned, tokens.answers)),
            None if base_states is None else tokens.per_row(kl_to_base(tuned, logits[1])),
            tokens.per_row((~answer_right(tuned, tokens.answers)).float()) == 0,
        )


class _OffsetsTrainee(BaselineTrainee):
    """A BatchEnsemble in training."""

    decays = ("weight_decay_a", "weight_decay_b")

    def __init__(self, ensemble: BatchEnsemble, rows: _Rows):
        self.predictor, self.base, self.rows, self._ensemble = ensemble, ensemble.base, rows, ensemble
        self.order_seeds = [seeds.order for seeds in ensemble.seeds]
        self.dtype = ensemble.base.dtype
        self.tokens_a_row = rows.lengths.float().mean().item()
        self._reached: set[int] = set()  # layers that had a gradient in this step

    @property
    def buffers(self) -> dict[str, Tensor]:
        return {"inputs": self._ensemble.inputs, "outputs": self._ensemble.outputs}

    def begin_step(self, gradients: Sequence[Tensor], step: int) -> None:
        super().begin_step(gradients, step)
        self._reached.clear()

    def add_gradients(self, loss: Tensor, totals: tuple[Tensor, ...]) -> None:
        layers = self._ensemble.layers
        leaves = [layer.input_offsets for layer in layers] + [layer.output_offsets for layer in layers]
        gradients = torch.autograd.grad(loss, leaves, allow_unused=True)
        places = [(side, columns) for side in (0, 1) for columns in self._columns(side)]
        for number, ((side, columns), gradient) in enumerate(zip(places, gradients, strict=True)):
            if gradient is not None:  # None: the pass did not reach this layer
                totals[side][:, columns].add_(gradient)
                self._reached.add(number % len(layers))

    def unreached(self) -> list[list[slice]]:
        return [
            [columns for number, columns in enumerate(self._columns(side)) if number not in self._reached]
            for side in (0, 1)
        ]

    def _columns(self, side: int) -> list[slice]:
        """Columns of each layer's factors in the inputs' buffer, or in the outputs'."""
        widths = [
            (layer.input_offsets, layer.output_offsets)[side].shape[1] for layer in self._ensemble.layers
        ]
        ends = list(itertools.accumulate(widths))
        return [slice(end - width, end) for width, end in zip(widths, ends, strict=True)]


def _target_shapes(base: PreTrainedModel, adapter: LoraConfig) -> dict[str, tuple[int, int]]:
    """(D_in, D_out) of each layer that PEFT would adapt, by name, in the base's order."""
    if any(isinstance(module, RankOneLinear) for module in base.modules()):
        raise AdapterError(
            "the base carries another BatchEnsemble; call `unload()` on that one first, "
            "or load the base again"
        )
    check_plain(base)
    check_language_model(base)
    weights = initial_weights(base, adapter, seed=0)
    check_targets(base, weights.a)
    return {name: (weights.a[name].shape[1], weights.b[name].shape[0]) for name in weights.a}


def _initial_offsets(
    shapes: dict[str, tuple[int, int]], seeds: Sequence[int], sigma: float, device: torch.device
) -> tuple[Tensor, Tensor]:
    wide, high = (sum(shape[side] for shape in shapes.values()) for side in (0, 1))
    drawn = (
        torch.stack(
            [torch.randn(wide + high, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
        )
        * sigma
    )
    return drawn[:, :wide].contiguous().to(device), drawn[:, wide:].contiguous().to(device)


def _set_module(base: nn.Module, name: str, layer: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    setattr(base.get_submodule(parent), child, layer)
