"""The context that the stacked layers of one ensemble share during a forward pass; nothing outside of this
room writes to it.

Shapes: M members, B rows of a member.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

ALL_MEMBERS = slice(None)


@dataclass
class ForwardContext:
    """The rows of the running forward pass, whose they are, and what is dropped in it."""

    enabled: bool = True  # off: the layers are the base's own
    tokens: int | None = None  # rows * tokens of the running forward pass; None outside of one
    rows: int = 1  # rows of the running forward pass, over its members
    groups: int = 1  # members of the running forward pass
    members: slice = field(default_factory=lambda: ALL_MEMBERS)  # the members whose rows the batch holds
    dropout: Tensor | None = (
        None  # (M,) probability of dropping a feature of the adapters' input; None: no dropout
    )
    dropout_keys: Sequence[int] = ()  # one random stream per member
    sign_keys: Sequence[int] = ()  # one random stream of signs per member, where A is perturbed
    sign_gradient: Tensor = field(default_factory=lambda: torch.empty(0))  # (M, P_a) of the perturbation
    row_numbers: Tensor | None = (
        None  # (M, rows of a member) where they stand in the members' batches; None: from 0, in order
    )

    def running(
        self,
        *,
        rows: int,
        tokens: int,
        groups: int,
        members: slice = ALL_MEMBERS,
        row_numbers: Tensor | None = None,
    ) -> AbstractContextManager[None]:
        """Context in which a forward pass over `rows` rows of `tokens` tokens in all runs, those of `groups`
        members.
        """
        return _Running(self, (rows, tokens, members, groups, row_numbers))

    @contextmanager
    def dropping(self, probability: Tensor, keys: Sequence[int]) -> Iterator[None]:
        """Context in which features of the adapters' inputs are dropped, with a probability (M,) and a random
        stream for each member.
        """
        self.dropout, self.dropout_keys = probability, keys
        try:
            yield
        finally:
            self.dropout = None

    @contextmanager
    def disabled(self) -> Iterator[None]:
        """Context in which the layers are the base's own."""
        before, self.enabled = self.enabled, False
        try:
            yield
        finally:
            self.enabled = before

    def remembered(self) -> AbstractContextManager[None]:
        """Context in which a part of the pass that runs now runs once more, later."""
        then = replace(self)

        @contextmanager
        def again() -> Iterator[None]:
            now = replace(self)
            vars(self).update(vars(then))
            try:
                yield
            finally:
                vars(self).update(vars(now))

        return again()


class _Running:
    """Context in which a context describes a pass. A class, because torch.compile of torch 2.6 looks into no
    generator.
    """

    def __init__(self, context: ForwardContext, described: tuple[Any, ...]):
        self.context, self.described = context, described

    def _swap(self) -> None:
        context, new = self.context, self.described
        self.described = (
            context.rows, context.tokens, context.members, context.groups, context.row_numbers,
        )  # fmt: skip
        (
            context.rows, context.tokens, context.members, context.groups, context.row_numbers,
        ) = new  # fmt: skip

    def __enter__(self) -> None:
        self._swap()

    def __exit__(self, *_error: object) -> None:
        self._swap()
