"""The demo from its beginning to its folder: check, compare, and write report, pictures, numbers and both
ensembles.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...data import OOD_PAIRS
from ...disk.atomic import check_writable, written_aside
from ...disk.provenance import environment
from ...errors import CheckpointError, ConfigError, MissingExtraError, unknown_name
from ..report.page import Table
from .comparison import Comparison, DemoSettings, compare
from .page import demo_page, demo_pictures, demo_table, reading_of, row_meanings

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

REPORT_FILE, RESULTS_FILE = "report.html", "results.json"


@dataclass(frozen=True)
class DemoResult:
    """The metrics by row; the table for a reader, its rows' meanings and sentences on what it shows; how long
    it took, and where the report is.
    """

    metrics: dict[str, dict[str, Any]]
    table: Table
    meanings: dict[str, str]
    sentences: tuple[str, ...]
    seconds: float
    report: Path

    def to_dict(self) -> dict[str, Any]:
        """The rows' metrics beside `seconds` and `report`, as `json.dumps` takes them."""
        return {**self.metrics, "seconds": self.seconds, "report": str(self.report)}


def run_demo(
    out: str | Path,
    *,
    task: str = "world-arcc",
    members: int = 5,
    seed: int = 0,
    model: tuple[PreTrainedModel, PreTrainedTokenizerBase] | None = None,
    settings: DemoSettings | None = None,
    overwrite: bool = False,
    progress: bool = True,
) -> DemoResult:
    """Train and compare on one task; write report, pictures, numbers and both ensembles into `out`.

    Args:
        out: a new folder.
        task: a task that has an out-of-distribution set (`OOD_PAIRS`), such as the embedded "world-arcc".
        members: M; 2 M are trained together.
        seed: members' seeds, few-shot draws and the choice of out-of-distribution questions follow from it.
        model: base and tokenizer; the embedded ones by default.
        settings: `DemoSettings()` by default.
        overwrite: replace what an earlier demo left in `out`.
        progress: show what is going on, on standard error.

    Raises:
        ConfigError: a task without an out-of-distribution set, or a setting that cannot work.
        CheckpointError: `out` exists, and is not an earlier demo's or `overwrite` is off.
        MissingExtraError: matplotlib is not installed.
    """
    begin = time.monotonic()
    out, settings = Path(out), settings or DemoSettings()
    check_ready(out, task=task, overwrite=overwrite)
    compared = compare(task, members=members, seed=seed, model=model, settings=settings, progress=progress)
    seconds = round(time.monotonic() - begin, 1)
    made = _made(compared, settings, seed=seed, seconds=seconds)
    with written_aside(out, replace=overwrite or out.exists()) as folder:
        _write(folder, compared, settings, made)
    metrics = compared.metrics()
    return DemoResult(
        metrics,
        demo_table(metrics, compared.plain.prediction.num_members),
        row_meanings(compared, settings),
        tuple(reading_of(compared)),
        seconds,
        out / REPORT_FILE,
    )


def check_ready(out: Path, *, task: str, overwrite: bool) -> None:
    """Find what would fail at the end, before the work."""
    if task not in OOD_PAIRS:
        raise ConfigError(
            f"the demo needs a task with an out-of-distribution set: {unknown_name('task', task, OOD_PAIRS)}"
        )
    if importlib.util.find_spec("matplotlib") is None:
        raise MissingExtraError(
            'the demo needs matplotlib, which is not installed; run: pip install "lora-ensembles[plots]"'
        )
    empty = out.is_dir() and not any(out.iterdir())
    if out.exists() and not empty and not overwrite:
        raise CheckpointError(
            f"{out} exists already; choose another folder, or replace the demo in it by overwrite=True"
        )
    if out.exists() and not empty and not (out / RESULTS_FILE).is_file():
        raise CheckpointError(
            f"{out} does not hold an earlier demo, so it is not overwritten; choose another folder"
        )
    check_writable(out)


def _made(compared: Comparison, settings: DemoSettings, *, seed: int, seconds: float) -> dict[str, Any]:
    half = compared.plain.prediction.num_members
    return {
        "task": compared.task.name,
        "out_of_distribution": OOD_PAIRS[compared.task.name],
        "seed": seed,
        "member_seeds": [dataclasses.asdict(seeds) for seeds in compared.stack.info.seeds[:half]],
        "settings": dataclasses.asdict(settings),
        "train_accuracy": compared.learnt,
        "environment": environment(compared.stack.device),
        "seconds": seconds,
    }


def _write(folder: Path, compared: Comparison, settings: DemoSettings, made: dict[str, Any]) -> None:
    metrics = compared.metrics()
    images = demo_pictures(compared)
    for name, image in images.items():
        (folder / f"{name}.png").write_bytes(image)
    (folder / RESULTS_FILE).write_text(json.dumps({**metrics, **made}, indent=2) + "\n")
    (folder / REPORT_FILE).write_text(demo_page(compared, images, settings, made), encoding="utf-8")
    _save_arms(folder, compared, metrics)


def _save_arms(folder: Path, compared: Comparison, metrics: dict[str, dict[str, Any]]) -> None:
    stack, half = compared.stack, compared.plain.prediction.num_members
    weights = [stack.stack.member(index) for index in range(stack.num_members)]
    whole = stack.info
    for arm, start in (("ensemble", 0), ("ensemble_decay", half)):
        part = slice(start, start + half)
        stack.stack.set_members(weights[part])
        remembered = {
            "name": compared.task.name,
            "source": {"task": compared.task.name},
            "metrics": metrics[arm],
        }
        stack.info = dataclasses.replace(whole, next_index=half, seeds=whole.seeds[part], task=remembered)
        stack.save_pretrained(folder / arm)
    stack.stack.set_members(weights)
    stack.info = whole
