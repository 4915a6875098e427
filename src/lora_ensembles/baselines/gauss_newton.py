"""Laplace's approximation for the weights of one linear layer, on features that stay as they are.

Shapes: N examples, H features, L outputs, P = L * H weights, row by row; S samples, T prior precisions.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from ..errors import ConfigError, unknown_name

Structure = Literal["kron", "full"]

FULL_WEIGHTS = 8192
"""Most weights whose exact curvature is decomposed: the matrix is then 512 MiB in float64, as are its
eigenvectors."""
PRIOR_PRECISIONS = (1e-4, 1e6, 201)
"""Lowest, highest and number of the prior precisions that are tried; 20 a decade, a step of 12 %."""


@dataclass(frozen=True)
class Curvature:
    """The curvature G (P, P) of a negative log-likelihood in the weights of a linear layer, decomposed.

    Attributes:
        values: its eigenvalues (L, H).
        vectors: its eigenvectors as columns: one matrix (P, P), or, of a Kronecker product, those of its
            factors, (L, L) and (H, H).
    """

    values: Tensor
    vectors: tuple[Tensor, ...]

    def times(self, weights: Tensor, factors: Tensor) -> Tensor:
        """Weights (..., L, H) multiplied by the matrix that has the same eigenvectors, and `factors` (L, H)
        for eigenvalues.
        """
        if len(self.vectors) == 1:
            (vectors,) = self.vectors
            turned = weights.flatten(-2) @ vectors * factors.flatten()
            return (turned @ vectors.T).view(weights.shape)
        outer, inner = self.vectors
        return outer @ ((outer.T @ weights @ inner) * factors) @ inner.T


@dataclass(frozen=True)
class LayerPosterior:
    """The Gaussian N(W, (G + tau I)^-1) over the weights of a linear layer.

    Attributes:
        mean: the trained weights W (L, H).
        curvature: G.
        prior_precision: tau.
    """

    mean: Tensor
    curvature: Curvature
    prior_precision: float

    def samples(self, noise: Tensor) -> Tensor:
        """Samples W + (G + tau I)^(-1/2) z of standard normal noise z (S, L, H).

        The root is the symmetric one, so that a sample is a function of its noise, and not of how
        eigenvectors came out.
        """
        spread = (self.curvature.values + self.prior_precision).rsqrt()
        return self.mean + self.curvature.times(noise, spread)

    def output_covariance(self, features: Tensor) -> Tensor:
        """The covariance (N, L, L) of the outputs W f for features (N, H)."""
        eye = torch.eye(len(self.mean), dtype=features.dtype, device=features.device)
        jacobian = eye[None, :, :, None] * features[:, None, None, :]  # (N, L, L, H)
        variances = (self.curvature.values + self.prior_precision).reciprocal()
        return (self.curvature.times(jacobian, variances) @ features[:, None, :, None])[..., 0]


def softmax_hessians(logits: Tensor) -> Tensor:
    """The Hessians diag(p) - p p' (N, L, L) of -log softmax in logits (N, L), whatever the answer.

    Example:
        >>> softmax_hessians(torch.zeros(1, 2))
        tensor([[[ 0.2500, -0.2500],
                 [-0.2500,  0.2500]]])
    """
    probs = logits.softmax(dim=-1)
    return torch.diag_embed(probs) - probs[:, :, None] * probs[:, None, :]


def gauss_newton(features: Tensor, hessians: Tensor, *, structure: Structure = "kron") -> Curvature:
    """The generalised Gauss-Newton matrix of a linear layer: sum_n Lambda_n kron f_n f_n'.

    For a linear layer it is the Hessian itself. "full" is exact. "kron" is KFAC, (sum_n Lambda_n) kron
    (sum_n f_n f_n') / N, which is exact where all Lambda_n, or all f_n, are equal; scaled as in laplace-torch
    0.3. Source: arXiv:2106.14806.

    Args:
        features: what enters the layer, f_n (N, H).
        hessians: of each example's negative log-likelihood in the layer's outputs, Lambda_n (N, L, L): those
            of `softmax_hessians`, or I / sigma^2 for a Gaussian likelihood.
        structure: "kron" or "full".

    Raises:
        ConfigError: another structure; or "full" for more than `FULL_WEIGHTS` weights.

    Example:
        >>> one = gauss_newton(torch.ones(3, 1), torch.ones(3, 1, 1), structure="full")
        >>> one.values.tolist()
        [[3.0]]
    """
    if structure not in get_args(Structure):
        raise ConfigError(unknown_name("structure", structure, get_args(Structure)))
    outputs, width = hessians.shape[-1], features.shape[-1]
    if structure == "kron":
        outer_values, outer = _decomposed(hessians.sum(dim=0))
        inner_values, inner = _decomposed(features.T @ features / len(features))
        return Curvature(outer_values[:, None] * inner_values, (outer, inner))
    count = outputs * width
    if count > FULL_WEIGHTS:
        raise ConfigError(
            f"structure='full' with {outputs} outputs of {width} features: the curvature of {count:,} "
            f"weights is a matrix of {8e-9 * count**2:.1f} GB, and {FULL_WEIGHTS:,} weights are the most "
            "that are decomposed; use structure='kron'"
        )
    matrix = features.new_empty(outputs, width, outputs, width)
    for row in range(outputs):
        for column in range(row + 1):
            block = features.T @ (hessians[:, row, column, None] * features)
            matrix[row, :, column], matrix[column, :, row] = block, block
    values, vectors = _decomposed(matrix.view(count, count))
    return Curvature(values.view(outputs, width), (vectors,))


def log_evidence(
    log_likelihood: Tensor, mean: Tensor, curvature: Curvature, prior_precisions: Tensor
) -> Tensor:
    """Laplace's approximation (T,) of the log marginal likelihood of the data, in nats.

    log p(D | W) - (log det(G + tau I) - P log tau + tau |W|^2) / 2, for the prior N(0, I / tau) of the
    weights. Source: arXiv:2106.14806, as
    `log_marginal_likelihood` of laplace-torch 0.3.

    Args:
        log_likelihood: log p(D | W) (), of all examples together.
        mean: W (L, H).
        curvature: G.
        prior_precisions: tau (T,).
    """
    determinants = torch.stack([(curvature.values + tau).log().sum() for tau in prior_precisions])
    ratio = determinants - mean.numel() * prior_precisions.log()
    return log_likelihood - (ratio + prior_precisions * mean.square().sum()) / 2


def best_prior_precision(log_likelihood: Tensor, mean: Tensor, curvature: Curvature) -> float:
    """The prior precision of the largest `log_evidence` on the grid of `PRIOR_PRECISIONS`.

    Where the evidence rises to an end of the grid, the result is that end.
    """
    low, high, count = PRIOR_PRECISIONS
    grid = torch.logspace(math.log10(low), math.log10(high), count, dtype=mean.dtype, device=mean.device)
    return float(grid[log_evidence(log_likelihood, mean, curvature, grid).argmax()])


def _decomposed(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues, those that rounding made negative as 0, and eigenvectors."""
    values, vectors = torch.linalg.eigh(matrix)
    return values.clamp(min=0), vectors
