"""PEFT on one side, stacked adapters on the other: initial weights by PEFT, member folders that PEFT opens,
options that cannot be stacked.

On disk a member is a plain PEFT adapter folder and nothing else (`adapter_config.json`,
`adapter_model.safetensors`).
"""

from __future__ import annotations

import copy
import dataclasses
import math
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftConfig, get_peft_model
from peft.tuners.lora import LoraLayer
from peft.utils import SAFETENSORS_WEIGHTS_NAME
from peft.utils.other import ModulesToSaveWrapper, get_pattern_key
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from ..checks import number_between, whole_number
from ..disk.atomic import check_readable, is_missing
from ..errors import AdapterError, CheckpointError
from .adapter_options import check_adapter_options
from .dropout import stream_key
from .head_config import HeadInit
from .sharding.layout import as_if_whole, whole_copy
from .sites import MemberWeights, check_target, replace_module

PREFIX = "base_model.model."
STACKABLE_INITS = (True, False, "gaussian", "orthogonal")
STACKABLE_OPTIONS = frozenset(
    """task_type peft_type auto_mapping peft_version base_model_name_or_path revision inference_mode r
    target_modules exclude_modules lora_alpha lora_dropout fan_in_fan_out use_rslora init_lora_weights
    layers_to_transform layers_pattern rank_pattern alpha_pattern megatron_core qalora_group_size
    runtime_config""".split()
)
REASONS = {
    "use_dora": "DoRA rescales the base weight by a norm that differs from member to member, "
    "so the members cannot share one product",
    "bias": "trained biases belong to the base, which the members share",
    "lora_bias": "biases of the B matrices are not stacked",
    "modules_to_save": "members of a causal language model own adapters only; "
    "those of a classifier or a reward model own their heads",
    "target_parameters": "adapters on bare parameters (such as fused experts) do not see one row per token "
    "of every member",
    "layer_replication": "replicated layers change the base",
    "trainable_token_indices": "trained embeddings are not stacked",
}
INIT_REASON = (
    "it rewrites the base weights or needs data, so the members cannot share one base; "
    "train it in PEFT and use from_adapters"
)


