"""Tiny random models of many architectures, a word-level tokenizer and a few labelled examples, all built in
code.

Weights are large enough that the answers to different prompts differ clearly, and small enough that fp32 sums
of some dozen numbers stay exact to about 1e-6: hidden size 32, 2 layers, fewer than 60 words.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from peft import LoraConfig
from tokenizers import Regex, Tokenizer, models, pre_tokenizers, processors
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from breadth import tried
from lora_ensembles import LoraEnsemble
from lora_ensembles.data import Completion, Example

SPECIAL = ["<pad>", "<s>", "</s>", "<unk>"]
WINDOW = 64  # tokens that the models see
SLIDING = 6  # tokens of a sliding attention window: shorter than every prompt, so that it matters
PIECE = r" ?\w+|\n|[^\w\s]|\s"


def letter_examples() -> list[Example]:
    """Ten questions of very different lengths; two have three options, the others two."""
    fillers = "the red fox saw a small bird near an old river and went home".split()
    examples = []
    for n in range(10):
        question = " ".join(fillers[(n + k) % len(fillers)] for k in range(1 + (n * 5) % 9))
        labels = ("a", "b", "c") if n % 5 == 1 else ("a", "b")
        options = " ".join(
            f"({label}) {fillers[(n + 3 * k) % len(fillers)]}" for k, label in enumerate(labels)
        )
        examples.append(
            Example(
                id=f"q{n}",
                prompt=f"Q: {question}? {options}\nA: (",
                labels=labels,
                target=(n * 7 + n // 3) % len(labels),
            )
        )
    return examples


def phrase_examples() -> list[Example]:
    """Six questions whose labels have one to three tokens."""
    labels = (" yes", " no", " not at all", " maybe so")
    places = "home", "the river", "a small old river", "near home", "an old home", "the red river"
    return [
        Example(id=f"p{n}", prompt=f"Q: is the fox {place}?\nA:", labels=labels, target=n % 4)
        for n, place in enumerate(places)
    ]


def open_examples() -> list[Completion]:
    """Ten prompts with open answers of one to nine words, in the words of the other examples."""
    fillers = "the red fox saw a small bird near an old river and went home".split()
    examples = []
    for n in range(10):
        question = " ".join(fillers[(n + k) % len(fillers)] for k in range(1 + (n * 5) % 9))
        answer = "".join(f" {fillers[(3 * n + 2 * k) % len(fillers)]}" for k in range(1 + (n * 7) % 9))
        examples.append(Completion(id=f"o{n}", prompt=f"Q: {question}?\nA:", completion=answer))
    return examples


@functools.cache
def tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer whose tokens are whole words with the space before them."""
    split = pre_tokenizers.Split(Regex(PIECE), "isolated")
    texts = [
        example.prompt + label
        for example in (*letter_examples(), *phrase_examples())
        for label in example.labels
    ]
    pieces = sorted({piece for text in texts for piece, _ in split.pre_tokenize_str(text)})
    words = {word: index for index, word in enumerate([*SPECIAL, *pieces])}
    built = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    built.pre_tokenizer = split
    built.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", words["<s>"])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=built,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        model_max_length=WINDOW,
    )


@dataclass(frozen=True)
class Architecture:
    """How a tiny model is described, and which of its layers carry adapters."""

    config: str  # a class of transformers
    targets: tuple[str, ...]
    settings: dict[str, Any]
    conv1d: bool = False  # weights are kept transposed


LLAMA_LIKE: dict[str, Any] = dict(
    hidden_size=32,
    intermediate_size=40,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=WINDOW,
    initializer_range=0.2,
)
GPT_LIKE: dict[str, Any] = dict(n_embd=32, n_layer=2, n_head=4, n_positions=WINDOW, initializer_range=0.2)
NO_DROPOUT: dict[str, Any] = dict(attn_pdrop=0.0, embd_pdrop=0.0, resid_pdrop=0.0)
MOE: dict[str, Any] = dict(num_experts_per_tok=2)
Q_V = ("q_proj", "v_proj")


def _llama_like(
    config: str, *, targets: tuple[str, ...] = Q_V, settings: dict[str, Any] | None = None
) -> Architecture:
    return Architecture(config, targets, LLAMA_LIKE | (settings or {}))


