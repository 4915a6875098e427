"""Reasons for a split in a sentence, and what would fit where nothing does.

Shapes: M members, S ranks.
"""

from __future__ import annotations

import math

from .memory import HEADROOM
from .split import Gpus, SplitChoice, SplitPlan
from .work import Work

GB = 1e9
MOST_GPUS = 1024  # that are tried


def reason_of(choice: SplitChoice, work: Work, gpus: Gpus) -> str:
    """The reason for the chosen split; where none fits, what would."""
    plan = choice.chosen
    if plan is None:
        return f"no split fits {_room(gpus)}: {what_would_fit(choice, work, gpus)}"
    if plan.kind == "replicate":
        return (
            f"the base and a GPU's members take {plan.total / GB:.3g} GB and fit {_room(gpus)}; the GPUs "
            "exchange nothing, and train each member as one process would"
        )
    whole = choice.plans[0]
    if plan.kind == "fsdp":
        return (
            f"the whole base needs {whole.total / GB:.3g} GB, too much for {_room(gpus)}; cut over "
            f"{plan.ranks} GPUs it needs {plan.total / GB:.3g} GB. {gathers_of(plan, work)}"
        )
    return (
        f"neither the whole base ({whole.total / GB:.3g} GB) nor a part of it with the layers that are "
        f"gathered fits {_room(gpus)}; {plan.ranks} GPUs that compute each layer together need "
        f"{plan.total / GB:.3g} GB each. They wait for each other's activations, so take it where the others "
        "do not fit, or for the latency of one answer"
    )


def gathers_of(plan: SplitPlan, work: Work) -> str:
    """The traffic of FSDP2 for each member, against members trained one after another, and members that do
    not split evenly.
    """
    often = "once" if plan.parts == 1 else f"{plan.parts} times (a step has {plan.parts} parts)"
    told = (
        f"In a step each layer is gathered {often} forward and backward for all {work.members} members: "
        f"{plan.members_a_gather:.3g} times less traffic a member than one after another"
    )
    if plan.members_a_gather <= 1:
        told = (
            f"A step has {plan.parts} parts, each of which gathers the whole base: no less traffic a member "
            f"than members trained one after another; more memory, or shorter rows, change that"
        )
    if work.members % plan.ranks:
        more = math.ceil(work.members / plan.ranks) * plan.ranks
        told += (
            f". {work.members} members do not split evenly over {plan.ranks} ranks, which is needed: take "
            f"{more}, for the time of these"
        )
    return told


def what_would_fit(choice: SplitChoice, work: Work, gpus: Gpus) -> str:
    """GPUs with which the run would fit: larger ones, or more of them with FSDP2."""
    least = min(choice.plans, key=lambda plan: plan.total)
    ways = [f"GPUs of {math.ceil(least.total / HEADROOM / GB)} GB ({least.kind})"]
    more = _enough_gpus(choice, work, gpus)
    if more is not None:
        ways.append(f"{more} GPUs of {gpus.memory / GB:g} GB (fsdp, {max(more, work.members)} members)")
    return f"take {' or '.join(ways)}, a base in 4 bits, or shorter rows"


def _enough_gpus(choice: SplitChoice, work: Work, gpus: Gpus) -> int | None:
    """The smallest number of GPUs, by doubling, on which the base cut over them fits."""
    cut = next((plan for plan in choice.plans if plan.kind == "fsdp"), None)
    if cut is None:
        return None
    members = math.ceil(work.members / cut.ranks)
    ranks = 2 * gpus.links.gpus
    while ranks <= MOST_GPUS:
        share = cut.members * math.ceil(work.members / ranks) / members
        total = choice.frozen.sharded(ranks) + cut.gathered + share + cut.activations
        if total <= HEADROOM * gpus.memory:
            return ranks
        ranks *= 2
    return None


def _room(gpus: Gpus) -> str:
    return f"{HEADROOM:.0%} of {gpus.memory / GB:g} GB"
