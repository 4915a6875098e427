"""Decisions on real questions, measured: `python benchmarks/decisions.py measure --data DIR --out results/decisions`.

Three questions, each a record of its own, with what every member says of every question beside it:

    words    ARC-Easy in words on SmolLM2-135M-Instruct. An ensemble's answers to all test questions, for
             thresholds and sets under a guarantee; and one adapter distilled from it on other training questions.
    letters  The same model and task by letters, with the options in eight orders.
    world    The embedded base on world-obqa: in eight orders, and distilled.

`page` writes the tables into docs/decisions.md and docs/how-to/distill.md, and draws
results/decisions/guarantee.png; `--check` says whether they are what the records give. SmolLM2 comes with
`make smollm2`. What is there is not measured again, and a killed run goes on from its last epoch.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from lora_ensembles import (
    Example,
    LoraEnsemble,
    Prediction,
    TrainConfig,
    conformal_sets,
    distill,
    evaluate,
    load_base,
    load_task,
    predict,
    risk_threshold,
    train,
)
from lora_ensembles.calibration.held_out import fingerprints
from lora_ensembles.data.splits import sample
from lora_ensembles.errors import DataError, LoraEnsemblesError
from lora_ensembles.heads import HeadConfig, adapter_for
from lora_ensembles.prediction.orders import option_orders, order_flips, reordered
from lora_ensembles.prediction.plots.style import save_figure
from lora_ensembles.studies.predictions import Sheet, predictions_file, read_sheet
from lora_ensembles.studies.report.figures.style import BLUE, VERMILION, Key, finish, heading, panels
from lora_ensembles.studies.store import cell, record_file, records
from lora_ensembles.studies.under_way import UnderWay

REPOSITORY = Path(__file__).resolve().parent.parent
RESULTS = REPOSITORY / "results" / "decisions"
PAGES = {
    "guarantee": REPOSITORY / "docs" / "decisions.md",
    "orders": REPOSITORY / "docs" / "decisions.md",
    "distilled": REPOSITORY / "docs" / "how-to" / "distill.md",
}
ORDERS = 8
SPLITS = 200
RISKS = (0.2, 0.25, 0.3, 0.35)
COVERAGES = (0.8, 0.9, 0.95)
DELTA = 0.1


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
    Setting("letters", "smollm2", "arce", "letter", 3, 400, 3, 1e-3, 8, test=500, layers=TOP, orders=ORDERS),
    Setting("words", "smollm2", "arce", "text", 5, 400, 2, 1e-3, 8, layers=TOP, pool=800),
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
        label_score="sum",
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
    """Questions to train on, others to learn from without their answers, and test questions that are neither."""
    source = None if setting.task.startswith("world") else data
    task = load_task(setting.task, data=source, answer=setting.answer)  # type: ignore[arg-type]
    drawn = sample(task.train, setting.train + setting.pool, seed=setting.seed)
    shuffled = [drawn[place] for place in torch.randperm(len(drawn), generator=_generator(0)).tolist()]
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
    found = predict(ensemble, asked).member_log_probs
    own = found.clone()
    for row, order in enumerate(orders):
        own[:, row, list(order)] = found[:, row, : len(order)]
    targets = torch.tensor([example.target for example in test])
    return Prediction(own, targets, tuple(example.id for example in test))


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@dataclasses.dataclass(frozen=True)
class Found:
    """A record and its predictions."""

    record: Mapping[str, Any]
    sheet: Sheet

    def prediction(self, name: str) -> Prediction:
        """The prediction that was kept under a name."""
        return self.sheet.kept[name][0].prediction


def recorded(folder: Path) -> dict[str, Found]:
    """The records of a folder, by kind."""
    found = {}
    for setting in SETTINGS:
        for record in records(folder, setting.kind):
            path = folder / f"{record_file(setting.kind, record['settings'])}.json"
            found[setting.kind] = Found(record, read_sheet(predictions_file(path)))
    return found


def mixed(predictions: Sequence[Prediction]) -> Prediction:
    """The prediction whose members average over several orders of the options."""
    every = torch.stack([one.member_log_probs for one in predictions]).double()
    mean = every.logsumexp(dim=0) - torch.tensor(float(len(every))).log()
    return Prediction(mean.float(), predictions[0].targets, predictions[0].ids)


def orders_table(found: Mapping[str, Found]) -> str:
    """Markdown: single orders against averages over four, of the single members and of the ensemble."""
    lines = [
        "| questions | of | answers that change with the order: one order / mean of 4 | accuracy | NLL | ECE |",
        "|---|---|---|---|---|---|",
    ]
    for kind in ("letters", "world"):
        if kind not in found:
            continue
        settings = found[kind].record["settings"]
        single = [found[kind].prediction(f"orders/{number}") for number in range(settings["orders"])]
        count = single[0].num_examples
        title = f"{settings['task']} on {settings['base']}, {count} questions"
        members = [[one.member(m) for one in single] for m in range(settings["members"])]
        for name, groups in (("single member", members), (f"ensemble of {settings['members']}", [single])):
            lines.append(f"| {title} | {name} | {_order_cells(groups)} |")
    return "\n".join(lines)


def _order_cells(groups: Sequence[Sequence[Prediction]]) -> str:
    """Flips, accuracy, NLL and ECE, before and after averaging; means over groups of orders."""
    flips, before, after = [], [], []
    for single in groups:
        half = len(single) // 2
        means = [mixed(single[:half]), mixed(single[half:])]
        flips.append([_flips(single), _flips(means)])
        before += [evaluate(one) for one in single]
        after += [evaluate(one) for one in means]
    cells = [" / ".join(f"{statistics.fmean(column):.3f}" for column in zip(*flips, strict=True))]
    for name in ("accuracy", "nll", "ece"):
        pair = [statistics.fmean(getattr(one, name) for one in part) for part in (before, after)]
        cells.append(f"{pair[0]:.3f} / {pair[1]:.3f}")
    return " | ".join(cells)


def _flips(predictions: Sequence[Prediction]) -> float:
    return order_flips(torch.stack([one.choices for one in predictions])).mean().item()


def distilled_table(found: Mapping[str, Found]) -> str:
    """Markdown: single member, student and ensemble."""
    lines = [
        "| questions | of | accuracy | NLL | ECE | ms a question |",
        "|---|---|---|---|---|---|",
    ]
    for kind in ("world", "words"):
        if kind not in found:
            continue
        settings, result = found[kind].record["settings"], found[kind].record["result"]
        teacher, student = found[kind].prediction("orders/0"), found[kind].prediction("student")
        sizes = result["sizes"]
        title = (
            f"{settings['task']} on {settings['base']}: {sizes['train']} labelled, "
            f"{sizes['pool']} unlabelled, {sizes['test']} test questions"
        )
        members = [evaluate(teacher.member(m)) for m in range(teacher.num_members)]
        rows = {"single member": members, "student": [evaluate(student)], "ensemble": [evaluate(teacher)]}
        for name, row in rows.items():
            values = [
                f"{statistics.fmean(getattr(one, metric) for one in row):.3f}"
                for metric in ("accuracy", "nll", "ece")
            ]
            lines.append(f"| {title} | {name} | {' | '.join(values)} | {result['milliseconds'][name]:.1f} |")
    return "\n".join(lines)


@dataclasses.dataclass(frozen=True)
class Promise:
    """What thresholds of one risk did on the test halves of the splits: the shares of wrong answers and of
    answered questions, of splits that had a threshold.
    """

    risk: float
    wrong: tuple[float, ...]
    answered: tuple[float, ...]
    splits: int

    @property
    def broken(self) -> float:
        """The share of all splits in which more answers were wrong than promised."""
        return sum(one > self.risk for one in self.wrong) / self.splits

    @property
    def coverage(self) -> float:
        """Mean share of questions answered; none where there was no threshold."""
        return sum(self.answered) / self.splits


def promises(prediction: Prediction, risk: float) -> Promise:
    """`SPLITS` random halves: a threshold from one, used on the other."""
    wrong, answered = [], []
    for seed in range(SPLITS):
        held_out, test = _halves(prediction, seed)
        try:
            rule = risk_threshold(held_out, risk=risk, delta=DELTA)
        except DataError:  # none keeps the promise: everything is abstained on
            continue
        answers = rule.answered(test)
        right = test.choices == test.labelled_targets("a guarantee")
        answered.append(answers.float().mean().item())
        wrong.append((~right[answers]).float().mean().item() if bool(answers.any()) else 0.0)
    return Promise(risk, tuple(wrong), tuple(answered), SPLITS)


def covered(prediction: Prediction, coverage: float) -> tuple[float, float]:
    """Mean coverage and mean size of LAC sets on the test halves of the splits."""
    hits, sizes = [], []
    for seed in range(SPLITS):
        held_out, test = _halves(prediction, seed)
        sets = conformal_sets(held_out, coverage=coverage).sets(test)
        assert test.targets is not None
        hits.append(sets.gather(1, test.targets[:, None]).float().mean().item())
        sizes.append(sets.sum(dim=1).float().mean().item())
    return statistics.fmean(hits), statistics.fmean(sizes)


def _halves(prediction: Prediction, seed: int) -> tuple[Prediction, Prediction]:
    order = torch.randperm(prediction.num_examples, generator=_generator(seed))
    half = len(order) // 2
    return prediction.take(order[:half]), prediction.take(order[half:])


def guarantee_rows(found: Mapping[str, Found]) -> dict[str, list[Promise]]:
    """The promises of the ensemble and of its first member at every risk."""
    teacher = found["words"].prediction("orders/0")
    return {
        name: [promises(prediction, risk) for risk in RISKS]
        for name, prediction in (("ensemble", teacher), ("single member", teacher.member(0)))
    }


def guarantee_table(found: Mapping[str, Found], rows: Mapping[str, Sequence[Promise]]) -> str:
    """Markdown: risk, and sets, promised and realised."""
    lines = [
        "| at most wrong | by | wrong among answers | splits above the promise | answered |",
        "|---|---|---|---|---|",
    ]
    for index, risk in enumerate(RISKS):
        for name, promised in rows.items():
            one = promised[index]
            mean = f"{statistics.fmean(one.wrong):.3f}" if one.wrong else "no threshold"
            lines.append(f"| {risk:g} | {name} | {mean} | {one.broken:.3f} | {one.coverage:.3f} |")
    lines += ["", "| coverage | by | realised | labels in a set |", "|---|---|---|---|"]
    teacher = found["words"].prediction("orders/0")
    for coverage in COVERAGES:
        for name, prediction in (("ensemble", teacher), ("single member", teacher.member(0))):
            hit, size = covered(prediction, coverage)
            lines.append(f"| {coverage:g} | {name} | {hit:.3f} | {size:.2f} |")
    return "\n".join(lines)


def draw(rows: Mapping[str, Sequence[Promise]]) -> Any:
    """Wrong answers and answered questions of every split, against what was promised."""
    figure, ((left, right),) = panels(1, 2, height=2.6, sharex=False)
    keys = [Key("ensemble", BLUE, "", "o"), Key("single member", VERMILION, "", "s")]
    for shift, (key, promised) in enumerate(zip(keys, rows.values(), strict=True)):
        for one in promised:
            if not one.wrong:
                continue
            at = one.risk + (0.006 if shift else -0.006)
            for axes, values in ((left, one.wrong), (right, one.answered)):
                spread = torch.tensor(values).quantile(torch.tensor([0.05, 0.5, 0.95])).tolist()
                axes.vlines(at, spread[0], spread[2], color=key.colour, lw=1.2)
                axes.plot([at], [spread[1]], key.marker, color=key.colour, ms=4)
    left.plot(RISKS, RISKS, color="#8c8c8c", lw=0.8)
    heading(left, "wrong among answers", below="grey: the promise; bars: 5 to 95 % of 200 splits")
    heading(right, "share of questions answered")
    for axes in (left, right):
        axes.set_xlabel("risk promised")
        axes.set_xticks(RISKS)
    return finish(figure, None, keys, columns=2)


def blocks(folder: Path) -> dict[str, str]:
    """The text between the marks of the pages."""
    found = recorded(folder)
    made = {"orders": orders_table(found), "distilled": distilled_table(found)}
    if "words" in found:
        rows = guarantee_rows(found)
        made["guarantee"] = guarantee_table(found, rows)
    return made


def with_block(text: str, name: str, block: str) -> str:
    """A page with the text between the marks of a block replaced."""
    begin, end = f"<!-- {name}: measured -->", f"<!-- {name}: end -->"
    before, rest = text.split(begin)
    return f"{before}{begin}\n\n{block}\n\n{end}{rest.split(end)[1]}"


def page(folder: Path, *, check: bool) -> None:
    made = blocks(folder)
    for name, block in made.items():
        path = PAGES[name]
        text = path.read_text(encoding="utf-8")
        new = with_block(text, name, block)
        if check and new != text:
            sys.exit(f"error: {path} is not what {folder} gives; run `python benchmarks/decisions.py page`")
        path.write_text(new, encoding="utf-8")
    if "guarantee" in made and not check:
        save_figure(draw(guarantee_rows(recorded(folder))), folder / "guarantee.png")
    print(json.dumps({"blocks": sorted(made)}))


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
    verbs = parser.add_subparsers(dest="verb", required=True)
    for verb, about in (("measure", "make the records"), ("page", "write what they give into the docs")):
        own = verbs.add_parser(verb, help=about)
        own.add_argument("--out", type=Path, default=RESULTS, help="folder of the records")
        if verb == "measure":
            own.add_argument("--data", type=Path, help="folder with the paper's data sets (default: the hub)")
            own.add_argument("--kinds", help="some of the records, with commas (default: all)")
        else:
            own.add_argument("--check", action="store_true", help="compare, and write nothing")
    arguments = parser.parse_args()
    act: Callable[[], None] = (
        (lambda: measured(arguments))
        if arguments.verb == "measure"
        else (lambda: page(arguments.out, check=arguments.check))
    )
    try:
        act()
    except LoraEnsemblesError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
