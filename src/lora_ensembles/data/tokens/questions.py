"""From text to token ids: where the prompt ends, and which tokens each label is, in that place, to this
tokenizer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from ...errors import ConfigError, DataError, unknown_name
from ..examples import Example

if TYPE_CHECKING:  # prompts and files are read without loading transformers
    from transformers import PreTrainedTokenizerBase

Ids = tuple[int, ...]


@dataclass(frozen=True)
class EncodedExample:
    """An example as token ids.

    Attributes:
        prompt_ids: the prompt's tokens, after the token that the tokenizer puts in front of a text, if it
            does; nothing behind them.
        label_ids: for each label its tokens, at least one, in the place after the prompt. A label's
            log-probability is their sum.
        target: index of the right label, or None.
        target_probs: the soft labels, or None.
    """

    prompt_ids: Ids
    label_ids: tuple[Ids, ...]
    target: int | None
    target_probs: tuple[float, ...] | None = None


def encode_examples(
    examples: Sequence[Example],
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_length: int | None = None,
    overlong: Literal["error", "left"] = "error",
    single_token: bool = False,
) -> list[EncodedExample]:
    """Token ids of prompts and labels, in the order of the examples.

    A label's tokens are those of prompt + label that come after the prompt's own, never those of the label
    alone: many tokenizers spell a word differently at the beginning of a text. One label may be the beginning
    of another (" no", " not sure"): Eq. 1 of arXiv:2310.00035 divides by the sum over the set, but such
    labels are no disjoint events, and the shorter one is favoured.

    Args:
        max_length: the model's window in tokens, for prompt and longest label together. None: no limit.
        overlong: "error", or "left" to cut tokens from the prompt's beginning, after the token that the
            tokenizer puts in front.
        single_token: whether each label must be one token, as last-layer ensembles and the paper's letters
            are.

    Raises:
        ConfigError: a window below 1 or an unknown `overlong`.
        DataError: a label that the tokenizer merges with the prompt, cannot spell, spells like another label,
            or spells in several tokens where one was promised; a prompt that is too long; an empty prompt.
    """
    check_window(max_length, overlong)
    if not examples:
        return []
    prompts = tokenise(tokenizer, [example.prompt for example in examples])
    labels = _label_ids(examples, prompts, tokenizer)
    before = leading_ids(tokenizer, examples[0].prompt, prompts[0])
    encoded, checked = [], set()
    for example, prompt, label_ids in zip(examples, prompts, labels, strict=True):
        if (example.labels, label_ids) not in checked:
            _check_labels(example, label_ids, tokenizer, single_token=single_token)
            checked.add((example.labels, label_ids))
        window = Window(max_length, overlong, len(max(label_ids, key=len)), "prompt and longest label are")
        encoded.append(
            EncodedExample(
                fit(f"example {example.id!r}", before, prompt, window),
                label_ids,
                example.target,
                example.target_probs,
            )
        )
    return encoded


def check_window(max_length: int | None, overlong: str) -> None:
    """Refuse a window below 1 token, and an unknown way to treat what does not fit.

    Raises:
        ConfigError: either of these.
    """
    if overlong not in ("error", "left"):
        raise ConfigError(unknown_name("overlong", overlong, ("error", "left")))
    if max_length is not None and max_length < 1:
        raise ConfigError(
            f"max_length is {max_length}; a window of at least 1 token is needed, or None for no limit"
        )


def tokenise(tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> list[Ids]:
    """Ids of each text, without special tokens."""
    if not texts:
        return []
    batch = tokenizer(
        texts,
        add_special_tokens=False,
        padding=False,
        truncation=False,
        return_attention_mask=False,
        return_token_type_ids=False,
        verbose=False,
    )
    return [tuple(ids) for ids in batch["input_ids"]]


def leading_ids(tokenizer: PreTrainedTokenizerBase, text: str, ids: Ids) -> Ids:
    """The tokens that the tokenizer puts in front of a text; what it puts behind would stand between prompt
    and label, and is left out.
    """
    full = tuple(tokenizer(text, truncation=False, verbose=False)["input_ids"])
    for start in range(len(full) - len(ids) + 1):
        if full[start : start + len(ids)] == ids:
            return full[:start]
    raise DataError(
        f"{type(tokenizer).__name__} puts special tokens inside the text {text[:60]!r}; "
        "a tokenizer that only puts them before or behind a text is needed"
    )


def _label_ids(
    examples: Sequence[Example], prompts: list[Ids], tokenizer: PreTrainedTokenizerBase
) -> list[tuple[Ids, ...]]:
    """The tokens of each example's labels: from the table of prompt endings where that is safe, else from the
    full text.
    """
    table = _table(examples, prompts, tokenizer)
    tokenised: dict[tuple[int, str], Ids] = {}
    slow: list[tuple[int, str]] = []
    for index, (example, prompt) in enumerate(zip(examples, prompts, strict=True)):
        tail = _tail(example.prompt)
        for label in example.labels:
            ending, label_ids = table.get((tail, label), ((), None))
            if label_ids is not None and prompt[len(prompt) - len(ending) :] == ending:
                tokenised[index, label] = label_ids
            else:
                slow.append((index, label))
    texts = [(examples[index].prompt, label, prompts[index]) for index, label in slow]
    for (index, label), label_ids in zip(slow, continuations(tokenizer, texts), strict=True):
        if label_ids is None:
            raise no_boundary(examples[index].id, examples[index].prompt, label, tokenizer)
        tokenised[index, label] = label_ids
    return [
        tuple(tokenised[index, label] for label in example.labels) for index, example in enumerate(examples)
    ]


def _table(
    examples: Sequence[Example], prompts: list[Ids], tokenizer: PreTrainedTokenizerBase
) -> dict[tuple[str, str], tuple[Ids, Ids | None]]:
    """For each (last line of a prompt, label): the tokens that such a prompt must end in, and the label's
    tokens.

    A corpus repeats its last lines, so that one full text stands for thousands. Each entry is held against
    the full text of the first example that has it, and is None where they disagree. The first token of the
    line is left out of what must agree: some tokenizers spell the beginning of a text as if a space stood
    before it.
    """
    first: dict[tuple[str, str], int] = {}
    for index, example in enumerate(examples):
        tail = _tail(example.prompt)
        for label in example.labels:
            first.setdefault((tail, label), index)
    tails = list(dict.fromkeys(tail for tail, _ in first if tail))
    tail_ids = dict(zip(tails, tokenise(tokenizer, tails), strict=True))
    pairs = [pair for pair in first if tail_ids.get(pair[0])]
    short = continuations(tokenizer, [(tail, label, tail_ids[tail]) for tail, label in pairs])
    full = continuations(
        tokenizer, [(examples[first[pair]].prompt, pair[1], prompts[first[pair]]) for pair in pairs]
    )
    return {
        pair: (tail_ids[pair[0]][1:] or tail_ids[pair[0]], label_ids if label_ids == whole else None)
        for pair, label_ids, whole in zip(pairs, short, full, strict=True)
    }


def _tail(prompt: str) -> str:
    return prompt[prompt.rfind("\n") + 1 :]


def continuations(tokenizer: PreTrainedTokenizerBase, texts: list[tuple[str, str, Ids]]) -> list[Ids | None]:
    """For each (text, label, ids of the text): the tokens of text + label after these, or None where it does
    not begin with them.
    """
    joined = tokenise(tokenizer, [text + label for text, label, _ in texts])
    clean = [
        whole[: len(ids)] == ids and len(whole) > len(ids)
        for whole, (_, _, ids) in zip(joined, texts, strict=True)
    ]
    return [
        whole[len(ids) :] if good else None
        for whole, good, (_, _, ids) in zip(joined, clean, texts, strict=True)
    ]


def no_boundary(
    id: str, prompt: str, answer: str, tokenizer: PreTrainedTokenizerBase, *, kind: str = "label"
) -> DataError:
    """The error for an answer whose first token is merged with the prompt's last one."""
    ending, begin = prompt[-12:], answer[:60]
    pieces = tokenizer.convert_ids_to_tokens(list(tokenise(tokenizer, [ending + begin])[0]))
    way_out = ", or choose other labels" if kind == "label" else ""
    return DataError(
        f"example {id!r}: after the prompt's end {ending!r} the {kind} {begin!r} has no tokens of its own: "
        f"together they are {pieces}; end the prompt without a space and begin the {kind} with it{way_out}"
    )


