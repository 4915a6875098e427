"""Questions with a closed set of answers: what they are, where they come from, and how they become tokens."""

from __future__ import annotations

from .columns import ColumnMapping
from .encoding import EncodedExample, encode_examples
from .examples import Example, Task
from .files import load_file, read_examples, task_from_files
from .hub import OOD_PAIRS, PAPER_TASKS, load_ood, load_task, ood_names, task_names, task_repository
from .prompts import LETTERS, render_label_prompt, render_prompt

__all__ = [
    "LETTERS",
    "OOD_PAIRS",
    "PAPER_TASKS",
    "ColumnMapping",
    "EncodedExample",
    "Example",
    "Task",
    "encode_examples",
    "load_file",
    "load_ood",
    "load_task",
    "ood_names",
    "read_examples",
    "render_label_prompt",
    "render_prompt",
    "task_from_files",
    "task_names",
    "task_repository",
]
