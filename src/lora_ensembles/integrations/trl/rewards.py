"""Rewards for TRL's online trainers: the members' mean less a multiple of their spread."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ...data.inputs import as_prompts
from ...data.preferences import chat_text
from ...ensemble import LoraEnsemble
from ...errors import ConfigError, DataError
from ...heads import predict_rewards

Chat = Sequence[Mapping[str, Any]]


def reward_function(
    ensemble: LoraEnsemble, *, k: float = 1.0, centred: bool = False, max_rows: int | None = None
) -> Callable[..., list[float]]:
    """A function for `reward_funcs` of TRL's `GRPOTrainer` and others: the lower bound mean - k * std of the
    members' rewards for a prompt with its completion.

    A policy that is trained on one reward model learns to please its mistakes; where the members disagree,
    the lower bound pays less.

    Args:
        ensemble: members with reward heads. The trainer's own model must be another one: the ensemble's base
            carries its members.
        k: of the standard deviation over members, which is 0 for a single one.
        centred: subtract each member's mean over the completions of one prompt first. Pairs leave a member's
            offset open, and the standard deviation holds the offsets otherwise. For trainers that compare
            several completions of a prompt, as GRPO does; a prompt's only completion gets 0.
        max_rows: as in `predict_rewards`.

    Returns:
        A function of prompts and completions, texts or chats, which ignores what else a trainer passes. Chats
        are rendered by the ensemble's tokenizer.

    Raises:
        ConfigError: the ensemble is no reward model.

    Example:
        >>> from lora_ensembles import load_base
        >>> base, tokenizer = load_base("embedded", head="sequence-classification", num_labels=1)
        >>> reward = reward_function(LoraEnsemble(base, tokenizer, num_members=3), k=0.5)
        >>> reward.__name__, len(reward(prompts=["Otters"], completions=[" live in lakes."]))
        ('lora_ensemble_reward', 1)
    """
    if ensemble.info.head.kind != "reward":
        raise ConfigError(
            f"reward_function: members with {ensemble.info.head.kind} heads give no rewards; train with "
            "HeadConfig('reward')"
        )

    def lora_ensemble_reward(
        prompts: Sequence[str | Chat], completions: Sequence[str | Chat], **_others: Any
    ) -> list[float]:
        pairs = zip(prompts, completions, strict=True)
        texts = [_text(ensemble, prompt, completion) for prompt, completion in pairs]
        rewards = predict_rewards(ensemble, texts, max_rows=max_rows)
        if centred:
            rewards = rewards.centred([repr(prompt) for prompt in prompts])
        bound: list[float] = rewards.lower_bound(k).tolist()
        return bound

    return lora_ensemble_reward


def _text(ensemble: LoraEnsemble, prompt: str | Chat, completion: str | Chat) -> str:
    """A prompt with its completion as in the ensemble's training."""
    if isinstance(prompt, str) and isinstance(completion, str):
        return prompt + completion
    if isinstance(prompt, str) or isinstance(completion, str):
        raise DataError("a prompt and its completion are both texts, or both lists of messages")
    (chat,) = as_prompts([[*prompt, *completion]])
    assert not isinstance(chat, str)
    return chat_text(chat, ensemble.tokenizer, where="reward_function")
