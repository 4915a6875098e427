"""Clauses of the claims about ensembles beside other ways, of their size, their randomness, and on other
questions: C4 to C8 and C11.
"""

from __future__ import annotations

from .contrasts import NAMES, SIGNS, Contrast
from .views import Differences, View, minus, scaled

NEAR_CHANCE = 0.1  # an AUROC within 0.5 plus or minus this is "near 0.5"
LITTLE = 0.5  # of what the ensemble gains: less is "little"
MIDDLE = 5  # members after which the gain is said to slow down


def c4(view: View) -> list[Contrast]:
    """MC dropout and the ensemble against the member that was trained without dropout; and, beside them, with
    it.
    """
    judged, shown = [], []
    for metric, sign in SIGNS.items():
        single = view.values(metric, arm="none", who="member")
        dropout, dropped = view.dropout(metric), view.values(metric, arm="dropout", who="member")
        ensemble = view.values(metric, arm="none", who="ensemble")
        little = minus(minus(dropout, single), scaled(minus(ensemble, single), LITTLE))
        name = NAMES[metric]
        judged += [
            Contrast(f"{name}, ensemble against MC dropout", minus(ensemble, dropout), sign),
            Contrast(f"{name}, gain of MC dropout minus half the ensemble's", little, -sign),
        ]
        of_dropped = view.values(metric, arm="dropout", who="ensemble")
        beside = {
            "member trained with dropout against without": minus(dropped, single),
            "MC dropout against its own member": minus(dropout, dropped),
            "ensemble with dropout against MC dropout": minus(of_dropped, dropout),
        }
        shown += [Contrast(f"{name}, {words}", one, sign, judged=False) for words, one in beside.items()]
    return judged + shown


def c5(view: View) -> list[Contrast]:
    """Accuracy on the validation and on the training questions; NLL beside them."""

    def against(metric: str) -> Differences:
        whole = view.values(metric, arm="none", who="ensemble")
        return minus(view.plain("last_layer", metric, "ensemble"), whole)

    trained = minus(view.number("last_layer", "train_accuracy"), view.train_accuracy("none"))
    return [
        Contrast("accuracy, last-layer against LoRA ensemble", against("accuracy"), -1),
        Contrast("accuracy on the training questions", trained, -1),
        Contrast("NLL, last-layer against LoRA ensemble", against("nll"), 1, judged=False),
    ]


def c6(view: View) -> list[Contrast]:
    """The ensemble's gain out of distribution, without a regulariser and with decay; the AUROC of telling the
    two.
    """
    contrasts = []
    for metric in ("nll", "ece"):
        for arm in ("none", view.decay):
            gain = view.gain(metric, arm=arm, where="ood")
            contrasts.append(Contrast(f"{NAMES[metric]} out of distribution, {arm}", gain, SIGNS[metric]))
    for arm in ("none", view.decay):
        auroc = view.values("ood_auroc", arm=arm, who="ensemble")
        centred = {setting: value - 0.5 for setting, value in auroc.items()}
        contrasts.append(Contrast(f"AUROC minus 0.5, {arm}", centred, 0, NEAR_CHANCE))
    return contrasts


def c7(view: View) -> list[Contrast]:
    """From one member to a few, from a few to all of the pool, and the first gain against the second."""
    sizes = view.sizes()
    if len(sizes) < 3:
        return [Contrast(f"{NAMES[metric]}, more members", {}, sign) for metric, sign in SIGNS.items()]
    middle, most = MIDDLE if MIDDLE in sizes[1:-1] else sizes[len(sizes) // 2], sizes[-1]
    judged: list[Contrast] = []
    shown: list[Contrast] = []
    for metric, sign in SIGNS.items():
        for arm in ("none", "decay of B"):
            few, many = (
                minus(view.pool(metric, more, arm=arm), view.pool(metric, fewer, arm=arm))
                for fewer, more in ((sizes[0], middle), (middle, most))
            )
            suffix, wanted = ("", judged) if arm == "none" else (f", {arm}", shown)
            for name, gain in (
                (f"1 to {middle} members", few),
                (f"{middle} to {most} members", many),
                ("the first gain minus the second", minus(few, many)),
            ):
                wanted.append(Contrast(f"{NAMES[metric]}, {name}{suffix}", gain, sign, judged=arm == "none"))
    return judged + shown


def c8(view: View) -> list[Contrast]:
    """Members that differ by their start alone and by their order alone; order against start, both without a
    regulariser (the paper's text) and with decay (its caption).
    """
    contrasts = []
    for metric, sign in SIGNS.items():
        gain = {
            name: view.gain(metric, arm=name, kind="randomness")
            for name in ("init", "order", "init, decay of B", "order, decay of B")
        }
        contrasts += [
            Contrast(f"{NAMES[metric]}, initialisation alone", gain["init"], sign),
            Contrast(f"{NAMES[metric]}, data order alone", gain["order"], sign),
            Contrast(
                f"{NAMES[metric]} gain, order against initialisation",
                minus(gain["order"], gain["init"]),
                sign,
            ),
            Contrast(
                f"{NAMES[metric]} gain, order against initialisation, decay of B",
                minus(gain["order, decay of B"], gain["init, decay of B"]),
                sign,
            ),
        ]
    return contrasts


def c11(view: View) -> list[Contrast]:
    """The few-shot base and the single member, and the decayed ensemble against it."""
    wrong, single = view.wrong_confidence, view.wrong_confidence("sweep", "members")

    def few(metric: str) -> Differences:
        return minus(view.plain("few_shot", metric, "member"), view.values(metric, arm="none", who="member"))

    return [
        Contrast("ECE, few-shot against single member", few("ece"), -1),
        Contrast("accuracy, few-shot against single member", few("accuracy"), -1),
        Contrast(
            "confidence when wrong, single member against few-shot",
            minus(single, wrong("few_shot", "members")),
            1,
        ),
        Contrast(
            f"confidence when wrong, ensemble with {view.decay} against single member",
            minus(wrong("sweep", "ensemble", arm=view.decay), single),
            -1,
        ),
        Contrast(
            "confidence when wrong, ensemble without against single member",
            minus(wrong("sweep", "ensemble"), single),
            -1,
            judged=False,
        ),
    ]
