"""An endpoint plugin of vLLM that answers decisions with LoRA ensembles."""

from __future__ import annotations

from .plugin import DecisionsPlugin

__all__ = ["DecisionsPlugin"]
