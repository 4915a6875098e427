"""Loading a base model by name: the embedded one, a folder, or a name on the hub."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch
import transformers
from transformers import AutoTokenizer

from ..errors import ConfigError, DataError

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

EMBEDDED_BASE = "lora-ensembles/embedded-base"
FOLDER = Path(__file__).parent / "base"
AUTO = {
    "causal-lm": "AutoModelForCausalLM",
    "sequence-classification": "AutoModelForSequenceClassification",
    "multiple-choice": "AutoModelForMultipleChoice",
}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def load_base(*, dtype: str = "float32") -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The embedded base model, in evaluation mode, and its tokenizer.

    Example:
        >>> base, tokenizer = load_base()
        >>> tokenizer.decode(tokenizer("The otter lives in")["input_ids"])
        '<|begin|>The otter lives in'
    """
    return resolve_base(EMBEDDED_BASE, dtype=dtype)


def resolve_base(
    name: str, *, revision: str | None = None, dtype: str | None = None, head: str = "causal-lm", num_labels: int | None = None
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A base model by name, in evaluation mode, and its tokenizer: "embedded", a folder, or a name on the hub.

    `dtype` is "float32", "bfloat16" or "float16"; by default the one the weights are stored in. `head` says which of transformers' classes
    it is loaded as: "causal-lm", "sequence-classification" (with `num_labels` classes) or "multiple-choice".

    Raises:
        DataError: the model cannot be loaded.
        ConfigError: an unknown dtype.
    """
    if dtype is not None and dtype not in DTYPES:
        raise ConfigError(f"dtype {dtype!r}; known: {', '.join(DTYPES)}")
    if not name:
        raise DataError("the ensemble's base was built in code and has no name to load it by; pass base= and tokenizer=")
    embedded = name in ("embedded", EMBEDDED_BASE)
    source = str(FOLDER) if embedded else name
    labels = {} if num_labels is None else {"num_labels": num_labels}
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, revision=revision)
        base = getattr(transformers, AUTO[head]).from_pretrained(
            source, revision=revision, dtype=DTYPES[dtype] if dtype else "auto", **labels
        )
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise DataError(
            f"base model {name!r} cannot be loaded: {reason}; give 'embedded', a folder that save_pretrained wrote, or a name on the hub"
        ) from error
    if head != "causal-lm" and base.config.get_text_config().pad_token_id is None:  # a decoder finds a text's end by its padding
        base.config.get_text_config().pad_token_id = (
            tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
        )
    if embedded:
        base.config._name_or_path = base.name_or_path = EMBEDDED_BASE
    return base.eval(), tokenizer
