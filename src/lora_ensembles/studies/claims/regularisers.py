"""Clauses of the claims about what regularisers do to members and to their ensemble: C1 to C3, C9 and C10."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Mapping, Sequence

from .contrasts import NAMES, SIGNS, Contrast
from .views import Differences, View, mean_of, minus

Arms = Sequence[tuple[str, int]]


def families(view: View) -> Mapping[str, Arms]:
    """The arms of each family of regularisers, with the epoch at which they end, the weakest first."""
    return {
        "KL": [(arm, view.last) for arm in view.kl],
        "decay of B": [(arm, view.last) for arm in view.decays],
        "early stopping": [("none", epoch) for epoch in reversed(view.stopped)],
    }


def paths(view: View) -> Mapping[str, Arms]:
    """Each family from no regulariser to its strongest, early stopping back through every epoch that was
    measured; families without arms are left out.
    """
    stopped = [("none", epoch) for epoch in reversed(view.epochs[:-1])]
    found = {**families(view), "early stopping": stopped}
    return {name: [("none", view.last), *arms] for name, arms in found.items() if arms}


def _title(arm: str, epoch: int, view: View) -> str:
    return arm if epoch == view.last else f"stopped after epoch {epoch}"


def c1(view: View) -> list[Contrast]:
    """The gain of the ensemble without a regulariser and with each family; by strength beside them."""
    contrasts = []
    for metric, sign in SIGNS.items():
        contrasts.append(Contrast(f"{NAMES[metric]}, no regulariser", view.gain(metric, arm="none"), sign))
        for name, arms in families(view).items():
            gains = mean_of([view.gain(metric, arm=arm, epoch=epoch) for arm, epoch in arms])
            contrasts.append(Contrast(f"{NAMES[metric]}, {name}", gains, sign))
    for metric, sign in SIGNS.items():
        for arms in families(view).values():
            contrasts += [
                Contrast(
                    f"{NAMES[metric]}, {_title(arm, epoch, view)}",
                    view.gain(metric, arm=arm, epoch=epoch),
                    sign,
                    judged=False,
                )
                for arm, epoch in arms
            ]
    return contrasts


def c2(view: View) -> list[Contrast]:
    """The effect of each family on the ECE of single member and ensemble, and of the best and the worst on
    the accuracy of either; that on NLL beside them.
    """
    contrasts = []
    for metric in ("ece", "nll"):
        for who, called in (("member", "single member"), ("ensemble", "ensemble")):
            plain = view.values(metric, arm="none", who=who)
            for name, arms in families(view).items():
                effect = mean_of(
                    [minus(view.values(metric, arm=arm, who=who, epoch=epoch), plain) for arm, epoch in arms]
                )
                contrasts.append(
                    Contrast(f"{NAMES[metric]}, {name}, {called}", effect, -1, judged=metric == "ece")
                )
    return (
        contrasts + _either_way(view, "member", "single member") + _either_way(view, "ensemble", "ensemble")
    )


def _either_way(view: View, who: str, called: str) -> list[Contrast]:
    """The regulariser that raises accuracy most, and the one that lowers it most: "either way" needs one of
    each.
    """
    plain = view.values("accuracy", arm="none", who=who)
    effects = {
        _title(arm, epoch, view): minus(view.values("accuracy", arm=arm, who=who, epoch=epoch), plain)
        for arms in families(view).values()
        for arm, epoch in arms
    }
    means = {name: statistics.fmean(effect.values()) for name, effect in effects.items() if effect}
    if not means:
        return []
    best, worst = max(means, key=means.__getitem__), min(means, key=means.__getitem__)
    several = len(means)
    return [
        Contrast(f"accuracy raised by one, {called}", effects[best], 1, chosen_from=several),
        Contrast(f"accuracy lowered by one, {called}", effects[worst], -1, chosen_from=several),
    ]


def c3(view: View) -> list[Contrast]:
    """NLL over the epochs without a regulariser, and at the end with decay, the ensemble, and both; that over
    the epochs with decay beside them.
    """
    early = view.epochs[min(1, len(view.epochs) - 1)]
    end = {
        (arm, who): view.values("nll", arm=arm, who=who)
        for arm in ("none", view.decay)
        for who in ("member", "ensemble")
    }
    grown = {
        (arm, who): minus(value, view.values("nll", arm=arm, who=who, epoch=early))
        for (arm, who), value in end.items()
    }
    both, name = end[view.decay, "ensemble"], view.decay
    return [
        Contrast(f"NLL at the end minus after epoch {early}, single member", grown["none", "member"], 1),
        Contrast(f"NLL at the end minus after epoch {early}, ensemble", grown["none", "ensemble"], 1),
        Contrast(
            f"NLL, {name} against none, single member",
            minus(end[name, "member"], end["none", "member"]),
            -1,
        ),
        Contrast(
            f"NLL, {name} and ensemble against ensemble alone",
            minus(both, end["none", "ensemble"]),
            -1,
        ),
        Contrast(f"NLL, {name} and ensemble against decay alone", minus(both, end[name, "member"]), -1),
        *(
            Contrast(
                f"NLL at the end minus after epoch {early}, {words}, {name}",
                grown[name, who],
                -1,
                judged=False,
            )
            for who, words in (("member", "single member"), ("ensemble", "ensemble"))
        ),
    ]


def c9(view: View) -> list[Contrast]:
    """Decay of A alone and of both matrices, against decay of B alone at the same strength."""

    def against(metric: str, arm: str) -> Differences:
        own, other = (view.values(metric, arm=name, who="ensemble") for name in (arm, view.decay))
        return minus(own, other)

    return [
        Contrast("NLL, decay of A against B", against("nll", "decay of A"), 1),
        Contrast("accuracy, decay of both against B", against("accuracy", "decay of A and B"), -1),
        Contrast("accuracy, decay of A against B", against("accuracy", "decay of A"), -1, judged=False),
        Contrast("NLL, decay of both against B", against("nll", "decay of A and B"), 1, judged=False),
    ]


def c10(view: View) -> list[Contrast]:
    """The gain with strong KL and after the first epoch against that without a regulariser; and the gain with
    decay against both where the single member has the same NLL.
    """
    strongest = {name: arms[-1] for name, arms in families(view).items() if arms}
    contrasts = []
    for metric in ("accuracy", "ece"):
        for name in ("KL", "early stopping"):
            arm, epoch = strongest.get(name, (name, view.last))
            loss = minus(view.gain(metric, arm=arm, epoch=epoch), view.gain(metric, arm="none"))
            contrasts.append(
                Contrast(f"{NAMES[metric]} gain, strongest {name} against none", loss, -SIGNS[metric])
            )
    for metric, sign in SIGNS.items():
        for name in ("KL", "early stopping"):
            more = matched(view, metric, "decay of B", name)
            contrasts.append(Contrast(f"{NAMES[metric]} gain at equal NLL, decay against {name}", more, sign))
    return contrasts


def matched(view: View, metric: str, one: str, other: str) -> Differences:
    """The gain of an ensemble in a metric with one family of regularisers minus that with another, where both
    give the single member the same NLL.

    In every setting a family is a path (`paths`) of points (NLL of the single member, gain). The NLL at which
    they are compared is half-way between that without a regulariser and the lowest that both reach; there the
    gain is interpolated on either path. Settings in which one of them lowers the NLL nowhere are left out.
    """
    known = paths(view)
    if not {one, other} <= set(known):
        return {}
    points = [
        [
            (view.values("nll", arm=arm, who="member", epoch=epoch), view.gain(metric, arm=arm, epoch=epoch))
            for arm, epoch in known[name]
        ]
        for name in (one, other)
    ]
    found = {}
    for setting in set.intersection(*(set(nll) & set(gain) for path in points for nll, gain in path)):
        curves = [[(nll[setting], gain[setting]) for nll, gain in path] for path in points]
        start = curves[0][0][0]
        reached = max(min(nll for nll, _ in curve) for curve in curves)
        if reached < start:
            gains = [_crossing(curve, (start + reached) / 2) for curve in curves]
            found[setting] = gains[0] - gains[1]
    return dict(sorted(found.items()))


def _crossing(curve: Sequence[tuple[float, float]], nll: float) -> float:
    """The gain where a path first comes down to an NLL."""
    return next(
        gain + (then - gain) * (before - nll) / (before - after) if before > after else gain
        for (before, gain), (after, then) in itertools.pairwise(curve)
        if after <= nll <= before
    )
