"""Heads, which say what a member predicts for an example: a label's tokens, a class, one option of several,
or how good a text is.
"""

from __future__ import annotations

from ..stack.head_config import HEAD_KINDS, HeadConfig, HeadKind
from .base import Head, TrainingRows
from .registry import head_of, label_mass, member_log_probs
from .resolve import adapter_for, resolve_head
from .task.rewards import predict_rewards

__all__ = [
    "HEAD_KINDS",
    "Head",
    "HeadConfig",
    "HeadKind",
    "TrainingRows",
    "adapter_for",
    "head_of",
    "label_mass",
    "member_log_probs",
    "predict_rewards",
    "resolve_head",
]
