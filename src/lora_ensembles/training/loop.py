"""The training loop: M members, each with its own data order, loss, gradient clip and optimiser state, in one stacked pass a step.

`examples/flat_loop.py` is the whole method in plain lines; a test holds that both give the same weights.

Shapes: M members, B rows of a member, N examples, P parameters of a member.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..data import Completion, Example
from ..data.inputs import as_examples, remember_labels
from ..ensemble import LoraEnsemble
from ..errors import ConfigError, TrainingError
from ..heads.lm.table import MemberOrders, split_step
from ..passes.decoder import recomputed
from ..passes.memory import ran_out_of_memory, rows_in_flight, with_fewer_rows
from ..stack.dropout import stream_key
from ..stack.sites import MemberWeights
from .checkpoint import Progress, RunFolder
from .config import TrainConfig, schedule_factor
from .optim import StackedAdamW, clip_per_member, gradient_norms
from .reporting import Reporter, StepOutcome
from .rows import TrainingRows, training_rows
from .signals import Interrupted, signals_held, word
from .validation import check_validation, validate

DECAYS = ("weight_decay_a", "weight_decay_b", "weight_decay_head")  # of the stack's buffers


@dataclass(frozen=True)
class TrainResult:
    """What a run leaves beside the trained ensemble.

    `history` has one row an epoch: each member's training loss and accuracy, means over its rows, and, with a
    validation split, its metrics. `snapshots` holds every member's weights after the epochs that were asked for;
    `ensemble.stack.set_members` puts them back.
    """

    history: list[dict[str, Any]]
    snapshots: dict[int, list[MemberWeights]]

    def __repr__(self) -> str:
        last = self.history[-1] if self.history else {}
        losses = ", ".join(f"{loss:.4f}" for loss in last.get("train_loss", ()))
        measured = last.get("ensemble", {})
        shown = [f"{name} {measured[name]:.4f}" for name in ("accuracy", "nll") if name in measured]
        kept = (
            f"snapshots of epochs {', '.join(map(str, self.snapshots))}" if self.snapshots else "no snapshots"
        )
        return f"TrainResult({len(self.history)} epochs, last training loss of members {losses}; {', '.join([*shown, kept])})"


@dataclass
class _Run:
    """Everything that lives as long as a run."""

    ensemble: LoraEnsemble
    config: TrainConfig
    rows: TrainingRows
    orders: MemberOrders
    optimizer: StackedAdamW
    kl_weight: Tensor  # (M,)
    dropout: Tensor | None  # (M,)
    gradients: tuple[Tensor, ...]  # fp32, as the stack's buffers
    max_rows: int  # most rows in flight: as configured, or as many as memory held
    recompute: bool = (
        False  # whether layers compute again in the backward pass, because memory does not hold a single row
    )

    @property
    def steps_per_epoch(self) -> int:
        return self.orders.steps_per_epoch

    @property
    def total_steps(self) -> int:
        return self.steps_per_epoch * self.config.epochs


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

    Examples are questions with options (`Example`) or prompts with an open answer (`Completion`). A member's loss is the mean over its
    own rows. By `config.loss` a row's is -log p(answer | prompt), summed over the answer's tokens, over the full vocabulary (Eq. 3 of
    arXiv:2310.00035), plus `kl_weight` times the divergence from the base at each of these tokens (Eq. 4); or -log p of the right label
    among the example's own, and the divergence over them (`label_losses`). Members with heads of their own (`HeadConfig`) learn classes,
    options or chosen texts in the same way. Memory stays bounded however long answers are: logits by `answer_positions.LOGIT_BUDGET`, what is kept
    of the base by `heads.lm.losses.BASE_CACHE_BYTES`, with the same result beyond them.

    With `out`, settings, log and checkpoints are written below `out/training`, and the ensemble to `out` at the end; `resume` goes on
    from the last checkpoint to the weights that an uninterrupted run would have had (same machine, fp32: bit for bit); `overwrite`
    replaces a run or an ensemble that is there. A signal to end finishes the step under way and saves a checkpoint first; a second one
    ends at once. With a `validation` split, metrics of the ensemble and of its members are taken after every epoch.

    Raises:
        ConfigError: a setting does not fit the number of members, or `resume` comes without `out` or with `overwrite`.
        DataError: an example, of `validation` too, cannot be encoded or has no answer; or questions and open answers are in one list.
        CheckpointError: `out` exists (without `resume` and `overwrite`), holds a run with other settings or one that is going on, or
            cannot be written.
        TrainingError: a loss or gradient is not finite, or memory does not hold a single row; the last checkpoint is kept.
        signals.Interrupted: a signal came; a `KeyboardInterrupt` that says how to go on.
    """
    config = config or TrainConfig()
    if resume and out is None:
        raise ConfigError("resume=True without `out`; pass the folder of the run that should go on")
    if resume and overwrite:
        raise ConfigError("resume=True goes on with a run, overwrite=True replaces it; give one")
    examples = as_examples(examples, ensemble.info, labelled=True)
    validation = as_examples(validation, ensemble.info, name="validation", labelled=True)
    remember_labels(ensemble.info, examples)
    check_validation(ensemble, examples, validation, config)
    run = _prepare(ensemble, examples, config)
    ensemble.info.overlong, ensemble.info.label_score = config.overlong, config.label_score
    if out is None:
        return _go(run, None, validation=validation, show=progress)
    folder = RunFolder(Path(out), _settings(run), resume=resume, overwrite=overwrite)
    with folder.guarded():
        return _go(run, folder, validation=validation, show=progress)


