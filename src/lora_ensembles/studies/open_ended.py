"""Open answers: does the ensemble write more right ones, and does its uncertainty find the wrong ones?

`python -m lora_ensembles.studies.open_ended --out results/open-ended`: for each seed, M members are trained
to answer the questions of "world-words" in words. The ensemble and each member alone then write, greedily, an
answer to every validation question. An answer is right if it is that of the data, word for word. Each score
of doubt is judged by how well it tells wrong answers from right ones.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import GenerationConfig

from ..data import Completion
from ..embedded import load_base, load_embedded_completions
from ..ensemble import LoraEnsemble
from ..errors import ConfigError
from ..generation.text import GeneratedText, generate_text
from ..heads.lm.completions import score_completions
from ..prediction.completions import evaluate_completions
from ..prediction.plots.style import save_figure
from ..prediction.selective import accuracy_by_doubt, error_auroc
from ..training.adapters import train
from ..training.config import TrainConfig
from .report.figures.open_ended import selective_panels
from .report.page import Table
from .store import cell

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NAME = "open-ended"
SEEDS = (0, 1, 2)
NEW_TOKENS = 24  # the longest answer of the task has fewer
# Each score of doubt, from a text's summary: higher where the answer is less to be trusted.
DOUBTS = {
    "improbability": lambda summary: -summary["log_prob"],
    "total entropy": lambda summary: summary["total_entropy"],
    "expected entropy": lambda summary: summary["expected_entropy"],
    "mutual information": lambda summary: summary["mutual_information"],
    "disagreement": lambda summary: 1 - summary["agreement"],
}
SINGLE_DOUBTS = ("improbability", "total entropy")  # one member has no one to contradict


def settings_of(seed: int, *, members: int, epochs: int) -> dict[str, Any]:
    """Everything that a record depends on."""
    config = dataclasses.replace(TrainConfig.preset("embedded"), epochs=epochs)
    return {
        "task": "world-words",
        "base": "embedded",
        "members": members,
        "seed": seed,
        "new_tokens": NEW_TOKENS,
        "train": config.to_dict(),
    }


def measure(settings: Mapping[str, Any]) -> dict[str, Any]:
    """One seed: the ensemble, and each of its members alone."""
    task = load_embedded_completions()
    base, tokenizer = load_base()
    ensemble = LoraEnsemble(base, tokenizer, num_members=settings["members"], seed=settings["seed"])
    config = dataclasses.replace(TrainConfig.preset("embedded"), epochs=settings["train"]["epochs"])
    history = train(ensemble, task.train, config, progress=False).history
    weights = [ensemble.stack.member(index) for index in range(ensemble.num_members)]
    result = {
        "train_loss": history[-1]["train_loss"],
        "ensemble": answers_of(ensemble, task.validation, DOUBTS),
        "single": [],
    }
    for one in weights:
        ensemble.stack.set_members([one])
        result["single"].append(answers_of(ensemble, task.validation, SINGLE_DOUBTS))
    return result


def answers_of(
    ensemble: LoraEnsemble, examples: Sequence[Completion], doubts: Sequence[str] | Mapping[str, Any]
) -> dict[str, Any]:
    """Measures of what the members of `ensemble` answer together: exact match, NLL (nats an answer), and for
    each answer its doubts.
    """
    texts = generate_text(
        ensemble,
        [example.prompt for example in examples],
        GenerationConfig(max_new_tokens=NEW_TOKENS),
        batch_size=64,
    )
    correct = [is_right(text, example) for text, example in zip(texts, examples, strict=True)]
    summaries = [text.uncertainty.summary() for text in texts]
    return {
        "exact_match": sum(correct) / len(correct),
        "nll": evaluate_completions(score_completions(ensemble, examples)).nll,
        "correct": [int(one) for one in correct],
        "doubt": {name: [round(DOUBTS[name](summary), 5) for summary in summaries] for name in doubts},
    }


def is_right(text: GeneratedText, example: Completion) -> bool:
    """Whether a text is the answer of the data, but for white space at its ends."""
    return example.completion is not None and text.text.strip() == example.completion.strip()


def judged(answers: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """For each score of doubt: `auroc` against correctness, and the accuracy-coverage curve's area."""
    correct = torch.tensor(answers["correct"], dtype=torch.bool)
    doubts = {name: torch.tensor(values, dtype=torch.float64) for name, values in answers["doubt"].items()}
    return {
        name: {"auroc": error_auroc(doubt, correct), "coverage_area": accuracy_by_doubt(doubt, correct).area}
        for name, doubt in doubts.items()
    }


