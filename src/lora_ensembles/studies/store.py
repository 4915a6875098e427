"""Records on disk: one small JSON file for each setting that was measured; what exists is never measured
again.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from ..disk.atomic import bytes_written_aside, file_written_aside
from ..disk.provenance import environment
from ..errors import CheckpointError
from .predictions import Sheet, digest, predictions_file


def cell(
    folder: Path,
    name: str,
    settings: Mapping[str, Any],
    measure: Callable[[], Mapping[str, Any]],
    *,
    sheet: Sheet | None = None,
) -> dict[str, Any]:
    """The record of `settings`: read where there is one, else measured and written, whole or not at all.

    A record holds `name`, `settings`, `result`, the environment it was made in and the fingerprint of the
    code that made it; what `measure` kept on a `sheet` lies beside it, and the record holds its SHA-256. A
    study that is killed therefore goes on where it stopped, and asking twice costs nothing.

    Raises:
        CheckpointError: the file is no record of these settings, or cannot be written.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> cell(folder, "sum", {"a": 1}, lambda: {"value": 2})["result"]
        {'value': 2}
        >>> cell(folder, "sum", {"a": 1}, lambda: 1 / 0)["result"]
        {'value': 2}
    """
    path = folder / f"{record_file(name, settings)}.json"
    if path.exists():
        return read_record(path, settings=settings)
    record = {
        "name": name,
        "settings": dict(settings),
        "result": dict(measure()),
        "environment": environment(),
        "code": code_fingerprint(),
    }
    if sheet is not None and sheet.kept:
        content = sheet.to_bytes()
        bytes_written_aside(predictions_file(path), content)
        record["predictions"] = digest(content)
    with file_written_aside(path) as file:
        file.write(json.dumps(record) + "\n")
    return record


@functools.cache
def code_fingerprint() -> str:
    """The start of the SHA-256 over the package's modules that can change a number of a record: all but the
    command line, and the claims and reports that read records.
    """
    package = Path(__file__).parent.parent
    readers = (package / "cli", package / "studies" / "claims", package / "studies" / "report")
    content = hashlib.sha256()
    for path in sorted(package.rglob("*.py")):
        if not any(path.is_relative_to(folder) for folder in readers):
            content.update(f"{path.relative_to(package).as_posix()}\n".encode() + path.read_bytes())
    return content.hexdigest()[:12]


def read_record(path: Path, *, settings: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """A record, checked to be one, and to be that of `settings` where they are given.

    Raises:
        CheckpointError: it is not.
    """
    try:
        record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        parts = record["settings"], record["result"], record["environment"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{path} is no record of a study ({type(error).__name__}); delete it, and it is measured again"
        ) from error
    if settings is not None and _plain(parts[0]) != _plain(settings):
        raise CheckpointError(f"{path} is a record of other settings; delete it, and these are measured")
    return record


def records(folder: Path, name: str) -> Iterator[dict[str, Any]]:
    """Every record of a name in a folder, in the order of the file names."""
    for path in sorted(folder.glob(f"{name}-*.json")):
        yield read_record(path)


def by_kind(folder: Path) -> dict[str, list[dict[str, Any]]]:
    """The records of a folder by the `kind` in their settings, each kind by task and seed.

    Raises:
        CheckpointError: no records are there, or a file is none.
    """
    kinds: dict[str, list[dict[str, Any]]] = {}
    for path in sorted(folder.glob("*-*.json")):
        record = read_record(path)
        kinds.setdefault(str(record["settings"].get("kind", record["name"])), []).append(record)
    if not kinds:
        raise CheckpointError(
            f"{folder} holds no records of a study; make them with `lora-ensembles study all --out {folder}`"
        )
    for kind in kinds.values():
        kind.sort(
            key=lambda record: (str(record["settings"].get("task")), int(record["settings"].get("seed", 0)))
        )
    return kinds


def record_file(name: str, settings: Mapping[str, Any]) -> str:
    """The file name of a record, without its ending."""
    return f"{name}-{hashlib.sha256(_plain(settings).encode()).hexdigest()[:12]}"


def _plain(settings: Mapping[str, Any]) -> str:
    return json.dumps(settings, sort_keys=True)
