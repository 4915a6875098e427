"""Settings of Hugging Face's `generate` that cannot work, refused by name before a token is written."""

from __future__ import annotations

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