ARCHITECTURES: dict[str, Architecture] = {
    "llama": _llama_like("LlamaConfig"),
    "llama_all_linear": _llama_like(
        "LlamaConfig", targets=(*Q_V, "k_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    ),
    "mistral": _llama_like("MistralConfig", settings=dict(sliding_window=SLIDING)),
    "qwen2": _llama_like("Qwen2Config"),
    "qwen3": _llama_like("Qwen3Config", settings=dict(head_dim=8)),
    "gemma": _llama_like("GemmaConfig", settings=dict(head_dim=8)),
    "gemma2": _llama_like(
        "Gemma2Config",
        settings=dict(
            head_dim=8, sliding_window=SLIDING, final_logit_softcapping=5.0, attn_logit_softcapping=4.0
        ),
    ),
    "gemma3_text": _llama_like("Gemma3TextConfig", settings=dict(head_dim=8, sliding_window=SLIDING)),
    "phi3": _llama_like("Phi3Config", targets=("qkv_proj",), settings=dict(pad_token_id=0)),
    "gpt2": Architecture("GPT2Config", ("c_attn",), GPT_LIKE | NO_DROPOUT, conv1d=True),
    "gpt_neox": _llama_like("GPTNeoXConfig", targets=("query_key_value",)),
    "opt": Architecture(
        "OPTConfig",
        Q_V,
        dict(
            hidden_size=32,
            word_embed_proj_dim=24,
            ffn_dim=40,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=WINDOW,
            init_std=0.2,
            dropout=0.0,
        ),
    ),
    "falcon": _llama_like("FalconConfig", targets=("query_key_value",)),
    "falcon_alibi": _llama_like(
        "FalconConfig", targets=("query_key_value",), settings=dict(alibi=True, parallel_attn=False)
    ),
    "mixtral": _llama_like("MixtralConfig", settings=MOE | dict(num_local_experts=4)),
    "qwen3_moe": _llama_like(
        "Qwen3MoeConfig", settings=MOE | dict(num_experts=4, moe_intermediate_size=24, head_dim=8)
    ),
    "qwen2_moe_shared_expert": _llama_like(
        "Qwen2MoeConfig",
        targets=(*Q_V, "shared_expert.down_proj"),
        settings=MOE | dict(num_experts=4, moe_intermediate_size=24, shared_expert_intermediate_size=24),
    ),
    "gpt_oss": _llama_like(
        "GptOssConfig",
        settings=MOE
        | dict(
            num_local_experts=4,
            head_dim=8,
            sliding_window=SLIDING,
            rope_parameters=dict(rope_type="default", rope_theta=1e4),
        ),
    ),
    "olmo2": _llama_like("Olmo2Config"),
    "cohere": _llama_like("CohereConfig", settings=dict(logit_scale=0.3)),
    "granite": _llama_like(
        "GraniteConfig", settings=dict(logits_scaling=3.0, embedding_multiplier=2.0, residual_multiplier=0.5)
    ),
    "stablelm": _llama_like("StableLmConfig"),
    "starcoder2": _llama_like("Starcoder2Config"),
    "phi": _llama_like("PhiConfig"),
    "gptj": Architecture("GPTJConfig", Q_V, GPT_LIKE | NO_DROPOUT | dict(rotary_dim=4)),
    "gpt_bigcode": Architecture("GPTBigCodeConfig", ("c_attn",), GPT_LIKE | NO_DROPOUT),
    "bloom": Architecture(
        "BloomConfig", ("query_key_value",), dict(hidden_size=32, n_layer=2, n_head=4, initializer_range=0.2)
    ),
    "mpt": Architecture(
        "MptConfig",
        ("Wqkv",),
        dict(d_model=32, n_layers=2, n_heads=4, max_seq_len=WINDOW, initializer_range=0.2),
    ),
    "smollm3": _llama_like("SmolLM3Config"),
    "glm": _llama_like("GlmConfig", settings=dict(head_dim=8)),
    "exaone4": _llama_like("Exaone4Config", settings=dict(sliding_window=SLIDING, sliding_window_pattern=2)),
}

# Sliding windows, soft caps, Conv1D, a head that reads other states, ALiBi, experts, one matrix for query,
# key and value, parallel attention, rotary halves: one architecture of each kind.
TRIED = tried(
    ARCHITECTURES,
    ("llama", "gemma2", "gpt2", "opt", "falcon_alibi", "mixtral", "phi3", "gpt_neox", "gpt_oss", "cohere"),
)


@functools.cache
def _weights(name: str) -> PreTrainedModel:
    described = ARCHITECTURES[name]
    tokens = dict(vocab_size=len(tokenizer()), pad_token_id=0, bos_token_id=1, eos_token_id=2)
    config = getattr(transformers, described.config)(**(tokens | described.settings))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        with torch.no_grad():
            for parameter in model.parameters():
                if (
                    parameter.dim() == 1
                ):  # norms and biases begin at exactly 1 and 0, which would hide that one was left out
                    parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


def build(name: str, *, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """A model of its own on every call, always with the same weights."""
    return copy.deepcopy(_weights(name)).to(dtype)


def adapter_config(
    name: str = "llama", *, rank: int = 4, alpha: float = 8, dropout: float = 0.0
) -> LoraConfig:
    """A small adapter on the targets of an architecture."""
    described = ARCHITECTURES[name]
    return LoraConfig(
        r=rank,
        lora_alpha=alpha,
        lora_dropout=dropout,
        target_modules=list(described.targets),
        fan_in_fan_out=described.conv1d,
        task_type="CAUSAL_LM",
    )


def build_ensemble(
    name: str = "llama",
    *,
    members: int = 3,
    random_b: bool = False,
    seed: int = 0,
    adapter: LoraConfig | None = None,
) -> LoraEnsemble:
    """An ensemble on a fresh base; with `random_b` its members' B are not PEFT's zeros, so that every member
    differs from the base.
    """
    ensemble = LoraEnsemble(
        build(name), tokenizer(), num_members=members, adapter=adapter or adapter_config(name), seed=seed
    )
    if random_b:
        randomise_b(ensemble)
    return ensemble


def randomise_b(ensemble: LoraEnsemble) -> None:
    """Give every member a B of its own."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        ensemble.stack.b.copy_(0.2 * torch.randn(ensemble.stack.b.shape, generator=generator))
    ensemble.stack.refresh()


def random_rows(lengths: Sequence[int], *, seed: int = 0) -> list[list[int]]:
    """Rows of token ids of the given lengths, without padding tokens in them."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(1, len(tokenizer()), (length,), generator=generator).tolist() for length in lengths]


def pad(rows: Sequence[Sequence[int]], *, length: int | None = None) -> tuple[Tensor, Tensor]:
    """Right-padded ids (B, T) and their attention mask."""
    length = length or max(map(len, rows))
    ids = torch.tensor([[*row, *[0] * (length - len(row))] for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (length - len(row)) for row in rows])
    return ids, mask


def parameters_of(model: nn.Module) -> dict[str, Tensor]:
    """Copies of all parameters and buffers."""
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
