"""Confidence as it is defined elsewhere: one number per example, from the ensemble's probabilities.

Shapes: N examples, C options.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, get_args

import torch
from torch import Tensor

from ..errors import ConfigError, unknown_name

if TYPE_CHECKING:
    from .prediction import Prediction

ConfidenceKind = Literal["top", "relative", "mass"]


def confidence(
    prediction: Prediction, *, kind: ConfidenceKind = "top", label_mass: Tensor | None = None
) -> Tensor:
    """The confidence of each example by one of the definitions in use.

    - "top": the probability of the most probable option, max_c p(c); `Prediction.confidence`.
    - "relative": that of transformers' decision pipeline. With n options and the most probable one b: of a
      choice (p(b) - 1/n) / (1 - 1/n), 0 where it is below chance; of a score 1 - sum_c p(c) |c - b| / u,
      with u the mean distance of the levels from their middle; of a predicate the probability of "yes", the
      first option.
    - "mass": that of vLLM, max_c p(c) times the share of the vocabulary's probability that lies on the
      labels.

    Args:
        prediction: of N examples; its `types` say which are scores and predicates, and all others are
            choices.
        kind: one of the three.
        label_mass: (N,) of "mass", as `label_mass` gives it.

    Returns:
        (N,) float32 from 0 to 1.

    Raises:
        ConfigError: no such kind; or "mass" without, or another kind with, the mass of the labels.

    Example:
        >>> from lora_ensembles.prediction.prediction import Prediction
        >>> sure = Prediction(torch.tensor([[[0.7, 0.2, 0.1]]]).log())
        >>> confidence(sure), confidence(sure, kind="relative")
        (tensor([0.7000]), tensor([0.5500]))
    """
    if kind not in get_args(ConfidenceKind):
        raise ConfigError(unknown_name("kind", kind, get_args(ConfidenceKind)))
    if (label_mass is not None) != (kind == "mass"):
        raise ConfigError(
            f"kind={kind!r} {'needs' if kind == 'mass' else 'does not take'} label_mass; "
            "`label_mass(ensemble, examples)` gives it, for kind='mass'"
        )
    if kind == "relative":
        return _relative(prediction)
    return prediction.confidence if label_mass is None else prediction.confidence * label_mass


def _relative(prediction: Prediction) -> Tensor:
    probs = prediction.probs.double()
    counts, best = prediction.present.sum(dim=-1), prediction.choices
    top = probs.gather(1, best[:, None])[:, 0]
    of_choices = ((top - 1 / counts) / (1 - 1 / counts)).clamp_min(0.0)
    levels = torch.arange(prediction.num_options)
    distance = (probs * (levels - best[:, None]).abs()).sum(dim=-1)
    middle = (counts[:, None] - 1) / 2
    spread = ((levels - middle).abs() * prediction.present).sum(dim=-1) / counts
    of_scores = (1 - distance / spread).clamp_min(0.0)
    types = prediction.types or (None,) * prediction.num_examples
    score, predicate = (torch.tensor([own == name for own in types]) for name in ("score", "predicate"))
    return torch.where(predicate, probs[:, 0], torch.where(score, of_scores, of_choices)).float()
