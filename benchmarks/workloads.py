"""The models and the questions that benchmarks run on: shapes of known models with random weights, made in
code, nothing downloaded.

Shapes: M members, B rows of a member, S tokens of a row.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
)

from lora_ensembles import Example, load_task
from lora_ensembles.data import Task
from lora_ensembles.passes.memory import PASS_TOKENS, rows_in_flight
from lora_ensembles.training.orders import split_step

WINDOW = 4096
LABELS = (" yes", " no")


@dataclass(frozen=True)
class Shape:
    """The sizes of a decoder."""

    architecture: Literal["llama", "qwen2"]
    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    vocabulary: int
    tied: bool = False

    @property
    def head_size(self) -> int:
        return self.hidden // self.heads


SHAPES = {
    "0.5B": Shape("qwen2", 896, 4864, 24, 14, 2, 151936, tied=True),  # Qwen2.5-0.5B
    "1.5B": Shape("qwen2", 1536, 8960, 28, 12, 2, 151936, tied=True),  # Qwen2.5-1.5B
    "8B": Shape("llama", 4096, 14336, 32, 32, 8, 128256),  # Llama-3.1-8B
    "13B": Shape("llama", 5120, 13824, 40, 40, 40, 32000),  # LLaMA-13B
    "toy": Shape("llama", 64, 176, 4, 4, 4, 1024),
    "hidden512": Shape("llama", 512, 1408, 4, 8, 8, 1024),
    "tiny": Shape("llama", 32, 64, 2, 4, 2, 128),  # for tests
}


def shape_of(base: PreTrainedModel) -> Shape:
    """The sizes of a Llama that was not built here."""
    config: Any = base.config
    sizes = (
        config.hidden_size,
        config.intermediate_size,
        config.num_hidden_layers,
        config.num_attention_heads,
        config.num_key_value_heads,
    )
    return Shape("llama", *sizes, config.vocab_size, config.tie_word_embeddings)


def in_words(data: Path | None) -> Task:
    """OpenBookQA from a folder with the data sets, answered in words; without one the embedded world-obqa."""
    return load_task("world-obqa" if data is None else "obqa", data=data, answer="text")


def scaled(shape: Shape) -> Shape:
    """A shape of the same architecture and the same proportions of heads that a CPU takes: heads of 8, 4
    layers, 1,024 words at most.
    """
    hidden = 8 * shape.heads
    wide = round(shape.intermediate / shape.hidden * hidden / 8) * 8
    layers, words = min(4, shape.layers), min(1024, shape.vocabulary)
    return Shape(shape.architecture, hidden, wide, layers, shape.heads, shape.kv_heads, words, shape.tied)


def config_of(shape: Shape) -> PreTrainedConfig:
    """The config of a model of that shape."""
    kind = {"llama": LlamaConfig, "qwen2": Qwen2Config}[shape.architecture]
    return kind(
        vocab_size=shape.vocabulary,
        hidden_size=shape.hidden,
        intermediate_size=shape.intermediate,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        max_position_embeddings=WINDOW,
        tie_word_embeddings=shape.tied,
        # Far enough from 0 that attention is not uniform: else its gradients are rounding, and arms cannot be
        # compared.
        initializer_range=shape.hidden**-0.5,
        pad_token_id=0,
        bos_token_id=None,
        eos_token_id=None,
    )


def build(
    shape: Shape, *, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu", seed: int = 0
) -> PreTrainedModel:
    """A model of that shape with random weights."""
    torch.manual_seed(seed)
    with torch.device(device):
        model: Any = AutoModelForCausalLM.from_config(config_of(shape), dtype=dtype)
    return model.eval().requires_grad_(False)


def sharing(base: PreTrainedModel) -> PreTrainedModel:
    """Modules of one's own around the same weights: every arm wraps the base in its way, and it lies in
    memory once.
    """
    kept = [*base.parameters(), *base.buffers()]
    return copy.deepcopy(base, {id(tensor): tensor for tensor in kept})


def tokenizer(words: int) -> PreTrainedTokenizerFast:
    """One token a word: <pad>, the two labels, then w3, w4 and so on."""
    vocabulary = {"<pad>": 0, **{label.strip(): number for number, label in enumerate(LABELS, 1)}}
    vocabulary |= {f"w{number}": number for number in range(len(vocabulary), words)}
    made = Tokenizer(models.WordLevel(vocabulary, unk_token="<pad>"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=made, pad_token="<pad>")


def questions(count: int, *, length: int, words: int, spread: float = 0.0, seed: int = 0) -> list[Example]:
    """Questions of `length` random words, give or take `spread` of it; the answer is the label that the first
    word's number says.
    """
    drawn = random.Random(seed)
    made = []
    for number in range(count):
        size = round(length * (1 + drawn.uniform(-spread, spread)))
        ids = drawn.choices(range(3, words), k=size)
        made.append(Example(f"q{number}", " ".join(f"w{token}" for token in ids), LABELS, ids[0] % 2))
    return made


def padding(steps: Sequence[Tensor], device: torch.device) -> tuple[int, int]:
    """Tokens of the rows of steps, whose lengths are (M, B) each, and places in the passes that read them,
    which are as long as the longest row of any member.
    """
    rows = sum(lengths.numel() for lengths in steps)
    read, held = sum(int(lengths.sum()) for lengths in steps), 0
    pass_tokens = PASS_TOKENS if device.type == "cpu" else None
    for lengths in steps:
        most = rows_in_flight(lengths.numel(), tokens_a_row=read / rows, device=device)
        for which, numbers in split_step(lengths, max_rows=most, pass_tokens=pass_tokens):
            part = lengths[which] if numbers is None else lengths[which].gather(1, numbers)
            held += int(part.max()) * part.numel()
    return read, held
