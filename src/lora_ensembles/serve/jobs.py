"""One request on its way through the models: what it asks, and what comes back, in plain Python values."""

from __future__ import annotations

import time
from concurrent.futures import Future
from dataclasses import dataclass, field

from ..data import Example
from .catalogue import ServedModel
from .settings import Guarantees


@dataclass(frozen=True)
class Questions:
    """Questions with options, or texts with classes, and the guarantees about their answers."""

    examples: tuple[Example, ...]
    guarantees: Guarantees = field(default_factory=Guarantees)

    def __len__(self) -> int:
        return len(self.examples)


@dataclass(frozen=True)
class Texts:
    """Texts that a reward model scores."""

    texts: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.texts)


@dataclass(frozen=True)
class Answered:
    """The answer to one question, its options in the question's own order.

    Attributes:
        probs: the calibrated probability of each option.
        members: the same of each member, before calibration.
        uncertainty: total, aleatoric and epistemic, in nats, of the members before calibration.
        abstain: whether the ensemble abstains at the risk asked for; None: not asked for, or not calibrated.
        inside: which options are in the prediction set; None: not asked for, or not calibrated.
    """

    probs: list[float]
    members: list[list[float]]
    uncertainty: dict[str, float]
    abstain: bool | None = None
    inside: list[bool] | None = None

    @property
    def best(self) -> int:
        """The index of the most probable option; the first of them on a tie."""
        return self.probs.index(max(self.probs))


@dataclass(frozen=True)
class Scored:
    """The reward of one text: its mean and standard deviation over the members, and each member's."""

    mean: float
    std: float
    members: list[float]

    def lower_bound(self, k: float) -> float:
        """mean - k * std."""
        return self.mean - k * self.std


@dataclass(frozen=True)
class Outcome:
    """The results of a request: one for each question or text, the tokens that were read of it, and the
    seconds that it waited and was computed.
    """

    results: list[Answered] | list[Scored]
    tokens: int
    waited: float = 0.0
    computed: float = 0.0


@dataclass(eq=False)
class Job:
    """A request that waits for the models; its future gets the outcome, or the error."""

    model: ServedModel
    work: Questions | Texts
    future: Future[Outcome] = field(default_factory=Future)
    since: float = field(default_factory=time.monotonic)
