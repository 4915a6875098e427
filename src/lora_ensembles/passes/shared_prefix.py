"""The members of a stack reading the same rows: in scoring, where every member is asked the same questions.

Shapes: M members, B rows of a batch, T tokens, K answer positions, V vocabulary, H hidden size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..distributed.lockstep import ran_out_of_memory
from ..errors import ConfigError
from ..stack.buffers import AdapterStack
from ..stack.dropout import stream_key
from .answer_positions import Prefix, answer_logits, logits_at, read_prefix
from .branches import Branches, arguments_of, can_branch
from .decoder import Places, Trunk, in_place_of_trunk
from .hooks import one_pass
from .memory import with_fewer_rows
from .trunk_states import KeptStates, states_of_pass

AnswerLogits = Callable[[Tensor, Tensor], Tensor]  # ids (B, T), positions (B, K) -> logits (M, B, K, V)
# Prefixes (P, T) -> the logits of B rows that go on from them, B a multiple of P, row by row; None where a
# model cannot be read in parts.
ReadPrefix = Callable[[Tensor], AnswerLogits | None]
# Rows (B, T) that hold several continuations each, and n places of them -> the logits (M, n, V); None where a
# model cannot read such rows.
ReadBranches = Callable[[Tensor, Places, Branches], Tensor | None]


def context_window(base: nn.Module) -> int | None:
    """The number of tokens that the base can see at once, where its config says it."""
    whole: Any = base.config
    for config in (whole, whole.get_text_config()):  # of a model that sees as well, the part that reads
        for name in ("max_position_embeddings", "n_positions", "max_seq_len"):
            value = getattr(config, name, None)
            if isinstance(value, int) and value > 0:
                return value
    return None


@dataclass(frozen=True)
class BaseRows:
    """The passes of a base without adapters, as those of one member."""

    base: nn.Module
    rows: int

    def answer_logits(self, ids: Tensor, positions: Tensor) -> Tensor:
        """Next-token logits (1, B, K, V) at `positions` (B, K) of right-padded `ids` (B, T)."""
        return answer_logits(self.base, ids, positions)[None]

    def read_prefix(self, ids: Tensor) -> AnswerLogits | None:
        """The logits of rows that go on from `ids` (B, T); see `ReadPrefix`."""
        prefix = read_prefix(self.base, ids)
        return (
            None
            if prefix is None
            else lambda rows, positions: answer_logits(self.base, rows, positions, after=prefix)[None]
        )

    def read_branches(self, ids: Tensor, places: Places, branches: Branches) -> Tensor | None:
        """The logits (1, n, V) at places of rows `ids` (B, T) that hold several continuations; see
        `ReadBranches`.
        """
        if not can_branch(self.base, ids.shape[1]):
            return None
        return logits_at(self.base, ids, places, branches=branches)[None]


# A pass's B rows by names that tell them from others, in whatever batch they are read.
Names = Callable[[], Sequence[Sequence[int]]]


@dataclass(frozen=True)
class SharedRows:
    """The passes in which all members read the same rows, at most `members_at_once` of them at a time.

    `members` are those that read. Where there is a `trunk`, below the first adapted layer, it reads the rows
    once for all members, and once for all passes over the same rows where its states are `kept`.
    """

    base: nn.Module
    stack: AdapterStack
    members: range
    trunk: Trunk | None
    members_at_once: int
    kept: KeptStates | None

    @property
    def rows(self) -> int:
        """Rows of a member in a pass: one where more would change what the base makes of each."""
        return 1 if self.stack.by_batch else max(1, self.members_at_once // len(self.members))

    def groups(self) -> list[range]:
        """The members of each pass."""
        size = max(1, self.members_at_once)
        return [self.members[first : first + size] for first in range(0, len(self.members), size)]

    def running(self, group: range, ids: Tensor, names: Names | None) -> AbstractContextManager[None]:
        """Context in which a group of members reads rows of ids (B, T)."""
        rows = len(group) * ids.shape[0]
        whole = len(group) == self.stack.num_members
        members = slice(None) if whole else slice(group.start, group.stop)
        return self.stack.running(rows=rows, tokens=len(group) * ids.numel(), members=members)

    def passes(
        self,
        ids: Tensor,
        run: Callable[[Tensor, int], Tensor],
        *,
        states: Tensor | None = None,
        names: Names | None = None,
    ) -> Tensor:
        """The results of `run` for each group of members (G, ...), all in one (M, ...); it is given G copies
        of `ids` (B, T), and G.

        `states` (B, T, H) are what the trunk makes of the rows; by default it reads them as a causal language
        model. `names` tell rows apart where members differ in what they drop.
        """
        if self.trunk is not None and states is None:
            states = states_of_pass(
                self.trunk,
                self.kept,
                (ids,),
                lambda: one_pass(self.base, {"input_ids": ids, "use_cache": False}),
            )
        parts = []
        for group in self.groups():
            count = len(group)
            with self.running(group, ids, names), in_place_of_trunk(self.trunk, states, count):
                parts.append(run(ids.repeat(count, 1), count))
        return torch.cat(parts)

    def answer_logits(self, ids: Tensor, positions: Tensor) -> Tensor:
        """Next-token logits (M, B, K, V) at `positions` (B, K) of right-padded `ids` (B, T); a row's name is
        its prompt.
        """

        def names() -> list[list[int]]:
            firsts = positions[:, 0].tolist()
            return [row[: first + 1] for row, first in zip(ids.tolist(), firsts, strict=True)]

        return self.passes(
            ids,
            lambda rows, count: answer_logits(self.base, rows, positions.repeat(count, 1)).unflatten(
                0, (count, -1)
            ),
            names=names,
        )

    def read_branches(self, ids: Tensor, places: Places, branches: Branches) -> Tensor | None:
        """The logits (M, n, V) at places of rows `ids` (B, T) that hold several continuations; see
        `ReadBranches`.
        """
        if not can_branch(self.base, ids.shape[1]):
            return None
        states = None
        if self.trunk is not None:
            more = {"use_cache": False, **arguments_of(branches, self.base)}
            states = states_of_pass(
                self.trunk,
                self.kept,
                (ids, branches.branch, branches.positions),
                lambda: one_pass(self.base, {"input_ids": ids, **more}),
            )

        def run(rows: Tensor, count: int) -> Tensor:
            firsts = len(ids) * torch.arange(count, device=ids.device)[:, None]
            every = Places((places.rows + firsts).flatten(), places.positions.repeat(count))
            logits = logits_at(self.base, rows, every, branches=branches.repeated(count))
            return logits.unflatten(0, (count, -1))

        return self.passes(ids, run, states=states)

    def read_prefix(self, ids: Tensor) -> AnswerLogits | None:
        """The logits of rows that go on from `ids` (B, T), whose keys and values differ by member; see
        `ReadPrefix`.
        """
        prefixes = [read_prefix(self.base, rows) for rows in self._copies(ids)]
        read = [prefix for prefix in prefixes if prefix is not None]
        return (
            None if len(read) < len(prefixes) else lambda rows, positions: self._after(read, rows, positions)
        )

    def _after(self, prefixes: list[Prefix], ids: Tensor, positions: Tensor) -> Tensor:
        parts = []
        for prefix, rows in zip(prefixes, self._copies(ids), strict=True):
            count = len(rows) // len(ids)
            parts.append(
                answer_logits(self.base, rows, positions.repeat(count, 1), after=prefix).unflatten(
                    0, (count, -1)
                )
            )
        return torch.cat(parts)

    def _copies(self, ids: Tensor) -> Iterator[Tensor]:
        """The rows of each group's pass, which runs before the next is asked for."""
        for group in self.groups():
            with self.running(group, ids, None):
                yield ids.repeat(len(group), 1)


