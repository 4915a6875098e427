"""The settings of the plugin: which ensembles, from vLLM's configuration or the environment."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from lora_ensembles.errors import ConfigError, unknown_name

VARIABLE = "LORA_ENSEMBLES_FOLDERS"
KEY = "lora_ensembles"  # of vLLM's --additional-config
EXAMPLE = '{"lora_ensembles": {"folders": ["runs/decisions"]}}'


@dataclass(frozen=True)
class Settings:
    """The ensembles that are served.

    Attributes:
        folders: that `save_pretrained` wrote; each is a model under its own name.
        check_base: whether vLLM's model must have the name of the base that the members were trained on.
    """

    folders: tuple[Path, ...]
    check_base: bool = True


def read_settings(additional_config: object, environment: Mapping[str, str] | None = None) -> Settings:
    """The settings in vLLM's `--additional-config`, or else the folders in the environment variable
    `LORA_ENSEMBLES_FOLDERS`, with the separator of paths between them.

    Args:
        additional_config: as vLLM's configuration has it.
        environment: the variables; None: of this process.

    Raises:
        ConfigError: no folder in either place, or a setting that there is not.

    Example:
        >>> settings = read_settings({"lora_ensembles": {"folders": ["runs/decisions"]}})
        >>> settings.folders[0].name, settings.check_base
        ('decisions', True)
    """
    given = additional_config.get(KEY) if isinstance(additional_config, Mapping) else None
    if given is not None:
        return _from_config(given)
    environment = os.environ if environment is None else environment
    folders = [name for name in environment.get(VARIABLE, "").split(os.pathsep) if name.strip()]
    if not folders:
        raise ConfigError(
            f"no ensemble to serve; set {VARIABLE} to the folder of one, "
            f"or pass --additional-config '{EXAMPLE}'"
        )
    return Settings(tuple(Path(name.strip()) for name in folders))


def _from_config(given: Any) -> Settings:
    known = [field.name for field in fields(Settings)]
    if not isinstance(given, Mapping):
        raise ConfigError(f"--additional-config: {KEY} is a {type(given).__name__}; write it as {EXAMPLE}")
    unknown = next((name for name in given if name not in known), None)
    if unknown is not None:
        raise ConfigError(f"--additional-config: {unknown_name('setting', str(unknown), known)}")
    folders, check_base = given.get("folders"), given.get("check_base", True)
    listed = [folders] if isinstance(folders, str) else folders
    if not isinstance(listed, list) or not listed or not all(isinstance(name, str) for name in listed):
        raise ConfigError(f"--additional-config: folders is {folders!r}; write it as {EXAMPLE}")
    if not isinstance(check_base, bool):
        raise ConfigError(f"--additional-config: check_base is {check_base!r}; it is true or false")
    return Settings(tuple(map(Path, listed)), check_base)
