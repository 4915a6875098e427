"""The package's docstrings, as griffe reads them for the API reference."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from griffe import Extension, Object

sys.path.insert(0, str(Path(__file__).parent))
from google_style import in_google_style


class HouseStyle(Extension):
    """Rewrites each docstring before its sections are parsed."""

    def on_object(self, *, obj: Object, **_: Any) -> None:
        """Called by griffe for every module, class, function and attribute it has loaded."""
        if obj.docstring is not None:
            obj.docstring.value = in_google_style(obj.docstring.value)
