"""The number of operators of a stacked layer stays within its limits and does not depend on the number of
members.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]


def test_stacked_layer_stays_within_its_operator_limits_for_1_and_16_members():
    command = [sys.executable, "benchmarks/operators.py", "--json"]
    output = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True).stdout
    result = json.loads(output.splitlines()[-1])
    assert result["m1"] == result["m16"]
    assert result["m1"]["forward"] <= 45
    assert result["m1"]["backward"] <= 80
