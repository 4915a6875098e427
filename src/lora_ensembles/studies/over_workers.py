"""The records of a study measured by the workers of a Ray cluster, each record by a task of its own."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

from ..distributed.cluster import LOST, Workers, map_calls
from ..errors import CheckpointError
from ..training.signals import Interrupted, signals_held, word
from .measuring import RecordJob


def measure_over(workers: Workers, jobs: Sequence[RecordJob], *, say: Callable[[str], None]) -> None:
    """Measure the records that are not there yet, as many at once as there are workers.

    A task whose worker is lost starts again, and goes on from the record's last checkpoints. Timed records
    come after all others, one at a time on a whole node, so that nothing computes beside them; lost ones are
    made anew.

    Raises:
        CheckpointError: the workers' files are not seen from here.
        LoraEnsemblesError: the first error of a worker, as `RecordJob.record` would raise it.
        Interrupted: a signal came; the workers have saved their checkpoints.
    """
    missing = [(number, job) for number, job in enumerate(jobs, start=1) if not job.path.exists()]
    with signals_held() as held:

        def watch() -> None:
            if held.number is not None:
                raise Interrupted(f"{word(held.number)}; the same command goes on from there", held.number)

        for timed, own in ((False, workers), (True, workers.alone())):
            part = [(number, job) for number, job in missing if job.timed == timed]

            def begun(index: int, part: Sequence[tuple[int, RecordJob]] = part) -> None:
                number, job = part[index]
                say(f"{number} of {len(jobs)}: {job}")

            calls = [(dataclasses.replace(job, out=job.out.absolute()),) for _, job in part]
            map_calls(
                own.ray, measure_record, calls, share=own.share, at_once=own.count, watch=watch, begun=begun
            )
        watch()
    for _, job in missing:
        if not job.path.exists():
            raise CheckpointError(
                f"{job.path} was written by a worker and is not seen here; "
                "--out must lie on a disk that all nodes share"
            )


def measure_record(job: RecordJob) -> None:
    """The task of a worker."""
    job.record(say=lambda: None, patience=LOST)
