"""What a user waits for before anything is computed: `python benchmarks/startup.py --json`.

  imports   every public name of `lora_ensembles` over the five libraries that it needs, each in an
            interpreter of its own; `import lora_ensembles` by itself loads none of them
  help      `lora-ensembles --help`, in seconds
  adapter   a member of LLaMA-13B's shape (query and value projections, rank 8, 26 MB in fp32) put into an
            ensemble as it runs, in seconds; its file was written just before, so it comes from memory

The base of the last row has that model's layers, all of one shape with the same weights, which loading an
adapter does not read.
"""

from __future__ import annotations

import argparse
import functools
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from timing import WINDOWS, add_record_flags, end_with, interleaved, ratio_lines, rounded
from transformers import AutoModelForCausalLM, PreTrainedModel
from workloads import SHAPES, Shape, config_of, tokenizer

from lora_ensembles import LoraEnsemble

LIBRARIES = ("torch", "transformers", "peft", "datasets", "torchmetrics")
# transformers loads next to nothing before something is asked of it, and every program that trains asks for
# these.
USED = (
    "from transformers import PreTrainedModel, PreTrainedTokenizerBase; "
    "from peft import LoraConfig, PeftConfig"
)
PACKAGE = "import lora_ensembles as package; [getattr(package, name) for name in package.__all__]"
AT_MOST = {"imports": 1.05, "help": 1.0, "adapter": 0.2}


def run(*command: str) -> None:
    """A fresh interpreter, to its end."""
    subprocess.run([sys.executable, *command], check=True, stdout=subprocess.DEVNULL)


def interpreters(windows: int) -> dict[str, float]:
    """Median seconds of a fresh interpreter that imports the libraries, the package, or shows the help."""
    libraries = f"import {', '.join(LIBRARIES)}; {USED}"
    arms = {
        "libraries": functools.partial(run, "-c", libraries),
        "package": functools.partial(run, "-c", PACKAGE),
        "bare": functools.partial(run, "-c", "import lora_ensembles"),
        "help": functools.partial(run, "-m", "lora_ensembles.cli", "--help"),
    }
    return interleaved(arms, windows=windows, warm=windows > 1)


def shared_base(shape: Shape) -> PreTrainedModel:
    """A model whose layers share one tensor for each shape of weight: a large model's structure in a small
    model's memory.
    """
    with torch.device("meta"):
        base: Any = AutoModelForCausalLM.from_config(config_of(shape))
    made: dict[tuple[int, ...], torch.Tensor] = {}
    for module in base.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            size = tuple(parameter.shape)
            made.setdefault(size, torch.full(size, 0.01))
            setattr(module, name, torch.nn.Parameter(made[size], requires_grad=False))
    return base


def adapter_seconds(name: str, *, windows: int) -> list[float]:
    """Seconds that each of `windows` members takes to be loaded into an ensemble as it runs, one after
    another.
    """
    shape = SHAPES[name]
    base, words = shared_base(shape), tokenizer(shape.vocabulary)
    seconds = []
    with tempfile.TemporaryDirectory() as folder:
        ensemble = LoraEnsemble(base, words, num_members=1)
        ensemble.save_pretrained(Path(folder) / "saved")
        member = Path(folder) / "saved" / "member_000"
        for _ in range(windows):
            begin = time.perf_counter()
            ensemble.load_members([member], check_base=False)
            seconds.append(time.perf_counter() - begin)
    return seconds


def measure(name: str, *, windows: int = WINDOWS) -> dict[str, Any]:
    """The row: medians of interpreters, and the slowest load of an adapter."""
    seconds = interpreters(windows)
    loads = adapter_seconds(name, windows=windows)
    ratios = {
        "imports": seconds["package"] / seconds["libraries"],
        "help": seconds["help"],
        "adapter": statistics.median(loads),
    }
    ok = all(ratios[one] <= most for one, most in AT_MOST.items())
    row = {
        "id": "startup",
        "adapter_of": dict(vars(SHAPES[name])),
        "seconds": {**seconds, "adapters": loads},
        "ratios": ratios,
    }
    return {**row, "must": {}, "at_most": AT_MOST, "ok": ok}


def shown(row: dict[str, Any]) -> str:
    """The row for a reader."""
    seconds = row["seconds"]
    lines = [
        f"start-up: libraries {seconds['libraries']:.2f} s, package {seconds['package']:.2f} s, "
        f"`import lora_ensembles` alone {seconds['bare']:.2f} s, help {seconds['help']:.2f} s"
    ]
    lines.append(f"  adapters, one after another: {', '.join(f'{one:.3f}' for one in seconds['adapters'])} s")
    return "\n".join([*lines, *ratio_lines(row), f"  {'ok' if row['ok'] else 'NOT ok'}"])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--profile",
        choices=["13B", "tiny"],
        default="13B",
        help="shape of the model that adapters are loaded into",
    )
    parser.add_argument("--windows", type=int, default=WINDOWS, help="interleaved runs of every arm")
    add_record_flags(parser)
    arguments = parser.parse_args()
    row = rounded(measure(arguments.profile, windows=arguments.windows))
    print(shown(row))
    end_with({"rows": [row]}, arguments)


if __name__ == "__main__":
    main()
