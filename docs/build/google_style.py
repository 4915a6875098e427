"""Docstrings of this package in Google's style: an `Example:` is code, and `a, b: text` describes both."""

from __future__ import annotations

import re

SHARED = re.compile(r"^(?P<indent> +)(?P<names>\w+(?:, \w+)+): (?P<text>.*(?:\n(?P=indent) +.*)*)", re.M)


def in_google_style(docstring: str) -> str:
    """A docstring whose examples are a section of code, and whose arguments are described one by one."""
    docstring = re.sub(r"^Example:$", "Examples:", docstring, flags=re.M)
    return SHARED.sub(_one_by_one, docstring)


def _one_by_one(match: re.Match[str]) -> str:
    names = match["names"].split(", ")
    return "\n".join(f"{match['indent']}{name}: {match['text']}" for name in names)