def default_adapter_config() -> LoraConfig:
    """The paper's adapter: rank 8, alpha 32 (scaling 4, as PEFT computes it), on the query and value
    projections.

    Source: Sec. 5.1 of arXiv:2310.00035; `lora_alpha` is read as PEFT's, since the paper uses PEFT.
    """
    return LoraConfig(r=8, lora_alpha=32, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")


def check_stackable(config: LoraConfig, *, head: bool = False) -> None:
    """Refuse, by name and with the reason, every option whose members could not share one base in one pass.

    `head` says that members own heads, which `modules_to_save` names.

    Raises:
        AdapterError: the config uses such an option.

    Example:
        >>> check_stackable(LoraConfig(use_dora=True))
        Traceback (most recent call last):
        ...
        lora_ensembles.errors.AdapterError: LoraConfig(use_dora=True) cannot be stacked: DoRA rescales the base weight by a norm ...
    """  # noqa: E501 - printed output
    if not isinstance(config, LoraConfig):
        raise AdapterError(f"the adapter is described by a peft.LoraConfig; got {type(config).__name__}")
    if config.init_lora_weights not in STACKABLE_INITS:
        raise AdapterError(
            f"LoraConfig(init_lora_weights={config.init_lora_weights!r}) cannot be stacked: {INIT_REASON}"
        )
    plain = LoraConfig()
    for option in dataclasses.fields(LoraConfig):
        value, default = getattr(config, option.name), getattr(plain, option.name)
        # PEFT itself writes [] for None, on mixtures of experts.
        unset = value == default or (not value and default is None)
        if (
            option.name not in STACKABLE_OPTIONS
            and not unset
            and not (head and option.name == "modules_to_save")
        ):
            reason = REASONS.get(option.name, "stacked layers compute W x + s B A x and nothing else")
            raise AdapterError(f"LoraConfig({option.name}={value!r}) cannot be stacked: {reason}")


def check_numbers(config: LoraConfig) -> None:
    """Refuse a rank, a scaling or a dropout with which nothing can be learnt.

    Raises:
        ConfigError: as it says, by the name of the field.

    Example:
        >>> check_numbers(LoraConfig(lora_alpha=0))
        Traceback (most recent call last):
        ...
        lora_ensembles.errors.ConfigError: lora_alpha=0; it is a finite number above 0
    """
    whole_number("r", config.r)
    number_between("lora_alpha", config.lora_alpha, above=0)
    number_between("lora_dropout", config.lora_dropout, least=0, below=1)
    for layer, rank in (config.rank_pattern or {}).items():
        whole_number(f"rank_pattern[{layer!r}]", rank)
    for layer, alpha in (config.alpha_pattern or {}).items():
        number_between(f"alpha_pattern[{layer!r}]", alpha, above=0)


def initial_weights(
    base: nn.Module, config: LoraConfig, *, seed: int, head_init: HeadInit | None = None
) -> MemberWeights:
    """The weights with which PEFT itself starts an adapter after `torch.manual_seed(seed)`.

    The base is wrapped by PEFT for the purpose and unwrapped again; its weights and the global random state
    are left as they were. With `head_init`, the member has a head as well, the modules that PEFT finds for
    `modules_to_save`: drawn by the base's own initialisation ("fresh"), from a stream of the seed that the
    adapter does not share; or a copy of the base's ("base"), as PEFT has it.

    Raises:
        AdapterError: PEFT finds no target, or a target is of a kind that cannot be stacked.
        ConfigError: a rank, scaling or dropout out of its range.
    """
    check_stackable(config, head=head_init is not None)
    check_numbers(config)
    described = copy.deepcopy(config)
    described.base_model_name_or_path = None  # PEFT would warn of a base that lies under another name now
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings(), as_if_whole(base):
        # Between PEFT and transformers, whose property PEFT reads; no caller can act on it.
        warnings.filterwarnings("ignore", message="`is_gradient_checkpointing`")
        # PEFT says of Conv1D layers that it corrects this field by itself, as it then does.
        warnings.filterwarnings(
            "ignore", message="fan_in_fan_out is set to False but the target module is `Conv1D`"
        )
        torch.manual_seed(seed)
        try:
            wrapped = get_peft_model(base, described)
        except (ValueError, TypeError, AttributeError) as error:
            _take_out(base)
            packed = "; load a base with packed weights by dequantize=True" if _packed(error) else ""
            raise AdapterError(f"PEFT cannot place the adapter: {error}{packed}") from error
    saved = {
        name.removeprefix(PREFIX): module
        for name, module in wrapped.named_modules()
        if isinstance(module, ModulesToSaveWrapper)
    }
    try:
        weights = _read_wrapped(wrapped)
        originals = {name: module.original_module for name, module in saved.items()}
        head = initial_head(base, originals, seed=seed if head_init == "fresh" else None)
        return dataclasses.replace(weights, head=head)
    finally:
        wrapped.unload()
        for name, module in saved.items():  # PEFT would leave its copy
            replace_module(base, name, module.original_module)


def initial_head(base: Any, originals: dict[str, nn.Module], *, seed: int | None) -> dict[str, torch.Tensor]:
    """The parameters of a head by name: newly initialised after a seed, in fp32 whatever the base's dtype, or
    without one the base's own.
    """
    head: dict[str, torch.Tensor] = {}
    with torch.random.fork_rng(devices=[]):
        if seed is not None:
            torch.manual_seed(stream_key(seed, "head"))
        for name, original in originals.items():
            _check_head(name, original)
            copied = whole_copy(original).cpu().float()
            for module in () if seed is None else copied.modules():
                base._init_weights(module)
            head |= {
                f"{name}.{own}": parameter.detach().clone() for own, parameter in copied.named_parameters()
            }
    return head


def _check_head(name: str, module: nn.Module) -> None:
    parts = dict(module.named_modules(prefix=name))
    linear = [inner for inner, part in parts.items() if type(part) is nn.Linear]
    for inner, part in parts.items():
        if list(part.parameters(recurse=False)) and inner not in linear:
            raise AdapterError(
                f"the head module {name!r} holds {inner!r}, a {type(part).__name__}; "
                "members' heads are stacked on nn.Linear layers: "
                f"name {f'its linear layers {linear}' if linear else 'other modules'} "
                "in LoraConfig(modules_to_save=[...])"
            )


def _packed(error: Exception) -> bool:
    # compressed-tensors keeps no weight before the first pass.
    return isinstance(error, AttributeError) and "no attribute 'weight'" in str(error)


def _take_out(base: nn.Module) -> None:
    # PEFT may refuse a target after it has replaced others.
    for name, module in list(base.named_modules()):
        if isinstance(module, LoraLayer):
            parent, _, child = name.rpartition(".")
            setattr(base.get_submodule(parent), child, module.get_base_layer())


def _read_wrapped(wrapped: nn.Module) -> MemberWeights:
    a, b, scaling = {}, {}, {}
    full_name: str
    module: nn.Module
    for full_name, module in wrapped.named_modules():
        if not isinstance(module, LoraLayer):
            continue
        name = full_name.removeprefix(PREFIX)
        check_target(name, module)
        layer: Any = module  # to a type checker, whatever a module holds is a tensor or a module
        a[name] = layer.lora_A["default"].weight.detach().float().cpu().clone()
        b[name] = layer.lora_B["default"].weight.detach().float().cpu().clone()
        scaling[name] = float(layer.scaling["default"])
    return MemberWeights(a, b, scaling)


def write_adapter(
    folder: Path, weights: MemberWeights, config: LoraConfig, *, dtype: torch.dtype = torch.float32
) -> None:
    """One member as a PEFT adapter folder that `peft.PeftModel.from_pretrained` opens."""
    folder.mkdir(parents=True)
    saved = copy.deepcopy(config)
    saved.inference_mode = True
    if saved.target_modules is not None and not isinstance(saved.target_modules, str):
        # The same file in every process: the order of a set of strings is not.
        saved.target_modules = sorted(saved.target_modules)
    _state_ranks(saved, weights)
    saved.save_pretrained(str(folder))
    tensors = {}
    for name in weights.a:
        tensors[f"{PREFIX}{name}.lora_A.weight"] = weights.a[name].to(dtype).contiguous()
        tensors[f"{PREFIX}{name}.lora_B.weight"] = weights.b[name].to(dtype).contiguous()
    tensors |= {f"{PREFIX}{name}": tensor.to(dtype).contiguous() for name, tensor in weights.head.items()}
    save_file(tensors, folder / SAFETENSORS_WEIGHTS_NAME, metadata={"format": "pt"})


def _state_ranks(config: LoraConfig, weights: MemberWeights) -> None:
    # Adapters trained elsewhere have ranks and scalings of their own, an ensemble one config: say this one's.
    ranks = {name: matrix.shape[0] for name, matrix in weights.a.items()}
    said = all(
        _pattern_value(config.rank_pattern, name, config.r) == rank
        and math.isclose(_scaling(config, name, rank), weights.scaling[name], rel_tol=1e-6)
        for name, rank in ranks.items()
    )
    if said:
        return
    alphas = {
        name: _whole(weights.scaling[name] * (rank**0.5 if config.use_rslora else rank))
        for name, rank in ranks.items()
    }
    config.r, config.rank_pattern = _common_and_others(ranks)
    config.lora_alpha, config.alpha_pattern = _common_and_others(alphas)


def _common_and_others(values: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """The most frequent value, and the layers that have another."""
    ((common, _),) = Counter(values.values()).most_common(1)
    return common, {name: value for name, value in values.items() if value != common}


def _whole(value: float) -> float:
    return round(value) if abs(value - round(value)) < 1e-6 else value


def read_adapter_config(folder: Path, *, head: bool = False) -> LoraConfig:
    """The `LoraConfig` of an adapter folder, checked to be stackable; `head` says whether members may own
    heads.

    Raises:
        CheckpointError: the folder holds no readable adapter.
        AdapterError: the adapter cannot be stacked.
    """
    file = folder / "adapter_config.json"
    if is_missing(file):
        raise CheckpointError(f"{folder} is no PEFT adapter folder: it has no adapter_config.json")
    check_adapter_options(file)
    try:
        config = PeftConfig.from_pretrained(str(folder))
    except (OSError, ValueError, TypeError, KeyError, AttributeError, ImportError, RuntimeError) as error:
        # RuntimeError: PEFT leaves out what it does not know and tries again, without end for nested options.
        raise CheckpointError(f"{file} cannot be read: {error}") from error
    if getattr(config, "init_lora_weights", True) == "eva":
        # EVA chooses A from data but leaves the base alone, so what it trained can be read.
        config.init_lora_weights = True
    check_stackable(config, head=head)
    return config


def read_adapter(folder: Path, config: LoraConfig) -> MemberWeights:
    """The weights of an adapter folder.

    Raises:
        CheckpointError: the weights are missing, corrupt, or not those of a LoRA on linear layers.
    """
    path = folder / SAFETENSORS_WEIGHTS_NAME
    tensors = _read_tensors(path)
    a: dict[str, torch.Tensor] = {}
    b: dict[str, torch.Tensor] = {}
    head: dict[str, torch.Tensor] = {}
    for key, tensor in tensors.items():
        name, separator, matrix = key.removeprefix(PREFIX).rpartition(".lora_")
        if not separator and config.modules_to_save:
            head[key.removeprefix(PREFIX)] = tensor.float()
            continue
        if not separator or matrix not in ("A.weight", "B.weight"):
            raise CheckpointError(f"{path} holds {key!r}, which is not a weight of a LoRA on a linear layer")
        if tensor.dim() != 2:
            raise CheckpointError(
                f"{path} holds {key!r} of shape {tuple(tensor.shape)}; "
                "a LoRA on a linear layer has matrices only"
            )
        (a if matrix == "A.weight" else b)[name] = tensor.float()
    if not a or set(a) != set(b) or any(a[name].shape[0] != b[name].shape[1] for name in a):
        raise CheckpointError(
            f"{path} does not hold an A and a B of one rank for each layer; save or download it again"
        )
    return MemberWeights(a, b, {name: _scaling(config, name, a[name].shape[0]) for name in a}, head)


def _read_tensors(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a member's file, which are finite floating-point numbers."""
    if is_missing(path):
        raise CheckpointError(
            f"{path.parent} has no {path.name}; adapters saved as pickle are not read: "
            "save them as safetensors"
        )
    check_readable(path)
    try:
        tensors = load_file(path)
    except SafetensorError as error:
        raise CheckpointError(
            f"{path} is corrupt or cut short ({error}); save or download it again"
        ) from error
    for name, tensor in tensors.items():
        if not tensor.is_floating_point():
            kind = str(tensor.dtype).removeprefix("torch.")
            raise CheckpointError(
                f"{path} holds {name!r} as {kind}; members' weights are floating-point numbers: "
                "save the adapter in one of these"
            )
        if not tensor.float().isfinite().all():
            raise CheckpointError(
                f"{path} holds {name!r} with values that are not finite; "
                "save, train or download this member again"
            )
    return tensors


def _scaling(config: LoraConfig, name: str, rank: int) -> float:
    alpha = _pattern_value(config.alpha_pattern, name, config.lora_alpha)
    return alpha / (rank**0.5 if config.use_rslora else rank)


def _pattern_value(pattern: dict[str, float] | None, name: str, default: float) -> float:
    pattern = pattern or {}
    return pattern.get(get_pattern_key(list(pattern), name), default)
