"""The schema of `ensemble.json`: checked once, when it is read, so that nothing behind it needs to."""

from __future__ import annotations

import dataclasses
import os
import re
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, get_args

from ..calibration.kinds import BOUNDS, Kind
from ..data.columns import ColumnMapping
from ..data.prompts import Answer
from ..disk.atomic import is_missing
from ..disk.layout import ENSEMBLE_FILE, HELD_OUT_FILE
from ..disk.schema import (
    SHOWN,
    Check,
    Mismatch,
    anything,
    check,
    either,
    exactly,
    list_of,
    nullable,
    number,
    object_of,
    one_of,
    read_json,
    record,
    text,
    truth,
    whole,
)
from ..errors import CheckpointError
from ..stack.head_config import HEAD_KINDS, HeadConfig, HeadInit
from .hub import ensemble_folder

FORMAT_VERSION = 1
BASE_KINDS = ("causal-lm", "sequence-classification", "multiple-choice")  # as load_base names them
MOST_LABELS = 1_000_000  # a head of more classes is a slip of the keyboard, and would take gigabytes
ADVICE = "correct it, or save the ensemble again"


def _fields_of(kind: Any, special: dict[str, Check], usual: Check) -> dict[str, Check]:
    return {field.name: special.get(field.name, usual) for field in dataclasses.fields(kind)}


def _held_out_name(value: Any, place: str) -> None:
    """The name of a file that holds the predictions on held-out examples."""
    text(value, place)
    if re.fullmatch(HELD_OUT_FILE.format(r"[0-9a-f]{12}"), value) is None:
        raise Mismatch(f"{place} is {value[:SHOWN]!a}, which is not the name of such a file")


DTYPE = one_of(("float32", "bfloat16", "float16"))
_NAMES = {
    "options": either(list_of(text), text),
    **dict.fromkeys(("id", "option_labels", "pair"), nullable(text)),
}
_COLUMNS = _fields_of(ColumnMapping, _NAMES, text)
_SOURCE = {
    **dict.fromkeys(("task", "data", "train", "validation"), nullable(text)),
    "columns": nullable(record({}, _COLUMNS)),
    "labels": nullable(list_of(text)),
    "answer": nullable(one_of(get_args(Answer))),
    "seed": whole(-(2**63)),
    "open_ended": truth,
    "preferences": truth,
    "stratified": truth,
    "skip_bad_rows": truth,
}
_TASK = {
    "name": nullable(text),
    "source": record({}, _SOURCE, others=True),
    "dtype": DTYPE,
    "metrics": nullable(object_of(anything)),
    "single": nullable(object_of(anything)),
}
_HEAD = _fields_of(
    HeadConfig,
    {
        "kind": one_of(HEAD_KINDS),
        "init": one_of(get_args(HeadInit)),
        "max_length": nullable(whole(1)),
        "classes": list_of(text),
    },
    anything,
)
_BASE = {
    "name": text,
    "revision": nullable(text),
    "fingerprint": text,
}
_MEMBER = {"folder": text, "init_seed": whole(-(2**63)), "order_seed": whole(-(2**63))}

_CALIBRATION = {
    "kind": one_of(get_args(Kind)),
    "temperatures": object_of(number(*BOUNDS)),
    "weights": list_of(number()),
    "biases": list_of(number()),
    "num_examples": whole(1),
    "nll": object_of(number()),
    "source": text,
    "held_out": _held_out_name,
}

ENSEMBLE = record(
    {
        "format_version": exactly(FORMAT_VERSION),
        "base": record(
            _BASE,
            {
                "kind": one_of(BASE_KINDS),
                "num_labels": nullable(whole(1, MOST_LABELS)),
                "folder": text,
                "dtype": DTYPE,
                "quantization": nullable(object_of(anything)),
            },
            others=True,
        ),
        "seed": whole(-(2**63)),
        "vary": list_of(one_of(("init", "order"))),
        "next_index": whole(0),
        "overlong": one_of(("error", "left")),
        "members": list_of(record(_MEMBER, others=True), at_least=1),
        "task": record({}, _TASK, others=True),
    },
    {
        "head": record({"kind": _HEAD["kind"]}, _HEAD),
        "label_score": one_of(("sum", "mean")),
        "calibration": record(
            _CALIBRATION, {"order_passes": whole(1), "of_types": object_of(number(*BOUNDS))}
        ),
    },
    others=True,
)


def read_description(path: Path) -> dict[str, Any]:
    """The content of an ensemble's `ensemble.json`, checked.

    Raises:
        CheckpointError: no such folder or file; one that cannot be read, is of another version or holds
            something else; members that lie outside the folder, or come twice.
    """
    path = ensemble_folder(path)
    file = path / ENSEMBLE_FILE
    if not os.path.isdir(path):
        raise CheckpointError(
            f"{path} is no folder; pass the one that `save_pretrained` or `lora-ensembles train --out` wrote"
        )
    if is_missing(file):
        raise CheckpointError(
            f"{path} holds no {ENSEMBLE_FILE}; PEFT adapters trained elsewhere are read "
            "by LoraEnsemble.from_adapters"
        )
    content = read_json(file)
    version = content.get("format_version") if isinstance(content, dict) else None
    if version != FORMAT_VERSION:
        raise CheckpointError(
            f"{file} has format version {str(version)[:SHOWN]}, this library reads {FORMAT_VERSION}; "
            "update lora-ensembles"
        )
    check(content, ENSEMBLE, file=file, advice=ADVICE)
    _check_folders([member["folder"] for member in content["members"]], path)
    _check_classes(content, file)
    return dict(content)


def _check_folders(names: list[str], path: Path) -> None:
    """Members lie inside the ensemble's folder, each in one of its own: a file from elsewhere must not name
    others' files.
    """
    file, inside = path / ENSEMBLE_FILE, os.path.realpath(path)
    seen: dict[str, int] = {}
    for index, name in enumerate(names):
        parts = {*PurePosixPath(name).parts, *PureWindowsPath(name).parts}
        absolute = PurePosixPath(name).is_absolute() or PureWindowsPath(name).anchor
        real = os.path.realpath(path / name) if "\0" not in name else inside
        if (
            absolute
            or ".." in parts
            or (os.path.dirname(real) != inside and not real.startswith(inside + os.sep))
        ):
            raise CheckpointError(
                f"{file}: members[{index}].folder is {name!a}, which is no folder inside {path}; {ADVICE}"
            )
        if real in seen:
            raise CheckpointError(
                f"{file}: members {seen[real]} and {index} are the same folder {name!a}; {ADVICE}"
            )
        seen[real] = index


def _check_classes(content: dict[str, Any], file: Path) -> None:
    classes = content.get("head", {}).get("classes", [])
    labels = content["base"].get("num_labels")
    if (
        content.get("head", {}).get("kind") == "sequence-classification"
        and classes
        and labels != len(classes)
    ):
        raise CheckpointError(
            f"{file}: base.num_labels is {labels}, and head.classes has {len(classes)}; {ADVICE}"
        )
