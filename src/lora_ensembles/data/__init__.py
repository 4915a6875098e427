"""Questions with a closed set of answers, and prompts with an open one: what they are, where they come from,
and how they become tokens.
"""

from __future__ import annotations

from .columns import ColumnMapping
from .completions import (
    Completion,
    CompletionTask,
    Message,
    Prompt,
    completions_from_files,
    holds_completions,
    is_open_ended,
    load_completions,
    read_completions,
)
from .examples import Example, Task
from .files import found_classes, load_file, read_examples, task_from_files
from .paper_tasks import (
    OOD_PAIRS,
    PAPER_TASKS,
    PUBLISHED_TASKS,
    load_ood,
    load_task,
    ood_names,
    task_folder,
    task_names,
    task_repository,
)
from .preferences import (
    holds_preferences,
    load_preferences,
    preference,
    preferences_from_files,
)
from .prompts import LETTERS, render_label_prompt, render_prompt
from .tokens.completions import encode_completions, encode_prompts
from .tokens.questions import EncodedExample, encode_examples

__all__ = [
    "LETTERS",
    "OOD_PAIRS",
    "PAPER_TASKS",
    "PUBLISHED_TASKS",
    "ColumnMapping",
    "Completion",
    "CompletionTask",
    "EncodedExample",
    "Example",
    "Message",
    "Prompt",
    "Task",
    "completions_from_files",
    "encode_completions",
    "encode_examples",
    "encode_prompts",
    "found_classes",
    "holds_completions",
    "holds_preferences",
    "is_open_ended",
    "load_completions",
    "load_file",
    "load_ood",
    "load_preferences",
    "load_task",
    "ood_names",
    "preference",
    "preferences_from_files",
    "read_completions",
    "read_examples",
    "render_label_prompt",
    "render_prompt",
    "task_folder",
    "task_from_files",
    "task_names",
    "task_repository",
]
