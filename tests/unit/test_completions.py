"""Prompts with open answers: what is read from files, which tokens they become, and what is refused."""

from __future__ import annotations

import copy
import csv
import functools
import io
import json
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerBase

import tiny_models
from lora_ensembles.data import (
    Completion,
    Message,
    completions_from_files,
    encode_completions,
    encode_prompts,
    holds_completions,
    is_open_ended,
    load_completions,
    read_completions,
)
from lora_ensembles.embedded import load_base
from lora_ensembles.errors import ConfigError, DataError

TEXT = {"prompt": "Q: Where do otters live?\nA:", "completion": " In rivers."}
CHAT = {
    "messages": [
        {"role": "system", "content": "Be short."},
        {"role": "user", "content": "Where do otters live?"},
        {"role": "assistant", "content": "In rivers."},
    ]
}
QUESTION = {"question": "The sun is a", "options": ["planet", "star"], "answer": "star"}
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def jsonl(path: Path, *rows: object) -> Path:
    path.write_text("".join(f"{row if isinstance(row, str) else json.dumps(row)}\n" for row in rows))
    return path


def csv_file(path: Path, *rows: list[str]) -> Path:
    with open(path, "w", newline="") as file:
        csv.writer(file).writerows(rows)
    return path


@functools.cache
def _tokenizer() -> PreTrainedTokenizerBase:
    return load_base()[1]


def tokenizer(
    template: str | None = None, *, end: str = "<|end|>", chat_tokens: bool = True
) -> PreTrainedTokenizerBase:
    """The embedded base's byte-level tokenizer, which reads any text, with a chat template and its tokens."""
    made = copy.deepcopy(_tokenizer())
    if chat_tokens:
        made.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    made.chat_template, made.eos_token = template, end
    return made


def chat(*contents: str, id: str = "1") -> Completion:
    """A chat whose sides take turns; the last one to speak is the assistant."""
    roles = ("user", "assistant")
    messages = tuple(Message(roles[n % 2], content) for n, content in enumerate(contents))
    return Completion(id, messages[:-1], messages[-1].content)


def test_prompts_and_completions_are_taken_as_they_are(tmp_path: Path) -> None:
    rows = load_completions(
        jsonl(tmp_path / "f.jsonl", TEXT, {**TEXT, "id": "otter", "completion": "\n In lakes. \n"})
    )

    assert rows[0] == Completion("f.jsonl:1", TEXT["prompt"], " In rivers.")
    assert (rows[1].id, rows[1].completion) == ("otter", "\n In lakes. \n")


def test_the_last_message_is_the_completion_and_the_earlier_ones_the_prompt(tmp_path: Path) -> None:
    row = load_completions(jsonl(tmp_path / "f.jsonl", CHAT))[0]

    assert row.prompt == (Message("system", "Be short."), Message("user", "Where do otters live?"))
    assert row.completion == "In rivers."


def test_csv_files_streams_and_hub_datasets_give_the_same_rows(tmp_path: Path) -> None:
    expected = load_completions(jsonl(tmp_path / "f.jsonl", TEXT))
    from_csv = load_completions(
        csv_file(tmp_path / "f.csv", ["prompt", "completion"], [TEXT["prompt"], TEXT["completion"]])
    )
    from_stream = read_completions(io.StringIO(json.dumps(TEXT)), name="f.jsonl")
    (tmp_path / "hub").mkdir()
    jsonl(tmp_path / "hub" / "train.jsonl", TEXT)
    from_hub = load_completions(f"hub:{tmp_path / 'hub'}:train")

    assert from_stream == expected
    for rows in (from_csv, from_hub):
        assert [(row.prompt, row.completion) for row in rows] == [
            (row.prompt, row.completion) for row in expected
        ]
    assert (
        load_completions(csv_file(tmp_path / "chat.csv", ["messages"], [json.dumps(CHAT["messages"])]))[
            0
        ].completion
        == "In rivers."
    )


