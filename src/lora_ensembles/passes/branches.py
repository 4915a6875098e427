"""Rows that hold a prompt once and several continuations of it, of which each sees the prompt and itself.

Such a row is read in the place of one row for each continuation, where a model takes positions and a mask of
its own from outside; whether it does is tried on it (`probe`).

Shapes: B rows, T tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .shortcuts import shortcuts_of

PROMPT, PADDING = 0, -1


@dataclass(frozen=True)
class Branches:
    """The continuations of rows: `branch` (B, T) names that of each token, 1 for the first, with `PROMPT` for
    the prompt's own and `PADDING`; `positions` (B, T) are those that the token has in its continuation alone.
    """

    branch: Tensor
    positions: Tensor

    @classmethod
    def of(cls, prompts: Sequence[int], continuations: Sequence[Sequence[int]]) -> Branches:
        """The rows of prompts of so many tokens, each with continuations of so many.

        Example:
            >>> rows = Branches.of([2, 1], [[1, 2], [1]])
            >>> rows.branch.tolist(), rows.positions.tolist()
            ([[0, 0, 1, 2, 2], [0, 1, -1, -1, -1]], [[0, 1, 2, 2, 3], [0, 1, 0, 0, 0]])
        """
        length = max(prompt + sum(own) for prompt, own in zip(prompts, continuations, strict=True))
        branch = torch.full((len(prompts), length), PADDING)
        positions = torch.zeros(len(prompts), length, dtype=torch.int64)
        for row, (prompt, own) in enumerate(zip(prompts, continuations, strict=True)):
            parts = [torch.arange(prompt), *(torch.arange(prompt, prompt + count) for count in own)]
            names = [torch.full((len(part),), name) for name, part in enumerate(parts)]
            whole = torch.cat(parts)
            branch[row, : len(whole)], positions[row, : len(whole)] = torch.cat(names), whole
        return cls(branch, positions)

    def rows(self, numbers: Tensor, length: int, device: torch.device | str) -> Branches:
        """The rows of these numbers (B,), cut to `length` tokens, on a device."""
        branch, positions = (values[numbers, :length] for values in (self.branch, self.positions))
        return Branches(branch.to(device, non_blocking=True), positions.to(device, non_blocking=True))

    def repeated(self, copies: int) -> Branches:
        """The rows, so many times one after another."""
        return Branches(self.branch.repeat(copies, 1), self.positions.repeat(copies, 1))

    def arguments(self, dtype: torch.dtype) -> dict[str, Any]:
        """The positions and the additive mask (B, 1, T, T) of a pass over the rows."""
        own, others = self.branch[:, :, None], self.branch[:, None, :]
        before = torch.ones(own.shape[1], own.shape[1], dtype=torch.bool, device=own.device).tril()
        seen = ((others == PROMPT) | (others == own)) & before
        mask = torch.zeros(seen.shape, dtype=dtype, device=own.device)
        mask = mask.masked_fill(~seen, torch.finfo(dtype).min)
        return {"position_ids": self.positions, "attention_mask": mask[:, None]}


def arguments_of(branches: Branches | None, model: nn.Module) -> dict[str, Any]:
    """The inputs of a pass over rows beside their ids; none without `branches`."""
    return {} if branches is None else branches.arguments(next(model.parameters()).dtype)


def can_branch(model: nn.Module, tokens: int) -> bool:
    """Whether rows of so many tokens may hold several continuations: the model was tried, and no layer of it
    looks back over fewer tokens, which would count those of other continuations.
    """
    config: Any = model.config
    text = config.get_text_config()
    limits = (
        getattr(text, name, None)
        for name in ("sliding_window", "attention_chunk_size", "max_position_embeddings")
    )
    return shortcuts_of(model).branches and all(
        not limit or tokens <= limit
        for limit in limits  # of transformers 5.14, a window of 0 is none
    )
