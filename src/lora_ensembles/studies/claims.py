"""The paper's claims C1 to C11, judged from records: a contrast, its interval, and a verdict that no hand writes.

A contrast is one difference for each setting, a (task, seed) with its arms averaged; its interval is the 95 % percentile bootstrap over
tasks and, within each drawn task, over seeds. Where the claim says "above zero", it is supported if the whole interval is above zero,
contradicted if all of it is below, and open otherwise. A claim of several parts is supported if every part is, contradicted if any is.
"""

from __future__ import annotations

import math
import random
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from ..errors import DataError

Verdict = Literal["supported", "contradicted", "open", "not applicable"]
Setting = tuple[str, int]  # task and seed
Differences = dict[Setting, float]
Records = Mapping[str, Sequence[Mapping[str, Any]]]

SAMPLES = 2000
NEAR_CHANCE = 0.1  # an AUROC within 0.5 plus or minus this is "near 0.5"


@dataclass(frozen=True)
class Part:
    """One contrast of a claim."""

    name: str
    difference: float | None
    interval: tuple[float, float] | None
    verdict: Verdict
    settings: int


@dataclass(frozen=True)
class Claim:
    """A claim and what the records say of it; `difference` and `interval` are those of the first part."""

    id: str
    text: str
    settings: int
    difference: float | None
    interval: tuple[float, float] | None
    verdict: Verdict
    reason: str
    parts: tuple[Part, ...]

    def to_dict(self) -> dict[str, Any]:
        """The claim as JSON-able values."""
        return asdict(self)


@dataclass(frozen=True)
class Contrast:
    """A part before it is judged: differences that the claim expects to be positive (sign 1), negative (-1), or near zero (0)."""

    name: str
    differences: Differences
    sign: int
    margin: float = 0.0


def bootstrap(differences: Differences, *, samples: int = SAMPLES, seed: int = 0) -> tuple[float, float]:
    """The 95 % interval of the mean of the tasks' means; tasks are drawn with replacement, and seeds within each drawn task.

    Example:
        >>> bootstrap({("a", 0): 1.0, ("a", 1): 1.0, ("b", 0): 1.0})
        (1.0, 1.0)
    """
    rng = random.Random(seed)
    tasks: dict[str, list[float]] = {}
    for (task, _), value in differences.items():
        tasks.setdefault(task, []).append(value)
    names = sorted(tasks)
    means = sorted(
        statistics.fmean(statistics.fmean(rng.choices(tasks[name], k=len(tasks[name]))) for name in rng.choices(names, k=len(names)))
        for _ in range(samples)
    )
    return means[int(0.025 * samples)], means[min(samples - 1, math.ceil(0.975 * samples) - 1)]


def judge_contrast(contrast: Contrast) -> Part:
    """The mean over tasks, its interval, and the verdict; without any setting the part is not applicable."""
    found = {setting: value for setting, value in contrast.differences.items() if math.isfinite(value)}
    if not found:
        return Part(contrast.name, None, None, "not applicable", 0)
    tasks: dict[str, list[float]] = {}
    for (task, _), value in found.items():
        tasks.setdefault(task, []).append(value)
    mean, (low, high) = statistics.fmean(map(statistics.fmean, tasks.values())), bootstrap(found)
    if contrast.sign == 0:
        inside, outside = -contrast.margin <= low and high <= contrast.margin, low > contrast.margin or high < -contrast.margin
    else:
        inside, outside = (low > 0, high < 0) if contrast.sign > 0 else (high < 0, low > 0)
    verdict: Verdict = "supported" if inside else "contradicted" if outside else "open"
    return Part(contrast.name, round(mean, 6), (round(low, 6), round(high, 6)), verdict, len(found))


def judge(records: Records) -> list[Claim]:
    """Every claim, in order.

    Raises:
        DataError: no record of a sweep, without which no claim can be judged.
    """
    if not records.get("sweep"):
        raise DataError("no records of a sweep; make them with `lora-ensembles study all`")
    view = View(records)
    return [_claim(name, text, contrasts(view)) for name, text, contrasts in CLAIMS]


