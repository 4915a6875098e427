"""Prompts with an open answer: texts or chat messages, where they come from, and how they become tokens."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TextIO

from ..errors import DataError, unknown_name
from .columns import short
from .encoding import (
    EncodedExample,
    Ids,
    Window,
    check_window,
    continuations,
    fit,
    leading_ids,
    no_boundary,
    tokenise,
)
from .files import split_rows
from .sources import Row, named_rows, stream_rows

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Message:
    """What one side of a chat said; `role` is "system", "user", "assistant", or another that the chat template knows.

    Example:
        >>> Message("user", "Where do otters live?").role
        'user'
    """

    role: str
    content: str


Prompt = str | tuple[Message, ...]


@dataclass(frozen=True)
class Completion:
    """A prompt and the text that should follow it.

    Attributes:
        id: names the example in results and in errors.
        prompt: what the model reads: a text, taken as it is, or the messages of a chat before the answer.
        completion: the answer: a text that follows the prompt as it is, with its leading space where it has one, or what the assistant
            says next. None where it is not known.

    Raises:
        DataError: an empty prompt or an empty completion.

    Example:
        >>> Completion("1", "Q: Where do otters live?\\nA:", " In rivers and lakes.").completion
        ' In rivers and lakes.'
    """

    id: str
    prompt: Prompt
    completion: str | None

    def __post_init__(self) -> None:
        if problem := _problem(self.prompt, self.completion):
            raise DataError(f"example {self.id!r}: {problem}")


@dataclass(frozen=True)
class CompletionTask:
    """Completions to train on and completions to judge by.

    Example:
        >>> row = Completion("1", "Q: Where do otters live?\\nA:", " In rivers.")
        >>> len(CompletionTask("animals", train=(row,), validation=(row,)).train)
        1
    """

    name: str
    train: tuple[Completion, ...]
    validation: tuple[Completion, ...]


def is_open_ended(values: Mapping[str, object], *, labelled: bool = True) -> bool:
    """Whether a row's columns are those of an open answer: `messages`, or `prompt` with `completion` (`labelled=False`: `prompt` alone).

    Example:
        >>> is_open_ended({"prompt": "2 + 2 =", "completion": " 4"}), is_open_ended({"question": "2 + 2?", "options": ["3", "4"]})
        (True, False)
    """
    return "messages" in values or ("prompt" in values and (not labelled or "completion" in values))


def holds_completions(path: str | Path) -> bool:
    """Whether the first row of a file or hub dataset has the columns of an open answer; False where there is no row.

    Raises:
        DataError: the file cannot be read.
    """
    first = next(named_rows(path), None)
    return first is not None and is_open_ended(first.values)


def load_completions(path: str | Path, *, labelled: bool = True) -> tuple[Completion, ...]:
    """The prompts and completions of a .jsonl or .csv file, or of 'hub:owner/name:split' (or 'hub:owner/name:config:split').

    The columns are `prompt` and `completion`, two texts that are taken as they are; or `messages`, a list of {"role", "content"} whose
    last one, by the assistant, is the completion (a JSON list in a .csv cell). A column `id` names the rows.

    Args:
        path: the file, or the name of a hub dataset.
        labelled: whether every row must have a completion. False: rows without one get None.

    Raises:
        DataError: anything in the file that cannot be used, with the file and the line.

    Example:
        >>> import pathlib, tempfile
        >>> path = pathlib.Path(tempfile.mkdtemp()) / "animals.jsonl"
        >>> _ = path.write_text('{"prompt": "Q: Where do otters live?\\\\nA:", "completion": " In rivers."}\\n')
        >>> load_completions(path)[0].completion
        ' In rivers.'
    """
    return _completions(named_rows(path), name=str(path), labelled=labelled)


def read_completions(
    stream: TextIO, *, name: str = "<stdin>", format: Literal["jsonl", "csv"] = "jsonl", labelled: bool = True
) -> tuple[Completion, ...]:
    """The completions of an open text stream, such as `sys.stdin`; `name` stands for the file in errors and ids.

    Raises:
        ConfigError: a format other than "jsonl" and "csv".
        DataError: anything in the stream that cannot be used, with the line.

    Example:
        >>> import io
        >>> line = '{"messages": [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi!"}]}'
        >>> read_completions(io.StringIO(line))[0].completion
        'Hi!'
    """
    return _completions(stream_rows(stream, name=name, format=format), name=name, labelled=labelled)


def completions_from_files(
    train: str | Path,
    validation: str | Path | None = None,
    *,
    validation_share: float = 0.2,
    seed: int = 0,
    name: str | None = None,
) -> CompletionTask:
    """A task of open answers from a file to train on and, where there is one, a file to judge by; else a share as in `task_from_files`.

    Raises:
        ConfigError: a share that is not between 0 and 1.
        DataError: as `load_completions`; or a single row, which cannot be split.
    """
    rows = load_completions(train)
    name = name if name is not None else Path(train).stem
    if validation is not None:
        return CompletionTask(name, rows, load_completions(validation))
    return CompletionTask(name, *split_rows(rows, share=validation_share, seed=seed, name=str(train)))


def encode_prompts(
    prompts: Sequence[Prompt],
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_length: int | None = None,
    overlong: Literal["error", "left"] = "error",
) -> list[Ids]:
    """Token ids of prompts to be answered, in order, with what the tokenizer or its chat template puts in front; nothing behind them.

    A chat is rendered by the tokenizer's own template with its generation prompt.

    Args:
        max_length: room for the prompt, in tokens; None: no limit.
        overlong: "error", or "left" to cut tokens from the prompt's beginning, after the token that stands in front.

    Raises:
        ConfigError: a window below 1 or an unknown `overlong`.
        DataError: an empty prompt, one that is too long, or chat messages that the tokenizer has no template for.

    Example:
        >>> from lora_ensembles.embedded import load_base
        >>> encode_prompts(["The otter lives in"], load_base()[1])
        [(1, 54, 259, 262, 86, 320, 762, 284)]
    """
    check_window(max_length, overlong)
    window = Window(max_length, overlong, 0, "it is")
    for number, prompt in enumerate(prompts, start=1):
        if problem := _problem(prompt):
            raise DataError(f"prompt {number}: {problem}")
    texts = [
        prompt_text(prompt, tokenizer, where=f"prompt {number}")
        for number, prompt in enumerate(prompts, start=1)
    ]
    parts = _prompt_parts(prompts, texts, tokenise(tokenizer, texts), tokenizer)
    return [fit(f"prompt {number}", *part, window) for number, part in enumerate(parts, start=1)]


def encode_completions(
    examples: Sequence[Completion],
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_length: int | None = None,
    overlong: Literal["error", "left"] = "error",
) -> list[EncodedExample]:
    """Token ids of prompts and completions, in order; a completion is the only label, and ends with the end-of-sequence token.

    A completion's tokens are those that come after the prompt's own when both are read together. A chat is rendered by the tokenizer's
    own template, and what it writes behind the end-of-sequence token of the answer is cut off. Where neither the text nor the template
    ends the answer with that token, it is put there: a model that never saw an end does not stop.

    Args:
        max_length: the model's window in tokens, for prompt and completion together; None: no limit.
        overlong: "error", or "left" to cut tokens from the prompt's beginning, after the token that stands in front. The completion is
            never cut.

    Raises:
        ConfigError: a window below 1 or an unknown `overlong`.
        DataError: a completion that is not known, that the tokenizer merges with the prompt or cannot spell; a tokenizer without an
            end-of-sequence token; a chat without a template, or one that renders a prompt differently once the answer follows; a prompt
            that is too long.

    Example:
        >>> from lora_ensembles.embedded import load_base
        >>> tokenizer = load_base()[1]
        >>> row = encode_completions([Completion("1", "The otter lives in", " Bath.")], tokenizer)[0]
        >>> tokenizer.decode(row.label_ids[0])
        ' Bath.<|end|>'
    """
    check_window(max_length, overlong)
    if not examples:
        return []
    end = _end_id(tokenizer)
    texts = [prompt_text(example.prompt, tokenizer, where=f"example {example.id!r}") for example in examples]
    answers = [answer_text(example, text, tokenizer) for example, text in zip(examples, texts, strict=True)]
    prompt_ids = tokenise(tokenizer, texts)
    parts = _prompt_parts([example.prompt for example in examples], texts, prompt_ids, tokenizer)
    found = continuations(tokenizer, list(zip(texts, answers, prompt_ids, strict=True)))
    encoded = []
    for example, text, answer, ids, part in zip(examples, texts, answers, found, parts, strict=True):
        if ids is None:
            raise no_boundary(example.id, text, answer, tokenizer, kind="completion")
        if tokenizer.unk_token_id is not None and tokenizer.unk_token_id in ids:
            raise DataError(
                f"example {example.id!r}: the tokenizer cannot spell the completion {answer[:60]!r}; use other words"
            )
        label = _ended(ids, end, chat=not isinstance(example.prompt, str))
        window = Window(max_length, overlong, len(label), "prompt and completion are")
        encoded.append(EncodedExample(fit(f"example {example.id!r}", *part, window), (label,), 0))
    return encoded


def _completions(rows: Iterator[Row], *, name: str, labelled: bool) -> tuple[Completion, ...]:
    first = next(rows, None)
    if first is None:
        raise DataError(f"{name}: no rows; at least one prompt is needed")
    if not is_open_ended(first.values, labelled=labelled):
        wanted = "completion" if "prompt" in first.values else "prompt"
        raise first.error(
            f"{unknown_name('column', wanted, first.values)}. Needed are prompt and completion, or messages"
        )
    every: Iterable[Row] = (first, *rows)
    return tuple(_completion(row, labelled=labelled) for row in every)


def _completion(row: Row, *, labelled: bool) -> Completion:
    read = _from_messages if "messages" in row.values else _from_texts
    prompt, completion = read(row, labelled=labelled)
    if problem := _problem(prompt, completion):
        raise row.error(problem)
    id = row.values.get("id")
    return Completion(row.id if id in (None, "") else str(id), prompt, completion)


def _from_texts(row: Row, *, labelled: bool) -> tuple[Prompt, str | None]:
    prompt, completion = (row.values.get(column) for column in ("prompt", "completion"))
    if not isinstance(prompt, str):
        raise row.error(
            f"column 'prompt' holds {short(prompt)}; a text is needed, or a chat in the column 'messages'"
        )
    if completion in (None, "") and not labelled:
        return prompt, None
    if not isinstance(completion, str):
        raise row.error(
            f"column 'completion' holds {short(completion)}; the text that should follow the prompt is needed"
        )
    return prompt, completion


def _from_messages(row: Row, *, labelled: bool) -> tuple[Prompt, str | None]:
    value = row.values["messages"]
    if isinstance(value, str):  # a csv cell
        try:
            value = json.loads(value)
        except ValueError:
            raise row.error(
                f"column 'messages' holds {short(value)}, which is no JSON list of messages"
            ) from None
    if not isinstance(value, list | tuple) or not value:
        raise row.error(
            f'column \'messages\' holds {short(value)}; a list of messages {{"role": ..., "content": ...}} is needed'
        )
    messages = tuple(_message(row, one, number) for number, one in enumerate(value, start=1))
    if messages[-1].role == "assistant":
        return messages[:-1], messages[-1].content
    if labelled:
        raise row.error(
            f"the last message is by {messages[-1].role!r}; it must be the assistant's, since that is the answer to learn"
        )
    return messages, None


def _message(row: Row, value: object, number: int) -> Message:
    role, content = (value.get("role"), value.get("content")) if isinstance(value, Mapping) else (None, None)
    if not isinstance(role, str) or not role or not isinstance(content, str):
        raise row.error(
            f'message {number} is {short(value)}; {{"role": ..., "content": ...}} is needed, both texts'
        )
    return Message(role, content)


def _problem(prompt: Prompt, completion: str | None = None) -> str | None:
    if not (prompt.strip() if isinstance(prompt, str) else prompt):
        return "an empty prompt; the model needs something to answer to"
    if completion is not None and not completion.strip():
        return "an empty completion; the text that should follow the prompt is needed"
    return None


def _end_id(tokenizer: PreTrainedTokenizerBase) -> int:
    end = tokenizer.eos_token_id
    if not isinstance(end, int):
        raise DataError(
            "the tokenizer has no end-of-sequence token, so an answer would have no end; name one of its tokens: "
            "tokenizer.eos_token = '...', and save the tokenizer with its base"
        )
    return end


def _ended(ids: Ids, end: int, *, chat: bool) -> Ids:
    """The answer up to its last end-of-sequence token, or with one behind it."""
    if chat and end in ids:
        return ids[: len(ids) - ids[::-1].index(end)]
    return ids if ids[-1] == end else (*ids, end)


def prompt_text(prompt: Prompt, tokenizer: PreTrainedTokenizerBase, *, where: str) -> str:
    """The text of a prompt, which for a chat ends in the template's opening of an answer."""
    return (
        prompt if isinstance(prompt, str) else _by_template(prompt, tokenizer, where=where, open_answer=True)
    )


