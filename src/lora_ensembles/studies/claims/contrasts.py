"""Contrasts of each of the paper's claims C1 to C11: its contrasts, taken from records."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass

from .views import Differences, View, mean_of, minus

NEAR_CHANCE = 0.1  # an AUROC within 0.5 plus or minus this is "near 0.5"


@dataclass(frozen=True)
class Contrast:
    """A part before it is judged: differences that the claim expects to be positive (sign 1), negative (-1),
    or near zero (0).

    `chosen_from` says of how many this is the largest or the smallest: its interval has a level of 1 - 0.05 /
    `chosen_from` (Bonferroni).
    """

    name: str
    differences: Differences
    sign: int
    margin: float = 0.0
    chosen_from: int = 1


def _c1(view: View) -> list[Contrast]:
    regularised = {
        metric: mean_of([view.gain(metric, arm=arm, epoch=epoch) for arm, epoch in view.regularised()])
        for metric in SIGNS
    }
    return [
        Contrast(f"{NAMES[metric]}, {name}", gains, SIGNS[metric])
        for metric in ("accuracy", "ece")
        for name, gains in (
            ("no regulariser", view.gain(metric, arm="none")),
            ("regularised", regularised[metric]),
        )
    ]


def _c2(view: View) -> list[Contrast]:
    families = {
        "KL": [(arm, view.last) for arm in view.kl],
        "decay of B": [(arm, view.last) for arm in view.decays],
    }
    families["early stopping"] = [("none", epoch) for epoch in view.stopped]
    contrasts = []
    for who in ("member", "ensemble"):
        plain = view.values("ece", arm="none", who=who)
        for name, arms in families.items():
            effect = mean_of(
                [minus(view.values("ece", arm=arm, who=who, epoch=epoch), plain) for arm, epoch in arms]
            )
            contrasts.append(
                Contrast(f"ECE, {name}, {'single member' if who == 'member' else who}", effect, -1)
            )
    return contrasts + _either_way(view)


def _either_way(view: View) -> list[Contrast]:
    """The regulariser that raises a single member's accuracy most, and the one that lowers it most: "either
    way" needs one of each.
    """
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
        Contrast(f"accuracy raised by one ({best})", effects[best], 1, chosen_from=len(means)),
        Contrast(f"accuracy lowered by one ({worst})", effects[worst], -1, chosen_from=len(means)),
    ]


def _c3(view: View) -> list[Contrast]:
    strong = view.decays[-1] if view.decays else "decay of B"
    early, late = view.epochs[min(1, len(view.epochs) - 1)], view.last
    nll = view.values
    both = nll("nll", arm=strong, who="ensemble")
    return [
        Contrast(
            "NLL grows, single member",
            minus(nll("nll", arm="none", who="member"), nll("nll", arm="none", who="member", epoch=early)),
            1,
        ),
        Contrast(
            "NLL grows, ensemble",
            minus(
                nll("nll", arm="none", who="ensemble"), nll("nll", arm="none", who="ensemble", epoch=early)
            ),
            1,
        ),
        Contrast(
            "NLL at the end, decay against none, single member",
            minus(nll("nll", arm=strong, who="member"), nll("nll", arm="none", who="member")),
            -1,
        ),
        Contrast(
            "NLL, both against ensemble alone",
            minus(both, nll("nll", arm="none", who="ensemble", epoch=late)),
            -1,
        ),
        Contrast("NLL, both against decay alone", minus(both, nll("nll", arm=strong, who="member")), -1),
    ]


def _c4(view: View) -> list[Contrast]:
    contrasts = []
    for metric, sign in SIGNS.items():
        ensemble, dropout = view.values(metric, arm="dropout", who="ensemble"), view.dropout(metric)
        contrasts.append(
            Contrast(f"{NAMES[metric]}, ensemble against MC dropout", minus(ensemble, dropout), sign)
        )
    return contrasts


def _c5(view: View) -> list[Contrast]:
    last = view.plain("last_layer", "accuracy", "ensemble")
    return [
        Contrast(
            "accuracy, last-layer against LoRA ensemble",
            minus(last, view.values("accuracy", arm="none", who="ensemble")),
            -1,
        )
    ]


def _c6(view: View) -> list[Contrast]:
    auroc = {
        setting: value - 0.5
        for setting, value in view.values("ood_auroc", arm="none", who="ensemble").items()
    }
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
    contrasts = []
    for metric, sign in SIGNS.items():
        first = minus(view.pool(metric, middle), view.pool(metric, sizes[0]))
        second = minus(view.pool(metric, sizes[-1]), view.pool(metric, middle))
        contrasts.append(
            Contrast(
                f"{NAMES[metric]}, {sizes[-1]} members against 1",
                minus(view.pool(metric, sizes[-1]), view.pool(metric, sizes[0])),
                sign,
            )
        )
        contrasts.append(
            Contrast(
                f"{NAMES[metric]}, gain to {middle} over gain from there to {sizes[-1]}",
                minus(first, second),
                sign,
            )
        )
    return contrasts


def _c8(view: View) -> list[Contrast]:
    gain = {
        name: view.gain("nll", arm=name, kind="randomness")
        for name in ("init", "order", "init, decay of B", "order, decay of B")
    }
    return [
        Contrast("NLL, initialisation alone", gain["init"], -1),
        Contrast("NLL, data order alone", gain["order"], -1),
        Contrast(
            "NLL gain with decay, order against initialisation",
            minus(gain["order, decay of B"], gain["init, decay of B"]),
            -1,
        ),
    ]


def _c9(view: View) -> list[Contrast]:
    def value(metric: str, arm: str) -> Differences:
        return view.values(metric, arm=arm, who="ensemble")

    return [
        Contrast(
            "NLL, A only against B only", minus(value("nll", "decay of A"), value("nll", view.decay)), 1
        ),
        Contrast(
            "accuracy, both against B only",
            minus(value("accuracy", "decay of A and B"), value("accuracy", view.decay)),
            -1,
        ),
    ]


def _c10(view: View) -> list[Contrast]:
    strongest = {
        "KL": (view.kl[-1] if view.kl else "KL", view.last),
        "early stopping": ("none", view.epochs[0]),
    }
    strong = view.decays[-1] if view.decays else "decay of B"
    contrasts = []
    for metric in ("accuracy", "ece"):
        sign = -SIGNS[metric]  # a smaller gain is smaller in the metric's own direction
        for name, (arm, epoch) in strongest.items():
            gain = view.gain(metric, arm=arm, epoch=epoch)
            contrasts.append(
                Contrast(
                    f"{NAMES[metric]} gain, {name} against none",
                    minus(gain, view.gain(metric, arm="none")),
                    sign,
                )
            )
            contrasts.append(
                Contrast(
                    f"{NAMES[metric]} gain, {name} against decay",
                    minus(gain, view.gain(metric, arm=strong)),
                    sign,
                )
            )
    return contrasts


def _c11(view: View) -> list[Contrast]:
    few, single = "few_shot", "none"
    wrong = view.wrong_confidence
    return [
        Contrast(
            "ECE, few-shot against single member",
            minus(view.plain(few, "ece", "member"), view.values("ece", arm=single, who="member")),
            -1,
        ),
        Contrast(
            "accuracy, few-shot against single member",
            minus(view.plain(few, "accuracy", "member"), view.values("accuracy", arm=single, who="member")),
            -1,
        ),
        Contrast(
            "confidence when wrong, single member against few-shot",
            minus(wrong("sweep", "members"), wrong(few, "members")),
            1,
        ),
        Contrast(
            "confidence when wrong, ensemble against single member",
            minus(wrong("sweep", "ensemble"), wrong("sweep", "members")),
            -1,
        ),
    ]


NAMES = {"accuracy": "accuracy", "nll": "NLL", "ece": "ECE"}
SIGNS = {"accuracy": 1, "nll": -1, "ece": -1}  # the direction that is better
CLAIMS: tuple[tuple[str, str, Callable[[View], list[Contrast]]], ...] = (
    (
        "C1",
        "Ensembling raises accuracy and lowers ECE over the single member, with or without a regulariser.",
        _c1,
    ),
    ("C2", "Regularisers lower ECE; their effect on accuracy goes either way.", _c2),
    (
        "C3",
        "Without strong decay NLL grows over the epochs, and ensembling alone does not stop it; decay does; "
        "both give the best NLL.",
        _c3,
    ),
    ("C4", "MC dropout gains little over one member; the ensemble of the same size gains much more.", _c4),
    ("C5", "Last-layer ensembles underfit: they are clearly less accurate.", _c5),
    ("C6", "Out of distribution, ensembling improves NLL and ECE; AUROC stays near 0.5.", _c6),
    ("C7", "More members help every metric, less and less.", _c7),
    (
        "C8",
        "Either source of randomness alone works; with decay, data order alone gives more than "
        "initialisation alone.",
        _c8,
    ),
    ("C9", "Decay of B alone is best: of A alone it leaves NLL high, of both it costs accuracy.", _c9),
    ("C10", "Strong KL or early stopping shrinks the ensemble's gain; decay shrinks it least.", _c10),
    (
        "C11",
        "The few-shot base is calibrated but less accurate; the single member is confidently wrong; the "
        "ensemble less so.",
        _c11,
    ),
)
