"""Warnings about labels that a run cannot learn to tell apart, or did not; of the logger
"lora_ensembles.heads.remarks".
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

from ..data import EncodedExample, Example
from ..prediction.prediction import Prediction

LEAST_ROWS = 10
"""Fewer rows than this may well have one answer by chance."""
_log = logging.getLogger(__name__)


def warn_of_label_lengths(examples: Sequence[Example], encoded: Sequence[EncodedExample]) -> None:
    """Say that labels are of different lengths, where they are: for a loss over the vocabulary and scores
    that are sums.
    """
    for example, ids in zip(examples, encoded, strict=True):
        lengths = [len(label) for label in ids.label_ids]
        if min(lengths) < max(lengths):
            counts = ", ".join(
                f"{label.strip()!r} {length}" for label, length in zip(example.labels, lengths, strict=True)
            )
            _log.warning(
                "labels are of different lengths (tokens: %s); a sum of log-probabilities favours "
                "short ones, and loss='vocabulary' does not weigh labels against each other: "
                "use loss='labels', or label_score='mean'",
                counts,
            )
            return


def warn_of_one_label(prediction: Prediction, examples: Sequence[Example]) -> None:
    """Say that all of at least `LEAST_ROWS` examples are given one and the same label although their answers
    differ, where it is so.
    """
    if len(examples) < LEAST_ROWS:
        return
    chosen = {
        example.labels[choice] for example, choice in zip(examples, prediction.choices.tolist(), strict=True)
    }
    answers = {example.labels[example.target] for example in examples if example.target is not None}
    if len(chosen) == 1 < len(answers):
        _log.warning(
            "all %d validation rows are given the label %r, though their answers are of %d kinds: "
            "the members have learnt nothing about the rows. Train for more epochs or at another learning "
            "rate; with label words, by loss='labels' and label_score='mean'",
            len(examples),
            next(iter(chosen)).strip(),
            len(answers),
        )
