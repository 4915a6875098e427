"""What asking N questions costs: `python benchmarks/score.py --profile E1 --json`.

E1, option scoring: the library's `member_log_probs` on N questions, against
  A   M PEFT models one after another, as a script has it: rows padded on the left with a mask, the head at
      the last position
  A'  the same with rows sorted by length and padded on the right, so that no mask is needed, and no cache
  B   PEFT's `adapter_names`: the rows of all members in one batch, else as A'
each at the fastest of several batch sizes, and C, the least that the arithmetic can take.

smollm2, embedded: E1 on a pre-trained model (`make smollm2` brings SmolLM2-135M-Instruct), with labels in
words, of OpenBookQA with --data; where they have several tokens, the arms read a row for each, and the
library their prompt once.

E2, few shots: `FewShot` on questions that share their demonstrations, against `unshared`, the same prompts
read whole, as A'. C counts the demonstrations once.

A ratio is that arm's time over the library's; C is the share of the limit. All arms' log-probabilities are
compared in the same run. Without a GPU, or with --scaled, the models are small ones of the same architecture,
which the output says.
"""

from __future__ import annotations

import argparse
import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from limits import peak, scoring_flops
from peers import Work, put, wrap
from scoring_arms import Answer, mixed_answer, plain_answer, score, tuned_answer
from timing import (
    WINDOWS,
    add_data_flag,
    add_record_flags,
    end_with,
    interleaved,
    ratio_lines,
    rounded,
    worst,
)
from torch import Tensor
from transformers import PreTrainedModel
from workloads import SHAPES, Shape, build, in_words, questions, scaled, shape_of, sharing, tokenizer

from lora_ensembles import FewShot, LoraEnsemble, TrainConfig, load_base
from lora_ensembles.baselines.few_shot import render_demonstration
from lora_ensembles.data import EncodedExample, Example, encode_examples

TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.25}  # nats: most difference of log-probabilities


@dataclass(frozen=True)
class Profile:
    """N questions of `length` tokens, give or take `spread` of it, for M members, or behind `shots`
    demonstrations of the same length.
    """

    shape: str
    members: int
    questions: int
    length: int
    must: dict[str, float]
    shots: int = 0
    spread: float = 0.3
    batches: tuple[int, ...] = (8, 32, 128)  # rows of a pass that the peer arms try


PROFILES = {
    "E1": Profile("1.5B", 8, 512, 300, {"A": 1.3, "B": 1.3, "C": 0.50}),
    "E2": Profile("1.5B", 1, 512, 60, {"unshared": 4.0}, shots=5),
}
SMALL = {  # the same on every device
    "smollm2": Profile("smollm2", 5, 16, 0, {"A": 1.0, "A'": 1.0}, batches=(16, 64)),
    "embedded": Profile("embedded", 2, 6, 0, {}, batches=(8, 16)),
    "tiny-E1": Profile("tiny", 2, 4, 8, {}, batches=(2, 4)),
    "tiny-E2": Profile("tiny", 1, 4, 8, {}, shots=2, batches=(2, 4)),
}


@dataclass
class Setting:
    """The plain base, the questions, and their tokens."""

    task: str | None  # None: random tokens
    shape: Shape
    base: PreTrainedModel
    words: Any
    examples: list[Example]
    encoded: list[EncodedExample]


def prepare(profile: Profile, *, small: bool, device: str, dtype: torch.dtype, data: Path | None) -> Setting:
    """Questions on a base of random weights, every label one token; or those of a task in words, on a base
    with weights of its own.
    """
    if profile.shape not in SHAPES:
        loaded, words = load_base(profile.shape, dtype=str(dtype).removeprefix("torch."))
        task = in_words(data)
        examples = list(task.validation[: profile.questions])
        encoded = encode_examples(examples, words)
        base = loaded.to(device)  # type: ignore[arg-type]
        return Setting(task.name, shape_of(loaded), base, words, examples, encoded)
    shape = scaled(SHAPES[profile.shape]) if small else SHAPES[profile.shape]
    words, base = tokenizer(shape.vocabulary), build(shape, dtype=dtype, device=device)
    examples = questions(
        profile.questions, length=profile.length, words=shape.vocabulary, spread=profile.spread
    )
    return Setting(None, shape, base, words, examples, encode_examples(examples, words))


