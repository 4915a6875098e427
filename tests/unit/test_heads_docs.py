"""What docs/heads.md shows runs as it stands there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

TEXT = (Path(__file__).parents[2] / "docs" / "heads.md").read_text(encoding="utf-8")


def test_the_examples_run_one_after_the_other(capsys: pytest.CaptureFixture[str]) -> None:
    code = "\n".join(re.findall(r"```python\n(.*?)```", TEXT, re.S))
    exec(compile(code, "docs/heads.md", "exec"), {})
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "1.0"  # one word tells the class
    assert lines[1] == "torch.Size([3, 4, 4])"
    assert lines[-1] == "1.0"  # and the better of two answers
