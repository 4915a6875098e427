"""What BatchEnsemble's start alone costs:
`python benchmarks/batch_ensemble.py --out results/batch-ensemble.json`.

Eight untrained members on the embedded base, 200 validation questions of world-obqa, for each deviation of
the initial offsets, and for the random signs that Wen et al. 2020 (arXiv:2002.06715) take when they train
from scratch.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from timing import write_record

from lora_ensembles import BatchEnsemble, evaluate_members, load_base, load_task, predict

SIGMAS = (0.0, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
MEMBERS, QUESTIONS = 8, 200


def measure(sigma: float | None) -> dict[str, Any]:
    """Mean accuracy and NLL of a member; None stands for random signs."""
    ensemble = BatchEnsemble(*load_base(), num_members=MEMBERS, sigma=sigma or 0.0)
    if sigma is None:
        generator = torch.Generator().manual_seed(0)
        for offsets in (ensemble.inputs, ensemble.outputs):
            offsets.copy_(
                -2.0 * torch.randint(0, 2, offsets.shape, generator=generator)
            )  # 1 + offset is 1 or -1
    spread = evaluate_members(predict(ensemble, load_task("world-obqa").validation[:QUESTIONS]))
    return {
        "sigma": sigma,
        "accuracy": round(spread["accuracy"].mean, 4),
        "nll": round(spread["nll"].mean, 4),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, help="write the record there")
    arguments = parser.parse_args()
    rows = [measure(sigma) for sigma in (*SIGMAS, None)]
    for row in rows:
        print(row)
    write_record(arguments.out, {"members": MEMBERS, "questions": QUESTIONS, "rows": rows})


if __name__ == "__main__":
    main()
