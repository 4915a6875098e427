"""The folder of a run over workers, and what becomes of it: the folder that one process would have written.

out/workers/  slices.json  start/ (the ensemble before training)  members_000-002/ (a slice's own run)
out/training/ and the ensemble, once all slices are trained; then `workers` goes.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from ...disk.atomic import recover, written_aside
from ...disk.claimed import Claim
from ...disk.layout import ENSEMBLE_FILE, RUN_FOLDER, WORKERS_FOLDER
from ...disk.schema import check, list_of, read_json, record, whole
from ...distributed.slices import slices
from ...ensemble import LoraEnsemble
from ...errors import CheckpointError, ConfigError, LoraEnsemblesError
from ...storage.folder import base_name, write_ensemble
from ..checkpoint import CHECKPOINT, KEPT
from ..config import TrainConfig
from ..signals import Interrupted
from .job import SliceJob

START = "start"
SLICES_FILE = "slices.json"
_SLICES = record({"slices": list_of(list_of(whole()))})


class WorkersFolder:
    """A run over workers on disk, which no other process can enter before `close`.

    Args:
        out: the folder of the ensemble to be.
        ensemble: the members before training.
        workers: slices to cut the members into; of a run that goes on, those it was begun with.
        resume: go on with the run that is there, if there is one.
        overwrite: remove the run or the ensemble that is there, if it holds nothing else.

    Raises:
        CheckpointError: as `claimed.check_free`; or `out` holds a run of one process, or one of another
            number of members.
        ConfigError: the base has no name by which a worker could load it.
    """

    def __init__(self, out: Path, ensemble: LoraEnsemble, *, workers: int, resume: bool, overwrite: bool):
        if not base_name(ensemble.base):
            raise ConfigError(
                "the base was built in code, so workers cannot load it by name; save it by save_pretrained "
                "and load it from that folder"
            )
        # Workers stand in other folders, and may be on other machines.
        self.out, self.folder = out, out.absolute() / WORKERS_FOLDER
        self._claim = Claim(out, resume=resume, overwrite=overwrite)
        try:
            self.slices = self._open(ensemble, workers)
        except BaseException:
            self.close()
            raise

    def _open(self, ensemble: LoraEnsemble, workers: int) -> list[range]:
        recover(self.folder)
        if (self.out / RUN_FOLDER).exists() and not self.folder.is_dir():
            raise CheckpointError(f"{self.out} holds a run of one process; go on with it without workers")
        members = ensemble.num_members
        if not self.folder.is_dir():
            cut = slices(members, workers)
            with written_aside(self.folder) as aside:
                write_ensemble(ensemble, aside / START)
                content = {"slices": [[part.start, part.stop] for part in cut]}
                (aside / SLICES_FILE).write_text(json.dumps(content) + "\n")
            return cut
        file = self.folder / SLICES_FILE
        content = read_json(file)
        check(content, _SLICES, file=file, advice=f"remove {self.out} and train anew")
        cut = [range(*bounds) for bounds in content["slices"]]
        if [index for part in cut for index in part] != list(range(members)):
            raise CheckpointError(
                f"{self.out} holds a run over workers of another ensemble than of {members} members, so it "
                "cannot be resumed; give the number it was begun with, or replace it by overwrite=True"
            )
        return cut

    def jobs(self, config: TrainConfig, *, device: str) -> list[SliceJob]:
        """A job for each slice."""
        return [
            SliceJob(
                part,
                self.folder / START,
                self.folder / f"members_{part.start:03d}-{part.stop - 1:03d}",
                config,
                device,
            )
            for part in self.slices
        ]

    @contextmanager
    def guarded(self) -> Iterator[None]:
        """Context in which the workers train: an error says from where the run can go on, and without any
        checkpoint leaves nothing in the way. The folder is closed at the end.
        """
        try:
            yield
        except BaseException as error:
            if any(self.folder.glob(f"members_*/{RUN_FOLDER}/{CHECKPOINT}")):
                if isinstance(error, LoraEnsemblesError | Interrupted):
                    told = str(error).partition(KEPT)[0]
                    error.args = (
                        f"{told}. The workers' checkpoints are kept in {self.out}: go on from them by "
                        "resume=True, or replace the run by overwrite=True",
                        *error.args[1:],
                    )
            elif not (self.out / ENSEMBLE_FILE).exists():
                shutil.rmtree(self.folder, ignore_errors=True)
            raise
        finally:
            self.close()

    def remove(self) -> None:
        """Remove what the workers wrote, of which all is in its place now."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def close(self) -> None:
        """Let other processes in; a folder that was made for this run and holds nothing goes."""
        self._claim.release()


def steps_done(jobs: Sequence[SliceJob]) -> int:
    """Steps that were logged, summed over the members of all slices."""
    return sum(_last_step(job.folder / RUN_FOLDER / "log.jsonl") * len(job.members) for job in jobs)


def _last_step(log: Path) -> int:
    with suppress(OSError, ValueError, KeyError, IndexError):
        with open(log, "rb") as file:
            file.seek(max(0, file.seek(0, 2) - 65536))
            lines = file.read().splitlines(keepends=True)
        whole_lines = [line for line in lines if line.endswith(b"\n")]
        return int(json.loads(whole_lines[-1])["step"])
    return 0
