"""An ensemble that is asked part by part, so that one sees how far it has come.

Shapes: M members, N examples, C options.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ...training.progress import Progress

if TYPE_CHECKING:
    from torch import Tensor

    from ...data import Example
    from ...prediction.prediction import Predictor

ROWS = 256  # of a part: enough that sorting by length saves padding within it


class InParts:
    """A predictor that asks another one for `ROWS` examples at a time, and shows the progress over all calls.

    Args:
        predictor: what is asked.
        total: examples of all calls together.
        show: whether to show progress.
    """

    def __init__(self, predictor: Predictor, *, total: int, show: bool):
        self._predictor = predictor
        self.calibrated = getattr(predictor, "calibrated", None)
        self._progress = Progress(total=total, unit="question", show=show and total > ROWS)

    def member_log_probs(self, examples: Sequence[Example], *, max_rows: int | None = None) -> Tensor:
        """The other predictor's (M, N, C), -inf at the options that an example of another part has."""
        import torch

        options = max(len(example.labels) for example in examples)
        parts = []
        for start in range(0, len(examples), ROWS):
            part = self._predictor.member_log_probs(examples[start : start + ROWS], max_rows=max_rows)
            missing = options - part.shape[2]
            parts.append(torch.nn.functional.pad(part, (0, missing), value=-math.inf))
            self._progress.update(part.shape[1])
        return torch.cat(parts, dim=1)
