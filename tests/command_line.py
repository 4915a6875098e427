"""What tests of the command line share: a base in a folder, and a call that returns what a shell
would see.
"""

from __future__ import annotations

import atexit
import functools
import json
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from lora_ensembles.cli import main
from lora_ensembles.data.world.world import build_world
from lora_ensembles.embedded.pretrain import Recipe, build_model, build_tokenizer


@functools.cache
def base_folder() -> str:
    """A folder with an untrained base of the embedded one's kind, small enough to train in a second, that
    reads any text.
    """
    folder = tempfile.mkdtemp(prefix="tiny-base-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    tokenizer = build_tokenizer(build_world())
    build_model(Recipe(hidden_size=32, layers=2, mlp_size=32), tokenizer).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@dataclass(frozen=True)
class Outcome:
    """Exit code, and the two streams."""

    code: int
    out: str
    err: str

    @property
    def summary(self) -> dict[str, Any]:
        """The last line of standard output."""
        content: dict[str, Any] = json.loads(self.out.splitlines()[-1])
        return content


def call(capsys: pytest.CaptureFixture[str], *words: str | Path | int) -> Outcome:
    """Run the command line in this process."""
    capsys.readouterr()
    code = main([str(word) for word in words])
    streams = capsys.readouterr()
    return Outcome(code, streams.out, streams.err)


def shell_words(command: str) -> list[str]:
    """The words of a command as bash reads its quotes and comments."""
    done = subprocess.run(
        ["bash", "-c", f"printf '%s\\0' {command}"], capture_output=True, text=True, check=True
    )
    return done.stdout.split("\0")[:-1]
