"""The paper's claims C1 to C11, judged from records: a contrast, its interval, and a verdict that no hand writes.

A contrast is one difference for each setting, a (task, seed) with its arms averaged; its interval is the 95 % percentile bootstrap over
tasks and, within each drawn task, over seeds. Where the claim says "above zero", it is supported if the whole interval is above zero,
contradicted if all of it is below, and open otherwise. A claim of several parts is supported if every part is, contradicted if any is,
and supported in part if every part that could be judged is and others could not be.
"""

from __future__ import annotations

import math
import random
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from ..errors import DataError
from .contrasts import CLAIMS, Contrast
from .views import Differences, Records, View

Verdict = Literal["supported", "supported in part", "contradicted", "open", "not applicable"]

SAMPLES = 2000
LEAST_SETTINGS = (
    6  # tasks and seeds: of six without an effect, all have one sign in 3 % of cases, of three in 25 %
)
# Why a part cannot be judged where members have heads of their own, by a word of its name.
NOT_OF_HEADS = {
    "KL": "members' heads were drawn anew, so the base has no distribution over the answers to stay close to",
    "few-shot": "a base without a head of its own for the answers cannot be asked by few-shot prompts",
}


@dataclass(frozen=True)
class Part:
    """One contrast of a claim."""

    name: str
    difference: float | None
    interval: tuple[float, float] | None
    verdict: Verdict
    settings: int


@dataclass(frozen=True)
class Claim:
    """A claim and what the records say of it; `difference` and `interval` are those of the first part that could be judged.

    `reason` says why parts could not be.
    """

    id: str
    text: str
    settings: int
    difference: float | None
    interval: tuple[float, float] | None
    verdict: Verdict
    reason: str
    parts: tuple[Part, ...]

    def to_dict(self) -> dict[str, Any]:
        """The claim as JSON-able values."""
        return asdict(self)


def bootstrap(
    differences: Differences, *, samples: int = SAMPLES, seed: int = 0, level: float = 0.95
) -> tuple[float, float]:
    """The interval of the mean of the tasks' means; tasks are drawn with replacement, and seeds within each drawn task.

    Example:
        >>> bootstrap({("a", 0): 1.0, ("a", 1): 1.0, ("b", 0): 1.0})
        (1.0, 1.0)
    """
    rng = random.Random(seed)
    tasks: dict[str, list[float]] = {}
    for (task, _), value in differences.items():
        tasks.setdefault(task, []).append(value)
    names = sorted(tasks)
    means = sorted(
        statistics.fmean(
            statistics.fmean(rng.choices(tasks[name], k=len(tasks[name])))
            for name in rng.choices(names, k=len(names))
        )
        for _ in range(samples)
    )
    tail = round((1 - level) / 2, 9)
    return means[int(tail * samples)], means[min(samples - 1, math.ceil((1 - tail) * samples) - 1)]


def judge_contrast(contrast: Contrast) -> Part:
    """The mean over tasks, its interval, and the verdict; without any setting the part is not applicable.

    Fewer than `LEAST_SETTINGS` decide nothing. A contrast that was chosen from several has the wider interval that goes with that.
    """
    found = {setting: value for setting, value in contrast.differences.items() if math.isfinite(value)}
    if not found:
        return Part(contrast.name, None, None, "not applicable", 0)
    tasks: dict[str, list[float]] = {}
    for (task, _), value in found.items():
        tasks.setdefault(task, []).append(value)
    mean, (low, high) = (
        statistics.fmean(map(statistics.fmean, tasks.values())),
        bootstrap(found, level=1 - 0.05 / contrast.chosen_from),
    )
    if contrast.sign == 0:
        inside, outside = (
            -contrast.margin <= low and high <= contrast.margin,
            low > contrast.margin or high < -contrast.margin,
        )
    else:
        inside, outside = (low > 0, high < 0) if contrast.sign > 0 else (high < 0, low > 0)
    verdict: Verdict = (
        "open"
        if len(found) < LEAST_SETTINGS or not (inside or outside)
        else "supported"
        if inside
        else "contradicted"
    )
    return Part(contrast.name, round(mean, 6), (round(low, 6), round(high, 6)), verdict, len(found))


def judge(records: Records) -> list[Claim]:
    """Every claim, in order.

    Raises:
        DataError: no record of a sweep, without which no claim can be judged.
    """
    if not records.get("sweep"):
        raise DataError("no records of a sweep; make them with `lora-ensembles study all`")
    view = View(records)
    heads = any("head" in record["settings"] for record in records["sweep"])
    return [_claim(name, text, contrasts(view), heads=heads) for name, text, contrasts in CLAIMS]


def _claim(name: str, text: str, contrasts: Sequence[Contrast], *, heads: bool) -> Claim:
    parts = tuple(map(judge_contrast, contrasts))
    judged = [part.verdict for part in parts if part.verdict != "not applicable"]
    verdict: Verdict = "open"
    if not judged:
        verdict = "not applicable"
    elif "contradicted" in judged:
        verdict = "contradicted"
    elif all(one == "supported" for one in judged):
        verdict = "supported" if len(judged) == len(parts) else "supported in part"
    missing = [part.name for part in parts if part.verdict == "not applicable"]
    reasons = [why for word, why in NOT_OF_HEADS.items() if heads and any(word in part for part in missing)]
    no_record = (
        f"no record holds {', '.join(missing)}" if judged else "no record holds what this claim is about"
    )
    reason = "; ".join(reasons) or (no_record if missing else "")
    first = next((part for part in parts if part.settings), parts[0])
    return Claim(
        name,
        text,
        max(part.settings for part in parts),
        first.difference,
        first.interval,
        verdict,
        reason,
        parts,
    )
