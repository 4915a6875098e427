"""The embedded base model and its tasks: everything runs with no network and no account."""

from __future__ import annotations

from ..data.world.tasks import (
    EMBEDDED_OPEN_TASK,
    EMBEDDED_TASKS,
    load_embedded_completions,
    load_embedded_task,
)
from .loading import (
    EMBEDDED_BASE,
    device_named,
    is_embedded,
    load_base,
    move,
    resolve_tokenizer,
)

__all__ = [
    "EMBEDDED_BASE",
    "EMBEDDED_OPEN_TASK",
    "EMBEDDED_TASKS",
    "device_named",
    "is_embedded",
    "load_base",
    "load_embedded_completions",
    "load_embedded_task",
    "move",
    "resolve_tokenizer",
]
