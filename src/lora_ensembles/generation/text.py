"""Text that an ensemble writes, and for each of its tokens where the uncertainty comes from.

Shapes: M members, B rows, T prompt tokens, K written tokens, V vocabulary.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import GenerationConfig
from transformers.generation.streamers import BaseStreamer

from ..data import Prompt, encode_prompts
from ..data.inputs import as_prompts
from ..errors import ConfigError, DataError
from ..passes.memory import ran_out_of_memory
from ..passes.shared_prefix import context_window
from ..passes.stacked_model import StackedModel
from ..passes.texts import pad_rows
from ..prediction.uncertainty import split_entropy
from .causal_lm import as_causal_lm, mean_log_probs
from .decoding import checked

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


OnToken = Callable[[str, "TokenUncertainty"], None]

DEFAULT_NEW_TOKENS = 64
LOGITS_AT_ONCE = 2**25  # over members, texts, tokens and vocabulary: half a GB where they are in float64
ROWS_PER_BATCH = 8  # prompts decoded together where the caller sets no number


@dataclass(frozen=True)
class TokenUncertainty:
    """Uncertainty of M members about each written token; entropies are in nats, over the whole vocabulary.

    Attributes:
        log_probs: (..., K) log-probability of the token under the ensemble, log mean_m p_m (Eq. 2 of
            arXiv:2310.00035).
        member_log_probs: (M, ..., K) its log-probability under each member.
        total_entropy: (..., K) entropy of the ensemble's distribution in the token's place.
        expected_entropy: (..., K) mean of the members' own entropies there.
        mutual_information: (..., K) the difference of the two: what the members contradict each other about.
        agreement: (..., K) share of the members whose most probable token it is, 0 to 1.
    """

    log_probs: Tensor
    member_log_probs: Tensor
    total_entropy: Tensor
    expected_entropy: Tensor
    mutual_information: Tensor
    agreement: Tensor

    def to_dict(self) -> dict[str, Any]:
        """The tensors as nested lists, rounded to six digits behind the point."""
        return {name: _rounded(value) for name, value in vars(self).items()}

    def summary(self) -> dict[str, Any]:
        """One number a sequence, of a row (K,): sums of log-probabilities, means over tokens of the rest.

        A sequence's log-probability under the ensemble is the sum over its tokens, each after those before
        it; it is what decoding maximises. The mean of the entropies is their sum, the chain rule's estimate
        for the sequence, in nats a token.
        """
        return {
            "log_prob": _rounded(self.log_probs.sum(dim=-1)),
            "member_log_probs": _rounded(self.member_log_probs.sum(dim=-1)),
            **{
                name: _rounded(getattr(self, name).mean(dim=-1))
                for name in ("total_entropy", "expected_entropy", "mutual_information")
            },
            "largest_mutual_information": _rounded(self.mutual_information.amax(dim=-1)),
            "agreement": _rounded(self.agreement.mean(dim=-1)),
        }


def token_uncertainty(member_log_probs: Tensor, tokens: Tensor) -> TokenUncertainty:
    """The uncertainty of `tokens` (..., K) under members' next-token log-probabilities (M, ..., K, V).

    Example:
        >>> split = token_uncertainty(torch.tensor([[[0.9, 0.1]], [[0.5, 0.5]]]).log(), torch.tensor([0]))
        >>> split.log_probs.exp()
        tensor([0.7000])
        >>> split.agreement
        tensor([1.])
    """
    chosen = tokens.expand(member_log_probs.shape[:-1])[..., None]
    of_members = member_log_probs.gather(-1, chosen)[..., 0]
    total, expected, mutual = split_entropy(member_log_probs)
    own = member_log_probs.argmax(dim=-1) == chosen[..., 0]
    return TokenUncertainty(
        mean_log_probs(of_members),
        of_members,
        total.float(),
        expected.float(),
        mutual.float(),
        own.float().mean(dim=0),
    )


@dataclass(frozen=True)
class GeneratedText:
    """One text that was written to one prompt.

    Attributes:
        prompt: index of the prompt among those given.
        text: what was written, without special tokens.
        token_ids: the K tokens, with the end-of-sequence token where one ended it.
        tokens: the text of each.
        uncertainty: of each token, on the CPU.
    """

    prompt: int
    text: str
    token_ids: tuple[int, ...]
    tokens: tuple[str, ...]
    uncertainty: TokenUncertainty

    def to_dict(self) -> dict[str, Any]:
        """Everything as JSON-able values: `text`, `tokens`, `token_ids`, `sequence` (one number each), and
        `token_uncertainty`.
        """
        sequence = self.uncertainty.summary() if self.token_ids else {}
        described = {"prompt": self.prompt, "text": self.text, "sequence": sequence}
        return described | {
            "tokens": list(self.tokens),
            "token_ids": list(self.token_ids),
            "token_uncertainty": self.uncertainty.to_dict(),
        }


def generate_text(
    ensemble: StackedModel,
    prompts: Sequence[Prompt] | Prompt,
    config: GenerationConfig | None = None,
    *,
    batch_size: int = ROWS_PER_BATCH,
    seed: int | None = None,
    on_token: OnToken | None = None,
) -> list[GeneratedText]:
    """Texts that the ensemble writes to each prompt, `num_return_sequences` texts each, with the uncertainty
    of every token.

    Decoding is Hugging Face's `generate` with `config`; the uncertainty comes from one more pass over each
    finished text, so it is there for every way of decoding.

    Args:
        prompts: texts, or chats (sequences of messages) for the tokenizer's chat template; or one of these.
        config: how to decode; greedily, 64 tokens, by default.
        batch_size: prompts decoded together, padded on the left.
        seed: of sampling; None leaves it to torch's global state.
        on_token: called with the text that each token adds and its uncertainty, as soon as it is made; for
            one prompt, without beams.

    Raises:
        DataError: an empty prompt, one that leaves no room for new tokens, or a chat without a chat template.
        ConfigError: settings that do not fit each other, or memory that ran out.

    Example:
        >>> from lora_ensembles import StackedModel, load_base
        >>> ensemble = LoraEnsemble(*load_base(), num_members=2)
        >>> text = generate_text(ensemble, ["Q: Who is"], GenerationConfig(max_new_tokens=3, min_new_tokens=3))[0]
        >>> len(text.tokens), text.uncertainty.member_log_probs.shape
        (3, torch.Size([2, 3]))
    """
    ensemble.check_causal("generation")
    config = checked(config or GenerationConfig(max_new_tokens=DEFAULT_NEW_TOKENS), batch_size)
    window = context_window(ensemble.base)
    room = None if window is None else window - (config.max_new_tokens or 1)
    if room is not None and room < 1:
        raise ConfigError(
            f"max_new_tokens is {config.max_new_tokens} and the base's window {window} tokens; ask for fewer new tokens"
        )
    encoded = encode_prompts(
        as_prompts(prompts), ensemble.tokenizer, max_length=room, overlong=ensemble.info.overlong
    )
    if (
        on_token is not None
        and len(encoded) * (config.num_return_sequences or 1) * (config.num_beams or 1) > 1
    ):
        raise ConfigError(
            "on_token follows a single text; pass one prompt, and neither beams nor several return sequences"
        )
    model, rows = as_causal_lm(ensemble), []
    with UncertaintyStreamer(model, ensemble.tokenizer, on_token) if on_token else nullcontext() as streamer:
        for start in range(0, len(encoded), batch_size):
            batch = encoded[start : start + batch_size]
            rows += _decode(ensemble, model, batch, config, None if seed is None else seed + start, streamer)
    owners = [row // (config.num_return_sequences or 1) for row in range(len(rows))]
    scored = score_texts(ensemble, [(encoded[owner], ids) for owner, ids in zip(owners, rows, strict=True)])
    tokenizer: Any = ensemble.tokenizer
    return [
        GeneratedText(
            owner,
            tokenizer.decode(ids, skip_special_tokens=True),
            tuple(ids),
            tuple(pieces(tokenizer, ids)),
            split,
        )
        for owner, ids, split in zip(owners, rows, scored, strict=True)
    ]


def _decode(
    ensemble: StackedModel,
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    config: GenerationConfig,
    seed: int | None,
    streamer: BaseStreamer | None,
) -> list[list[int]]:
    """The written tokens of each row, `num_return_sequences` rows a prompt, cut behind their end-of-sequence
    token.
    """
    generation: Any = model
    length = max(map(len, prompts))
    ids = torch.tensor(
        [[ensemble.pad_id] * (length - len(row)) + list(row) for row in prompts], device=ensemble.device
    )
    mask = torch.tensor(
        [[0] * (length - len(row)) + [1] * len(row) for row in prompts], device=ensemble.device
    )
    devices = [ensemble.device] if ensemble.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices, enabled=seed is not None):
        if seed is not None:
            torch.manual_seed(seed)
        try:
            found = generation.generate(
                ids,
                attention_mask=mask,
                generation_config=config,
                streamer=streamer,
                tokenizer=ensemble.tokenizer,
            )
        except ValueError as error:  # by generate, of settings that it checks itself
            raise ConfigError(f"generate refuses: {error}") from error
        except (MemoryError, RuntimeError) as error:
            if not ran_out_of_memory(error):
                raise
            raise ConfigError(
                f"memory ran out with {len(prompts)} prompts at once; lower batch_size (--max-rows), num_beams or max_new_tokens"
            ) from error
    ends = _end_ids(model, config)
    return [_cut(row, ends, ensemble.tokenizer.pad_token_id) for row in found[:, length:].tolist()]


def _end_ids(model: PreTrainedModel, config: GenerationConfig) -> set[int]:
    given: Any = (
        config.eos_token_id if config.eos_token_id is not None else model.generation_config.eos_token_id
    )
    return set() if given is None else {given} if isinstance(given, int) else set(given)


def _cut(row: list[int], ends: set[int], pad: int | None) -> list[int]:
    end = next((place + 1 for place, token in enumerate(row) if token in ends), len(row))
    while (
        end and row[end - 1] == pad and pad not in ends
    ):  # a row that a stopping criterion ended is filled up with padding
        end -= 1
    return row[:end]


@torch.no_grad()
def score_texts(
    ensemble: StackedModel, texts: Sequence[tuple[Sequence[int], Sequence[int]]]
) -> list[TokenUncertainty]:
    """The uncertainty (K,) of the tokens of each text (prompt ids, token ids), each token after those before
    it.

    Raises:
        DataError: an empty prompt.
    """
    if any(not prompt for prompt, _ in texts):
        raise DataError("an empty prompt; the first token needs at least one before it")
    found: list[TokenUncertainty] = []
    places = max(
        1, LOGITS_AT_ONCE // (ensemble.num_members * ensemble.base.config.get_text_config().vocab_size)
    )
    while len(found) < len(texts):
        batch = [texts[len(found)]]
        for text in texts[len(found) + 1 :]:
            if (len(batch) + 1) * max(len(tokens) for _, tokens in (*batch, text)) > places:
                break
            batch.append(text)
        found += _score_batch(ensemble, batch, places)
    return found


def _score_batch(
    ensemble: StackedModel, texts: Sequence[tuple[Sequence[int], Sequence[int]]], places: int
) -> list[TokenUncertainty]:
    count, longest = ensemble.num_members, max(1, *(len(tokens) for _, tokens in texts))
    ids = pad_rows([[*prompt, *tokens] for prompt, tokens in texts], ensemble.pad_id, device=ensemble.device)
    first = torch.tensor([[len(prompt)] for prompt, _ in texts], device=ensemble.device)
    positions = (first + torch.arange(longest, device=ensemble.device)).clamp(max=ids.shape[1] - 1)
    chosen = ids.gather(1, positions)
    logits = ensemble.answer_logits(ids.expand(count, -1, -1), (positions - 1).expand(count, -1, -1))
    step = max(1, places // len(texts))  # a long text's float64 sums are done in parts
    parts = [
        token_uncertainty(part.float().log_softmax(dim=-1), tokens)
        for part, tokens in zip(logits.split(step, dim=2), chosen.split(step, dim=1), strict=True)
    ]
    whole = {
        name: torch.cat([getattr(part, name) for part in parts], dim=-1).cpu() for name in vars(parts[0])
    }
    return [
        TokenUncertainty(**{name: value[..., row, : len(tokens)] for name, value in whole.items()})
        for row, (_, tokens) in enumerate(texts)
    ]


def pieces(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> list[str]:
    """The text that each token adds to what stands before it; a character of several tokens belongs to its
    last.
    """
    found, before = [], ""
    for end in range(1, len(ids) + 1):
        text: Any = tokenizer.decode(list(ids[:end]))
        whole = text if not text.endswith("�") or end == len(ids) else before
        found.append(whole[len(before) :])
        before = whole
    return found


class UncertaintyStreamer(BaseStreamer):
    """Hands on each token of a single row as it is made, with its uncertainty.

    It watches the passes of the model that generates, so close it, or use it as a context manager; not with
    beams or chunked prefill.

    Args:
        model: the causal language model, from `as_causal_lm`, that generates.
        tokenizer: its tokenizer.
        write: called with the text that a token adds and its `TokenUncertainty` (one token, so (M,) and
            scalars).

    Example:
        >>> from lora_ensembles import StackedModel, load_base
        >>> base, tokenizer = load_base()
        >>> model, heard = LoraEnsemble(base, tokenizer, num_members=2).as_causal_lm(), []
        >>> with UncertaintyStreamer(model, tokenizer, lambda text, split: heard.append(text)) as streamer:
        ...     _ = model.generate(torch.tensor([[1, 5, 7]]), max_new_tokens=4, min_new_tokens=4, streamer=streamer)
        >>> len(heard)
        4
    """

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, write: OnToken):
        self._tokenizer: Any = tokenizer
        self._write = write
        self._passes: deque[Tensor] = deque()
        self._ids: list[int] | None = None  # None: the prompt has not come yet
        self._shown = ""
        self._handle = model.register_forward_hook(
            lambda _model, _given, output: self._passes.append(output.member_log_probs[:, 0])
        )

    def __enter__(self) -> UncertaintyStreamer:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop watching the model."""
        self._handle.remove()
        self._passes.clear()

    def put(self, value: Tensor) -> None:
        """Take the prompt, at first, and then the tokens that one pass gave."""
        if self._ids is None:
            self._ids = []
            return
        tokens = value.flatten()
        member_log_probs = self._passes.popleft()[
            :, : len(tokens)
        ]  # a pass over guessed tokens has a place for each, and some were wrong
        split = token_uncertainty(member_log_probs, tokens.to(member_log_probs.device))
        for place, token in enumerate(tokens.tolist()):
            self._ids.append(token)
            text = self._tokenizer.decode(self._ids, skip_special_tokens=True)
            text = self._shown if text.endswith("�") else text
            self._write(
                text[len(self._shown) :],
                TokenUncertainty(**{name: tensor[..., place] for name, tensor in vars(split).items()}),
            )
            self._shown = text

    def end(self) -> None:
        """The text is finished."""
        self._ids, self._shown = None, ""


def _rounded(values: Tensor) -> Any:
    return torch.round(values.double(), decimals=6).tolist()
