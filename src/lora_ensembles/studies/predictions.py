"""The predictions behind a record: every aggregate in it is computed from member log-probabilities that lie
beside it, in half precision, so that anyone can compute it again.

Shapes: M members, N questions, C options.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from ..errors import CheckpointError, ConfigError
from ..prediction.prediction import Prediction
from .measures import (
    DIGITS,
    by_size,
    compared,
    cross_scaled,
    described,
    mean_row,
    measured,
    of_ensemble,
    scaled_elsewhere,
    wrong_confidences,
)

Values = dict[str, Any]
Place = Sequence[str | int]
IN, OOD = "in", "ood"


@dataclass(frozen=True)
class Half:
    """A prediction in half precision, which is 5e-4 of a log-probability.

    Attributes:
        log_probs: (M, N, C) float16.
        targets: (N,) or None.
        ids: of the questions.
    """

    log_probs: Tensor
    targets: Tensor | None
    ids: tuple[str, ...]

    @classmethod
    def of(cls, prediction: Prediction) -> Half:
        """The prediction, rounded."""
        return cls(prediction.member_log_probs.half(), prediction.targets, prediction.ids)

    @property
    def prediction(self) -> Prediction:
        """The prediction that aggregates are computed from: normalised again."""
        return Prediction(self.log_probs.float().log_softmax(-1), self.targets, self.ids)


Pair = tuple[Prediction, Prediction | None]


def name_of(path: Place) -> str:
    """The name of the prediction behind a part that was measured."""
    return "/".join(map(str, path))


def _row(pair: Pair) -> Values:
    """The ensemble's metrics alone, in and out of distribution."""
    own, ood = pair
    labelled = ood is not None and ood.targets is not None
    return of_ensemble(own, ood) | ({"ood": of_ensemble(ood)} if ood is not None and labelled else {})


def _of_members(pair: Pair) -> Values:
    return mean_row([_row(single) for single in _singles(pair)])


def _singles(pair: Pair) -> list[Pair]:
    own, ood = pair
    return [(own.member(m), None if ood is None else ood.member(m)) for m in range(own.num_members)]


def _scaled(pair: Pair, folds: int, seed: int) -> Values:
    own, ood, temperature = cross_scaled(*pair, folds=folds, seed=seed)
    return _row((own, ood)) | {"temperature": round(temperature, DIGITS)}


def _compared_scaled(pair: Pair, folds: int, seed: int) -> Values:
    own, ood, temperature = cross_scaled(*pair, folds=folds, seed=seed)
    return compared(own, ood) | {"temperature": round(temperature, DIGITS)}


def _compared_elsewhere(pair: Pair, fitted: Pair) -> Values:
    return compared(scaled_elsewhere(pair[0], fitted[0]))


def _scaled_members(pair: Pair, folds: int, seed: int) -> Values:
    return mean_row([_scaled(single, folds, seed) for single in _singles(pair)])


def _of_snapshots(*pairs: Pair) -> Values:
    """The metrics of an ensemble of one member's snapshots, the mean over members."""
    own = [prediction for prediction, _ in pairs]
    ood = [prediction for _, prediction in pairs if prediction is not None]
    return mean_row(
        [
            _row((_of_member(own, index), _of_member(ood, index) if ood else None))
            for index in range(own[0].num_members)
        ]
    )


def _of_member(predictions: Sequence[Prediction], index: int) -> Prediction:
    members = [prediction.member(index).member_log_probs for prediction in predictions]
    return dataclasses.replace(predictions[0], member_log_probs=torch.cat(members))


@dataclass(frozen=True)
class Node:
    """A part of a record that was computed from a prediction.

    Attributes:
        path: of the part in the record's result: names, and places in lists.
        by: the name of the computation in `BY`.
        of: the names of the predictions.
        settings: of the computation.
    """

    path: Place
    by: str
    of: Sequence[str]
    settings: Mapping[str, Any] = field(default_factory=dict)


BY: dict[str, Callable[..., Values]] = {
    "measured": lambda pair: measured(*pair),
    "described": lambda pair: described(pair[0]),
    "wrong_confidence": lambda pair: wrong_confidences(pair[0]),
    "ensemble": lambda pair: of_ensemble(*pair),
    "compared": lambda pair: compared(*pair),
    "compared_scaled": _compared_scaled,
    "compared_elsewhere": _compared_elsewhere,
    "mean": lambda *pairs: mean_row([_row(pair) for pair in pairs]),
    "members": _of_members,
    "snapshots": _of_snapshots,
    "scaled": _scaled,
    "scaled_members": _scaled_members,
    "by_size": lambda pair, sizes, subsets, seed: by_size(pair[0], sizes, subsets=subsets, seed=seed),
}


