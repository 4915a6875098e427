"""Prompts and labels as tokens, on tokenizers of several kinds built here."""

from __future__ import annotations

import functools
from pathlib import Path

import pytest
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from lora_ensembles.data import LETTERS, Example, encode_examples, render_label_prompt, render_prompt
from lora_ensembles.errors import ConfigError, DataError

TEXT = [
    render_prompt("Is the sun a star or a planet?", ["a star", "a planet", "a moon"]),
    "a).\n",
    render_label_prompt("Is the sun a star?") + " yes no maybe not sure",
    " ".join(f"({letter})" for letter in LETTERS),
]
SPECIAL = ["<pad>", "<s>", "</s>", "<unk>"]


def wrap(tokenizer: Tokenizer, template: str, **tokens: str) -> PreTrainedTokenizerFast:
    """A tokenizer that surrounds a text as the template says."""
    special = [(token, tokenizer.token_to_id(token)) for token in SPECIAL if token in template]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=template, pair=f"{template} $B", special_tokens=special
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>", **tokens
    )


@functools.cache
def word_level(template: str = "<s> $A") -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.WordLevel(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r" ?\w+|\n|[^\w\s]|\s"), "isolated")
    tokenizer.train_from_iterator(
        TEXT, trainers.WordLevelTrainer(special_tokens=SPECIAL, show_progress=False)
    )
    tokenizer.decoder = decoders.Fuse()
    return wrap(tokenizer, template, unk_token="<unk>")


@functools.cache
def byte_level(template: str = "<s> $A", vocab_size: int = 400) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(TEXT * 5, trainer)
    return wrap(tokenizer, template)


@functools.cache
def metaspace(template: str = "<s> $A") -> PreTrainedTokenizerFast:
    """As SentencePiece: a space is put in front of every text, so that a line alone begins with another token
    than inside a text.
    """
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    tokenizer.decoder = decoders.Metaspace()
    lines = [line.replace(":", "").replace("(", "") for text in TEXT for line in text.splitlines()] + list(
        "Q:A:()?.\n"
    )
    tokenizer.train_from_iterator(
        lines, trainers.BpeTrainer(vocab_size=120, special_tokens=SPECIAL, show_progress=False)
    )
    return wrap(tokenizer, template, unk_token="<unk>")


def merging() -> PreTrainedTokenizerFast:
    """A BPE with no boundaries, in which "(a" is one token."""
    characters = sorted(set("".join(TEXT)))
    vocabulary = {piece: index for index, piece in enumerate([*SPECIAL, *characters, "(a", "\nA"])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[("(", "a"), ("\n", "A")]))
    tokenizer.decoder = decoders.Fuse()
    return wrap(tokenizer, "<s> $A")


KINDS = {"word-level": word_level, "byte-level": byte_level, "metaspace": metaspace}


def lettered(
    *, count: int = 3, question: str = "Is the sun a star or a planet?", target: int | None = 0
) -> Example:
    options = ["a star", "a planet", "a moon", "the sun"][:count]
    return Example("sun", render_prompt(question, options), tuple(LETTERS[:count]), target)


def worded(*labels: str, question: str = "Is the sun a star?") -> Example:
    return Example("words", render_label_prompt(question), tuple(f" {label}" for label in labels), 0)


@pytest.mark.parametrize("kind", KINDS)
def test_prompt_and_label_tokens_are_those_of_the_whole_text(kind: str) -> None:
    tokenizer = KINDS[kind]()
    examples = [
        lettered(),
        lettered(count=2, question="A star?"),
        worded("yes", "no", "maybe"),
        worded("not sure", "yes"),
    ]

    for example, encoded in zip(examples, encode_examples(examples, tokenizer), strict=True):
        assert encoded.prompt_ids == tuple(tokenizer(example.prompt)["input_ids"])
        assert encoded.target == example.target
        for label, ids in zip(example.labels, encoded.label_ids, strict=True):
            assert encoded.prompt_ids + ids == tuple(tokenizer(example.prompt + label)["input_ids"])


