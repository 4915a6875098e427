"""Settings of the members' head, which are read without waiting for torch."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

from ..errors import ConfigError, unknown_name

HeadKind = Literal["causal-lm", "sequence-classification", "multiple-choice", "reward"]
HEAD_KINDS: tuple[HeadKind, ...] = get_args(HeadKind)
HeadInit = Literal["fresh", "base"]
LabelScore = Literal["sum", "mean"]  # of a label's tokens


@dataclass(frozen=True)
class HeadConfig:
    """The settings of a head: what members say about an example, and where their heads come from.

    Attributes:
        kind: "causal-lm": the label's tokens, no head of their own. "sequence-classification": a class of
            each text, or pair of texts. "multiple-choice": each (question, option) pair gets one score, with
            a softmax over the options. "reward": each text gets one score, learnt from chosen and rejected
            texts. None: what the base's class is; a classifier with one label is a reward model.
        init: where members' heads begin: "fresh" draws each by the base's own initialisation from the
            member's init seed; "base" copies the base's head, for a classifier that is trained already, and
            makes `kl_weight` mean something.
        max_length: most tokens of a text, or pair of texts; None: the base's window.
        classes: names of the classes, in the order of the scores; taken from the training examples.

    Raises:
        ConfigError: an unknown kind or init, or a length below 1.

    Example:
        >>> HeadConfig("reward", max_length=512).init
        'fresh'
    """

    kind: HeadKind | None = None
    init: HeadInit = "fresh"
    max_length: int | None = None
    classes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.kind is not None and self.kind not in HEAD_KINDS:
            raise ConfigError(unknown_name("head", str(self.kind), HEAD_KINDS))
        if self.init not in get_args(HeadInit):
            raise ConfigError(unknown_name("head init", str(self.init), get_args(HeadInit)))
        if self.max_length is not None and (not isinstance(self.max_length, int) or self.max_length < 1):
            raise ConfigError(
                f"max_length={self.max_length!r}; it is a whole number of tokens, "
                "or None for the base's window"
            )

    @property
    def owned(self) -> bool:
        """Whether each member has a head of its own."""
        return self.kind != "causal-lm"

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON-able values."""
        return asdict(self) | {"classes": list(self.classes)}
