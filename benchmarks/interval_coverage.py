"""How often intervals hold the population's value:
`python benchmarks/interval_coverage.py --out results/coverage.json`; then `--page`.

Samples are drawn from populations that are known: members' logits share a part, and answers are drawn from
the members' mean probabilities at another temperature (1: calibrated, below 1: the members are too sure,
above: not sure enough). A case is a population, a metric and a number of examples N; a share of 0.95 is
right. Cases that the record holds are not simulated again, so a killed run goes on where it stopped. About an
hour on one core; `--repeats 100` for a quick look.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from pages import with_block
from timing import write_record
from torch import Tensor

from lora_ensembles.prediction.completions import METRICS, CompletionScores
from lora_ensembles.prediction.intervals import Interval, bootstrap_interval, paired_difference
from lora_ensembles.prediction.metrics import NUM_BINS, accuracy, brier, coverage_area, ece, nll, ood_auroc
from lora_ensembles.prediction.prediction import Prediction
from lora_ensembles.prediction.selective import error_auroc
from lora_ensembles.prediction.uncertainty import total_entropy
from lora_ensembles.studies.claims.judge import interval_of_tasks
from lora_ensembles.studies.report.page import Table

REPOSITORY = Path(__file__).resolve().parent.parent
PAGE, RECORD = REPOSITORY / "docs" / "statistics.md", REPOSITORY / "results" / "coverage.json"
POPULATION = 200_000
REPEATS = 400
DRAWS = 1000  # of each interval, as `evaluate --intervals` takes
SIZES = (100, 300, 1221)  # of obqa's and cqa's validation parts, and a small one


@dataclass(frozen=True)
class World:
    """A population of questions: C options, M members, how sure and how different members are, and the
    temperature of the truth.
    """

    name: str
    options: int
    members: int
    sharp: float
    spread: float
    truth: float

    @cached_property
    def drawn(self) -> Tensor:
        """Members' log-probabilities of the population (M, N, C)."""
        generator = torch.Generator().manual_seed(1)
        shared = self.sharp * torch.randn(POPULATION, self.options, generator=generator)
        own = self.spread * torch.randn(self.members, POPULATION, self.options, generator=generator)
        return (shared + own).log_softmax(-1)

    @cached_property
    def mean(self) -> Tensor:
        """The members' mean probabilities (N, C), float64."""
        return self.drawn.double().exp().mean(0)

    @cached_property
    def answers(self) -> Tensor:
        """Probabilities of the answers (N, C), float64."""
        return (self.mean.log() * self.truth).softmax(-1)

    def sample(self, size: int, generator: torch.Generator) -> Prediction:
        """A labelled prediction of so many questions of the population."""
        rows = torch.randint(POPULATION, (size,), generator=generator)
        targets = torch.multinomial(self.answers[rows], 1, generator=generator)[:, 0]
        return Prediction(self.drawn[:, rows], targets)


WORLDS = (
    World("calibrated", 4, 5, 1.5, 0.7, 1.0),
    World("a little too sure", 4, 5, 1.5, 0.7, 0.85),
    World("too sure", 4, 2, 2.0, 1.5, 0.6),
    World("not sure enough", 5, 5, 2.0, 1.0, 1.5),
    World("sure and calibrated", 5, 3, 4.0, 1.0, 1.0),
    World("preferences", 2, 3, 1.5, 1.0, 0.8),
)


def hotter(prediction: Prediction) -> Prediction:
    """The mean of the members, surer of the same choices: the other side of a paired difference."""
    return Prediction((1.3 * prediction.log_probs).log_softmax(-1)[None], prediction.targets, prediction.ids)


def one_member(prediction: Prediction) -> Prediction:
    """The first member alone: the other side of a paired difference that changes choices."""
    return prediction.member(0)


def doubt_auroc(prediction: Prediction) -> float:
    """How well total entropy finds the wrong answers."""
    return error_auroc(total_entropy(prediction), prediction.choices == prediction.targets)


# The population's values: sums over all of it, with the probability of each answer in place of a drawn one.


def population_of(
    metric: Callable[..., float], world: World, view: Callable[[Prediction], Prediction] | None
) -> float:
    """The metric of the whole population, seen as `view` sees it."""
    whole = Prediction(world.drawn, torch.zeros(POPULATION, dtype=torch.int64))
    prediction = whole if view is None else view(whole)
    calibrated = view is None and world.truth == 1
    return 0.0 if metric is ece and calibrated else EXACT[metric](prediction, world.answers)


def _right(prediction: Prediction, answers: Tensor) -> Tensor:
    return answers.gather(1, prediction.choices[:, None])[:, 0]


def _ece(prediction: Prediction, answers: Tensor) -> float:
    gap = _right(prediction, answers) - prediction.confidence.double()
    index = torch.bucketize(prediction.confidence, torch.linspace(0, 1, NUM_BINS + 1), right=True)
    return float(torch.bincount(index, weights=gap).abs().sum() / len(gap))


