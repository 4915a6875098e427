"""The settings of a server, and the keys that it lets in."""

from __future__ import annotations

import os
from dataclasses import dataclass, field, fields
from pathlib import Path

from ..checks import check_share
from ..errors import ConfigError, DataError

KEYS_VARIABLE = "LORA_ENSEMBLES_API_KEYS"
MOST_QUESTIONS = 400  # of OpenAI's Decisions API


@dataclass(frozen=True)
class Limits:
    """The most that one request may ask, and that may wait.

    Attributes:
        body_bytes: of a request's body.
        questions: of a request: questions of a case, texts or documents.
        prompt_chars: of the text of one question, its state included.
        waiting: requests that wait for the models, and texts that are written or wait; the next is turned
            away.
        new_tokens: of a text that is written.
        seconds: that a request may wait and compute, and between two tokens of a stream.
    """

    body_bytes: int = 2**20
    questions: int = MOST_QUESTIONS
    prompt_chars: int = 100_000
    waiting: int = 256
    new_tokens: int = 1024
    seconds: float = 60.0

    def __post_init__(self) -> None:
        for one in fields(self):
            value = getattr(self, one.name)
            if not value > 0:
                raise ConfigError(f"{one.name}={value:g}; it is above 0")


@dataclass(frozen=True)
class Batching:
    """The way in which requests are predicted together.

    Attributes:
        questions: the most in one prediction, unless one request alone has more.
        wait: seconds that a request waits for others while nothing else is computed.
        max_rows: the most rows (members * questions) in one forward pass; None: what suits the machine.
    """

    questions: int = 64
    wait: float = 0.002
    max_rows: int | None = None

    def __post_init__(self) -> None:
        if self.wait < 0:
            raise ConfigError(f"wait={self.wait:g}; it is 0 seconds or more")
        if self.questions < 1:
            raise ConfigError(f"questions={self.questions}; at least one is predicted at a time")


@dataclass(frozen=True)
class Guarantees:
    """The guarantees about answers that a request may ask for: `risk` the largest share of wrong answers
    among those given, `coverage` the probability with which a set of options holds the right one; None: not
    asked for.

    Raises:
        ConfigError: a number that is not between 0 and 1.
    """

    risk: float | None = None
    coverage: float | None = None

    def __post_init__(self) -> None:
        for one in fields(self):
            value = getattr(self, one.name)
            if value is not None:
                check_share(one.name, value)

    def over(self, other: Guarantees) -> Guarantees:
        """These, with the other's in place of those that are not asked for."""
        return Guarantees(
            other.risk if self.risk is None else self.risk,
            other.coverage if self.coverage is None else self.coverage,
        )


@dataclass(frozen=True)
class Settings:
    """The settings of the HTTP side.

    Attributes:
        limits: of each request.
        guarantees: where a request asks for none.
        keys: that let a request in; none: everybody is let in.
        origins: of pages that browsers may call the server from.
        log_prompts: whether the log of requests holds what was asked.
    """

    limits: Limits = field(default_factory=Limits)
    guarantees: Guarantees = field(default_factory=Guarantees)
    keys: tuple[str, ...] = ()
    origins: tuple[str, ...] = ()
    log_prompts: bool = False


def read_keys(path: Path | None) -> tuple[str, ...]:
    """The keys of a file, one a line, and those of the environment, with commas between.

    Empty lines, and those that begin with #, are no keys.

    Raises:
        DataError: the file cannot be read, or holds no key.
    """
    keys = [key.strip() for key in os.environ.get(KEYS_VARIABLE, "").split(",")]
    if path is not None:
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or "it is not UTF-8"
            raise DataError(f"{path}: the keys cannot be read: {reason}") from None
        held = [line.strip() for line in lines if line.strip() and not line.strip().startswith("#")]
        if not held:
            raise DataError(f"{path}: no keys; give one a line")
        keys += held
    return tuple(dict.fromkeys(key for key in keys if key))
