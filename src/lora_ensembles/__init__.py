"""LoRA ensembles: fine-tune a language model into an ensemble of adapters on one frozen base, and know what
it does not know.
"""

from __future__ import annotations

import ast
from importlib.util import find_spec
from pathlib import Path


def _homes() -> dict[str, str]:
    """Each public name and the module it is defined in, as the stub beside this file says."""
    stub = ast.parse(Path(__file__).with_suffix(".pyi").read_text(encoding="utf-8"))
    imports = (node for node in stub.body if isinstance(node, ast.ImportFrom))
    return {alias.name: node.module or "" for node in imports for alias in node.names}


# A name is loaded when it is first used: torch and transformers take seconds, which `lora-ensembles --help`
# or an error in a flag should not wait for.
_HOME_OF = _homes()
# Names whose home can only be imported with another package; without it `import *` leaves them out, and
# asking for one says what to install.
_NEEDED_BY = {"LoraEnsembleClassifier": "sklearn"}
__all__ = sorted(  # noqa: PLE0605
    name for name in _HOME_OF if name not in _NEEDED_BY or find_spec(_NEEDED_BY[name])
)


def __getattr__(name: str) -> object:
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    # as `from home import name` does it, so that a name may be a module
    value = getattr(__import__(f"{__name__}.{_HOME_OF[name]}", fromlist=[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
