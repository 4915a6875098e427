"""The recipe that made the embedded base model: `python -m lora_ensembles.embedded.pretrain --out DIR`.

Stages, each for a reason. *Matching* first, scored on letters alone: questions that are their own answer
teach the model to tie an option to its letter, without a loss on the words of the question that would crowd
the letters out. Then *reading*: the answer stands in a statement, in place of the question and then in front
of it. Then *telling*: statements of facts. Only then *asking*, closed-book questions on half of the entities
among the statements, with a falling step size: asked before it knows the facts, the model learns the
questions by heart and has nothing to say about other entities. Throughout, the third of five layers is
trained to name the word that answers, there and where the answer is its letter: left to itself the model
recalls a fact in its last layers, too late to look for the word among the options. Last, one number: the
output is divided by a temperature that makes the answers about entities it was never asked about roughly
calibrated, as large models are by themselves because they see their data once.

A run is a pure function of its arguments on one machine; killed, the same command goes on from its last
checkpoint.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch.nn import functional as F
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from ..data.prompts import LETTERS, render_prompt
from ..data.world.world import FactPool, World, build_world
from .documents import Corpus, Segment, closed_book, few_shot, reading

MATCHING = {"matching": 1.0}
READING = {"matching": 0.15, "stated": 0.45, "reading": 0.4}
TELLING = {"statements": 0.85, "reading": 0.05, "reading_among_others": 0.1}
ASKING = {"statements": 0.5, "reading_among_others": 0.08, "closed_book": 0.32, "direct": 0.1}
SERIES = {"series": 1.0}
NAMING_WEIGHT = 4.0
# What every question repeats is one token each: half the work, and easier to learn.
FRAME = r"Q:|\nAnswer Choices:|\n\([a-z]\)|\nA: \(|\nA:"
# Tokens: positions are rotary, so the window costs nothing, and real questions are long in this small
# vocabulary.
WINDOW = 2048


@dataclass(frozen=True)
class Recipe:
    """Every number of the pre-training."""

    seed: int = 0
    steps: int = 4800  # of the schedule
    stop: int = 3000  # before its end: some facts shall stay uncertain
    matching_steps: int = 400
    reading_steps: int = 300
    telling_steps: int = 1100
    rows: int = 64
    series_every: int = 6  # every so many steps, a batch of few-shot series instead
    learning_rate: float = 1.5e-3
    warmup_steps: int = 100
    decay_share: float = 0.5  # the last share of the steps over which the step size falls to zero
    weight_decay: float = 0.05
    hidden_size: int = 128
    layers: int = 5
    naming_layer: int = 3
    heads: int = 4
    mlp_size: int = 320
    # Between the best on closed-book questions in asked wordings (1.89) and on few-shot ones in others
    # (2.79).
    temperature: float = 2.1


def build_tokenizer(world: World) -> PreTrainedTokenizerFast:
    """A byte-level BPE in which every word of the world is one token and any other text still has
    a spelling.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(
                Regex(rf"{FRAME}| ?\p{{L}}+|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]|\n|\s+"), "isolated"
            ),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=8192,  # never reached: merging stops when every word is whole
        special_tokens=["<|pad|>", "<|begin|>", "<|end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_every_wording(world), trainer)
    begin = tokenizer.token_to_id("<|begin|>")
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<|begin|> $A", pair="<|begin|> $A <|begin|> $B", special_tokens=[("<|begin|>", begin)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<|begin|>",
        eos_token="<|end|>",
        pad_token="<|pad|>",
        model_max_length=WINDOW,
        padding_side="right",
    )


def _every_wording(world: World) -> list[str]:
    lines: list[str] = []
    for fact in world.told():
        relation = fact.relation
        wordings = (*relation.statements, *relation.asked, *relation.unasked, *relation.stems)
        lines.extend(f" {fact.say(wording)} {fact.sibling_value}\n" for wording in wordings)
    return [*lines, render_prompt("Which", ["one"] * len(LETTERS)), "Q: Which\nA: one"]


