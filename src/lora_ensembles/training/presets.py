"""Settings to start from: the paper's own, a default for other models and data, and one for the embedded base."""

from __future__ import annotations

from ..errors import ConfigError, unknown_name
from .config import TrainConfig

PAPER_BATCH_SIZES = {"cqa": 32, "obqa": 16, "arce": 16, "arcc": 16, "mmlu-ss": 8, "mmlu-stem": 8}
PRESETS = ("paper", "default", "embedded")


def preset(name: str, *, task: str | None = None) -> TrainConfig:
    """A `TrainConfig` by name.

    "paper": AdamW with decay 0.01, constant step size 5e-5, 20 epochs, batch 32 (cqa), 16 (obqa, arce, arcc) or 8 (mmlu), the loss of
    Eq. 3 and the scores of Eq. 1: Sec. 5.1 of arXiv:2310.00035, for its six tasks only. "default": what works for most models of 0.5B
    parameters and more on a few thousand examples: 5 epochs at 2e-4 with a linear fall, clipped gradients, and a decay of B of 25, so
    that a step decays B by the same 0.5 % as the paper's mildest setting (5e-5 * 1e2). "embedded": the embedded base is far smaller
    than those, and takes a step size of 2e-3.

    Raises:
        ConfigError: an unknown name, or "paper" for a task that is not the paper's.

    Example:
        >>> preset("paper", task="cqa").batch_size
        32
    """
    if name == "paper":
        if task not in PAPER_BATCH_SIZES:
            raise ConfigError(
                f"the paper has no settings for {task!r}, only for {', '.join(PAPER_BATCH_SIZES)}; use the preset 'default'"
            )
        return TrainConfig(
            epochs=20,
            batch_size=PAPER_BATCH_SIZES[task],
            learning_rate=5e-5,
            loss="vocabulary",
            label_score="sum",
        )
    if name == "default":
        return TrainConfig(
            epochs=5,
            learning_rate=2e-4,
            weight_decay_b=25.0,
            schedule="linear",
            warmup_steps=20,
            max_grad_norm=1.0,
        )
    if name == "embedded":
        return TrainConfig(epochs=15, learning_rate=2e-3)
    raise ConfigError(unknown_name("preset", name, PRESETS))
