"""What a training step costs: `python benchmarks/train.py --profile T1 --json`.

Arms, on the same rows in the same orders, taken in turn: the stack, A (Hugging Face's Trainer), A' (the best
plain PEFT loop), B (PEFT's `adapter_names`), and C, the least that the arithmetic can take. A ratio A, A' or
B is that arm's time for all members over the stack's; C is the share of the limit that the stack reaches.
Set-up, compilation and the first step of every run are left out. Each arm's trained weights are compared with
the stack's in the same run. T0 to T5 and T7 are the sizes of large models; without a GPU, or with --scaled,
they run on a small model of the same architecture, which the output says. T5 is training with KL to the base,
its states cached against live; T7 the curve over M; `tokens` that over tokens in a
step; `smollm2` trains SmolLM2-135M-Instruct (`make smollm2`) on answers in words, those of OpenBookQA with
--data. --breakdown says where the time of the steps of `demo` or `smollm2` goes.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import breakdown
import torch
from timing import WINDOWS, add_data_flag, add_record_flags, end_with, rounded
from training_rows import Place, Profile, rows_of, shown

PROFILES = {
    "T0": Profile("13B", 5, (8, 32), 100, {"A": 1.5, "C": 0.45}, spread=0.3, steps=3),
    "T1": Profile("0.5B", 8, (4,), 128, {"A": 8.0, "A'": 6.0, "C": 0.30}),
    "T2": Profile("1.5B", 8, (4,), 128, {"A": 4.5, "C": 0.40}),
    "T3": Profile("8B", 8, (4,), 512, {"A": 1.25, "A'": 1.0, "C": 0.45}, steps=3),
    "T4": Profile("8B", 8, (1,), 128, {"A": 4.0, "C": 0.40}, steps=4),
    "T5": Profile("1.5B", 8, (4,), 128, {"live": 1.4}, kind="kl"),
    "T7": Profile("0.5B", 32, (4,), 128, {}, at_most={"growth": 1.15}, steps=4, kind="members"),
}
SMALL = {  # the same on every device
    "toy": Profile("toy", 8, (2,), 16, {"A": 3.0}, steps=12),
    "hidden512": Profile("hidden512", 8, (4,), 32, {"A": 1.5, "A'": 1.0}, steps=4),
    "tokens": Profile("toy", 8, (1, 2, 4, 8, 16), 16, {}, steps=8, kind="tokens"),
    "demo": Profile("embedded", 5, (16,), 0, {"A'": 1.5}, steps=8, kind="demo"),
    "smollm2": Profile("smollm2", 5, (4, 16), 0, {"A": 1.5, "A'": 1.0}, steps=4, kind="words"),
    "tiny": Profile("tiny", 2, (2,), 8, {}, steps=3),
    "tiny-T5": Profile("tiny", 2, (2,), 8, {}, steps=3, kind="kl"),
    "tiny-T7": Profile("tiny", 2, (2,), 8, {}, steps=3, kind="members"),
}
BROKEN_DOWN = ("demo", "smollm2")


def measure(
    name: str,
    *,
    windows: int = WINDOWS,
    small: bool = False,
    length: int | None = None,
    data: Path | None = None,
) -> list[dict[str, Any]]:
    """The rows of a profile, with numbers cut to four digits."""
    profile = {**PROFILES, **SMALL}[name]
    device = "cuda" if torch.cuda.is_available() else "cpu"
    small = (small or device == "cpu") and name in PROFILES
    dtype = torch.bfloat16 if device == "cuda" and name in PROFILES else torch.float32
    if small:
        length = length or 32
        profile = Profile(**{**vars(profile), "length": min(profile.length, length)})
    return [rounded(row) for row in rows_of(name, profile, Place(device, dtype, small, windows, data))]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--profile", choices=[*PROFILES, *SMALL], default="toy")
    parser.add_argument(
        "--scaled",
        action="store_true",
        help="a small model of the same architecture; the default without a GPU",
    )
    parser.add_argument("--windows", type=int, default=WINDOWS, help="interleaved runs of every arm")
    parser.add_argument(
        "--breakdown", action="store_true", help="where the time of a step goes, of `demo` or `smollm2`"
    )
    add_data_flag(parser)
    add_record_flags(parser)
    arguments = parser.parse_args()
    name, windows, data = arguments.profile, arguments.windows, arguments.data
    if arguments.breakdown:
        if name not in BROKEN_DOWN:
            parser.error(f"--breakdown: --profile {name}: give {' or '.join(BROKEN_DOWN)}")
        record = rounded(breakdown.measure(name, SMALL[name], windows=windows, data=data))
        print(breakdown.shown(record))
    else:
        rows = measure(name, windows=windows, small=arguments.scaled, data=data)
        record = {"rows": rows}
        print("\n".join(map(shown, rows)))
    end_with(record, arguments, device="cuda" if torch.cuda.is_available() else "cpu")


if __name__ == "__main__":
    main()