def _brier(prediction: Prediction, answers: Tensor) -> float:
    probs = prediction.probs.double()
    return float((probs.square().sum(-1) - 2 * (probs * answers).sum(-1) + 1).mean())


def _area(prediction: Prediction, answers: Tensor) -> float:
    others = prediction.log_probs.double().exp().scatter(1, prediction.choices[:, None], 0.0).sum(-1)
    right = _right(prediction, answers)[others.argsort()]
    return float((right.cumsum(0) / torch.arange(1, len(right) + 1)).mean())


def _doubt_auroc(prediction: Prediction, answers: Tensor) -> float:
    right = _right(prediction, answers)[total_entropy(prediction).argsort()]
    wrong = 1 - right
    return float((wrong * (right.cumsum(0) - right / 2)).sum() / (wrong.sum() * right.sum()))


EXACT: dict[Callable[..., float], Callable[[Prediction, Tensor], float]] = {
    accuracy: lambda prediction, answers: float(_right(prediction, answers).mean()),
    nll: lambda prediction, answers: float(-(answers * prediction.log_probs.double()).sum(-1).mean()),
    brier: _brier,
    ece: _ece,
    coverage_area: _area,
    doubt_auroc: _doubt_auroc,
}
NAMES = {
    accuracy: "accuracy",
    nll: "NLL",
    brier: "Brier",
    ece: "ECE",
    coverage_area: "coverage area",
    doubt_auroc: "error AUROC",
}


@dataclass(frozen=True)
class Case:
    """An interval to try: its names, its size, the population's value, and the interval of a fresh sample."""

    interval: str
    population: str
    size: int
    value: Callable[[], float]
    draw: Callable[[torch.Generator, int], Interval]

    @property
    def key(self) -> str:
        return f"{self.interval} | {self.population} | {self.size}"


def cases() -> Iterator[Case]:
    """Every interval that the library gives, the hard ones on all populations."""
    for size in SIZES:
        for world in WORLDS:
            yield metric_case(ece, world, size)
            yield metric_case(accuracy, world, size)
    for size in (100, 1221):
        for world in (WORLDS[0], WORLDS[2], WORLDS[5]):
            yield difference_case(ece, world, size, hotter, "surer")
            yield difference_case(ece, world, size, one_member, "one member")
    for tasks, seeds in ((4, 3), (6, 1), (6, 3)):
        yield claims_case(tasks, seeds)
    for size in (100, 500):
        yield ood_case(WORLDS[4], WORLDS[2], size)
        for name in METRICS:
            yield completion_case(name, size)
        for world in (WORLDS[2], WORLDS[4], WORLDS[5]):
            for metric in (nll, brier, coverage_area):
                yield metric_case(metric, world, size)
            for metric in (nll, accuracy):
                yield difference_case(metric, world, size, one_member, "one member")
        yield metric_case(doubt_auroc, WORLDS[2], size)  # as costly as all others together


def metric_case(metric: Callable[[Prediction], float], world: World, size: int) -> Case:
    """A metric of an ensemble."""

    def draw(generator: torch.Generator, seed: int) -> Interval:
        return bootstrap_interval(metric, world.sample(size, generator), samples=DRAWS, seed=seed)

    return Case(NAMES[metric], world.name, size, lambda: population_of(metric, world, None), draw)


def difference_case(
    metric: Callable[[Prediction], float],
    world: World,
    size: int,
    other: Callable[[Prediction], Prediction],
    name: str,
) -> Case:
    """A paired difference of an ensemble and another view of the same predictions."""

    def draw(generator: torch.Generator, seed: int) -> Interval:
        prediction = world.sample(size, generator)
        return paired_difference(metric, prediction, other(prediction), samples=DRAWS, seed=seed)

    def value() -> float:
        return population_of(metric, world, None) - population_of(metric, world, other)

    return Case(f"{NAMES[metric]}, difference to {name}", world.name, size, value, draw)


def ood_case(world: World, outside: World, size: int) -> Case:
    """Two populations told apart by confidence."""

    def members(one: World) -> Tensor:
        return one.drawn[: min(world.members, outside.members)]

    def cut(one: World, generator: torch.Generator) -> Prediction:
        return Prediction(members(one)[:, torch.randint(POPULATION, (size,), generator=generator)])

    def draw(generator: torch.Generator, seed: int) -> Interval:
        inside, other = cut(world, generator), cut(outside, generator)
        return bootstrap_interval(ood_auroc, inside, ood=other, samples=DRAWS, seed=seed)

    def value() -> float:
        return ood_auroc(Prediction(members(world)), Prediction(members(outside)))

    return Case("OOD AUROC", f"{world.name}, {outside.name}", size, value, draw)


