"""Tiny things built in code that tests of the engine share: a tokenizer, a Llama, questions, an ensemble."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path

import torch
from peft import LoraConfig
from tokenizers import Regex, Tokenizer, models, pre_tokenizers, processors
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from lora_ensembles.data import Example, render_prompt
from lora_ensembles.ensemble import LoraEnsemble
from lora_ensembles.passes.decoder import recomputed

NAMES = "otter heron badger falcon beaver lynx marten plover".split()
PLACES = "lake forest moor coast".split()
WORDS = [
    *"<pad> <s> <unk> a b c d Q A : ( ) . yes no not sure Answer Choices Where does the live \n".split(" "),
    *NAMES,
    *PLACES,
    "\n",
]
WINDOW = 64
ADAPTER = {"r": 2, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"], "task_type": "CAUSAL_LM"}


@functools.cache
def tokenizer() -> PreTrainedTokenizerFast:
    """One token a word, sign or line break; a space belongs to no token."""
    vocabulary = {word: index for index, word in enumerate(dict.fromkeys(WORDS))}
    tokens = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokens.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(" ", "removed"), pre_tokenizers.Split(Regex(r"\w+|\n|[^\w\s]"), "isolated")]
    )
    tokens.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", vocabulary["<s>"])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokens, pad_token="<pad>", bos_token="<s>", unk_token="<unk>"
    )


def llama(
    *, seed: int = 0, layers: int = 1, hidden: int = 16, window: int = WINDOW, name: str = "tiny/llama"
) -> LlamaForCausalLM:
    """A Llama with random weights, whose attention and head are far from uniform."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer()),
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=window,
        tie_word_embeddings=False,
        initializer_range=0.5,
    )
    model = LlamaForCausalLM(config).eval()
    model.config._name_or_path = name
    return model


def adapter(
    *, rank: int = 2, alpha: float = 8, targets: Sequence[str] = ("q_proj", "v_proj"), dropout: float = 0.0
) -> LoraConfig:
    return LoraConfig(
        r=rank, lora_alpha=alpha, target_modules=list(targets), lora_dropout=dropout, task_type="CAUSAL_LM"
    )


def ensemble(
    *, members: int = 2, seed: int = 0, base: LlamaForCausalLM | None = None, trained: bool = False
) -> LoraEnsemble:
    """An ensemble on `base`; `trained`: with B matrices that are not zero, so that members differ."""
    made = LoraEnsemble(base or llama(), tokenizer(), num_members=members, adapter=adapter(), seed=seed)
    if trained:
        generator = torch.Generator().manual_seed(seed)
        made.stack.b.copy_(torch.randn(made.stack.b.shape, generator=generator))
    return made


def questions(count: int = 8, *, options: int = 4, start: int = 0) -> list[Example]:
    """Lettered questions, each about another animal, whose answers run through the letters."""
    made = []
    for number in range(start, start + count):
        text = f"Where does the {'otter ' * (number // len(NAMES))}{NAMES[number % len(NAMES)]} live"
        labels = ("a", "b", "c", "d")[:options]
        made.append(
            Example(
                f"q{number}",
                render_prompt(text, PLACES[:options]),
                labels,
                number % options,
                text,
                tuple(PLACES[:options]),
            )
        )
    return made


def state(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """A copy of every tensor of a model."""
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same_state(model: torch.nn.Module, before: dict[str, torch.Tensor]) -> bool:
    """Whether a model has exactly the tensors of `before`, bit for bit."""
    now = model.state_dict()
    return now.keys() == before.keys() and all(torch.equal(now[name], before[name]) for name in now)


def files_below(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """While the system refuses, for real, to let any file of this process grow beyond `size` bytes."""
    import resource

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@contextmanager
def no_memory_left(*, beyond: int = 0) -> Iterator[list[int]]:
    """While a model's pass over more than `beyond` rows asks torch's allocator for more than any computer
    has: a real failure everywhere.

    Yields the numbers of rows of the passes that failed, as they fail.
    """
    failed: list[int] = []

    def ask(module: torch.nn.Module, arguments: tuple[torch.Tensor, ...]) -> None:
        if isinstance(module, torch.nn.Embedding) and len(arguments[0]) > beyond:
            failed.append(len(arguments[0]))
            torch.empty(1 << 50, dtype=torch.uint8)

    handle = torch.nn.modules.module.register_module_forward_pre_hook(ask)
    try:
        yield failed
    finally:
        handle.remove()


def check_recomputed(ensemble: LoraEnsemble, loss_of: Callable[[], Tensor]) -> None:
    """Activations that are computed twice give the gradients of `loss_of`, under dropout, and take less
    memory.
    """
    found = []
    for recompute in (False, True):
        kept: dict[int, int] = {}

        def keep(tensor: Tensor, kept: dict[int, int] = kept) -> Tensor:
            kept[tensor.data_ptr()] = tensor.numel()
            return tensor

        again = recomputed(ensemble.base, ensemble.stack.remembered) if recompute else nullcontext()
        dropout = ensemble.stack.dropout(torch.tensor([0.3, 0.1]), [5, 6])
        totals = ensemble.stack.zero_gradients()
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), dropout, again:
            loss = loss_of()
        ensemble.stack.add_gradients(loss, totals)
        found.append((torch.cat(totals, dim=1), sum(kept.values())))
    (expected, whole), (gradients, less) = found
    torch.testing.assert_close(gradients, expected, atol=1e-6 * float(expected.abs().max()), rtol=1e-5)
    assert less < whole
