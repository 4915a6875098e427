"""The splits of a run over GPUs as a table, and the one to take."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ...studies.report.page import Table
from ..common import Arguments, say

if TYPE_CHECKING:
    from ...planning.split import Gpus, SplitChoice, SplitPlan
    from ...planning.work import Work

GB = 1e9
HOUR = 3600.0
NAMES = {
    "replicate": "base on each GPU",
    "fsdp": "base cut over GPUs (FSDP2)",
    "tp": "layers computed together (TP)",
}
WIDTHS = ("base", "gathered", "members", "activations", "total")


def show_splits(choice: SplitChoice, work: Work, gpus: Gpus, *, args: Arguments) -> dict[str, Any]:
    """Print the splits and the reason for the chosen one; returns the summary."""
    from ...planning.advice import reason_of

    rows = [_measured(plan, gpus, args) for plan in choice.plans]
    head = ("GB on a GPU", *WIDTHS, "fits", "GPUs at work", "a step", *(["the run"] if args.examples else []))
    head += ("cost",) if args.examples and args.price else ()
    cells = []
    for plan, row in zip(choice.plans, rows, strict=True):
        sizes = [f"{row[name] / GB:.2f}" for name in WIDTHS]
        parts = "" if plan.parts == 1 else f" in {plan.parts} parts"
        times = [f"{row['seconds_a_step_at_the_limit']:.3g} s{parts}"]
        times += [f"{row['seconds_at_the_limit'] / HOUR:.3g} h"] if args.examples else []
        times += [f"{row['cost_at_the_limit']:.4g}"] if "cost_at_the_limit" in row else []
        cells.append((NAMES[plan.kind], *sizes, "yes" if plan.fits else "no", f"{plan.busy}", *times))
    print(Table(tuple(head), tuple(cells)))
    for kind, reason in choice.refused.items():
        say(f"no {NAMES[kind]}: {reason}")
    reason = reason_of(choice, work, gpus)
    chosen = choice.chosen
    say(f"take {NAMES[chosen.kind]}: {reason}" if chosen else reason)
    if chosen and chosen.parts > 1:
        say(f"train with --max-rows {chosen.rows}: the result is that of whole steps")
    return {
        "base": args.base,
        "gpus": gpus.links.gpus,
        "nodes": gpus.links.nodes,
        "workers": gpus.slices,
        "memory": gpus.memory,
        "interconnect": gpus.links.within,
        "network": gpus.links.between,
        "members": work.members,
        "split": chosen.kind if chosen else None,
        "reason": reason,
        "splits": rows,
        "refused": dict(choice.refused),
    }


def _measured(plan: SplitPlan, gpus: Gpus, args: Arguments) -> dict[str, Any]:
    """A split with its times, and its cost where a price is given."""
    seconds = plan.seconds(args.tflops * 1e12)
    row = {**plan.to_dict(), "seconds_a_step_at_the_limit": seconds}
    if args.examples is not None:
        steps = -(-args.examples // args.batch_size) * args.epochs
        row["seconds_at_the_limit"] = steps * seconds
        if args.price is not None:
            row["cost_at_the_limit"] = gpus.links.gpus * args.price * steps * seconds / HOUR
    return row
