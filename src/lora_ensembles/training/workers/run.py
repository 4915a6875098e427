"""Training over the workers of a Ray cluster."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from ...data import Completion, Example
from ...disk.layout import RUN_FOLDER
from ...distributed.cluster import Workers, cluster, default_workers, map_calls
from ...ensemble import LoraEnsemble
from ...errors import ConfigError
from ...storage.folder import write_ensemble
from ..adapter_trainee import finish
from ..checkpoint import snapshot_folder
from ..config import PER_MEMBER_FIELDS, TrainConfig
from ..orders import steps_in_all
from ..progress import Progress
from ..reporting import redrawn
from ..signals import Interrupted, signals_held, word
from ..trainee import TrainResult
from .folder import WorkersFolder, steps_done
from .job import SliceJob, train_slice
from .merge import MergedRun

Rows = Sequence[Example] | Sequence[Completion]


def train_over_workers(
    ensemble: LoraEnsemble,
    examples: Rows,
    config: TrainConfig,
    *,
    validation: Rows,
    out: Path,
    begin: Literal["new", "resume", "overwrite"],
    workers: int | None,
    progress: bool,
) -> TrainResult:
    """Train slices of the members on the workers of a Ray cluster; the ensemble, and `out`, hold the result.

    Members share nothing in training, so each slice is trained as a run of its own, which is the run of one
    process for these members. A worker that is lost starts again from its slice's last checkpoint. `workers`
    is the number of slices; None: one for each GPU of the cluster, or for each node.

    Raises:
        ConfigError: a setting does not fit the number of members; members of different ranks; a base without
            a name; no cluster.
        CheckpointError: as `WorkersFolder`.
        LoraEnsemblesError: the first error of a worker, as `train` would raise it.
        signals.Interrupted: a signal came; the workers have saved their checkpoints.
    """
    for name in PER_MEMBER_FIELDS:
        config.per_member(name, ensemble.num_members)
    if any(ranks != ensemble.stack.ranks[0] for ranks in ensemble.stack.ranks):
        raise ConfigError("members of different ranks are trained in one process; leave on= out")
    ensemble.head.check_rows(ensemble, examples, examples, overlong=config.overlong)
    with cluster() as ray:
        folder = WorkersFolder(
            out,
            ensemble,
            workers=workers or default_workers(ray),
            resume=begin == "resume",
            overwrite=begin == "overwrite",
        )
        with folder.guarded():
            part = Workers(ray, len(folder.slices)).share
            jobs = folder.jobs(config, device=part.device)
            waiting = [job for job in jobs if not job.done]
            total = steps_in_all(len(examples), config) * ensemble.num_members
            done = steps_done(jobs)
            bar = Progress(total=total, first=done, unit="member step", show=progress)
            with signals_held() as held:

                def watch() -> None:
                    nonlocal done
                    if held.number is not None:
                        raise Interrupted(word(held.number), held.number)
                    now = max(done, steps_done(jobs))
                    if now > done:
                        bar.update(now - done)
                    done = now

                shared = ray.put((examples, validation))
                map_calls(ray, train_members, [(job, shared) for job in waiting], share=part, watch=watch)
                watch()
            bar.close()
            result = _finish(ensemble, MergedRun.of(jobs, config, validation), out)
            folder.remove()
    return result


def train_members(job: SliceJob, rows: tuple[Rows, Rows]) -> None:
    """A worker's task: `rows` are those to train on and those to validate on."""
    train_slice(job, *rows)


def _finish(ensemble: LoraEnsemble, merged: MergedRun, out: Path) -> TrainResult:
    """Give the ensemble and its folder what the workers trained."""
    merged.write(out / RUN_FOLDER)
    redrawn(out / RUN_FOLDER)
    snapshots = merged.snapshots()
    for epoch, members in snapshots.items():
        path = snapshot_folder(out, epoch)
        if not path.exists():
            ensemble.set_members(members)
            write_ensemble(ensemble, path)
    ensemble.set_members(merged.members())
    finish(ensemble, out)
    return TrainResult(merged.history, snapshots)
