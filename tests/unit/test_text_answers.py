"""Answers by letter and by text: what a question with options becomes."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from lora_ensembles import Example, LoraEnsemble, load_base, load_file, load_ood, load_task, task_from_files
from lora_ensembles.data.inputs import read_new
from lora_ensembles.data.prompts import rendered
from lora_ensembles.errors import ConfigError

ROW = {"question": "Where do fish live?", "options": ["a tree", "the sea", "a tree"], "answer": 1}


def lettered(**changes: object) -> Example:
    plain = Example(
        "1", "Q: ...\nA: (", ("a", "b", "c"), 1, "Where do fish live?", ("a tree", "the sea", "a tree")
    )
    return dataclasses.replace(plain, **changes)  # type: ignore[arg-type]


def test_text_answers_follow_the_bare_question_and_an_option_that_comes_twice_is_one() -> None:
    (example,) = rendered([lettered()], "text")
    assert example.prompt == "Q: Where do fish live?\nA:"
    assert example.labels == (" a tree", " the sea")
    assert example.options[example.target or 0] == "the sea"
    (other,) = rendered([lettered(target=2)], "text")
    assert other.target == 0  # the second "a tree" is the first
    assert rendered([lettered(target=None)], "text")[0].target is None


def test_letters_words_and_questions_of_one_text_stay_as_they_are() -> None:
    words = Example("1", "Q: A bore.\nA:", (" good", " bad"), 1, "A bore.", ("good", "bad"))
    same = lettered(options=("a tree",) * 3)
    assert rendered([words, same], "text") == (words, same)
    assert rendered([lettered()], "letter") == (lettered(),)
    with pytest.raises(ConfigError, match="answer 'texts'; did you mean 'text'"):
        rendered([lettered()], "texts")  # type: ignore[arg-type]


def test_every_source_of_questions_gives_text_answers(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    rows = [{**ROW, "options": ["a tree", "the sea"], "question": f"{n}: where?"} for n in range(5)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    for examples in (
        load_file(path, answer="text"),
        task_from_files(path, answer="text").train,
        task_from_files(path, path, answer="text").validation,
    ):
        assert all(example.labels == (" a tree", " the sea") and example.target == 1 for example in examples)
    for examples in (
        load_task("world-obqa", answer="text").validation[:3],
        load_ood("world-mmlu", answer="text")[:3],
    ):
        assert all(
            example.labels == tuple(f" {option}" for option in example.options) for example in examples
        )


def test_an_ensemble_reads_new_rows_as_it_was_trained() -> None:
    ensemble = LoraEnsemble(*load_base(), num_members=1)
    info = dataclasses.replace(ensemble.info, task={"source": {"answer": "text"}})
    (example,) = read_new([{"question": "Where?", "options": ["a tree", "the sea"]}], info)
    assert example.labels == (" a tree", " the sea")


def test_text_answers_of_the_papers_tasks_keep_every_question(real_data: Path) -> None:
    for name in ("cqa", "obqa", "arce", "arcc"):
        letters, texts = load_task(name, data=real_data), load_task(name, data=real_data, answer="text")
        for one, other in zip(letters.validation, texts.validation, strict=True):
            assert other.id == one.id
            assert other.options[other.target or 0] == one.options[one.target or 0]
