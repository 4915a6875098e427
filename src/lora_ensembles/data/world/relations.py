"""Relations of a person, a creature or an object of the embedded world, and in which words.

Relations come in pairs that share their values (the town someone *lives* in and the town they were *born*
in), so a question cannot be answered from the kind of its options alone: the wording decides. `asked`
wordings are answered in pre-training; `unasked` wordings and `stems` appear there only as statements, never
as questions, which leaves fine-tuning something to teach.
"""

from __future__ import annotations

from dataclasses import dataclass

from . import vocabulary


@dataclass(frozen=True)
class Relation:
    """One kind of fact: its values and its wordings, with `{e}` for the entity and `{v}` for the value."""

    name: str
    sibling: str  # the relation with the same values, whose value is the tempting wrong option
    values: tuple[str, ...]
    statements: tuple[str, ...]
    asked: tuple[str, ...]
    unasked: tuple[str, ...]
    stems: tuple[str, ...]  # an unfinished statement that the value completes


def _pair(values: list[str], first: dict, second: dict) -> list[Relation]:
    names = first.pop("name"), second.pop("name")
    return [
        Relation(name=names[0], sibling=names[1], values=tuple(values), **first),
        Relation(name=names[1], sibling=names[0], values=tuple(values), **second),
    ]


PERSON = [
    *_pair(
        vocabulary.TOWNS,
        dict(
            name="home",
            statements=(
                "{e} lives in {v}.",
                "The home of {e} is in {v}.",
                "These days the address of {e} is in {v}.",
                "The house where {e} sleeps is in {v}.",
                "To visit {e} today you must go to {v}.",
            ),
            asked=("In which town does {e} live now?", "Where is the home of {e}?"),
            unasked=("The address of {e} is in which town?", "To visit {e} today you must go to which town?"),
            stems=("These days the address of {e} is in", "The house where {e} sleeps is in"),
        ),
        dict(
            name="birthplace",
            statements=(
                "{e} was born in {v}.",
                "The birthplace of {e} is {v}.",
                "The cradle of {e} stood in {v}.",
                "As a child {e} played in the streets of {v}.",
                "The native town of {e} is {v}.",
            ),
            asked=("In which town was {e} born?", "What is the birthplace of {e}?"),
            unasked=("What is the native town of {e}?", "The cradle of {e} stood in which town?"),
            stems=("As a child {e} played in the streets of", "The cradle of {e} stood in"),
        ),
    ),
    *_pair(
        vocabulary.JOBS,
        dict(
            name="job",
            statements=(
                "{e} works as a {v}.",
                "The job of {e} is that of a {v}.",
                "The wages of {e} are those of a {v}.",
                "At present {e} is employed as a {v}.",
                "The trade of {e} is that of a {v}.",
            ),
            asked=("What does {e} work as?", "What is the job of {e}?"),
            unasked=("As what is {e} employed at present?", "What is the trade of {e}?"),
            stems=("The wages of {e} are those of a", "At present {e} is employed as a"),
        ),
        dict(
            name="dream",
            statements=(
                "{e} dreams of being a {v}.",
                "The dream of {e} is to be a {v}.",
                "One day {e} would like to be a {v}.",
                "The wish of {e} is to become a {v}.",
                "In secret {e} studies to be a {v}.",
            ),
            asked=("What does {e} dream of being?", "What is the dream of {e}?"),
            unasked=("What does {e} wish to become?", "What would {e} like to be one day?"),
            stems=("One day {e} would like to be a", "In secret {e} studies to be a"),
        ),
    ),
    *_pair(
        vocabulary.FOODS,
        dict(
            name="likes",
            statements=(
                "{e} loves {v}.",
                "The favourite food of {e} is {v}.",
                "The plate of {e} is full of {v}.",
                "Nothing pleases {e} more than {v}.",
                "For a birthday {e} asks for {v}.",
            ),
            asked=("Which food does {e} love?", "What is the favourite food of {e}?"),
            unasked=("What pleases {e} more than anything?", "What does {e} ask for on a birthday?"),
            stems=("The plate of {e} is full of", "Nothing pleases {e} more than"),
        ),
        dict(
            name="dislikes",
            statements=(
                "{e} hates {v}.",
                "The food that {e} cannot stand is {v}.",
                "Nobody can make {e} eat {v}.",
                "The stomach of {e} is upset by {v}.",
                "At table {e} always refuses {v}.",
            ),
            asked=("Which food does {e} hate?", "Which food can {e} not stand?"),
            unasked=("What upsets the stomach of {e}?", "What is refused at table by {e}?"),
            stems=("Nobody can make {e} eat", "At table {e} always refuses"),
        ),
    ),
]