def test_rows_without_an_answer_are_read_where_none_is_needed(tmp_path: Path) -> None:
    asked = {"messages": CHAT["messages"][:2]}
    rows = load_completions(
        jsonl(tmp_path / "f.jsonl", {"prompt": "Hello"}, TEXT, asked, CHAT), labelled=False
    )

    assert [row.completion for row in rows] == [None, " In rivers.", None, "In rivers."]
    assert rows[2].prompt == rows[3].prompt
    with pytest.raises(DataError, match=r"f\.jsonl, line 1: unknown column 'completion'"):
        load_completions(tmp_path / "f.jsonl")


def test_a_file_with_open_answers_is_known_by_its_first_row(tmp_path: Path) -> None:
    assert [is_open_ended(row) for row in (TEXT, CHAT, QUESTION, {"prompt": "Hello"})] == [
        True,
        True,
        False,
        False,
    ]
    assert is_open_ended({"prompt": "Hello"}, labelled=False)
    assert holds_completions(jsonl(tmp_path / "a.jsonl", TEXT, QUESTION))
    assert not holds_completions(jsonl(tmp_path / "b.jsonl", QUESTION, TEXT))
    assert not holds_completions(jsonl(tmp_path / "c.jsonl"))


def test_a_share_is_split_off_for_validation_as_for_questions(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "f.jsonl", *({**TEXT, "id": n} for n in range(1, 11)))
    task = completions_from_files(path, seed=3)

    assert (task.name, len(task.train), len(task.validation)) == ("f", 8, 2)
    assert sorted(row.id for row in (*task.train, *task.validation)) == sorted(str(n) for n in range(1, 11))
    assert task == completions_from_files(path, seed=3) != completions_from_files(path, seed=4)
    assert completions_from_files(path, path).train == load_completions(path)
    with pytest.raises(DataError, match="1 row cannot be split"):
        completions_from_files(jsonl(tmp_path / "one.jsonl", TEXT))


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({**TEXT, "prompt": " \n"}, "an empty prompt; the model needs something to answer to"),
        (
            {**TEXT, "prompt": None},
            "column 'prompt' holds nothing; a text is needed, or a chat in the column 'messages'",
        ),
        ({**TEXT, "prompt": CHAT["messages"]}, r"column 'prompt' holds \[\{.*; a text is needed, or a chat"),
        (
            {**TEXT, "completion": " "},
            "an empty completion; the text that should follow the prompt is needed",
        ),
        ({**TEXT, "completion": 4}, "column 'completion' holds 4; the text that should follow"),
        ({"prompt": "Hello"}, "column 'completion' holds nothing; the text that should follow"),
        ({"messages": []}, r"column 'messages' holds \[\]; a list of messages"),
        ({"messages": "hello"}, "column 'messages' holds 'hello', which is no JSON list of messages"),
        ({"messages": CHAT["messages"][:2]}, "the last message is by 'user'; it must be the assistant's"),
        ({"messages": CHAT["messages"][2:]}, "an empty prompt"),
        (
            {"messages": [{"role": "user"}, CHAT["messages"][2]]},
            r"message 1 is \{'role': 'user'\}; .* is needed, both texts",
        ),
        ({"messages": ["Hello", CHAT["messages"][2]]}, "message 1 is 'Hello'; "),
        (
            {"messages": [{"role": "user", "content": [{"type": "image"}]}, CHAT["messages"][2]]},
            "message 1 is .*image.* both texts",
        ),
        ('{"prompt": "cut', "not JSON"),
    ],
)
def test_a_bad_row_is_named_by_file_and_line(row: object, message: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=rf"f\.jsonl, line 2: {message}"):
        load_completions(jsonl(tmp_path / "f.jsonl", TEXT, row))


def test_a_file_without_rows_or_with_other_columns_and_an_unknown_format_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no rows; at least one prompt is needed"):
        load_completions(jsonl(tmp_path / "f.jsonl"))
    with pytest.raises(
        DataError,
        match=r"line 1: unknown column 'prompt'; .*Known: answer, options, question\. Needed are prompt and",
    ):
        load_completions(jsonl(tmp_path / "f.jsonl", QUESTION))
    with pytest.raises(ConfigError, match="unknown format 'cvs'; did you mean 'csv'"):
        read_completions(io.StringIO(""), format="cvs")  # type: ignore[arg-type]


