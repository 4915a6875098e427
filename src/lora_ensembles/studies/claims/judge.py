"""The paper's claims C1 to C11, judged from records: a contrast, its interval, and a verdict that no hand
writes.

A contrast is one difference for each setting, a (task, seed) with its arms averaged; its interval is the 95 %
t interval of the tasks' means over seeds. Where the claim says "above zero", it is supported if the whole
interval is above zero, contradicted if all of it is below, and inconclusive otherwise. A claim of several
parts is supported if every part is, contradicted if any is, and supported in part if every part that could be
judged is and others could not be.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from ...errors import DataError
from ...prediction.shares import t_quantile
from .contrasts import CLAIMS, Contrast
from .views import Records, View

Verdict = Literal["supported", "supported in part", "contradicted", "inconclusive", "not applicable"]

LEAST_TASKS = 3
"""Fewer decide nothing. The interval of two is 12.7 standard errors wide to either side, and right only as far as their two effects are
normal, which nothing shows."""
# Why a part cannot be judged where members have heads of their own, by a word of its name.
NOT_OF_HEADS = {
    "KL": "members' heads were newly initialised, so the base has no distribution over the answers to stay "
    "close to",
    "few-shot": "a base without a head of its own for the answers cannot be asked by few-shot prompts",
}


@dataclass(frozen=True)
class Part:
    """One contrast of a claim: over how many tasks, and settings (task and seed), it was taken; without an
    interval for too few tasks.
    """

    name: str
    difference: float | None
    interval: tuple[float, float] | None
    verdict: Verdict
    tasks: int
    settings: int


@dataclass(frozen=True)
class Claim:
    """A claim and what the records say of it; `difference` and `interval` are those of the first part that
    could be judged.

    `reason` says why parts could not be.
    """

    id: str
    text: str
    tasks: int
    settings: int
    difference: float | None
    interval: tuple[float, float] | None
    verdict: Verdict
    reason: str
    parts: tuple[Part, ...]

    def to_dict(self) -> dict[str, Any]:
        """The claim as JSON-able values."""
        return asdict(self)


def interval_of_tasks(means: Sequence[float], *, level: float = 0.95) -> tuple[float, float] | None:
    """Student's t interval of the mean over tasks, mean +- t(level, n - 1) * s / sqrt(n); None for fewer than
    `LEAST_TASKS` tasks.

    The task is the unit: seeds of one task share its questions, so they say nothing of how far another task
    would lie from it.

    Args:
        means: one number for each task, the mean over its seeds.
        level: the share of repeated studies, over other tasks, in which the interval holds the expected
            difference.

    Example:
        >>> low, high = interval_of_tasks([1.0, 2.0, 3.0])  # 2 +- 4.303 / sqrt(3)
        >>> round(low, 3), round(high, 3)
        (-0.484, 4.484)
    """
    if len(means) < LEAST_TASKS:
        return None
    half = t_quantile(level, len(means) - 1) * statistics.stdev(means) / math.sqrt(len(means))
    mean = statistics.fmean(means)
    return mean - half, mean + half


def judge_contrast(contrast: Contrast) -> Part:
    """The mean over tasks, its interval, and the verdict; without any setting the part is not applicable.

    Fewer than `LEAST_TASKS` tasks decide nothing. A contrast that was chosen from several has the wider
    interval that goes with that.
    """
    finite = {setting: value for setting, value in contrast.differences.items() if math.isfinite(value)}
    if not finite:
        return Part(contrast.name, None, None, "not applicable", 0, 0)
    tasks: dict[str, list[float]] = {}
    for (task, _), value in finite.items():
        tasks.setdefault(task, []).append(value)
    means = [statistics.fmean(values) for values in tasks.values()]
    interval = interval_of_tasks(means, level=1 - 0.05 / contrast.chosen_from)
    shown = None if interval is None else (round(interval[0], 6), round(interval[1], 6))
    return Part(
        contrast.name,
        round(statistics.fmean(means), 6),
        shown,
        _verdict(contrast, interval),
        len(tasks),
        len(finite),
    )


def _verdict(contrast: Contrast, interval: tuple[float, float] | None) -> Verdict:
    if interval is None:
        return "inconclusive"
    low, high = interval
    if contrast.sign == 0:
        holds = -contrast.margin <= low and high <= contrast.margin
        fails = low > contrast.margin or high < -contrast.margin
    else:
        holds, fails = (low > 0, high < 0) if contrast.sign > 0 else (high < 0, low > 0)
    return "supported" if holds else "contradicted" if fails else "inconclusive"


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
    verdict: Verdict = "inconclusive"
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
        max(part.tasks for part in parts),
        max(part.settings for part in parts),
        first.difference,
        first.interval,
        verdict,
        reason,
        parts,
    )
