from __future__ import annotations

import importlib.util
import math
import sys

import pytest
import torch

from lora_ensembles.errors import ConfigError, DataError, MissingExtraError
from lora_ensembles.prediction.metrics import accuracy_coverage, coverage_area, ece, reliability_bins
from lora_ensembles.prediction.plots import (
    accuracy_coverage_plot,
    density_on_unit_interval,
    reliability_diagram,
    wrong_confidence_density,
)
from lora_ensembles.prediction.prediction import Prediction
from random_predictions import random_prediction

FIGURES = [reliability_diagram, wrong_confidence_density, accuracy_coverage_plot]


@pytest.fixture
def arms() -> dict[str, Prediction]:
    pytest.importorskip("matplotlib")
    ensemble = random_prediction(0, examples=200)
    return {"single member": ensemble.member(0), "ensemble": ensemble}


@pytest.mark.parametrize("draw", FIGURES)
def test_single_member_is_solid_and_ensemble_dashed(arms, draw):
    lines = {line.get_label().split(" (")[0]: line.get_linestyle() for line in draw(arms).axes[0].lines}
    assert lines["single member"] == "-"
    assert lines["ensemble"] == "--"


@pytest.mark.parametrize("draw", FIGURES)
def test_axes_are_named_and_the_figure_is_written(arms, draw, tmp_path):
    figure = draw(arms)
    assert figure.axes[0].get_xlabel()
    assert figure.axes[0].get_ylabel()
    figure.savefig(tmp_path / "figure.png")
    assert (tmp_path / "figure.png").read_bytes().startswith(b"\x89PNG")


def test_reliability_diagram_draws_the_bins_and_names_the_ece(arms):
    line = reliability_diagram(arms).axes[0].lines[2]
    bins = reliability_bins(arms["ensemble"])
    assert line.get_xdata() == pytest.approx(bins.confidences.tolist())
    assert line.get_ydata() == pytest.approx(bins.accuracies.tolist())
    assert line.get_label() == f"ensemble (ECE {ece(arms['ensemble']):.3f})"


def test_accuracy_coverage_plot_draws_the_curve_and_names_its_area(arms):
    line = accuracy_coverage_plot(arms).axes[0].lines[1]
    assert line.get_ydata() == pytest.approx(accuracy_coverage(arms["ensemble"]).accuracies.tolist())
    assert line.get_label() == f"ensemble (area {coverage_area(arms['ensemble']):.3f})"


def test_wrong_confidence_density_uses_wrong_answers_alone(arms):
    single = arms["single member"]
    wrong = torch.tensor(
        [probs.argmax() != target for probs, target in zip(single.probs, single.targets, strict=True)]
    )
    line = wrong_confidence_density(arms).axes[0].lines[0]
    expected = density_on_unit_interval(
        single.probs.max(dim=-1).values[wrong], torch.tensor(line.get_xdata())
    )
    assert line.get_ydata() == pytest.approx(expected.tolist())
    assert line.get_label() == f"single member ({int(wrong.sum())} of 200 wrong)"


def test_arm_without_wrong_answers_has_no_line_and_says_so():
    pytest.importorskip("matplotlib")
    right = Prediction(torch.tensor([[[0.9, 0.1]]]).log(), torch.tensor([0]))
    line = wrong_confidence_density({"perfect": right}).axes[0].lines[0]
    assert len(line.get_xdata()) == 0
    assert line.get_label() == "perfect (0 of 1 wrong)"


@pytest.mark.parametrize("seed", range(4))
def test_density_integrates_to_one_over_the_unit_interval(seed):
    values = torch.rand(50, generator=torch.Generator().manual_seed(seed)) ** 0.2  # piled up near 1
    grid = torch.linspace(0, 1, 2001, dtype=torch.float64)
    # 1e-4: the trapezoidal rule, and kernels reflected once only
    assert torch.trapezoid(density_on_unit_interval(values, grid), grid).item() == pytest.approx(1, abs=1e-4)


def test_density_is_the_sum_of_reflected_kernels_with_silvermans_bandwidth():
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
def test_density_of_equal_values_is_finite(values):
    density = density_on_unit_interval(torch.tensor(values), torch.linspace(0, 1, 101))
    assert torch.isfinite(density).all()
    assert density.max() > 1


def test_density_of_nothing_is_refused():
    with pytest.raises(DataError, match="no values"):
        density_on_unit_interval(torch.tensor([]), torch.tensor([0.5]))


@pytest.mark.parametrize("draw", FIGURES)
def test_too_few_or_too_many_arms_are_refused(draw):
    with pytest.raises(ConfigError, match="0 arms to draw; give 1 to 7"):
        draw({})
    with pytest.raises(ConfigError, match="8 arms to draw"):
        draw({str(n): random_prediction(n) for n in range(8)})


@pytest.mark.parametrize("draw", FIGURES)
def test_unlabelled_prediction_is_refused(draw):
    pytest.importorskip("matplotlib")
    with pytest.raises(DataError, match="needs targets"):
        draw({"arm": Prediction(torch.full((1, 3, 2), 0.5).log())})


@pytest.mark.parametrize("draw", FIGURES)
def test_missing_matplotlib_names_the_install_command(draw, monkeypatch):
    monkeypatch.setitem(
        sys.modules, "matplotlib", None
    )  # what Python itself records for a package that must not be imported
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(MissingExtraError, match=r'pip install "lora-ensembles\[plots\]"'):
        draw({"arm": random_prediction(0)})


def test_importing_plots_needs_no_matplotlib(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    spec = importlib.util.find_spec("lora_ensembles.prediction.plots")
    spec.loader.exec_module(importlib.util.module_from_spec(spec))  # a second, unregistered copy


def test_drawing_registers_nothing_with_pyplot(arms):
    pyplot = pytest.importorskip("matplotlib.pyplot")
    before = pyplot.get_fignums()
    reliability_diagram(arms)
    assert pyplot.get_fignums() == before
