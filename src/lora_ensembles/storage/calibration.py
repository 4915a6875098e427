"""The calibration of a saved ensemble: its numbers in `ensemble.json`, and beside it the members' predictions
on the held-out examples.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from ..calibration.calibrated import HeldOut
from ..calibration.scaling import Calibration
from ..disk.atomic import bytes_written_aside, check_readable, file_written_aside
from ..disk.layout import ENSEMBLE_FILE, HELD_OUT_FILE
from ..errors import CheckpointError, LoraEnsemblesError
from ..prediction.prediction import Prediction
from .description import read_description


def held_out_file(kept: HeldOut) -> tuple[str, bytes]:
    """Name and content of the file of the predictions on held-out examples."""
    prediction = kept.prediction
    tensors = {
        "member_log_probs": prediction.member_log_probs.contiguous(),
        "targets": prediction.labelled_targets("calibration").contiguous(),
    }
    if prediction.target_probs is not None:
        tensors["target_probs"] = prediction.target_probs.contiguous()
    more = {"types": json.dumps(prediction.types)} if prediction.types else {}
    said = {
        **more,
        "ids": json.dumps(prediction.ids),
        "marks": json.dumps(dict(kept.marks)),
        "source": kept.source,
    }
    content = save(tensors, metadata={"format": "pt", **said})
    return HELD_OUT_FILE.format(hashlib.sha256(content).hexdigest()[:12]), content


def write_held_out(path: Path, kept: HeldOut) -> dict[str, Any]:
    """Write the predictions on held-out examples; returns the entry in `ensemble.json`."""
    name, content = held_out_file(kept)
    bytes_written_aside(path / name, content)
    more = {"source": kept.source, "held_out": name, "order_passes": kept.order_passes}
    return kept.calibration.to_dict() | more


def write_calibration(path: Path, kept: HeldOut) -> None:
    """Put a calibration into a saved ensemble, in place of one that is there; its members stay untouched.

    Raises:
        CheckpointError: `path` holds no ensemble of as many members, or cannot be written.
    """
    content = read_description(path)
    if len(content["members"]) != kept.prediction.num_members:
        raise CheckpointError(
            f"{path} holds {len(content['members'])} members, and {kept.prediction.num_members} were "
            "calibrated; calibrate the whole ensemble"
        )
    before = content.get("calibration", {}).get("held_out")
    content["calibration"] = write_held_out(path, kept)
    with file_written_aside(path / ENSEMBLE_FILE, replace=True) as file:
        file.write(json.dumps(content, indent=2) + "\n")
    if before not in (None, content["calibration"]["held_out"]):
        (path / before).unlink(missing_ok=True)


def read_calibration(path: Path, content: dict[str, Any]) -> HeldOut | None:
    """The calibration of the ensemble in a folder whose `ensemble.json` holds `content`; None where it has
    none.

    Raises:
        CheckpointError: its file is missing, corrupt, or of another ensemble.
    """
    numbers: dict[str, Any] | None = content.get("calibration")
    if numbers is None:
        return None
    file = path / numbers["held_out"]
    check_readable(file)
    try:
        with safe_open(file, framework="pt") as stored:
            said, names = stored.metadata() or {}, stored.keys()
            prediction = Prediction(
                stored.get_tensor("member_log_probs"),
                stored.get_tensor("targets"),
                tuple(json.loads(said["ids"])),
                types=tuple(json.loads(said.get("types", "[]"))),
                target_probs=stored.get_tensor("target_probs") if "target_probs" in names else None,
            )
            marks = dict(json.loads(said["marks"]))
    except (SafetensorError, LoraEnsemblesError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{file} is corrupt ({error}); calibrate the ensemble again") from error
    if prediction.num_members != len(content["members"]):
        raise CheckpointError(
            f"{file} is of {prediction.num_members} members, and the ensemble has {len(content['members'])}; "
            "calibrate it again"
        )
    return HeldOut(
        prediction,
        Calibration.from_dict(numbers),
        marks,
        said.get("source", ""),
        numbers.get("order_passes", 1),
    )
