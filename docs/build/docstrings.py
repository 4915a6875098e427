"""The package's docstrings, as griffe reads them for the API reference."""

from __future__ import annotations

from typing import Any

from google_style import in_google_style
from griffe import Extension, Object


class HouseStyle(Extension):
    """Rewrites each docstring before its sections are parsed."""

    def on_object(self, *, obj: Object, **_: Any) -> None:
        """Called by griffe for every module, class, function and attribute it has loaded."""
        if obj.docstring is not None:
            obj.docstring.value = in_google_style(obj.docstring.value)