def _claim(name: str, text: str, contrasts: Sequence[Contrast]) -> Claim:
    parts = tuple(map(judge_contrast, contrasts))
    judged = [part.verdict for part in parts if part.verdict != "not applicable"]
    verdict: Verdict = "open"
    if not judged:
        verdict = "not applicable"
    elif "contradicted" in judged:
        verdict = "contradicted"
    elif all(one == "supported" for one in judged):
        verdict = "supported"
    reason = "" if judged else "no record holds what this claim is about"
    first = parts[0]
    return Claim(name, text, max(part.settings for part in parts), first.difference, first.interval, verdict, reason, parts)


class View:
    """Values of arms out of records, by setting."""

    def __init__(self, records: Records):
        self.kinds = {kind: {_setting(record): record["result"] for record in found} for kind, found in records.items()}
        first = next(iter(self.kinds["sweep"].values()))["arms"]
        self.kl = [name for name in first if name.startswith("KL ")]
        self.decays = [name for name in first if name.startswith("decay of B ")]
        self.epochs = sorted(map(int, first["none"]["epochs"]))

    @property
    def last(self) -> int:
        return self.epochs[-1]

    @property
    def stopped(self) -> list[int]:
        """The epochs of early stopping: the first three, where there are later ones."""
        return [epoch for epoch in self.epochs[:3] if epoch < self.last]

    def values(
        self, metric: str, *, arm: str, who: str, epoch: int | None = None, kind: str = "sweep", where: str | None = None
    ) -> Differences:
        """A metric of the ensemble, or the mean over its members (`who`), after an epoch; `where="ood"` out of distribution."""
        found = {}
        for setting, result in self.kinds.get(kind, {}).items():
            row = result["arms"].get(arm, {}).get("epochs", {}).get(str(epoch or self.last))
            row = row.get(where) if row and where else row
            value = _value(row, metric, who) if row else None
            if value is not None:
                found[setting] = value
        return found

    def gain(self, metric: str, *, arm: str, epoch: int | None = None, kind: str = "sweep", where: str | None = None) -> Differences:
        """Ensemble minus single member."""
        return minus(
            self.values(metric, arm=arm, who="ensemble", epoch=epoch, kind=kind, where=where),
            self.values(metric, arm=arm, who="member", epoch=epoch, kind=kind, where=where),
        )

    def regularised(self) -> list[tuple[str, int]]:
        """Every regularised arm and epoch: KL and decay at the end, and no regulariser stopped early."""
        return [(arm, self.last) for arm in (*self.kl, *self.decays)] + [("none", epoch) for epoch in self.stopped]

    def pool(self, metric: str, size: int, *, arm: str = "none") -> Differences:
        """A metric of ensembles of `size` members, the mean over their subsets."""
        found = {}
        for setting, result in self.kinds.get("pool", {}).items():
            subsets = result.get(arm, {}).get(str(size))
            if subsets:
                found[setting] = statistics.fmean(one[metric] for one in subsets)
        return found

    def sizes(self) -> list[int]:
        pools = list(self.kinds.get("pool", {}).values())
        return sorted(map(int, pools[0]["none"])) if pools else []

    def plain(self, kind: str, metric: str, who: str) -> Differences:
        """A metric of a record that has no arms, such as few_shot."""
        found = {setting: _value(result, metric, who) for setting, result in self.kinds.get(kind, {}).items()}
        return {setting: value for setting, value in found.items() if value is not None}

    def dropout(self, metric: str) -> Differences:
        """A metric of MC dropout, the mean over the models that were asked."""
        passes = {setting: result["arms"].get("MC dropout", {}).get("passes") for setting, result in self.kinds["sweep"].items()}
        return {setting: statistics.fmean(one[metric] for one in found) for setting, found in passes.items() if found}

    def wrong_confidence(self, kind: str, who: str, *, arm: str = "none") -> Differences:
        """The mean confidence of wrong answers."""
        found = {}
        for setting, result in self.kinds.get(kind, {}).items():
            counts = (result["arms"][arm] if kind == "sweep" else result)["wrong_confidence"][who]["counts"]
            if sum(counts):
                found[setting] = sum((place + 0.5) / len(counts) * count for place, count in enumerate(counts)) / sum(counts)
        return found


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


def _c1(view: View) -> list[Contrast]:
    regularised = {metric: mean_of([view.gain(metric, arm=arm, epoch=epoch) for arm, epoch in view.regularised()]) for metric in SIGNS}
    return [
        Contrast(f"{NAMES[metric]}, {name}", gains, SIGNS[metric])
        for metric in ("accuracy", "ece")
        for name, gains in (("no regulariser", view.gain(metric, arm="none")), ("regularised", regularised[metric]))
    ]


