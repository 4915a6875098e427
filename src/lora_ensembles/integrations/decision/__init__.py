"""A member as a model of transformers' decision pipeline."""

from __future__ import annotations

from .export import export_decision

__all__ = ["export_decision"]
