"""The settings of a training run, for all members or for each."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Real
from typing import TYPE_CHECKING, Any, Literal

from ..checks import number_between, real_number, whole_number
from ..errors import ConfigError, unknown_name

if TYPE_CHECKING:  # the command line makes its flags of these fields, without waiting for torch
    from torch import Tensor

PerMember = float | Sequence[float]  # one number for all members, or one for each
PER_MEMBER_FIELDS = (
    "learning_rate",
    "weight_decay_a",
    "weight_decay_b",
    "weight_decay_head",
    "kl_weight",
    "dropout",
)
OVERLONG = ("error", "left")
LOSSES = ("auto", "labels", "vocabulary")
LABEL_SCORES = ("sum", "mean")
OPTIONAL_COUNTS = ("max_rows", "max_steps", "checkpoint_every", "length_window")
SCHEDULES = ("constant", "linear", "cosine")
PAPER_BATCH_SIZES = {"cqa": 32, "obqa": 16, "arce": 16, "arcc": 16, "mmlu-ss": 8, "mmlu-stem": 8}
PRESETS = ("paper", "default", "embedded")
CHOICES = {"schedule": SCHEDULES, "overlong": OVERLONG, "loss": LOSSES, "label_score": LABEL_SCORES}


@dataclass(frozen=True)
class TrainConfig:
    """The settings of training. Every `PerMember` setting is one number for all, or a sequence with one for
    each member.

    Args:
        epochs: passes over the training data.
        batch_size: rows of one member in a step; a step computes members * batch_size rows.
        learning_rate: step size of AdamW.
        weight_decay_a, weight_decay_b: decoupled decay of the A and the B matrices; B <- B - lr * adam(g) -
            lr * decay * B (Eq. 5 of arXiv:2310.00035 as read here). learning_rate * decay must stay below 1.
        weight_decay_head: the same of the members' own heads, biases included; a causal language model's
            members have none.
        kl_weight: beta of Eq. 4, the weight of D_KL(fine-tuned || base) at the answer over the full
            vocabulary, or over classes or options where members have heads of their own, which then begin as
            the base's.
        dropout: probability of dropping a feature of the adapters' input; None takes the adapter config's
            `lora_dropout`.
        schedule: "constant", or "linear" or "cosine" to zero after `warmup_steps` of linear rise.
        warmup_steps: steps of linear rise from 0, before the schedule, as in transformers.
        cycles: times that the schedule falls to zero, and starts again.
        max_grad_norm: largest gradient norm of a member, over its own parameters; None: no clipping.
        max_rows: most rows in flight: members * batch rows, and times the texts of an example where members
            have heads of their own. A step that has more is split over members, then over rows, with the same
            result. None: no limit. When memory runs out, a run goes on with half of it by itself.
        length_window: batches of a member that share out their rows by length, so that a step holds little
            padding; each member keeps a shuffle of its own, and its weights still do not depend on its
            neighbours. 8 to 50 suit most data. None: the plain shuffle.
        snapshot_epochs: epochs after which every member's weights are kept (early stopping).
        checkpoint_every: steps between checkpoints; None: one at the end of each epoch.
        log_every: steps between rows of the log.
        overlong: what to do with a prompt longer than the base's window: "error", or "left" to cut its
            beginning.
        loss: "vocabulary", -log p(answer | prompt) over the full vocabulary (Eq. 3); "labels", -log p of the
            right label among an example's own (Eq. 1), for which every label is read and the divergence of
            `kl_weight` is over them as well, and of soft labels the cross-entropy to them; "auto" takes
            "labels" where an example has soft labels, or all have the same labels and one of these has
            several tokens, as the words of a classification do, else "vocabulary". Open answers have the
            second only; members with heads of their own have a loss over their classes or options.
            docs/data.md shows what was measured.
        label_score: how a label of several tokens counts against the others, in training over labels and in
            every prediction: by the "mean" of its tokens' log-probabilities, which does not favour short
            labels, or by their "sum" (Eq. 1). The same for labels of one token; not read where there are
            none.
        option_orders: seeded orders of each question's lettered options, of which every member takes one anew
            for every question in every epoch, so that it does not learn to favour a letter. 1: the order that
            is given. The table of rows, and what is kept of them, grow by this factor.
        data_share: share of the examples that each member is trained on, drawn by it for itself; 1: as many
            as there are, with repeats (a bootstrap sample). None: all of them.
        anchored: decays pull weights back to where the member began, not to 0 (anchored ensembles,
            arXiv:1810.05546, whose pull is a part of the loss). AdamW divides gradients by their root mean
            square r, and no decay, so a decay d of weights that N rows train is as strong as a prior of
            precision N d r.
        shared_a: all members have one A, with a B each; they must begin with the same A, as they do where
            nothing but the order varies (HydraLoRA, arXiv:2404.19245).
        max_steps: most optimiser steps: a run that has more in its epochs ends there, within an epoch or not,
            and schedules fall to zero by then. None: all of them.

    Raises:
        ConfigError: a setting is out of its range.

    Example:
        >>> TrainConfig(learning_rate=1e-3, weight_decay_b=1e3)
        Traceback (most recent call last):
        ...
        lora_ensembles.errors.ConfigError: learning_rate * weight_decay_b = 0.001 * 1000.0 = 1; it must be
            below 1, or a step ...
    """

    epochs: int = 5
    batch_size: int = 16
    learning_rate: PerMember = 2e-4
    weight_decay_a: PerMember = 0.01
    weight_decay_b: PerMember = 0.01
    weight_decay_head: PerMember = 0.01
    kl_weight: PerMember = 0.0
    dropout: PerMember | None = None
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    warmup_steps: int = 0
    cycles: int = 1
    max_grad_norm: float | None = None
    max_rows: int | None = None
    length_window: int | None = None
    snapshot_epochs: Sequence[int] = ()
    checkpoint_every: int | None = None
    log_every: int = 10
    overlong: Literal["error", "left"] = "error"
    loss: Literal["auto", "labels", "vocabulary"] = "auto"
    label_score: Literal["sum", "mean"] = "mean"
    option_orders: int = 1
    data_share: float | None = None
    anchored: bool = False
    shared_a: bool = False
    max_steps: int | None = None

    @classmethod
    def preset(cls, name: str, *, task: str | None = None) -> TrainConfig:
        """Settings to start from: the paper's own, a default for other models and data, and one for the
        embedded base.

        "paper": AdamW with decay 0.01, constant step size 5e-5, 20 epochs, batch 32 (cqa), 16 (obqa, arce,
        arcc) or 8 (mmlu), the loss of Eq. 3 and the scores of Eq. 1: Sec. 5.1 of arXiv:2310.00035, for its
        six tasks only. "default": what works for most models of 0.5B parameters and more on a few thousand
        examples: 5 epochs at 2e-4 with a linear fall, clipped gradients, and a decay of B of 25, so that a
        step decays B by the same 0.5 % as the paper's mildest setting (5e-5 * 1e2). "embedded": the embedded
        base is far smaller than those, and takes a step size of 2e-3.

        Args:
            name: "paper", "default" or "embedded".
            task: one of the paper's, for "paper".

        Raises:
            ConfigError: an unknown name, or "paper" for a task that is not the paper's.

        Example:
            >>> TrainConfig.preset("paper", task="cqa").batch_size
            32
        """
        if name == "paper":
            if task not in PAPER_BATCH_SIZES:
                raise ConfigError(
                    f"the paper has no settings for {task!r}, only for {', '.join(PAPER_BATCH_SIZES)}; "
                    "use the preset 'default'"
                )
            return cls(
                epochs=20,
                batch_size=PAPER_BATCH_SIZES[task],
                learning_rate=5e-5,
                loss="vocabulary",
                label_score="sum",
            )
        if name == "default":
            return cls(
                epochs=5,
                learning_rate=2e-4,
                weight_decay_b=25.0,
                schedule="linear",
                warmup_steps=20,
                max_grad_norm=1.0,
            )
        if name == "embedded":
            return cls(epochs=15, learning_rate=2e-3)
        raise ConfigError(unknown_name("preset", name, PRESETS))

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "cycles", "log_every", "option_orders", *OPTIONAL_COUNTS):
            if getattr(self, name) is not None or name not in OPTIONAL_COUNTS:
                self._set(name, whole_number(name, getattr(self, name)))
        for name, choices in CHOICES.items():
            if getattr(self, name) not in choices:
                raise ConfigError(unknown_name(name, str(getattr(self, name)), choices))
        if self.data_share is not None:
            self._set("data_share", number_between("data_share", self.data_share, above=0, most=1))
        for name in ("anchored", "shared_a"):
            if not isinstance(getattr(self, name), bool):
                raise ConfigError(f"{name}={getattr(self, name)!r}; it is True or False")
        self._set("warmup_steps", whole_number("warmup_steps", self.warmup_steps, least=0))
        if self.max_grad_norm is not None:
            norm = real_number("max_grad_norm", self.max_grad_norm)
            if not norm > 0:
                raise ConfigError(f"max_grad_norm={norm}; it is a number above 0, or None for no clipping")
            self._set("max_grad_norm", norm)
        epochs = self.snapshot_epochs
        listed = epochs if isinstance(epochs, list | tuple | range) else [epochs]
        late = [epoch for epoch in listed if epoch not in range(1, self.epochs + 1)]
        if late or listed is not epochs:
            raise ConfigError(
                f"snapshot_epochs={epochs!r}; it is a list of epochs, and the run has epochs 1 "
                f"to {self.epochs}"
            )
        kind = list if isinstance(epochs, list) else tuple
        self._set("snapshot_epochs", kind(int(epoch) for epoch in epochs))
        self._check_ranges()

    def _set(self, name: str, value: object) -> None:
        # numpy's numbers become Python's, which JSON knows.
        object.__setattr__(self, name, value)

    def _check_ranges(self) -> None:
        for name in PER_MEMBER_FIELDS:
            value = _plain(name, getattr(self, name))
            for number in _values(value):
                number_between(name, number, least=0)
            self._set(name, value)
        if any(value >= 1 for value in _values(self.dropout)):
            raise ConfigError(f"dropout={self.dropout}; it is a probability below 1")
        for name in ("weight_decay_a", "weight_decay_b"):
            self.check_decay(name)

    def check_decay(self, name: str) -> None:
        """Refuse a decay that is too large for the learning rate; that of heads is checked where members have
        them.

        Raises:
            ConfigError: as it says.
        """
        for rate, decay in _pairs(self.learning_rate, getattr(self, name)):
            if rate * decay >= 1:
                raise ConfigError(
                    f"learning_rate * {name} = {rate} * {decay} = {rate * decay:g}; "
                    "it must be below 1, or a step of decay turns the weights' sign; lower one of them"
                )

    def per_member(self, name: str, members: int, *, default: float = 0.0) -> Tensor:
        """The values (M,) of a per-member setting.

        Raises:
            ConfigError: a sequence does not have one value for each member.
        """
        import torch

        value = getattr(self, name)
        if value is None or isinstance(value, int | float):
            return torch.full((members,), default if value is None else float(value))
        if len(value) != members:
            raise ConfigError(
                f"{name} has {len(value)} values for {members} members; "
                "give one number, or one for each member"
            )
        return torch.tensor([float(number) for number in value])

    def to_dict(self) -> dict[str, Any]:
        """The settings as plain JSON-able values."""
        return {
            name: list(value) if isinstance(value, tuple | list) else value
            for name, value in dataclasses.asdict(self).items()
        }


def _plain(name: str, value: Any) -> PerMember | None:
    """A per-member setting of plain numbers: one, or a list; arrays become lists."""
    # Read from a YAML file, 1e-3 is a text: YAML 1.1 wants 1.0e-3.
    needed = "it is a number, or a list with one for each member"
    if value is None and name == "dropout":
        return None
    if getattr(value, "ndim", 0) == 1 and hasattr(value, "tolist"):
        value = value.tolist()
    if not isinstance(value, list | tuple):
        return real_number(name, value, needed=needed)
    for number in value:
        if isinstance(number, bool) or not isinstance(number, Real):
            raise ConfigError(f"{name}={value!r}; {needed}")
    return type(value)(float(number) for number in value)


def _values(value: PerMember | None) -> list[float]:
    if value is None:
        return []
    return [float(value)] if isinstance(value, int | float) else [float(number) for number in value]


def _pairs(first: PerMember, second: PerMember) -> list[tuple[float, float]]:
    left, right = _values(first), _values(second)
    if len(left) == len(right):
        return list(zip(left, right, strict=True))
    return [(first_value, second_value) for first_value in left for second_value in right]


def schedule_factor(config: TrainConfig, step: int, total: int) -> float:
    """The multiple of the learning rate at `step` of `total` steps, counted from 0: that of transformers'
    schedule of the same name.

    It is step / warmup_steps during the warm-up, so the first step of a warm-up changes no weight.

    Example:
        >>> config = TrainConfig(schedule="linear", warmup_steps=2)
        >>> [schedule_factor(config, step, 6) for step in range(6)]
        [0.0, 0.5, 1.0, 0.75, 0.5, 0.25]
    """
    if step < config.warmup_steps:
        return step / config.warmup_steps
    done = (step - config.warmup_steps) / max(1, total - config.warmup_steps)
    done = done * config.cycles % 1.0
    if config.schedule == "linear":
        return 1 - done
    if config.schedule == "cosine":
        return 0.5 * (1 + math.cos(math.pi * done))
    return 1.0
