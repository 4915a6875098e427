"""Which shortcuts a model's forward pass may take: those that were tried on it and gave what the whole pass
gives.
"""

from __future__ import annotations

from dataclasses import dataclass
from weakref import WeakKeyDictionary

from torch import nn

FAILURES = (RuntimeError, TypeError, ValueError, LookupError, AttributeError, AssertionError)
"""What somebody's model may raise where something is tried on it that it is not made for."""


@dataclass(frozen=True)
class Shortcuts:
    """Whether a pass may leave out what no logit that is asked for depends on.

    Attributes:
        narrowed: the last layer computes at the places that are read only.
        prefix: rows go on from keys and values of their common beginning, which is read once.
        branches: a row holds a prompt and several continuations of it; see `branches`.
    """

    narrowed: bool = False
    prefix: bool = False
    branches: bool = False


NONE = Shortcuts()
ALL = Shortcuts(narrowed=True, prefix=True, branches=True)
_ALLOWED: WeakKeyDictionary[nn.Module, Shortcuts] = WeakKeyDictionary()


def shortcuts_of(model: nn.Module) -> Shortcuts:
    """The shortcuts allowed for a model; none for one on which nothing was tried."""
    return _ALLOWED.get(model, NONE)


def were_tried(model: nn.Module) -> bool:
    """Whether it was tried which shortcuts a model may take."""
    return model in _ALLOWED


def forget(model: nn.Module) -> None:
    """Take back what was allowed: the model is another one now."""
    _ALLOWED.pop(model, None)


def allow(model: nn.Module, shortcuts: Shortcuts) -> None:
    """Let the passes of a model take these shortcuts from now on, and no others."""
    _ALLOWED[model] = shortcuts
