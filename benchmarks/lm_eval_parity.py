"""An ensemble in lm-evaluation-harness beside the harness's own Hugging Face model:
`python benchmarks/lm_eval_parity.py --data DIR`.

Trains an ensemble of one member and one of three on the embedded base (task world-obqa), and runs the harness
three times over local files: the one member, the same member through `--model hf` with PEFT, and the three.
Writes what each run scored, and how far the first two are apart, question by question. Without a network;
about 15 minutes on one core.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lora_ensembles.data.paper_tasks import PAPER_TASKS
from lora_ensembles.disk.provenance import environment
from lora_ensembles.embedded.loading import FOLDER
from lora_ensembles.integrations.lm_eval import write_local_tasks
from lora_ensembles.integrations.lm_eval.local_tasks import paper_task_name

TASKS = ("arc_easy", "openbookqa", "mmlu_stem", *map(paper_task_name, PAPER_TASKS))
MUST = 1e-4  # the largest difference of a score or of a log-likelihood (nats)


def run(words: Sequence[str]) -> None:
    """A command of this Python, without a network."""
    subprocess.run([sys.executable, *words], check=True, env={**os.environ, "HF_HUB_OFFLINE": "1"})


def train(members: int, out: Path) -> None:
    if not out.exists():
        run(
            [
                "-m",
                "lora_ensembles.cli",
                "train",
                "--task",
                "world-obqa",
                "--members",
                str(members),
                "--out",
                str(out),
            ]
        )


def evaluate(
    model: Sequence[str], args: argparse.Namespace, name: str
) -> tuple[dict[str, Any], dict[str, list[dict[str, Any]]]]:
    """What the harness wrote: its record, and the samples of each task."""
    out = args.work / name
    words = [
        *model,
        "--include_path",
        str(args.work / "tasks"),
        "--tasks",
        ",".join(TASKS),
        "--batch_size",
        "16",
        "--device",
        "cpu",
    ]
    limit = [] if args.limit is None else ["--limit", str(args.limit)]
    if not out.exists():
        began = time.monotonic()
        run([*words, *limit, "--output_path", str(out), "--log_samples"])
        (out / "seconds").write_text(f"{time.monotonic() - began:.0f}")
    (path,) = out.glob("*/results_*.json")
    record = json.loads(path.read_text())
    samples = {
        file.name.removeprefix("samples_").rsplit("_", 1)[0]: [
            json.loads(line) for line in file.read_text().splitlines()
        ]
        for file in sorted(path.parent.glob("samples_*.jsonl"))
    }
    places = {str(args.work): "WORK", str(args.data): "DATA", str(FOLDER): "EMBEDDED_BASE"}
    command = " ".join(["python", *words, *limit])
    for place, shown in places.items():
        command = command.replace(place, shown)
    kept = (
        "results",
        "groups",
        "n-samples",
        "n-shot",
        "versions",
        "max_length",
        "lm_eval_version",
        "transformers_version",
    )
    seconds = int((out / "seconds").read_text())
    return {
        "command": command,
        "seconds": seconds,
        **{key: record[key] for key in kept if key in record},
    }, samples


def compare(
    first: dict[str, Any], second: dict[str, Any], samples: Sequence[dict[str, list[dict[str, Any]]]]
) -> dict[str, Any]:
    """The largest difference of two runs, of any score and of any log-likelihood."""
    scores = {
        f"{task} {score}": abs(value - second["results"][task][score])
        for task, row in first["results"].items()
        for score, value in row.items()
        if isinstance(value, float)
    }
    if samples[0].keys() != samples[1].keys():
        raise SystemExit(
            f"the two runs did not answer the same tasks: {sorted(samples[0].keys() ^ samples[1].keys())}"
        )
    gaps, greedy_differ, questions = [], 0, 0
    for task in samples[0]:
        one, other = ({sample["doc_id"]: sample for sample in some[task]} for some in samples)
        for number, sample in one.items():
            pairs = list(zip(sample["filtered_resps"], other[number]["filtered_resps"], strict=True))
            gaps += [abs(float(a[0]) - float(b[0])) for a, b in pairs]
            greedy_differ += sum(str(a[1]) != str(b[1]) for a, b in pairs)
            questions += 1
    worst = max(scores, key=lambda name: scores[name])
    return {
        "scores": len(scores),
        "largest_score_difference": scores[worst],
        "at": worst,
        "questions": questions,
        "log_likelihoods": len(gaps),
        "largest_log_likelihood_difference_nats": max(gaps),
        "greedy_answers_that_differ": greedy_differ,
        "must_be_at_most": MUST,
        "holds": max(scores[worst], *gaps) <= MUST,
    }


def write(path: Path, record: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record, indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--data", type=Path, required=True, metavar="DIR", help="folder with the data sets, see docs/data.md"
    )
    parser.add_argument(
        "--work",
        type=Path,
        default=Path("runs/lm-eval"),
        help="for ensembles, task files and samples; kept for the next run",
    )
    parser.add_argument("--out", type=Path, default=Path("results/lm-eval"))
    parser.add_argument("--limit", type=int, metavar="N", help="only the first N questions of each task")
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    train(1, args.work / "one")
    train(3, args.work / "three")
    if not (args.work / "tasks").exists():
        write_local_tasks(args.data, args.work / "tasks")
    ours = ["-m", "lora_ensembles.integrations.lm_eval", "run", "--model", "lora-ensembles", "--model_args"]
    theirs = [
        "-m",
        "lm_eval",
        "run",
        "--model",
        "hf",
        "--model_args",
        f"pretrained={FOLDER},peft={args.work / 'one' / 'member_000'}",
    ]
    one, one_samples = evaluate([*ours, f"pretrained={args.work / 'one'}"], args, "one-member")
    peft, peft_samples = evaluate(theirs, args, "hf-peft")
    three, _ = evaluate([*ours, f"pretrained={args.work / 'three'}"], args, "three-members")
    parity = {
        **compare(one, peft, (one_samples, peft_samples)),
        "limit": args.limit,
        "environment": environment(),
    }
    for name, record in {
        "one-member": one,
        "hf-peft": peft,
        "three-members": three,
        "parity": parity,
    }.items():
        write(args.out / f"{name}.json", record)
    print(json.dumps(parity))
    sys.exit(not parity["holds"])


if __name__ == "__main__":
    main()