def _check_labels(
    example: Example, label_ids: tuple[Ids, ...], tokenizer: PreTrainedTokenizerBase, *, single_token: bool
) -> None:
    seen: dict[Ids, str] = {}
    where = f"example {example.id!r}"
    for label, ids in zip(example.labels, label_ids, strict=True):
        pieces = tokenizer.convert_ids_to_tokens(list(ids))
        if tokenizer.unk_token_id is not None and tokenizer.unk_token_id in ids:
            raise DataError(
                f"{where}: the tokenizer cannot spell the label {label!r} ({pieces}); choose other labels"
            )
        if ids in seen:
            raise DataError(
                f"{where}: the labels {seen[ids]!r} and {label!r} are the same tokens ({pieces}); "
                "choose other labels"
            )
        if single_token and len(ids) > 1:
            raise DataError(
                f"{where}: the label {label!r} is {len(ids)} tokens ({pieces}); "
                "one is needed, choose a shorter label"
            )
        seen[ids] = label


@dataclass(frozen=True)
class Window:
    """Room for a prompt: tokens of the window, or None; what to do where it is too small; tokens kept for the
    answer; what fills it.
    """

    max_length: int | None
    overlong: str
    answer: int
    what: str


def fit(where: str, before: Ids, prompt: Ids, window: Window) -> Ids:
    """Leading tokens and prompt within the window; what is cut is the prompt's beginning, so that its end
    stays before the answer.

    Raises:
        DataError: no token of a prompt, or more than the window holds.
    """
    if not before and not prompt:
        raise DataError(f"{where}: an empty prompt; the model needs at least one token to answer after")
    length = len(before) + len(prompt) + window.answer
    if window.max_length is None or length <= window.max_length:
        return before + prompt
    where = f"{where}: {window.what} {length} tokens, and the window is {window.max_length}"
    if window.overlong == "error":
        raise DataError(
            f"{where}; shorten it, use a model with a longer window, or cut its beginning "
            "with overlong='left'"
        )
    keep = window.max_length - window.answer - len(before)
    if keep < 1:
        raise DataError(
            f"{where}, which leaves no token of the prompt beside the answer; "
            "use a longer window or shorter answers"
        )
    return before + prompt[-keep:]
