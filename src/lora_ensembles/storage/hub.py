"""The folder of an ensemble: on this machine, or on the Hugging Face hub."""

from __future__ import annotations

import os
import re
from pathlib import Path

from ..errors import CheckpointError

_REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")


def ensemble_folder(name: str | Path, *, revision: str | None = None) -> Path:
    """The folder of an ensemble: the one of this name here, else a copy of the repository "owner/name" of the
    hub.

    Raises:
        CheckpointError: neither is there; or the hub cannot be reached and no copy is kept here.

    Example:
        >>> ensemble_folder("runs") == Path("runs")
        True
    """
    path, text = Path(name), os.fspath(name)
    parts = path.parts
    if os.path.lexists(path) or not _REPOSITORY.fullmatch(text) or parts[0] in (".", "..") or len(parts) != 2:
        return path
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError

    try:
        return Path(snapshot_download(text, revision=revision, etag_timeout=10))
    except HFValidationError:
        return path
    # The hub's own classes, those of its HTTP client, and built-in ones; all mean the same to a caller.
    except Exception as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise CheckpointError(
            f"{text} is no folder here, and no ensemble of the Hugging Face hub that can be downloaded "
            f"({reason}); correct the name, or look whether there is a network, and a token that may read it"
        ) from error
