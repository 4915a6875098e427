"""`classifier.json`: what a classifier needs beside the ensemble in the same folder."""

from __future__ import annotations

import dataclasses
import json
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ...disk.layout import CLASSIFIER_FILE
from ...disk.schema import (
    anything,
    check,
    either,
    exactly,
    list_of,
    nullable,
    number,
    one_of,
    read_json,
    record,
    text,
    truth,
    whole,
)
from ...errors import CheckpointError, ConfigError
from ...stack.head_config import HeadConfig
from ...training.config import TrainConfig

FORMAT_VERSION = 1
ADVICE = "correct it, or save the classifier again"
# Of numpy, by which classes are compared; texts of any length are "str".
DTYPES = (
    *("str", "object", "bool", "int8", "int16", "int32", "int64"),
    *("uint8", "uint16", "uint32", "uint64", "float16", "float32", "float64"),
)


@dataclass(frozen=True)
class Saved:
    """The content of `classifier.json`.

    Attributes:
        parameters: of the constructor; `base` is a name or None, `adapter` whether there was one.
        classes: (C,) in the order of the scores.
        num_columns: 1 for texts, 2 for pairs.
        column_names: of the DataFrame that it was trained on, if it was one.
    """

    parameters: Mapping[str, Any]
    classes: np.ndarray
    num_columns: int
    column_names: tuple[str, ...] | None

    def text(self) -> str:
        """The file.

        Raises:
            ConfigError: classes that JSON cannot hold.
        """
        values = self.classes.tolist()
        wrong = [value for value in values if not isinstance(value, str | bool | int | float)]
        if wrong:
            raise ConfigError(
                f"class {wrong[0]!r} of type {type(wrong[0]).__name__} cannot be saved; "
                "train with texts, numbers or truth values as classes"
            )
        dtype = "str" if self.classes.dtype.kind == "U" else self.classes.dtype.name
        content = {
            "format_version": FORMAT_VERSION,
            "parameters": {name: _plain(value) for name, value in self.parameters.items()},
            "classes": {"dtype": dtype if dtype in DTYPES else "object", "values": values},
            "num_columns": self.num_columns,
            "column_names": self.column_names,
        }
        return json.dumps(content, indent=2) + "\n"

    @classmethod
    def read(cls, folder: Path, names: list[str]) -> Saved:
        """The file in a folder; `names` are those of the parameters.

        Raises:
            CheckpointError: there is none, or it is corrupt or of a newer format.
        """
        path = folder / CLASSIFIER_FILE
        if not path.is_file():
            raise CheckpointError(
                f"{folder} holds no {CLASSIFIER_FILE}, so no classifier was saved there; "
                "open an ensemble by LoraEnsemble.from_pretrained"
            )
        content = read_json(path)
        check(content, _schema(names), file=path, advice=ADVICE)
        parameters = dict(content["parameters"])
        if isinstance(parameters["head"], dict):
            fields = parameters["head"]
            parameters["head"] = HeadConfig(**fields | {"classes": tuple(fields.get("classes", ()))})
        if parameters["config"] is not None:
            fields = parameters["config"]
            epochs = fields.get("snapshot_epochs", ())
            kept = {"snapshot_epochs": tuple(epochs) if isinstance(epochs, list) else epochs}
            parameters["config"] = TrainConfig(**fields | kept)
        columns = content["column_names"]
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error", DeprecationWarning)  # NumPy 1 warns where NumPy 2 refuses
                classes = np.array(content["classes"]["values"], dtype=content["classes"]["dtype"])
        except (ValueError, OverflowError, DeprecationWarning) as error:
            raise CheckpointError(
                f"{path}: classes.values do not fit their dtype ({error}); {ADVICE}"
            ) from error
        return cls(
            parameters,
            classes,
            content["num_columns"],
            None if columns is None else tuple(columns),
        )


def _plain(value: Any) -> Any:
    """A parameter as JSON holds it; what is none of its kinds is kept by name."""
    if isinstance(value, HeadConfig | TrainConfig):
        return value.to_dict()
    if hasattr(value, "tolist"):  # numpy's numbers and arrays
        return value.tolist()
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)


def _schema(names: list[str]) -> Any:
    head = record({}, {field.name: anything for field in dataclasses.fields(HeadConfig)})
    config = record({}, {field.name: anything for field in dataclasses.fields(TrainConfig)})
    own = {"base": nullable(text), "head": nullable(either(text, head)), "config": nullable(config)}
    own["adapter"] = truth
    return record(
        {
            "format_version": exactly(FORMAT_VERSION),
            "parameters": record({name: own.get(name, anything) for name in names}),
            "classes": record(
                {"dtype": one_of(DTYPES), "values": list_of(either(text, truth, number()), at_least=2)}
            ),
            "num_columns": whole(1, 2),
            "column_names": nullable(list_of(text)),
        }
    )
