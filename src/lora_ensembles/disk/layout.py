"""Which files below a folder belong to an ensemble and to the run that trained it, by their names: these are
ours to replace, no others.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

ENSEMBLE_FILE = "ensemble.json"
RUN_FOLDER = "training"
WORKERS_FOLDER = "workers"  # of a run over several workers, until it ends
CLASSIFIER_FILE = "classifier.json"  # of a classifier of scikit-learn, beside its ensemble's
LOCK_FILE = ".lock"
HELD_OUT_FILE = "held_out_{}.safetensors"  # with twelve digits of its own hash

_MEMBER = r"member_\d+/(adapter_config\.json|adapter_model\.safetensors)"
_ENSEMBLE = rf"(ensemble\.json|classifier\.json|README\.md|held_out_[0-9a-f]{{12}}\.safetensors|{_MEMBER})"
_RUN = (
    r"training/(config\.json|environment\.json|log\.jsonl|tensorboard/events\.[^/]+"
    rf"|checkpoint/state\.(json|safetensors)|snapshots/epoch_\d+/{_ENSEMBLE})"
)
_SLICE = r"members_\d+-\d+"  # the run of some members
_WORKERS = (
    rf"workers/(slices\.json|start/{_ENSEMBLE}|{_SLICE}/({_ENSEMBLE}|{_RUN}|\.lock"
    r"|validation/\.?epoch_[^/]+))"
)
# What a killed process leaves: folders that had not got their name yet.
_LEFT = (
    rf"(workers/{_SLICE}/)?(training/)?(snapshots/)?"
    r"\.(unfinished|(training|workers|checkpoint|epoch_\d+)\.[^/]+)/.+"
)
_OWN = re.compile(rf"{_ENSEMBLE}|{_RUN}|{_WORKERS}|{_LEFT}|{re.escape(LOCK_FILE)}")


def is_own(name: str) -> bool:
    """Whether a file with this name, relative to the folder and with slashes, is one that the library writes.

    Example:
        >>> is_own("member_000/adapter_config.json"), is_own("training/notes.txt")
        (True, False)
    """
    return _OWN.fullmatch(name) is not None


def names_a_folder(name: str) -> bool:
    """Whether a base's name can only be a folder: names on the hub are "name" or "owner/name".

    Example:
        >>> names_a_folder("./tiny"), names_a_folder("/models/tiny"), names_a_folder("owner/tiny")
        (True, True, False)
    """
    return (
        re.match(r"[/~]|\.{1,2}([/\\]|$)|[A-Za-z]:[/\\]", name) is not None
        or re.search(r"\\|/.*/|/$", name) is not None
    )


def foreign_files(folder: Path) -> list[str]:
    """The names of what lies below a folder and is not the library's; a link to a folder is never its own."""
    names = []
    for place, folders, files in os.walk(folder):
        links = [name for name in folders if os.path.islink(os.path.join(place, name))]
        names += [os.path.relpath(os.path.join(place, name), folder) for name in (*files, *links)]
    return sorted(name for name in names if not is_own(Path(name).as_posix()))
