"""Does an ensemble of reward models know which pairs it gets wrong?
`python benchmarks/reward.py --data DIR --out results/reward`.

Pairs are made from OpenBookQA: of each question the right option is chosen, and one of the others, drawn at
random, is rejected. The base is all-MiniLM-L6-v2, as in `minilm.py`. A record a seed: accuracy over pairs of
the ensemble and of its members, and how well signs of doubt find the pairs that the ensemble gets wrong
(AUROC, 0.5 is chance): the standard deviation over members of the difference of a pair's two scores, that
over the size of its mean, and how close the ensemble's probability is to one half. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from minilm import NAME, load as load_minilm, numbers
from peft import LoraConfig

from lora_ensembles import (
    Example,
    HeadConfig,
    LoraEnsemble,
    TrainConfig,
    evaluate,
    evaluate_members,
    load_task,
    predict,
    train,
)
from lora_ensembles.data import preference
from lora_ensembles.errors import LoraEnsemblesError
from lora_ensembles.prediction.selective import error_auroc
from lora_ensembles.studies.store import cell

SETTINGS: dict[str, Any] = {
    "kind": "reward",
    "task": "obqa",
    "base": NAME,
    "head": "reward",
    "members": 5,
    "epochs": 5,
    "batch_size": 16,
    "learning_rate": 1e-3,
    "layers": [3, 4, 5],
    "limit": [600, 500],
}


def pairs(examples: Sequence[Example], *, seed: int) -> list[Example]:
    """A pair a question; the rejected option is drawn with `seed`."""
    rng, found = random.Random(seed), []
    for example in examples:
        assert example.target is not None
        right = example.options[example.target]
        others = [option for option in example.options if option != right]
        found.append(
            preference(example.id, example.question or example.prompt, f" {right}", f" {rng.choice(others)}")
        )
    return found


def measure(settings: dict[str, Any], data: Path) -> dict[str, Any]:
    """Train an ensemble of reward models on pairs, and measure it on others."""
    begin, task = time.monotonic(), load_task(settings["task"], data=data)
    shown, asked = (
        part[:most] for part, most in zip((task.train, task.validation), settings["limit"], strict=True)
    )
    base, tokenizer = load_minilm(head="sequence-classification", num_labels=1)
    adapter = LoraConfig(
        r=8, lora_alpha=32, target_modules=["query", "value"], layers_to_transform=settings["layers"]
    )
    ensemble = LoraEnsemble(
        base,
        tokenizer,
        num_members=settings["members"],
        adapter=adapter,
        seed=settings["seed"],
        head=HeadConfig("reward", max_length=128),
    )
    config = TrainConfig(
        **{name: settings[name] for name in ("epochs", "batch_size", "learning_rate")},
        length_window=8,
        overlong="left",
    )
    history = train(ensemble, pairs(shown, seed=settings["seed"]), config, progress=False).history
    prediction = predict(ensemble, pairs(asked, seed=0))  # every seed is asked about the same pairs
    whole, members = evaluate(prediction), evaluate_members(prediction)
    margins = (
        prediction.member_log_probs[..., 0] - prediction.member_log_probs[..., 1]
    )  # (M, N): chosen score - rejected score
    mean, spread = margins.mean(dim=0), margins.std(dim=0, correction=0)
    right = prediction.choices == prediction.labelled_targets("pairs")
    doubts = {
        "std": spread,
        "std over mean": spread / mean.abs().clamp_min(1e-9),
        "probability": 1 - prediction.confidence,
    }
    return {
        "accuracy": {
            "ensemble": whole.accuracy,
            "members": list(members["accuracy"].values),
        },
        "nll": {"ensemble": whole.nll, "members": list(members["nll"].values)},
        "ece": {"ensemble": whole.ece, "members": list(members["ece"].values)},
        "finds_wrong_pairs": {name: round(error_auroc(doubt, right), 4) for name, doubt in doubts.items()},
        "wrong": int((~right).sum()),
        "train_accuracy": history[-1]["train_accuracy"],
        "sizes": {"train": len(shown), "validation": len(asked)},
        "seconds": round(time.monotonic() - begin, 1),
    }


def summary(results: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Means over the seeds."""
    found = {
        "accuracy of the ensemble": [one["accuracy"]["ensemble"] for one in results],
        "accuracy of a member": [statistics.fmean(one["accuracy"]["members"]) for one in results],
        **{
            f"AUROC of {doubt}": [one["finds_wrong_pairs"][doubt] for one in results]
            for doubt in results[0]["finds_wrong_pairs"]
        },
    }
    return {name: round(statistics.fmean(values), 4) for name, values in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="folder with the paper's data sets")
    parser.add_argument("--out", type=Path, required=True, help="folder of the records")
    parser.add_argument(
        "--seeds", type=numbers, default=(0, 1, 2), help="seeds of the ensembles (default: 0,1,2)"
    )
    arguments = parser.parse_args()
    results = []
    try:
        for seed in arguments.seeds:
            settings = {**SETTINGS, "seed": seed}
            record = cell(
                arguments.out,
                "reward-obqa",
                settings,
                lambda settings=settings: measure(settings, arguments.data),
            )
            results.append(record["result"])
            print(f"seed {seed}: {json.dumps(summary(results[-1:]))}", flush=True)
    except LoraEnsemblesError as error:
        sys.exit(f"error: {error}")
    print(json.dumps({"seeds": len(results), **summary(results)}))


if __name__ == "__main__":
    main()
