"""Laplace's approximation of the last layer: a Gaussian around the trained weights of every member.

Shapes: M members, S samples of each, N examples, C labels, L outputs of the last layer, H features of it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import get_args

import torch
from torch import Tensor

from ..checks import number_between, whole_number
from ..data import Example
from ..ensemble import LoraEnsemble
from ..errors import AdapterError, ConfigError, unknown_name
from ..passes.stacked_model import num_trained_parameters
from ..prediction.soft_labels import cross_entropy, soft_targets
from ..stack.dropout import stream_key
from ..stack.seeds import whole_seed
from .gauss_newton import (
    LayerPosterior,
    Structure,
    best_prior_precision,
    gauss_newton,
    log_evidence,
    softmax_hessians,
)
from .last_layer_features import LastLayer, last_layer_of

CHECKED = 4  # examples on which the last layer alone is held to the members' own predictions


class LastLayerLaplace:
    """A `Predictor` whose members are samples of the last layer of trained members, S of each, around what
    was trained.

    The distribution over the weights of a member's last layer is N(W, (G + tau I)^-1), where G = sum_n
    (diag(p_n) - p_n p_n') kron f_n f_n' is the curvature of the negative log-likelihood of the training
    examples, and f_n what enters the layer. The members' adapters stay as they are, so a prediction takes one
    pass of the body for each member, however many samples there are: these only multiply features. A sample
    is a function of (seed, mode, its number).

    The last layer of a causal language model is the head's rows for the labels' tokens, with the softmax over
    all labels of the training examples for a likelihood; each label must be one token, and a prediction is
    over the example's own labels. That of a classifier is the last linear layer of the member's own head. A
    bias is the weight of a feature that is always 1. Curvature and evidence are computed in float64.

    Without `prior_precision`, tau is that of the largest Laplace evidence, for the prior N(0, I / tau), on a
    grid from 1e-4 to 1e6 with 20 values a decade; each member has its own.

    Source: Daxberger et al. 2021, *Laplace redux* (arXiv:2106.14806), last layer, predictions by samples of
    the weights. `Differs:` the bias shares the Kronecker factor of the weights, as a feature, where
    laplace-torch takes the two for independent; the trained weights of a head that was not trained under the
    prior are its centre, not a maximum a posteriori.

    Args:
        ensemble: trained members; never changed. After they changed, fit again.
        samples: S.
        seed: of the samples.
        structure: "kron" for KFAC, or "full" for the exact matrix of all L * H weights, 8,192 at most.
        prior_precision: tau; None: by the evidence.

    Raises:
        ConfigError: a setting out of its range; members with multiple-choice or reward heads; a base over
            several ranks.

    Example:
        >>> from lora_ensembles import LoraEnsemble, TrainConfig, load_base, load_task, train
        >>> task = load_task("world-cqa")
        >>> ensemble = LoraEnsemble(*load_base(), num_members=1)
        >>> _ = train(ensemble, task.train[:64], TrainConfig(epochs=2, learning_rate=2e-3), progress=False)
        >>> laplace = LastLayerLaplace(ensemble, samples=4).fit(task.train[:64])
        >>> laplace.member_log_probs(task.validation[:3]).shape
        torch.Size([4, 3, 5])
    """

    def __init__(
        self,
        ensemble: LoraEnsemble,
        *,
        samples: int = 10,
        seed: int = 0,
        structure: Structure = "kron",
        prior_precision: float | None = None,
    ):
        if structure not in get_args(Structure):
            raise ConfigError(unknown_name("structure", structure, get_args(Structure)))
        kind = ensemble.info.head.kind
        if kind not in ("causal-lm", "sequence-classification"):
            raise ConfigError(
                f"LastLayerLaplace: a {kind} head scores the text of each option by itself, so an example "
                "has several feature vectors, and its curvature is not that of a softmax over the layer's "
                "outputs; a causal language model or a classifier is needed, or a distribution over "
                "adapters, such as TFB or SWAG"
            )
        ensemble.stack.sharding.check_one_process("LastLayerLaplace")
        self.ensemble = ensemble
        self.samples, self.seed = whole_number("samples", samples), whole_seed(seed)
        self.structure = structure
        self.prior_precision = (
            None if prior_precision is None else number_between("prior_precision", prior_precision, above=0)
        )
        self.posteriors: list[LayerPosterior] = []  # of each mode, after `fit`
        self.log_evidences: list[float] = []  # of each mode, in nats
        self._layer: LastLayer | None = None
        self._weights = torch.zeros(0)  # (M, S, L, H)

    @property
    def num_trained_parameters(self) -> int:
        """Parameters that were trained for one mode: those of the member."""
        return num_trained_parameters(self.ensemble)

    @property
    def prior_precisions(self) -> list[float]:
        """The prior precision tau of each mode."""
        return [posterior.prior_precision for posterior in self.posteriors]

    @torch.no_grad()
    def fit(self, examples: Sequence[Example], *, max_rows: int | None = None) -> LastLayerLaplace:
        """Compute the curvature on labelled examples, which each member reads once, and draw the samples.

        The first 4 are asked once more, to hold the last layer alone to the members' own predictions.

        Args:
            examples: N labelled ones, those that the members were trained on.
            max_rows: as in `member_log_probs`.

        Returns:
            The predictor itself.

        Raises:
            DataError: no examples, one without an answer, or one that cannot be used; of a causal language
                model also a label of several tokens.
            AdapterError: the members' predictions are not those of a linear last layer.
            ConfigError: "full", and too many weights; or memory ran out.
        """
        layer = last_layer_of(self.ensemble, examples)
        features, columns = layer.read(examples, max_rows=max_rows)
        weights = layer.weights()
        self._check(examples[:CHECKED], features[:, :CHECKED], columns[:CHECKED], weights)
        targets = _targets(examples, columns, weights.shape[1])
        device = self.ensemble.device if self.ensemble.device.type == "cuda" else torch.device("cpu")
        posteriors, evidences = [], []
        for own, mean in zip(features, weights, strict=True):
            posterior, evidence = self._posterior(
                own.to(device, torch.float64), mean.to(device, torch.float64), targets.to(device)
            )
            posteriors.append(posterior)
            evidences.append(evidence)
        self._layer, self.posteriors, self.log_evidences = layer, posteriors, evidences
        self._weights = torch.stack([self._samples(mode) for mode in range(len(posteriors))])
        return self

    @torch.no_grad()
    def member_log_probs(self, examples: Sequence[Example], *, max_rows: int | None = None) -> Tensor:
        """log p of each label or class for each sample (M * S, N, C), float32, mode by mode; see `Predictor`.

        Args:
            examples: N labelled or unlabelled examples.
            max_rows: the most rows (member and example pairs) in one forward pass; None: a number that suits
                most machines.

        Raises:
            ConfigError: nothing was fitted yet, or other members than there are now; or memory ran out.
            DataError: a prompt or a label cannot be used, or no training example had the label.
        """
        if self._layer is None:
            raise ConfigError("LastLayerLaplace has no samples before `fit`; call it first")
        if len(self.posteriors) != self.ensemble.num_members:
            raise ConfigError(
                f"LastLayerLaplace was fitted to {len(self.posteriors)} members, and the ensemble has "
                f"{self.ensemble.num_members} now; fit it again"
            )
        features, columns = self._layer.read(examples, max_rows=max_rows)
        return _log_probs(features, columns, self._weights)

    def _posterior(self, features: Tensor, mean: Tensor, targets: Tensor) -> tuple[LayerPosterior, float]:
        """The posterior of one mode, and its log-evidence in nats."""
        logits = features @ mean.T
        curvature = gauss_newton(features, softmax_hessians(logits), structure=self.structure)
        likelihood = -cross_entropy(logits.log_softmax(dim=-1), targets).sum()
        tau = self.prior_precision
        if tau is None:
            tau = best_prior_precision(likelihood, mean, curvature)
        evidence = log_evidence(likelihood, mean, curvature, torch.tensor([tau], device=mean.device).to(mean))
        return LayerPosterior(mean, curvature, tau), float(evidence)

    def _samples(self, mode: int) -> Tensor:
        """The samples (S, L, H) around a mode, float32 on the CPU."""
        posterior = self.posteriors[mode]
        noise = torch.empty(self.samples, *posterior.mean.shape, dtype=torch.float64)
        for number, own in enumerate(noise):
            key = stream_key(self.seed, "sample", mode, number)
            own.normal_(generator=torch.Generator().manual_seed(key))
        return posterior.samples(noise.to(posterior.mean.device)).float().cpu()

    def _check(self, examples: Sequence[Example], features: Tensor, columns: Tensor, weights: Tensor) -> None:
        """Refuse members that do something else with the features than multiply them by the weights."""
        weights = weights.cpu()
        expected = self.ensemble.member_log_probs(examples)
        own = _log_probs(features, columns, weights[:, None])
        largest = float((features @ weights.transpose(1, 2)).abs().max())
        share = 1e-4 if self.ensemble.base.dtype == torch.float32 else 1e-2  # rounding of the same product
        options = expected.shape[2]  # of these examples; others may have more
        if not torch.allclose(own[..., :options], expected, rtol=0, atol=share * max(1.0, largest)):
            raise AdapterError(
                f"the members' predictions on a {type(self.ensemble.base).__name__} are not those of its "
                "last layer alone, so a distribution over that layer says nothing of them; use a "
                "distribution over adapters, such as TFB or SWAG"
            )


def _log_probs(features: Tensor, columns: Tensor, weights: Tensor) -> Tensor:
    """log p of the labels (M * S, N, C) from features (M, N, H), the labels' outputs (N, C), -1 for none, and
    weights (M, S, L, H).
    """
    logits = (features[:, None] @ weights.transpose(2, 3)).flatten(0, 1)  # (M * S, N, L), float32
    chosen = logits.gather(2, columns.clamp(min=0).expand(len(logits), -1, -1))
    return chosen.masked_fill(columns < 0, -math.inf).log_softmax(dim=-1)


def _targets(examples: Sequence[Example], columns: Tensor, outputs: int) -> Tensor:
    """The probability (N, L) that the answers give to each output, float64: 1 to that of the right label, or
    the soft labels.
    """
    probs = soft_targets(examples, [len(example.labels) for example in examples])
    if probs is None:
        answers = torch.tensor([int(example.target or 0) for example in examples])
        probs = torch.nn.functional.one_hot(answers, columns.shape[1])
    empty = torch.zeros(len(examples), outputs, dtype=torch.float64)
    return empty.scatter_add(1, columns.clamp(min=0), probs.double())
