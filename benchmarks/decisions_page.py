"""The pages from the records of benchmarks/decisions.py: `python benchmarks/decisions_page.py [--check]`.

Writes the tables into docs/decisions.md and docs/how-to/distill.md, between their marks, and draws
results/decisions/guarantee.png; with `--check` it only says whether the tables are what the records give.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from decisions import REPOSITORY, RESULTS, SETTINGS, generator
from pages import with_block

from lora_ensembles import Prediction, conformal_sets, evaluate, risk_threshold
from lora_ensembles.errors import DataError, LoraEnsemblesError
from lora_ensembles.prediction.orders import order_flips
from lora_ensembles.prediction.plots.style import save_figure
from lora_ensembles.studies.predictions import Sheet, predictions_file, read_sheet
from lora_ensembles.studies.report.figures.style import BLUE, VERMILION, Key, finish, heading, panels
from lora_ensembles.studies.store import record_file, records

PAGES = {
    "guarantee": REPOSITORY / "docs" / "decisions.md",
    "orders": REPOSITORY / "docs" / "decisions.md",
    "distilled": REPOSITORY / "docs" / "how-to" / "distill.md",
}
SPLITS = 200
RISKS = (0.25, 0.3, 0.35, 0.4)
COVERAGES = (0.8, 0.9, 0.95)
DELTA = 0.1


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
        "| questions | of | answers that change with the order: one order / mean of 4 "
        "| accuracy | NLL | ECE |",
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
    order = torch.randperm(prediction.num_examples, generator=generator(seed))
    half = len(order) // 2
    return prediction.take(order[:half]), prediction.take(order[half:])


def guarantee_rows(found: Mapping[str, Found], *, risks: Sequence[float] = RISKS) -> dict[str, list[Promise]]:
    """The promises of the ensemble and of its first member at every risk."""
    teacher = found["words"].prediction("orders/0")
    return {
        name: [promises(prediction, risk) for risk in risks]
        for name, prediction in (("ensemble", teacher), ("single member", teacher.member(0)))
    }


def risk_lines(rows: Mapping[str, Sequence[Promise]]) -> list[str]:
    """Markdown: a line for each risk, of the ensemble and of its first member."""
    lines = []
    for pair in zip(*rows.values(), strict=True):
        for name, one in zip(rows, pair, strict=True):
            mean = f"{statistics.fmean(one.wrong):.3f}" if one.wrong else "no threshold"
            lines.append(f"| {one.risk:g} | {name} | {mean} | {one.broken:.3f} | {one.coverage:.3f} |")
    return lines


def coverage_lines(found: Mapping[str, Found]) -> list[str]:
    """Markdown: a line for each coverage, of the ensemble and of its first member."""
    lines, teacher = [], found["words"].prediction("orders/0")
    for coverage in COVERAGES:
        for name, prediction in (("ensemble", teacher), ("single member", teacher.member(0))):
            hit, size = covered(prediction, coverage)
            lines.append(f"| {coverage:g} | {name} | {hit:.3f} | {size:.2f} |")
    return lines


def guarantee_table(found: Mapping[str, Found], rows: Mapping[str, Sequence[Promise]]) -> str:
    """Markdown: risk, and sets, promised and realised."""
    lines = [
        "| at most wrong | by | wrong among answers | splits above the promise | answered |",
        "|---|---|---|---|---|",
        *risk_lines(rows),
        "",
        "| coverage | by | realised | labels in a set |",
        "|---|---|---|---|",
        *coverage_lines(found),
    ]
    return "\n".join(lines)


def draw(rows: Mapping[str, Sequence[Promise]]) -> Any:
    """How often promises were broken, and how many questions were answered, over all splits."""
    figure, ((left, right),) = panels(1, 2, height=2.6, sharex=False)
    keys = [Key("ensemble", BLUE, "--", "o"), Key("single member", VERMILION, "-", "s")]
    for key, promised in zip(keys, rows.values(), strict=True):
        risks = [one.risk for one in promised]
        style = {"color": key.colour, "ls": key.line, "marker": key.marker, "ms": 4, "lw": 1.2}
        left.plot(risks, [one.broken for one in promised], **style)
        right.plot(risks, [one.coverage for one in promised], **style)
    left.axhline(DELTA, color="#8c8c8c", lw=0.8)
    left.set_ylim(0, 1.4 * DELTA)
    right.set_ylim(bottom=0)
    heading(left, "splits in which more was wrong", below=f"than promised; at most {DELTA:g} may be (grey)")
    heading(right, "share of questions answered", below=f"mean of {SPLITS} splits")
    for axes in (left, right):
        axes.set_xlabel("risk promised: share of answers that may be wrong")
        axes.set_xticks(RISKS)
    return finish(figure, None, keys, columns=2)


def page(folder: Path, *, check: bool) -> None:
    """Write the tables and the figure of the records that are there, or compare the tables."""
    found = recorded(folder)
    made = {"orders": orders_table(found), "distilled": distilled_table(found)}
    rows = guarantee_rows(found) if "words" in found else {}
    if rows:
        made["guarantee"] = guarantee_table(found, rows)
    for name, block in made.items():
        path = PAGES[name]
        text = path.read_text(encoding="utf-8")
        new = with_block(text, name, block)
        if not check:
            path.write_text(new, encoding="utf-8")
        elif new != text:
            sys.exit(f"error: {path} is not what {folder} gives; run `python benchmarks/decisions_page.py`")
    if rows and not check:
        save_figure(draw(rows), folder / "guarantee.png")
    print(json.dumps({"blocks": sorted(made)}))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the records")
    parser.add_argument("--check", action="store_true", help="compare, and write nothing")
    arguments = parser.parse_args()
    try:
        page(arguments.out, check=arguments.check)
    except LoraEnsemblesError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
