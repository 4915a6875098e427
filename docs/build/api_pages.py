"""The pages of the API reference: every public name once, with links to the pages that use it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from lora_ensembles import plots

REPOSITORY = Path(__file__).parents[2]
PACKAGE = "lora_ensembles"


@dataclass(frozen=True)
class Group:
    """One page: public names, and other objects by their full paths, which public functions return."""

    title: str
    about: str
    names: tuple[str, ...]
    returned: tuple[str, ...] = ()


GROUPS = {
    "ensemble": Group(
        "Ensemble",
        "Members on a base: make, load, save, grow, and hand back to PEFT and transformers.",
        ("LoraEnsemble", "HeadConfig", "load_base"),
    ),
    "training": Group(
        "Training",
        "All members in one stacked run, and one adapter that imitates them.",
        ("train", "TrainConfig", "TrainResult", "distill"),
        ("training.distill.Distilled",),
    ),
    "data": Group(
        "Data",
        "Questions with options, texts with classes, preferences and open answers.",
        (
            *("Example", "Completion", "Task", "ColumnMapping"),
            *("load_task", "load_ood", "load_file", "task_from_files", "task_names"),
            *("load_completions", "completions_from_files", "load_preferences", "preferences_from_files"),
        ),
    ),
    "prediction": Group(
        "Prediction",
        "Members' log-probabilities, rewards, generated text and scores of given answers.",
        (
            *("predict", "Prediction", "Predictor", "predict_rewards"),
            *("confidence", "label_mass"),
            *("generate_text", "GeneratedText", "score_completions", "CompletionScores"),
        ),
        ("prediction.rewards.RewardPrediction",),
    ),
    "metrics": Group(
        "Metrics",
        "Accuracy, calibration and their intervals.",
        (
            *(
                "evaluate",
                "evaluate_members",
                "accuracy",
                "nll",
                "ece",
                "brier",
                "coverage_area",
                "kl_from_targets",
            ),
            *("ood_auroc", "bootstrap_interval", "paired_difference"),
        ),
        (
            *("prediction.evaluation.Metrics", "prediction.completions.CompletionMetrics"),
            *("prediction.rewards.RewardMetrics", "prediction.metrics.MemberSpread"),
        ),
    ),
    "uncertainty": Group(
        "Uncertainty",
        "Predictive entropy and its aleatoric and epistemic parts, in nats.",
        ("total_entropy", "expected_entropy", "mutual_information", "disagreement"),
    ),
    "calibration": Group(
        "Calibration and decisions",
        "Probabilities corrected on held-out data, thresholds and sets with a guarantee.",
        ("calibrate", "risk_threshold", "conformal_sets", "rank", "TemperatureScaled"),
        (
            *("calibration.scaling.Calibration", "calibration.calibrated.HeldOut"),
            *("calibration.risk.RiskThreshold", "calibration.conformal.ConformalSets"),
        ),
    ),
    "plots": Group(
        "Plots",
        "`from lora_ensembles import plots`; each returns a matplotlib figure. The "
        "[gallery](../../gallery.md) shows them.",
        tuple(f"plots.{name}" for name in plots.__all__),
    ),
    "baselines": Group(
        "Baselines",
        "Other ensembles and single models, each a `Predictor`.",
        (
            *("SingleMember", "FewShot", "MCDropout", "LastLayerEnsemble", "LastLayerHeads"),
            "BatchEnsemble",
        ),
    ),
    "scikit-learn": Group(
        "scikit-learn",
        "The ensemble as an estimator; it needs the extra `sklearn`.",
        ("LoraEnsembleClassifier",),
    ),
    "errors": Group(
        "Errors",
        "One base class; [errors](../../errors.md) lists every message.",
        (
            *("LoraEnsemblesError", "ConfigError", "DataError", "AdapterError", "CheckpointError"),
            *("TrainingError", "MissingExtraError"),
        ),
    ),
}


def api_pages(sources: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """Each page's path in the site and its Markdown.

    Args:
        sources: code of the documentation by the path of the page it is shown on, relative to docs/.
    """
    overview = ["# API reference", "", "Everything that `lora_ensembles` exports.", ""]
    for key, group in GROUPS.items():
        lines = [f"# {group.title}", "", group.about, ""]
        for name in group.names:
            lines += _entry(f"{PACKAGE}.{name}", users(name, sources))
        for path in group.returned:
            lines += _entry(f"{PACKAGE}.{path}", [])
        links = ", ".join(f"[`{name}`]({key}.md#{PACKAGE}.{name})" for name in group.names)
        overview += [f"- **[{group.title}]({key}.md)**: {links}"]
        yield f"reference/api/{key}.md", "\n".join(lines)
    yield "reference/api/index.md", "\n".join([*overview, ""])


def users(name: str, sources: Mapping[str, str]) -> list[str]:
    """The paths of the pages whose code uses a name."""
    return [path for path, code in sources.items() if re.search(rf"(?<![\w.]){re.escape(name)}(?!\w)", code)]


def code_of_pages(pages: Iterable[Path], docs: Path) -> dict[str, str]:
    """The Python code of Markdown pages and tutorials, by their path relative to the folder of the docs."""
    found = {}
    for path in pages:
        text = path.read_text(encoding="utf-8")
        code = text if path.suffix == ".py" else "\n".join(re.findall(r"```python\n(.*?)```", text, re.S))
        if code.strip():
            shown = path.with_suffix(".ipynb") if path.suffix == ".py" else path
            found[shown.relative_to(docs).as_posix()] = code
    return found


def _entry(path: str, used_in: list[str]) -> list[str]:
    lines = [f"::: {path}", ""]
    if used_in:
        links = ", ".join(f"[{_title(page)}](../../{page})" for page in used_in)
        lines += [f"Used in: {links}.", "{ .used-in }", ""]
    return lines


def _title(page: str) -> str:
    path = (REPOSITORY / "docs" / page).with_suffix(".py" if page.endswith(".ipynb") else ".md")
    heading = re.search(r"^#(?: #)? (.+)$", path.read_text(encoding="utf-8"), re.M)
    return heading.group(1).strip() if heading else path.stem
