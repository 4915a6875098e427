"""An ensemble to the Hugging Face hub."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from ..calibration.calibrated import HeldOut
from ..errors import ConfigError, LoraEnsemblesError
from ..passes.stacked_model import StackedModel
from .folder import write_members


def push_to_hub(
    ensemble: StackedModel, repo_id: str, *, private: bool, token: str | None, kept: HeldOut | None = None
) -> str:
    """Upload to the hub; returns the address of the commit."""
    from huggingface_hub import HfApi

    api = HfApi(token=token)
    members = ensemble.stack.every_member()

    def upload() -> str:
        with tempfile.TemporaryDirectory() as folder:
            write_members(ensemble, Path(folder), home=None, kept=kept, members=members)
            return _upload(api, folder, repo_id, private=private)

    return str(ensemble.stack.sharding.ranks.on_first(upload))


def _upload(api: Any, folder: str, repo_id: str, *, private: bool) -> str:
    from huggingface_hub.errors import HFValidationError

    try:
        api.create_repo(repo_id, private=private, exist_ok=True)
        return str(
            api.upload_folder(
                repo_id=repo_id, folder_path=folder, commit_message="Upload a LoRA ensemble"
            ).commit_url
        )
    except HFValidationError as error:
        raise ConfigError(f"{repo_id!r} is no repository name: {error}") from error
    # Its own classes, those of its HTTP client, and built-in ones; all mean the same to a caller.
    except Exception as error:
        raise LoraEnsemblesError(
            f"upload to {repo_id!r} failed: {error}; is there a network, and a token that may write?"
        ) from error