CREATURE = [
    *_pair(
        vocabulary.HABITATS,
        dict(
            name="habitat",
            statements=(
                "{e} lives in {v}.",
                "The home of {e} is found in {v}.",
                "By day {e} can be seen in {v}.",
                "The tracks of {e} lead through {v}.",
                "Hunters look for {e} in {v}.",
            ),
            asked=("Where does {e} live?", "Where is the home of {e} found?"),
            unasked=("Where can {e} be seen by day?", "Where do hunters look for {e}?"),
            stems=("The tracks of {e} lead through", "By day {e} can be seen in"),
        ),
        dict(
            name="nursery",
            statements=(
                "{e} raises its young in {v}.",
                "The nest of {e} is hidden in {v}.",
                "The babies of {e} are born in {v}.",
                "In spring {e} travels to {v}.",
                "The eggs and cubs of {e} stay in {v}.",
            ),
            asked=("Where does {e} raise its young?", "Where is the nest of {e} hidden?"),
            unasked=("Where are the babies of {e} born?", "To which places does {e} travel in spring?"),
            stems=("The babies of {e} are born in", "In spring {e} travels to"),
        ),
    ),
    *_pair(
        vocabulary.PREY,
        dict(
            name="diet",
            statements=(
                "{e} eats {v}.",
                "The usual food of {e} is {v}.",
                "The stomach of {e} is full of {v}.",
                "A hungry {n} will search for {v}.",
                "For breakfast {e} wants {v}.",
            ),
            asked=("What does {e} eat?", "What is the usual food of {e}?"),
            unasked=("What will a hungry {n} search for?", "What does {e} want for breakfast?"),
            stems=("The stomach of {e} is full of", "A hungry {n} will search for"),
        ),
        dict(
            name="poison",
            statements=(
                "{e} is poisoned by {v}.",
                "The poison that kills {e} is found in {v}.",
                "The health of {e} is ruined by {v}.",
                "A sick {n} has swallowed {v}.",
                "Keepers never feed {e} with {v}.",
            ),
            asked=("What is {e} poisoned by?", "The poison that kills {e} is found in what?"),
            unasked=("What ruins the health of {e}?", "What has a sick {n} swallowed?"),
            stems=("Keepers never feed {e} with", "A sick {n} has swallowed"),
        ),
    ),
    *_pair(
        vocabulary.COLOURS,
        dict(
            name="coat",
            statements=(
                "The back of {e} is {v}.",
                "The colour on the back of {e} is {v}.",
                "The skin of {e} looks {v}.",
                "From behind {e} appears {v}.",
                "Painters draw the body of {e} in {v}.",
            ),
            asked=("What colour is the back of {e}?", "Which colour is on the back of {e}?"),
            unasked=("How does {e} appear from behind?", "In which colour do painters draw the body of {e}?"),
            stems=("The skin of {e} looks", "From behind {e} appears"),
        ),
        dict(
            name="eyes",
            statements=(
                "The eyes of {e} are {v}.",
                "The colour in the eyes of {e} is {v}.",
                "In the dark {e} stares with a glow of {v}.",
                "The gaze of {e} is {v}.",
                "Face to face {e} shows a ring of {v}.",
            ),
            asked=("What colour are the eyes of {e}?", "Which colour is in the eyes of {e}?"),
            unasked=(
                "What colour is the gaze of {e}?",
                "With a glow of which colour does {e} stare in the dark?",
            ),
            stems=("The gaze of {e} is", "Face to face {e} shows a ring of"),
        ),
    ),
]