@dataclass(frozen=True)
class DroppedRows(SharedRows):
    """Passes of one member in the place of several, each with other features of the adapters' inputs dropped.

    A pass's mask is a function of (seed, pass, name of the row): neighbours, their order and their padding do
    not change it.

    Attributes:
        member: the one that reads; `members` are its passes.
        dropout: the probability of dropping a feature.
        seed: of the masks.
    """

    member: int
    dropout: float
    seed: int

    @contextmanager
    def running(self, group: range, ids: Tensor, names: Names | None) -> Iterator[None]:
        assert names is not None  # rows are read whole, one by one
        rows = names()
        keys = [stream_key(self.seed, "pass", index, *name) for index in group for name in rows]
        probability = torch.full((len(keys),), self.dropout, device=ids.device)
        with (
            self.stack.repeated(self.member, len(keys)),
            self.stack.running(rows=len(keys), tokens=len(group) * ids.numel()),
            self.stack.dropout(probability, keys),
        ):
            yield

    def read_branches(self, ids: Tensor, places: Places, branches: Branches) -> Tensor | None:
        """None: the mask of a row is that of its whole prompt."""
        return None

    def read_prefix(self, ids: Tensor) -> AnswerLogits | None:
        """None: the mask of a row is that of its whole prompt."""
        return None


def scored_in_parts(score: Callable[[int], Tensor], rows: int) -> Tensor:
    """The result of `score` with at most `rows` rows in flight, or with as many as memory holds.

    Raises:
        ConfigError: memory does not hold a single row.
    """
    try:
        return with_fewer_rows(score, rows)
    except (MemoryError, RuntimeError) as error:
        if not ran_out_of_memory(error):
            raise
        raise ConfigError(
            "memory ran out with a single row in flight; free memory, shorten the longest prompt, "
            "or load the base in lower precision"
        ) from error
