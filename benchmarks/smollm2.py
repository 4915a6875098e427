"""SmolLM2-135M-Instruct, fine-tuned on real data:
`python benchmarks/smollm2.py trial --data DIR --out results/smollm2`.

`trial` shows where fine-tuning makes the model overconfident, and chooses step size and epochs for what
follows: single members and their ensemble after every epoch at several step sizes, measured on training
questions that were held out; no question of a validation part is looked at. Answers are the options' texts,
adapters are on the top layers, so that the others run once for all. Records that are there are not made
again. `make smollm2` brings the model. `figure` draws what the records hold, into OUT/trial.png.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import random
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from lora_ensembles import Example, Prediction, TrainConfig, evaluate, load_base, load_task, predict
from lora_ensembles.baselines import FewShot
from lora_ensembles.errors import DataError, LoraEnsemblesError
from lora_ensembles.heads import HeadConfig, adapter_for
from lora_ensembles.prediction.plots.style import save_figure
from lora_ensembles.studies.arms import Arm, stacked_members, train_members
from lora_ensembles.studies.report.figures.style import (
    BLACK,
    BLUE,
    GREEN,
    METRICS,
    NONE,
    Key,
    finish,
    heading,
    panels,
)
from lora_ensembles.studies.store import cell, records

TASKS = ("arce", "obqa", "arcc", "cqa")
LOSSES = {"labels": "options", "vocabulary": "vocabulary"}
LEVELS = {
    "accuracy": 1 / 4,
    "nll": math.log(4),
}  # of guessing evenly among the four options of nearly all questions


@dataclasses.dataclass(frozen=True)
class Trial:
    """The settings of a trial: all step sizes are one stacked run of `members` members each."""

    task: str
    loss: Literal["labels", "vocabulary"]
    layers: tuple[int, ...] = (24, 25, 26, 27, 28, 29)
    members: int = 3
    rates: tuple[float, ...] = (1e-3, 2e-3)
    epochs: int = 5
    train: int = 300
    held_out: int = 200
    batch_size: int = 8
    seed: int = 0


def measure(trial: Trial, data: Path) -> dict[str, Any]:
    """The base without training, and members and ensemble after every epoch at every step size."""
    held_out, shown = _parts(trial, data)
    model = load_base("smollm2")
    bare = predict(FewShot(*model, (), shots=0), held_out)
    adapter = adapter_for(model[0], HeadConfig("causal-lm"), None)
    adapter.layers_to_transform = list(trial.layers)
    arms = [Arm(f"step size {rate:g}") for rate in trial.rates]
    ensemble = stacked_members(model, arms, members=trial.members, seed=trial.seed, adapter=adapter)
    config = TrainConfig(
        epochs=trial.epochs,
        batch_size=trial.batch_size,
        learning_rate=[rate for rate in trial.rates for _ in range(trial.members)],
        loss=trial.loss,
        snapshot_epochs=list(range(1, trial.epochs + 1)),
    )
    run = train_members(ensemble, arms, shown, config)
    epochs: dict[str, list[dict[str, Any]]] = {arm.name: [] for arm in arms}
    for epoch in range(1, trial.epochs + 1):
        run.trained.restore(ensemble, epoch=epoch)
        whole, history = predict(ensemble, held_out), run.trained.history[epoch - 1]
        for index, arm in enumerate(arms):
            rows = run.rows(index)
            shares = [history["train_accuracy"][row] for row in rows] if "train_accuracy" in history else []
            epochs[arm.name].append(
                _row(whole.select(rows)) | ({"train_accuracy": statistics.fmean(shares)} if shares else {})
            )
    sizes = {"train": len(shown), "held_out": len(held_out)}
    return {"base": _metrics(bare), "epochs": epochs, "sizes": sizes}


def _parts(trial: Trial, data: Path) -> tuple[Sequence[Example], Sequence[Example]]:
    """Held-out training questions, and those that members are trained on."""
    task = load_task(trial.task, data=data, answer="text")
    drawn = random.Random(trial.seed).sample(list(task.train), trial.held_out + trial.train)
    return drawn[: trial.held_out], drawn[trial.held_out :]


def _metrics(prediction: Prediction) -> dict[str, float]:
    metrics = evaluate(prediction)
    return {name: round(getattr(metrics, name), 6) for name in ("accuracy", "nll", "ece", "brier")}


def _row(prediction: Prediction) -> dict[str, Any]:
    singles = [_metrics(prediction.member(member)) for member in range(prediction.num_members)]
    mean = {name: round(statistics.fmean(row[name] for row in singles), 6) for name in singles[0]}
    return {"single": mean, "ensemble": _metrics(prediction)}


def trials(arguments: argparse.Namespace) -> dict[str, Any]:
    """The records of all tasks and losses that were asked for."""
    summary = {}
    for task in arguments.tasks:
        for loss in arguments.losses:
            trial = Trial(task, loss)
            settings = {"kind": "trial", **json.loads(json.dumps(dataclasses.asdict(trial)))}
            begin = time.monotonic()

            def made(trial: Trial = trial, begin: float = begin) -> dict[str, Any]:
                result = measure(trial, arguments.data)
                return {**result, "seconds": round(time.monotonic() - begin, 1)}

            record = cell(arguments.out, f"trial-{task}-{loss}", settings, made)
            summary[f"{task}, {loss}"] = record["result"]
            print(json.dumps({f"{task}, {loss}": record["result"]}), flush=True)
    return summary


def figure(out: Path) -> Path:
    """A row a record: accuracy, NLL and ECE over the epochs, of single members and of their ensemble, at each
    step size, with the base without training and what guessing evenly has.
    """
    found = list(records(out, "trial"))
    if not found:
        raise DataError(
            f"{out} holds no record of a trial; make one with: python benchmarks/smollm2.py trial"
        )
    drawn, grid = panels(len(found), 3, height=1.9)
    for axes, record in zip(grid, found, strict=True):
        settings, result = record["settings"], record["result"]
        for one, metric in zip(axes, ("accuracy", "nll", "ece"), strict=True):
            for colour, rows in zip((BLUE, NONE, GREEN), result["epochs"].values(), strict=False):
                epochs = range(1, len(rows) + 1)
                for who, line in (("single", "-"), ("ensemble", "--")):
                    one.plot(epochs, [row[who][metric] for row in rows], line, color=colour, linewidth=1.4)
                if metric == "accuracy" and "train_accuracy" in rows[0]:
                    one.plot(
                        epochs, [row["train_accuracy"] for row in rows], ":", color=colour, linewidth=1.4
                    )
            one.set_ylabel(METRICS[metric])
            one.set_xlabel("epoch")
            if metric in LEVELS:
                one.axhline(LEVELS[metric], color="0.55", linewidth=0.9)
            title = f"{settings['task']}, loss over the {LOSSES[settings['loss']]}" if one is axes[0] else ""
            heading(one, title, below=f"without training {result['base'][metric]:.2f}")
    rates = [f"step size {rate:g}" for rate in found[0]["settings"]["rates"]]
    keys = [
        Key(f"{who}, {rate}", colour, line)
        for colour, rate in zip((BLUE, NONE, GREEN), rates, strict=False)
        for who, line in (("single member", "-"), ("ensemble of 3", "--"))
    ]
    keys += [Key("single member, training questions", BLACK, ":"), Key("guessing evenly", "0.55")]
    save_figure(finish(drawn, None, keys, columns=2), out / "trial")
    return out / "trial.png"


def words(text: str) -> tuple[str, ...]:
    return tuple(text.split(","))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("trial", "figure"))
    parser.add_argument("--data", type=Path, help="folder with the paper's data sets, for a trial")
    parser.add_argument("--out", type=Path, required=True, help="folder of the records")
    parser.add_argument("--tasks", type=words, default=TASKS[:2], help="tasks (default: arce,obqa)")
    parser.add_argument("--losses", type=words, default=("labels", "vocabulary"), help="losses of training")
    arguments = parser.parse_args()
    if arguments.what == "trial" and arguments.data is None:
        parser.error("trial: --data DIR is needed, the folder with the paper's data sets")
    try:
        if arguments.what == "trial":
            trials(arguments)
        print(figure(arguments.out))
    except LoraEnsemblesError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
