"""Loading a base model by name: the embedded one, a folder, or a name on the hub."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import transformers
from transformers import AutoConfig, AutoTokenizer
from transformers.models.auto.modeling_auto import MODEL_FOR_MULTIPLE_CHOICE_MAPPING as MULTIPLE_CHOICE

from ..errors import ConfigError, DataError
from ..layout import names_a_folder

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
    name: str,
    *,
    revision: str | None = None,
    dtype: str | None = None,
    head: str = "causal-lm",
    num_labels: int | None = None,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A base model by name, in evaluation mode, and its tokenizer: "embedded", a folder, or a name on the hub.

    `dtype` is "float32", "bfloat16" or "float16"; by default the one the weights are stored in. `head` says which of transformers' classes
    it is loaded as: "causal-lm", "sequence-classification" (with `num_labels` classes) or "multiple-choice" (a classifier of one label
    where transformers has no such class, as for decoders). A head that the checkpoint lacks is drawn anew.

    Raises:
        DataError: the model cannot be loaded, or a checkpoint for a head holds no weights of its body.
        ConfigError: an unknown dtype.
    """
    if dtype is not None and dtype not in DTYPES:
        raise ConfigError(f"dtype {dtype!r}; known: {', '.join(DTYPES)}")
    if not name:
        raise DataError(
            "the ensemble's base was built in code and has no name to load it by; pass base= and tokenizer="
        )
    embedded = name in ("embedded", EMBEDDED_BASE)
    source = str(FOLDER) if embedded else name
    tokenizer = resolve_tokenizer(name, revision=revision)
    try:
        if (
            head == "multiple-choice"
            and type(AutoConfig.from_pretrained(source, revision=revision)) not in MULTIPLE_CHOICE
        ):
            head, num_labels = "sequence-classification", 1
        # A head of another number of classes is not the one that is wanted.
        labels = {} if num_labels is None else {"num_labels": num_labels, "ignore_mismatched_sizes": True}
        with _without_report(head):
            base = getattr(transformers, AUTO[head]).from_pretrained(
                source, revision=revision, dtype=DTYPES[dtype] if dtype else "auto", **labels
            )
    except (OSError, ValueError) as error:
        raise _not_loaded(name, error) from error
    if head != "causal-lm":
        _make_ready_for_heads(base, tokenizer, name)
    if embedded:
        base.config._name_or_path = base.name_or_path = EMBEDDED_BASE
    return base.eval(), tokenizer


def resolve_tokenizer(name: str, *, revision: str | None = None) -> PreTrainedTokenizerBase:
    """The tokenizer of a base by name, as in `resolve_base`.

    Raises:
        DataError: it cannot be loaded.
    """
    if names_a_folder(name) and not Path(name).is_dir():
        raise DataError(
            f"base model {name!r}: no such folder from {Path.cwd()}; give 'embedded', a folder that save_pretrained wrote, or a name on "
            "the hub"
        )
    try:
        return AutoTokenizer.from_pretrained(
            str(FOLDER) if name in ("embedded", EMBEDDED_BASE) else name, revision=revision
        )
    except (OSError, ValueError) as error:
        raise _not_loaded(name, error) from error


def _make_ready_for_heads(base: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, name: str) -> None:
    # What transformers says of missing weights is not shown; that the head's are missing is meant, that all are is not.
    if not any(getattr(parameter, "_is_hf_initialized", False) for parameter in base.base_model.parameters()):
        raise DataError(
            f"base model {name!r} holds no weights of the body of a {type(base).__name__}, which would be random; give a checkpoint of "
            "this architecture"
        )
    config = base.config.get_text_config()
    if config.pad_token_id is None:  # a decoder finds a text's end by its padding
        config.pad_token_id = (
            tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
        )


def _not_loaded(name: str, error: Exception) -> DataError:
    reason = str(error).splitlines()[0]
    return DataError(
        f"base model {name!r} cannot be loaded: {reason}; give 'embedded', a folder that save_pretrained wrote, or a name on the hub"
    )


@contextmanager
def _without_report(head: str) -> Iterator[None]:
    """While transformers does not list the weights of a head that a checkpoint lacks: members draw theirs."""
    before = transformers.logging.get_verbosity()
    if head != "causal-lm":
        transformers.logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers.logging.set_verbosity(before)
