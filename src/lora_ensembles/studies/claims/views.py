"""Values of arms out of records, by setting (task and seed), as the contrasts of the claims need them."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from ...errors import DataError

Setting = tuple[str, int]  # task and seed
Differences = dict[Setting, float]
Records = Mapping[str, Sequence[Mapping[str, Any]]]


class View:
    """Values of arms out of records, by setting."""

    def __init__(self, records: Records):
        self.kinds = {
            kind: {_setting(record): record["result"] for record in runs} for kind, runs in records.items()
        }
        sweep = next(iter(records["sweep"]))
        first = sweep["result"]["arms"]
        self.kl = [name for name in first if name.startswith("KL ")]
        self.decays = [name for name in first if name.startswith("decay of B ")]
        self.decay = decay_arm(sweep) if self.decays else "decay of B"
        self.epochs = sorted(map(int, first["none"]["epochs"]))

    @property
    def last(self) -> int:
        return self.epochs[-1]

    @property
    def stopped(self) -> list[int]:
        """The epochs of early stopping: the first three, where there are later ones."""
        return [epoch for epoch in self.epochs[:3] if epoch < self.last]

    def values(
        self,
        metric: str,
        *,
        arm: str,
        who: str,
        epoch: int | None = None,
        kind: str = "sweep",
        where: str | None = None,
    ) -> Differences:
        """A metric of the ensemble, or the mean over its members (`who`), after an epoch; `where="ood"` out
        of distribution.
        """
        values = {}
        for setting, result in self.kinds.get(kind, {}).items():
            row = result["arms"].get(arm, {}).get("epochs", {}).get(str(epoch or self.last))
            row = row.get(where) if row and where else row
            value = _value(row, metric, who) if row else None
            if value is not None:
                values[setting] = value
        return values

    def gain(
        self,
        metric: str,
        *,
        arm: str,
        epoch: int | None = None,
        kind: str = "sweep",
        where: str | None = None,
    ) -> Differences:
        """Ensemble minus single member."""
        return minus(
            self.values(metric, arm=arm, who="ensemble", epoch=epoch, kind=kind, where=where),
            self.values(metric, arm=arm, who="member", epoch=epoch, kind=kind, where=where),
        )

    def train_accuracy(self, arm: str) -> Differences:
        """The accuracy of an arm's members on the training questions, the mean over members."""
        shares = {
            setting: result["arms"].get(arm, {}).get("train_accuracy")
            for setting, result in self.kinds.get("sweep", {}).items()
        }
        return {setting: statistics.fmean(values) for setting, values in shares.items() if values}

    def number(self, kind: str, name: str) -> Differences:
        """A number that stands in a record as it is."""
        return {
            setting: result[name] for setting, result in self.kinds.get(kind, {}).items() if name in result
        }

    def pool(self, metric: str, size: int, *, arm: str = "none") -> Differences:
        """A metric of ensembles of `size` members, the mean over their subsets."""
        values = {}
        for setting, result in self.kinds.get("pool", {}).items():
            subsets = result.get(arm, {}).get(str(size))
            if subsets:
                values[setting] = statistics.fmean(one[metric] for one in subsets)
        return values

    def sizes(self) -> list[int]:
        pools = list(self.kinds.get("pool", {}).values())
        return sorted(map(int, pools[0]["none"])) if pools else []

    def plain(self, kind: str, metric: str, who: str) -> Differences:
        """A metric of a record that has no arms, such as few_shot."""
        values = {
            setting: _value(result, metric, who) for setting, result in self.kinds.get(kind, {}).items()
        }
        return {setting: value for setting, value in values.items() if value is not None}

    def dropout(self, metric: str) -> Differences:
        """A metric of MC dropout, the mean over the models that were asked."""
        passes = {
            setting: result["arms"].get("MC dropout", {}).get("passes")
            for setting, result in self.kinds["sweep"].items()
        }
        return {
            setting: statistics.fmean(one[metric] for one in values)
            for setting, values in passes.items()
            if values
        }

    def wrong_confidence(self, kind: str, who: str, *, arm: str = "none") -> Differences:
        """The mean confidence of wrong answers."""
        values = {}
        for setting, result in self.kinds.get(kind, {}).items():
            row = result["arms"].get(arm, {}) if kind == "sweep" else result
            counts = row["wrong_confidence"][who]["counts"] if "wrong_confidence" in row else []
            if sum(counts):
                values[setting] = sum(
                    (place + 0.5) / len(counts) * count for place, count in enumerate(counts)
                ) / sum(counts)
        return values


def decay_arm(record: Mapping[str, Any]) -> str:
    """The arm with decay of B that stands for decay where only one strength is shown: the strength of the
    grid's `decay`.

    Raises:
        DataError: the record has no arm with decay of B.
    """
    share = f"decay of B {record['settings']['decay']:g}" if "decay" in record["settings"] else ""
    arms = [arm for arm in record["result"]["arms"] if arm.startswith("decay of B ")]
    if not arms:
        raise DataError("the records of the sweep have no arm with decay of B")
    return share if share in arms else str(arms[-1])


def scaled(differences: Differences, factor: float) -> Differences:
    """Every difference times a factor."""
    return {setting: factor * value for setting, value in differences.items()}


def minus(left: Differences, right: Differences) -> Differences:
    """The differences of the settings that both have."""
    return {setting: left[setting] - right[setting] for setting in left if setting in right}


def mean_of(several: Sequence[Differences]) -> Differences:
    """The mean in every setting that all have."""
    shared = set.intersection(*(set(one) for one in several)) if several else set()
    return {setting: statistics.fmean(one[setting] for one in several) for setting in sorted(shared)}


def _setting(record: Mapping[str, Any]) -> Setting:
    return str(record["settings"]["task"]), int(record["settings"]["seed"])


def _value(row: Mapping[str, Any], metric: str, who: str) -> float | None:
    if who == "ensemble":
        value: float | None = row["ensemble"][metric]
        return value
    values = [one[metric] for one in row["members"]]
    return None if any(one is None for one in values) else statistics.fmean(values)