def completion_case(name: str, size: int) -> Case:
    """A metric of open answers of 1 to 12 tokens, whose tokens are the harder the longer they are."""

    def scores(count: int, generator: torch.Generator) -> CompletionScores:
        lengths = torch.randint(1, 13, (count, 1), generator=generator)
        counted = torch.arange(12) < lengths
        hard = torch.randn(count, 1, generator=generator) - 1 + 0.05 * lengths
        probability = -(hard + torch.randn(3, count, 12, generator=generator)).exp()
        return CompletionScores(probability.masked_fill(~counted, 0.0), counted)

    metric = METRICS[name]

    def draw(generator: torch.Generator, seed: int) -> Interval:
        return bootstrap_interval(metric, scores(size, generator), samples=DRAWS, seed=seed)

    def value() -> float:
        return metric(scores(4 * POPULATION, torch.Generator().manual_seed(1)))

    return Case(f"open answers, {name.replace('_', ' ')}", "open answers", size, value, draw)


def claims_case(tasks: int, seeds: int) -> Case:
    """The mean effect over tasks: effects N(0, 1), seeds N(0, 0.3) around them."""

    def draw(generator: torch.Generator, seed: int) -> Interval:
        rng = random.Random(seed)
        effects = [rng.gauss(0, 1) for _ in range(tasks)]
        means = [statistics.fmean(rng.gauss(effect, 0.3) for _ in range(seeds)) for effect in effects]
        low, high = interval_of_tasks(means) or (math.nan, math.nan)
        return Interval(statistics.fmean(means), low, high, 0.95)

    return Case("claims of studies", f"{tasks} tasks, {seeds} seeds", tasks, lambda: 0.0, draw)


def simulate(case: Case, repeats: int) -> dict[str, Any]:
    """The share of samples whose interval holds the population's value, and of those that miss it on either
    side.
    """
    value, generator = case.value(), torch.Generator().manual_seed(7)
    intervals = [case.draw(generator, seed) for seed in range(repeats)]
    above, below = sum(one.low > value for one in intervals), sum(one.high < value for one in intervals)
    return {
        "interval": case.interval,
        "population": case.population,
        "size": case.size,
        "value": round(value, 5),
        "repeats": repeats,
        "covered": round(1 - (above + below) / repeats, 4),
        "too_high": round(above / repeats, 4),
        "too_low": round(below / repeats, 4),
        "width": round(statistics.fmean(one.high - one.low for one in intervals), 5),
    }


def table(rows: list[dict[str, Any]]) -> Table:
    """One row per case."""
    cells = [
        (
            row["interval"],
            row["population"],
            str(row["size"]),
            f"{row['value']:.4f}",
            f"{row['covered']:.3f}",
            f"{row['too_high']:.3f}",
            f"{row['too_low']:.3f}",
            f"{row['width']:.4f}",
        )
        for row in rows
    ]
    header = ("interval", "population", "N", "value", "covered", "begins above", "ends below", "mean width")
    return Table(header, tuple(cells))


def page(text: str, record: dict[str, Any]) -> str:
    """The page with the tables of the record between its marks."""
    rows = sorted(record["rows"], key=lambda row: row["interval"])
    repeats = min(row["repeats"] for row in rows)
    error = math.sqrt(0.95 * 0.05 / repeats)
    outside = [row for row in rows if not 0.93 <= row["covered"] <= 0.97]
    said = (
        f"{len(rows)} of {len(list(cases()))} cases, each simulated with {repeats} samples or more, "
        f"so a measured coverage has a standard error of {error:.3f}; {len(rows) - len(outside)} "
        f"lie within 0.93 to 0.97, and the lowest is {min(row['covered'] for row in rows)}. "
        "`benchmarks/interval_coverage.py` simulates them again, with the same seeds."
    )
    return with_block(text, "coverage", f"{said}\n\n{table(rows).to_markdown().strip()}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--out", type=Path, default=RECORD, help="the record, which a second run goes on with"
    )
    parser.add_argument("--repeats", type=int, default=REPEATS, help="samples of each case")
    parser.add_argument("--only", default="", help="only cases whose name holds this")
    parser.add_argument(
        "--page", action="store_true", help="write the tables into docs/statistics.md and stop"
    )
    arguments = parser.parse_args()
    record = (
        json.loads(arguments.out.read_text()) if arguments.out.is_file() else {"draws": DRAWS, "rows": []}
    )
    if arguments.page:
        PAGE.write_text(page(PAGE.read_text(encoding="utf-8"), record), encoding="utf-8")
        return
    torch.set_num_threads(1)  # tensors of some hundred numbers
    done = {f"{row['interval']} | {row['population']} | {row['size']}" for row in record["rows"]}
    for case in cases():
        if case.key in done or arguments.only not in case.key:
            continue
        record["rows"].append(simulate(case, arguments.repeats))
        print(record["rows"][-1], flush=True)
        write_record(arguments.out, {"draws": DRAWS, "rows": record["rows"]})


if __name__ == "__main__":
    main()
