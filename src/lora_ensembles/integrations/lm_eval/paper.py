"""The paper's six data sets as tasks of the harness, in the paper's prompt: the letter is scored after `A:
(`.

`acc`, `nll` (nats), `brier` and `ece` are those of `lora_ensembles.prediction.metrics`, over the letters'
probabilities divided by their sum. `Differs:` the harness sees one distribution over the vocabulary, so an
ensemble's letters are divided by their sum after the members' probabilities were averaged; Eq. 1 and 2 of
arXiv:2310.00035, and `lora-ensembles evaluate`, divide first. For one member both are the same.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from ...data import Task, load_task
from ...data.paper_tasks import PAPER_TASKS
from ...errors import ConfigError, MissingExtraError
from ...prediction import metrics
from ...prediction.prediction import Prediction
from .model import NEEDS_EXTRA

Scored = tuple[list[float], int]  # a question's log-probabilities of its letters, and which one is right


def process_results(doc: Mapping[str, Any], results: Sequence[tuple[float, bool]]) -> dict[str, Any]:
    """A question's part of each metric, from the log-likelihoods (nats) of its letters.

    Example:
        >>> process_results({"target": 1}, [(-3.0, False), (-1.0, True)])["acc"]
        1.0
    """
    log_probs = torch.tensor(
        [log_likelihood for log_likelihood, _ in results], dtype=torch.float64
    ).log_softmax(dim=0)
    target = doc["target"]
    scored: Scored = (log_probs.tolist(), target)
    return {
        "acc": float(log_probs.argmax() == target),
        "nll": -log_probs[target].item(),
        "brier": scored,
        "ece": scored,
    }


def brier(items: Sequence[Scored]) -> float:
    """`metrics.brier` of the questions."""
    return metrics.brier(_prediction(items))


def ece(items: Sequence[Scored]) -> float:
    """`metrics.ece` of the questions."""
    return metrics.ece(_prediction(items))


def _prediction(items: Sequence[Scored]) -> Prediction:
    options = max(len(log_probs) for log_probs, _ in items)
    rows = [[*log_probs, *[-math.inf] * (options - len(log_probs))] for log_probs, _ in items]
    return Prediction(
        torch.tensor([rows], dtype=torch.float64), torch.tensor([target for _, target in items])
    )


def documents(task: Task) -> dict[str, list[dict[str, Any]]]:
    """The examples of a task as the harness's documents, by split: "train" and "validation"."""
    fields = ("id", "prompt", "labels", "target", "question", "options")
    splits = {"train": task.train, "validation": task.validation}
    return {
        split: [{name: getattr(example, name) for name in fields} for example in examples]
        for split, examples in splits.items()
    }


@functools.cache
def task_class() -> type[Any]:
    """The class that the task files in `tasks/` name.

    Raises:
        MissingExtraError: lm_eval is not installed.
    """
    try:
        from lm_eval.api.task import ConfigurableTask
    except ImportError as error:
        raise MissingExtraError(NEEDS_EXTRA) from error
    from datasets import Dataset

    class PaperTask(ConfigurableTask):
        """A task of the harness whose documents are read by `load_task`: its name is `dataset_name`, its
        folder `data`.
        """

        def __init__(self, config: dict[str, Any]) -> None:
            super().__init__(config={name: value for name, value in config.items() if name != "class"})

        def download(self, dataset_kwargs: dict[str, Any] | None = None) -> None:
            settings = {**(self.config.metadata or {}), **(dataset_kwargs or {})}
            if self.config.dataset_name not in PAPER_TASKS:
                raise ConfigError(
                    f"dataset_name {self.config.dataset_name!r}; the paper's are {', '.join(PAPER_TASKS)}"
                )
            task = load_task(self.config.dataset_name, data=settings.get("data"))
            self.dataset = {split: Dataset.from_list(rows) for split, rows in documents(task).items()}

    return PaperTask
