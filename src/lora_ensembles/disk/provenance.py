"""Provenance of a result: versions, device, commit."""

from __future__ import annotations

import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

PACKAGES = ("lora-ensembles", "torch", "transformers", "peft", "datasets", "torchmetrics", "safetensors")


def environment(device: torch.device | str = "cpu") -> dict[str, Any]:
    """Versions, device, number of threads and, in a git checkout, the commit, as JSON-able values.

    Example:
        >>> environment()["versions"]["torch"] == torch.__version__
        True
    """
    kind = torch.device(device)
    return {
        # torch's own word names its build (+cpu, +cu124), which its package's version may leave out
        "versions": {name: _version(name) for name in PACKAGES} | {"torch": str(torch.__version__)},
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "device": torch.cuda.get_device_name(kind) if kind.type == "cuda" else kind.type,
        "threads": torch.get_num_threads(),
        "commit": _commit(),
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _commit() -> str | None:
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