def _c2(view: View) -> list[Contrast]:
    families = {"KL": [(arm, view.last) for arm in view.kl], "decay of B": [(arm, view.last) for arm in view.decays]}
    families["early stopping"] = [("none", epoch) for epoch in view.stopped]
    found = []
    for who in ("member", "ensemble"):
        plain = view.values("ece", arm="none", who=who)
        for name, arms in families.items():
            effect = mean_of([minus(view.values("ece", arm=arm, who=who, epoch=epoch), plain) for arm, epoch in arms])
            found.append(Contrast(f"ECE, {name}, {'single member' if who == 'member' else who}", effect, -1))
    return found + _either_way(view)


def _either_way(view: View) -> list[Contrast]:
    """The regulariser that raises a single member's accuracy most, and the one that lowers it most: "either way" needs one of each."""
    plain = view.values("accuracy", arm="none", who="member")
    effects = {
        f"{arm}, epoch {epoch}": minus(view.values("accuracy", arm=arm, who="member", epoch=epoch), plain)
        for arm, epoch in view.regularised()
    }
    means = {name: statistics.fmean(effect.values()) for name, effect in effects.items() if effect}
    if not means:
        return []
    best, worst = max(means, key=means.__getitem__), min(means, key=means.__getitem__)
    return [
        Contrast(f"accuracy raised by one ({best})", effects[best], 1),
        Contrast(f"accuracy lowered by one ({worst})", effects[worst], -1),
    ]


def _c3(view: View) -> list[Contrast]:
    strong = view.decays[-1] if view.decays else "decay of B"
    early, late = view.epochs[min(1, len(view.epochs) - 1)], view.last
    nll = view.values
    both = nll("nll", arm=strong, who="ensemble")
    return [
        Contrast(
            "NLL grows, single member", minus(nll("nll", arm="none", who="member"), nll("nll", arm="none", who="member", epoch=early)), 1
        ),
        Contrast(
            "NLL grows, ensemble", minus(nll("nll", arm="none", who="ensemble"), nll("nll", arm="none", who="ensemble", epoch=early)), 1
        ),
        Contrast(
            "NLL at the end, decay against none, single member",
            minus(nll("nll", arm=strong, who="member"), nll("nll", arm="none", who="member")),
            -1,
        ),
        Contrast("NLL, both against ensemble alone", minus(both, nll("nll", arm="none", who="ensemble", epoch=late)), -1),
        Contrast("NLL, both against decay alone", minus(both, nll("nll", arm=strong, who="member")), -1),
    ]


def _c4(view: View) -> list[Contrast]:
    found = []
    for metric, sign in SIGNS.items():
        ensemble, dropout = view.values(metric, arm="dropout", who="ensemble"), view.dropout(metric)
        found.append(Contrast(f"{NAMES[metric]}, ensemble against MC dropout", minus(ensemble, dropout), sign))
    return found


def _c5(view: View) -> list[Contrast]:
    last = view.plain("last_layer", "accuracy", "ensemble")
    return [Contrast("accuracy, last-layer against LoRA ensemble", minus(last, view.values("accuracy", arm="none", who="ensemble")), -1)]


def _c6(view: View) -> list[Contrast]:
    auroc = {setting: value - 0.5 for setting, value in view.values("ood_auroc", arm="none", who="ensemble").items()}
    return [
        Contrast("NLL out of distribution", view.gain("nll", arm="none", where="ood"), -1),
        Contrast("ECE out of distribution", view.gain("ece", arm="none", where="ood"), -1),
        Contrast("AUROC minus 0.5", auroc, 0, NEAR_CHANCE),
    ]


