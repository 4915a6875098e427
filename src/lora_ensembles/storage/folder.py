"""An ensemble on disk and on the hub: `ensemble.json`, a model card, and one plain PEFT adapter folder a
member.
"""

from __future__ import annotations

import copy
import hashlib
import json
import os
import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from peft import LoraConfig
from torch import nn

from ..calibration.calibrated import HeldOut
from ..disk.atomic import file_written_aside, written_aside
from ..disk.layout import ENSEMBLE_FILE, names_a_folder
from ..errors import (
    AdapterError,
    CheckpointError,
    ConfigError,
    DataError,
)
from ..heads import head_of
from ..heads.resolve import base_kind
from ..passes.stacked_model import StackedModel
from ..stack.adapters import read_adapter, read_adapter_config, write_adapter
from ..stack.head_config import HeadConfig, LabelScore
from ..stack.info import EnsembleInfo
from ..stack.quantised import is_plain, is_quantised, linear_layers
from ..stack.seeds import MemberSeeds
from ..stack.sharding.layout import whole
from ..stack.sites import MemberWeights
from .calibration import read_calibration, write_held_out
from .description import FORMAT_VERSION, read_description
from .hub import ensemble_folder
from .model_card import render_model_card

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


# Of PEFT, which loads a member's base by it; it has none for multiple choice.
TASK_TYPES = {"causal-lm": "CAUSAL_LM", "sequence-classification": "SEQ_CLS"}


@dataclass(frozen=True)
class SavedEnsemble:
    """The contents of `ensemble.json` and of the member folders."""

    base_name: str
    base_revision: str | None
    base_fingerprint: str
    base_folder: (
        str | None
    )  # from the ensemble's folder to the base's, where the base was one and its name relative
    adapter: LoraConfig
    weights: list[MemberWeights]
    seeds: list[tuple[int, int]]
    seed: int
    vary: list[str]
    next_index: int
    overlong: Literal["error", "left"]
    label_score: LabelScore
    task: dict[str, Any]
    head: dict[str, Any]  # the fields of a HeadConfig
    base_kind: str  # of the base's class and
    num_labels: int | None  # of its head; see embedded.load_base
    dtype: str | None  # in which the base was when the ensemble was saved, or trained
    quantization: dict[str, Any] | None  # how the base was quantised then, as it was loaded or stored
    calibrated: HeldOut | None  # None also where only some members are read: it is that of all


def fingerprint(base: nn.Module, *, apart_from: Collection[str] = ()) -> str:
    """Two short hashes that tell one base from another, the same in every precision that rounds to bf16:
    "1b2c...-9f8e...".

    `apart_from` names parameters that the members own, which a base may have in any state.

    They cover names, shapes and first values of parameters: the first of those that quantisation leaves alone
    (one axis, and the embedding), the second of all others. A quantised base has the first only.
    """
    embedding = getattr(base.get_input_embeddings(), "weight", None)  # type: ignore[operator]
    quantised = {name for name, layer in linear_layers(base) if is_quantised(layer)}
    kept, rounded = hashlib.sha256(), hashlib.sha256()
    plain = not quantised
    for full_name, parameter in base.named_parameters():
        name = full_name.replace(".base_layer", "")
        if ".lora_" in name or ".head_" in name or name in apart_from:
            continue
        owner, _, own = name.rpartition(".")
        if not is_plain(parameter):
            plain = False
        elif owner not in quantised or own == "bias":  # the others are scales
            sample = whole(parameter.detach()).flatten()[:256].to(torch.bfloat16).float().cpu()
            digest = kept if parameter.dim() == 1 or parameter is embedding else rounded
            digest.update(f"{name} {tuple(parameter.shape)}".encode() + sample.numpy().tobytes())
    return f"{kept.hexdigest()[:12]}-{rounded.hexdigest()[:12]}" if plain else kept.hexdigest()[:12]


def _same_base(first: str, second: str) -> bool:
    return all(left == right for left, right in zip(first.split("-"), second.split("-"), strict=False))


def member_folder(index: int) -> str:
    return f"member_{index:03d}"


def write_members(
    ensemble: StackedModel,
    folder: Path,
    *,
    home: Path | None,
    dtype: torch.dtype = torch.float32,
    kept: HeldOut | None = None,
    members: Iterable[MemberWeights] | None = None,
) -> None:
    """`ensemble.json`, `README.md`, the member folders and the calibration, into an existing folder that will
    stand at `home`; None: anywhere. `members` are those of the ensemble, where they were gathered before.
    """
    config = copy.deepcopy(ensemble.adapter)
    config.base_model_name_or_path = base_name(ensemble.base)
    config.task_type = config.task_type or TASK_TYPES.get(base_kind(ensemble.base))
    for index, weights in enumerate(ensemble.stack.every_member() if members is None else members):
        write_adapter(folder / member_folder(index), weights, config, dtype=dtype)
    calibration = None if kept is None else write_held_out(folder, kept)
    for name, text in _descriptions(ensemble, home, calibration=calibration).items():
        (folder / name).write_text(text, encoding="utf-8")


