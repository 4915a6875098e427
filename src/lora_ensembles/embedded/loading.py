"""Loading a base model by name: the embedded one, a folder, or a name on the hub."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from ..errors import ConfigError, DataError

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

EMBEDDED_BASE = "lora-ensembles/embedded-base"
FOLDER = Path(__file__).parent / "base"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def load_base(*, dtype: str = "float32") -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The embedded base model, in evaluation mode, and its tokenizer.

    Example:
        >>> base, tokenizer = load_base()
        >>> tokenizer.decode(tokenizer("The otter lives in")["input_ids"])
        '<|begin|>The otter lives in'
    """
    return resolve_base(EMBEDDED_BASE, dtype=dtype)


def resolve_base(name: str, *, revision: str | None = None, dtype: str | None = None) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A base model by name, in evaluation mode, and its tokenizer: "embedded", a folder, or a name on the hub.

    `dtype` is "float32", "bfloat16" or "float16"; by default the one the weights are stored in.

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
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, revision=revision)
        base = AutoModelForCausalLM.from_pretrained(source, revision=revision, dtype=DTYPES[dtype] if dtype else "auto")
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise DataError(
            f"base model {name!r} cannot be loaded: {reason}; give 'embedded', a folder that save_pretrained wrote, or a name on the hub"
        ) from error
    if embedded:
        base.config._name_or_path = base.name_or_path = EMBEDDED_BASE
    return base.eval(), tokenizer