@pytest.mark.parametrize("kind", KINDS)
def test_eos_that_a_tokenizer_appends_does_not_stand_between_prompt_and_label(kind: str) -> None:
    plain, appending = KINDS[kind](), KINDS[kind]("<s> $A </s>")
    examples = [lettered(), worded("yes", "no")]

    assert tuple(appending("A")["input_ids"])[-1] == appending.eos_token_id  # the premise
    assert encode_examples(examples, appending) == encode_examples(examples, plain)


def test_tokenizer_that_puts_nothing_in_front_keeps_it_so() -> None:
    tokenizer = byte_level("$A")

    assert encode_examples([lettered()], tokenizer)[0].prompt_ids[0] != tokenizer.bos_token_id


def test_words_are_spelt_as_they_stand_after_the_prompt_not_alone() -> None:
    tokenizer = word_level()
    encoded = encode_examples([worded("yes", "no")], tokenizer, single_token=True)[0]

    assert [tokenizer.convert_ids_to_tokens(list(ids)) for ids in encoded.label_ids] == [[" yes"], [" no"]]


def test_label_of_several_tokens_keeps_them_all() -> None:
    encoded = encode_examples([worded("yes", "not sure")], word_level())[0]

    assert [len(ids) for ids in encoded.label_ids] == [1, 2]


def test_line_that_merges_with_the_line_before_is_read_from_the_full_text() -> None:
    """Here the last line alone begins with "A", and inside a text with "\\nA": the shortcut must not be taken
    on trust.
    """
    tokenizer = merging()
    example = Example("merge", "Q: a star?\nA", ("b", "c"), 0)

    encoded = encode_examples([example], tokenizer)[0]

    assert tokenizer.convert_ids_to_tokens(encoded.prompt_ids[-1]) == "\nA"
    assert [tokenizer.convert_ids_to_tokens(list(ids)) for ids in encoded.label_ids] == [["b"], ["c"]]


def test_prompts_that_end_in_a_line_break_or_have_none_are_encoded() -> None:
    tokenizer = byte_level()
    examples = [
        Example("1", "Is the sun a star?\n", ("yes", "no"), 0),
        Example("2", "Is the sun a star?", (" yes", " no"), 0),
    ]

    for example, encoded in zip(examples, encode_examples(examples, tokenizer), strict=True):
        assert encoded.prompt_ids + encoded.label_ids[1] == tuple(
            tokenizer(example.prompt + example.labels[1])["input_ids"]
        )


def test_label_merged_with_the_end_of_the_prompt_is_named() -> None:
    with pytest.raises(
        DataError,
        match=r"example 'sun': after the prompt's end .* label 'a' has no tokens of its "
        r"own.*'\(a'.*choose other",
    ):
        encode_examples([lettered()], merging())


def test_prompt_that_ends_in_the_space_before_its_label_says_to_move_it() -> None:
    """The commonest slip with label words: "A: " + "yes", where " yes" is one token."""
    example = Example("slip", "Q: Is the sun a star?\nA: ", ("yes", "no"), 0)

    with pytest.raises(
        DataError,
        match=r"example 'slip'.*label 'yes'.*end the prompt without a space and begin the label with it",
    ):
        encode_examples([example], word_level())


def test_labels_of_the_same_tokens_are_both_named() -> None:
    tokenizer = byte_level()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    )
    from tokenizers import normalizers

    tokenizer.backend_tokenizer.normalizer = normalizers.Lowercase()

    with pytest.raises(DataError, match="example 'words': the labels ' Yes' and ' yes' are the same tokens"):
        encode_examples([worded("Yes", "no", "yes")], tokenizer)


def test_label_that_the_tokenizer_cannot_spell_is_named() -> None:
    with pytest.raises(DataError, match="cannot spell the label ' perhaps'"):
        encode_examples([worded("yes", "perhaps")], word_level())