class BestBatch:
    """An arm at the fastest of several batch sizes, found at its first run."""

    def __init__(self, run: Callable[[int], Tensor], batches: Sequence[int], device: str):
        self.run, self.batches, self.device = run, list(batches), device
        self.seconds: dict[int, float] = {}
        self.result: Tensor

    def __call__(self) -> None:
        if not self.seconds:
            trials: dict[str, Callable[[], object]] = {
                str(rows): functools.partial(self.run, rows) for rows in self.batches
            }
            self.seconds = {
                int(rows): value for rows, value in interleaved(trials, windows=1, device=self.device).items()
            }
        self.result = self.run(self.best)

    @property
    def best(self) -> int:
        return min(self.seconds, key=lambda rows: self.seconds[rows])


def option_arms(
    setting: Setting, profile: Profile, device: str
) -> tuple[Callable[[], Tensor], dict[str, BestBatch]]:
    """E1: the library's call, and the peers'."""
    ensemble = LoraEnsemble(sharing(setting.base), setting.words, num_members=profile.members)
    weights = [ensemble.stack.member(index) for index in range(profile.members)]
    generator = torch.Generator().manual_seed(0)
    for member in weights:
        for matrix in member.b.values():
            matrix.normal_(std=0.02, generator=generator)
    ensemble.stack.set_members(weights)
    work = Work(setting.base, ensemble.adapter, [], TrainConfig(), weights, [])
    names = [f"member{index}" for index in range(profile.members)]
    models = [wrap(work, ["default"]).eval() for _ in weights]
    mixed = wrap(work, names).eval()
    for name, model, member in zip(names, models, weights, strict=True):
        put(model, member)
        put(mixed, member, name)
    inner = [model.get_base_model() for model in models]

    def each(answers: Sequence[Answer], tuned: bool, rows: int) -> Tensor:
        return torch.cat(
            [
                score(setting.encoded, one, rows=rows, tuned=tuned, device=setting.base.device)
                for one in answers
            ]
        )

    runs = {
        "A": functools.partial(each, [plain_answer(model) for model in models], False),
        "A'": functools.partial(each, [tuned_answer(model.model, model.lm_head) for model in inner], True),
        "B": functools.partial(each, [mixed_answer(mixed, names)], True),
    }
    peers = {name: BestBatch(run, profile.batches, device) for name, run in runs.items()}
    return lambda: ensemble.member_log_probs(setting.examples), peers


def shot_arms(
    setting: Setting, profile: Profile, device: str
) -> tuple[Callable[[], Tensor], dict[str, BestBatch]]:
    """E2: `FewShot`, and the same prompts read whole."""
    demonstrations = questions(profile.shots, length=profile.length, words=setting.shape.vocabulary, seed=1)
    few_shot = FewShot(setting.base, setting.words, demonstrations, shots=profile.shots, draws=1)
    (prefix,) = few_shot.prompts()
    assert all(render_demonstration(one) in prefix for one in demonstrations)
    encoded = encode_examples(
        [replace(one, prompt=prefix + one.prompt) for one in setting.examples], setting.words
    )
    base: Any = setting.base
    answer = tuned_answer(base.model, base.lm_head)

    def unshared(rows: int) -> Tensor:
        return score(encoded, answer, rows=rows, tuned=True, device=base.device)

    return lambda: few_shot.member_log_probs(setting.examples), {
        "unshared": BestBatch(unshared, profile.batches, device)
    }


def least_flops(setting: Setting, profile: Profile) -> float:
    """Of every question for every member, its prompt once for all labels; and of the demonstrations once."""
    count = len(setting.encoded)
    beyond = sum(len(label) - 1 for one in setting.encoded for label in one.label_ids)
    tokens = sum(len(one.prompt_ids) for one in setting.encoded) + beyond
    shared = profile.shots * (profile.length + 1)
    length = shared + tokens / count
    each = scoring_flops(setting.shape, length=length, lora=profile.shots == 0, answers=1 + beyond / count)
    return profile.members * (tokens + shared) * each


