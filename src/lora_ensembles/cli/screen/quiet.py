"""Messages of other libraries that read like a broken install and are none, kept from the first screen of a
verb.
"""

from __future__ import annotations

import logging

# bitsandbytes says this on every import without the package `kernels`, which nothing here needs; peft imports
# it where it is installed.
KERNELS = "bitsandbytes.backends.cpu.ops", "Failed to load CPU gemm_4bit_forward from kernels-community"


def hush() -> None:
    """Keep that one message of that one logger back."""
    logger = logging.getLogger(KERNELS[0])
    if _is_wanted not in logger.filters:
        logger.addFilter(_is_wanted)


def _is_wanted(record: logging.LogRecord) -> bool:
    return not str(record.msg).startswith(KERNELS[1])