def test_label_of_two_tokens_where_one_was_promised_is_named_with_its_tokens() -> None:
    with pytest.raises(
        DataError, match=r"label ' not sure' is 2 tokens \(\[' not', ' sure'\]\); one is needed"
    ):
        encode_examples([worded("yes", "not sure")], word_level(), single_token=True)


def test_one_label_may_be_the_beginning_of_another() -> None:
    first, second = encode_examples([worded("not", "not sure")], word_level())[0].label_ids

    assert second[: len(first)] == first


def test_overlong_prompt_is_refused_with_its_length_and_the_window() -> None:
    tokenizer = byte_level()
    length = len(tokenizer(lettered().prompt + "a")["input_ids"])

    assert len(encode_examples([lettered()], tokenizer, max_length=length)) == 1
    with pytest.raises(
        DataError,
        match=f"'sun': prompt and longest label are {length} tokens, and the window "
        f"is {length - 1}.*overlong='left'",
    ):
        encode_examples([lettered()], tokenizer, max_length=length - 1)


def test_truncated_prompt_keeps_its_beginning_token_its_end_and_its_answers() -> None:
    tokenizer = byte_level()
    whole = encode_examples([lettered()], tokenizer)[0]

    cut = encode_examples([lettered()], tokenizer, max_length=12, overlong="left")[0]

    assert cut.label_ids == whole.label_ids
    assert cut.target == whole.target
    assert cut.prompt_ids == (tokenizer.bos_token_id, *whole.prompt_ids[-10:])
    assert tokenizer.decode(cut.prompt_ids).endswith("A: (")


def test_window_counts_the_longest_label() -> None:
    tokenizer = word_level()
    cut = encode_examples([worded("yes", "not sure")], tokenizer, max_length=8, overlong="left")[0]

    assert len(cut.prompt_ids) + max(map(len, cut.label_ids)) == 8


def test_window_without_room_for_the_prompt_is_refused() -> None:
    with pytest.raises(DataError, match="leaves no token of the prompt"):
        encode_examples([lettered()], byte_level(), max_length=2, overlong="left")


def test_truncation_stored_in_a_tokenizer_does_not_cut_the_answer(tmp_path: Path) -> None:
    """Tokenizers saved after training often carry a truncation of their own, which cuts from the right."""
    saved = Tokenizer.from_str(byte_level().backend_tokenizer.to_str())
    saved.enable_truncation(8)
    saved.enable_padding(length=64)
    saved.save(str(tmp_path / "tokenizer.json"))
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_file=str(tmp_path / "tokenizer.json"), bos_token="<s>", eos_token="</s>"
    )

    assert encode_examples([lettered()], tokenizer) == encode_examples([lettered()], byte_level())


def test_tokenizer_that_pads_left_gives_the_same_tokens() -> None:
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(byte_level().backend_tokenizer.to_str()),
        pad_token=AddedToken("<pad>", special=True),
        padding_side="left",
    )
    examples = [lettered(), worded("yes", "no")]

    assert encode_examples(examples, tokenizer) == encode_examples(examples, byte_level())


def test_settings_that_cannot_work_are_refused() -> None:
    with pytest.raises(ConfigError, match="unknown overlong 'lef'; did you mean 'left'"):
        encode_examples([lettered()], byte_level(), overlong="lef")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="max_length is 0"):
        encode_examples([lettered()], byte_level(), max_length=0)


def test_empty_prompt_is_refused_and_no_examples_are_no_tokens() -> None:
    assert encode_examples([], byte_level()) == []
    with pytest.raises(DataError, match="example 'void': an empty prompt"):
        encode_examples([Example("void", "", ("a", "b"), 0)], byte_level("$A"))


def test_examples_of_a_corpus_equal_examples_encoded_alone() -> None:
    tokenizer = metaspace()
    examples = [
        lettered(count=2 + number % 3, question=f"Is {'the ' * number}sun a star?") for number in range(12)
    ]

    assert encode_examples(examples, tokenizer) == [
        encode_examples([example], tokenizer)[0] for example in examples
    ]
