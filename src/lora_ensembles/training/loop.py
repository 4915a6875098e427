"""The training loop: M members, each with its own data order, loss, gradient clip and optimiser state, in one
stacked pass a step.

`examples/flat_loop.py` is the whole method in plain lines; a test holds that both give the same weights.

Shapes: M members, B rows of a member, N examples, P parameters of a member.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..data import Completion, Example
from ..distributed.lockstep import ran_out_of_memory
from ..errors import ConfigError, TrainingError
from ..passes.memory import rows_in_flight, with_fewer_rows
from .checkpoint import Progress, RunFolder
from .config import TrainConfig, schedule_factor
from .optim import Optimizer, clip_per_member
from .orders import MemberOrders, split_step, steps_in_all
from .reporting import Reporter, StepOutcome
from .signals import Interrupted, signals_held, word
from .trainee import Trainee, TrainResult

Examples = Sequence[Example] | Sequence[Completion]


@dataclass
class _Run:
    """Everything that lives as long as a run."""

    trainee: Trainee
    config: TrainConfig
    orders: MemberOrders
    optimizer: Optimizer
    kl_weight: Tensor  # (M,)
    gradients: tuple[Tensor, ...]  # fp32, as the buffers
    max_rows: int  # most rows in flight: as configured, or as many as memory held
    recompute: bool = (
        False  # whether layers compute again in the backward pass, because memory does not hold a single row
    )

    @property
    def steps_per_epoch(self) -> int:
        return self.orders.steps_per_epoch

    @property
    def total_steps(self) -> int:
        return steps_in_all(len(self.orders.lengths), self.config)


def check_options(*, out: str | Path | None, resume: bool, overwrite: bool) -> None:
    """Refuse options of a run that contradict each other.

    Raises:
        ConfigError: as it says.
    """
    if resume and out is None:
        raise ConfigError("resume=True without `out`; pass the folder of the run that should go on")
    if resume and overwrite:
        raise ConfigError("resume=True goes on with a run, overwrite=True replaces it; give one")


def run(
    trainee: Trainee,
    config: TrainConfig,
    *,
    validation: Examples = (),
    out: str | Path | None = None,
    resume: bool = False,
    overwrite: bool = False,
    progress: bool = True,
    own: Mapping[str, Any] | None = None,
) -> TrainResult:
    """Train all members on the trainee's rows, each in an order of its own; the trainee's buffers hold the
    result.

    `own` are settings of the method beside those of `config`: a run goes on with the same ones only.

    Raises:
        ConfigError: a setting does not fit the number of members, or `resume` comes without `out` or with
            `overwrite`.
        CheckpointError: `out` exists (without `resume` and `overwrite`), holds a run with other settings or
            one that is going on, or cannot be written.
        TrainingError: a loss or gradient is not finite, or memory does not hold a single row; the last
            checkpoint is kept.
        signals.Interrupted: a signal came; a `KeyboardInterrupt` that says how to go on.
    """
    check_options(out=out, resume=resume, overwrite=overwrite)
    running = _prepare(trainee, config)
    if out is None:
        return _go(running, None, validation=validation, show=progress)
    settings, ranks = trainee.settings(config) | dict(own or {}), trainee.ranks
    folder = RunFolder(Path(out), settings, resume=resume, overwrite=overwrite, ranks=ranks)
    with folder.guarded():
        return _go(running, folder, validation=validation, show=progress)


def _go(run: _Run, folder: RunFolder | None, *, validation: Examples, show: bool) -> TrainResult:
    """The run from where it stands to its end, in memory or in a folder."""
    state = folder.restore(run.trainee, run.optimizer) if folder else Progress()
    snapshots = folder.snapshots(run.trainee) if folder else {}
    members, first = run.trainee.members_in_all, run.trainee.ranks.first
    shown_as = run.trainee.rows.accuracy_name
    reporter = Reporter(
        folder if first else None,
        total=run.total_steps,
        first=state.step,
        members=members,
        show=show and first,
        shown_as=shown_as,
    )
    reporter.go_on(state.partial)
    try:
        _loop(run, state, validation=validation, folder=folder, snapshots=snapshots, reporter=reporter)
    finally:
        reporter.close()
    if folder:
        run.trainee.finish(folder.out)
    return TrainResult(state.history, snapshots)


def _prepare(trainee: Trainee, config: TrainConfig) -> _Run:
    members, device, rows = trainee.num_members, trainee.device, trainee.rows
    vectors = {
        name: trainee.own(config.per_member(name, trainee.members_in_all)).to(device)
        for name in ("learning_rate", "kl_weight", *filter(None, trainee.decays))
    }
    buffers = tuple(trainee.buffers.values())
    none = torch.zeros_like(vectors["learning_rate"])
    decays = [vectors[name] if name else none for name in trainee.decays]
    return _Run(
        trainee,
        config,
        MemberOrders(
            trainee.order_seeds,
            rows.lengths[:: trainee.variants],
            config.batch_size,
            config.length_window,
            trainee.variants,
            config.data_share,
        ),
        trainee.optimizer(learning_rate=vectors["learning_rate"], decays=decays),
        vectors["kl_weight"],
        tuple(torch.zeros_like(buffer) for buffer in buffers),
        config.max_rows
        or rows_in_flight(
            config.batch_size * members * rows.passes, tokens_a_row=trainee.tokens_a_row, device=device
        ),
    )


def _loop(
    run: _Run,
    state: Progress,
    *,
    validation: Examples,
    folder: RunFolder | None,
    snapshots: dict[int, list[Any]],
    reporter: Reporter,
) -> None:
    config = run.config
    checkpoint_every = config.checkpoint_every or run.steps_per_epoch
    with signals_held() if folder else nullcontext() as held:
        while state.step < run.total_steps:
            outcome = _guarded_step(run, state.step)
            state.step += 1
            reporter.step(state.step, outcome, every=config.log_every)
            if state.step % run.steps_per_epoch == 0 or state.step == run.total_steps:
                row = _epoch_row(run, state.step, validation=validation, reporter=reporter)
                state.history.append(row)
                reporter.epoch(row)
                if row["epoch"] in config.snapshot_epochs:
                    snapshots[row["epoch"]] = run.trainee.members()
                    if folder:
                        folder.save_snapshot(run.trainee, row["epoch"])
            signal = run.trainee.ranks.largest((held.number if held else None) or 0)  # on any rank
            due = state.step % checkpoint_every == 0 or state.step == run.total_steps or signal > 0
            if folder and due:
                state.partial = reporter.partial()
                folder.save(run.trainee, run.optimizer, state)
            if signal:
                raise Interrupted(f"{word(signal)} after step {state.step} of {run.total_steps}", signal)


def _epoch_row(run: _Run, step: int, *, validation: Examples, reporter: Reporter) -> dict[str, Any]:
    epoch = math.ceil(step / run.steps_per_epoch)  # the last one may have been cut short
    row = {"step": step, "epoch": epoch, **reporter.epoch_means()}
    if not validation:
        return row
    last, max_rows = step == run.total_steps, run.config.max_rows
    return row | run.trainee.validate(validation, epoch=epoch, max_rows=max_rows, last=last)


def _guarded_step(run: _Run, step: int) -> StepOutcome:
    """A step in as many parts as memory asks for, which later steps keep; as a last resort with activations
    that are computed twice.
    """

    def in_parts(rows: int) -> StepOutcome:
        run.max_rows = rows
        return _step(run, step)

    try:
        return with_fewer_rows(in_parts, run.max_rows)
    except (MemoryError, RuntimeError) as error:
        if not ran_out_of_memory(error):
            raise
        if run.recompute or not run.trainee.can_recompute:
            twice = ", its activations computed twice" if run.recompute else ""
            raise TrainingError(
                f"memory ran out at step {step + 1} with a single row in flight{twice}; "
                "free memory, shorten the examples, or load the base in lower precision"
            ) from error
    run.recompute = True
    return _guarded_step(run, step)


def _step(run: _Run, step: int) -> StepOutcome:
    config, trainee = run.config, run.trainee
    indices = run.orders.batch(step)
    loss, accuracy = _backward(run, indices, step)
    limit = config.max_grad_norm
    norms = trainee.gradient_norms(run.gradients)
    if limit is not None:
        clip_per_member(run.gradients, limit, norms=norms)
    # The one place in a step where the CPU waits for a device.
    loss, accuracy, norms = trainee.of_all(torch.stack([loss, accuracy, norms])).cpu()
    outcome = StepOutcome(loss, accuracy, norms, rows=indices.shape[1])
    _check_finite(run, outcome.loss, step, "loss")
    _check_finite(run, outcome.gradient_norm, step, "gradient")
    factor = schedule_factor(config, step, run.total_steps)
    buffers = tuple(trainee.buffers.values())
    run.optimizer.step(buffers, run.gradients, factor=factor, unreached=trainee.unreached())
    trainee.refresh()
    trainee.stepped(step + 1, run.total_steps)
    return outcome


def _backward(run: _Run, indices: Tensor, step: int) -> tuple[Tensor, Tensor]:
    """Gradients of every member's own mean loss; returns that loss and the answer accuracy, (M,) each."""
    # Here, not after the update: a step for which memory ran out begins again.
    run.trainee.begin_step(run.gradients, step)
    members, rows = indices.shape
    loss, accuracy = torch.zeros(2, members, rows, device=run.trainee.device)
    for which, numbers in _passes(run, indices):
        own = indices[which] if numbers is None else indices[which].gather(1, numbers)
        # The backward pass as well: what the context puts into a pass has gradients of its own, and layers
        # may compute again.
        with run.trainee.in_step(step):
            row_loss, row_accuracy = _row_losses(run, own, which, numbers)
            run.trainee.add_gradients(row_loss.sum() / rows, run.gradients)
        places = torch.arange(rows)[None] if numbers is None else numbers
        places = places.expand_as(own).to(loss.device, non_blocking=True)
        loss[which].scatter_(1, places, row_loss.detach())
        accuracy[which].scatter_(1, places, row_accuracy)
    run.trainee.end_gradients(run.gradients)
    return loss.mean(dim=1), accuracy.mean(dim=1)


