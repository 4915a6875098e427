"""Heads: what a member says about an example: a label's tokens, a class, one option of several, or how good a text is."""

from __future__ import annotations

from ..passes.texts import Texts, text_scores
from ..stack.head_config import HEAD_KINDS, HeadConfig, HeadKind
from .passes import (
    Head,
    TextHead,
    head_of,
    member_log_probs,
    states_above_trunk,
    text_passes,
    texts_log_probs,
)
from .resolve import adapter_for, resolve_head
from .task.encoding import encode_texts, plain_table
from .task.rewards import RewardPrediction, predict_rewards
from .task.table import TextTable

__all__ = [
    "HEAD_KINDS",
    "Head",
    "HeadConfig",
    "HeadKind",
    "RewardPrediction",
    "TextHead",
    "TextTable",
    "Texts",
    "adapter_for",
    "encode_texts",
    "head_of",
    "member_log_probs",
    "plain_table",
    "predict_rewards",
    "resolve_head",
    "states_above_trunk",
    "text_passes",
    "text_scores",
    "texts_log_probs",
]