def update_info(ensemble: StackedModel, path: Path) -> None:
    """Rewrite `ensemble.json` and `README.md` of a saved ensemble after its `info` changed; its members stay
    untouched.

    Raises:
        CheckpointError: `path` holds no ensemble, or one of another number of members, or cannot be written.
    """
    ensemble.stack.sharding.ranks.on_first(lambda: _update_info(ensemble, path))


def _update_info(ensemble: StackedModel, path: Path) -> None:
    before = read_description(path)
    saved = len(before["members"])
    if saved != ensemble.members_in_all:
        raise CheckpointError(
            f"{path} holds {saved} members, the ensemble has {ensemble.members_in_all}; "
            "save it to a folder of its own"
        )
    for name, text in _descriptions(ensemble, path, calibration=before.get("calibration")).items():
        with file_written_aside(path / name, replace=True) as file:
            file.write(text)


def _descriptions(
    ensemble: StackedModel, home: Path | None, *, calibration: dict[str, Any] | None = None
) -> dict[str, str]:
    """The text of the files that describe an ensemble, by name; `ensemble.json` last, since a folder that has
    it is complete.
    """
    base, info = ensemble.base, ensemble.info
    content: dict[str, Any] = {
        "format_version": FORMAT_VERSION,
        "base": {"name": base_name(base), "revision": _revision(base), "fingerprint": ensemble.fingerprint}
        | precision(base),
        "seed": info.seed,
        "vary": list(info.vary),
        "next_index": info.next_index,
        "overlong": info.overlong,
        "label_score": info.label_score,
        "members": [
            {"folder": member_folder(index), "init_seed": seeds.init, "order_seed": seeds.order}
            for index, seeds in enumerate(info.seeds)
        ],
        "task": info.task,
    }
    beside = None if home is None else _path_to_base(base, home)
    if beside is not None:
        content["base"]["folder"] = beside
    head = head_of(info.head).description(base)
    content["base"] |= head.pop("base", {})
    content |= head | ({} if calibration is None else {"calibration": calibration})
    return {
        "README.md": render_model_card(base_name(base), members=ensemble.members_in_all, task=info.task),
        ENSEMBLE_FILE: json.dumps(content, indent=2) + "\n",
    }


def write_ensemble(
    ensemble: StackedModel, path: Path, *, dtype: torch.dtype = torch.float32, kept: HeldOut | None = None
) -> None:
    """The ensemble at `path`, whole or not at all; of a base over several ranks, all call it, and the first
    writes.

    Raises:
        CheckpointError: `path` exists, or cannot be written.
    """
    members = ensemble.stack.every_member()

    def write() -> None:
        with written_aside(path) as folder:
            write_members(ensemble, folder, home=path, dtype=dtype, kept=kept, members=members)

    ensemble.stack.sharding.ranks.on_first(write)


def read_ensemble(path: Path, *, members: Sequence[int] | None = None) -> SavedEnsemble:
    """The ensemble that `write_ensemble` wrote, or some of its members.

    Raises:
        CheckpointError: the folder or a member is missing, corrupt, or of a newer format.
        ConfigError: `members` asks for one that is not there.
    """
    path = ensemble_folder(path)
    content = read_description(path)
    listed, base = content["members"], content["base"]
    chosen = list(range(len(listed))) if members is None else list(members)
    if (
        not chosen
        or len(set(chosen)) != len(chosen)
        or any(index not in range(len(listed)) for index in chosen)
    ):
        raise ConfigError(
            f"members {chosen} of {path}; it holds members 0 to {len(listed) - 1}: "
            "pass some of them, none twice"
        )
    folders = [path / listed[index]["folder"] for index in chosen]
    head = content.get("head", {"kind": "causal-lm"})
    configs = [read_adapter_config(folder, head=head["kind"] != "causal-lm") for folder in folders]
    return SavedEnsemble(
        base_name=base["name"],
        base_revision=base["revision"],
        base_fingerprint=base["fingerprint"],
        base_folder=base.get("folder"),
        adapter=configs[0],
        weights=[read_adapter(folder, config) for folder, config in zip(folders, configs, strict=True)],
        seeds=[(listed[index]["init_seed"], listed[index]["order_seed"]) for index in chosen],
        seed=content["seed"],
        vary=content["vary"],
        next_index=content["next_index"],
        overlong=content["overlong"],
        label_score=content.get("label_score", "sum"),
        task=content["task"],
        head=head | {"classes": tuple(head.get("classes", ()))},
        base_kind=base.get("kind", "causal-lm"),
        num_labels=base.get("num_labels"),
        dtype=base.get("dtype") or content["task"].get("dtype"),
        quantization=base.get("quantization"),
        calibrated=read_calibration(path, content) if members is None else None,
    )


