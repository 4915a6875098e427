"""Training of a LoRA ensemble: its adapters, and its members' heads, by the one loop.

Shapes: M members, B rows of a member, N examples, P parameters of a member.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..data import Completion, Example
from ..data.inputs import as_examples, with_labels
from ..disk.atomic import added_to
from ..disk.layout import ENSEMBLE_FILE
from ..ensemble import LoraEnsemble
from ..passes.decoder import recomputed
from ..passes.probe import check_gradients
from ..prediction.orders import in_orders
from ..stack.dropout import stream_key
from ..stack.sites import MemberWeights
from ..storage.folder import read_ensemble, write_ensemble, write_members
from .config import TrainConfig
from .loop import check_options, run
from .trainee import Trainee, TrainResult
from .validation import check_validation, validate

BUFFERS = ("a", "b", "head")  # of the stack; a causal language model's members have no head
DECAYS = ("weight_decay_a", "weight_decay_b", "weight_decay_head")


def train(
    ensemble: LoraEnsemble,
    examples: Sequence[Example] | Sequence[Completion],
    config: TrainConfig | None = None,
    *,
    validation: Sequence[Example] | Sequence[Completion] = (),
    out: str | Path | None = None,
    resume: bool = False,
    overwrite: bool = False,
    progress: bool = True,
) -> TrainResult:
    """Train all members on `examples`, each in an order of its own; the ensemble holds the result.

    Examples are questions with options (`Example`) or prompts with an open answer (`Completion`). A member's
    loss is the mean over its own rows. By `config.loss` a row's is -log p(answer | prompt), summed over the
    answer's tokens, over the full vocabulary (Eq. 3 of arXiv:2310.00035), plus `kl_weight` times the
    divergence from the base at each of these tokens (Eq. 4); or -log p of the right label among the example's
    own, and the divergence over them (`label_losses`). Members with heads of their own (`HeadConfig`) learn
    classes, options or chosen texts in the same way. Memory stays bounded however long answers are: logits by
    `answer_positions.LOGIT_BUDGET`, what is kept of the base by `heads.lm.losses.BASE_CACHE_BYTES`, with the
    same result beyond them.

    With `out`, settings, log and checkpoints are written below `out/training`, and the ensemble to `out` at
    the end; `resume` goes on from the last checkpoint to the weights that an uninterrupted run would have had
    (same machine, fp32: bit for bit); `overwrite` replaces a run or an ensemble that is there. A signal to
    end finishes the step under way and saves a checkpoint first; a second one ends at once. With a
    `validation` split, metrics of the ensemble and of its members are taken after every epoch.

    Args:
        ensemble: M untrained or trained members, which get the new weights.
        examples: N rows to train on.
        config: settings of training; None: the defaults of `TrainConfig`.
        validation: rows whose metrics are taken after every epoch.
        out: folder of the run and of the ensemble.
        resume: go on from the last checkpoint in `out`.
        overwrite: replace what `out` holds.
        progress: show a progress bar.

    Returns:
        Losses and metrics of every epoch, and the members after those of `config.snapshot_epochs`.

    Raises:
        AdapterError: a quantised layer of the base passes no gradient to the adapters below it.
        ConfigError: a setting does not fit the number of members, or `resume` comes without `out` or with
            `overwrite`.
        DataError: an example, of `validation` too, cannot be encoded or has no answer; or questions and open
            answers are in one list.
        CheckpointError: `out` exists (without `resume` and `overwrite`), holds a run with other settings or
            one that is going on, or cannot be written.
        TrainingError: a loss or gradient is not finite, or memory does not hold a single row; the last
            checkpoint is kept.
        signals.Interrupted: a signal came; a `KeyboardInterrupt` that says how to go on.
    """
    config = config or TrainConfig()
    check_options(out=out, resume=resume, overwrite=overwrite)
    ensemble.calibrated = None  # the weights that it was made for are gone
    examples = as_examples(examples, ensemble.info, labelled=True)
    validation = as_examples(validation, ensemble.info, name="validation", labelled=True)
    ensemble.info = with_labels(ensemble.info, examples)
    check_validation(ensemble, examples, validation, config)
    trainee = AdapterTrainee(ensemble, examples, config)
    ensemble.info = dataclasses.replace(
        ensemble.info,
        overlong=config.overlong,
        label_score=config.label_score,
        head=ensemble.head.named(examples),
    )
    return run(
        trainee,
        config,
        validation=validation,
        out=out,
        resume=resume,
        overwrite=overwrite,
        progress=progress,
    )


class AdapterTrainee(Trainee):
    """The adapters and heads of a LoRA ensemble in training."""

    can_recompute = True

    def __init__(
        self,
        ensemble: LoraEnsemble,
        examples: Sequence[Example] | Sequence[Completion],
        config: TrainConfig,
    ):
        self.ensemble = ensemble
        members, stack = ensemble.num_members, ensemble.stack
        ensemble.base.eval()
        kl_weight = config.per_member("kl_weight", members)
        dropout = config.per_member("dropout", members, default=ensemble.adapter.lora_dropout)
        self.decays = DECAYS[: len(stack.buffers)]
        for name in ("learning_rate", *self.decays):
            config.per_member(name, members)  # refused before the base is read
        if ensemble.head.trained:
            config.check_decay("weight_decay_head")
        check_gradients(ensemble.base, stack, ensemble.whole_pass)
        self.variants = config.option_orders
        self.rows = ensemble.head.training_rows(
            ensemble,
            in_orders(examples, config.option_orders, kind=ensemble.info.head.kind),
            loss=config.loss,
            label_score=config.label_score,
            overlong=config.overlong,
            rows=config.max_rows or config.batch_size * members,
            with_kl=bool((kl_weight > 0).any()),
            with_dropout=bool((dropout > 0).any()),
        )
        self.dropout: Tensor | None = dropout.to(ensemble.device) if (dropout > 0).any() else None  # (M,)
        self.order_seeds = [seeds.order for seeds in ensemble.info.seeds]
        self.dtype: torch.dtype = ensemble.base.dtype
        self.tokens_a_row = self.rows.lengths.float().mean().item()

    @property
    def buffers(self) -> dict[str, Tensor]:
        return dict(zip(BUFFERS, self.ensemble.stack.buffers, strict=False))

    @property
    def device(self) -> torch.device:
        return self.ensemble.device

    def begin_step(self, gradients: Sequence[Tensor]) -> None:
        self.ensemble.stack.begin_step(gradients)

    def add_gradients(self, loss: Tensor, totals: tuple[Tensor, ...]) -> None:
        self.ensemble.stack.add_gradients(loss, totals)

    def unreached(self) -> list[list[slice]]:
        return self.ensemble.stack.unreached()

    def refresh(self) -> None:
        self.ensemble.stack.refresh()

    def in_step(self, step: int) -> AbstractContextManager[None]:
        if self.dropout is None:
            return nullcontext()
        keys = [stream_key(seed, "dropout", step) for seed in self.order_seeds]
        return self.ensemble.stack.dropout(self.dropout, keys)

    def recomputed(self) -> AbstractContextManager[None]:
        return recomputed(self.ensemble.base, self.ensemble.stack.remembered)

    def settings(self, config: TrainConfig) -> dict[str, Any]:
        settings, ensemble = config.to_dict(), self.ensemble
        stack = ensemble.stack
        del settings["log_every"], settings["checkpoint_every"], settings["max_rows"]  # they change no result
        settings = ensemble.head.run_settings(settings, self.rows.loss)
        seeds = [[seeds.init, seeds.order] for seeds in ensemble.info.seeds]
        settings["adapter"] = {
            "targets": sorted({site.name.rpartition(".")[2] for site in stack.sites}),
            "ranks": sorted({rank for ranks in stack.ranks for rank in ranks.values()}),
            "scalings": sorted({scaling for scalings in stack.scaling for scaling in scalings}),
            "dropout": ensemble.adapter.lora_dropout,
        }
        return {
            **settings,
            "member_seeds": seeds,
            "base": ensemble.fingerprint,
            "data": self.rows.fingerprint(),
        }

    def validate(
        self, examples: Sequence[Example] | Sequence[Completion], *, max_rows: int | None, last: bool
    ) -> dict[str, Any]:
        return validate(self.ensemble, examples, max_rows=max_rows, last=last)

    def members(self) -> list[MemberWeights]:
        return [self.ensemble.stack.member(index) for index in range(self.num_members)]

    def save(self, path: Path) -> None:
        write_ensemble(self.ensemble, path)

    def load(self, path: Path) -> list[MemberWeights]:
        return read_ensemble(path).weights

    def finish(self, out: Path) -> None:
        """Put the ensemble's files beside `training`; `ensemble.json` comes last, so a folder that has it is
        complete.
        """
        if not (out / ENSEMBLE_FILE).exists():
            with added_to(out, last=ENSEMBLE_FILE) as aside:
                write_members(self.ensemble, aside, home=out)
