"""The model: which arguments it takes, how the ensemble is loaded from them, and what the harness
is given.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ...embedded import load_base
from ...ensemble import LoraEnsemble
from ...errors import ConfigError, MissingExtraError, unknown_name
from ...storage.folder import read_ensemble

# What says which ensemble, and where and how it is loaded.
OWN_ARGUMENTS = ("pretrained", "ensemble", "members", "base", "revision", "dtype", "device")
# What the harness's Hugging Face model takes beside a model that is loaded already; what it would silently
# ignore then is left out.
PASSED_ON = (
    "batch_size",
    "max_batch_size",
    "max_length",
    "truncation",
    "logits_cache",
    "add_bos_token",
    "prefix_token_id",
    "softmax_dtype",
    "mixed_precision_dtype",
    "think_end_token",
    "enable_thinking",
    "chat_template_args",
)
NEEDS_EXTRA = 'the harness is not installed; run: pip install "lora-ensembles[eval]"'

_log = logging.getLogger(__name__)


def merged_arguments(model_args: Mapping[str, Any], flags: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of `--model_args` and those that the harness adds from its own flags, as one.

    Raises:
        ConfigError: an unknown argument, or one that both give.

    Example:
        >>> merged_arguments({"pretrained": "runs/obqa"}, {"batch_size": 8, "device": None})
        {'pretrained': 'runs/obqa', 'batch_size': 8}
    """
    set_flags = {name: value for name, value in flags.items() if value is not None}
    both = sorted(set(model_args) & set(set_flags))
    if both:
        raise ConfigError(
            f"{both[0]} is in model_args and is also a flag of the harness, which it always sets; "
            f"use --{both[0]} alone"
        )
    merged = {**model_args, **set_flags}
    for name in merged:
        if name not in (*OWN_ARGUMENTS, *PASSED_ON):
            raise ConfigError(f"model_args: {unknown_name('argument', name, (*OWN_ARGUMENTS, *PASSED_ON))}")
    return merged


def load(arguments: Mapping[str, Any]) -> LoraEnsemble:
    """The ensemble that the arguments name, on its device.

    Raises:
        ConfigError: no folder or two, members that are no indices, an unknown device or dtype.
        CheckpointError, DataError, AdapterError: the folder or the base cannot be read, or do not fit each
            other.
    """
    folders = [arguments[name] for name in ("pretrained", "ensemble") if arguments.get(name)]
    if len(folders) != 1:
        raise ConfigError(
            f"{len(folders)} folders of an ensemble in model_args; "
            "give one, pretrained=DIR (or ensemble=DIR, the same)"
        )
    members = _members(arguments.get("members"))
    saved = read_ensemble(Path(folders[0]), members=members)
    asked = arguments.get("dtype")
    dtype = saved.dtype if asked in (None, "auto") else str(asked).removeprefix("torch.")
    name = arguments.get("base") or saved.base_name
    revision = arguments.get("revision") or (None if arguments.get("base") else saved.base_revision)
    base, tokenizer = load_base(name, revision=revision, dtype=dtype)
    base.to(_device(arguments.get("device")))  # type: ignore[arg-type]
    return LoraEnsemble.from_pretrained(folders[0], base=base, tokenizer=tokenizer, members=members)


@functools.cache
def model_class() -> type[Any]:
    """The class that stands in the harness's registry.

    Raises:
        MissingExtraError: lm_eval is not installed.
    """
    try:
        from lm_eval.models.huggingface import HFLM
        from lm_eval.utils import simple_parse_args_string
    except ImportError as error:
        raise MissingExtraError(NEEDS_EXTRA) from error

    class LoraEnsembleLM(HFLM):
        """An ensemble in the harness: its Hugging Face model, given `ensemble.as_causal_lm()` and the
        ensemble's tokenizer.
        """

        @classmethod
        def create_from_arg_string(
            cls, arg_string: str, additional_config: dict[str, Any] | None = None
        ) -> Any:
            return cls.create_from_arg_obj(simple_parse_args_string(arg_string), additional_config)

        @classmethod
        def create_from_arg_obj(
            cls, arg_dict: dict[str, Any], additional_config: dict[str, Any] | None = None
        ) -> Any:
            arguments = merged_arguments(arg_dict, additional_config or {})
            ensemble = load(arguments)
            passed_on = {name: value for name, value in arguments.items() if name in PASSED_ON}
            return cls(ensemble.as_causal_lm(), tokenizer=ensemble.tokenizer, **passed_on)

        def get_model_info(self) -> dict[str, Any]:
            """The harness's record of the model, with the number of members and the name of the base."""
            ensemble: LoraEnsemble = self.model.ensemble
            return {
                **super().get_model_info(),
                "num_members": ensemble.num_members,
                "base": ensemble.base.name_or_path,
            }

    LoraEnsembleLM.__qualname__ = "LoraEnsembleLM"
    return LoraEnsembleLM


def _members(members: object) -> list[int] | None:
    indices = [members] if isinstance(members, int) and not isinstance(members, bool) else members
    if indices is None:
        return None
    if (
        not isinstance(indices, list | tuple)
        or not indices
        or not all(type(index) is int for index in indices)
    ):
        raise ConfigError(f"members={members!r}; give one index, members=0, or a list of them, members=[0,2]")
    return list(indices)


def _device(name: str | None) -> torch.device:
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(
            f"device {name!r}; give one that torch knows, such as cpu, cuda:0 or mps"
        ) from error
    if device.type == "cuda" and not torch.cuda.is_available():
        # The harness's command line asks for cuda:0 when nobody asked for anything, and its own models then
        # take the CPU.
        _log.warning("no GPU here for device %s; the ensemble runs on the CPU", name)
        return torch.device("cpu")
    return device