def _passes(run: _Run, indices: Tensor) -> list[tuple[slice, Tensor | None]]:
    """The passes of a step over rows (M, B), as `split_step` gives them."""
    trainee, passes = run.trainee, run.trainee.rows.passes
    return split_step(
        run.orders.lengths[indices // trainee.variants],
        max_rows=max(1, run.max_rows // passes),
        pass_tokens=None if trainee.pass_tokens is None else trainee.pass_tokens / passes,
    )


def _row_losses(
    run: _Run, indices: Tensor, which: slice, row_numbers: Tensor | None
) -> tuple[Tensor, Tensor]:
    """The loss and the answer accuracy of each row, (M, B): Eq. 3, plus Eq. 4 where a member has a weight for
    it.
    """
    trainee = run.trainee
    with trainee.recomputed() if run.recompute else nullcontext():
        rows = trainee.rows.losses(indices, members=which, row_numbers=row_numbers)
    loss = rows.loss if rows.divergence is None else rows.loss + run.kl_weight[which, None] * rows.divergence
    return loss, rows.right.float()


def _check_finite(run: _Run, values: Tensor, step: int, quantity: str) -> None:
    wrong = (~values.isfinite()).nonzero().flatten().tolist()
    if not wrong:
        return
    rate = run.config.per_member("learning_rate", run.trainee.members_in_all)[wrong[0]].item()
    if step == 0:
        cause = "before any update, so the base itself gives such values; check its weights and its dtype"
    elif run.trainee.dtype == torch.float16:
        cause = "float16 overflows easily; load the base in bfloat16"
    else:
        cause = (
            f"its learning rate {rate:g} is probably too high for this base; lower it, or set max_grad_norm"
        )
    raise TrainingError(
        f"the {quantity} of member {wrong[0]} is {values[wrong[0]].item()} at step {step + 1}: "
        f"{cause}. No update was made"
    )
