"""Training of a LoRA ensemble: its adapters, and its members' heads, by the one loop, here or over workers.

Shapes: M members, N examples.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from ..data import Completion, Example
from ..data.inputs import as_examples, with_labels
from ..disk.layout import ENSEMBLE_FILE, WORKERS_FOLDER
from ..distributed.cluster import check_engine
from ..ensemble import LoraEnsemble
from ..errors import ConfigError
from ..stack.info import EnsembleInfo
from .adapter_trainee import AdapterTrainee
from .config import TrainConfig
from .loop import check_options, run
from .trainee import TrainResult
from .validation import check_validation
from .workers.run import Rows, train_over_workers


def train(  # noqa: PLR0913 - the door, of which most calls name two or three
    ensemble: LoraEnsemble,
    examples: Sequence[Example] | Sequence[Completion],
    config: TrainConfig | None = None,
    *,
    validation: Sequence[Example] | Sequence[Completion] = (),
    out: str | Path | None = None,
    resume: bool = False,
    overwrite: bool = False,
    progress: bool = True,
    on: Literal["ray"] | None = None,
    workers: int | None = None,
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

    With `on="ray"`, slices of the members are trained by `workers` workers of a Ray cluster, each of which
    loads the base by its name. Members do not know each other in training, so the result is the same, and so
    is `out`, which must lie on a disk that all nodes see. A worker that is lost goes on from its checkpoint.

    Args:
        ensemble: M untrained or trained members, which get the new weights.
        examples: N rows to train on.
        config: settings of training; None: the defaults of `TrainConfig`.
        validation: rows whose metrics are taken after every epoch.
        out: folder of the run and of the ensemble.
        resume: go on from the last checkpoint in `out`.
        overwrite: replace what `out` holds.
        progress: show a progress bar.
        on: "ray" to train over the workers of a Ray cluster, that of RAY_ADDRESS or this machine; None: in
            this process.
        workers: slices to cut the members into; None: one for each GPU of the cluster, or for each node where
            there is none.

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
    check_engine(on, workers)
    if on is not None and config.shared_a:
        raise ConfigError(f"shared_a=True with on={on!r}: workers' members cannot share an A; leave on= out")
    if on is not None and out is None:
        raise ConfigError(f"on={on!r} without `out`; pass the folder in which the workers keep their runs")
    examples, validation = prepared(ensemble, examples, validation, config)
    info = trained_info(ensemble, examples, config)
    if on is not None and out is not None and not (resume and _is_finished(Path(out))):
        ensemble.info = info
        return train_over_workers(
            ensemble,
            examples,
            config,
            validation=validation,
            out=Path(out),
            begin="resume" if resume else "overwrite" if overwrite else "new",
            workers=workers,
            progress=progress,
        )
    trainee = AdapterTrainee(ensemble, examples, config)
    ensemble.info = info
    return run(
        trainee,
        config,
        validation=validation,
        out=out,
        resume=resume,
        overwrite=overwrite,
        progress=progress,
    )


def prepared(
    ensemble: LoraEnsemble, examples: Rows, validation: Rows, config: TrainConfig
) -> tuple[Rows, Rows]:
    """The examples as the ensemble reads them; it forgets its calibration, whose weights are gone.

    Raises:
        DataError: one cannot be used.
    """
    ensemble.calibrated = None
    examples = as_examples(examples, ensemble.info, labelled=True)
    validation = as_examples(validation, ensemble.info, name="validation", labelled=True)
    ensemble.info = with_labels(ensemble.info, examples)
    check_validation(ensemble, examples, validation, config)
    return examples, validation


def trained_info(ensemble: LoraEnsemble, examples: Rows, config: TrainConfig) -> EnsembleInfo:
    """The memory of an ensemble after training."""
    return dataclasses.replace(
        ensemble.info,
        overlong=config.overlong,
        label_score=config.label_score,
        head=ensemble.head.named(examples),
    )


def _is_finished(out: Path) -> bool:
    """Whether a run over workers has ended, so that nothing is left of it but what one process writes."""
    return (out / ENSEMBLE_FILE).exists() and not (out / WORKERS_FOLDER).exists()
