"""The extra `serve`: whether its packages are there."""

from __future__ import annotations

from importlib.util import find_spec

from ..errors import MissingExtraError

PACKAGES = {"fastapi": "fastapi", "uvicorn": "uvicorn", "prometheus_client": "prometheus-client"}


def check_installed() -> None:
    """Refuse to serve without the packages of the extra.

    Raises:
        MissingExtraError: one is not installed.
    """
    missing = [name for module, name in PACKAGES.items() if find_spec(module) is None]
    if missing:
        raise MissingExtraError(
            f"the server needs {' and '.join(missing)}; install them by pip install 'lora-ensembles[serve]'"
        )
