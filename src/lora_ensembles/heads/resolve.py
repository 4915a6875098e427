"""Which kinds of heads there are, which one a base has, and the adapter config that goes with it."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from ..errors import AdapterError, ConfigError
from ..stack.adapters import default_adapter_config
from ..stack.head_config import HeadConfig, HeadKind

if TYPE_CHECKING:
    from peft import LoraConfig

CLASSES = {"sequence-classification": "ForSequenceClassification", "multiple-choice": "ForMultipleChoice"}
# Where PEFT names no layers, or others: its choice for DeBERTa holds `query_proj`, which reads the table of
# relative positions as well, and that belongs to no row. ModernBERT's queries, keys and values are one layer.
TARGETS = {
    "deberta-v2": ["value_proj", "attention.output.dense"],
    "distilbert": ["q_lin", "v_lin"],
    "modernbert": ["Wqkv"],
}
NEEDED = {
    "causal-lm": "a causal language model (AutoModelForCausalLM)",
    "sequence-classification": (
        "a sequence classifier of 2 or more classes (AutoModelForSequenceClassification, num_labels=...)"
    ),
    "multiple-choice": (
        "a multiple-choice model (AutoModelForMultipleChoice), or a sequence classifier with num_labels=1"
    ),
    "reward": "a sequence classifier with num_labels=1 (AutoModelForSequenceClassification)",
}


def resolve_head(base: nn.Module, asked: HeadConfig | HeadKind | None) -> HeadConfig:
    """The head that members on a base have: as asked, or what the base's class says.

    Raises:
        ConfigError: an unknown kind, or one that the base is not made for; a base for several labels at once,
            or regression; a decoder that cannot tell padding from text; or heads that should begin as the
            base's, which is not trained.
    """
    config = asked if isinstance(asked, HeadConfig) else HeadConfig(asked)
    own_kind, single = base_kind(base), False
    if own_kind == "sequence-classification" and _labels(base) == 1:
        own_kind, single = "reward", True
    config = replace(config, kind=config.kind or own_kind)
    if config.kind != own_kind and not (config.kind == "multiple-choice" and single):
        raise ConfigError(
            f"head {config.kind!r} on a {_described(base)}; it needs {NEEDED[str(config.kind)]}"
        )
    problem = getattr(base.config, "problem_type", None)
    if config.kind == "sequence-classification" and problem not in (None, "single_label_classification"):
        raise ConfigError(
            f"the base's config has problem_type={problem!r}, and classes are read as exclusive here: one "
            "label of several; set base.config.problem_type to None if they are, "
            "else train a classifier for each label"
        )
    if config.init == "base" and config.owned and _head_drawn_anew(base):
        raise ConfigError(
            f"HeadConfig(init='base') on a {type(base).__name__} whose head was not in its checkpoint, "
            "so it was newly initialised; leave init at 'fresh', or load a checkpoint with a trained head"
        )
    whole: Any = base.config
    if config.owned and getattr(whole.get_text_config(), "pad_token_id", None) is None:
        raise ConfigError(
            f"the {type(base).__name__} has no padding token, so it cannot tell where a text ends; "
            "set base.config.pad_token_id to the tokenizer's"
        )
    return config


def adapter_for(base: nn.Module, head: HeadConfig, config: LoraConfig | None) -> LoraConfig:
    """The adapter config of an ensemble: the one given, or the paper's on layers that the base has; with the
    modules of its head.

    `modules_to_save`, where the config names none, are all modules of the base beside its body: the
    classifier of BERT, and that of RoBERTa with its dense layer, `pre_classifier` and `classifier` of
    DistilBERT, `pooler` and `classifier` of DeBERTa, `score` of a decoder.

    A linear layer of the body that the checkpoint lacked, such as the pooler of RoBERTa's multiple choice, is
    a member's own as well: it was newly initialised, and would be another one the next time that the base is
    loaded.

    Raises:
        AdapterError: neither the paper's nor PEFT's targets are known to be in the base; or it has no head
            beside its body.
    """
    adapter = default_adapter_config() if config is None else config
    if not head.owned:
        return adapter
    prepared = copy.deepcopy(adapter)
    if config is None:
        prepared.target_modules = list(usual_targets(base, sorted(adapter.target_modules or ())))
    # What PEFT wraps a member in: a classifier, or for a model that it has no class for, a plain model.
    prepared.task_type = "SEQ_CLS" if base_kind(base) == "sequence-classification" else None
    if not prepared.modules_to_save:
        prepared.modules_to_save = member_modules(base)
    return prepared


def usual_targets(base: nn.Module, usual: list[str]) -> Sequence[str]:
    """The layers named `usual` where a base has them, else those that PEFT takes for its architecture.

    Raises:
        AdapterError: neither is known to be in the base.
    """
    from peft.utils.constants import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING as PEFT_TARGETS
    from torch.nn import Linear
    from transformers.pytorch_utils import Conv1D

    kinds = {name.rpartition(".")[2]: module for name, module in base.named_modules()}
    if set(usual) <= set(kinds):
        return usual
    model_type = str(getattr(base.config, "model_type", ""))
    by_type = PEFT_TARGETS | TARGETS
    if model_type in by_type:
        return by_type[model_type]
    linear = sorted(name for name, module in kinds.items() if isinstance(module, Linear | Conv1D))
    raise AdapterError(
        f"the base ({model_type}) has no layers named {' and '.join(usual)}; "
        f"pass --target-modules with some of its linear layers: {', '.join(linear)}"
    )


def member_modules(base: nn.Module) -> list[str]:
    """The modules that members own without further word: the head, and what of the body the checkpoint
    lacked.

    Where a module of the head holds norms beside its linear layers (ModernBERT's `head`), these layers are
    named one by one, without those that the checkpoint brought where it lacked others; the rest stays the
    base's, frozen and shared.

    Raises:
        AdapterError: nothing stands beside the body.
    """
    heads = head_modules(base)
    parts = [part for name in heads for part in _owned_parts(base, name)]
    return [*(parts or heads), *_drawn_anew(base)]


def head_modules(base: nn.Module) -> list[str]:
    """The names of what stands beside the body of a base.

    Raises:
        AdapterError: nothing does.
    """
    body = str(getattr(base, "base_model_prefix", ""))
    heads = [
        name
        for name, child in base.named_children()
        if name != body and any(True for _ in child.parameters())
    ]
    if not heads or body not in dict(base.named_children()):
        raise AdapterError(
            f"{type(base).__name__} has no head beside its body {body!r}; "
            "name the modules that members own in LoraConfig(modules_to_save=[...])"
        )
    return heads


def _owned_parts(base: nn.Module, name: str) -> list[str]:
    """The parts of a head's module that members own: all of it, or its linear layers where all else in it may
    stay the base's.
    """
    parts = list(base.get_submodule(name).named_modules(prefix=name))
    linear = {inner: part.weight for inner, part in parts if type(part) is nn.Linear}
    others = [
        parameter
        for _, part in parts
        if type(part) is not nn.Linear
        for parameter in part.parameters(recurse=False)
    ]
    # What was drawn at random would be another one after loading; the scales and shifts of a norm begin as
    # constants.
    stays = all(parameter.dim() <= 1 or loaded_by_transformers(parameter) for parameter in others)
    if not others or not stays:
        return [name]
    lacking = [inner for inner, weight in linear.items() if not loaded_by_transformers(weight)]
    return lacking if _head_drawn_anew(base) else list(linear)


def _drawn_anew(base: nn.Module) -> list[str]:
    """The linear layers of the body that `from_pretrained` found nothing for; none for a model that was built
    in code.
    """
    body = str(getattr(base, "base_model_prefix", ""))
    linear = [
        (name, module)
        for name, module in base.get_submodule(body).named_modules(prefix=body)
        if type(module) is nn.Linear
    ]
    if not any(loaded_by_transformers(module.weight) for _, module in linear):
        return []
    return [name for name, module in linear if not loaded_by_transformers(module.weight)]


def _head_drawn_anew(base: nn.Module) -> bool:
    marks = {name: loaded_by_transformers(parameter) for name, parameter in base.named_parameters()}
    heads = tuple(f"{name}." for name in head_modules(base))
    return any(marks.values()) and not all(mark for name, mark in marks.items() if name.startswith(heads))


def loaded_by_transformers(parameter: Tensor) -> bool:
    """Whether `from_pretrained` read a parameter from a checkpoint: the mark that keeps it from initialising
    it.
    """
    return bool(getattr(parameter, "_is_hf_initialized", False))


def check_kind(base: nn.Module, kind: str, num_labels: int | None) -> None:
    """Refuse a base of another class than the members of a saved ensemble were trained on.

    Raises:
        AdapterError: as it says.
    """
    if base_kind(base) != kind:
        needed = (
            NEEDED[kind]
            if kind != "sequence-classification"
            else f"AutoModelForSequenceClassification (num_labels={num_labels})"
        )
        raise AdapterError(
            f"the base given is a {_described(base)}, and the members were trained on another kind of model; "
            f"load the base as {needed}"
        )


def with_named_classes(head: HeadConfig, base: nn.Module) -> HeadConfig:
    """The head of classifiers with the classes that the base's config names, unless these are
    only numbered.
    """
    config: Any = base.config
    names = dict(getattr(config, "id2label", None) or {})
    numbered = all(str(name) == f"LABEL_{number}" for number, name in names.items())
    if head.kind != "sequence-classification" or head.classes or numbered or len(names) != _labels(base):
        return head
    return replace(head, classes=tuple(str(names[number]) for number in sorted(names)))


def base_kind(base: nn.Module) -> HeadKind:
    """The kind of head that a base's class is made for."""
    kinds: tuple[HeadKind, ...] = ("multiple-choice", "sequence-classification")
    for kind in kinds:
        if _is(base, kind):
            return kind
    return "causal-lm"


def _is(base: nn.Module, kind: HeadKind) -> bool:
    return any(ancestor.__name__.endswith(CLASSES[kind]) for ancestor in type(base).__mro__)


def _labels(base: nn.Module) -> int:
    config: Any = base.config
    return int(getattr(config, "num_labels", 0))


def _described(base: nn.Module) -> str:
    labels = f" of {_labels(base)} labels" if base_kind(base) == "sequence-classification" else ""
    return f"{type(base).__name__}{labels}"
