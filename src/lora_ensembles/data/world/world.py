"""The embedded world: entities, their facts, and the English sentences and questions that can be made of
them.

A fact is (entity, relation, value). How often it is told differs from fact to fact by a factor of up to 10,
so facts are known to different degrees. Entities have one of three roles: `asked` ones are asked about in
pre-training, `task` ones only in the embedded tasks, `probe` ones only to watch and temper the pre-training.
Everything is a pure function of a seed.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence
from dataclasses import dataclass

from . import vocabulary
from .relations import RELATIONS, Relation

WORLD_SEED = 2310_00035
POPULARITY_RANGE = 10.0  # the most told fact is told this many times as often as the least told
ROLE_SHARES = (("asked", 0.5), ("probe", 0.1), ("task", 0.4))
ENTITIES_PER_KIND = {"person": 320, "creature": 180, "object": 180}


@dataclass(frozen=True)
class Fact:
    """One fact, with the value of its sibling relation, which makes the tempting wrong option."""

    kind: str
    noun: str
    relation: Relation
    value: str
    sibling_value: str
    popularity: float  # relative frequency with which the fact is told, in (1/10, 1]

    def say(self, wording: str, value: str | None = None) -> str:
        """`wording` with this fact's entity and `value` (its own by default) filled in, capitalised."""
        entity = self.noun if self.kind == "person" else f"the {self.noun}"
        text = wording.format(e=entity, n=self.noun, v=value or self.value)
        return text[0].upper() + text[1:]


@dataclass(frozen=True)
class World:
    """All facts, by role of their entity."""

    facts: dict[str, list[Fact]]

    def told(self) -> list[Fact]:
        """Every fact, of every role, in a fixed order."""
        return list(itertools.chain.from_iterable(self.facts[role] for role, _ in ROLE_SHARES))


def build_world(seed: int = WORLD_SEED) -> World:
    """The world of a seed: 680 entities with six facts each.

    Example:
        >>> world = build_world()
        >>> sum(len(facts) for facts in world.facts.values())
        4080
    """
    rng = random.Random(seed)
    nouns = {"person": vocabulary.PEOPLE, "creature": vocabulary.CREATURES, "object": vocabulary.OBJECTS}
    facts: dict[str, list[Fact]] = {role: [] for role, _ in ROLE_SHARES}
    for kind, count in ENTITIES_PER_KIND.items():
        chosen = rng.sample(nouns[kind], count)
        for index, noun in enumerate(chosen):
            facts[_role(index / count)].extend(_facts_about(noun, kind, rng=rng))
    return World(facts)


def _role(position: float) -> str:
    edge = 0.0
    for role, share in ROLE_SHARES:
        edge += share
        if position < edge - 1e-9:
            return role
    return ROLE_SHARES[-1][0]


def _facts_about(noun: str, kind: str, *, rng: random.Random) -> list[Fact]:
    values: dict[str, str] = {}
    for relation in RELATIONS[kind]:  # siblings get different values, so that only one of them is right
        taken = values.get(relation.sibling)
        values[relation.name] = rng.choice([value for value in relation.values if value != taken])
    return [
        Fact(
            kind,
            noun,
            relation,
            values[relation.name],
            values[relation.sibling],
            POPULARITY_RANGE ** -rng.random(),
        )
        for relation in RELATIONS[kind]
    ]


def draw_options(fact: Fact, *, count: int, temptation: float, rng: random.Random) -> tuple[list[str], int]:
    """`count` different options for a question about `fact`, and the index of the right one.

    With probability `temptation` one wrong option is the value of the sibling relation (the town she was born
    in, where the question is the town she lives in); the others are drawn from the relation's values.
    """
    wrong = [fact.sibling_value] if rng.random() < temptation else []
    rest = [value for value in fact.relation.values if value not in (fact.value, fact.sibling_value)]
    options = [fact.value, *wrong, *rng.sample(rest, count - 1 - len(wrong))]
    rng.shuffle(options)
    return options, options.index(fact.value)


class FactPool:
    """Facts to draw from in proportion to their popularity, with replacement."""

    def __init__(self, facts: Sequence[Fact]):
        self.facts = facts
        self._cumulative = list(itertools.accumulate(fact.popularity for fact in facts))

    def draw(self, count: int, *, rng: random.Random) -> list[Fact]:
        return rng.choices(self.facts, cum_weights=self._cumulative, k=count)
