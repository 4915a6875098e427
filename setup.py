"""The README as the package index shows it: links and pictures lead to the repository.

All else is in pyproject.toml.
"""

import re
from pathlib import Path

from setuptools import setup

FILES = "https://github.com/lora-ensembles/lora-ensembles/blob/main/"
PICTURES = "https://raw.githubusercontent.com/lora-ensembles/lora-ensembles/main/"


def absolute(readme: str) -> str:
    """The README with absolute addresses."""
    pictured = re.sub(r"(!\[[^]]*\])\((?!https?:)", rf"\1({PICTURES}", readme)
    return re.sub(r"(\])\((?!https?:|#)", rf"\1({FILES}", pictured)


if __name__ == "__main__":
    setup(
        long_description=absolute((Path(__file__).parent / "README.md").read_text(encoding="utf-8")),
        long_description_content_type="text/markdown",
    )
