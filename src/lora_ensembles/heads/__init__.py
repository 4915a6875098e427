"""Heads: what a member says about an example: a label's tokens, a class, one option of several, or how good a text is."""

from __future__ import annotations

from ..head_config import HEAD_KINDS, HeadConfig, HeadKind
from .kinds import adapter_for, resolve_head
from .passes import Head, TextHead, head_of, states_above_trunk, text_passes, texts_log_probs
from .rewards import RewardPrediction, predict_rewards
from .table import Texts, TextTable
from .text_scores import Token, last_tokens, padding_is_read, text_scores, token_read
from .texts import encode_texts, plain_table

__all__ = [
    "HEAD_KINDS",
    "Head",
    "HeadConfig",
    "HeadKind",
    "RewardPrediction",
    "TextHead",
    "TextTable",
    "Texts",
    "Token",
    "adapter_for",
    "encode_texts",
    "head_of",
    "last_tokens",
    "padding_is_read",
    "plain_table",
    "predict_rewards",
    "resolve_head",
    "states_above_trunk",
    "text_passes",
    "text_scores",
    "texts_log_probs",
    "token_read",
]