def _go(
    run: _Run, folder: RunFolder | None, *, validation: Sequence[Example] | Sequence[Completion], show: bool
) -> TrainResult:
    """The run from where it stands to its end, in memory or in a folder."""
    state = folder.restore(run.ensemble, run.optimizer) if folder else Progress()
    snapshots = folder.snapshots() if folder else {}
    members = run.ensemble.num_members
    reporter = Reporter(folder, total=run.total_steps, first=state.step, members=members, show=show)
    reporter.go_on(state.partial)
    try:
        _loop(run, state, validation=validation, folder=folder, snapshots=snapshots, reporter=reporter)
    finally:
        reporter.close()
    if folder:
        folder.finish(run.ensemble)
    return TrainResult(state.history, snapshots)


def _prepare(
    ensemble: LoraEnsemble, examples: Sequence[Example] | Sequence[Completion], config: TrainConfig
) -> _Run:
    members, stack, device = ensemble.num_members, ensemble.stack, ensemble.device
    ensemble.base.eval()
    vectors = {name: config.per_member(name, members).to(device) for name in ("learning_rate", "kl_weight")}
    dropout = config.per_member("dropout", members, default=ensemble.adapter.lora_dropout).to(device)
    decays = [config.per_member(name, members).to(device) for name in DECAYS[: len(stack.buffers)]]
    rows = training_rows(ensemble, examples, config, with_kl=bool((vectors["kl_weight"] > 0).any()))
    order_seeds, length = [seeds.order for seeds in ensemble.info.seeds], rows.lengths.float().mean().item()
    return _Run(
        ensemble,
        config,
        rows,
        MemberOrders(order_seeds, rows.lengths, config.batch_size, config.length_window),
        StackedAdamW.over(stack.buffers, learning_rate=vectors["learning_rate"], decays=decays),
        vectors["kl_weight"],
        dropout if (dropout > 0).any() else None,
        stack.zero_gradients(),
        config.max_rows
        or rows_in_flight(config.batch_size * members * rows.passes, tokens_a_row=length, device=device),
    )


def _settings(run: _Run) -> dict[str, Any]:
    settings, stack = run.config.to_dict(), run.ensemble.stack
    del settings["log_every"], settings["checkpoint_every"], settings["max_rows"]  # they change no result
    head = run.ensemble.info.head
    if head.owned:
        settings["head"] = head.to_dict()
        del settings["loss"], settings["label_score"]
    else:
        settings["loss"] = run.rows.loss
        del settings["weight_decay_head"]
        if run.rows.loss == "vocabulary":
            del settings["label_score"]  # which changes no weight there
    seeds = [[seeds.init, seeds.order] for seeds in run.ensemble.info.seeds]
    settings["adapter"] = {
        "targets": sorted({site.name.rpartition(".")[2] for site in stack.sites}),
        "ranks": sorted({rank for ranks in stack.ranks for rank in ranks.values()}),
        "scalings": sorted({scaling for scalings in stack.scaling for scaling in scalings}),
        "dropout": run.ensemble.adapter.lora_dropout,
    }
    return {
        **settings,
        "member_seeds": seeds,
        "base": run.ensemble.fingerprint,
        "data": run.rows.fingerprint(),
    }


def _loop(
    run: _Run,
    state: Progress,
    *,
    validation: Sequence[Example] | Sequence[Completion],
    folder: RunFolder | None,
    snapshots: dict[int, list[MemberWeights]],
    reporter: Reporter,
) -> None:
    config = run.config
    checkpoint_every = config.checkpoint_every or run.steps_per_epoch
    with signals_held() if folder else nullcontext() as held:
        while state.step < run.total_steps:
            outcome = _guarded_step(run, state.step)
            state.step += 1
            reporter.step(state.step, outcome, every=config.log_every)
            if state.step % run.steps_per_epoch == 0:
                row = _epoch_row(run, state.step, validation=validation, reporter=reporter)
                state.history.append(row)
                reporter.epoch(row)
                if row["epoch"] in config.snapshot_epochs:
                    snapshots[row["epoch"]] = _members(run.ensemble)
                    if folder:
                        folder.save_snapshot(run.ensemble, row["epoch"])
            stopped = held is not None and held.number is not None
            due = state.step % checkpoint_every == 0 or state.step == run.total_steps or stopped
            if folder and due:
                state.partial = reporter.partial()
                folder.save(run.ensemble, run.optimizer, state)
            if held is not None and held.number is not None:
                raise Interrupted(
                    f"{word(held.number)} after step {state.step} of {run.total_steps}", held.number
                )


