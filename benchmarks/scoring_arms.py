"""Plain ways to score the labels of questions, which `score.py` holds the library's to.

Shapes: M members, B rows of a pass, n places whose logits are needed, N questions, C labels, V words.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lora_ensembles.data import EncodedExample
from lora_ensembles.stack.onednn import frozen_products

Places = tuple[Tensor, Tensor]  # (n,) row and (n,) position of each
Answer = Callable[[Tensor, Tensor | None, Places], Tensor]  # ids (B, T), mask or None, places -> (M, n, V)


class Row(NamedTuple):
    """Tokens of a row, how many of its last places are asked, and for which tokens: its last place for the
    first tokens of all labels, or as many places as a label has tokens, each for its own.
    """

    tokens: list[int]
    places: int
    wanted: list[int]


def rows_of(encoded: Sequence[EncodedExample]) -> list[Row]:
    """A row a question where every label is one token, else one a label."""
    if is_single(encoded):
        return [Row(list(one.prompt_ids), 1, [label[0] for label in one.label_ids]) for one in encoded]
    return [
        Row([*one.prompt_ids, *label[:-1]], len(label), list(label))
        for one in encoded
        for label in one.label_ids
    ]


def is_single(encoded: Sequence[EncodedExample]) -> bool:
    """Whether every label is one token."""
    return all(len(label) == 1 for one in encoded for label in one.label_ids)


@torch.no_grad()
def score(
    encoded: Sequence[EncodedExample], answer: Answer, *, rows: int, tuned: bool, device: torch.device
) -> Tensor:
    """log p of each label (M, N, C) by a plain loop: sorted by length and padded on the right, or in order,
    on the left, with a mask. A label of several tokens has the sum of theirs, renormalised over the labels.
    """
    asked, single = rows_of(encoded), is_single(encoded)
    order = (
        sorted(range(len(asked)), key=lambda n: len(asked[n].tokens)) if tuned else list(range(len(asked)))
    )
    parts = []
    for start in range(0, len(order), rows):
        batch = [asked[n] for n in order[start : start + rows]]
        longest = max(len(row.tokens) for row in batch)
        gaps = [longest - len(row.tokens) for row in batch]
        ids = torch.tensor(
            [
                [*row.tokens, *[0] * gap] if tuned else [*[0] * gap, *row.tokens]
                for row, gap in zip(batch, gaps, strict=True)
            ],
            device=device,
        )
        ends = [longest - (gap if tuned else 0) for gap in gaps]
        last = [(n, ends[n] - back) for n, row in enumerate(batch) for back in range(row.places, 0, -1)]
        place = torch.tensor(last, device=device).T
        mask = torch.tensor([[0] * gap + [1] * (longest - gap) for gap in gaps], device=device)
        logits = answer(ids, None if tuned else mask, (place[0], place[1])).float()
        if single:
            wanted = torch.tensor([row.wanted for row in batch], device=device)
            parts.append(logits.gather(2, wanted.expand(len(logits), -1, -1)).log_softmax(dim=-1).cpu())
            continue
        wanted = torch.tensor([token for row in batch for token in row.wanted], device=device)
        each = logits.log_softmax(dim=-1).gather(2, wanted.expand(len(logits), -1)[..., None])[..., 0]
        parts.append(each.new_zeros(len(each), len(batch)).index_add(1, place[0], each).cpu())
    found = torch.cat(parts, dim=1)[:, torch.tensor(order).argsort()]
    return found if single else found.view(len(found), len(encoded), -1).log_softmax(dim=-1)


def plain_answer(model: Any) -> Answer:
    """As a script has it: a mask, positions from it, the cache that is on by default, the head at as many
    last positions as are asked for.
    """

    def answer(ids: Tensor, mask: Tensor | None, places: Places) -> Tensor:
        assert mask is not None
        positions = (mask.cumsum(dim=-1) - 1).clamp(min=0)
        back = ids.shape[1] - places[1]
        logits: Tensor = model(
            input_ids=ids, attention_mask=mask, position_ids=positions, logits_to_keep=int(back.max())
        ).logits
        return logits[None, places[0], -back]

    return answer


def tuned_answer(body: Any, head: Any) -> Answer:
    """Without a mask, without a cache, with the head at the places alone."""

    def answer(ids: Tensor, _mask: Tensor | None, places: Places) -> Tensor:
        with frozen_products():  # as the library's own passes do; it needs no stacking
            hidden = body(input_ids=ids, use_cache=False).last_hidden_state
            logits: Tensor = head(hidden[places])
        return logits[None]

    return answer


def mixed_answer(model: Any, names: Sequence[str]) -> Answer:
    """The rows of all members in one batch of PEFT's mixed adapters, else as `tuned_answer`."""
    members, head = len(names), model.get_base_model().lm_head

    def answer(ids: Tensor, _mask: Tensor | None, places: Places) -> Tensor:
        first = torch.arange(members, device=ids.device)[:, None] * len(ids)
        of_all = ((first + places[0]).flatten(), places[1].repeat(members))

        def narrow(_head: Any, arguments: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            return (arguments[0][of_all],)

        handle = head.register_forward_pre_hook(narrow)
        try:
            rows = [name for name in names for _ in ids]
            logits: Tensor = model(
                input_ids=ids.repeat(members, 1), use_cache=False, adapter_names=rows
            ).logits
        finally:
            handle.remove()
        return logits.view(members, len(places[0]), -1)

    return answer