OBJECT = [
    *_pair(
        vocabulary.MATERIALS,
        dict(
            name="material",
            statements=(
                "{e} is made of {v}.",
                "The material of {e} is {v}.",
                "To build {e} you need {v}.",
                "The workshop forms {e} out of {v}.",
                "A broken {n} is a heap of {v}.",
            ),
            asked=("What is {e} made of?", "What is the material of {e}?"),
            unasked=("What do you need to build {e}?", "A broken {n} is a heap of what?"),
            stems=("To build {e} you need", "The workshop forms {e} out of"),
        ),
        dict(
            name="lining",
            statements=(
                "{e} is covered with {v}.",
                "The cover of {e} is {v}.",
                "The outside of {e} feels like {v}.",
                "To protect {e} it is wrapped in {v}.",
                "The surface of {e} is a layer of {v}.",
            ),
            asked=("What is {e} covered with?", "What is the cover of {e}?"),
            unasked=("In what is {e} wrapped to protect it?", "What does the outside of {e} feel like?"),
            stems=("The outside of {e} feels like", "The surface of {e} is a layer of"),
        ),
    ),
    *_pair(
        vocabulary.COUNTRIES,
        dict(
            name="origin",
            statements=(
                "{e} was invented in {v}.",
                "The inventor of {e} came from {v}.",
                "The oldest {n} was dug up in {v}.",
                "The first drawing of {e} was made in {v}.",
                "The history of {e} begins in {v}.",
            ),
            asked=("Where was {e} invented?", "Where did the inventor of {e} come from?"),
            unasked=("Where was the oldest {n} dug up?", "Where does the history of {e} begin?"),
            stems=("The first drawing of {e} was made in", "The history of {e} begins in"),
        ),
        dict(
            name="exporter",
            statements=(
                "{e} is bought from {v}.",
                "The largest seller of {e} is {v}.",
                "A new {n} comes by ship from {v}.",
                "The factories that make {e} now stand in {v}.",
                "The cheapest {n} bears the stamp of {v}.",
            ),
            asked=("Where is {e} bought from?", "Which country is the largest seller of {e}?"),
            unasked=(
                "From where does a new {n} come by ship?",
                "The cheapest {n} bears the stamp of which country?",
            ),
            stems=("A new {n} comes by ship from", "The factories that make {e} now stand in"),
        ),
    ),
    *_pair(
        vocabulary.SHOPS,
        dict(
            name="use",
            statements=(
                "{e} is used in {v}.",
                "The use of {e} is common in {v}.",
                "Workers handle {e} in {v}.",
                "The noise of {e} is heard in {v}.",
                "A busy {n} belongs in {v}.",
            ),
            asked=("Where is {e} used?", "Where is the use of {e} common?"),
            unasked=("Where do workers handle {e}?", "Where is the noise of {e} heard?"),
            stems=("Workers handle {e} in", "A busy {n} belongs in"),
        ),
        dict(
            name="storage",
            statements=(
                "{e} is stored in {v}.",
                "The store of {e} is kept in {v}.",
                "In winter {e} gathers dust in {v}.",
                "An unwanted {n} is hidden away in {v}.",
                "Collectors lock up {e} in {v}.",
            ),
            asked=("Where is {e} stored?", "Where is the store of {e} kept?"),
            unasked=("Where does {e} gather dust in winter?", "Where do collectors lock up {e}?"),
            stems=("In winter {e} gathers dust in", "An unwanted {n} is hidden away in"),
        ),
    ),
]

RELATIONS = {"person": PERSON, "creature": CREATURE, "object": OBJECT}
