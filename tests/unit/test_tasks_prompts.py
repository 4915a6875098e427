"""Prompts and the records they go into, held against the samples that Appendix C of
arXiv:2310.00035 prints.
"""

from __future__ import annotations

import pytest

from lora_ensembles.data import LETTERS, Example, Task, render_label_prompt, render_prompt
from lora_ensembles.errors import DataError

# Each sample as the paper prints it, up to where the letter of the answer stands; the page's line breaks
# inside a question are undone.
SAMPLES = {
    "C.1": """Q: The sanctions against the school were a punishing blow, and they seemed to what the efforts \
the school had made to change?
Answer Choices:
(a) ignore
(b) enforce
(c) authoritarian
(d) yell at
(e) avoid
A: (""",
    "C.2": """Q: The sun is responsible for
Answer Choices:
(a) puppies learning new tricks
(b) children growing up and getting old
(c) flowers wilting in a vase
(d) plants sprouting, blooming and wilting
A: (""",
    "C.3": """Q: Which factor will most likely cause a person to develop a fever?
Answer Choices:
(a) a leg muscle relaxing after exercise
(b) a bacterial population in the bloodstream
(c) several viral particles on the skin
(d) carbohydrates being digested in the stomach
A: (""",
    "C.4": """Q: George wants to warm his hands quickly by rubbing them. Which skin surface will produce the \
most heat?
Answer Choices:
(a) dry palms
(b) wet palms
(c) palms covered with oil
(d) palms covered with lotion
A: (""",
    "C.5": """Q: Which of these statements is true of the Vatican in 2010 at the time of the accusations of \
child abuse cover-ups?
Answer Choices:
(a) There was a coordinated media response.
(b) Consistent messages were communicated.
(c) Criticisms were taken as attacks on the Catholic Church.
(d) The credibility of the Vatican was upheld.
A: (""",
    "C.6": (
        "Q: A tank initially contains a salt solution of 3 grams of salt dissolved in 100 liters of water. "
        "A salt solution containing 0.02 grams of salt per liter of water is sprayed into the tank "
        "at a rate of 4 liters per minute. The sprayed solution is continually mixed with the salt solution "
        "in the tank, and the mixture flows out of the tank at a rate of 4 liters per minute. If the mixing "
        "is instantaneous, how many grams of salt are in the tank after 100 minutes have elapsed?\n"
        "Answer Choices:\n(a) 2\n(b) 2 - e^{-2}\n(c) 2 + e^{-2}\n(d) 2 + e^{-4}\nA: ("
    ),
}


@pytest.mark.parametrize("sample", SAMPLES.values(), ids=SAMPLES.keys())
def test_prompt_is_the_sample_of_appendix_c(sample: str) -> None:
    question, *options = [line for line in sample.splitlines() if line != "Answer Choices:"][:-1]
    texts = [option.partition(") ")[2] for option in options]

    assert render_prompt(question.removeprefix("Q: "), texts) == sample


def test_prompt_letters_every_one_of_26_options_and_no_more() -> None:
    prompt = render_prompt("Which?", [f"option {number}" for number in range(26)])

    assert [line[1] for line in prompt.splitlines() if line.startswith("(")] == list(LETTERS)
    with pytest.raises(DataError, match=r"27 options .* at most 26"):
        render_prompt("Which?", ["x"] * 27)


def test_label_prompt_lists_no_options_and_ends_without_a_space() -> None:
    assert render_label_prompt("Is the sun a star?") == "Q: Is the sun a star?\nA:"


@pytest.mark.parametrize(
    ("labels", "target", "message"),
    [
        (("a",), 0, "1 labels; at least 2"),
        (("a", "b", "a"), 0, "label 'a' comes twice, at 0 and 2"),
        (("a", ""), 0, "label 1 is empty"),
        (("a", "b"), 2, r"target 2 is no index into its 2 labels \(0 to 1\)"),
        (("a", "b"), -1, "target -1 is no index"),
    ],
)
def test_example_refuses_labels_that_cannot_be_chosen_from(
    labels: tuple[str, ...], target: int, message: str
) -> None:
    with pytest.raises(DataError, match=f"example 'seven': {message}"):
        Example(id="seven", prompt="?", labels=labels, target=target)


def test_task_lists_the_option_counts_of_both_parts_once_in_rising_order() -> None:
    examples = {
        count: Example(id=str(count), prompt="?", labels=tuple(LETTERS[:count]), target=None)
        for count in (2, 3, 5)
    }

    assert Task("t", train=(examples[5], examples[3], examples[5]), validation=(examples[2],)).options == [
        2,
        3,
        5,
    ]