def measure(
    name: str, *, windows: int = WINDOWS, small: bool = False, data: Path | None = None
) -> dict[str, Any]:
    """The row of a profile."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    small = (small or device == "cpu") and name in PROFILES
    profile = {**PROFILES, **SMALL}[name]
    if small:
        profile = replace(profile, questions=64, length=min(profile.length, 48))
    dtype = torch.bfloat16 if device == "cuda" and name in PROFILES else torch.float32
    setting = prepare(profile, small=small, device=device, dtype=dtype, data=data)
    library, peers = (shot_arms if profile.shots else option_arms)(setting, profile, device)
    found: list[Tensor] = []

    def run_library() -> None:
        found[:] = [library()]

    seconds = interleaved({"library": run_library, **peers}, windows=windows, device=device)
    limit = peak(device, dtype=dtype)
    ratios = {arm: seconds[arm] / seconds["library"] for arm in peers}
    ratios["C"] = least_flops(setting, profile) / limit.flops / seconds["library"]
    apart = {arm: worst(float((found[0] - peers[arm].result).abs().max())) for arm in peers}
    exact = {
        "apart": apart,
        "tolerance": TOLERANCE[dtype],
        "ok": all(value <= TOLERANCE[dtype] for value in apart.values()),
    }
    must, count = {} if small else profile.must, len(setting.encoded)
    return {
        "id": name,
        "task": setting.task,
        "scaled": small,
        "shape": dict(vars(setting.shape)),
        "dtype": str(dtype).removeprefix("torch."),
        **{field: getattr(profile, field) for field in ("members", "questions", "spread", "shots")},
        "length": profile.length or round(sum(len(one.prompt_ids) for one in setting.encoded) / count),
        "seconds": seconds,
        "best_batch": {arm: peers[arm].best for arm in peers},
        "tokens_a_second": profile.members
        * sum(len(one.prompt_ids) for one in setting.encoded)
        / seconds["library"],
        "exact": exact,
        "peak": limit.to_dict(),
        "ratios": ratios,
        "must": must,
        "ok": exact["ok"] and all(ratios[one] >= least for one, least in must.items()),
    }


def shown(row: dict[str, Any]) -> str:
    """A row for a reader."""
    shape, best = row["shape"], row["best_batch"]
    sizes = (
        f"{row['questions']} questions of {row['length']} tokens, M={row['members']}, {row['shots']} shots, "
        f"{row['dtype']}"
    )
    lines = [
        (
            f"{row['id']}  {'scaled down: ' if row['scaled'] else ''}{shape['layers']} layers x "
            f"{shape['hidden']}; {sizes}"
        )
    ]
    for arm, seconds in row["seconds"].items():
        lines.append(
            f"  {arm:<10} {seconds:9.3f} s" + (f"  at batches of {best[arm]}" if arm in best else "")
        )
    lines.append(f"  {row['tokens_a_second']:,.0f} tokens/s of questions")
    lines += ratio_lines(row)
    lines.append(
        f"  log-probabilities apart: {max(row['exact']['apart'].values()):.1e} nats "
        f"(at most {row['exact']['tolerance']:g})"
    )
    return "\n".join([*lines, f"  {'ok' if row['ok'] else 'NOT ok'}"])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--profile", choices=[*PROFILES, *SMALL], default="E1")
    parser.add_argument(
        "--scaled",
        action="store_true",
        help="a small model of the same architecture; the default without a GPU",
    )
    parser.add_argument("--windows", type=int, default=WINDOWS, help="interleaved runs of every arm")
    add_data_flag(parser)
    add_record_flags(parser)
    arguments = parser.parse_args()
    measured = measure(
        arguments.profile, windows=arguments.windows, small=arguments.scaled, data=arguments.data
    )
    row = rounded(measured)
    print(shown(row))
    end_with({"rows": [row]}, arguments, device="cuda" if torch.cuda.is_available() else "cpu")


if __name__ == "__main__":
    main()
