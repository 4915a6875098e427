"""Scores from rows that hold the common beginning of some prompts once, and behind it what follows in each:
the labels of a question, or several questions about one state with their labels.

Shapes: M members, N examples, B rows of a batch, C labels, S label tokens of an example.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ...data import EncodedExample
from ...passes.branches import Branches
from ...passes.decoder import Places
from ...passes.shared_prefix import ReadBranches
from ...passes.texts import pad_rows
from .label_plan import label_plan

LONGEST = 1024
"""Tokens of a row of several prompts: the mask and the attention of a row grow with their square."""


@dataclass(frozen=True)
class Group:
    """Examples by their numbers, whose prompts begin with the same `shared` tokens.

    Attributes:
        numbers: of the examples.
        shared: tokens of the common beginning.
        copies: the continuations: for each example as many as beginnings of its labels are read.
        whole: tokens of all continuations, each with its whole prompt.
    """

    numbers: tuple[int, ...]
    shared: int
    copies: int
    whole: int

    @classmethod
    def of(cls, number: int, example: EncodedExample) -> Group:
        """The group of one example, which shares its prompt with itself."""
        beginnings, prompt = label_plan(example.label_ids).beginnings, len(example.prompt_ids)
        return cls((number,), prompt, len(beginnings), prompt * len(beginnings) + sum(map(len, beginnings)))

    def joined(self, other: Group, shared: int) -> Group:
        """This group and another one, which begin with the same `shared` tokens."""
        numbers = (*self.numbers, *other.numbers)
        return Group(numbers, shared, self.copies + other.copies, self.whole + other.whole)

    @property
    def tokens(self) -> int:
        """The tokens of the group's row."""
        return self.whole - self.shared * (self.copies - 1)

    def continuations(self, encoded: Sequence[EncodedExample]) -> list[tuple[int, ...]]:
        """The tokens behind the common beginning: of each example the rest of its prompt, with each of the
        beginnings of labels that are read.
        """
        return [
            encoded[number].prompt_ids[self.shared :] + beginning
            for number in self.numbers
            for beginning in label_plan(encoded[number].label_ids).beginnings
        ]


def by_prompt(encoded: Sequence[EncodedExample]) -> list[Group]:
    """A group for each example: its prompt is read once for all its labels."""
    return [Group.of(number, example) for number, example in enumerate(encoded)]


def by_beginning(encoded: Sequence[EncodedExample]) -> list[Group]:
    """Groups of examples whose prompts begin alike, as long as each more saves tokens and the row stays
    within `LONGEST`.

    Prompts are taken in alphabetical order, in which those that begin alike are neighbours. One that has more
    than twice as much in common with the next one as with the group begins a group of its own.

    Example:
        >>> prompts = [(1, 2, 3, 4), (1, 2, 3, 5), (1, 8), (1, 2, 3, 6)]
        >>> encoded = [EncodedExample(prompt, ((9,), (10,)), 0) for prompt in prompts]
        >>> [(group.numbers, group.shared) for group in by_beginning(encoded)]
        [((0, 1, 3), 3), ((2,), 2)]
    """
    order = sorted(by_prompt(encoded), key=lambda alone: encoded[alone.numbers[0]].prompt_ids)
    prompts = [encoded[alone.numbers[0]].prompt_ids for alone in order]
    common = [_common(one, other) for one, other in itertools.pairwise(prompts)] + [0]
    groups = order[:1]
    for place, alone in enumerate(order[1:], start=1):
        shared = min(groups[-1].shared, common[place - 1])
        grown = groups[-1].joined(alone, shared)
        saves = grown.tokens < groups[-1].tokens + alone.tokens
        if saves and shared > 0 and common[place] <= 2 * shared and grown.tokens <= LONGEST:
            groups[-1] = grown
        else:
            groups.append(alone)
    return groups


def _common(one: Sequence[int], other: Sequence[int]) -> int:
    """The number of tokens that two prompts begin with alike; at least the last one of each is its own, at
    which its labels begin.
    """
    pairs = zip(one, other, strict=False)
    same = next((place for place, (left, right) in enumerate(pairs) if left != right), len(one))
    return min(same, len(one) - 1, len(other) - 1)


def score_groups(
    encoded: Sequence[EncodedExample],
    groups: Sequence[Group],
    read: ReadBranches,
    *,
    pad_id: int,
    rows: int,
    device: torch.device | str,
) -> Tensor | None:
    """Summed log-probabilities of the labels (M, N, C), one row a group; None where such rows cannot be read.

    At most `rows` continuations are in flight, or one group.
    """
    scores: Tensor | None = None
    options = max(len(example.label_ids) for example in encoded)
    widest = max(group.copies for group in groups)
    at_once = max(1, rows // max(options, widest))
    order = sorted(groups, key=lambda group: -group.tokens)
    for start in range(0, len(order), at_once):
        batch = order[start : start + at_once]
        fields = torch.cat([_label_tokens(encoded, group, row) for row, group in enumerate(batch)], dim=1)
        in_row, positions, tokens, labels, owners = fields.to(device)
        places, which = torch.stack([in_row, positions]).unique(dim=1, return_inverse=True)
        continuations = [group.continuations(encoded) for group in batch]
        branches = Branches.of(
            [group.shared for group in batch], [[len(one) for one in own] for own in continuations]
        )
        texts = [
            sum(own, encoded[group.numbers[0]].prompt_ids[: group.shared])
            for group, own in zip(batch, continuations, strict=True)
        ]
        ids = pad_rows(texts, pad_id, device=device)
        every = branches.rows(torch.arange(len(batch)), ids.shape[1], device)
        logits = read(ids, Places(*places), every)
        if logits is None:
            return None
        log_probs = logits.float().log_softmax(dim=-1)[:, which, tokens]
        if scores is None:
            scores = torch.full((len(logits), len(encoded), options), -math.inf)
        numbers = [number for group in batch for number in group.numbers]
        own_scores = torch.zeros(len(logits), len(numbers) * options, device=device)
        slots = torch.tensor([numbers.index(owner) for owner in owners.tolist()], device=device)
        own_scores.index_add_(1, slots * options + labels, log_probs)
        scores[:, numbers] = own_scores.view(len(logits), len(numbers), options).cpu()
    return scores


def _label_tokens(encoded: Sequence[EncodedExample], group: Group, row: int) -> Tensor:
    """(5, S) of every label token of a group: the row, the position whose logits say how probable it is, the
    token, its label and its example.
    """
    parts = []
    begin = group.shared
    for number in group.numbers:
        plan, rest = label_plan(encoded[number].label_ids), len(encoded[number].prompt_ids) - group.shared
        lengths = torch.tensor([rest + len(beginning) for beginning in plan.beginnings])
        begins = begin + lengths.cumsum(0) - lengths
        rows, positions, tokens, labels, _ = plan.tokens
        own = begins[rows] + rest - 1 + positions
        if rest == 0:  # the prompt's last token is the last of what is shared
            own = torch.where(positions == 0, group.shared - 1, own)
        parts.append(
            torch.stack([torch.full_like(rows, row), own, tokens, labels, torch.full_like(rows, number)])
        )
        begin += int(lengths.sum())
    return torch.cat(parts, dim=1)
