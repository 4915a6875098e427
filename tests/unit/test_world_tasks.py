"""The embedded tasks as samples: no fact twice in validation parts, nothing that was trained on in what
judges.
"""

from __future__ import annotations

import itertools

import pytest

from lora_ensembles.data import OOD_PAIRS, Example, load_ood
from lora_ensembles.data.world.tasks import SHAPES, load_embedded_task
from lora_ensembles.data.world.world import Fact, build_world

TASKS = tuple(SHAPES)


def facts_of(examples: tuple[Example, ...]) -> list[Fact]:
    """The facts behind questions, found by their entity, wording and right option."""
    by_wording: dict[tuple[str, str], list[Fact]] = {}
    for fact in build_world().facts["task"]:
        for wording in (*fact.relation.unasked, *fact.relation.stems):
            by_wording.setdefault((fact.say(wording), fact.value), []).append(fact)
    found = []
    for example in examples:
        assert example.target is not None
        (fact,) = by_wording[example.question, example.options[example.target]]
        found.append(fact)
    return found


def test_no_fact_is_asked_for_twice_in_or_across_the_validation_parts() -> None:
    facts = [facts_of(load_embedded_task(name).validation) for name in TASKS]
    assert [len(part) for part in facts] == [shape.validation for shape in SHAPES.values()] == [250] * 6
    assert len(set(itertools.chain.from_iterable(facts))) == 6 * 250


@pytest.mark.parametrize("name", TASKS)
def test_a_task_is_judged_by_entities_that_it_does_not_teach(name: str) -> None:
    task = load_embedded_task(name)
    taught = {fact.noun for fact in facts_of(task.train)}
    judged_by = facts_of(task.validation)
    assert not taught & {fact.noun for fact in judged_by}
    low, high = SHAPES[name].popularity
    assert all(10 ** (low - 1) <= fact.popularity <= 10 ** (high - 1) for fact in judged_by)
    assert {fact.kind for fact in judged_by} == set(SHAPES[name].kinds)


@pytest.mark.parametrize(("name", "other"), [pair for pair in OOD_PAIRS.items() if pair[0] in TASKS])
def test_questions_out_of_distribution_hold_nothing_trained_and_as_many_options(
    name: str, other: str
) -> None:
    task, ood = load_embedded_task(name), load_ood(other)
    taught = {fact.noun for fact in facts_of(task.train)}
    asked = facts_of(ood)
    assert len(asked) >= 250
    assert not taught & {fact.noun for fact in asked}
    assert not set(asked) & set(facts_of(task.validation))
    assert {len(example.options) for example in ood} == set(task.options)
