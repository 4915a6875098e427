"""A tiny random model of every architecture that the installed transformers has."""

from __future__ import annotations

import copy
import functools
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import transformers
from torch import Tensor, nn
from transformers import CONFIG_MAPPING, PreTrainedConfig, PreTrainedModel
from transformers.models.auto import modeling_auto

from architectures.shrinking import tiny_config

KINDS = ("causal", "vision-language", "classifier")
DECODER = " (is_decoder)"  # ends the names of encoders that are built to read from left to right
LARGEST = 2_000_000  # parameters of a tiny model
NAMES = {
    "causal": modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    "vision-language": modeling_auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
    "classifier": modeling_auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
}
AUTO = {
    "causal": transformers.AutoModelForCausalLM,
    "vision-language": transformers.AutoModelForImageTextToText,
    "classifier": transformers.AutoModelForSequenceClassification,
}


class CannotBuild(Exception):
    """An architecture that has no tiny model, with the reason."""


@functools.cache
def architectures(kind: str) -> tuple[str, ...]:
    """The model types of a kind; encoders that can read left to right stand a second time, as decoders."""
    names = set(NAMES[kind])
    if kind == "causal":
        names |= {f"{name}{DECODER}" for name in names if _is_encoder(name)}
    return tuple(sorted(names))


def _is_encoder(name: str) -> bool:
    config = CONFIG_MAPPING[name]
    return getattr(config, "is_decoder", None) is False and not config.is_encoder_decoder


def build(kind: str, name: str) -> PreTrainedModel:
    """A model of its own on every call, in float32 and evaluation mode, always with the same weights.

    Raises:
        CannotBuild: the architecture needs a package that is not there, or cannot be made small.
    """
    changes = {"num_labels": 3} if kind == "classifier" else {}
    if name.endswith(DECODER):
        changes["is_decoder"] = True
    try:
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings(), _uninitialised_memory_is_nan():
            warnings.simplefilter("ignore")  # of what transformers does while it builds
            config = tiny_config(CONFIG_MAPPING[name.removesuffix(DECODER)], changes)
            _refuse_large(kind, config)
            torch.manual_seed(1)
            model = AUTO[kind].from_config(config, dtype=torch.float32).float().eval()
            _spread(model)
    except CannotBuild:
        raise
    except Exception as error:
        raise CannotBuild(_reason(error)) from error
    return model


def _refuse_large(kind: str, config: PreTrainedConfig) -> None:
    """Counts the parameters before they take memory: a size whose name is not known yet stays as it is."""
    with torch.device("meta"):
        model = AUTO[kind].from_config(copy.deepcopy(config), dtype=torch.float32)
    if (size := model.num_parameters()) > LARGEST:
        raise CannotBuild(f"{size} parameters, more than {LARGEST}: a size of it is not made small")


def _reason(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [""]
    # A failed check of a configuration says which check in its first line, and what was wrong in the second.
    line = lines[1] if lines[0].startswith("Class validation error") and len(lines) > 1 else lines[0]
    return f"{type(error).__name__}: {line.strip()}"


@contextmanager
def _uninitialised_memory_is_nan() -> Iterator[None]:
    """Shows the parameters that a model allocates and never fills."""
    before = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
    )
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])


@torch.no_grad()
def _spread(model: nn.Module) -> None:
    """Moves what begins at exactly 0 or 1, which hides that it was left out; fills what begins as nothing."""
    for parameter in model.parameters():
        if not parameter.isfinite().all():
            parameter.copy_(0.2 * torch.randn_like(parameter))
        elif parameter.dim() == 1:
            parameter.add_(0.1 * torch.randn_like(parameter))
        elif _is_faint(parameter):
            parameter.copy_(0.2 * torch.randn_like(parameter))


def _is_faint(parameter: Tensor) -> bool:
    return parameter.numel() > 1 and parameter.std().item() < 0.1
