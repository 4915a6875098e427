"""What a LoRA ensemble is compared with; each is a `Predictor`."""

from __future__ import annotations

from .few_shot import FewShot

__all__ = ["FewShot"]
