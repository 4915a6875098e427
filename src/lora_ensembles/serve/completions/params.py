"""The settings of a text, and the tokens that it is made of."""

from __future__ import annotations

from dataclasses import dataclass

MOST_TOP = 20  # top log-probabilities of a token, as in OpenAI's API


@dataclass(frozen=True)
class SamplingParams:
    """The settings of a text.

    Attributes:
        max_tokens: the most tokens.
        temperature: of the probabilities that tokens are drawn from; below 0.001 the most probable is taken.
        top_p: tokens are drawn from the most probable ones that together have this probability.
        seed: of drawing; None: another one each time.
        stop: texts that end the text, and are not part of it.
        top: how many of the most probable tokens are reported in each place, 0 to 20.
    """

    max_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    top: int = 0


@dataclass(frozen=True)
class CompletionToken:
    """A token of a text that is being written.

    Attributes:
        token: its number.
        piece: the text that it adds; a character of several tokens belongs to its last.
        released: the text that may be shown after it, without what may still turn out to be a stop text.
        log_prob: under the ensemble, or under the one member that writes, before temperature, in nats.
        top: the most probable tokens in its place, with their log-probabilities, the most probable first.
        members: its log-probability under each member.
        uncertainty: total, aleatoric and epistemic, in nats, and agreement, 0 to 1; see `TokenUncertainty`.
    """

    token: int
    piece: str
    released: str
    log_prob: float
    top: tuple[tuple[int, float], ...]
    members: tuple[float, ...]
    uncertainty: dict[str, float]