def test_an_empty_prompt_or_completion_is_refused_in_code_too() -> None:
    for prompt, completion, message in (
        ("", "yes", "empty prompt"),
        ((), "yes", "empty prompt"),
        ("Well?", "", "empty completion"),
    ):
        with pytest.raises(DataError, match=f"example 'x': an {message}"):
            Completion("x", prompt, completion)


# Tokens


def test_completion_is_the_tokens_after_the_prompt_and_the_end_and_the_prompt_those_before() -> None:
    row = encode_completions([Completion("1", TEXT["prompt"], TEXT["completion"])], made := tokenizer())[0]
    whole = made(TEXT["prompt"] + TEXT["completion"])["input_ids"]

    assert [*row.prompt_ids, *row.label_ids[0]] == [*whole, made.eos_token_id]
    assert list(row.prompt_ids) == made(TEXT["prompt"])["input_ids"]
    assert (len(row.label_ids), row.target) == (1, 0)


def test_an_end_that_the_completion_has_already_is_not_put_there_twice() -> None:
    rows = encode_completions(
        [Completion("1", "Well?", " Yes."), Completion("2", "Well?", " Yes.<|end|>")], tokenizer()
    )

    assert rows[0] == rows[1]


def test_a_tokenizer_without_an_end_is_refused() -> None:
    made = tokenizer()
    made.eos_token = None

    with pytest.raises(
        DataError,
        match=r"no end-of-sequence token, so an answer would have no end; name one of its tokens: "
        r"tokenizer\.eos",
    ):
        encode_completions([Completion("1", "Well?", " Yes.")], made)


def test_a_completion_that_the_tokenizer_merges_with_the_prompt_or_cannot_spell_is_refused() -> None:
    with pytest.raises(
        DataError,
        match=r"example 'x': after the prompt's end .* the completion 'rivers' has no tokens of its own",
    ):
        encode_completions([Completion("x", "They live in ", "rivers")], tokenizer())
    with pytest.raises(DataError, match="example 'x': the tokenizer cannot spell the completion ' zebra'"):
        encode_completions([Completion("x", "Q: the fox?\nA:", " zebra")], tiny_models.tokenizer())


def test_a_chat_is_rendered_by_the_tokenizers_own_template_and_ends_with_its_end() -> None:
    made = tokenizer(CHATML, end="<|im_end|>")
    row = encode_completions([chat("Hello", "Hi!", "Where do otters live?", "In rivers.")], made)[0]

    assert (
        made.decode(row.label_ids[0]) == "In rivers.<|im_end|>"
    )  # without the template's line break behind it
    turns = (
        "<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\nHi!<|im_end|>\n<|im_start|>user\n"
        "Where do otters live?<|im_end|>\n"
    )
    assert made.decode(row.prompt_ids) == f"{turns}<|im_start|>assistant\n"
    messages = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi!"}]
    whole = made.apply_chat_template(messages, tokenize=True, return_dict=True)["input_ids"]
    row = encode_completions([chat("Hello", "Hi!")], made)[0]
    assert [*row.prompt_ids, *row.label_ids[0]] == whole[: len(row.prompt_ids) + len(row.label_ids[0])]


def test_a_template_that_writes_no_end_gets_one() -> None:
    made = tokenizer(CHATML, end="<|end|>")
    row = encode_completions([chat("Hello", "Hi!")], made)[0]

    assert made.decode(row.label_ids[0]) == "Hi!<|im_end|>\n<|end|>"


