"""Text that an ensemble writes, and for each of its tokens where the uncertainty comes from.

Shapes: M members, B rows, T prompt tokens, K written tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from transformers import GenerationConfig

from ..data import Prompt, encode_prompts
from ..data.inputs import as_prompts
from ..distributed.lockstep import ran_out_of_memory
from ..errors import ConfigError, DataError
from ..passes.shared_prefix import context_window
from ..passes.stacked_model import StackedModel
from ..passes.texts import pad_rows
from .causal_lm import as_causal_lm
from .decoding import checked, end_ids, left_padded
from .streaming import OnToken, UncertaintyStreamer
from .uncertainty import TokenUncertainty, token_uncertainty

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


DEFAULT_NEW_TOKENS = 64
LOGITS_AT_ONCE = 2**25  # over members, texts, tokens and vocabulary: half a GB where they are in float64
ROWS_PER_BATCH = 8  # prompts decoded together where the caller sets no number


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
        ensemble: members whose head is the base's own.
        prompts: texts, or chats (sequences of messages) for the tokenizer's chat template; or one of these.
        config: how to decode; greedily, 64 tokens, by default.
        batch_size: prompts decoded together, padded on the left.
        seed: of sampling; None leaves it to torch's global state.
        on_token: called with the text that each token adds and its uncertainty, as soon as it is made; for
            one prompt, without beams.

    Returns:
        One `GeneratedText` a text, those of a prompt after one another.

    Raises:
        DataError: an empty prompt, one that leaves no room for new tokens, or a chat without a chat template.
        ConfigError: settings that do not fit each other, or memory that ran out.

    Example:
        >>> from lora_ensembles import LoraEnsemble, load_base
        >>> ensemble = LoraEnsemble(*load_base(), num_members=2)
        >>> config = GenerationConfig(max_new_tokens=3, min_new_tokens=3)
        >>> text = generate_text(ensemble, ["Q: Who is"], config)[0]
        >>> len(text.tokens), text.uncertainty.member_log_probs.shape
        (3, torch.Size([2, 3]))
    """
    ensemble.check_causal("generation")
    ensemble.stack.sharding.check_all_here("generation")
    config = checked(config or GenerationConfig(max_new_tokens=DEFAULT_NEW_TOKENS), batch_size)
    window = context_window(ensemble.base)
    room = None if window is None else window - (config.max_new_tokens or 1)
    if room is not None and room < 1:
        raise ConfigError(
            f"max_new_tokens is {config.max_new_tokens} and the base's window {window} tokens; "
            "ask for fewer new tokens"
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
    streamer: UncertaintyStreamer | None,
) -> list[list[int]]:
    """The written tokens of each row, `num_return_sequences` rows a prompt, cut behind their end-of-sequence
    token.
    """
    generation: Any = model
    ids, mask = left_padded(prompts, ensemble.pad_id, device=ensemble.device)
    length = ids.shape[1]
    devices = [ensemble.device] if ensemble.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices, enabled=seed is not None):
        if seed is not None:
            torch.manual_seed(seed)
        try:
            generated = generation.generate(
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
                f"memory ran out with {len(prompts)} prompts at once; lower batch_size (--max-rows), "
                "num_beams or max_new_tokens"
            ) from error
    ends = end_ids(config.eos_token_id, generation.generation_config.eos_token_id)
    return [_cut(row, ends, ensemble.tokenizer.pad_token_id) for row in generated[:, length:].tolist()]


def _cut(row: list[int], ends: frozenset[int], pad: int | None) -> list[int]:
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
    uncertainties: list[TokenUncertainty] = []
    places = max(
        1, LOGITS_AT_ONCE // (ensemble.num_members * ensemble.base.config.get_text_config().vocab_size)
    )
    while len(uncertainties) < len(texts):
        batch = [texts[len(uncertainties)]]
        for text in texts[len(uncertainties) + 1 :]:
            if (len(batch) + 1) * max(len(tokens) for _, tokens in (*batch, text)) > places:
                break
            batch.append(text)
        uncertainties += _score_batch(ensemble, batch, places)
    return uncertainties


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
    parts, before = [], ""
    for end in range(1, len(ids) + 1):
        text: Any = tokenizer.decode(list(ids[:end]))
        whole = text if not text.endswith("�") or end == len(ids) else before
        parts.append(whole[len(before) :])
        before = whole
    return parts
