"""Names and bounds of what is fitted here, for those who must not wait for torch."""

from __future__ import annotations

from typing import Literal

Kind = Literal["none", "temperature", "member-temperature", "vector"]
Method = Literal["lac", "aps", "raps"]
Score = Literal["confidence", "total_entropy", "expected_entropy", "mutual_information", "disagreement"]

KEEP_CHOICES: tuple[Kind, ...] = ("none", "temperature")
"""Kinds that change no answer, only its probability."""

FOLDS = 5  # on which kinds are compared
FEWEST = 2 * FOLDS  # held-out examples to choose a kind by

BOUNDS = (0.01, 100.0)
"""Temperatures that are searched. On a fitting set without a single error NLL falls towards 0 with the
temperature: then it is the lower bound; and where the predictor does worse than chance throughout, the upper
one."""
