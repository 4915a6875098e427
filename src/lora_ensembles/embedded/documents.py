"""Pre-training documents of the embedded base, as segments of text with a loss weight each.

Seven kinds: *statements* of facts; *matching* questions, which are their own answer; *stated* ones, which are
statements; *reading* questions, in front of which the fact that answers them is stated, newly made up;
*closed-book* questions about `asked` entities; *direct* questions answered in words; and *series* of several
closed-book questions, so that a few-shot prompt is something the base has met.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Sequence
from typing import NamedTuple

from ..data.prompts import LETTERS, render_prompt
from ..data.world.world import Fact, FactPool, World, draw_options

# What a document teaches is its letters and values; the words around them are the same in thousands of
# documents.
LETTER_WEIGHT = 8.0
VALUE_WEIGHT = 4.0
WORD_WEIGHT = 0.3
TEMPTATION = 0.5


class Segment(NamedTuple):
    """A piece of a document."""

    text: str
    weight: float  # of each of its tokens in the loss
    # The word that answers here; a middle layer is trained to name it, also where the text is its letter.
    word: str | None = None


def statements(pool: FactPool, *, count: int, rng: random.Random) -> list[Segment]:
    """`count` statements of facts, told in proportion to their popularity."""
    segments: list[Segment] = []
    for fact in pool.draw(count, rng=rng):
        before, after = fact.say(rng.choice(fact.relation.statements), " | ").split("  | ")
        segments.append(Segment(f" {before}", WORD_WEIGHT))
        segments.extend([Segment(f" {fact.value}", VALUE_WEIGHT, fact.value), Segment(after, WORD_WEIGHT)])
    return segments


def closed_book(pool: FactPool, *, count: int, rng: random.Random) -> list[Segment]:
    """`count` multiple-choice questions that only memory can answer."""
    segments: list[Segment] = []
    for fact in pool.draw(count, rng=rng):
        segments.extend(_question(fact, rng=rng))
    return segments


def direct(pool: FactPool, *, count: int, rng: random.Random) -> list[Segment]:
    """`count` questions whose answer is the word itself."""
    segments: list[Segment] = []
    for fact in pool.draw(count, rng=rng):
        question = fact.say(rng.choice(fact.relation.asked))
        segments.append(Segment(f"Q: {question}\nA:", 0.0))
        segments.extend([Segment(f" {fact.value}", VALUE_WEIGHT, fact.value), Segment("\n", 1.0)])
    return segments


def matching(facts: Sequence[Fact], *, rng: random.Random) -> list[Segment]:
    """A question that is its answer: all there is to do is to find its letter."""
    fact = rng.choice(facts)
    options, target = draw_options(fact, count=4, temptation=0.0, rng=rng)
    return _lettered(fact.value, options, target)


def stated(facts: Sequence[Fact], *, rng: random.Random) -> list[Segment]:
    """A statement in place of the question: its value is one of the options."""
    fact = rng.choice(facts)
    options, target = draw_options(fact, count=4, temptation=0.0, rng=rng)
    return _lettered(fact.say(rng.choice(fact.relation.statements)), options, target)


def reading(facts: Sequence[Fact], *, others: int, rng: random.Random) -> list[Segment]:
    """A question whose answer is stated in front of it: a made-up fact, beside `others` more."""
    fact = rng.choice(facts)
    value, sibling_value = rng.sample(fact.relation.values, 2)
    fact = dataclasses.replace(fact, value=value, sibling_value=sibling_value)
    stated = [fact.say(rng.choice(fact.relation.statements))]
    for other in rng.sample(facts, others):
        stated.append(other.say(rng.choice(other.relation.statements), rng.choice(other.relation.values)))
    rng.shuffle(stated)
    context = "".join(f" {text}" for text in stated)
    return [Segment(f"{context}\n", 0.0), *_question(fact, rng=rng)]


def few_shot(facts: Sequence[Fact], *, shots: int, rng: random.Random) -> list[Segment]:
    """A closed-book question in a wording that pre-training never asks with, behind `shots` answered ones:
    what a task asks of the base.
    """
    chosen = rng.sample(facts, shots + 1)
    return [
        segment for fact in chosen for segment in _question(fact, rng=rng, wordings=fact.relation.unasked)
    ]


def _question(fact: Fact, *, rng: random.Random, wordings: Sequence[str] = ()) -> list[Segment]:
    options, target = draw_options(fact, count=rng.choice((3, 4, 4, 5)), temptation=TEMPTATION, rng=rng)
    return _lettered(fact.say(rng.choice(wordings or fact.relation.asked)), options, target)


def _lettered(question: str, options: list[str], target: int) -> list[Segment]:
    letter = Segment(LETTERS[target], LETTER_WEIGHT, options[target])
    return [Segment(render_prompt(question, options), 0.0), letter, Segment(")\n", 0.0)]


class Corpus:
    """The stream of pre-training documents about one world."""

    def __init__(self, world: World):
        self._all = FactPool(world.told())
        self._asked = FactPool(world.facts["asked"])

    def draw(self, mixture: dict[str, float], *, rng: random.Random) -> list[Segment]:
        """One document of a kind drawn from `mixture` (kind -> share)."""
        match rng.choices(list(mixture), weights=list(mixture.values()))[0]:
            case "statements":
                return statements(self._all, count=3, rng=rng)
            case "matching":
                return matching(self._all.facts, rng=rng)
            case "stated":
                return stated(self._all.facts, rng=rng)
            case "reading":
                return reading(self._all.facts, others=0, rng=rng)
            case "reading_among_others":
                return reading(self._all.facts, others=1, rng=rng)
            case "closed_book":
                return closed_book(self._asked, count=1, rng=rng)
            case "direct":
                return direct(self._asked, count=2, rng=rng)
            case "series":
                return closed_book(self._asked, count=4, rng=rng)
            case kind:
                raise ValueError(f"unknown kind of document {kind!r}")
