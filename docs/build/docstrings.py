"""The house's docstrings as griffe reads them: an `Example:` is code, and `a, b: text` describes both."""

from __future__ import annotations

import re
from typing import Any

from griffe import Extension, Object

SHARED = re.compile(r"^(?P<indent> +)(?P<names>\w+(?:, \w+)+): (?P<text>.*(?:\n(?P=indent) +.*)*)", re.M)


class HouseStyle(Extension):
    """Rewrites each docstring before its sections are parsed."""

    def on_object(self, *, obj: Object, **_: Any) -> None:
        """Called by griffe for every module, class, function and attribute it has loaded."""
        if obj.docstring is not None:
            obj.docstring.value = in_google_style(obj.docstring.value)


def in_google_style(docstring: str) -> str:
    """A docstring whose examples are a section of code, and whose arguments are described one by one."""
    docstring = re.sub(r"^Example:$", "Examples:", docstring, flags=re.M)
    return SHARED.sub(_one_by_one, docstring)


def _one_by_one(match: re.Match[str]) -> str:
    names = match["names"].split(", ")
    return "\n".join(f"{match['indent']}{name}: {match['text']}" for name in names)
