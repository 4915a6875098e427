"""The paper's claims judged from records: a contrast for every clause, its interval, and a verdict that no
hand writes.

A contrast is one difference for each setting, a (task, seed) with its arms averaged; its interval is the 95 %
t interval of the tasks' means over seeds. Questions and seeds lie within tasks: what another sample of them
would change is part of how far the tasks' means lie apart. The p of a clause is that of the t test of its
side, or of the nearer edge of its margin, and the p of a claim's clauses are adjusted by Holm's method: of
all its clauses, one is decided wrongly in at most one study of twenty.

A clause is supported if its p is below 0.05 and its difference lies where the claim says, contradicted if it
lies where it says not, and inconclusive otherwise; below `LEAST_TASKS` tasks always. A claim is supported if
every clause of it is, contradicted if any is, and inconclusive otherwise: also where records for a clause are
missing.
"""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from ...errors import DataError
from ...prediction.intervals.shares import t_probability, t_quantile
from .contrasts import Contrast
from .paper import CLAIMS
from .views import Records, View

Verdict = Literal["supported", "contradicted", "inconclusive", "not applicable", "shown"]

LEVEL = 0.05
LEAST_TASKS = 4
"""Fewer decide nothing: how far another task would lie from three is a guess."""
# Why a clause cannot be judged where members have heads of their own, by a word of its name.
NOT_OF_HEADS = {
    "KL": "members' heads were newly initialised, so the base has no distribution over the answers to stay "
    "close to",
    "few-shot": "a base without a head of its own for the answers cannot be asked by few-shot prompts",
}


@dataclass(frozen=True)
class Part:
    """One clause of a claim.

    Attributes:
        expected: what the claim says of the difference.
        difference: the mean over tasks.
        interval: its 95 % interval over tasks; None for too few.
        p: adjusted for the other clauses of the claim; None for too few tasks, or what is only shown.
        tasks, settings: (task and seed) that it was taken over.
    """

    name: str
    expected: str
    difference: float | None
    interval: tuple[float, float] | None
    p: float | None
    verdict: Verdict
    tasks: int
    settings: int


@dataclass(frozen=True)
class Claim:
    """A claim and what the records say of it.

    Attributes:
        deciding: the clause that the verdict hangs on: of those contradicted the one with the smallest p,
            else the one with the largest; None where nothing could be judged.
        reason: why clauses could not be judged.
    """

    id: str
    text: str
    tasks: int
    settings: int
    verdict: Verdict
    deciding: Part | None
    reason: str
    parts: tuple[Part, ...]

    def to_dict(self) -> dict[str, Any]:
        """The claim as JSON-able values."""
        return asdict(self)


def interval_of_tasks(means: Sequence[float], *, level: float = 1 - LEVEL) -> tuple[float, float] | None:
    """Student's t interval of the mean over tasks, mean +- t(level, n - 1) * s / sqrt(n); None for fewer than
    `LEAST_TASKS` tasks.

    The task is the unit: seeds of one task share its questions, so they say nothing of how far another task
    would lie from it.

    Args:
        means: one number for each task, the mean over its seeds.
        level: the share of repeated studies, over other tasks, in which the interval holds the expected
            difference.

    Example:
        >>> low, high = interval_of_tasks([1.0, 2.0, 3.0, 4.0])  # 2.5 +- 3.182 * 1.291 / 2
        >>> round(low, 3), round(high, 3)
        (0.446, 4.554)
    """
    if len(means) < LEAST_TASKS:
        return None
    half = t_quantile(level, len(means) - 1) * statistics.stdev(means) / math.sqrt(len(means))
    mean = statistics.fmean(means)
    return mean - half, mean + half


def judge_contrasts(contrasts: Sequence[Contrast]) -> tuple[Part, ...]:
    """The clauses of one claim: means over tasks, intervals, and verdicts by p that Holm's method adjusts."""
    judged = [_alone(contrast) for contrast in contrasts]
    several = sorted((part.p, place) for place, (part, _) in enumerate(judged) if part.p is not None)
    adjusted: dict[int, float] = {}
    largest = 0.0
    for rank, (p, place) in enumerate(several):
        largest = max(largest, min(1.0, (len(several) - rank) * p))
        adjusted[place] = largest
    return tuple(
        dataclasses.replace(
            part,
            p=float(f"{adjusted[place]:.3g}"),
            verdict=(
                "inconclusive" if adjusted[place] >= LEVEL else "supported" if inside > 0 else "contradicted"
            ),
        )
        if place in adjusted
        else part
        for place, (part, inside) in enumerate(judged)
    )


def _alone(contrast: Contrast) -> tuple[Part, float]:
    """A clause with its own p, without the others; and how far its mean lies inside of what is expected."""
    finite = {setting: value for setting, value in contrast.differences.items() if math.isfinite(value)}
    part = Part(contrast.name, contrast.expected, None, None, None, "not applicable", 0, 0)
    if not finite:
        return part, 0.0
    tasks: dict[str, list[float]] = {}
    for (task, _), value in finite.items():
        tasks.setdefault(task, []).append(value)
    means = [statistics.fmean(values) for values in tasks.values()]
    mean, interval = statistics.fmean(means), interval_of_tasks(means)
    inside = contrast.sign * mean if contrast.sign else contrast.margin - abs(mean)
    p = None
    if interval is not None and contrast.judged:
        error = statistics.stdev(means) / math.sqrt(len(means))
        t = abs(inside) / error if error else math.inf if inside else 0.0
        p = min(1.0, contrast.chosen_from * (1 - t_probability(t, len(means) - 1)))
    return dataclasses.replace(
        part,
        difference=round(mean, 6),
        interval=None if interval is None else (round(interval[0], 6), round(interval[1], 6)),
        p=p,
        verdict="inconclusive" if contrast.judged else "shown",
        tasks=len(tasks),
        settings=len(finite),
    ), inside


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
    parts = judge_contrasts([one for one in contrasts if one.judged or one.differences])
    clauses = [part for part in parts if part.verdict != "shown"]
    able = [part for part in clauses if part.verdict != "not applicable"]
    verdict: Verdict = "inconclusive"
    if not able:
        verdict = "not applicable"
    elif any(part.verdict == "contradicted" for part in able):
        verdict = "contradicted"
    elif all(part.verdict == "supported" for part in clauses):
        verdict = "supported"
    return Claim(
        name,
        text,
        max(part.tasks for part in parts),
        max(part.settings for part in parts),
        verdict,
        _deciding(able, verdict),
        _reason([part.name for part in clauses if part.verdict == "not applicable"], bool(able), heads),
        parts,
    )


def _deciding(able: Sequence[Part], verdict: Verdict) -> Part | None:
    if verdict == "contradicted":
        against = [part for part in able if part.verdict == "contradicted"]
        return min(against, key=lambda part: part.p or 0.0)
    return max(able, key=lambda part: 1.0 if part.p is None else part.p, default=None)


def _reason(missing: Sequence[str], able: bool, heads: bool) -> str:
    if not missing:
        return ""
    if not able:
        return "no record holds what this claim is about"
    why = [words for word, words in NOT_OF_HEADS.items() if heads and any(word in name for name in missing)]
    return "; ".join(why) or f"no record holds {', '.join(missing)}"
