"""Settings and inputs of Hugging Face's `generate`: settings that cannot work are refused by name before a
token is written.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import GenerationConfig

from ..checks import number_between, whole_number
from ..errors import ConfigError

# Ranges of the fields, as the decoding means them; transformers lets most of them pass.
RANGES = {
    "temperature": {"above": 0.0},
    "top_p": {"above": 0.0, "most": 1.0},
    "min_p": {"least": 0.0, "most": 1.0},
    "typical_p": {"above": 0.0, "most": 1.0},
    "repetition_penalty": {"above": 0.0},
}
COUNTS = {"top_k": 0, "max_new_tokens": 1, "min_new_tokens": 0, "num_beams": 1, "num_return_sequences": 1}


def checked(config: GenerationConfig, batch_size: int) -> GenerationConfig:
    """The settings, whose numbers are in their ranges and which fit each other.

    Raises:
        ConfigError: a number out of its range, an empty stop string, or settings that contradict each other.

    Example:
        >>> checked(GenerationConfig(do_sample=True, top_p=2.0), 8)
        Traceback (most recent call last):
        ...
        lora_ensembles.errors.ConfigError: top_p=2.0; it is a number above 0 and at most 1
    """
    whole_number("batch_size", batch_size)
    for name, least in COUNTS.items():
        if getattr(config, name, None) is not None:
            whole_number(name, getattr(config, name), least=least)
    for name, bounds in RANGES.items():
        if getattr(config, name, None) is not None:
            number_between(name, getattr(config, name), **bounds)
    stops = () if config.stop_strings is None else config.stop_strings
    if "" in ([stops] if isinstance(stops, str) else stops):
        raise ConfigError("stop_strings holds an empty text, behind which every text would end; leave it out")
    try:
        config.validate(strict=True)
    except ValueError as error:
        raise ConfigError(f"these settings of generate do not fit each other: {error}") from error
    return config


def end_ids(*given: int | Sequence[int] | None) -> frozenset[int]:
    """The end-of-sequence tokens of the first setting that names any; none where none does.

    Example:
        >>> end_ids(None, 2), sorted(end_ids([3, 1], 2)), end_ids(None)
        (frozenset({2}), [1, 3], frozenset())
    """
    found = next((one for one in given if one is not None), ())
    return frozenset((found,) if isinstance(found, int) else found)


def left_padded(
    prompts: Sequence[Sequence[int]], pad_id: int, *, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Prompts of token ids as rows that end together, and their attention mask, both (B, T).

    Example:
        >>> ids, mask = left_padded([[5, 6], [7]], 0, device=torch.device("cpu"))
        >>> ids.tolist(), mask.tolist()
        ([[5, 6], [0, 7]], [[1, 1], [0, 1]])
    """
    length = max(map(len, prompts))
    ids = [[pad_id] * (length - len(row)) + list(row) for row in prompts]
    mask = [[0] * (length - len(row)) + [1] * len(row) for row in prompts]
    return torch.tensor(ids, device=device), torch.tensor(mask, device=device)