def info_of(saved: SavedEnsemble) -> EnsembleInfo:
    """The memory that was saved."""
    seeds = tuple(MemberSeeds(*pair) for pair in saved.seeds)
    head = HeadConfig(**saved.head)
    return EnsembleInfo(
        saved.seed,
        tuple(saved.vary),
        saved.next_index,
        seeds,
        saved.overlong,
        saved.task,
        head,
        saved.label_score,
    )


def base_source(path: Path, saved: SavedEnsemble) -> str:
    """The name or folder to load a saved ensemble's base by, wherever the program is called from.

    A folder with a relative name is looked for from the ensemble's own folder, then from the present one.

    Raises:
        DataError: it was a folder, and is in neither place.
    """
    places = [saved.base_name]
    if saved.base_folder is not None:
        places.insert(
            0, os.path.normpath(os.path.join(os.path.realpath(ensemble_folder(path)), saved.base_folder))
        )
    elif not names_a_folder(saved.base_name):
        return saved.base_name
    for place in places:
        if os.path.isdir(place):
            return place
    raise DataError(
        f"the base of {path} was the folder {saved.base_name!r}, which is not found "
        f"({', '.join(map(os.path.abspath, places))}); pass base= and tokenizer="
    )


def load_recorded_base(path: Path, saved: SavedEnsemble) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The base of a saved ensemble by its recorded name, in the dtype it was saved with and quantised as it
    was, and its tokenizer.

    Raises:
        DataError: it cannot be loaded.
    """
    from ..embedded import load_base

    return load_base(
        base_source(path, saved),
        revision=saved.base_revision,
        dtype=saved.dtype,
        head=saved.base_kind,
        num_labels=saved.num_labels,
        quantization=saved.quantization,
    )


def _path_to_base(base: nn.Module, home: Path) -> str | None:
    """The way from an ensemble's folder to its base's, where the base has a relative name."""
    name = base_name(base)
    if not name or os.path.isabs(name) or not os.path.isdir(name):
        return None
    try:
        return Path(os.path.relpath(os.path.realpath(name), os.path.realpath(home))).as_posix()
    except ValueError:  # on another drive
        return None


def check_fingerprint(base: nn.Module, saved: SavedEnsemble) -> None:
    """Refuse a base that the members were not trained on."""
    actual = fingerprint(base, apart_from=saved.weights[0].head)
    if not _same_base(actual, saved.base_fingerprint):
        raise AdapterError(
            f"the ensemble was trained on base {saved.base_name!r} (fingerprint {saved.base_fingerprint}), "
            f"the base given is {base_name(base)!r} ({actual}); load the right base, "
            "or pass check_base=False if they are meant to differ"
        )


def read_members(
    paths: Sequence[str | Path] | str | Path, base: nn.Module, *, check_base: bool, head: bool = False
) -> tuple[LoraConfig, list[MemberWeights]]:
    """Adapters trained elsewhere: the first one's config, and the weights of all; `head` says whether they
    may hold heads.

    Raises:
        ConfigError: no path is given, or one twice.
        CheckpointError: a folder holds no readable adapter.
        AdapterError: an adapter names another base.
    """
    folders = [Path(path) for path in ([paths] if isinstance(paths, str | Path) else paths)]
    if not folders or len({path.resolve() for path in folders}) != len(folders):
        raise ConfigError(
            f"from_adapters got {[str(path) for path in folders]}; pass at least one adapter folder, "
            "and none twice"
        )
    configs = [read_adapter_config(path, head=head) for path in folders]
    for path, config in zip(folders, configs, strict=True):
        named = config.base_model_name_or_path
        if check_base and named and last_part(named) != last_part(base_name(base)):
            raise AdapterError(
                f"{path} was trained on base {named!r}, the base given is {base_name(base)!r}; "
                "load that base, or pass check_base=False if it is the same model under another name"
            )
    return configs[0], [read_adapter(path, config) for path, config in zip(folders, configs, strict=True)]


def precision(base: Any) -> dict[str, Any]:
    """The dtype that a base is loaded in again, where it is one of those that a base can be asked for in, and
    its quantisation, where it has one.
    """
    name = str(base.dtype).removeprefix("torch.")
    config = getattr(base.config, "quantization_config", None)
    fields = config if isinstance(config, dict | None) else config.to_dict()
    found = {"dtype": name} if name in ("float32", "bfloat16", "float16") else {}
    return found | ({"quantization": json.loads(json.dumps(fields, default=str))} if fields else {})


def base_name(base: nn.Module) -> str:
    """The hub name or path from which a base was loaded; "" for one that was built in code."""
    return str(getattr(base.config, "_name_or_path", "") or "")


def last_part(name: str) -> str:
    """The name of a base without what it lies in.

    Example:
        >>> last_part("meta-llama/Llama-3.1-8B")
        'Llama-3.1-8B'
    """
    return re.split(r"[/\\]", name.rstrip("/\\"))[-1]


def _revision(base: nn.Module) -> str | None:
    return getattr(base.config, "_commit_hash", None)
