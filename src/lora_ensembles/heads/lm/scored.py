"""Labels scored by whatever gives logits: from examples to log-probabilities, within what memory holds.

Shapes: M members, N examples, C options.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from ...data import Example, encode_examples
from ...passes.memory import scoring_rows
from ...passes.shared_prefix import AnswerLogits, context_window, scored_in_parts
from ...stack.head_config import LabelScore
from .scores import score_labels

if TYPE_CHECKING:
    from typing import Literal

    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def score_members(
    examples: Sequence[Example],
    answer_logits: AnswerLogits,
    *,
    base: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    copies: int,
    max_rows: int | None,
    overlong: Literal["error", "left"] = "error",
    label_score: LabelScore = "sum",
) -> Tensor:
    """(M, N, C) log-probabilities of the labels from `answer_logits`, which reads each prompt `copies` times at once.

    At most `max_rows` rows (copies * prompts) are in flight, by default what suits the device, and fewer when memory runs out.

    Raises:
        DataError: a prompt or a label cannot be used.
        ConfigError: memory does not hold a single row.
    """
    encoded = encode_examples(examples, tokenizer, max_length=context_window(base), overlong=overlong)
    length = sum(len(example.prompt_ids) for example in encoded) / max(1, len(encoded))
    pad_id, device = tokenizer.pad_token_id or 0, base.device

    def score(rows: int) -> Tensor:
        return score_labels(
            encoded,
            answer_logits,
            pad_id=pad_id,
            rows_per_batch=max(1, rows // copies),
            device=device,
            label_score=label_score,
        )

    return scored_in_parts(score, scoring_rows(copies, tokens_a_row=length, device=device, max_rows=max_rows))
