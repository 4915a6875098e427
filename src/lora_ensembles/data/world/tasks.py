"""Six tasks over the embedded world that mirror the paper's six in shape.

Every question is about an entity that pre-training never asked about, in wordings that pre-training never
asked with; training and validation questions of a task are about different entities. No fact is asked for
twice in the validation parts, neither in one nor in two of them, so that tasks are independent samples. What
differs is what differs between the paper's tasks: the number of options, the size of the training set, how
well the facts are known, and the domain.
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
    """The traits that set one embedded task apart from another; `taught` is the share of the entities that
    training questions are about.
    """

    kinds: tuple[str, ...]
    train: int
    validation: int
    taught: float = 0.5
    options: int = 4
    stems: bool = False  # unfinished statements in place of questions
    popularity: tuple[float, float] = (0.0, 1.0)  # facts between these quantiles of popularity
    temptation: float = 0.5


SHAPES = {
    "world-cqa": TaskShape(("person",), 400, 250, 0.5, options=5),
    "world-obqa": TaskShape(("person", "creature", "object"), 400, 250, 0.45, stems=True),
    "world-arce": TaskShape(("creature", "object"), 300, 250, 0.4, popularity=(0.5, 1.0)),
    "world-arcc": TaskShape(("creature", "object"), 200, 250, 0.33, popularity=(0.0, 0.5)),
    "world-mmlu-ss": TaskShape(("person",), 60, 250, 0.25),
    "world-mmlu-stem": TaskShape(("creature", "object"), 60, 250, 0.25),
}
EMBEDDED_TASKS = tuple(SHAPES)
OPEN_SHAPE = TaskShape(("person", "creature", "object"), 400, 400, popularity=(0.0, 0.5))


@functools.cache
def load_embedded_task(name: str) -> Task:
    """One of the six embedded tasks.

    Example:
        >>> task = load_embedded_task("world-cqa")
        >>> len(task.train), len(task.validation), task.options
        (400, 250, [5])
    """
    shape, rng = SHAPES[name], random.Random(name)
    taught = [fact for fact in _facts(build_world(), shape) if fact.noun in _taught(name)]
    return Task(
        name=name,
        train=_examples(name, "train", _cycle(taught, shape.train, rng), shape, rng),
        validation=_examples(name, "validation", _judged_by()[name], shape, rng),
    )


@functools.cache
def load_embedded_ood() -> tuple[Example, ...]:
    """The questions out of distribution of world-cqa, with as many options as it has: facts that the two MMLU
    tasks are judged by, but for those about people whom world-cqa teaches.

    Example:
        >>> {len(example.options) for example in load_embedded_ood()}
        {5}
    """
    taught, judged_by, shape = _taught("world-cqa"), _judged_by(), SHAPES["world-cqa"]
    facts = [fact for name in ("world-mmlu-ss", "world-mmlu-stem") for fact in judged_by[name]]
    return _examples(
        EMBEDDED_OOD,
        "validation",
        [fact for fact in facts if fact.noun not in taught],
        shape,
        random.Random(EMBEDDED_OOD),
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
    facts = _facts(build_world(), shape)
    taught = _drawn(facts, shape.taught, rng)
    pools = ([fact for fact in facts if (fact.noun in taught) is wanted] for wanted in (True, False))
    parts = [
        _cycle(pool, count, rng) for pool, count in zip(pools, (shape.train, shape.validation), strict=True)
    ]
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


@functools.cache
def _taught(name: str) -> frozenset[str]:
    """The entities that a task's training questions are about."""
    shape = SHAPES[name]
    return _drawn(_facts(build_world(), shape), shape.taught, random.Random(name))


@functools.cache
def _judged_by() -> dict[str, list[Fact]]:
    """The facts of the validation part of every task, each fact in one of them: in a random order of all
    facts, one goes to the task that can spare it least, of those that do not teach its entity.
    """
    open_to = {
        name: {fact: None for fact in _facts(build_world(), shape) if fact.noun not in _taught(name)}
        for name, shape in SHAPES.items()
    }
    spare = {name: len(open_to[name]) - shape.validation for name, shape in SHAPES.items()}
    judged_by: dict[str, list[Fact]] = {name: [] for name in SHAPES}
    facts = list(build_world().facts["task"])
    random.Random("validation").shuffle(facts)
    for fact in facts:
        able = [name for name in SHAPES if fact in open_to[name]]
        wanting = [name for name in able if len(judged_by[name]) < SHAPES[name].validation]
        for name in able:
            spare[name] -= 1
        if wanting:
            chosen = min(wanting, key=spare.__getitem__)
            judged_by[chosen].append(fact)
            spare[chosen] += 1
    return judged_by


def _drawn(facts: Sequence[Fact], share: float, rng: random.Random) -> frozenset[str]:
    """A share of the entities that facts are about."""
    nouns = sorted({fact.noun for fact in facts})
    rng.shuffle(nouns)
    return frozenset(nouns[: round(share * len(nouns))])


def _cycle(pool: Sequence[Fact], count: int, rng: random.Random) -> list[Fact]:
    """Facts to ask about; where there are fewer than questions, a fact is asked about again."""
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