def _c7(view: View) -> list[Contrast]:
    sizes = view.sizes()
    if len(sizes) < 3:
        return [Contrast("accuracy", {}, 1)]
    middle = sizes[len(sizes) // 2]
    found = []
    for metric, sign in SIGNS.items():
        first = minus(view.pool(metric, middle), view.pool(metric, sizes[0]))
        second = minus(view.pool(metric, sizes[-1]), view.pool(metric, middle))
        found.append(
            Contrast(
                f"{NAMES[metric]}, {sizes[-1]} members against 1", minus(view.pool(metric, sizes[-1]), view.pool(metric, sizes[0])), sign
            )
        )
        found.append(Contrast(f"{NAMES[metric]}, gain to {middle} over gain from there to {sizes[-1]}", minus(first, second), sign))
    return found


def _c8(view: View) -> list[Contrast]:
    gain = {name: view.gain("nll", arm=name, kind="randomness") for name in ("init", "order", "init, decay of B", "order, decay of B")}
    return [
        Contrast("NLL, initialisation alone", gain["init"], -1),
        Contrast("NLL, data order alone", gain["order"], -1),
        Contrast("NLL gain with decay, order against initialisation", minus(gain["order, decay of B"], gain["init, decay of B"]), -1),
    ]


def _c9(view: View) -> list[Contrast]:
    share = next((arm for arm in view.decays if arm.endswith(" 0.025")), view.decays[-1] if view.decays else "decay of B")

    def value(metric: str, arm: str) -> Differences:
        return view.values(metric, arm=arm, who="ensemble")

    return [
        Contrast("NLL, A only against B only", minus(value("nll", "decay of A"), value("nll", share)), 1),
        Contrast("accuracy, both against B only", minus(value("accuracy", "decay of A and B"), value("accuracy", share)), -1),
    ]


def _c10(view: View) -> list[Contrast]:
    strongest = {"KL": (view.kl[-1] if view.kl else "KL", view.last), "early stopping": ("none", view.epochs[0])}
    strong = view.decays[-1] if view.decays else "decay of B"
    found = []
    for metric in ("accuracy", "ece"):
        sign = -SIGNS[metric]  # a smaller gain is smaller in the metric's own direction
        for name, (arm, epoch) in strongest.items():
            gain = view.gain(metric, arm=arm, epoch=epoch)
            found.append(Contrast(f"{NAMES[metric]} gain, {name} against none", minus(gain, view.gain(metric, arm="none")), sign))
            found.append(Contrast(f"{NAMES[metric]} gain, {name} against decay", minus(gain, view.gain(metric, arm=strong)), sign))
    return found


def _c11(view: View) -> list[Contrast]:
    few, single = "few_shot", "none"
    wrong = view.wrong_confidence
    return [
        Contrast(
            "ECE, few-shot against single member", minus(view.plain(few, "ece", "member"), view.values("ece", arm=single, who="member")), -1
        ),
        Contrast(
            "accuracy, few-shot against single member",
            minus(view.plain(few, "accuracy", "member"), view.values("accuracy", arm=single, who="member")),
            -1,
        ),
        Contrast("confidence when wrong, single member against few-shot", minus(wrong("sweep", "members"), wrong(few, "members")), 1),
        Contrast("confidence when wrong, ensemble against single member", minus(wrong("sweep", "ensemble"), wrong("sweep", "members")), -1),
    ]


NAMES = {"accuracy": "accuracy", "nll": "NLL", "ece": "ECE"}
SIGNS = {"accuracy": 1, "nll": -1, "ece": -1}  # the direction that is better
CLAIMS: tuple[tuple[str, str, Callable[[View], list[Contrast]]], ...] = (
    ("C1", "Ensembling raises accuracy and lowers ECE over the single member, with or without a regulariser.", _c1),
    ("C2", "Regularisers lower ECE; their effect on accuracy goes either way.", _c2),
    (
        "C3",
        "Without strong decay NLL grows over the epochs, and ensembling alone does not stop it; decay does; both give the best NLL.",
        _c3,
    ),
    ("C4", "MC dropout gains little over one member; the ensemble of the same size gains much more.", _c4),
    ("C5", "Last-layer ensembles underfit: they are clearly less accurate.", _c5),
    ("C6", "Out of distribution, ensembling improves NLL and ECE; AUROC stays near 0.5.", _c6),
    ("C7", "More members help every metric, less and less.", _c7),
    ("C8", "Either source of randomness alone works; with decay, data order alone gives more than initialisation alone.", _c8),
    ("C9", "Decay of B alone is best: of A alone it leaves NLL high, of both it costs accuracy.", _c9),
    ("C10", "Strong KL or early stopping shrinks the ensemble's gain; decay shrinks it least.", _c10),
    ("C11", "The few-shot base is calibrated but less accurate; the single member is confidently wrong; the ensemble less so.", _c11),
)
