"""From the parameters of a classifier to the ensemble that it trains and the settings of its training."""

from __future__ import annotations

import copy
import dataclasses
from typing import TYPE_CHECKING, Any, Protocol

from sklearn.utils import check_random_state

from ...embedded import device_named, is_embedded, load_base, move
from ...ensemble import LoraEnsemble
from ...errors import ConfigError
from ...heads.resolve import usual_targets
from ...stack.adapters import default_adapter_config
from ...stack.head_config import HeadConfig, HeadKind
from ...stack.seeds import whole_seed
from ...storage.folder import base_name
from ...training.config import TrainConfig

if TYPE_CHECKING:
    from peft import LoraConfig
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    Loaded = tuple[PreTrainedModel, PreTrainedTokenizerBase]

CLASSIFIER: HeadKind = "sequence-classification"
KINDS = ("causal-lm", CLASSIFIER)
TRAINING = ("epochs", "batch_size", "learning_rate", "weight_decay_b")  # fields of TrainConfig
MOST = 2**31 - 1  # of a seed that is drawn, as scikit-learn draws them


class Parameters(Protocol):
    """The parameters of a classifier, which are checked when it is fitted."""

    base: Any
    num_members: Any
    rank: Any
    alpha: Any
    adapter: Any
    head: Any
    max_length: Any
    config: Any
    device: Any
    dtype: Any


def seed_of(random_state: Any) -> int:
    """The seed of an ensemble: the number itself, or one drawn from numpy's generator, as scikit-learn does.

    Raises:
        ConfigError: something else.

    Example:
        >>> seed_of(7)
        7
    """
    if random_state is not None and not hasattr(random_state, "randint"):
        return whole_seed(random_state)
    return int(check_random_state(random_state).randint(MOST))


def train_config(classifier: Parameters) -> TrainConfig:
    """The settings of training: `config`, or the preset of the base, with the parameters that are given in
    place of its values.

    Raises:
        ConfigError: a setting out of its range, or `config` is no `TrainConfig`.
    """
    config, base = classifier.config, classifier.base
    if config is None:
        name = base if isinstance(base, str) else base_name(checked_pair(base)[0])
        config = TrainConfig.preset("embedded" if is_embedded(name) else "default")
    if not isinstance(config, TrainConfig):
        raise ConfigError(f"config is of type {type(config).__name__}; it is a TrainConfig, or None")
    changed = {name: value for name in TRAINING if (value := getattr(classifier, name)) is not None}
    return dataclasses.replace(config, **changed)


def new_ensemble(classifier: Parameters, *, num_classes: int, pairs: bool, seed: int) -> LoraEnsemble:
    """An untrained ensemble with the parameters of a classifier.

    Raises:
        ConfigError: a parameter that cannot work.
        DataError: the base cannot be loaded.
        AdapterError: the adapter cannot be stacked on this base.
    """
    head = _head(classifier)
    if isinstance(classifier.base, str):
        base, tokenizer = _loaded(classifier, head, num_classes)
    else:
        base, tokenizer = own_copy(classifier.base)
        check_stays(classifier)
    made = LoraEnsemble(
        base,
        tokenizer,
        num_members=classifier.num_members,
        adapter=_adapter(classifier, base),
        seed=seed,
        head=head,
    )
    kind = made.info.head.kind
    if kind not in KINDS:
        raise ConfigError(
            f"the base is a {type(base).__name__}, whose head is {kind!r}; a classifier needs a causal "
            f"language model, or a sequence classifier with num_labels={num_classes}"
        )
    if kind == "causal-lm" and pairs:
        raise ConfigError(
            "X has 2 columns, and members with the head 'causal-lm' read one text; "
            f"use the head {CLASSIFIER!r}, or join the columns"
        )
    return made


def own_copy(base: Any) -> Loaded:
    """A copy of a (model, tokenizer) pair whose modules are its own, and whose weights are those of the pair:
    they are frozen, so many ensembles may share them.

    Raises:
        ConfigError: it is no such pair.
    """
    model, tokenizer = checked_pair(base)
    shared = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    copied: PreTrainedModel = copy.deepcopy(model, shared)
    return copied, tokenizer


def checked_pair(base: Any) -> Loaded:
    """The model and the tokenizer of a `base` that is no name.

    Raises:
        ConfigError: it is no pair of a model and a tokenizer.
    """
    if not isinstance(base, tuple | list) or len(base) != 2 or not hasattr(base[0], "named_parameters"):
        raise ConfigError(
            f"base is of type {type(base).__name__}; it is the name of a model, such as 'embedded', "
            "or a pair (model, tokenizer), as load_base returns it"
        )
    return base[0], base[1]


def check_stays(classifier: Parameters) -> None:
    """Refuse a device or dtype for a model that is loaded already.

    Raises:
        ConfigError: there is one.
    """
    if classifier.device != "auto" or classifier.dtype is not None:
        name = "device" if classifier.device != "auto" else "dtype"
        raise ConfigError(
            f"{name}={getattr(classifier, name)!r}, and base is a loaded model, which stays as it is; "
            f"move or cast the model, and leave {name} out"
        )


def _head(classifier: Parameters) -> HeadConfig:
    """The head that is asked for; by default a class of each text, as on the command line, or what the class
    of a loaded model says.
    """
    head, length = classifier.head, classifier.max_length
    config = head if isinstance(head, HeadConfig) else HeadConfig(head)
    if config.kind is None and isinstance(classifier.base, str):
        config = dataclasses.replace(config, kind=CLASSIFIER)
    if config.kind not in (None, *KINDS):
        raise ConfigError(f"head {config.kind!r}; a classifier has {' or '.join(map(repr, KINDS))}")
    if length is not None:
        config = dataclasses.replace(config, max_length=length)
    if config.kind == "causal-lm" and config.max_length is not None:
        raise ConfigError(
            f"max_length={config.max_length}: for the head {CLASSIFIER!r}; for a language model use "
            "config=TrainConfig(overlong='left'), which cuts long prompts"
        )
    return config


def _adapter(classifier: Parameters, base: PreTrainedModel) -> LoraConfig:
    """The adapter that is asked for; by default the paper's, on layers that the base has."""
    adapter: LoraConfig | None = classifier.adapter
    if adapter is None:
        adapter = default_adapter_config()
        targets = usual_targets(base, sorted(adapter.target_modules or ()))
        adapter = dataclasses.replace(adapter, target_modules=list(targets))
    changed = {"r": classifier.rank, "lora_alpha": classifier.alpha}
    return dataclasses.replace(
        adapter, **{name: value for name, value in changed.items() if value is not None}
    )


def _loaded(classifier: Parameters, head: HeadConfig, num_classes: int) -> Loaded:
    fresh_head = head.kind == CLASSIFIER and head.init == "fresh"
    base, tokenizer = load_base(
        classifier.base,
        dtype=classifier.dtype,
        head=str(head.kind),
        num_labels=num_classes if fresh_head else None,
    )
    move(base, device_named(classifier.device))
    return base, tokenizer
