"""Tiny random classifiers, multiple-choice and reward models, a tokenizer of pairs, and examples for them,
all built in code.

Sizes and weights as in `tiny_models`: hidden size 32, 2 layers, weights large enough that answers differ
clearly.
"""

from __future__ import annotations

import copy
import functools
from typing import Any

import torch
import transformers
from peft import LoraConfig
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from breadth import tried
from lora_ensembles import HeadConfig, LoraEnsemble
from lora_ensembles.data import Example
from tiny_models import LLAMA_LIKE

WORDS = (
    "the red fox saw a small bird near an old river and went home why what does it say is good bad".split()
)
SPECIAL = ["[PAD]", "[CLS]", "[SEP]", "[UNK]"]
WINDOW = 48
ENCODER: dict[str, Any] = dict(
    hidden_size=32,
    num_hidden_layers=2,
    num_attention_heads=4,
    intermediate_size=40,
    max_position_embeddings=WINDOW,
    initializer_range=0.2,
    hidden_dropout_prob=0.1,  # in evaluation mode it is off, as in a stack
)
DECODER = LLAMA_LIKE | dict(max_position_embeddings=WINDOW)
# Class names of transformers without their ending, the settings, and the layers that carry adapters.
ARCHITECTURES: dict[str, tuple[str, dict[str, Any], tuple[str, ...]]] = {
    "bert": ("Bert", ENCODER, ("query", "value")),
    "roberta": (
        "Roberta",
        ENCODER | dict(max_position_embeddings=WINDOW + 1, type_vocab_size=1),
        ("query", "value"),
    ),
    "distilbert": (
        "DistilBert",
        dict(
            dim=32,
            n_layers=2,
            n_heads=4,
            hidden_dim=40,
            max_position_embeddings=WINDOW,
            initializer_range=0.2,
        ),
        ("q_lin", "v_lin"),
    ),
    "deberta": (
        "DebertaV2",
        ENCODER
        | dict(
            relative_attention=True,
            pos_att_type=["p2c", "c2p"],
            position_buckets=8,
            share_att_key=True,
            type_vocab_size=0,
        ),
        ("value_proj", "attention.output.dense"),
    ),
    "modernbert": (  # a head with a norm beside its linear layers
        "ModernBert",
        dict(
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=4,
            intermediate_size=40,
            max_position_embeddings=WINDOW,
            local_attention=8,
            initializer_range=0.2,
            classifier_bias=True,
            cls_token_id=1,
            bos_token_id=1,
            sep_token_id=2,
            eos_token_id=2,
        ),
        ("Wqkv",),
    ),
    "llama": ("Llama", DECODER, ("q_proj", "v_proj")),
    "qwen3": ("Qwen3", DECODER | dict(head_dim=8), ("q_proj", "v_proj")),
}
TRIED = tried(ARCHITECTURES, ("bert", "deberta", "modernbert", "llama"))
# Encoders whose scores of a text change with the padding beside it, in transformers itself.
PADDING_READERS: dict[str, tuple[str, dict[str, Any], tuple[str, ...]]] = {
    "convbert": ("ConvBert", ENCODER | dict(embedding_size=32, conv_kernel_size=5), ("query", "value")),
    "nystromformer": ("Nystromformer", ENCODER | dict(conv_kernel_size=5), ("query", "value")),
    "yoso": ("Yoso", ENCODER, ("query", "value")),
    "roformer": ("RoFormer", ENCODER | dict(embedding_size=32), ("query", "value")),  # its multiple choice
}
ENCODERS = ("bert", "roberta", "distilbert", "deberta", "modernbert")
KINDS = {"sequence-classification": 3, "multiple-choice": 1, "reward": 1}  # and how many scores a text gets


@functools.cache
def tokenizer() -> PreTrainedTokenizerFast:
    """One token a word, [CLS] and [SEP] around texts, type 1 for the second of a pair."""
    words = {word: index for index, word in enumerate([*SPECIAL, *WORDS])}
    built = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    built.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    built.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 1), ("[SEP]", 2)],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=built,
        pad_token="[PAD]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        unk_token="[UNK]",
        model_max_length=WINDOW,
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    )


