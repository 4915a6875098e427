"""The command line: one thin module a verb, each a few calls of the library that a Python program could make
as well.

Nothing is imported here before `main` runs: whoever presses Ctrl-C at once gets a line, and no traceback of
half an import.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

INTERRUPTED = 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb; returns the exit code."""
    try:
        from .program import run

        return run(list(sys.argv[1:] if argv is None else argv))
    except KeyboardInterrupt:
        print("lora-ensembles: interrupted", file=sys.stderr)
        return INTERRUPTED
