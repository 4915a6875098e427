"""Figures of predictions: what is drawn is what a formula gives, and it can be read on white and on dark."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import itertools
import math
import statistics
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from scipy import stats

from lora_ensembles import plots
from lora_ensembles.errors import ConfigError, DataError, MissingExtraError
from lora_ensembles.generation.text import GeneratedText
from lora_ensembles.generation.uncertainty import token_uncertainty as uncertainty_of_tokens
from lora_ensembles.prediction.plots.calibration import merged_bins, noise_band
from lora_ensembles.prediction.plots.density import density_on_unit_interval
from lora_ensembles.prediction.plots.sizes import subsets
from lora_ensembles.prediction.plots.style import COLOURS, DARK, DARK_COLOURS, LIGHT, new_figure
from lora_ensembles.prediction.plots.tokens import columns_of, wrapped
from lora_ensembles.prediction.prediction import Prediction
from random_predictions import mean_probs, member_probs, random_prediction

pytest.importorskip("matplotlib")
from matplotlib import colors
from matplotlib.collections import PolyCollection
from matplotlib.figure import Figure
from matplotlib.text import Text

Draw = Callable[..., Figure]
OF_ARMS = [plots.reliability, plots.wrong_confidence, plots.risk_coverage]
REPOSITORY = Path(__file__).resolve().parents[2]


def text_of(tokens: list[str], values: list[float]) -> Any:
    return SimpleNamespace(
        tokens=tokens, uncertainty=SimpleNamespace(mutual_information=torch.tensor(values))
    )


def drawn(name: str, *, dark: bool = False) -> Figure:
    """Each public figure once, of something usual."""
    ensemble = random_prediction(0, examples=200)
    given: dict[str, Any] = {
        "agreement": ensemble,
        "size_curve": ensemble,
        "diversity_gain": {"first": ensemble, "second": random_prediction(1, members=2)},
        "token_uncertainty": text_of(["The", " lake", "\n"], [0.0, 0.4, 0.9]),
    }
    arms = {"single member": ensemble.member(0), "ensemble": ensemble}
    figure: Figure = getattr(plots, name)(given.get(name, arms), dark=dark)
    return figure


def labels(figure: Figure) -> list[str]:
    return [text.get_text() for legend in figure.legends for text in legend.get_texts()]


def right_and_confidence(prediction: Prediction) -> list[tuple[float, bool]]:
    rows = zip(mean_probs(prediction), prediction.targets.tolist(), strict=True)
    return [(max(probs), max(range(len(probs)), key=probs.__getitem__) == target) for probs, target in rows]


# All figures


@pytest.mark.parametrize("name", plots.__all__)
def test_every_figure_names_its_axes_and_is_written_light_and_dark(name: str, tmp_path: Path) -> None:
    for dark in (False, True):
        figure = drawn(name, dark=dark)
        if name != "token_uncertainty":  # which has no axes to be seen, and a colour bar
            assert all(axes.get_ylabel() for axes in figure.axes)
            assert figure.axes[-1].get_xlabel()
        figure.savefig(tmp_path / "figure.png")
        assert (tmp_path / "figure.png").read_bytes().startswith(b"\x89PNG")
        assert colors.to_hex(figure.get_facecolor()) == (DARK if dark else LIGHT).background


def luminance(colour: Any) -> float:
    """Relative luminance, as WCAG 2.1 defines it."""
    parts = [
        value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4
        for value in colors.to_rgb(colour)
    ]
    return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2]


def contrast(one: Any, other: Any) -> float:
    low, high = sorted([luminance(one), luminance(other)])
    return (high + 0.05) / (low + 0.05)


def test_contrast_of_black_on_white_is_21() -> None:
    assert contrast("black", "white") == pytest.approx(21)


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("name", plots.__all__)
def test_every_word_of_a_figure_is_legible_on_its_background(name: str, dark: bool) -> None:
    figure = drawn(name, dark=dark)
    figure.canvas.draw()
    words = [text for text in figure.findobj(Text) if text.get_text() and text.get_visible()]
    assert len(words) > 3
    for text in words:  # 4.5 is what WCAG asks of small print
        assert contrast(text.get_color(), figure.get_facecolor()) >= 4.5, text.get_text()


@pytest.mark.parametrize("theme", [LIGHT, DARK])
def test_words_are_legible_on_the_strongest_shade_and_on_a_bar(theme: Any) -> None:
    assert contrast(theme.text, theme.shade) >= 4.5
    bar = [
        (one + other) / 2
        for one, other in zip(colors.to_rgb(theme.colours[0]), colors.to_rgb(theme.background), strict=True)
    ]
    assert contrast(theme.text, bar) >= 4.5  # bars of agreement are half as opaque


def test_every_colour_shows_on_a_dark_background() -> None:
    assert all(contrast(colour, DARK.background) >= 3 for colour in DARK_COLOURS)  # WCAG, for lines
    assert len(DARK_COLOURS) == len(COLOURS) == len(set(DARK_COLOURS))


@pytest.mark.parametrize("draw", OF_ARMS)
def test_single_member_is_solid_and_ensemble_dashed(draw: Draw) -> None:
    ensemble = random_prediction(0, examples=200)
    figure = draw({"single member": ensemble.member(0), "ensemble": ensemble})
    lines = {str(line.get_label()).split("\n")[0]: line.get_linestyle() for line in figure.axes[0].lines}
    assert lines["single member"] == "-"
    assert lines["ensemble"] == "--"


@pytest.mark.parametrize("draw", [*OF_ARMS, plots.diversity_gain])
def test_too_few_or_too_many_arms_are_refused(draw: Draw) -> None:
    with pytest.raises(ConfigError, match="0 arms to draw; give 1 to 7"):
        draw({})
    with pytest.raises(ConfigError, match="8 arms to draw"):
        draw({str(n): random_prediction(n) for n in range(8)})


@pytest.mark.parametrize("name", [name for name in plots.__all__ if name != "token_uncertainty"])
def test_unlabelled_prediction_is_refused(name: str) -> None:
    unlabelled = Prediction(torch.full((2, 3, 2), 0.5).log())
    alone = name in ("agreement", "size_curve")
    with pytest.raises(DataError, match="needs targets"):
        getattr(plots, name)(unlabelled if alone else {"arm": unlabelled})


@pytest.mark.parametrize("draw", [plots.agreement, plots.size_curve])
def test_single_member_is_refused_where_members_are_compared(draw: Draw) -> None:
    with pytest.raises(ConfigError, match="compares members, and there is 1; give a prediction of 2 or more"):
        draw(random_prediction(0, members=1))


@pytest.mark.parametrize("name", plots.__all__)
def test_missing_matplotlib_names_the_install_command(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("matplotlib", "matplotlib.figure"):
        monkeypatch.setitem(sys.modules, module, None)  # what Python itself records for a missing package
    with pytest.raises(MissingExtraError, match=r'pip install "lora-ensembles\[plots\]"'):
        drawn(name)


def test_importing_the_package_loads_neither_torch_nor_matplotlib() -> None:
    code = "import sys, lora_ensembles; print('torch' in sys.modules, 'matplotlib' in sys.modules)"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert said.split() == ["False", "False"]
    assert plots is importlib.import_module("lora_ensembles.prediction.plots")


def test_importing_plots_needs_no_matplotlib(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    for file in Path(inspect.getfile(plots)).parent.glob("*.py"):
        name = "lora_ensembles.prediction.plots" + ("" if file.stem == "__init__" else f".{file.stem}")
        spec = importlib.util.find_spec(name)
        assert spec is not None
        assert spec.loader is not None
        copy = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, name, copy)  # where dataclasses look for it; put back afterwards
        spec.loader.exec_module(copy)


def test_drawing_registers_nothing_with_pyplot() -> None:
    from matplotlib import pyplot

    before = pyplot.get_fignums()
    drawn("reliability")
    assert pyplot.get_fignums() == before


def test_every_figure_documents_its_arguments_and_its_errors() -> None:
    for name in plots.__all__:
        function = getattr(plots, name)
        text = inspect.getdoc(function) or ""
        parts = ["Args:", "Returns:", "Raises:", "Example:", "MissingExtraError:"]
        parts += [f"{parameter}:" for parameter in inspect.signature(function).parameters]
        assert [part for part in parts if part not in text] == [], name


def test_a_legend_too_long_for_its_figure_makes_it_higher() -> None:
    arms = {f"arm {n} of a sweep with a long name": random_prediction(n) for n in range(7)}
    figure = plots.wrong_confidence(arms)
    figure.canvas.draw()
    assert figure.legends[0].get_window_extent().y0 >= 0
    assert figure.get_figheight() > plots.wrong_confidence({"one": random_prediction(0)}).get_figheight()


# Calibration


def merged_by_hand(prediction: Prediction) -> list[list[tuple[float, bool]]]:
    """The questions of each merged bin, by walking up the 15 bins."""
    bins: dict[int, list[tuple[float, bool]]] = {}
    for confidence, right in sorted(right_and_confidence(prediction)):
        bins.setdefault(min(int(confidence * 15), 15), []).append((confidence, right))
    merged: list[list[tuple[float, bool]]] = []
    waiting: list[tuple[float, bool]] = []
    for _, questions in sorted(bins.items()):
        waiting += questions
        if len(waiting) >= 10:
            merged.append(waiting)
            waiting = []
    if waiting and merged:
        merged[-1] = merged[-1] + waiting
    return merged or [waiting]


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("examples", [6, 45, 300])
def test_reliability_draws_bins_of_ten_questions_or_more(seed: int, examples: int) -> None:
    prediction = random_prediction(seed, examples=examples)
    axes = plots.reliability({"arm": prediction}).axes[0]
    groups = merged_by_hand(prediction)
    # 1e-5: confidences are summed in float32 in the library
    assert axes.lines[0].get_xdata() == pytest.approx(
        [statistics.fmean(one[0] for one in group) for group in groups], abs=1e-5
    )
    assert axes.lines[0].get_ydata() == pytest.approx(
        [statistics.fmean(one[1] for one in group) for group in groups]
    )
    counts = [len(group) for group in groups]
    assert sum(counts) == examples
    assert min(counts) >= min(10, examples)
    areas = next(one for one in axes.collections if not isinstance(one, PolyCollection)).get_sizes()
    shares = [(area - 12) / 300 for area in areas]
    assert shares == pytest.approx([count / examples for count in counts])


def test_bins_that_hold_enough_stay_as_they_are() -> None:
    from lora_ensembles.prediction.metrics import reliability_bins

    bins = reliability_bins(random_prediction(0, examples=5000))
    enough = [values[bins.counts >= 10] for values in bins]
    merged = merged_bins(type(bins)(*enough))
    for values, expected in zip(merged, enough, strict=True):
        assert values.tolist() == pytest.approx(expected.tolist())


@pytest.mark.parametrize("count", [1, 10, 57, 3000])
@pytest.mark.parametrize("confidence", [1e-6, 0.25, 0.5, 0.83, 0.999, 1.0])
def test_noise_band_is_that_of_the_binomial_distribution(confidence: float, count: int) -> None:
    low, high = noise_band(confidence, count)
    expected = stats.binom.ppf([0.025, 0.975], count, confidence)
    assert [round(low * count), round(high * count)] == expected.tolist()
    inside = stats.binom.cdf(round(high * count), count, confidence)
    inside -= stats.binom.cdf(round(low * count) - 1, count, confidence)
    assert inside >= 0.95 - 1e-9  # rounding of the sums


def test_reliability_draws_the_noise_band_of_each_bin() -> None:
    prediction = random_prediction(3, examples=300)
    axes = plots.reliability({"arm": prediction}).axes[0]
    band = next(one for one in axes.collections if isinstance(one, PolyCollection)).get_paths()[0].vertices
    for group in merged_by_hand(prediction):
        confidence = statistics.fmean(one[0] for one in group)
        ends = stats.binom.ppf([0.025, 0.975], len(group), confidence) / len(group)
        at = band[abs(band[:, 0] - confidence) < 1e-5][:, 1]
        assert sorted(set(at.round(9))) == pytest.approx(sorted(set(ends)))


def test_reliability_names_the_ece_of_the_bins_before_they_are_merged() -> None:
    prediction = random_prediction(2, examples=30)
    bins: dict[int, list[tuple[float, bool]]] = {}
    for confidence, right in right_and_confidence(prediction):
        bins.setdefault(min(int(confidence * 15), 15), []).append((confidence, right))
    error = sum(abs(sum(right - confidence for confidence, right in one)) for one in bins.values()) / 30
    assert labels(plots.reliability({"arm": prediction}))[0] == f"arm\nECE {error:.3f}"


def test_wrong_confidence_uses_wrong_answers_alone_and_its_area_is_one() -> None:
    prediction = random_prediction(0, examples=200).member(0)
    wrong = [confidence for confidence, right in right_and_confidence(prediction) if not right]
    line = plots.wrong_confidence({"single member": prediction}).axes[0].lines[0]
    x, y = (torch.tensor(values, dtype=torch.float64) for values in line.get_data())
    expected = density_on_unit_interval(torch.tensor(wrong), x)
    assert y.tolist() == pytest.approx(expected.tolist(), abs=1e-4)  # confidences in float32 here and there
    assert torch.trapezoid(y, x).item() == pytest.approx(1, abs=1e-3)  # the trapezoidal rule
    assert line.get_label() == f"single member\n{len(wrong)} of 200 wrong"
    assert not line.get_clip_on()  # half of the line would be cut at a peak at 1


def test_arm_without_wrong_answers_has_no_line_and_says_so() -> None:
    right = Prediction(torch.tensor([[[0.9, 0.1]]]).log(), torch.tensor([0]))
    line = plots.wrong_confidence({"perfect": right}).axes[0].lines[0]
    assert len(line.get_xdata()) == 0
    assert line.get_label() == "perfect\n0 of 1 wrong"


@pytest.mark.parametrize("seed", range(4))
def test_density_integrates_to_one_over_the_unit_interval(seed: int) -> None:
    values = torch.rand(50, generator=torch.Generator().manual_seed(seed)) ** 0.2  # piled up near 1
    grid = torch.linspace(0, 1, 2001, dtype=torch.float64)
    # 1e-4: the trapezoidal rule, and kernels reflected once only
    assert torch.trapezoid(density_on_unit_interval(values, grid), grid).item() == pytest.approx(1, abs=1e-4)


def test_density_is_the_sum_of_reflected_kernels_with_silvermans_bandwidth() -> None:
    values = [0.3, 0.5, 0.6, 0.9]
    mean = sum(values) / 4
    std = math.sqrt(sum((value - mean) ** 2 for value in values) / 4)
    quartiles = 0.45, 0.675  # linear interpolation at ranks 0.75 and 2.25
    width = 0.9 * min(std, (quartiles[1] - quartiles[0]) / 1.34) * 4**-0.2
    kernel = [
        math.exp(-0.5 * ((0.8 - at) / width) ** 2) / (width * math.sqrt(2 * math.pi))
        for v in values
        for at in (v, -v, 2 - v)
    ]
    density = density_on_unit_interval(torch.tensor(values, dtype=torch.float64), torch.tensor([0.8]))
    assert density.item() == pytest.approx(sum(kernel) / 4, rel=1e-6)


@pytest.mark.parametrize("values", [[0.7], [1.0, 1.0, 1.0], [0.5] * 9 + [1.0]])
def test_density_of_equal_values_is_finite(values: list[float]) -> None:
    density = density_on_unit_interval(torch.tensor(values), torch.linspace(0, 1, 101))
    assert torch.isfinite(density).all()
    assert density.max() > 1


def test_density_of_nothing_is_refused() -> None:
    with pytest.raises(DataError, match="no values"):
        density_on_unit_interval(torch.tensor([]), torch.tensor([0.5]))


# Selective prediction


def test_risk_coverage_draws_the_errors_of_the_most_confident_and_names_their_mean() -> None:
    # most confident first: right, wrong, right, wrong
    probs = torch.tensor([[[0.6, 0.4], [0.9, 0.1], [0.7, 0.3], [0.2, 0.8]]])
    figure = plots.risk_coverage({"arm": Prediction(probs.log(), torch.tensor([1, 0, 0, 0]))})
    curve, dotted = figure.axes[0].lines[:2]
    risks = [0, 1 / 2, 1 / 3, 2 / 4]
    assert curve.get_xdata() == pytest.approx([0.25, 0.5, 0.75, 1.0])
    assert curve.get_ydata() == pytest.approx(risks)
    assert set(dotted.get_ydata()) == {0.5}
    assert labels(figure)[0] == f"arm\nAURC {sum(risks) / 4:.3f}"


def test_risk_coverage_begins_at_ten_questions_answered() -> None:
    prediction = random_prediction(5, examples=40)
    curve = plots.risk_coverage({"arm": prediction}).axes[0].lines[0]
    ranked = sorted(right_and_confidence(prediction), reverse=True)
    risks = [sum(not right for _, right in ranked[:k]) / k for k in range(10, 41)]
    assert curve.get_xdata() == pytest.approx([k / 40 for k in range(10, 41)])
    assert curve.get_ydata() == pytest.approx(risks)


# Members


def test_agreement_counts_the_members_that_choose_as_the_ensemble_does() -> None:
    prediction = random_prediction(1, members=3, examples=120)
    above, below = plots.agreement(prediction).axes
    by_votes: dict[int, list[bool]] = {}
    for n, (mean, target) in enumerate(zip(mean_probs(prediction), prediction.targets.tolist(), strict=True)):
        choice = max(range(len(mean)), key=mean.__getitem__)
        members = [member[n] for member in member_probs(prediction)]
        votes = sum(max(range(len(one)), key=one.__getitem__) == choice for one in members)
        by_votes.setdefault(votes, []).append(choice == target)
    numbers = range(min(by_votes), 4)
    right = [by_votes.get(number, []) for number in numbers]
    assert [bar.get_height() for bar in below.patches] == pytest.approx([len(one) / 120 for one in right])
    assert [bar.get_height() for bar in above.patches] == pytest.approx(
        [statistics.fmean(one) for one in right if one]
    )
    assert [text.get_text() for text in below.texts] == [
        f"{len(one) / 120:.2f}\n{len(one)} questions" for one in right
    ]
    assert [text.get_text() for text in above.texts] == [
        f"{statistics.fmean(one):.2f}" for one in right if one
    ]
    assert below.get_xticks().tolist() == list(numbers)
    whiskers = [
        line.get_ydata() for line in above.lines if list(line.get_xdata()) in [[n, n] for n in numbers]
    ]
    intervals = [
        stats.binomtest(sum(one), len(one)).proportion_ci(0.95, method="wilson") for one in right if one
    ]
    assert [list(ends) for ends in whiskers] == [pytest.approx([one.low, one.high]) for one in intervals]


def points(figure: Figure) -> list[tuple[float, float]]:
    lines = [line for line in figure.axes[0].lines if line.get_marker() != "None"]
    return [(line.get_xdata()[0], line.get_ydata()[0]) for line in lines]


def interval(values: list[float]) -> tuple[float, float]:
    half = stats.norm.ppf(0.975) * statistics.stdev(values) / math.sqrt(len(values))
    return statistics.fmean(values) - half, statistics.fmean(values) + half


def test_diversity_gain_is_the_mean_members_nll_minus_the_ensembles() -> None:
    arms = {"three": random_prediction(0, members=3), "five": random_prediction(1, members=5)}
    figure = plots.diversity_gain(arms)
    bars = [line.get_data() for line in figure.axes[0].lines if line.get_marker() == "None"]
    for index, (name, prediction) in enumerate(arms.items()):
        targets = prediction.targets.tolist()
        own = member_probs(prediction)
        gains, shares = [], []
        for n, (mean, target) in enumerate(zip(mean_probs(prediction), targets, strict=True)):
            gains.append(statistics.fmean(-math.log(one[n][target]) for one in own) + math.log(mean[target]))
            choices = [max(range(len(mean)), key=one[n].__getitem__) for one in own]
            shares.append(statistics.fmean(a != b for a, b in itertools.combinations(choices, 2)))
        # 1e-5: probabilities are float32 in the library
        assert points(figure)[index] == pytest.approx(
            (statistics.fmean(shares), statistics.fmean(gains)), abs=1e-5
        )
        assert bars[2 * index][0] == pytest.approx(interval(shares), abs=1e-5)
        assert bars[2 * index + 1][1] == pytest.approx(interval(gains), abs=1e-5)
        assert labels(figure)[index] == f"{name}\ngain {statistics.fmean(gains):.3f} nats"


def test_members_that_say_the_same_have_no_diversity_and_gain_nothing() -> None:
    one = random_prediction(0, members=1)
    same = Prediction(one.member_log_probs.repeat(3, 1, 1), one.targets)
    for measure in ("disagreement", "mutual_information"):
        figure = plots.diversity_gain({"same": same}, measure=measure)
        assert points(figure)[0] == pytest.approx((0, 0), abs=1e-6)  # float32 probabilities


def test_mutual_information_measures_diversity_in_nats() -> None:
    prediction = random_prediction(4, members=3)
    entropy = [-sum(p * math.log(p) for p in row if p) for row in mean_probs(prediction)]
    own = [
        statistics.fmean(-sum(p * math.log(p) for p in row if p) for row in rows)
        for rows in zip(*member_probs(prediction), strict=True)
    ]
    figure = plots.diversity_gain({"arm": prediction}, measure="mutual_information")
    expected = statistics.fmean(total - mean for total, mean in zip(entropy, own, strict=True))
    assert points(figure)[0][0] == pytest.approx(expected, abs=1e-6)
    assert "nats" in figure.axes[0].get_xlabel()


def test_diversity_gain_refuses_a_single_member_and_an_unknown_measure() -> None:
    with pytest.raises(ConfigError, match="diversity_gain of 'lone' compares members, and there is 1"):
        plots.diversity_gain({"lone": random_prediction(0, members=1)})
    with pytest.raises(
        ConfigError, match="unknown measure of diversity 'disagree'; did you mean 'disagreement'"
    ):
        plots.diversity_gain({"arm": random_prediction(0)}, measure="disagree")  # type: ignore[arg-type]


# Sizes


def test_size_curve_draws_the_mean_of_all_subsets_between_the_lowest_and_the_highest() -> None:
    prediction = random_prediction(0, members=4)
    own, targets = member_probs(prediction), prediction.targets.tolist()
    axes = plots.size_curve(prediction, metrics=["nll", "accuracy"]).axes[0]
    band = axes.collections[0].get_paths()[0].vertices
    for size in range(1, 5):
        losses = [
            statistics.fmean(
                -math.log(statistics.fmean(own[m][n][target] for m in chosen))
                for n, target in enumerate(targets)
            )
            for chosen in itertools.combinations(range(4), size)
        ]
        # 1e-5: probabilities are float32 in the library
        assert axes.lines[0].get_ydata()[size - 1] == pytest.approx(statistics.fmean(losses), abs=1e-5)
        at = band[band[:, 0] == size][:, 1]
        assert (at.min(), at.max()) == pytest.approx((min(losses), max(losses)), abs=1e-5)


def test_size_curve_has_a_panel_for_each_metric_in_order() -> None:
    metrics = ("ece", "nll", "brier", "accuracy", "coverage_area")
    figure = plots.size_curve(random_prediction(0, members=2), metrics=metrics)
    expected = ["ECE ↓", "NLL (nats) ↓", "Brier ↓", "accuracy ↑", "accuracy-coverage area ↑"]
    assert [axes.get_ylabel() for axes in figure.axes] == expected


def test_many_subsets_are_sampled_by_the_seed_without_repeats() -> None:
    assert subsets(6, 3, seed=0) == list(itertools.combinations(range(6), 3))
    drawn_ones = subsets(12, 2, seed=0)  # 64 of 66
    assert len(set(drawn_ones)) == len(drawn_ones) == 64
    assert all(len(set(one)) == 2 and set(one) <= set(range(12)) for one in drawn_ones)
    assert subsets(20, 10, seed=1) == subsets(20, 10, seed=1) != subsets(20, 10, seed=2)
    assert subsets(20, 20, seed=0) == [tuple(range(20))]


def test_size_curve_refuses_no_metrics_and_unknown_ones() -> None:
    with pytest.raises(ConfigError, match="no metrics to draw; give some of accuracy, nll"):
        plots.size_curve(random_prediction(0), metrics=())
    with pytest.raises(ConfigError, match="unknown metric 'nl'; did you mean 'nll'"):
        plots.size_curve(random_prediction(0), metrics=("nl",))


# Tokens


def test_tokens_stand_in_lines_and_nothing_of_them_is_lost() -> None:
    tokens = ["The", " fox", " lives", " in", " a", " very", " long" + "o" * 30, ".", "\n", "\n Then", " it"]
    places = list(wrapped(tokens, 20))
    for index, token in enumerate(tokens):
        assert "".join(piece for of, _, _, piece in places if of == index) == token.replace("\n", "↵")
    ends: dict[int, int] = {}
    for _, line, column, piece in places:
        assert column == ends.get(line, 0)  # pieces stand side by side
        ends[line] = column + columns_of(piece)
    assert max(ends.values()) <= 20
    assert list(ends) == list(range(len(ends)))
    breaks = [line for _, line, _, piece in places if piece.endswith("↵")]
    assert all(min(line for _, line, _, _ in places[place:]) > line for place, line in after(places, breaks))


def after(places: list[tuple[int, int, int, str]], lines: list[int]) -> list[tuple[int, int]]:
    """For each line with a break, the first piece behind the break."""
    ends = [index for index, place in enumerate(places) if place[3].endswith("↵")]
    return [(end + 1, line) for end, line in zip(ends, lines, strict=True) if end + 1 < len(places)]


def test_wide_characters_take_two_columns_and_combining_ones_none() -> None:
    assert list(wrapped(["湖湖", "ab"], 5)) == [(0, 0, 0, "湖湖"), (1, 1, 0, "ab")]
    assert columns_of("e\u0301") == 1


def test_control_characters_are_shown_as_dots_and_end_no_line() -> None:
    assert list(wrapped(["a\x0cb", "\r\n", "c"], 9)) == [(0, 0, 0, "a·b"), (1, 0, 3, "↵"), (2, 1, 0, "c")]


def test_a_character_of_several_tokens_has_a_box_for_each() -> None:
    assert list(wrapped(["", "é"], 5)) == [(0, 0, 0, " "), (1, 0, 1, "é")]


def test_tokens_are_shaded_by_mutual_information_on_a_scale_from_zero() -> None:
    figure = plots.token_uncertainty(text_of(["a", "b", "c"], [0.0, 0.4, 0.8]))
    boxes = [colors.to_rgb(box.get_facecolor()) for box in figure.axes[0].patches]
    low, high = colors.to_rgb(LIGHT.background), colors.to_rgb(LIGHT.shade)
    half = [(one + other) / 2 for one, other in zip(low, high, strict=True)]
    assert boxes[0] == pytest.approx(low)
    assert boxes[1] == pytest.approx(half, abs=1 / 256)  # the scale has 256 steps
    assert boxes[2] == pytest.approx(high)
    assert figure.axes[1].get_xlim() == pytest.approx((0, 0.8))
    assert figure.axes[1].get_xlabel() == "mutual information (nats)"


def test_scale_reaches_a_tenth_of_a_nat_where_members_hardly_differ() -> None:
    figure = plots.token_uncertainty(text_of(["a"], [0.001]))
    assert figure.axes[1].get_xlim() == pytest.approx((0, 0.1))


def test_dollar_signs_are_drawn_as_they_are() -> None:
    figure = plots.token_uncertainty(text_of(["$x^2$", r" \frac$"], [0.1, 0.2]))
    figure.canvas.draw()  # as a formula the second would not parse
    assert [text.get_text() for text in figure.axes[0].texts] == ["$x^2$", r" \frac$"]
    assert not any(text.get_parse_math() for text in figure.axes[0].texts)


def test_a_longer_text_makes_a_higher_figure_and_fits_its_width() -> None:
    short, long = ([" word"] * count for count in (3, 200))
    low = plots.token_uncertainty(text_of(short, [0.1] * 3))
    high = plots.token_uncertainty(text_of(long, [0.1] * 200))
    assert high.get_figheight() > low.get_figheight()
    high.canvas.draw()
    right = max(text.get_window_extent().x1 for text in high.axes[0].texts)
    assert right <= high.bbox.x1


def test_token_uncertainty_draws_a_generated_text() -> None:
    log_probs = torch.randn(3, 2, 7, generator=torch.Generator().manual_seed(0)).log_softmax(dim=-1)
    split = uncertainty_of_tokens(log_probs, torch.tensor([1, 2]))
    text = GeneratedText(0, " the lake", (1, 2), (" the", " lake"), split)
    figure = plots.token_uncertainty(text)
    assert [shown.get_text() for shown in figure.axes[0].texts] == [" the", " lake"]


def test_a_text_without_tokens_or_with_other_values_is_refused() -> None:
    with pytest.raises(DataError, match="a text without tokens"):
        plots.token_uncertainty(text_of([], []))
    with pytest.raises(ConfigError, match="1 values of mutual information for 2 tokens; give one for each"):
        plots.token_uncertainty(text_of(["a", "b"], [0.1]))


# The gallery


def test_gallery_shows_every_figure_once_with_code_that_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = importlib.util.spec_from_file_location("gallery", REPOSITORY / "docs" / "build" / "gallery.py")
    assert spec is not None
    assert spec.loader is not None
    gallery = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "gallery", gallery)  # where dataclasses look for it
    spec.loader.exec_module(gallery)
    assert sorted(shown.name for shown in gallery.FIGURES) == sorted(plots.__all__)
    ensemble = random_prediction(0, examples=60)
    few_shot, dropout = random_prediction(1, members=5), random_prediction(2, members=5)
    names = {"plots": plots, "prediction": ensemble, "few_shot": few_shot, "dropout": dropout}
    for shown in gallery.FIGURES:
        if shown.name == "token_uncertainty":
            continue  # its first line writes a text
        exec(f"{shown.given}\n{shown.call(dark=True)}", names)
        text = gallery.section(shown, gallery.alternative_text(shown, names["figure"]))
        assert text.count(f"![{shown.seen}") == 2
        for mode in ("light", "dark"):
            assert f"(gallery/{shown.name}.{mode}.png#only-{mode})" in text
        assert shown.code() in text
        assert len(shown.code().splitlines()) == 3


def test_a_notebook_is_given_the_picture_without_pyplot():
    figure = new_figure((2.0, 1.0))
    assert figure._repr_png_().startswith(b"\x89PNG")
