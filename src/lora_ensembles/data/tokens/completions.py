"""Open answers as token ids: plain prompts, and chats by the tokenizer's own template."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from ...errors import DataError
from ..completions import Completion, Message, Prompt, problem_of
from .questions import (
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

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def encode_prompts(
    prompts: Sequence[Prompt],
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_length: int | None = None,
    overlong: Literal["error", "left"] = "error",
) -> list[Ids]:
    """Token ids of prompts to be answered, in order, with what the tokenizer or its chat template puts in
    front; nothing behind them.

    A chat is rendered by the tokenizer's own template with its generation prompt.

    Args:
        max_length: room for the prompt, in tokens; None: no limit.
        overlong: "error", or "left" to cut tokens from the prompt's beginning, after the token that stands in
            front.

    Raises:
        ConfigError: a window below 1 or an unknown `overlong`.
        DataError: an empty prompt, one that is too long, or chat messages that the tokenizer has no template
            for.

    Example:
        >>> from lora_ensembles.embedded import load_base
        >>> encode_prompts(["The otter lives in"], load_base()[1])
        [(1, 54, 259, 262, 86, 320, 762, 284)]
    """
    check_window(max_length, overlong)
    window = Window(max_length, overlong, 0, "it is")
    for number, prompt in enumerate(prompts, start=1):
        if problem := problem_of(prompt):
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
    """Token ids of prompts and completions, in order; a completion is the only label, and ends with the
    end-of-sequence token.

    A completion's tokens are those that come after the prompt's own when both are read together. A chat is
    rendered by the tokenizer's own template, and what it writes behind the end-of-sequence token of the
    answer is cut off. Where neither the text nor the template ends the answer with that token, it is put
    there: a model that never saw an end does not stop.

    Args:
        max_length: the model's window in tokens, for prompt and completion together; None: no limit.
        overlong: "error", or "left" to cut tokens from the prompt's beginning, after the token that stands in
            front. The completion is never cut.

    Raises:
        ConfigError: a window below 1 or an unknown `overlong`.
        DataError: a completion that is not known, that the tokenizer merges with the prompt or cannot spell;
            a tokenizer without an end-of-sequence token; a chat without a template, or one that renders a
            prompt differently once the answer follows; a prompt that is too long.

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
    answer_ids = continuations(tokenizer, list(zip(texts, answers, prompt_ids, strict=True)))
    encoded = []
    for example, text, answer, ids, part in zip(examples, texts, answers, answer_ids, parts, strict=True):
        if ids is None:
            raise no_boundary(example.id, text, answer, tokenizer, kind="completion")
        if tokenizer.unk_token_id is not None and tokenizer.unk_token_id in ids:
            raise DataError(
                f"example {example.id!r}: the tokenizer cannot spell the completion {answer[:60]!r}; "
                "use other words"
            )
        label = _ended(ids, end, chat=not isinstance(example.prompt, str))
        window = Window(max_length, overlong, len(label), "prompt and completion are")
        encoded.append(EncodedExample(fit(f"example {example.id!r}", *part, window), (label,), 0))
    return encoded


def _end_id(tokenizer: PreTrainedTokenizerBase) -> int:
    end = tokenizer.eos_token_id
    if not isinstance(end, int):
        raise DataError(
            "the tokenizer has no end-of-sequence token, so an answer would have no end; "
            "name one of its tokens: tokenizer.eos_token = '...', and save the tokenizer with its base"
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
            f"{where}: the chat template renders the prompt differently once the answer follows: "
            f"it ends in {text[-40:]!r}, and with the answer in {whole[-40:]!r}; use a template whose "
            "generation prompt is how it begins an answer, or plain prompt and completion"
        )
    return whole[len(text) :]


def _by_template(
    messages: Sequence[Message], tokenizer: PreTrainedTokenizerBase, *, where: str, open_answer: bool
) -> str:
    from jinja2 import TemplateError

    if not tokenizer.chat_template:
        raise DataError(
            f"{where}: chat messages, and the tokenizer has no chat template; set tokenizer.chat_template, "
            "use the instruction-tuned model's tokenizer, or give prompt and completion as plain texts"
        )
    chat = [{"role": message.role, "content": message.content} for message in messages]
    try:
        return str(tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=open_answer))
    except TemplateError as error:
        raise DataError(f"{where}: the tokenizer's chat template refuses the messages: {error}") from error


def _prompt_parts(
    prompts: Sequence[Prompt], texts: Sequence[str], every: Sequence[Ids], tokenizer: PreTrainedTokenizerBase
) -> list[tuple[Ids, Ids]]:
    """The tokens in front of each prompt that must stay there, and the prompt's own tokens."""
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