@dataclass
class Sheet:
    """The predictions of a record in the making: what is computed by it is computed from what it keeps.

    Attributes:
        kept: by name, each with that of the other distribution.
        nodes: what was computed from them.
        sets: the set of questions that a prediction is of, by the prediction's name, where it is not the
            task's own.
    """

    kept: dict[str, tuple[Half, Half | None]] = field(default_factory=dict)
    nodes: list[Node] = field(default_factory=list)
    sets: dict[str, str] = field(default_factory=dict)

    def keep(self, name: str, prediction: Prediction, ood: Prediction | None = None, *, of: str = IN) -> None:
        """Keep a prediction, and that of the other distribution, under a name; all that are `of` one set are
        of the same questions.
        """
        pair = Half.of(prediction), None if ood is None else Half.of(ood)
        before = next((both for other, both in self.kept.items() if self.sets.get(other, IN) == of), pair)
        for first, half in zip(before, pair, strict=True):
            if first is not None and half is not None and first.ids != half.ids:
                raise ConfigError(f"predictions of other questions under {name!r} than those before")
        self.kept[name] = pair
        if of != IN:
            self.sets[name] = of

    def take_in(self, other: Sheet) -> None:
        """Keep all that another one does."""
        self.kept |= other.kept
        self.nodes += other.nodes
        self.sets |= other.sets

    def compute(self, path: Place, by: str, *of: str, settings: Mapping[str, Any] | None = None) -> Values:
        """A part of the record, computed from predictions that are kept."""
        self.nodes.append(Node(path, by, of, settings or {}))
        return self.computed(self.nodes[-1])

    def computed(self, node: Node) -> Values:
        """A node's part of the record, from its predictions."""
        pairs = [
            (own.prediction, None if ood is None else ood.prediction)
            for own, ood in (self.kept[name] for name in node.of)
        ]
        return BY[node.by](*pairs, **node.settings)

    def measured(self, path: Place, prediction: Prediction, ood: Prediction | None = None) -> Values:
        """`measures.measured` of a prediction, which is kept under the name of the path."""
        name = name_of(path)
        self.keep(name, prediction, ood)
        return self.compute(path, "measured", name)

    def to_bytes(self) -> bytes:
        """The file of the predictions."""
        tensors: dict[str, Tensor] = {}
        names: dict[str, Any] = {"nodes": json.dumps([vars(node) for node in self.nodes])}
        for name, pair in self.kept.items():
            for place, half in zip((self.sets.get(name, IN), OOD), pair, strict=True):
                if half is None:
                    continue
                tensors[f"{place}|{name}"] = half.log_probs.contiguous()
                if f"ids|{place}" in names:  # all of a place are of the same questions
                    continue
                names[f"ids|{place}"] = json.dumps(list(half.ids))
                if half.targets is not None:
                    tensors[f"targets|{place}"] = half.targets.to(torch.int16)
        return save(tensors, metadata=names)


def predictions_file(record: Path) -> Path:
    """The file of the predictions behind a record."""
    return record.with_suffix(".safetensors")


def digest(content: bytes) -> str:
    """The SHA-256 of a file's content."""
    return hashlib.sha256(content).hexdigest()


def read_sheet(path: Path) -> Sheet:
    """The predictions of a file that `Sheet.to_bytes` made.

    Raises:
        CheckpointError: there is no such file, or it holds something else.
    """
    try:
        with safe_open(str(path), "pt") as file:
            names = file.metadata()
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # no dictionary
        nodes = [Node(**node) for node in json.loads(names["nodes"])]
        sheet = Sheet(nodes=nodes)
        ids = {name[4:]: tuple(json.loads(text)) for name, text in names.items() if name.startswith("ids|")}
        for key in sorted(name for name in tensors if not name.startswith(("targets|", f"{OOD}|"))):
            place, _, name = key.partition("|")
            own = _half(tensors, ids[place], place, name)
            assert own is not None
            sheet.kept[name] = own, _half(tensors, ids.get(OOD, ()), OOD, name)
            if place != IN:
                sheet.sets[name] = place
    except Exception as error:  # readers of broken files raise what they like
        raise CheckpointError(
            f"{path} holds no predictions of a record ({type(error).__name__}); measure it again"
        ) from error
    return sheet


def _half(tensors: Mapping[str, Tensor], ids: tuple[str, ...], place: str, name: str) -> Half | None:
    log_probs = tensors.get(f"{place}|{name}")
    if log_probs is None:
        return None
    targets = tensors.get(f"targets|{place}")
    return Half(log_probs, None if targets is None else targets.long(), ids)


def differences(result: Mapping[str, Any], sheet: Sheet) -> list[str]:
    """The parts of a record's result that are not what its predictions give, each in words."""
    wrong = []
    for node in sheet.nodes:
        part: Any = result
        for name in node.path:
            part = _at(part, name)
        again = sheet.computed(node)
        wrong += [f"{name_of(node.path)}{place}" for place in _unequal(part, again)]
    return wrong


def _at(part: Any, name: str | int) -> Any:
    if isinstance(part, Mapping):
        return part.get(name)
    return part[name] if isinstance(part, list) and isinstance(name, int) and name < len(part) else None


def _unequal(value: Any, expected: Any, place: str = "") -> list[str]:
    """The places where a value lacks what is expected of it, or holds another number."""
    if isinstance(expected, Mapping):
        if not isinstance(value, Mapping):
            return [place]
        return [
            unequal
            for name, inner in expected.items()
            for unequal in _unequal(value.get(name), inner, f"{place}/{name}")
        ]
    if isinstance(expected, Sequence) and not isinstance(expected, str):
        if not isinstance(value, Sequence) or len(value) != len(expected):
            return [place]
        return [
            unequal
            for index, (one, other) in enumerate(zip(value, expected, strict=True))
            for unequal in _unequal(one, other, f"{place}/{index}")
        ]
    if isinstance(expected, float) and isinstance(value, int | float):
        return [] if abs(value - expected) <= 2e-6 else [f"{place}: {value} for {expected}"]
    return [] if value == expected else [f"{place}: {value} for {expected}"]
