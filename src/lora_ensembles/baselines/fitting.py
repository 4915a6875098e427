"""The training of members that are no adapters: own order, loss, clip and moments for each, in one stacked computation a step.

It is the loop of `training.py` without what a long run on disk needs (checkpoints, snapshots, validation after each epoch), for anything
whose members are flat buffers of parameters.

Shapes: M members, B rows of a member, N examples, P parameters of a member, n answer tokens in all, H hidden size.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from ..data import EncodedExample, Example, encode_examples
from ..errors import ConfigError, TrainingError
from ..heads.lm.scores import score_labels
from ..heads.lm.table import MemberOrders, TokenTable, encode_rows, split_step
from ..passes.answer_positions import hidden_at
from ..passes.memory import SCORING_ROWS, ran_out_of_memory, scoring_rows
from ..passes.shared_prefix import AnswerLogits, context_window, scored_in_parts
from ..stack.head_config import LabelScore
from ..stack.lora import fold_members
from ..stack.seeds import MemberSeeds
from ..training.config import TrainConfig, schedule_factor
from ..training.loop import StepOutcome, TrainResult
from ..training.optim import StackedAdamW, clip_per_member, gradient_norms
from ..training.reporting import Reporter

if TYPE_CHECKING:
    from typing import Literal

    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Flat = tuple[Tensor, ...]


class Trainee(Protocol):
    """What `fit` trains."""

    @property
    def parameters(self) -> Flat:
        """Flat fp32 parameters (M, P), which `fit` changes in place; each of them decays apart."""
        ...

    decays: tuple[str, ...]  # the settings of `TrainConfig` by which they decay

    def row_losses(self, indices: Tensor, members: slice) -> tuple[Tensor, Tensor]:
        """Loss (nats) and whether the answer was right, of the rows `indices` (B of each of these members): (m, B) both."""
        ...

    def add_gradients(self, loss: Tensor, totals: Flat) -> None:
        """Add the gradients of `loss` to fp32 totals shaped like `parameters`."""
        ...


def check_settings(config: TrainConfig, what: str) -> None:
    """Refuse settings that this training does not have, rather than ignore them.

    Raises:
        ConfigError: dropout, snapshots, checkpoints or a loss over labels are asked for.
    """
    dropout = config.dropout if isinstance(config.dropout, list | tuple) else [config.dropout or 0.0]
    given = {
        "dropout": any(dropout),
        "snapshot_epochs": bool(config.snapshot_epochs),
        "checkpoint_every": config.checkpoint_every,
        "loss": config.loss == "labels",
    }
    for name, asked in given.items():
        if asked:
            raise ConfigError(
                f"{name}={getattr(config, name)!r}: {what} has no such setting; leave it out (dataclasses.replace)"
            )


def training_rows(
    examples: Sequence[Example],
    base: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    config: TrainConfig,
) -> tuple[list[EncodedExample], TokenTable]:
    """Labelled questions as token ids and as a table.

    Raises:
        DataError: there is none, one cannot be encoded, or one has no answer.
    """
    encoded = encode_rows(examples, tokenizer, max_length=context_window(base), overlong=config.overlong)
    return encoded, TokenTable.from_encoded(encoded, tokenizer.pad_token_id or 0, device=base.device)


@torch.no_grad()
def answer_states(base: PreTrainedModel, table: TokenTable, *, rows: int | None) -> Tensor:
    """The base's last hidden states (n, H) at every answer token of a table, in the base's dtype; `rows` rows are in flight."""
    kept: Tensor | None = None
    by_length = (table.prompt_lengths + table.answer_lengths).argsort()
    for indices in by_length.split(rows or SCORING_ROWS):
        batch = table.gather(indices[None])
        tokens = batch.answer_tokens()
        states = hidden_at(base, fold_members(batch.ids), tokens.places)
        if kept is None:
            kept = states.new_empty(int(table.answer_lengths.sum()), states.shape[1])
        kept[tokens.numbers] = states
    assert kept is not None  # a table has at least one row
    return kept


def fit(
    trainee: Trainee, config: TrainConfig, *, seeds: Sequence[MemberSeeds], lengths: Tensor, progress: bool
) -> TrainResult:
    """Train every member on examples of so many tokens (N,), each in its own order of every epoch; the parameters hold the result.

    Raises:
        ConfigError: a setting does not have one value for each member.
        TrainingError: a loss or gradient is not finite, or memory ran out.
    """
    members, parameters = len(seeds), trainee.parameters
    device = parameters[0].device
    rate, *decays = (
        config.per_member(name, members).to(device) for name in ("learning_rate", *trainee.decays)
    )
    optimizer = StackedAdamW.over(parameters, learning_rate=rate, decays=decays)
    orders = MemberOrders([one.order for one in seeds], lengths, config.batch_size, config.length_window)
    per_epoch = orders.steps_per_epoch
    reporter = Reporter(None, total=per_epoch * config.epochs, first=0, members=members, show=progress)
    result = TrainResult([], {})
    step = 0
    try:
        for epoch in range(config.epochs):
            for _ in range(per_epoch):
                indices = orders.batch(step)
                factor = schedule_factor(config, step, per_epoch * config.epochs)
                step += 1
                reporter.step(
                    step, _step(trainee, config, optimizer, indices, factor=factor), every=config.log_every
                )
            result.history.append({"step": step, "epoch": epoch + 1, **reporter.epoch_means()})
    finally:
        reporter.close()
    return result


def _step(
    trainee: Trainee, config: TrainConfig, optimizer: StackedAdamW, indices: Tensor, *, factor: float
) -> StepOutcome:
    members, rows = indices.shape
    totals = tuple(torch.zeros_like(buffer) for buffer in trainee.parameters)
    loss, right = torch.zeros(members, rows), torch.zeros(members, rows)
    try:
        for which, chunk in split_step(members, rows, config.max_rows):
            row_loss, row_right = trainee.row_losses(indices[which, chunk], which)
            trainee.add_gradients(row_loss.sum() / rows, totals)
            loss[which, chunk], right[which, chunk] = row_loss.detach().cpu(), row_right.float().cpu()
    except (MemoryError, RuntimeError) as error:
        if not ran_out_of_memory(error):
            raise
        flight = min(config.max_rows or members * rows, members * rows)
        raise TrainingError(
            f"memory ran out with {flight} rows in flight; lower max_rows, for example to {max(1, flight // 2)}: the result stays the same"
        ) from error
    limit = config.max_grad_norm
    norms = gradient_norms(totals) if limit is None else clip_per_member(totals, limit)
    for what, values in (("loss", loss.mean(dim=1)), ("gradient", norms)):
        wrong = (~values.isfinite()).nonzero().flatten().tolist()
        if wrong:
            raise TrainingError(
                f"the {what} of member {wrong[0]} is {values[wrong[0]].item()} at step {optimizer.steps + 1}; lower its learning rate, set "
                "max_grad_norm, or check the base's dtype. No update was made in this step"
            )
    optimizer.step(trainee.parameters, totals, factor=factor)
    return StepOutcome(loss.mean(dim=1), right.mean(dim=1), norms, rows)


def score_members(
    examples: Sequence[Example],
    answer_logits: AnswerLogits,
    *,
    base: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    copies: int,
    max_rows: int | None,
    overlong: Literal["error", "left"] = "error",
    label_score: LabelScore = "sum",
) -> Tensor:
    """(M, N, C) log-probabilities of the labels from `answer_logits`, which reads each prompt `copies` times at once.

    At most `max_rows` rows (copies * prompts) are in flight, by default what suits the device, and fewer when memory runs out.

    Raises:
        DataError: a prompt or a label cannot be used.
        ConfigError: memory does not hold a single row.
    """
    encoded = encode_examples(examples, tokenizer, max_length=context_window(base), overlong=overlong)
    length = sum(len(example.prompt_ids) for example in encoded) / max(1, len(encoded))
    pad_id, device = tokenizer.pad_token_id or 0, base.device

    def score(rows: int) -> Tensor:
        return score_labels(
            encoded,
            answer_logits,
            pad_id=pad_id,
            rows_per_batch=max(1, rows // copies),
            device=device,
            label_score=label_score,
        )

    return scored_in_parts(score, scoring_rows(copies, tokens_a_row=length, device=device, max_rows=max_rows))