def _members(ensemble: LoraEnsemble) -> list[MemberWeights]:
    return [ensemble.stack.member(index) for index in range(ensemble.num_members)]


def _epoch_row(
    run: _Run, step: int, *, validation: Sequence[Example] | Sequence[Completion], reporter: Reporter
) -> dict[str, Any]:
    row = {"step": step, "epoch": step // run.steps_per_epoch, **reporter.epoch_means()}
    if not validation:
        return row
    last = step == run.total_steps
    return row | validate(run.ensemble, validation, max_rows=run.config.max_rows, last=last)


def _guarded_step(run: _Run, step: int) -> StepOutcome:
    """A step in as many parts as memory asks for, which later steps keep; as a last resort with activations that are computed twice."""

    def in_parts(rows: int) -> StepOutcome:
        run.max_rows = rows
        return _step(run, step)

    try:
        return with_fewer_rows(in_parts, run.max_rows)
    except (MemoryError, RuntimeError) as error:
        if not ran_out_of_memory(error):
            raise
        if run.recompute:
            raise TrainingError(
                f"memory ran out at step {step + 1} with a single row in flight, its activations computed twice; free memory, shorten the "
                "examples, or load the base in lower precision"
            ) from error
    run.recompute = True
    return _guarded_step(run, step)


def _step(run: _Run, step: int) -> StepOutcome:
    config, stack = run.config, run.ensemble.stack
    indices = run.orders.batch(step)
    loss, accuracy = _backward(run, indices, step)
    limit = config.max_grad_norm
    norms = gradient_norms(run.gradients) if limit is None else clip_per_member(run.gradients, limit)
    # The one place in a step where the CPU waits for a device.
    loss, accuracy, norms = torch.stack([loss, accuracy, norms]).cpu()
    outcome = StepOutcome(loss, accuracy, norms, rows=indices.shape[1])
    _check_finite(run, outcome.loss, step, "loss")
    _check_finite(run, outcome.gradient_norm, step, "gradient")
    factor = schedule_factor(config, step, run.total_steps)
    run.optimizer.step(stack.buffers, run.gradients, factor=factor, unreached=stack.unreached())
    stack.refresh()
    return outcome


def _backward(run: _Run, indices: Tensor, step: int) -> tuple[Tensor, Tensor]:
    """Gradients of every member's own mean loss; returns that loss and the answer accuracy, (M,) each."""
    # Here, not after the update: a step for which memory ran out begins again.
    run.ensemble.stack.begin_step(run.gradients)
    members, rows = indices.shape
    loss, accuracy = torch.zeros(2, members, rows, device=run.ensemble.device)
    for which, chunk in split_step(members, rows, max(1, run.max_rows // run.rows.passes)):
        row_loss, row_accuracy = _row_losses(run, indices[which, chunk], which, chunk.start, step)
        run.ensemble.stack.add_gradients(row_loss.sum() / rows, run.gradients)
        loss[which, chunk], accuracy[which, chunk] = row_loss.detach(), row_accuracy
    return loss.mean(dim=1), accuracy.mean(dim=1)


def _row_losses(run: _Run, indices: Tensor, which: slice, first_row: int, step: int) -> tuple[Tensor, Tensor]:
    """The loss and the answer accuracy of each row, (M, B): Eq. 3, plus Eq. 4 where a member has a weight for it."""
    ensemble = run.ensemble
    with (
        _dropout(run, step),
        recomputed(ensemble.base, ensemble.stack.remembered) if run.recompute else nullcontext(),
    ):
        rows = run.rows.losses(indices, members=which, first_row=first_row)
    loss = rows.loss if rows.divergence is None else rows.loss + run.kl_weight[which, None] * rows.divergence
    return loss, rows.right.float()


def _dropout(run: _Run, step: int) -> Any:
    if run.dropout is None:
        return nullcontext()
    keys = [stream_key(seeds.order, "dropout", step) for seeds in run.ensemble.info.seeds]
    return run.ensemble.stack.dropout(run.dropout, keys)


def _check_finite(run: _Run, values: Tensor, step: int, what: str) -> None:
    wrong = (~values.isfinite()).nonzero().flatten().tolist()
    if not wrong:
        return
    rate = run.config.per_member("learning_rate", run.ensemble.num_members)[wrong[0]].item()
    if step == 0:
        cause = "before any update, so the base itself gives such values; check its weights and its dtype"
    elif run.ensemble.base.dtype == torch.float16:
        cause = "float16 overflows easily; load the base in bfloat16"
    else:
        cause = (
            f"its learning rate {rate:g} is probably too high for this base; lower it, or set max_grad_norm"
        )
    raise TrainingError(
        f"the {what} of member {wrong[0]} is {values[wrong[0]].item()} at step {step + 1}: {cause}. No update was made"
    )