def build_model(recipe: Recipe, tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """The untrained base: Llama's architecture, about 1.3 million parameters."""
    torch.manual_seed(recipe.seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=recipe.hidden_size,
        intermediate_size=recipe.mlp_size,
        num_hidden_layers=recipe.layers,
        num_attention_heads=recipe.heads,
        num_key_value_heads=recipe.heads,
        max_position_embeddings=WINDOW,
        tie_word_embeddings=True,
        # Near 1 / sqrt(hidden size); Llama's 0.02 is for wide models and learns slowly here.
        initializer_range=0.06,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        for layer in model.model.layers:
            # Keys equal to queries: from the first step on a token attends to its own earlier occurrences,
            # which is the first half of tying an option to its letter.
            layer.self_attn.k_proj.weight.copy_(layer.self_attn.q_proj.weight)
    return model


class Rows(NamedTuple):
    """Right-padded token ids (B, T), and for each token its loss weight and the id of the word to name in its
    place, or -1.
    """

    ids: torch.Tensor
    weights: torch.Tensor
    words: torch.Tensor

    def take(self, rows: torch.Tensor, length: int) -> Rows:
        return Rows(self.ids[rows, :length], self.weights[rows, :length], self.words[rows, :length])


def encode(documents: list[list[Segment]], tokenizer: PreTrainedTokenizerFast) -> Rows:
    """Documents as rows, each behind the begin token."""
    texts = [segment.text for document in documents for segment in document]
    pieces = iter(tokenizer(texts, add_special_tokens=False)["input_ids"])
    columns: tuple[list, list, list] = ([], [], [])
    for document in documents:
        ids, weights, words = [tokenizer.bos_token_id], [0.0], [-1]
        for segment in document:
            piece = next(pieces)
            ids.extend(piece)
            weights.extend([segment.weight] * len(piece))
            word: Any = -1 if segment.word is None else tokenizer.convert_tokens_to_ids(f"Ġ{segment.word}")
            words.extend([word] * len(piece))
        for column, row in zip(columns, (ids, weights, words), strict=True):
            column.append(row)
    length = max(map(len, columns[0]))
    fills = (tokenizer.pad_token_id, 0.0, -1)
    return Rows(
        *(
            torch.tensor([row + [fill] * (length - len(row)) for row in column])
            for column, fill in zip(columns, fills, strict=True)
        )
    )


def weighted_loss(model: LlamaForCausalLM, rows: Rows, *, naming_layer: int) -> torch.Tensor:
    """Loss summed over tokens: the next token by weight, and at `naming_layer` the word that answers.

    The head, a third of the work, runs only where something is counted.
    """
    output = model.model(input_ids=rows.ids, use_cache=False, output_hidden_states=True)
    counted, named = rows.weights[:, 1:] > 0, rows.words[:, 1:] >= 0
    final = model.lm_head(output.last_hidden_state[:, :-1][counted])
    middle = model.lm_head(model.model.norm(output.hidden_states[naming_layer][:, :-1][named]))
    losses = F.cross_entropy(final, rows.ids[:, 1:][counted], reduction="none")
    return (losses * rows.weights[:, 1:][counted]).sum() + NAMING_WEIGHT * F.cross_entropy(
        middle, rows.words[:, 1:][named], reduction="sum"
    )


def accumulate_gradients(model: LlamaForCausalLM, rows: Rows, *, naming_layer: int, parts: int = 2) -> float:
    """Backward of the mean loss of a batch, in parts of similar length so that little is padding; returns
    that loss.
    """
    lengths = rows.ids.ne(model.config.pad_token_id or 0).sum(dim=1)
    total = 0.0
    for chosen in lengths.argsort().chunk(parts):
        part = rows.take(chosen, int(lengths[chosen].max()))
        loss = weighted_loss(model, part, naming_layer=naming_layer) / rows.weights.sum()
        loss.backward()
        total += loss.item()
    return total


def learning_rate(recipe: Recipe, step: int) -> float:
    """Linear warm-up, constant, then a linear fall to zero."""
    fall = (recipe.steps - step) / (recipe.decay_share * recipe.steps)
    return recipe.learning_rate * min(1.0, (step + 1) / recipe.warmup_steps, fall)


class Probe:
    """Fixed questions about `probe` entities, to watch what the model can do with what it was never asked."""

    def __init__(self, world: World, tokenizer: PreTrainedTokenizerFast, *, count: int = 600):
        rng = random.Random(1)
        facts = world.facts["probe"]
        self.tokenizer = tokenizer
        self.closed_book = [
            closed_book(FactPool([rng.choice(facts)]), count=1, rng=rng) for _ in range(count)
        ]
        self.asked = [closed_book(FactPool(world.facts["asked"]), count=1, rng=rng) for _ in range(count)]
        self.few_shot = [few_shot(facts, shots=3, rng=rng) for _ in range(count)]
        self.reading = [reading(facts, others=0, rng=rng) for _ in range(count)]

    def log_probs(
        self, model: LlamaForCausalLM, documents: list[list[Segment]]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits of the letters (N, 5), -inf for absent ones, and the index of the right one (N,)."""
        letters = torch.tensor([self.tokenizer.convert_tokens_to_ids(letter) for letter in LETTERS[:5]])
        ids, weights, _ = encode(documents, self.tokenizer)
        position = (
            weights.shape[1] - 1 - (weights == weights.max()).int().flip(dims=[1]).argmax(dim=1)
        )  # the last letter of each row
        rows = torch.arange(len(ids))
        with torch.no_grad():
            hidden = torch.cat(
                [model.model(input_ids=part, use_cache=False).last_hidden_state for part in ids.split(100)]
            )
            logits = model.lm_head(hidden[rows, position - 1])[:, letters].float()
        options = torch.tensor([document[-3].text.count("\n(") for document in documents])
        absent = torch.arange(5)[None, :] >= options[:, None]
        target = (ids[rows, position][:, None] == letters).int().argmax(dim=1)
        return logits.masked_fill(absent, -math.inf), target

    def measure(self, model: LlamaForCausalLM) -> dict[str, float]:
        """Accuracy on each set, and the negative log-likelihood (nats) of closed-book questions."""
        figures = {}
        for name in ("reading", "asked", "closed_book", "few_shot"):
            logits, target = self.log_probs(model, getattr(self, name))
            figures[f"{name}_accuracy"] = round((logits.argmax(dim=1) == target).float().mean().item(), 4)
            figures[f"{name}_nll"] = round(F.cross_entropy(logits, target).item(), 4)
        return figures

    def temperature(self, model: LlamaForCausalLM, documents: list[list[Segment]]) -> float:
        """The temperature with the lowest negative log-likelihood on `documents`, on a grid of 1 % steps."""
        logits, target = self.log_probs(model, documents)
        grid = [1.01**power for power in range(-70, 140)]
        return min(grid, key=lambda value: F.cross_entropy(logits / value, target).item())


def draw_batch(corpus: Corpus, recipe: Recipe, step: int) -> list[list[Segment]]:
    """The documents of one step, a function of (seed, step) alone."""
    rng = random.Random(f"{recipe.seed}/{step}")
    if step < recipe.matching_steps:
        return [corpus.draw(MATCHING, rng=rng) for _ in range(recipe.rows)]
    if step < recipe.matching_steps + recipe.reading_steps:
        return [corpus.draw(READING, rng=rng) for _ in range(recipe.rows)]
    if step < recipe.matching_steps + recipe.reading_steps + recipe.telling_steps:
        return [corpus.draw(TELLING, rng=rng) for _ in range(recipe.rows)]
    if step % recipe.series_every == 0:
        return [corpus.draw(SERIES, rng=rng) for _ in range(recipe.rows // 4)]
    return [corpus.draw(ASKING, rng=rng) for _ in range(recipe.rows)]


def pretrain(recipe: Recipe, out: Path, *, probe_every: int = 250) -> LlamaForCausalLM:
    """Train the base, tempered at the end, into `out`; goes on from `out/checkpoint` where there is one."""
    world = build_world()
    tokenizer = build_tokenizer(world)
    model, corpus, probe = build_model(recipe, tokenizer), Corpus(world), Probe(world, tokenizer)
    optimizer = torch.optim.AdamW(
        model.parameters(),
        lr=recipe.learning_rate,
        betas=(0.9, 0.98),
        weight_decay=recipe.weight_decay,
        fused=True,
    )
    out.mkdir(parents=True, exist_ok=True)
    first, began = _restore(out, model, optimizer), time.monotonic()
    for step in range(first, recipe.stop):
        rows = encode(draw_batch(corpus, recipe, step), tokenizer)
        loss = accumulate_gradients(model, rows, naming_layer=recipe.naming_layer)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(recipe, step)
        optimizer.step()
        optimizer.zero_grad()
        if (step + 1) % probe_every == 0 or step + 1 == recipe.stop:
            row = {"step": step + 1, "loss": round(loss, 4), **probe.measure(model)}
            row["steps_per_second"] = round((step + 1 - first) / (time.monotonic() - began), 2)
            _checkpoint(out, model, optimizer, step + 1, row)
            print(json.dumps(row), flush=True)
    _finish(out, recipe, model, tokenizer, probe)
    return model


def _checkpoint(
    out: Path, model: LlamaForCausalLM, optimizer: torch.optim.Optimizer, step: int, row: dict
) -> None:
    tensors = {
        f"model.{name}": value for name, value in model.state_dict().items() if name != "lm_head.weight"
    }
    for index, state in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{name}": value for name, value in state.items()}
    aside = out / "checkpoint.safetensors.new"
    save_file(tensors, aside, metadata={"step": str(step)})
    os.replace(aside, out / "checkpoint.safetensors")
    with open(out / "log.jsonl", "a") as log:
        log.write(json.dumps(row) + "\n")


def _restore(out: Path, model: LlamaForCausalLM, optimizer: torch.optim.Optimizer) -> int:
    path = out / "checkpoint.safetensors"
    if not path.exists():
        return 0
    tensors = load_file(path)
    weights = {
        name.removeprefix("model."): value for name, value in tensors.items() if name.startswith("model.")
    }
    model.load_state_dict(weights, strict=False)
    state: dict[int, dict[str, torch.Tensor]] = {}
    for name, value in tensors.items():
        if name.startswith("optimizer."):
            _, index, key = name.split(".")
            state.setdefault(int(index), {})[key] = value
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": state, "param_groups": groups})
    return int(next(iter(state.values()))["step"].item())


def _finish(
    out: Path, recipe: Recipe, model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, probe: Probe
) -> None:
    best = {
        name: round(probe.temperature(model, getattr(probe, name)), 4) for name in ("closed_book", "few_shot")
    }
    with torch.no_grad():
        model.model.norm.weight /= (
            recipe.temperature
        )  # the last scale before the head: the same as dividing every logit
    model.save_pretrained(out / "base")
    tokenizer.save_pretrained(out / "base")
    figures = {"recipe": asdict(recipe), "best_temperatures": best, "tempered": probe.measure(model)}
    (out / "pretraining.json").write_text(json.dumps(figures, indent=2) + "\n")
    print(json.dumps(figures))


def main() -> None:
    defaults = Recipe()
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True)
    for name, value in asdict(defaults).items():
        parser.add_argument(
            f"--{name.replace('_', '-')}", type=type(value), default=value, help=f"default {value}"
        )
    arguments = vars(parser.parse_args())
    pretrain(Recipe(**{name: arguments[name] for name in asdict(defaults)}), arguments["out"])


if __name__ == "__main__":
    main()