def test_an_end_inside_an_answer_is_kept_and_what_stands_behind_the_last_one_cut_off() -> None:
    made = tokenizer(CHATML, end="<|im_end|>")
    row = encode_completions([chat("Hello", "One.<|im_end|> Two.")], made)[0]

    assert made.decode(row.label_ids[0]) == "One.<|im_end|> Two.<|im_end|>"


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (
            None,
            "example '1': chat messages, and the tokenizer has no chat template; set tokenizer.chat_template",
        ),
        (
            "{% for m in messages %}{{ m.content }}{% endfor %}{% if add_generation_prompt %} "
            "Answer:{% endif %}",
            "renders the prompt diff",
        ),
        (
            "{% for m in messages %}{% if not loop.last or m.role == 'user' %}"
            "{{ m.content }}{% endif %}{% endfor %}",
            "renders the prompt d",
        ),
        (
            "{{ raise_exception('roles must alternate') }}",
            "example '1': the tokenizer's chat template refuses the messages: roles must alt",
        ),
    ],
)
def test_a_chat_that_cannot_be_rendered_is_refused(template: str | None, message: str) -> None:
    with pytest.raises(DataError, match=message):
        encode_completions([chat("Hello", "Hi!")], tokenizer(template))


def test_what_is_too_long_loses_the_beginning_of_its_prompt_and_never_its_answer() -> None:
    made = tokenizer(CHATML, end="<|im_end|>")
    long = Completion("long", "one two three four five six seven", " eight nine")
    whole = encode_completions([long], made)[0]
    length = len(whole.prompt_ids) + len(whole.label_ids[0])

    with pytest.raises(
        DataError,
        match=rf"example 'long': prompt and completion are {length} tokens, and the window is {length - 2}; "
        r"shor",
    ):
        encode_completions([long], made, max_length=length - 2)
    cut = encode_completions([long], made, max_length=length - 2, overlong="left")[0]
    assert cut.label_ids == whole.label_ids
    assert cut.prompt_ids == (
        whole.prompt_ids[0],
        *whole.prompt_ids[3:],
    )  # what the tokenizer puts in front stays
    with pytest.raises(DataError, match="leaves no token of the prompt"):
        encode_completions([long], made, max_length=len(whole.label_ids[0]) + 1, overlong="left")
    talk, begin = chat("Hello there", "Hi!"), tokenizer("<|begin|>" + CHATML, end="<|im_end|>")
    whole = encode_completions([talk], begin)[0]
    cut = encode_completions(
        [talk], begin, max_length=len(whole.prompt_ids) + len(whole.label_ids[0]) - 1, overlong="left"
    )[0]
    assert whole.prompt_ids[0] == begin.bos_token_id
    assert cut.prompt_ids == (whole.prompt_ids[0], *whole.prompt_ids[2:])


def test_prompts_alone_are_those_that_training_puts_before_the_answer() -> None:
    made = tokenizer(CHATML, end="<|im_end|>")
    rows = [
        Completion("1", TEXT["prompt"], TEXT["completion"]),
        chat("Hello", "Hi!"),
        Completion("3", "Well?", " Yes."),
    ]

    assert encode_prompts([row.prompt for row in rows], made) == [
        row.prompt_ids for row in encode_completions(rows, made)
    ]
    assert encode_prompts([], made) == encode_completions([], made) == []


@pytest.mark.parametrize(
    ("prompts", "options", "message"),
    [
        (["Hello", " "], {}, "prompt 2: an empty prompt"),
        ([()], {}, "prompt 1: an empty prompt"),
        (
            ["Hello", (Message("user", "Hello"),)],
            {},
            "prompt 2: chat messages, and the tokenizer has no chat template",
        ),
        (
            ["one two three four"],
            {"max_length": 3},
            r"prompt 1: it is \d+ tokens, and the window is 3; shorten it",
        ),
    ],
)
def test_a_prompt_that_cannot_be_used_is_named_by_its_number(
    prompts: list[Any], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        encode_prompts(prompts, tokenizer(), **options)


def test_settings_that_cannot_work_are_refused() -> None:
    with pytest.raises(ConfigError, match="max_length is 0"):
        encode_prompts(["Hello"], tokenizer(), max_length=0)
    with pytest.raises(ConfigError, match="unknown overlong 'right'"):
        encode_completions(
            [Completion("1", "Well?", " Yes.")],
            tokenizer(),
            overlong="right",  # type: ignore[arg-type]
        )
