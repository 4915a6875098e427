"""Six tasks over the embedded world that mirror the paper's six in shape.

Every question is about an entity that pre-training never asked about, in wordings that pre-training never
asked with; training and validation questions are about different entities. What differs is what differs
between the paper's tasks: the number of options, the size of the training set, how well the facts are known,
and the domain.
"""

from __future__ import annotations

import functools
import random
from collections.abc import Sequence
from dataclasses import dataclass

from ..completions import Completion, CompletionTask
from ..examples import Example, Task
from ..prompts import LETTERS, render_label_prompt, render_prompt
from .world import POPULARITY_RANGE, Fact, World, build_world, draw_options

EMBEDDED_OOD = "world-mmlu"
EMBEDDED_OPEN_TASK = "world-words"


@dataclass(frozen=True)
class TaskShape:
    """The traits that set one embedded task apart from another."""

    kinds: tuple[str, ...]
    train: int
    validation: int
    options: int = 4
    stems: bool = False  # unfinished statements in place of questions
    popularity: tuple[float, float] = (0.0, 1.0)  # facts between these quantiles of popularity
    temptation: float = 0.5


SHAPES = {
    "world-cqa": TaskShape(("person",), 400, 400, options=5),
    "world-obqa": TaskShape(("person", "creature", "object"), 400, 500, stems=True),
    "world-arce": TaskShape(("creature", "object"), 300, 400, popularity=(0.5, 1.0)),
    "world-arcc": TaskShape(("creature", "object"), 200, 400, popularity=(0.0, 0.5)),
    "world-mmlu-ss": TaskShape(("person",), 60, 500),
    "world-mmlu-stem": TaskShape(("creature", "object"), 60, 500),
}
EMBEDDED_TASKS = tuple(SHAPES)
OPEN_SHAPE = TaskShape(("person", "creature", "object"), 400, 400, popularity=(0.0, 0.5))


@functools.cache
def load_embedded_task(name: str) -> Task:
    """One of the six embedded tasks; or "world-mmlu", both mmlu-like ones together, for questions out of
    distribution.

    Example:
        >>> task = load_embedded_task("world-cqa")
        >>> len(task.train), len(task.validation), task.options
        (400, 400, [5])
    """
    if name == EMBEDDED_OOD:
        parts = [load_embedded_task(part) for part in ("world-mmlu-ss", "world-mmlu-stem")]
        return Task(
            name=name,
            train=tuple(example for part in parts for example in part.train),
            validation=tuple(example for part in parts for example in part.validation),
        )
    shape = SHAPES[name]
    rng = random.Random(name)
    train, validation = _split(
        _facts(build_world(), shape), train=shape.train, validation=shape.validation, rng=rng
    )
    return Task(
        name=name,
        train=_examples(name, "train", train, shape, rng),
        validation=_examples(name, "validation", validation, shape, rng),
    )


@functools.cache
def load_embedded_completions() -> CompletionTask:
    """The embedded task with open answers: the less told half of all facts, asked as questions; the answer is
    what the plainest statement of the fact says after its subject.

    Example:
        >>> example = load_embedded_completions().train[0]
        >>> example.prompt, example.completion
        ('Q: The cradle of Mildred stood in which town?\\nA:', ' was born in York.')
    """
    shape, rng = OPEN_SHAPE, random.Random(EMBEDDED_OPEN_TASK)
    parts = _split(_facts(build_world(), shape), train=shape.train, validation=shape.validation, rng=rng)
    train, validation = (
        _completions(split, facts, rng) for split, facts in zip(("train", "validation"), parts, strict=True)
    )
    return CompletionTask(EMBEDDED_OPEN_TASK, train, validation)


def _completions(split: str, facts: Sequence[Fact], rng: random.Random) -> tuple[Completion, ...]:
    return tuple(
        Completion(
            f"{EMBEDDED_OPEN_TASK}/{split}/{index}",
            render_label_prompt(fact.say(rng.choice(fact.relation.unasked))),
            fact.relation.statements[0].partition("{e}")[2].format(v=fact.value),
        )
        for index, fact in enumerate(facts)
    )


def _facts(world: World, shape: TaskShape) -> list[Fact]:
    low, high = (POPULARITY_RANGE ** (quantile - 1) for quantile in shape.popularity)
    return [
        fact for fact in world.facts["task"] if fact.kind in shape.kinds and low <= fact.popularity <= high
    ]


def _split(
    facts: Sequence[Fact], *, train: int, validation: int, rng: random.Random
) -> tuple[list[Fact], list[Fact]]:
    """Facts for each split, about different entities; where there are fewer facts than questions, a fact is
    asked about again.
    """
    nouns = sorted({fact.noun for fact in facts})
    rng.shuffle(nouns)
    share = min(0.5, max(0.25, train / (train + validation)))
    taught = set(nouns[: round(share * len(nouns))])
    pools = (
        [fact for fact in facts if fact.noun in taught],
        [fact for fact in facts if fact.noun not in taught],
    )
    return _cycle(pools[0], train, rng), _cycle(pools[1], validation, rng)


def _cycle(pool: Sequence[Fact], count: int, rng: random.Random) -> list[Fact]:
    chosen: list[Fact] = []
    while len(chosen) < count:
        chosen.extend(rng.sample(pool, min(len(pool), count - len(chosen))))
    return chosen


def _examples(
    name: str, split: str, facts: Sequence[Fact], shape: TaskShape, rng: random.Random
) -> tuple[Example, ...]:
    examples = []
    for index, fact in enumerate(facts):
        wording = rng.choice(fact.relation.stems if shape.stems else fact.relation.unasked)
        question = fact.say(wording)
        options, target = draw_options(fact, count=shape.options, temptation=shape.temptation, rng=rng)
        examples.append(
            Example(
                id=f"{name}/{split}/{index}",
                prompt=render_prompt(question, options),
                labels=tuple(LETTERS[: shape.options]),
                target=target,
                question=question,
                options=tuple(options),
            )
        )
    return tuple(examples)
