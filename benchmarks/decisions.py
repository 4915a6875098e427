"""Decisions on real questions, measured: `python benchmarks/decisions.py --data DIR --out results/decisions`.

Three questions, each a record of its own, with what every member says of every question beside it:

    words    ARC-Easy in words on SmolLM2-135M-Instruct. An ensemble's answers to 800 test questions, for
             thresholds and sets under a guarantee; and one adapter distilled from it on other training
             questions.
    letters  The same model and task by letters, with the options in eight orders.
    world    The embedded base on world-obqa: in eight orders, and distilled.

`benchmarks/decisions_page.py` writes what they give into the docs. SmolLM2 comes with `make smollm2`. What is
there is not measured again, and a killed run goes on from its last epoch.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from lora_ensembles import (
    Example,
    LoraEnsemble,
    Prediction,
    TrainConfig,
    distill,
    load_base,
    load_task,
    predict,
    train,
)
from lora_ensembles.calibration.held_out import fingerprints
from lora_ensembles.data.splits import sample
from lora_ensembles.errors import LoraEnsemblesError
from lora_ensembles.heads import HeadConfig, adapter_for
from lora_ensembles.prediction.orders import option_orders, reordered, restored
from lora_ensembles.studies.predictions import Sheet
from lora_ensembles.studies.store import cell, record_file
from lora_ensembles.studies.under_way import UnderWay

REPOSITORY = Path(__file__).resolve().parent.parent
RESULTS = REPOSITORY / "results" / "decisions"
ORDERS = 8


@dataclasses.dataclass(frozen=True)
class Setting:
    """The settings of one record."""

    kind: str
    base: str
    task: str
    answer: str
    members: int
    train: int
    epochs: int
    learning_rate: float
    batch_size: int
    test: int | None = None
    layers: tuple[int, ...] | None = None
    pool: int = 0  # unlabelled questions that a student learns from; 0: no student
    orders: int = 1
    seed: int = 0


TOP = (24, 25, 26, 27, 28, 29)  # of 30: the others run once for all members and epochs
SETTINGS = (
    Setting("world", "embedded", "world-obqa", "letter", 5, 150, 10, 2e-3, 16, pool=250, orders=ORDERS),
    Setting("letters", "smollm2", "arce", "letter", 3, 300, 2, 1e-3, 8, test=150, layers=TOP, orders=ORDERS),
    Setting("words", "smollm2", "arce", "text", 5, 300, 2, 1e-3, 8, test=800, layers=TOP, pool=400),
)


def measure(setting: Setting, data: Path | None, sheet: Sheet, under_way: UnderWay) -> dict[str, Any]:
    """Train an ensemble, ask it the test questions in each order, and distil it where that is asked for."""
    shown, pool, test = _parts(setting, data)
    base, tokenizer = load_base(setting.base)
    adapter = adapter_for(base, HeadConfig("causal-lm"), None)
    adapter.layers_to_transform = None if setting.layers is None else list(setting.layers)
    ensemble = LoraEnsemble(base, tokenizer, num_members=setting.members, adapter=adapter, seed=setting.seed)
    config = TrainConfig(
        epochs=setting.epochs,
        batch_size=setting.batch_size,
        learning_rate=setting.learning_rate,
        loss="labels",
        label_score="mean",
    )
    train(ensemble, shown, config, out=under_way.run("teacher"), resume=True, progress=False)
    result: dict[str, Any] = {
        "orders": [
            sheet.measured(("orders", number), _in_order(ensemble, test, number))
            for number in range(setting.orders)
        ],
        "sizes": {"train": len(shown), "pool": len(pool), "test": len(test)},
    }
    if pool:
        made = distill(ensemble, pool, config, seed=setting.seed, validation=test[:200], progress=False)
        result["student"] = sheet.measured(("student",), predict(made.student, test))
        result["milliseconds"] = {name: round(row["milliseconds"], 2) for name, row in made.table().items()}
        ensemble = made.student
    ensemble.unload()
    return result | {"seconds": round(under_way.seconds, 1)}


def _parts(
    setting: Setting, data: Path | None
) -> tuple[Sequence[Example], Sequence[Example], Sequence[Example]]:
    """Questions to train on, others to learn from without their answers,
    and test questions that are neither.
    """
    source = None if setting.task.startswith("world") else data
    task = load_task(setting.task, data=source, answer=setting.answer)  # type: ignore[arg-type]
    drawn = sample(task.train, setting.train + setting.pool, seed=setting.seed)
    shuffled = [drawn[place] for place in torch.randperm(len(drawn), generator=generator(0)).tolist()]
    shown, pool = shuffled[: setting.train], shuffled[setting.train :]
    known = fingerprints(shuffled)
    fresh = [one for one in task.validation if not known.keys() & fingerprints([one]).keys()]
    return shown, pool, sample(fresh, setting.test, seed=setting.seed)


def _in_order(ensemble: LoraEnsemble, test: Sequence[Example], number: int) -> Prediction:
    """The predictions with the options of each question in the order of this number, put back in its own."""
    if number == 0:
        return predict(ensemble, test)
    orders = [option_orders(example, number + 1)[number] for example in test]
    asked = [reordered(example, order) for example, order in zip(test, orders, strict=True)]
    own = restored(predict(ensemble, asked).member_log_probs, orders)
    targets = torch.tensor([example.target for example in test])
    return Prediction(own, targets, tuple(example.id for example in test))


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def measured(arguments: argparse.Namespace) -> None:
    for setting in SETTINGS:
        if arguments.kinds and setting.kind not in arguments.kinds.split(","):
            continue
        settings = {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in dataclasses.asdict(setting).items()
        }
        sheet, under_way = (
            Sheet(),
            UnderWay(arguments.out / "unfinished" / record_file(setting.kind, settings)),
        )

        def run(setting: Setting = setting, sheet: Sheet = sheet, under_way: UnderWay = under_way) -> Any:
            print(f"{setting.kind}: {setting.task} on {setting.base}", flush=True)
            with under_way.guarded():
                return measure(setting, arguments.data, sheet, under_way)

        cell(arguments.out, setting.kind, settings, run, sheet=sheet)
        under_way.remove()
    print(json.dumps({"records": len(list(arguments.out.glob("*.json")))}))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the records")
    parser.add_argument("--data", type=Path, help="folder with the paper's data sets (default: the hub)")
    parser.add_argument("--kinds", help="some of the records, with commas (default: all)")
    arguments = parser.parse_args()
    try:
        measured(arguments)
    except LoraEnsemblesError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
