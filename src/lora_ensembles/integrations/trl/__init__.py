"""An ensemble of reward models as a reward function of TRL's trainers."""

from __future__ import annotations

from .rewards import reward_function

__all__ = ["reward_function"]
