"""Flags out of the fields of `TrainConfig` and `LoraConfig`, and a --config file that gives any flag its
value.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from types import NoneType
from typing import TYPE_CHECKING, Any, Literal, get_args, get_origin, get_type_hints

from ...errors import ConfigError, MissingExtraError, unknown_name
from ...training.config import PAPER_BATCH_SIZES, PER_MEMBER_FIELDS, TrainConfig
from ..common import (
    NOT_GIVEN,
    Arguments,
    Parser,
    above_zero,
    count,
    flags_of,
    number,
    numbers,
    probability_below_one,
    say,
    whole,
    words,
)

if TYPE_CHECKING:
    from peft import LoraConfig
    from torch import nn
    from transformers import PreTrainedModel

LEAST_PARAMETERS = 4e8  # of a base that the preset "default" suits: 0.5B is a rounded name
TRAIN_FIELDS = tuple(field.name for field in dataclasses.fields(TrainConfig))
ADAPTER_FIELDS = ("r", "lora_alpha", "target_modules", "lora_dropout", "use_rslora", "modules_to_save")


def add_training_flags(parser: argparse.ArgumentParser, *, without: Sequence[str] = ()) -> None:
    """A flag for each field of `TrainConfig` but those named, explained by its docstring."""
    group = parser.add_argument_group(
        "training", "the fields of TrainConfig; what is not given comes from --preset"
    )
    meanings = _field_meanings()
    hints = get_type_hints(TrainConfig)
    for name in [name for name in TRAIN_FIELDS if name not in without]:
        meaning = f"{meanings[name]} ({_preset_values(name)})".replace("%", "%%")
        if hints[name] is bool:
            flag = f"--{name.replace('_', '-')}"
            group.add_argument(flag, action="store_true", default=NOT_GIVEN, help=meaning)
            continue
        parse, choices, metavar = _value_kind(name, hints[name])
        group.add_argument(
            f"--{name.replace('_', '-')}",
            type=parse,
            choices=choices,
            default=NOT_GIVEN,
            metavar=metavar,
            help=meaning,
        )


def add_adapter_flags(parser: argparse.ArgumentParser) -> None:
    """Flags for fields of `peft.LoraConfig`; the paper's adapter is the default."""
    group = parser.add_argument_group("adapter", "fields of peft.LoraConfig")
    group.add_argument(
        "--rank", type=count, dest="r", default=NOT_GIVEN, metavar="R", help="rank of A and B (default: 8)"
    )
    group.add_argument(
        "--alpha",
        type=above_zero,
        dest="lora_alpha",
        default=NOT_GIVEN,
        metavar="X",
        help="scaling is alpha / rank (default: 32)",
    )
    group.add_argument(
        "--target-modules",
        type=words,
        default=NOT_GIVEN,
        metavar="a,b",
        help="layers that get adapters (default: q_proj,v_proj, or what PEFT takes for this architecture)",
    )
    group.add_argument(
        "--lora-dropout",
        type=probability_below_one,
        default=NOT_GIVEN,
        metavar="P",
        help="dropout at the adapters' input (default: 0)",
    )
    group.add_argument(
        "--modules-to-save",
        type=words,
        default=NOT_GIVEN,
        metavar="a,b",
        help="modules that members with heads own (default: the linear layers of the base beside its body)",
    )
    group.add_argument(
        "--use-rslora", action="store_true", default=NOT_GIVEN, help="scaling is alpha / sqrt(rank)"
    )


def train_config(args: Arguments, *, default: str, task: str | None) -> TrainConfig:
    """The preset, with the flags that were given in place of its values."""
    config = preset_config(args, default=default, task=task)
    return dataclasses.replace(config, **args.given(TRAIN_FIELDS))


def preset_config(args: Arguments, *, default: str, task: str | None) -> TrainConfig:
    """The preset that was asked for; its loss is that of a language model's head, and others have one of
    their own.
    """
    config = TrainConfig.preset(args.preset or default, task=task)
    return config if args.head in (None, "causal-lm") else dataclasses.replace(config, loss="auto")


def say_small_base(args: Arguments, base: PreTrainedModel) -> None:
    """Say that the preset "default" may hardly move a base as small as this, where nothing else was given."""
    if args.preset is not None or args.given(("learning_rate",)) or base.num_parameters() >= LEAST_PARAMETERS:
        return
    rate = TrainConfig.preset("default").per_member("learning_rate", 1).item()
    say(
        f"note: this base has {base.num_parameters() / 1e6:,.1f} million parameters, and the learning rate "
        f"{rate:g} of the preset default suits 0.5B and more; if it hardly learns, try --learning-rate "
        f"{10 * rate:g}"
    )


def adapter_config(args: Arguments, base: nn.Module) -> LoraConfig:
    """The paper's adapter on layers that this base has, with the flags that were given.

    Raises:
        AdapterError: no --target-modules, and neither the paper's nor PEFT's targets are known to be in the
            base.
    """
    from ...heads.resolve import usual_targets
    from ...stack.adapters import default_adapter_config

    config = default_adapter_config()
    settings = args.given(ADAPTER_FIELDS)
    if "target_modules" not in settings:
        settings["target_modules"] = usual_targets(base, sorted(config.target_modules or ()))
    return dataclasses.replace(config, **settings)


