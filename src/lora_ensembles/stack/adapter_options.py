"""The options in an `adapter_config.json`: values of the types that PEFT's options have, which PEFT itself
does not check.
"""

from __future__ import annotations

from pathlib import Path

from ..disk.schema import (
    check,
    either,
    list_of,
    nullable,
    number,
    object_of,
    pattern,
    read_json,
    record,
    text,
    truth,
    whole,
)

LARGEST_RANK = 2**20
_NAMES = either(list_of(text), text)
OPTIONS = record(
    {},
    {
        "peft_type": text,
        "task_type": nullable(text),
        "base_model_name_or_path": nullable(text),
        "revision": nullable(text),
        "r": whole(1, LARGEST_RANK),
        "lora_alpha": number(),
        "lora_dropout": number(0, 1),
        "target_modules": nullable(_NAMES),
        "exclude_modules": nullable(_NAMES),
        "modules_to_save": nullable(list_of(text)),
        "fan_in_fan_out": truth,
        "use_rslora": truth,
        "use_dora": truth,
        "bias": text,
        "init_lora_weights": either(truth, text),
        "layers_to_transform": nullable(either(list_of(whole()), whole())),
        "layers_pattern": nullable(_NAMES),
        "rank_pattern": nullable(object_of(whole(1, LARGEST_RANK), names=pattern)),
        "alpha_pattern": nullable(object_of(number(), names=pattern)),
    },
    others=True,  # PEFT has many more options; what cannot be stacked among them is refused by name
)


def check_adapter_options(file: Path) -> None:
    """Make sure that PEFT can make a config of a file, and that the config's numbers can be computed with.

    Raises:
        CheckpointError: the file cannot be read, or holds a value of another type.
    """
    check(read_json(file), OPTIONS, file=file, advice="save or download the adapter again")
