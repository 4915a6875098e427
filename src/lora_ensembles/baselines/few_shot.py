"""The base model as it is, shown a few answered questions before each question."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..data import Example, encode_examples
from ..errors import ConfigError, DataError
from ..heads.lm.scores import score_labels
from ..passes.memory import SCORING_ROWS
from ..passes.probe import ensure_probed
from ..passes.shared_prefix import BaseRows, context_window, scored_in_parts
from ..stack.head_config import LabelScore

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class FewShot:
    """A `Predictor` without any training: `shots` demonstrations, drawn without replacement, stand in front
    of every question.

    Each of the `draws` sets of demonstrations counts as one member, so a metric averaged over members is the
    paper's average over 10 draws (Sec. 5.1 of arXiv:2310.00035). `shots=0` asks the bare question, once. The
    demonstrations of a draw are read once for many questions.
    `label_score` says how labels of several tokens count: see `TrainConfig`.

    Example:
        >>> from lora_ensembles.embedded import load_base
        >>> from lora_ensembles.data import load_task
        >>> task = load_task("world-cqa")
        >>> FewShot(*load_base(), task.train, draws=2).member_log_probs(task.validation[:4]).shape
        torch.Size([2, 4, 5])
    """

    base: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    demonstrations: Sequence[Example]
    shots: int = 3
    draws: int = 10
    seed: int = 0
    label_score: LabelScore = "sum"

    def __post_init__(self) -> None:
        labelled = sum(example.target is not None for example in self.demonstrations)
        if self.shots < 0 or self.draws < 1 or labelled < self.shots:
            raise ConfigError(
                f"shots={self.shots}, draws={self.draws}, {labelled} answered demonstrations; "
                "shots is at least 0 and at most the number of demonstrations, draws at least 1"
            )

        ensure_probed(self.base)

    def prompts(self) -> list[str]:
        """The text in front of a question, for each draw."""
        answered = [example for example in self.demonstrations if example.target is not None]
        draws = self.draws if self.shots else 1
        rng = random.Random(self.seed)
        return ["".join(map(render_demonstration, rng.sample(answered, self.shots))) for _ in range(draws)]

    @torch.no_grad()
    def member_log_probs(self, examples: Sequence[Example], *, max_rows: int | None = None) -> Tensor:
        """log p of each label for each draw (draws, N, C), float32, normalised over an example's labels; see
        `Predictor`.

        Args:
            examples: N labelled or unlabelled examples.
            max_rows: the most rows (member and example pairs) in one forward pass; None: a number that suits
                most machines.
        """
        self.base.eval()
        return scored_in_parts(
            lambda rows: torch.cat([self._score(prefix, examples, rows) for prefix in self.prompts()]),
            max_rows or SCORING_ROWS,
        )

    def _score(self, prefix: str, examples: Sequence[Example], rows: int) -> Tensor:
        shown = [dataclasses.replace(example, prompt=prefix + example.prompt) for example in examples]
        return score_labels(
            encode_examples(shown, self.tokenizer, max_length=context_window(self.base)),
            BaseRows(self.base, rows),
            pad_id=self.tokenizer.pad_token_id or 0,
            device=self.base.device,
            label_score=self.label_score,
        )


def render_demonstration(example: Example) -> str:
    r"""An answered question as a demonstration: prompt, label, the bracket that closes a letter, and a line
    break.

    Example:
        >>> render_demonstration(Example("1", "Q: ...\nA: (", labels=("a", "b"), target=1))
        'Q: ...\nA: (b)\n'
    """
    if example.target is None:
        raise DataError(f"example {example.id!r} has no answer, so it cannot be a demonstration")
    return f"{example.prompt}{example.labels[example.target]}{')' if example.prompt.endswith('(') else ''}\n"
