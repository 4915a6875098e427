"""Temperature scaling: one number, fitted on held-out examples, that makes a predictor more or less sure of
itself.

Shapes: N examples, C options.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from ..data import Example
from ..errors import ConfigError
from ..passes.stacked_model import num_trained_parameters
from ..prediction.prediction import Prediction, Predictor, predict
from ..prediction.soft_labels import cross_entropy
from .held_out import fingerprints, refuse_known
from .kinds import BOUNDS

_log = logging.getLogger(__name__)

_AT_BOUND = {
    BOUNDS[0]: ("lowest", "the examples hold no error that a surer predictor would pay for"),
    BOUNDS[1]: ("highest", "the predictor is worse than chance on the examples"),
}
# In nats: float32 log-probabilities of equal options differ by some units in the last place, 1e-7 of their
# size.
UNIFORM = 1e-5
HALVINGS = 60  # of an interval of log T that is 9.2 wide: down to 1e-17, past the resolution of float64


@dataclass(frozen=True)
class TemperatureScaled:
    """A `Predictor` with M = 1: the mean p of another predictor's members as p^(1/T), normalised over the
    options. Made by `fit`.

    The ensemble's averaged distribution is scaled, not each member. Averaging over members already softens:
    members that are calibrated one by one average to an ensemble that is not sure enough (Rahaman & Thiery
    2021, arXiv:2007.08792), and the NLL of what is reported is what T should minimise. The price: one
    distribution is left, so mutual information and disagreement are those of the wrapped predictor. No
    option's rank changes, so accuracy does not. Source: Guo et al. 2017 (arXiv:1706.04599), on task
    probabilities in place of logits, which is the same up to the normaliser.

    What was fitted on cannot be scored: these examples are remembered, and a prediction of any of them is
    refused.

    Attributes:
        predictor: what is scaled.
        temperature: T; above 1 it softens.
        fitted_on: fingerprint of each example of the fitting set and its id.

    Example:
        >>> from lora_ensembles import LoraEnsemble, load_task
        >>> from lora_ensembles.embedded import load_base
        >>> task = load_task("world-cqa")
        >>> held_out, scored = task.validation[:60], task.validation[60:90]
        >>> ensemble = LoraEnsemble(*load_base(), num_members=2)
        >>> scaled = TemperatureScaled.fit(ensemble, held_out, trained_on=task.train)
        >>> 0.2 < scaled.temperature < 5, scaled.member_log_probs(scored).shape
        (True, torch.Size([1, 30, 5]))
        >>> scaled.member_log_probs(held_out)
        Traceback (most recent call last):
        ...
        lora_ensembles.errors.DataError: example 'world-cqa/validation/0' was used to fit the temperature
            (as ...
    """

    predictor: Predictor
    temperature: float
    fitted_on: Mapping[str, str]

    @classmethod
    def fit(
        cls,
        predictor: Predictor,
        held_out: Sequence[Example],
        *,
        trained_on: Sequence[Example] = (),
        max_rows: int | None = None,
    ) -> TemperatureScaled:
        """The predictor with the temperature of least NLL on `held_out`, which has to be neither trained on
        nor scored later.

        Args:
            predictor: an ensemble, a single member, another baseline.
            held_out: labelled examples.
            trained_on: what the predictor was trained on, if it was; fitting on any of it is refused, since
                there the predictor is far surer of the right answer than anywhere else, and T would make it
                surer still.
            max_rows: as in `predict`.

        A temperature that ends at one of `BOUNDS` is logged as a warning, and `at_bound` is true.

        Raises:
            DataError: no examples, one without an answer, or one of `trained_on` among them.
        """
        refuse_known(
            held_out,
            fingerprints(trained_on),
            "was trained on",
            "fit the temperature on examples that were not",
        )
        prediction = predict(predictor, held_out, max_rows=max_rows)
        scaled = cls(predictor, best_temperature(prediction), fingerprints(held_out))
        warn_at_bound(scaled.temperature)
        return scaled

    def __post_init__(self) -> None:
        if not (math.isfinite(self.temperature) and self.temperature > 0):
            raise ConfigError(f"temperature={self.temperature}; it is a finite number above 0")

    @property
    def at_bound(self) -> bool:
        """True if the temperature is one of `BOUNDS`: NLL falls beyond it, so the fitting set did not decide
        it.
        """
        return self.temperature in BOUNDS

    @property
    def num_trained_parameters(self) -> int:
        """Parameters of a member of the wrapped predictor, and the temperature."""
        return num_trained_parameters(self.predictor) + 1

    def member_log_probs(self, examples: Sequence[Example], *, max_rows: int | None = None) -> Tensor:
        """log of the scaled mean probabilities (1, N, C), float32; see `Predictor`.

        Args:
            examples: N labelled or unlabelled examples.
            max_rows: the most rows (member and example pairs) in one forward pass; None: a number that suits
                most machines.

        Raises:
            DataError: an example is one of those that the temperature was fitted on.
        """
        refuse_known(
            examples,
            self.fitted_on,
            "was used to fit the temperature",
            "score other examples: on these the scores would be too good",
        )
        return scaled_log_probs(predict(self.predictor, examples, max_rows=max_rows), self.temperature)[None]


def warn_at_bound(temperature: float, *, of: str = "") -> None:
    """Log a warning where a temperature is one of `BOUNDS`; `of` says what it is of, with a space before."""
    if temperature in BOUNDS:
        _log.warning(
            "temperature %g%s is the %s that is searched: %s; fit it on more examples",
            *(temperature, of, *_AT_BOUND[temperature]),
        )


def scaled_log_probs(prediction: Prediction, temperature: float) -> Tensor:
    """log of p^(1/T) normalised over the options (N, C), float32, -inf at absent options; p is the mean over
    members.

    Example:
        >>> import torch
        >>> prediction = Prediction(torch.tensor([[[0.8, 0.2]]]).log())
        >>> scaled = scaled_log_probs(prediction, 0.5).exp()[0].tolist()
        >>> [round(p, 4) for p in scaled]  # 0.64 and 0.04, normalised
        [0.9412, 0.0588]
    """
    return (prediction.log_probs.double() / temperature).log_softmax(dim=-1).float()


def best_temperature(prediction: Prediction) -> float:
    """The temperature of least NLL within `BOUNDS`, to the last digits, and the same on every call.

    With b = 1 / T the NLL mean(logsumexp(b log p) - b log p_target) is convex in b, so its slope,
    mean(E_b[log p] - log p_target), rises and is zero once at most; log b is halved until it is found. At b =
    0 (T = inf) every option is equally probable.

    Where every example's options are equally probable, no temperature changes anything, and it is 1.

    Raises:
        DataError: the prediction is unlabelled.

    Example:
        >>> import torch
        >>> sure = torch.tensor([[0.9, 0.1]]).log().expand(1, 4, 2)
        >>> T = best_temperature(Prediction(sure, torch.tensor([0, 0, 0, 1])))  # right three times in four
        >>> round(0.9 ** (1 / T) / (0.9 ** (1 / T) + 0.1 ** (1 / T)), 6)
        0.75
    """
    truth = prediction.labelled_probs("fitting a temperature")
    if _is_uniform(prediction):
        return 1.0
    log_probs = prediction.log_probs.double()
    finite = log_probs.masked_fill(~prediction.present, 0.0)  # 0 * -inf would be nan in the expectation
    loss = cross_entropy(log_probs, truth)

    def slope(inverse: float) -> float:
        weights = (log_probs * inverse).softmax(dim=-1)
        return float(((weights * finite).sum(dim=-1) + loss).mean())

    low, high = -math.log(BOUNDS[1]), -math.log(BOUNDS[0])
    if slope(math.exp(low)) >= 0:
        return BOUNDS[1]
    if slope(math.exp(high)) <= 0:
        return BOUNDS[0]
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        if slope(math.exp(middle)) < 0:
            low = middle
        else:
            high = middle
    return math.exp(-(low + high) / 2)


def _is_uniform(prediction: Prediction) -> bool:
    """True if all present options of each example are equally probable, to what float32 resolves of a
    log-probability.
    """
    highest = prediction.log_probs.amax(dim=-1)
    lowest = prediction.log_probs.masked_fill(~prediction.present, math.inf).amin(dim=-1)
    return bool((highest - lowest <= UNIFORM).all())
