"""How the embedded base behaves: `python benchmarks/embedded.py --out results/embedded/behaviour.json`.

For each of the six embedded tasks: the untouched base, zero-shot and with three demonstrations, and members
fine-tuned without regularisation (the "embedded" preset): accuracy, NLL, ECE of single members and of their
ensemble, and accuracy on the training split. The base is of use if it behaves like a large one: its few-shot
answers are well above chance and calibrated, fine-tuning lifts accuracy clearly, and single members then know
their training questions by heart and are overconfident on new ones. The last lines count the tasks on which
each of these holds.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

from lora_ensembles import (
    FewShot,
    LoraEnsemble,
    TrainConfig,
    evaluate,
    evaluate_members,
    load_base,
    load_task,
    predict,
    train,
)
from lora_ensembles.disk.provenance import environment
from lora_ensembles.embedded import EMBEDDED_TASKS

METRICS = ("accuracy", "nll", "ece", "brier")
CRITERIA = {
    "few-shot accuracy at least 0.15 above chance, and ECE below 0.12": lambda row: (
        row["few_shot"]["accuracy"] >= row["chance"] + 0.15 and row["few_shot"]["ece"] < 0.12
    ),
    "single member at least 0.05 above few-shot": lambda row: (
        row["single"]["accuracy"] >= row["few_shot"]["accuracy"] + 0.05
    ),
    "single member's training accuracy above 0.97": lambda row: row["single"]["train_accuracy"] > 0.97,
    "single member's validation ECE above 0.10": lambda row: row["single"]["ece"] > 0.10,
    "ensemble better than single member on accuracy, NLL and ECE": lambda row: (
        row["ensemble"]["accuracy"] > row["single"]["accuracy"]
        and row["ensemble"]["nll"] < row["single"]["nll"]
        and row["ensemble"]["ece"] < row["single"]["ece"]
    ),
}


def measure(name: str, *, members: int, seed: int, draws: int) -> dict[str, Any]:
    """One row of the record."""
    task = load_task(name)
    base, tokenizer = load_base()
    chance = sum(1 / len(example.labels) for example in task.validation) / len(task.validation)
    row: dict[str, Any] = {"chance": chance, "train": len(task.train), "validation": len(task.validation)}
    for label, shots in (("zero_shot", 0), ("few_shot", 3)):
        row[label] = means(
            predict(FewShot(base, tokenizer, task.train, shots=shots, draws=draws), task.validation)
        )
    ensemble = LoraEnsemble(base, tokenizer, num_members=members, seed=seed)
    began = time.monotonic()
    train(ensemble, task.train, TrainConfig.preset("embedded"), progress=False)
    row["train_seconds"] = round(time.monotonic() - began, 1)
    prediction = predict(ensemble, task.validation)
    row["single"] = means(prediction) | {"train_accuracy": means(predict(ensemble, task.train))["accuracy"]}
    row["ensemble"] = {metric: getattr(evaluate(prediction), metric) for metric in METRICS}
    return row


def means(prediction: Any) -> dict[str, float]:
    """The mean over members of the members' own metrics."""
    spreads = evaluate_members(prediction)
    return {metric: spreads[metric].mean for metric in METRICS}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--members", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--draws", type=int, default=10)
    parser.add_argument("--tasks", nargs="*", default=list(EMBEDDED_TASKS))
    arguments = parser.parse_args()
    rows = {}
    for name in arguments.tasks:
        rows[name] = measure(name, members=arguments.members, seed=arguments.seed, draws=arguments.draws)
        print(
            name, json.dumps({key: value for key, value in rows[name].items() if key != "chance"}), flush=True
        )
    held = {text: sum(map(holds, rows.values())) for text, holds in CRITERIA.items()}
    for text, count in held.items():
        print(f"{count} of {len(rows)} tasks: {text}")
    record = {
        "members": arguments.members,
        "seed": arguments.seed,
        "draws": arguments.draws,
        "environment": environment(),
    }
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps({**record, "tasks": rows, "criteria": held}, indent=2) + "\n")


if __name__ == "__main__":
    main()