@functools.cache
def _weights(name: str, kind: str) -> PreTrainedModel:
    family, settings, _ = (ARCHITECTURES | PADDING_READERS)[name]
    config = getattr(transformers, f"{family}Config")(
        vocab_size=len(tokenizer()), pad_token_id=0, num_labels=KINDS[kind], **settings
    )
    encoder = name in (*ENCODERS, *PADDING_READERS)
    ending = "ForMultipleChoice" if kind == "multiple-choice" and encoder else "ForSequenceClassification"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        model = getattr(transformers, family + ending)(config)
        with torch.no_grad():
            for parameter in model.parameters():
                if (
                    parameter.dim() == 1
                ):  # norms and biases begin at exactly 1 and 0, which would hide that one was left out
                    parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


def build(
    name: str = "bert", kind: str = "multiple-choice", *, dtype: torch.dtype = torch.float32
) -> PreTrainedModel:
    """A model of its own on every call, always with the same weights."""
    return copy.deepcopy(_weights(name, kind)).to(dtype)


def adapter_config(name: str = "bert", *, dropout: float = 0.0) -> LoraConfig:
    """A small adapter on the targets of an architecture."""
    return LoraConfig(
        r=4,
        lora_alpha=8,
        lora_dropout=dropout,
        target_modules=list((ARCHITECTURES | PADDING_READERS)[name][2]),
    )


def build_ensemble(
    name: str = "bert",
    kind: str = "multiple-choice",
    *,
    members: int = 3,
    random_b: bool = False,
    init: str = "fresh",
    dtype: torch.dtype = torch.float32,
) -> LoraEnsemble:
    """An ensemble on a fresh base; with `random_b` its members' B are not PEFT's zeros."""
    head = HeadConfig(kind, init=init)  # type: ignore[arg-type]
    ensemble = LoraEnsemble(
        build(name, kind, dtype=dtype),
        tokenizer(),
        num_members=members,
        adapter=adapter_config(name),
        head=head,
    )
    if random_b:
        generator = torch.Generator().manual_seed(5)
        ensemble.stack.b.copy_(0.2 * torch.randn(ensemble.stack.b.shape, generator=generator))
        ensemble.stack.refresh()
    return ensemble


def _words(start: int, count: int, step: int = 1) -> str:
    return " ".join(WORDS[(start + step * k) % len(WORDS)] for k in range(count))


def choice_examples() -> list[Example]:
    """Ten questions of different lengths with 2 to 4 options of different lengths."""
    examples = []
    for n in range(10):
        options = tuple(_words(n + 5 * c, 1 + (n + c) % 3, 3) for c in range(2 + n % 3))
        labels = ("a", "b", "c", "d")[: len(options)]
        question = _words(n, 1 + (n * 5) % 9)
        examples.append(
            Example(f"q{n}", question, labels, (n * 7 + n // 3) % len(options), question, options)
        )
    return examples


def class_examples(*, pairs: bool = False) -> list[Example]:
    """Ten texts, or pairs of texts, of three classes."""
    labels = ("one", "two", "three")
    return [
        Example(
            f"t{n}",
            _words(n, 1 + (n * 5) % 9),
            labels,
            n * 2 % 3,
            pair=_words(3 * n, 1 + n % 4) if pairs else None,
        )
        for n in range(10)
    ]


def reward_examples() -> list[Example]:
    """Ten prompts with a chosen and a rejected answer."""
    examples = []
    for n in range(10):
        options = (" " + _words(2 * n, 1 + n % 4), " " + _words(7 * n + 1, 1 + (n * 3) % 5))
        examples.append(
            Example(f"r{n}", _words(n, 1 + (n * 5) % 9), ("chosen", "rejected"), 0, options=options)
        )
    return examples


def examples_for(kind: str) -> list[Example]:
    return {
        "sequence-classification": class_examples,
        "multiple-choice": choice_examples,
        "reward": reward_examples,
    }[kind]()
