"""`python -m lora_ensembles`: the command line without its installed script, as torchrun starts it."""

from __future__ import annotations

import sys

from .cli import main

if __name__ == "__main__":
    sys.exit(main())