def expand_config(parser: Parser, argv: Sequence[str]) -> list[str]:
    """The arguments with the values of a --config file put in front of the flags, which therefore win.

    Raises:
        ConfigError: a file that cannot be read, or a field that is no flag's.
        MissingExtraError: a YAML file without the extra `yaml`.
    """
    finder = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    finder.add_argument("--config", type=Path, nargs="?")
    path = finder.parse_known_args(list(argv))[0].config
    if path is None:
        return list(argv)
    flags = flags_of(parser)
    typed = {word.partition("=")[0] for word in argv}
    by_name = {name.removeprefix("--").replace("-", "_"): name for name in flags} | {
        action.dest: name for name, action in flags.items() if action.dest in ADAPTER_FIELDS
    }
    expanded, origins = [], {}
    for key, value in _read_config(path).items():
        name = by_name.get(str(key).replace("-", "_"))
        if name is None or name in ("--config", "--help"):
            raise ConfigError(
                f"{path}: {unknown_name('field', str(key), sorted(set(by_name) - {'config', 'help'}))}"
            )
        if name not in typed:
            origins[name] = f"{key} in {path}"
        expanded += _as_flag(name, flags[name], value, path)
    parser.origins = origins
    return [argv[0], *expanded, *argv[1:]]


def _as_flag(name: str, action: argparse.Action, value: Any, path: Path) -> list[str]:
    if action.nargs == 0:
        if not isinstance(value, bool):
            raise ConfigError(f"{path}: {name.removeprefix('--')} is {value!r}; it is true or false")
        return [name] if value else []
    if value is None:
        return [f"{name}=none"] if action.dest in TRAIN_FIELDS else []
    if isinstance(value, dict | bool):
        raise ConfigError(
            f"{path}: {name.removeprefix('--')} is {value!r}; it takes a text, a number or a list of these"
        )
    return [f"{name}={','.join(map(str, value)) if isinstance(value, list) else value}"]


def _read_config(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"--config {path} cannot be read: {getattr(error, 'strerror', None) or error}"
        ) from error
    content = _parse_yaml(text, path) if path.suffix.lower() in (".yaml", ".yml") else _parse_json(text, path)
    if not isinstance(content, dict):
        raise ConfigError(
            f"--config {path} holds a {type(content).__name__}; it needs fields and their values, "
            "such as epochs: 5"
        )
    return content


def _parse_json(text: str, path: Path) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"--config {path} is not JSON: {error}; for YAML, name it .yaml") from error


def _parse_yaml(text: str, path: Path) -> Any:
    try:
        import yaml
    except ImportError as error:
        message = (
            'a YAML config needs PyYAML, which is not installed; run: pip install "lora-ensembles[yaml]", '
            "or write it as .json"
        )
        raise MissingExtraError(message) from error
    try:
        return yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        # Beside what YAML calls an error: a number of 5,000 digits, and lists in lists without end.
        raise ConfigError(f"--config {path} is not YAML that can be read: {error}") from error


def _value_kind(name: str, hint: Any) -> tuple[Callable[[str], Any], tuple[str, ...] | None, str | None]:
    """The way from the text of a flag to the value of a field: parser, choices, and what the help
    calls it.
    """
    if get_origin(hint) is Literal:
        return str, get_args(hint), None
    optional = NoneType in get_args(hint)
    if name in PER_MEMBER_FIELDS:
        return _or_none(_per_member, optional), None, "X[,X...]"
    if name == "snapshot_epochs":
        return numbers, None, "N[,N...]"
    kind = next(part for part in (*get_args(hint), hint) if part in (int, float))
    parse = whole if name == "warmup_steps" else count if kind is int else number
    return _or_none(parse, optional), None, "N" if kind is int else "X"


def _per_member(text: str) -> float | list[float]:
    return [number(word) for word in words(text)] if "," in text else number(text)


def _or_none(parse: Callable[[str], Any], optional: bool) -> Callable[[str], Any]:
    def parsed(text: str) -> Any:
        return None if optional and text.lower() == "none" else parse(text)

    return parsed


def _preset_values(name: str) -> str:
    """The value of a field that is not given: the same in every preset, or by preset."""
    kinds = [("default", TrainConfig.preset("default")), ("embedded", TrainConfig.preset("embedded"))]
    values = {preset_name: getattr(config, name) for preset_name, config in kinds}
    paper = {getattr(TrainConfig.preset("paper", task=task), name) for task in PAPER_BATCH_SIZES}
    shown = {preset_name: _as_text(value) for preset_name, value in values.items()}
    shown["paper"] = " to ".join(map(_as_text, (min(paper), max(paper)) if len(paper) > 1 else paper))
    if len(set(shown.values())) == 1:
        return f"default: {shown['paper']}"
    return "presets: " + ", ".join(f"{preset_name} {text}" for preset_name, text in shown.items())


def _as_text(value: object) -> str:
    return (
        "none" if value is None or value == () else f"{value:g}" if isinstance(value, float) else str(value)
    )


def _field_meanings() -> dict[str, str]:
    """A description of each field of `TrainConfig`, from its docstring; the name alone where docstrings were
    stripped (python -OO).
    """
    arguments = (TrainConfig.__doc__ or "").partition("Args:")[2].partition("Raises:")[0]
    meanings = dict.fromkeys(TRAIN_FIELDS, "")
    for names, meaning in re.findall(r"^ {8}(\w[\w, ]*): (.*(?:\n {9,}.*)*)", arguments, flags=re.MULTILINE):
        for name in words(names):
            meanings[name] = " ".join(meaning.split())
    return meanings
