"""The memory of a saved ensemble by which its data must be read, taken from `ensemble.json` without waiting
for torch.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path

from ...storage.description import read_description
from .data import Source


@dataclass(frozen=True)
class Memory:
    """The source of an ensemble's questions, the kind of its head and its classes, the name of its base, and
    whether it was calibrated.
    """

    source: Source = field(default_factory=Source)
    kind: str = "causal-lm"
    classes: tuple[str, ...] = ()
    base: str = ""
    calibrated: bool = False

    @property
    def labels(self) -> list[str] | None:
        """The label words or classes of the training."""
        return self.source.labels or list(self.classes) or None


def remembered(path: Path | None) -> Memory:
    """The memory of an ensemble; an empty one without one.

    Raises:
        CheckpointError: as `read_description`.
    """
    if path is None:
        return Memory()
    content = read_description(path)
    head = content.get("head", {})
    fields = {attribute.name for attribute in dataclasses.fields(Source)}
    source = content["task"].get("source", {})
    return Memory(
        Source(**{name: value for name, value in source.items() if name in fields}),
        head.get("kind", "causal-lm"),
        tuple(head.get("classes", ())),
        content["base"]["name"],
        "calibration" in content,
    )