def summarise(records: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """One row an arm and score, with a value for each seed; a single member's value is the mean over the
    members of the seed.
    """
    results = [record["result"] for record in records]
    rows = []
    for arm, names in (("single member", SINGLE_DOUBTS), ("ensemble", tuple(DOUBTS))):
        per_seed = [
            result["single"] if arm == "single member" else [result["ensemble"]] for result in results
        ]
        for name in names:
            scores = [[judged(answers)[name] for answers in answered] for answered in per_seed]
            rows.append(
                {
                    "arm": arm,
                    "doubt": name,
                    "exact_match": [
                        statistics.fmean(answers["exact_match"] for answers in answered)
                        for answered in per_seed
                    ],
                    "nll": [
                        statistics.fmean(answers["nll"] for answers in answered) for answered in per_seed
                    ],
                    "auroc": [statistics.fmean(one["auroc"] for one in seed) for seed in scores],
                    "coverage_area": [
                        statistics.fmean(one["coverage_area"] for one in seed) for seed in scores
                    ],
                }
            )
    return rows


def table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """The mean over seeds, and the standard deviation."""
    header = ("arm", "doubt", "exact match ↑", "NLL, nats ↓", "AUROC of errors ↑", "accuracy-coverage area ↑")
    names = ("exact_match", "nll", "auroc", "coverage_area")
    return Table(
        header, tuple((row["arm"], row["doubt"], *(_spread(row[name]) for name in names)) for row in rows)
    )


def _spread(values: Sequence[float]) -> str:
    return f"{statistics.fmean(values):.3f} ± {statistics.stdev(values) if len(values) > 1 else 0.0:.3f}"


def figure(records: Sequence[Mapping[str, Any]]) -> Figure:
    """AUROC of every score, a point a seed; and accuracy against coverage, ensemble beside single member, by
    total entropy.
    """
    rows = summarise(records)
    points = {f"{row['doubt']}, {row['arm']}": row["auroc"] for row in rows}
    curves: dict[str, list[torch.Tensor]] = {"single member": [], "ensemble": []}
    for record in records:
        for answers in record["result"]["single"]:
            curves["single member"].append(_curve(answers))
        curves["ensemble"].append(_curve(record["result"]["ensemble"]))
    return selective_panels(
        points, {name: torch.stack(curves_of_seeds).mean(dim=0) for name, curves_of_seeds in curves.items()}
    )


def _curve(answers: Mapping[str, Any]) -> torch.Tensor:
    doubt = torch.tensor(answers["doubt"]["total entropy"], dtype=torch.float64)
    return accuracy_by_doubt(doubt, torch.tensor(answers["correct"], dtype=torch.bool)).accuracies


def run(
    out: Path, *, seeds: Sequence[int] = SEEDS, members: int = 5, epochs: int = 15
) -> list[dict[str, Any]]:
    """The records of all seeds, measured where they are not there yet; table and figure beside them.

    Raises:
        ConfigError: fewer than two members, who could not contradict each other.
    """
    if members < 2:
        raise ConfigError(f"members={members}; at least 2 are needed to compare an ensemble with its members")
    records = []
    for seed in seeds:
        settings = settings_of(seed, members=members, epochs=epochs)
        records.append(cell(out, NAME, settings, functools.partial(measure, settings)))
        answers = records[-1]["result"]
        print(f"seed {seed}: exact match {answers['ensemble']['exact_match']:.3f}", flush=True)
    (out / f"{NAME}.md").write_text(table(summarise(records)).to_markdown(), encoding="utf-8")
    save_figure(figure(records), out / NAME)
    return records


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("results/open-ended"))
    parser.add_argument("--members", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=15)
    arguments = parser.parse_args()
    print(table(summarise(run(arguments.out, members=arguments.members, epochs=arguments.epochs))))


if __name__ == "__main__":
    main()
