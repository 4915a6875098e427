"""`python -m lora_ensembles.cli`: the command line without its installed script."""

from __future__ import annotations

import sys

from . import main

if __name__ == "__main__":
    sys.exit(main())
