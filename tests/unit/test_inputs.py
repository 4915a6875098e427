"""What can be passed as examples and prompts: what can be read as such works, anything else is refused with
the way to convert it.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import datasets
import pandas
import pytest
import torch
from transformers import GenerationConfig

import tiny_heads as heads
from lora_ensembles import (
    SingleMember,
    TemperatureScaled,
    generate_text,
    load_file,
    predict,
    predict_rewards,
    train,
)
from lora_ensembles.data import Completion, CompletionTask, Message, Task
from lora_ensembles.data.inputs import as_examples, as_prompts
from lora_ensembles.ensemble import LoraEnsemble
from lora_ensembles.errors import ConfigError, DataError
from lora_ensembles.training.config import TrainConfig
from tiny_ensembles import adapter, ensemble, llama, questions, tokenizer

CLASSES = ["bad", "good", "old"]
TEXTS = ["the red fox", "an old river", "a small bird saw it"]
ROWS: list[dict[str, Any]] = [{"text": text, "label": CLASSES[n % 3]} for n, text in enumerate(TEXTS * 2)]
SHORT = TrainConfig(epochs=1, batch_size=4)


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    pandas.DataFrame(rows).to_csv(path, index=False)
    return path


def classifier(**fields: Any) -> LoraEnsemble:
    made = heads.build_ensemble("bert", "sequence-classification", members=2, random_b=True)
    made.info = dataclasses.replace(
        made.info, head=heads.HeadConfig("sequence-classification", classes=tuple(CLASSES))
    )
    made.info = dataclasses.replace(made.info, task=fields)
    return made


def in_every_form(rows: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "list": rows,
        "tuple": tuple(rows),
        "generator": (row for row in rows),
        "dataset": datasets.Dataset.from_list(rows),
        "frame": pandas.DataFrame(rows),
    }


@pytest.mark.parametrize("form", [*in_every_form(ROWS)])
def test_rows_in_any_form_are_predicted_as_the_same_rows_of_a_file(form: str, tmp_path: Path) -> None:
    own = classifier()
    expected = predict(own, load_file(write(tmp_path / "rows.csv", ROWS), labels=CLASSES))

    prediction = predict(own, in_every_form(ROWS)[form])

    assert torch.equal(prediction.member_log_probs, expected.member_log_probs)
    assert prediction.targets is not None
    assert prediction.targets.tolist() == [n % 3 for n in range(6)]


@pytest.mark.parametrize("given", [TEXTS, tuple(TEXTS), iter(TEXTS), pandas.Series(TEXTS)])
def test_texts_are_predicted_as_rows_without_a_label(given: Any) -> None:
    own = classifier()
    expected = predict(own, [{"text": text} for text in TEXTS])

    prediction = predict(own, given)

    assert torch.equal(prediction.member_log_probs, expected.member_log_probs)
    assert (prediction.targets, prediction.num_examples) == (None, 3)


@pytest.mark.parametrize("one", [TEXTS[0], ROWS[0], as_examples([ROWS[0]], classifier().info)[0]])
def test_one_thing_alone_is_a_list_of_one(one: Any) -> None:
    own = classifier()

    assert torch.equal(predict(own, one).probs, predict(own, [one]).probs)
    assert predict(own, one).num_examples == 1


def test_baselines_read_texts_as_the_ensemble_in_them() -> None:
    own = classifier()
    expected = predict(own, TEXTS).member_log_probs

    alone = predict(SingleMember(own, 1), TEXTS).member_log_probs[0]
    torch.testing.assert_close(
        alone, expected[1], atol=1e-6, rtol=0
    )  # float32's rounding in a product of another size
    assert predict(TemperatureScaled(SingleMember(own, 1), 1.0, {}), TEXTS).num_examples == 3


def test_examples_that_a_generator_makes_are_predicted() -> None:
    own = ensemble(trained=True)

    assert torch.equal(predict(own, iter(questions(3))).probs, predict(own, questions(3)).probs)


@pytest.mark.parametrize("form", [*in_every_form(ROWS)])
def test_rows_in_any_form_train_a_classifier_with_the_classes_in_them(form: str) -> None:
    own = heads.build_ensemble("bert", "sequence-classification", members=1)

    train(own, in_every_form(ROWS)[form], SHORT, validation=ROWS[:3], progress=False)

    assert own.info.head.classes == ("bad", "good", "old")
    assert predict(own, TEXTS[0]).num_options == 3


def test_rows_of_questions_and_of_open_answers_train_a_language_model() -> None:
    asked = [
        {"question": f"Where does the {name} live", "options": ["lake", "forest"], "answer": "lake"}
        for name in ("otter", "lynx")
    ]
    own = ensemble()
    own.tokenizer = tokenizer()

    result = train(own, datasets.Dataset.from_list(asked), SHORT, progress=False)

    assert len(result.history) == 1
    assert [
        type(row)
        for row in as_examples([{"prompt": "otter", "completion": " lake"}], own.info, labelled=True)
    ] == [Completion]


def test_label_words_of_training_are_remembered_for_texts_and_survive_saving(tmp_path: Path) -> None:
    rows = [
        {"text": f"the {name} live", "label": label} for name, label in (("otter", "yes"), ("lynx", "no"))
    ]
    own = ensemble()
    train(own, load_file(write(tmp_path / "rows.csv", rows), labels=["yes", "no"]), SHORT, progress=False)
    own.save_pretrained(tmp_path / "saved")

    again = LoraEnsemble.from_pretrained(tmp_path / "saved", base=llama(), tokenizer=tokenizer())

    (example,) = as_examples("the otter live", again.info)
    assert (example.labels, example.options, example.target) == ((" yes", " no"), ("yes", "no"), None)
    assert torch.equal(predict(again, "the otter live").probs, predict(own, [example]).probs)


def test_lettered_questions_are_not_taken_for_label_words() -> None:
    own = ensemble()

    train(own, questions(4), SHORT, progress=False)

    assert "source" not in own.info.task


def test_new_file_is_read_with_the_ensembles_own_columns_and_classes(tmp_path: Path) -> None:
    source = {
        "train": "x.csv",
        "columns": {"question": "body", "answer": "kind", "answer_form": "text"},
        "labels": CLASSES,
    }
    own = classifier(source=source)
    path = write(tmp_path / "new.csv", [{"body": text} for text in TEXTS])

    examples = own.read(path)

    assert [example.question for example in examples] == TEXTS
    assert {example.options for example in examples} == {tuple(CLASSES)}
    assert own.read(str(path)) == examples
    assert [example.question for example in own.read([{"body": text} for text in TEXTS])] == TEXTS
    assert torch.equal(predict(own, TEXTS).probs, predict(own, examples).probs)


TASK = Task("animals", tuple(questions(2)), tuple(questions(2)))
OPEN = CompletionTask("talk", (Completion("1", "otter", " lake"),), (Completion("1", "otter", " lake"),))
SPLITS = datasets.DatasetDict(
    {"train": datasets.Dataset.from_list(ROWS), "test": datasets.Dataset.from_list(ROWS)}
)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (TASK, r"the task 'animals'; pass one of its parts, task\.train or task\.validation"),
        (OPEN, r"the task 'talk'; pass one of its parts"),
        (SPLITS, r"of the splits train, test; pass one, data\['train'\]"),
        (Path("new.csv"), r"the name of a file, 'new\.csv'; read it first: ensemble\.read\('new\.csv'\)"),
        (None, "is None; pass a list of Example"),
        (3, "is of type int; pass a list of Example"),
        ([3.5], r"\[0\] is of type float; pass a list of Example"),
        ([*questions(1), "text"], r"\[1\] is of type str; pass a list of Example"),
        (["text", None], r"\[1\] is None; pass a list of Example"),
        (torch.zeros(2, 3), r"\[0\] is of type torch\.Tensor; pass a list of Example"),
    ],
    ids=repr,
)
@pytest.mark.parametrize("verb", ["predict", "train", "validation"])
def test_what_cannot_be_read_is_refused_with_the_way_to_convert_it(
    verb: str, given: Any, message: str
) -> None:
    own = classifier()
    calls = {
        "predict": lambda: predict(own, given),
        "train": lambda: train(own, given, SHORT, progress=False),
        "validation": lambda: train(own, ROWS, SHORT, validation=given, progress=False),
    }

    with pytest.raises(
        DataError, match=f"^{'validation' if verb == 'validation' else 'examples'}.*{message}"
    ):
        calls[verb]()


def test_texts_for_an_ensemble_of_questions_are_refused_with_what_a_question_needs() -> None:
    with pytest.raises(
        DataError, match=r"it is not known what to choose among; pass rows such as \{'question'"
    ):
        predict(ensemble(), ["otter"])


def test_texts_without_answers_do_not_train() -> None:
    with pytest.raises(DataError, match="examples holds texts without answers; pass a list of Example"):
        train(classifier(), TEXTS, SHORT, progress=False)


def test_texts_for_a_reward_model_are_sent_to_its_own_function() -> None:
    own = heads.build_ensemble("bert", "reward", members=2)

    with pytest.raises(DataError, match="a reward model scores texts by predict_rewards"):
        predict(own, TEXTS)
    assert torch.equal(
        predict_rewards(own, TEXTS[0]).member_scores, predict_rewards(own, TEXTS[:1]).member_scores
    )
    with pytest.raises(DataError, match=r"texts\[1\] is of type int; pass texts"):
        predict_rewards(own, ["the fox", 3])  # type: ignore[list-item]


def test_nothing_at_all_is_refused_as_before() -> None:
    with pytest.raises(DataError, match="no examples to predict"):
        predict(classifier(), [])
    with pytest.raises(DataError, match="no training examples were given"):
        train(classifier(), [], SHORT, progress=False)


CHAT = [{"role": "user", "content": "otter"}]


@pytest.mark.parametrize(
    ("given", "prompts"),
    [
        ("otter", ["otter"]),
        (("otter", "lynx"), ["otter", "lynx"]),
        (CHAT, [(Message("user", "otter"),)]),
        (CHAT[0], [(Message("user", "otter"),)]),
        ([Message("user", "otter")], [(Message("user", "otter"),)]),
        ([CHAT, "lynx"], [(Message("user", "otter"),), "lynx"]),
        ([Completion("1", "otter", None)], ["otter"]),
        ([], []),
    ],
)
def test_prompts_are_texts_chats_or_lists_of_these(given: Any, prompts: list[Any]) -> None:
    assert as_prompts(given) == prompts


@pytest.mark.parametrize("given", [3, None, [3], [["otter"]], [None], [{"text": "otter"}]])
def test_what_is_no_prompt_is_refused(given: Any) -> None:
    with pytest.raises(DataError, match=r"^prompts(\[0\])? is .*a text, (or )?a chat"):
        as_prompts(given)


def test_a_bare_text_is_one_prompt() -> None:
    own, config = ensemble(trained=True), GenerationConfig(max_new_tokens=3)

    (text,) = generate_text(own, "otter", config)

    assert text.token_ids == generate_text(own, ["otter"], config)[0].token_ids


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"top_p": 2.0}, "top_p=2.0; it is a number above 0 and at most 1"),
        ({"top_p": 0.0}, "top_p=0.0; it is a number above 0"),
        ({"min_p": 1.5}, "min_p=1.5; it is a number of at least 0 and at most 1"),
        ({"typical_p": 2.0}, "typical_p=2.0; it is a number above 0 and at most 1"),
        ({"temperature": float("nan")}, "temperature=nan; it is a finite number above 0"),
        ({"temperature": -1.0}, "temperature=-1.0; it is a finite number above 0"),
        ({"repetition_penalty": 0.0}, "repetition_penalty=0.0; it is a finite number above 0"),
        ({"top_k": -1}, "top_k=-1; it is a whole number of at least 0"),
        ({"num_beams": 0}, "num_beams=0; it is a whole number of at least 1"),
        ({"stop_strings": [""]}, "stop_strings holds an empty text"),
        ({"stop_strings": ""}, "stop_strings holds an empty text"),
    ],
)
def test_setting_of_decoding_that_cannot_work_is_refused_by_name(
    settings: dict[str, Any], message: str
) -> None:
    config = GenerationConfig(max_new_tokens=2, do_sample=True)
    for (
        name,
        value,
    ) in settings.items():  # past the constructor, which refuses a part of these in its own words
        setattr(config, name, value)

    with pytest.raises(ConfigError, match=f"^{message}"):
        generate_text(ensemble(), "otter", config)


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        (
            ("tiny/llama", tokenizer()),
            r"base is the name 'tiny/llama'; load it first: .*load_base\('tiny/llama'\)",
        ),
        ((None, tokenizer()), "base is of type NoneType; it is a model of transformers"),
        ((torch.nn.Linear(2, 2), tokenizer()), "base is of type Linear; it is a model of transformers"),
        ((llama(), None), "tokenizer is of type NoneType; it is the base's own"),
        ((llama(), "tiny/llama"), "tokenizer is the name 'tiny/llama'; it is the base's own"),
        ((llama(), llama()), "tokenizer is of type LlamaForCausalLM; it is the base's own"),
    ],
    ids=lambda given: type(given).__name__,
)
def test_names_where_loaded_things_are_needed_are_refused_with_how_to_load_them(
    parts: Any, message: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=message):
        LoraEnsemble(*parts, adapter=adapter())
    with pytest.raises(ConfigError, match=message):
        LoraEnsemble.from_adapters(*parts, tmp_path)
