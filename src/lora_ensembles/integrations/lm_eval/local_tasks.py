"""A folder of task files for `--include_path` that read local copies of the data sets: the harness's own
tasks, and the paper's six.

A file for one of the harness's own tasks includes the installed one and changes only where its rows come
from, so prompt, splits and scores stay the harness's.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ...data.paper_tasks import PAPER_TASKS
from ...data.sources import file_rows
from ...disk.atomic import written_aside
from ...errors import DataError, MissingExtraError

TASKS_FOLDER = Path(__file__).parent / "tasks"

# The harness's task files and the folder of each one's rows; MMLU is a task a subject.
_HARNESS_TASKS = {
    "arc/arc_easy.yaml": "ai2_arc/ARC-Easy",
    "arc/arc_challenge.yaml": "ai2_arc/ARC-Challenge",
    "openbookqa/openbookqa.yaml": "openbookqa",
    "commonsense_qa/default.yaml": "commonsense_qa",
}
_MMLU_TASKS, _MMLU_FOLDER = "mmlu/default/mmlu_*.yaml", "mmlu"
_PAPER_FOLDERS = {
    "cqa": "commonsense_qa",
    "obqa": "openbookqa",
    "arce": "ai2_arc/ARC-Easy",
    "arcc": "ai2_arc/ARC-Challenge",
    "mmlu-ss": "mmlu",
    "mmlu-stem": "mmlu",
}


def paper_task_name(task: str) -> str:
    """The harness's name of one of the paper's tasks.

    Example:
        >>> paper_task_name("mmlu-ss")
        'lora_ensembles_mmlu_ss'
    """
    return f"lora_ensembles_{task.replace('-', '_')}"


def write_local_tasks(data: str | Path, out: str | Path) -> list[str]:
    """Write the folder `out` and return the files in it; a data set that `data` does not hold is left out.

    Args:
        data: a folder with the datasets as .jsonl files in the hub's schemas, as `load_task` takes it.
        out: a folder that does not exist yet. The questions of MMLU are copied into it, a file a subject; all
            else is read in place.

    Raises:
        DataError: `data` holds none of the data sets.
        CheckpointError: `out` exists already, or cannot be written.
        MissingExtraError: lm_eval is not installed.
    """
    data, out, installed = Path(data).resolve(), Path(out).resolve(), _installed_tasks()
    folders = sorted(set(_PAPER_FOLDERS.values()))
    if not any((data / folder).is_dir() for folder in folders):
        raise DataError(
            f"{data} holds none of {', '.join(folders)} as folders of .jsonl files; "
            "name the folder above them"
        )
    with written_aside(out) as aside:
        for name, folder in _HARNESS_TASKS.items():
            if (data / folder).is_dir():
                files = {path.stem: str(path) for path in sorted((data / folder).glob("*.jsonl"))}
                _write(aside / Path(name).parent.name, Path(name).name, _from_files(installed / name, files))
        if (data / _MMLU_FOLDER).is_dir():
            _write_mmlu(data / _MMLU_FOLDER, aside, out, installed)
        for task in PAPER_TASKS:
            if (data / _PAPER_FOLDERS[task]).is_dir():
                name = f"{paper_task_name(task)}.yaml"
                _write(
                    aside / "lora_ensembles",
                    name,
                    {"include": str(TASKS_FOLDER / name), "dataset_kwargs": {"data": str(data)}},
                )
    return sorted(str(path.relative_to(out)) for path in out.rglob("*.yaml"))


def _write_mmlu(folder: Path, aside: Path, out: Path, installed: Path) -> None:
    """The tasks of MMLU's subjects; `aside` will be `out` once all is written."""
    rows: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for path in sorted(folder.glob("*.jsonl")):
        for subject, row in _subject_rows(path):
            rows.setdefault((subject, path.stem), []).append(row)
    for file in sorted(installed.glob(_MMLU_TASKS)):
        subject = file.stem.removeprefix("mmlu_")
        splits = [split for owner, split in rows if owner == subject]
        for split in splits:
            lines = "".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in rows[subject, split])
            _write_text(aside / "mmlu" / "data" / subject / f"{split}.jsonl", lines)
        if splits:
            files = {split: str(out / "mmlu" / "data" / subject / f"{split}.jsonl") for split in splits}
            _write(aside / "mmlu", file.name, _from_files(file, files))


def _subject_rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    for row in file_rows(path):
        if "subject" not in row.values:
            raise row.error(
                "no column 'subject'; the rows of MMLU name theirs, as in the hub's cais/mmlu, config all"
            )
        yield str(row.values["subject"]), dict(row.values)


def _from_files(installed: Path, files: Mapping[str, str]) -> dict[str, Any]:
    return {
        "include": str(installed),
        "dataset_path": "json",
        "dataset_name": None,
        "dataset_kwargs": {"data_files": dict(files)},
    }


def _write(folder: Path, name: str, settings: Mapping[str, Any]) -> None:
    """A YAML file of which each value is JSON, which YAML contains."""
    _write_text(
        folder / name,
        "".join(f"{key}: {json.dumps(value, ensure_ascii=False)}\n" for key, value in settings.items()),
    )


def _write_text(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def _installed_tasks() -> Path:
    """The folder of the task files that the harness brings; found without importing it."""
    from .model import NEEDS_EXTRA

    spec = find_spec("lm_eval")
    if spec is None or not spec.submodule_search_locations:
        raise MissingExtraError(NEEDS_EXTRA)
    return Path(spec.submodule_search_locations[0]) / "tasks"
