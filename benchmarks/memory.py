"""What members take: `python benchmarks/memory.py --json`.

The peak of a training run of M = 8 members less that of one member at equal rows in flight, held against 16
bytes a LoRA parameter (fp32 weight, gradient and two moments). Activations depend on rows and tokens alone,
which are equal, so they cancel; the low-rank ones too. On a CPU every allocation is counted by torch's
profiler, so the number is exact and the same on every run; on a GPU it is the allocator's own peak. The base
is held to be in memory once: the ensemble's base has the storage addresses that it had before.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from limits import RANK, member_bytes, storages
from timing import add_record_flags, end_with, rounded
from torch.profiler import ProfilerActivity, profile
from workloads import SHAPES, build, questions, scaled, sharing, tokenizer

from lora_ensembles import LoraEnsemble, TrainConfig, train

MEMBERS = 8
TOLERANCE = 0.1


@dataclass(frozen=True)
class Profile:
    """A training run of `rows` rows in flight, of `length` tokens."""

    shape: str
    rows: int
    length: int


PROFILES = {
    "T1": Profile("0.5B", 32, 128),
    "T2": Profile("1.5B", 32, 128),
    "toy": Profile("toy", 32, 32),
    "tiny": Profile("tiny", 8, 8),
}


def peak_bytes(run: Callable[[], object], device: torch.device | str) -> int:
    """The most memory that a run takes at a time, beyond what was taken when it began."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        run()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as profiler:
        run()
    return _peak_of_events(profiler)


def _peak_of_events(profiler: Any) -> int:
    """The largest sum of what was allocated and not yet freed, in the order of time."""
    changes: list[tuple[int, int]] = []
    waiting = list(profiler.profiler.kineto_results.experimental_event_tree())
    while waiting:
        event = waiting.pop()
        waiting += event.children
        if event.tag == torch._C._profiler._EventType.Allocation:
            changes.append((event.start_time_ns, event.extra_fields.alloc_size))
    held = most = 0
    for _, change in sorted(changes):
        held += change
        most = max(most, held)
    return most


def measure(name: str, *, small: bool, device: str, dtype: torch.dtype = torch.float32) -> dict[str, Any]:
    """Peaks of one and of eight members at equal rows, their difference beside the formula, and whether the
    base is there once.
    """
    described = PROFILES[name]
    shape = scaled(SHAPES[described.shape]) if small else SHAPES[described.shape]
    base = build(shape, dtype=dtype, device=device)
    addresses = storages(list(base.parameters()))
    words, once = tokenizer(shape.vocabulary), []

    def run(members: int) -> None:
        ensemble = LoraEnsemble(sharing(base), words, num_members=members)
        batch = described.rows // members
        examples = questions(2 * batch, length=described.length, words=shape.vocabulary)
        train(
            ensemble,
            examples,
            TrainConfig(epochs=1, batch_size=batch, max_rows=members * batch),
            progress=False,
        )
        adapted = {id(weight) for layer in ensemble.stack.layers for weight in (layer.lora_a, layer.lora_b)}
        weights = [weight for weight in ensemble.base.parameters() if id(weight) not in adapted]
        once.append(storages(weights) == addresses)

    run(1)  # what torch allocates once and keeps
    peaks = {members: peak_bytes(lambda m=members: run(m), device) for members in (1, MEMBERS)}
    formula = (MEMBERS - 1) * member_bytes(shape, dtype=dtype)
    measured = peaks[MEMBERS] - peaks[1]
    return {
        "id": f"memory-{name}",
        "scaled": small,
        "rows": described.rows,
        "length": described.length,
        "rank": RANK,
        "peak_bytes": {f"M={members}": value for members, value in peaks.items()},
        "difference_bytes": measured,
        "formula_bytes": formula,
        "base_in_memory_once": all(once),
        "ratios": {"formula": measured / formula},
        "must": {"formula": 1 - TOLERANCE},
        "at_most": {"formula": 1 + TOLERANCE},
        "ok": all(once) and abs(measured / formula - 1) <= TOLERANCE,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--profile", choices=PROFILES, default="toy")
    parser.add_argument(
        "--scaled",
        action="store_true",
        help="a small model of the same architecture; the default without a GPU",
    )
    add_record_flags(parser)
    arguments = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    small = (arguments.scaled or device == "cpu") and arguments.profile in ("T1", "T2")
    row = measure(
        arguments.profile,
        small=small,
        device=device,
        dtype=torch.bfloat16 if device == "cuda" else torch.float32,
    )
    for members, value in row["peak_bytes"].items():
        print(f"peak, {members:<14} {value:14,d} bytes")
    print(f"difference           {row['difference_bytes']:14,d} bytes")
    print(f"formula              {row['formula_bytes']:14,d} bytes  (within {TOLERANCE:.0%})")
    print(f"base in memory once  {row['base_in_memory_once']}")
    end_with({"rows": [rounded(row)]}, arguments, device=device)


if __name__ == "__main__":
    main()