def answer_text(example: Completion, text: str, tokenizer: PreTrainedTokenizerBase) -> str:
    """The text behind a rendered prompt."""
    where = f"example {example.id!r}"
    if example.completion is None:
        raise DataError(f"{where} has no completion; every example needs one here")
    if isinstance(example.prompt, str):
        return example.completion
    whole = _by_template(
        (*example.prompt, Message("assistant", example.completion)), tokenizer, where=where, open_answer=False
    )
    if not whole.startswith(text) or whole == text:
        raise DataError(
            f"{where}: the chat template renders the prompt differently once the answer follows: it ends in {text[-40:]!r}, and with the "
            f"answer in {whole[-40:]!r}; use a template whose generation prompt is how it begins an answer, or plain prompt and completion"
        )
    return whole[len(text) :]


def _by_template(
    messages: Sequence[Message], tokenizer: PreTrainedTokenizerBase, *, where: str, open_answer: bool
) -> str:
    from jinja2 import TemplateError

    if not tokenizer.chat_template:
        raise DataError(
            f"{where}: chat messages, and the tokenizer has no chat template; set tokenizer.chat_template, use the instruction-tuned "
            "model's tokenizer, or give prompt and completion as plain texts"
        )
    chat = [{"role": message.role, "content": message.content} for message in messages]
    try:
        return str(tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=open_answer))
    except TemplateError as error:
        raise DataError(f"{where}: the tokenizer's chat template refuses the messages: {error}") from error


def _prompt_parts(
    prompts: Sequence[Prompt], texts: Sequence[str], every: Sequence[Ids], tokenizer: PreTrainedTokenizerBase
) -> list[tuple[Ids, Ids]]:
    """What stands in front of each prompt and must stay there, and the prompt's own tokens."""
    plain = next((number for number, prompt in enumerate(prompts) if isinstance(prompt, str)), None)
    before = () if plain is None else leading_ids(tokenizer, texts[plain], every[plain])
    parts = []
    for prompt, ids in zip(prompts, every, strict=True):
        if isinstance(prompt, str):
            parts.append((before, ids))
        else:  # the template writes the beginning itself
            first = 1 if tokenizer.bos_token_id is not None and ids[:1] == (tokenizer.bos_token_id,) else 0
            parts.append((ids[:first], ids[first:]))
    return parts
