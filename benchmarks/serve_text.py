"""Continuous against static batches of text:
`python benchmarks/serve_text.py --base smollm2 --out results/serving/text-smollm2.json`.

One, 8 and 32 requests are asked at once, with prompts and numbers of tokens of very different lengths. They
are written by the server's engine of continuous batching, by its engine of static batches (eight together, to
the end of the longest), and by `generate` one after another. Tokens a second are medians over windows in
which every arm runs once. Each arm's tokens must be those of `generate`.
"""

from __future__ import annotations

import argparse
import random
import sys
from collections.abc import Callable, Sequence
from typing import Any

from timing import add_record_flags, end_with, interleaved, rounded
from transformers import GenerationConfig

from lora_ensembles import LoraEnsemble, generate_text, load_base
from lora_ensembles.data import encode_prompts
from lora_ensembles.serve.catalogue import Catalogue, ServedModel
from lora_ensembles.serve.completions.continuous import ContinuousEngine
from lora_ensembles.serve.completions.engine import CompletionEngine
from lora_ensembles.serve.completions.job import CompletionJob
from lora_ensembles.serve.completions.params import SamplingParams
from lora_ensembles.serve.completions.static import StaticEngine

TOGETHER = (1, 8, 32)
WORDS = "the door is open and a cat waits near an old river while rain falls on red roofs".split()


def requests(count: int) -> list[tuple[str, int]]:
    """Prompts of 5 to 60 words, each with 8 to 48 tokens to be written."""
    drawn = random.Random(count)
    return [
        (" ".join(drawn.choices(WORDS, k=drawn.randrange(5, 61))), drawn.randrange(8, 49))
        for _ in range(count)
    ]


def write(engine: CompletionEngine, asked: Sequence[tuple[str, int]]) -> list[list[int]]:
    """The tokens of requests that are asked at once."""
    tokenizer = engine.model.ensemble.tokenizer
    ids = encode_prompts([prompt for prompt, _ in asked], tokenizer)
    jobs = [
        CompletionJob(engine.model, own, SamplingParams(count, temperature=0.0), ends=frozenset())
        for own, (_, count) in zip(ids, asked, strict=True)
    ]
    for job in jobs:
        engine.submit(job)
    return [[one.token for one in job.future.result().tokens] for job in jobs]


def generate(ensemble: LoraEnsemble, asked: Sequence[tuple[str, int]]) -> list[list[int]]:
    """The same by `generate`, one request after another; the pass for uncertainty is part of it."""
    made = []
    for prompt, count in asked:
        config = GenerationConfig(max_new_tokens=count, min_new_tokens=count)
        made.append(list(generate_text(ensemble, [prompt], config)[0].token_ids))
    return made


def without_end(ensemble: LoraEnsemble) -> None:
    """Let no text end before its number of tokens, in any arm."""
    ensemble.base.generation_config.eos_token_id = None
    ensemble.tokenizer.eos_token = None


def measure(base: str, *, members: int, windows: int) -> dict[str, Any]:
    """The whole run."""
    ensemble = LoraEnsemble(*load_base(base), num_members=members)
    ensemble.stack.b.normal_(std=0.02)
    ensemble.stack.refresh()
    without_end(ensemble)
    model: ServedModel = Catalogue({"text": ensemble})["text"]
    engines: dict[str, CompletionEngine] = {
        "continuous": ContinuousEngine(model, most=64),
        "static": StaticEngine(model, most=64, reason="measured"),
    }
    for engine in engines.values():
        engine.start()
    rows, same = [], True
    for count in TOGETHER:
        asked = requests(count)
        expected = generate(ensemble, asked)
        arms: dict[str, Callable[[], object]] = {
            "continuous": lambda own=asked: write(engines["continuous"], own),
            "static": lambda own=asked: write(engines["static"], own),
            "generate": lambda own=asked: generate(ensemble, own),
        }
        same = same and all(write(engine, asked) == expected for engine in engines.values())
        seconds = interleaved(arms, windows=windows)
        tokens = sum(tokens for _, tokens in asked)
        rows.append(
            {
                "requests": count,
                "tokens": tokens,
                **{f"{name}_tokens_per_second": tokens / took for name, took in seconds.items()},
                "continuous_over_static": seconds["static"] / seconds["continuous"],
            }
        )
    for engine in engines.values():
        engine.stop()
    return {"id": "serve-text", "base": base, "members": members, "rows": rows, "ok": same}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--base", default="embedded")
    parser.add_argument("--members", type=int, default=4)
    parser.add_argument("--windows", type=int, default=3)
    add_record_flags(parser)
    arguments = parser.parse_args()
    row = rounded(measure(arguments.base, members=arguments.members, windows=arguments.windows), digits=4)
    for one in row["rows"]:
        print(", ".join(f"{key} {value}" for key, value in one.items()))
    end_with(row, arguments)
    sys.exit(0 if row["ok"] else 1)


if __name__ == "__main__":
    main()
