"""The errors of the library: each says what was given, what is needed and what to do.

All share one base class, and each is also a `ValueError` (the call can be corrected) or a `RuntimeError` (the
run failed). All can be pickled: an error is its message and nothing else.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class LoraEnsemblesError(Exception):
    """Base of every error that the library raises on purpose."""


class ConfigError(LoraEnsemblesError, ValueError):
    """A setting or an argument that cannot work."""


class DataError(LoraEnsemblesError, ValueError):
    """A task, file, column, prompt or label that cannot be used."""


class AdapterError(LoraEnsemblesError, ValueError):
    """An adapter that cannot be stacked, or does not belong to this base model."""


class CheckpointError(LoraEnsemblesError, ValueError):
    """A folder that cannot be read as, or written as, an ensemble or a checkpoint."""


class TrainingError(LoraEnsemblesError, RuntimeError):
    """A training run that cannot go on: a loss that is not finite, or memory that ran out."""


class MissingExtraError(LoraEnsemblesError, RuntimeError):
    """An optional dependency that is not installed."""


def unknown_name(kind: str, given: str, known: Iterable[str]) -> str:
    """The message for a name that is not among the known ones, with the nearest of them first.

    Example:
        >>> unknown_name("task", "obqaa", ["arce", "obqa"])
        "unknown task 'obqaa'; did you mean 'obqa'? Known: arce, obqa"
    """
    names = sorted(known)
    near = difflib.get_close_matches(given, names, n=1, cutoff=0.5)
    hint = f" did you mean {near[0]!r}?" if near else ""
    return f"unknown {kind} {given!r};{hint} Known: {', '.join(names)}"
