"""Names that differ between the releases of the libraries that pyproject.toml admits."""

from __future__ import annotations

import dataclasses

from transformers.modeling_outputs import CausalLMOutputWithPast

CACHE = (
    "cache"
    if "cache" in {field.name for field in dataclasses.fields(CausalLMOutputWithPast)}
    else "past_key_values"
)
"""The name of the key-value cache among a model's arguments and outputs: `past_key_values` before
transformers 5.24."""
